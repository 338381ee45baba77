//! The server's half: products with its tiles, merged and randomised.

use std::array::from_fn;

use rayon::prelude::*;

use super::merge::{Ciphertext, Room, SwitchKey, merge, turns};
use super::{
    BELOW_A, BELOW_B, CIPHERTEXTS, LEVELS, Labels, Place, Tiles, Tiling, check_elements, public_key_bytes,
    read_residues,
};
use crate::arith::inverse_mod;
use crate::bits::{Packer, packed_bytes};
use crate::error::{Result, check_length};
use crate::params::TileSet;
use crate::random::{Secret, Seed, Stream, Use, wipe_wide};
use crate::rns::{Modulus, add};

/// The client's public key for one set as the server uses it.
pub trait TileServer {
    /// The server's product of the client's encrypted left matrices with its own right ones, elements mod 2^bits row by row.
    ///
    /// Returns the answer for the client, of [`Tiling::answer_bytes`] bytes, and the server's shares, row by row. Public
    /// seed and number are those of the encryption.
    ///
    /// # Errors
    /// `bits`, sizes or elements are wrong, or a ciphertext holds a number above its modulus.
    fn multiply_right(
        &self,
        tiling: &Tiling,
        bits: u32,
        message: &[u8],
        right: &[u64],
        labels: Labels,
    ) -> Result<(Vec<u8>, Vec<u64>)>;
}

/// The server's half with the public key that the client wrote under the same public seed.
///
/// # Errors
/// The key has another length or holds a number above its modulus.
pub fn tile_server(
    set: &'static TileSet,
    public_seed: &[u8; 16],
    public_key: &[u8],
) -> Result<Box<dyn TileServer + Send>> {
    Ok(match set.primes.len() {
        2 => Box::new(Server::<2>::new(set, public_seed, public_key)?),
        _ => Box::new(Server::<3>::new(set, public_seed, public_key)?),
    })
}

pub(super) struct Server<const K: usize> {
    tiles: Tiles<K>,
    zero: Ciphertext<K>,
    switches: Vec<SwitchKey<K>>,
}

impl<const K: usize> Server<K> {
    pub(super) fn new(set: &'static TileSet, public_seed: &[u8; 16], bytes: &[u8]) -> Result<Server<K>> {
        let tiles = Tiles::new(set)?;
        check_length("bytes of a public key", bytes.len(), public_key_bytes(set))?;
        let read = |(i, bytes)| {
            let a = tiles.ring.uniform(&mut Stream::new(public_seed, i as u64));
            let mut pair = [read_residues(&tiles, bytes)?, a];
            pair.iter_mut().for_each(|part| tiles.ring.prepare(part));
            Ok(pair)
        };
        let pairs = bytes.par_chunks_exact(set.ciphertext_bytes()).enumerate().map(read).collect::<Result<Vec<_>>>()?;
        let mut pairs = pairs.into_iter();
        let mut next = || pairs.next().unwrap_or_else(|| [tiles.ring.zero(), tiles.ring.zero()]);
        let zero = next();
        let switches = (0..LEVELS).map(|level| {
            let (from, negative) = turns(set.n, level);
            // Both digits of a prime follow one another.
            let [low, high]: [Vec<_>; 2] = (0..K).map(|_| (next(), next())).unzip().into();
            let digits = |parts: Vec<Ciphertext<K>>| {
                let mut parts = parts.into_iter();
                from_fn(|_| parts.next().unwrap_or_else(|| [tiles.ring.zero(), tiles.ring.zero()]))
            };
            SwitchKey { parts: [digits(low), digits(high)], from, negative }
        });
        let switches = switches.collect();
        Ok(Server { tiles, zero, switches })
    }

    /// The ciphertexts of a message.
    pub(super) fn read(&self, public_seed: &[u8; 16], first_index: u32, message: &[u8]) -> Result<Vec<Ciphertext<K>>> {
        let read = |(i, bytes)| {
            let index = CIPHERTEXTS + u64::from(first_index) + i as u64;
            Ok([read_residues(&self.tiles, bytes)?, self.tiles.ring.uniform(&mut Stream::new(public_seed, index))])
        };
        message.par_chunks_exact(self.tiles.set.ciphertext_bytes()).enumerate().map(read).collect()
    }

    /// The products of one answer, merged: coefficients below their primes.
    pub(super) fn merged_products(
        &self,
        tiling: &Tiling,
        bits: u32,
        lefts: &[Ciphertext<K>],
        right: &[u64],
        group: usize,
    ) -> Ciphertext<K> {
        let ring = &self.tiles.ring;
        let merged = tiling.merged(group);
        let factor = from_fn(|k| inverse_mod(merged as u64, ring.prime(k)));
        let mut all: Vec<Ciphertext<K>> =
            tiling.group(group).map(|place| self.product(tiling, bits, lefts, right, place, factor)).collect();
        all.resize_with(merged, || [ring.zero(), ring.zero()]);
        let mut room = Room::new(ring);
        // The first merge is that of coefficients half a tile's inner size apart.
        let mut level = tiling.tile[1].trailing_zeros() as usize;
        while all.len() > 1 {
            level -= 1;
            let others = all.split_off(all.len() / 2);
            for (x, y) in all.iter_mut().zip(&others) {
                merge(&self.tiles, (level, &self.switches[level]), x, y, &mut room);
            }
        }
        all.pop().unwrap_or_else(|| [ring.zero(), ring.zero()])
    }

