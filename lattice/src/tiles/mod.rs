//! Products of a matrix of the client with one of the server, both secret, in tiles of coefficients.
//!
//! A product of two shared matrices is two of these, one of them transposed, and two that each party computes alone.
//! A left tile (m × k) stands at `i k n + (k-1-j)`, a right one (k × n) at `c k + j`, turned back by `k - 1`, with
//! m k n = N (Cheetah, eprint 2022/207): the results of their product are the coefficients at multiples of `k`. Of a batch of
//! low matrices a left tile holds several, and each right tile is multiplied by the one with its own; what it gives of the
//! others is masked and not sent.
//! Up to `k` products are merged into one ciphertext by automorphisms (Chen, Dai, Kim, Song, eprint 2020/015), so that
//! only full ciphertexts are sent:
//!
//! ```text
//! client   Enc(left tiles), (b, a) with b + a s = ⌊q m/2^bits⌉ + e
//! server   products with its tiles, times 1/r mod q for r merged ones;  pairs x, y: x + X^h y + auto(x - X^h y), where
//!          auto: X → X^(N/h + 1), h = k/2, k/4 …, and a key switch with two digits in each prime
//!          A = a + pk_1 u + e',  B = b + pk_0 u + R,  u ternary, R uniform mod q
//!          it sends A changed to 2^(bits+12), of B the results' coefficients changed to 2^(bits+4), keeps -⌊2^bits R/q⌉
//! client   ⌊B + A s⌉
//! ```
//!
//! One exchange; the two sum to the product, up to the error that [`noise`] bounds.
//!
//! *Server's view*: RLWE ciphertexts under the client's key, among them encryptions of `s(X^g)` for the automorphisms:
//! circular security is assumed, as of every such key. *Client's view*: B is uniform, since R is; given that, A is
//! masked by an RLWE sample for the server's fresh `u`, pseudorandom whoever knows `s`.

mod client;
mod merge;
pub mod noise;
mod server;
#[cfg(test)]
mod tests;

pub use self::client::{TileClient, tile_client};
pub use self::server::{TileServer, tile_server};
use crate::bits::{pack, packed_bytes, unpack};
use crate::error::{Error, Result, check_length};
use crate::exact::Exact;
use crate::params::TileSet;
use crate::random::Seed;
use crate::rns::{Poly, Ring};

/// Bits of A and of B below a unit that are sent.
const BELOW_A: u32 = 12;
const BELOW_B: u32 = 4;
/// Digits of a residue in a key switch.
const DIGITS: usize = 2;
/// Levels of merging: up to 2^7 products become one.
const LEVELS: usize = 7;
/// Bits of the largest error of a product in its units, up to [`MOST_INNER`] terms: what is off by `2^ERROR_BITS` is off by
/// too much for any tiling that [`Tiling::new`] makes.
pub const ERROR_BITS: u32 = 7;
/// Most terms of a product's element.
pub const MOST_INNER: usize = 1 << 20;

/// What both parties compute once for a set of `K` primes.
struct Tiles<const K: usize> {
    set: &'static TileSet,
    ring: Ring<K>,
    exact: Exact,
}

impl<const K: usize> Tiles<K> {
    /// Tables of a set. Refuses one with another number of primes.
    fn new(set: &'static TileSet) -> Result<Tiles<K>> {
        let other = |_| Error::new(format!("expected a set of {K} primes, found {}", set.primes.len()));
        let primes = set.primes.try_into().map_err(other)?;
        Ok(Tiles { set, ring: Ring::new(set.n, primes), exact: Exact::new(set.n, set.ring + BELOW_A) })
    }

    /// Bits of a digit of a key switch.
    fn digit(&self) -> u32 {
        self.set.residue_bits() / DIGITS as u32
    }

    fn check(&self, tiling: &Tiling, bits: u32) -> Result<()> {
        if tiling.set != self.set {
            return Err(Error::new(format!("expected a tiling of set {}, found {}", self.set.id, tiling.set.id)));
        }
        if (1..=self.set.ring).contains(&bits) {
            return Ok(());
        }
        Err(Error::new(format!("expected products mod 2^1 to 2^{}, found 2^{bits}", self.set.ring)))
    }
}

/// Bytes of the public key of a set: one encryption of zero and the switching keys.
pub fn public_key_bytes(set: &TileSet) -> usize {
    (1 + LEVELS * DIGITS * set.primes.len()) * set.ciphertext_bytes()
}

/// How a batch of products of equal sizes is cut into tiles. Public: it follows from sizes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Products of matrices.
    pub batch: usize,
    /// Rows of a left matrix, which the client has.
    pub rows: usize,
    /// Columns of a left matrix and rows of a right one.
    pub inner: usize,
    /// Columns of a right matrix, which the server has.
    pub cols: usize,
    set: &'static TileSet,
    /// Sizes of a tile.
    tile: [usize; 3],
}

