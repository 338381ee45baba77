//! The client's half: an integer product of its shares with encrypted weights, randomised.

use ombra_kernels::aes::Cipher;
use rayon::prelude::*;

use super::encrypt::widen;
use super::gemm::{Room, Shares, Source, multiply_panel};
use super::words::PANEL;
use super::{BELOW_A, BELOW_B, EncryptedMatrix, PublicKey, check_ring, message_bytes, stream_of};
use crate::bits::{Packer, packed_bytes};
use crate::error::{Error, Result, check_length};
use crate::exact::{Exact, Ternary, Transformed, draw_ternary};
use crate::lanes::Isa;
use crate::params::WeightSet;
use crate::random::{Secret, Seed, Use};

/// The public key with its transforms, as the client uses it for every product.
pub struct ClientKey {
    public: PublicKey,
    cipher: Cipher,
    exact: Exact,
    first: Transformed,
    parts: Vec<Transformed>,
}

impl ClientKey {
    /// Transforms the key.
    pub fn new(public: PublicKey) -> ClientKey {
        let set = public.set;
        let exact = Exact::new(set.n, set.log_key);
        let first = exact.transform(&public.first_part(), set.log_key);
        let parts = public.parts.iter().map(|part| exact.transform(part, set.log_key)).collect();
        ClientKey { cipher: public.cipher(), exact, first, parts, public }
    }

    /// The key as it came.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    fn set(&self) -> &'static WeightSet {
        self.public.set
    }
}

/// Sums of the columns of `a` and `b` over all weight rows, which take the shares' offset off a product. Public; found
/// once for a matrix.
pub struct Sums {
    a: Vec<u128>,
    b: Vec<u128>,
}

#[cfg(test)]
impl Sums {
    /// The sum of column `c` of `a`.
    pub(super) fn a_of(&self, c: usize) -> u128 {
        self.a[c]
    }
}

impl EncryptedMatrix<'_> {
    /// The sums of the matrix's columns. It reads all of it.
    pub fn sums(&self, key: &ClientKey) -> Sums {
        let ones = vec![1; self.shape.rows];
        let ones = Shares::new(&ones, 1, self.shape.rows, 0, key.set().word_bytes());
        let of = |source: &Source, cols: usize| panels(key, &ones, source, 1, cols);
        let stream = Source::Stream(&key.cipher, stream_of(self.shape.index));
        Sums { a: of(&stream, key.set().n), b: of(&Source::Memory(self.bytes), self.shape.cols) }
    }
}

/// The products of all panels of at least `cols` columns: for a panel, its sixteen words of every row.
fn panels(key: &ClientKey, x: &Shares, source: &Source, rows: usize, cols: usize) -> Vec<u128> {
    let mut out = vec![0; cols.div_ceil(PANEL) * PANEL * rows];
    let isa = Isa::best();
    out.par_chunks_mut(PANEL * rows).enumerate().for_each_init(Room::new, |room, (panel, out)| {
        multiply_panel(isa, x, key.set().word_bytes(), source, panel, room, out);
    });
    out
}

/// The client's product of rows of shares with encrypted weights.
///
/// `x` holds rows of `matrix.shape().rows` shares mod 2^bits. `message` becomes what the server gets, of
/// [`message_bytes`] bytes; the shares of the product, rows × columns mod 2^bits, come back. Errors when `bits` is not of the key's ring, `x` has no whole rows, or the matrix has more blocks than the key.
pub fn client_product(
    key: &ClientKey,
    matrix: &EncryptedMatrix,
    sums: &Sums,
    bits: u32,
    x: &[u64],
    seed: Seed,
    message: &mut Vec<u8>,
) -> Result<Vec<u64>> {
    let set = key.set();
    check_ring(set, bits)?;
    let shape = matrix.shape;
    let rows = x.len() / shape.rows;
    check_length("shares", x.len(), rows * shape.rows)?;
    message.clear();
    if rows == 0 {
        return Ok(Vec::new());
    }
    let blocks = shape.blocks(set);
    if blocks > key.parts.len() {
        return Err(Error::new(format!("the key has {} blocks, the matrix {blocks}", key.parts.len())));
    }
    let shares = Shares::new(x, rows, shape.rows, bits, set.word_bytes());
    let mut a = panels(key, &shares, &Source::Stream(&key.cipher, stream_of(shape.index)), rows, set.n);
    let mut b = panels(key, &shares, &Source::Memory(matrix.bytes), rows, shape.cols);

    // The modulus of this product, and where a unit and the sent bits begin.
    let modulus = set.log_q - set.ring + bits;
    let mask = u128::MAX >> (128 - modulus);
    let unit = set.log_q - set.ring;
    let key_shift = set.log_q - set.log_key;
    let row_bytes = message_bytes(set, bits, shape.cols, 1);
    let a_bytes = packed_bytes(set.n, bits + BELOW_A);
    message.resize(rows * row_bytes, 0);
    let mut out = vec![0; rows * shape.cols];
    let finish = |row: usize, message: &mut [u8], out: &mut [u64]| {
        let (message_a, message_b) = message.split_at_mut(a_bytes);
        let mut stream = seed.stream(Use::Product, row as u64);
        let u: Ternary = key.exact.ternary(&draw_ternary(&mut stream, set.n));
        let mut error = Secret::zeros(set.n);
        stream.errors(&mut error);
        let mut masks = Secret::zeros(2 * shape.cols);
        stream.words(&mut masks);
        let at = |c: usize| (c / PANEL * rows + row) * PANEL + c % PANEL;
        let mut product = vec![0; set.n];
        key.exact.product(&key.first, &u, &mut product);
        let mut packer = Packer::new(message_a);
        for (c, p) in product.iter().enumerate() {
            let word = a[at(c)].wrapping_sub(sums.a[c] << (bits - 1));
            let word = word.wrapping_add(p.wrapping_add(widen(error[c])) << key_shift);
            packer.push(round(word & mask, unit - BELOW_A, bits + BELOW_A), bits + BELOW_A);
        }
        packer.finish();
        let mut packer = Packer::new(message_b);
        for (j, part) in key.parts[..blocks].iter().enumerate() {
            key.exact.product(part, &u, &mut product);
            for c in j * set.n..shape.cols.min((j + 1) * set.n) {
                let r = (u128::from(masks[2 * c]) | u128::from(masks[2 * c + 1]) << 64) & mask;
                let word = b[at(c)].wrapping_sub(sums.b[c] << (bits - 1)).wrapping_add(r);
                let word = word.wrapping_add(product[c - j * set.n] << key_shift);
                packer.push(round(word & mask, unit - BELOW_B, bits + BELOW_B), bits + BELOW_B);
                out[c] = round(r, unit, bits).wrapping_neg() as u64 & u64::MAX >> (64 - bits);
            }
        }
        packer.finish();
        crate::random::wipe_wide(&mut product);
    };
    let rows = message.par_chunks_mut(row_bytes).zip(out.par_chunks_mut(shape.cols)).enumerate();
    rows.for_each(|(row, (message, out))| finish(row, message, out));
    // Without the mask they tell the shares.
    crate::random::wipe_wide(&mut a);
    crate::random::wipe_wide(&mut b);
    Ok(out)
}

/// `word / 2^by`, rounded to the nearest, mod 2^bits.
#[inline(always)]
fn round(word: u128, by: u32, bits: u32) -> u128 {
    (word.wrapping_add(1 << (by - 1)) >> by) & (u128::MAX >> (128 - bits))
}