    /// One sum of products of tiles, times `factor`.
    fn product(
        &self,
        tiling: &Tiling,
        bits: u32,
        lefts: &[Ciphertext<K>],
        right: &[u64],
        place: Place,
        factor: [u64; K],
    ) -> Ciphertext<K> {
        let ring = &self.tiles.ring;
        let [_, inner, _] = tiling.counts();
        let mut out = [ring.zero(), ring.zero()];
        let mut term = Secret::zeros(ring.len());
        for i in 0..inner {
            let tile = Secret(tiling.right(place.batch, i, place.col, right, bits));
            let plain = ring.plain(Modulus::Bits(bits), &tile, factor);
            let left = &lefts[tiling.left_of(place, i)];
            for (out, left) in out.iter_mut().zip(left) {
                for (k, t) in ring.transforms().iter().enumerate() {
                    t.dot([&left[k]], [&plain[k]], &mut term);
                    add(t.isa(), t.prime(), term.as_chunks().0, out[k].as_chunks_mut().0);
                }
            }
        }
        out.iter_mut().for_each(|part| ring.inverse(part));
        out
    }

    /// Randomises a merged ciphertext and changes its moduli: A as it is sent, all of B, and the mask changed to 2^bits.
    pub(super) fn answer(
        &self,
        tiling: &Tiling,
        bits: u32,
        mut packed: Ciphertext<K>,
        group: usize,
        seed: &Seed,
    ) -> Answer {
        let Tiles { set, ring, .. } = &self.tiles;
        let mut stream = seed.stream(Use::TileAnswer, group as u64);
        let mut small = Secret::zeros(set.n);
        stream.ternary(&mut small);
        let u = ring.small(&small);
        let mut term = Secret::zeros(set.n);
        for (packed, zero) in packed.iter_mut().zip(&self.zero) {
            for (k, t) in ring.transforms().iter().enumerate() {
                t.dot([&u[k]], [&zero[k]], &mut term);
                t.inverse(&mut term);
                add(t.isa(), t.prime(), term.as_chunks().0, packed[k].as_chunks_mut().0);
            }
        }
        stream.errors(&mut small);
        ring.add_small(&mut packed[1], &small);
        let mask = ring.uniform(&mut stream);
        for (k, mask) in mask.iter().enumerate() {
            add(ring.isa(), ring.prime(k), mask.as_chunks().0, packed[0][k].as_chunks_mut().0);
        }
        let mut a = vec![0; tiling.a_bytes(bits)];
        let mut packer = Packer::new(&mut a);
        ring.rescale_bits(&packed[1], bits + BELOW_A).into_iter().for_each(|word| packer.push(word, bits + BELOW_A));
        packer.finish();
        let b = ring.rescale_bits(&packed[0], bits + BELOW_B);
        let mut mask = ring.rescale_bits(&mask, bits);
        let share = Secret(mask.iter().map(|word| *word as u64).collect());
        wipe_wide(&mut mask);
        Answer { a, b, mask: share }
    }
}

/// One randomised ciphertext.
pub(super) struct Answer {
    /// A, packed.
    pub(super) a: Vec<u8>,
    b: Vec<u128>,
    mask: Secret,
}

impl<const K: usize> TileServer for Server<K> {
    fn multiply_right(
        &self,
        tiling: &Tiling,
        bits: u32,
        message: &[u8],
        right: &[u64],
        labels: Labels,
    ) -> Result<(Vec<u8>, Vec<u64>)> {
        self.tiles.check(tiling, bits)?;
        tiling.check("elements of right matrices", right.len(), tiling.inner, tiling.cols)?;
        check_length("bytes of encrypted tiles", message.len(), tiling.message_bytes())?;
        check_elements(bits, right)?;
        let lefts = self.read(labels.public_seed, labels.first_index, message)?;
        let answer = |group| {
            let packed = self.merged_products(tiling, bits, &lefts, right, group);
            self.answer(tiling, bits, packed, group, &labels.seed)
        };
        let answers: Vec<Answer> = (0..tiling.answers()).into_par_iter().map(answer).collect();
        let results = tiling.batch * tiling.rows * tiling.cols;
        let (mut shares, mut all_b) = (vec![0; results], vec![0; results]);
        let mut bytes = Vec::new();
        for (group, Answer { a, b, mask }) in answers.iter().enumerate() {
            bytes.extend(a);
            let merged = tiling.merged(group);
            for (at, place) in tiling.group(group).enumerate() {
                for (coefficient, element) in tiling.positions(place, at, merged) {
                    shares[element] = mask[coefficient].wrapping_neg() & (u64::MAX >> (64 - bits));
                    all_b[element] = b[coefficient];
                }
            }
        }
        let from = bytes.len();
        bytes.resize(from + packed_bytes(results, bits + BELOW_B), 0);
        let mut packer = Packer::new(&mut bytes[from..]);
        all_b.into_iter().for_each(|word| packer.push(word, bits + BELOW_B));
        packer.finish();
        Ok((bytes, shares))
    }
}