/// A product of tiles: which of the batch, and which rows and columns of tiles.
#[derive(Clone, Copy)]
struct Place {
    batch: usize,
    row: usize,
    col: usize,
}

impl Tiling {
    /// The tiling that costs least, of those with an error below `2^ERROR_BITS`. Costs are in products of two tiles: a merge
    /// of two ciphertexts takes the time of some 25, and a ciphertext, with its way over a link of 125 Mbit/s, of 240.
    /// Refused are empty matrices, and more than [`MOST_INNER`] terms.
    pub fn new(set: &'static TileSet, batch: usize, rows: usize, inner: usize, cols: usize) -> Result<Tiling> {
        if [batch, rows, inner, cols].contains(&0) || inner > MOST_INNER {
            return Err(Error::new(format!("expected matrices with 1 to {MOST_INNER} inner rows and columns")));
        }
        let log = set.n.trailing_zeros();
        let most = (LEVELS as u32).min(inner.next_power_of_two().trailing_zeros().max(1));
        let of = |k: u32, m: u32| Tiling { batch, rows, inner, cols, set, tile: [1 << m, 1 << k, 1 << (log - k - m)] };
        let tilings = (1..=most).flat_map(|k| (0..=log - k).map(move |m| (k, m)));
        let small = tilings.map(|(k, m)| of(k, m)).filter(|t| noise::max_error(t, set.ring) < 1 << ERROR_BITS);
        let cost = |t: &Tiling| {
            let sums = t.products().saturating_mul(t.counts()[1]);
            let messages = t.ciphertexts().saturating_add(t.answers());
            sums.saturating_add(t.products().saturating_mul(25)).saturating_add(messages.saturating_mul(240))
        };
        small.min_by_key(cost).ok_or_else(|| Error::new("no tiling of these sizes is exact enough"))
    }

    /// The parameter set.
    pub fn set(&self) -> &'static TileSet {
        self.set
    }

    /// Rows, inner sizes and columns of tiles of one product.
    fn counts(&self) -> [usize; 3] {
        [self.rows.div_ceil(self.tile[0]), self.inner.div_ceil(self.tile[1]), self.cols.div_ceil(self.tile[2])]
    }

    /// Matrices of a left tile, where one or more lie in a tile.
    fn together(&self) -> usize {
        (self.tile[0] / self.rows).max(1)
    }

    /// Left tiles for every tile of the inner size.
    fn lefts(&self) -> usize {
        self.batch.div_ceil(self.together()).saturating_mul(self.counts()[0])
    }

    /// The rows of all left matrices that lie in a left tile.
    fn left_rows(&self, tile: usize) -> std::ops::Range<usize> {
        let (of_matrix, together) = (self.counts()[0], self.together());
        let first = tile / of_matrix * together * self.rows;
        let last = self.batch.min((tile / of_matrix + 1) * together) * self.rows;
        let from = first + tile % of_matrix * self.tile[0];
        from..last.min(from + self.tile[0])
    }

    /// Ciphertexts that the client sends.
    pub fn ciphertexts(&self) -> usize {
        self.lefts().saturating_mul(self.counts()[1])
    }

    /// The ciphertext that a product of tiles takes for a tile of the inner size.
    fn left_of(&self, place: Place, inner: usize) -> usize {
        let [of_matrix, inners, _] = self.counts();
        (place.batch / self.together() * of_matrix + place.row) * inners + inner
    }

    /// Products of tiles that are merged, each a sum over the inner size.
    pub fn products(&self) -> usize {
        let [rows, _, cols] = self.counts();
        self.batch.saturating_mul(rows).saturating_mul(cols)
    }

    /// Ciphertexts that the server sends.
    pub fn answers(&self) -> usize {
        self.products().div_ceil(self.tile[1])
    }

    /// Bytes of the client's message.
    pub fn message_bytes(&self) -> usize {
        self.ciphertexts().saturating_mul(self.set.ciphertext_bytes())
    }

    /// Bytes of the server's answer for products mod 2^bits: the A of all its ciphertexts, and then the results' B.
    pub fn answer_bytes(&self, bits: u32) -> usize {
        let results = self.batch.saturating_mul(self.rows).saturating_mul(self.cols);
        let b = results.saturating_mul((bits + BELOW_B) as usize).div_ceil(8);
        self.answers().saturating_mul(self.a_bytes(bits)).saturating_add(b)
    }

    /// Bytes of one answer's A.
    fn a_bytes(&self, bits: u32) -> usize {
        packed_bytes(self.set.n, bits + BELOW_A)
    }

    /// The products that one answer holds, in order.
    fn group(&self, group: usize) -> impl ExactSizeIterator<Item = Place> + use<> {
        let [rows, _, cols] = self.counts();
        let k = self.tile[1];
        (group * k..self.products().min((group + 1) * k)).map(move |i| Place {
            batch: i / (rows * cols),
            row: i / cols % rows,
            col: i % cols,
        })
    }

    /// How many products are merged as in this answer, rounded up to a power of two.
    fn merged(&self, group: usize) -> usize {
        self.group(group).len().next_power_of_two()
    }

    /// Rows and columns of results that a product of tiles holds.
    fn sizes(&self, place: Place) -> [usize; 2] {
        let [m, _, n] = self.tile;
        [m.min(self.rows - place.row * m), n.min(self.cols - place.col * n)]
    }

    /// For every result of product number `at` of an answer that merges `merged`: its coefficient, and its element of the
    /// batch's results.
    fn positions(&self, place: Place, at: usize, merged: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [m, k, n] = self.tile;
        let [rows, cols] = self.sizes(place);
        let (all_rows, all_cols) = (self.rows, self.cols);
        let first = place.batch % self.together() * all_rows;
        (0..rows * cols).map(move |i| {
            let (r, c) = (i / cols, i % cols);
            let element = (place.batch * all_rows + place.row * m + r) * all_cols + place.col * n + c;
            (((first + r) * n + c) * k + at * (k / merged), element)
        })
    }

    /// Coefficients of a left tile of a batch of matrices, row by row.
    fn left(&self, tile: usize, inner: usize, matrices: &[u64]) -> Vec<u64> {
        let [_, k, n] = self.tile;
        let mut out = vec![0; self.set.n];
        for (i, row) in self.left_rows(tile).enumerate() {
            for j in 0..k.min(self.inner - inner * k) {
                out[i * k * n + k - 1 - j] = matrices[row * self.inner + inner * k + j];
            }
        }
        out
    }

    /// Coefficients of a right tile, mod 2^bits, turned back by k - 1.
    fn right(&self, batch: usize, inner: usize, col: usize, matrices: &[u64], bits: u32) -> Vec<u64> {
        let [_, k, n] = self.tile;
        let mut out = vec![0; self.set.n];
        for c in 0..n.min(self.cols - col * n) {
            for j in 0..k.min(self.inner - inner * k) {
                let x = matrices[(batch * self.inner + inner * k + j) * self.cols + col * n + c];
                match (c * k + j).checked_sub(k - 1) {
                    Some(at) => out[at] = x,
                    None => out[self.set.n + c * k + j - (k - 1)] = x.wrapping_neg() & (u64::MAX >> (64 - bits)),
                }
            }
        }
        out
    }

    fn check(&self, what: &str, found: usize, rows: usize, cols: usize) -> Result<()> {
        check_length(what, found, self.batch * rows * cols)
    }
}

/// Residues of a polynomial, prime by prime.
fn write_residues<const K: usize>(set: &TileSet, poly: &Poly<K>, out: &mut [u8]) {
    let each = out.len() / K;
    poly.iter().zip(out.chunks_exact_mut(each)).for_each(|(residues, out)| pack(residues, set.residue_bits(), out));
}

/// The same read again. Refuses what is no residue.
fn read_residues<const K: usize>(tiles: &Tiles<K>, bytes: &[u8]) -> Result<Poly<K>> {
    let mut poly = tiles.ring.zero();
    for (k, (residues, bytes)) in poly.iter_mut().zip(bytes.chunks_exact(bytes.len() / K)).enumerate() {
        unpack(bytes, tiles.set.residue_bits(), residues);
        let p = tiles.ring.prime(k);
        if residues.iter().fold(false, |above, x| above | (*x >= p)) {
            return Err(Error::new("a ciphertext holds a number above its modulus"));
        }
    }
    Ok(poly)
}

/// Refuses elements that are not below 2^bits.
fn check_elements(bits: u32, elements: &[u64]) -> Result<()> {
    if elements.iter().fold(0, |all, x| all | x) & !(u64::MAX >> (64 - bits)) != 0 {
        return Err(Error::new(format!("expected elements below 2^{bits}")));
    }
    Ok(())
}

/// Where the randomness of one call comes from.
pub struct Labels<'a> {
    /// The seed of public polynomials, known to both parties.
    pub public_seed: &'a [u8; 16],
    /// Number of the call's first ciphertext under the public seed. No number is used for two messages.
    pub first_index: u32,
    /// What the call draws in secret.
    pub seed: Seed,
}

/// Purposes of the public seed's streams: the encryption of zero is 0, switching keys follow, and from here on
/// ciphertexts.
const CIPHERTEXTS: u64 = 1 << 32;
