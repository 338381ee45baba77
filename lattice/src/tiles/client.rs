//! The client's half: keys, encryption of left tiles, decryption.

use rayon::prelude::*;

use super::merge::{automorphism, turns};
use super::{
    BELOW_A, BELOW_B, CIPHERTEXTS, DIGITS, Labels, Tiles, Tiling, check_elements, public_key_bytes, write_residues,
};
use crate::arith::pow_mod;
use crate::bits::Unpacker;
use crate::error::{Result, check_length};
use crate::exact::{Ternary, draw_ternary};
use crate::params::TileSet;
use crate::random::{Secret, Seed, Stream, Use};
use crate::rns::{Modulus, Poly};

/// The client's secret for products in tiles of one set. It has no `Debug`.
pub trait TileClient {
    /// The public key as it is sent, of [`public_key_bytes`] bytes: an encryption of zero, and for every level of merging
    /// the digits of the turned secret. `public_seed` is known to both parties.
    fn public_key(&self, public_seed: &[u8; 16], seed: Seed) -> Vec<u8>;

    /// Encrypts the left matrices of a batch, elements mod 2^bits row by row. It takes [`Tiling::ciphertexts`] numbers of
    /// the labels.
    ///
    /// # Errors
    /// `bits`, sizes or elements are wrong.
    fn encrypt_left(&self, tiling: &Tiling, bits: u32, left: &[u64], labels: Labels) -> Result<Vec<u8>>;

    /// The client's shares of a batch's products, mod 2^bits, from the server's answer.
    ///
    /// # Errors
    /// `bits` is wrong, or the answer has another length.
    fn decrypt_products(&self, tiling: &Tiling, bits: u32, answer: &[u8]) -> Result<Vec<u64>>;
}

/// The client's half with the key of `seed`.
///
/// # Errors
/// No set has so many primes.
pub fn tile_client(set: &'static TileSet, seed: Seed) -> Result<Box<dyn TileClient + Send>> {
    Ok(match set.primes.len() {
        2 => Box::new(Client::<2>::new(set, seed)?),
        _ => Box::new(Client::<3>::new(set, seed)?),
    })
}

pub(super) struct Client<const K: usize> {
    pub(super) tiles: Tiles<K>,
    small: Secret,
    pub(super) secret: Poly<K>,
    ternary: Ternary,
}

impl<const K: usize> Client<K> {
    pub(super) fn new(set: &'static TileSet, seed: Seed) -> Result<Client<K>> {
        let tiles = Tiles::new(set)?;
        let small = draw_ternary(&mut seed.stream(Use::TileKey, 0), set.n);
        let mut secret = tiles.ring.small(&small);
        tiles.ring.prepare(&mut secret);
        let ternary = tiles.exact.ternary(&small);
        Ok(Client { tiles, small, secret, ternary })
    }
}

impl<const K: usize> TileClient for Client<K> {
    fn public_key(&self, public_seed: &[u8; 16], seed: Seed) -> Vec<u8> {
        let Tiles { set, ring, .. } = &self.tiles;
        let mut out = vec![0; public_key_bytes(set)];
        out.par_chunks_exact_mut(set.ciphertext_bytes()).enumerate().for_each(|(i, out)| {
            let mut b = ring.zero();
            if let Some(i) = i.checked_sub(1) {
                let (level, prime, part) = (i / (DIGITS * K), i / DIGITS % K, i % DIGITS);
                // The factor is 1 mod this prime and 0 mod the other ones.
                let p = ring.prime(prime);
                let factor = pow_mod(2, u64::from(self.tiles.digit()) * part as u64, p);
                let (from, negative) = turns(set.n, level);
                let mut turned = Secret::zeros(set.n);
                // -1, 0 and 1 as p - 1, 0 and 1.
                let small = Secret(residues(&self.small, p));
                automorphism(&small, &from, &negative, p, &mut turned);
                // 1 is odd, -1 is p - 1 and even with its highest bit set: no branch and no division. A turned 0 may be p, which
                // has both: the two terms have no bit in common then, and their sum is p again.
                let top = u64::BITS - 1 - p.leading_zeros();
                b[prime].iter_mut().zip(turned.iter()).for_each(|(b, s)| {
                    *b = factor & (s & 1).wrapping_neg() | (p - factor) & (s >> top & 1).wrapping_neg();
                });
            }
            let a = ring.uniform(&mut Stream::new(public_seed, i as u64));
            ring.encrypt(&mut b, &a, &self.secret, &mut seed.stream(Use::TilePublicKey, i as u64));
            write_residues(set, &b, out);
        });
        out
    }

    fn encrypt_left(&self, tiling: &Tiling, bits: u32, left: &[u64], labels: Labels) -> Result<Vec<u8>> {
        let Tiles { set, ring, .. } = &self.tiles;
        self.tiles.check(tiling, bits)?;
        tiling.check("elements of left matrices", left.len(), tiling.rows, tiling.inner)?;
        check_elements(bits, left)?;
        let encoding = ring.encoding(Modulus::Bits(bits));
        let [_, inner, _] = tiling.counts();
        let mut out = vec![0; tiling.ciphertexts() * set.ciphertext_bytes()];
        out.par_chunks_exact_mut(set.ciphertext_bytes()).enumerate().for_each(|(i, out)| {
            let tile = Secret(tiling.left(i / inner, i % inner, left));
            let mut b = ring.encode(&encoding, &tile);
            let index = CIPHERTEXTS + u64::from(labels.first_index) + i as u64;
            let a = ring.uniform(&mut Stream::new(labels.public_seed, index));
            ring.encrypt(&mut b, &a, &self.secret, &mut labels.seed.stream(Use::Tile, i as u64));
            write_residues(set, &b, out);
        });
        Ok(out)
    }

    fn decrypt_products(&self, tiling: &Tiling, bits: u32, answer: &[u8]) -> Result<Vec<u64>> {
        let Tiles { set, exact, .. } = &self.tiles;
        self.tiles.check(tiling, bits)?;
        check_length("bytes of an answer", answer.len(), tiling.answer_bytes(bits))?;
        let mut out = vec![0; tiling.batch * tiling.rows * tiling.cols];
        let (all_a, b) = answer.split_at(tiling.answers() * tiling.a_bytes(bits));
        let mut unpacker = Unpacker::new(b);
        out.iter_mut().for_each(|out| *out = unpacker.pull(bits + BELOW_B));
        let products = all_a.par_chunks_exact(tiling.a_bytes(bits)).map(|a| {
            let a = exact.transform_packed(a, bits + BELOW_A, set.n);
            let mut product = vec![0; set.n];
            exact.product(&a, &self.ternary, &mut product);
            product
        });
        let mut products: Vec<Vec<u128>> = products.collect();
        for (group, product) in products.iter().enumerate() {
            let merged = tiling.merged(group);
            for (at, place) in tiling.group(group).enumerate() {
                for (coefficient, element) in tiling.positions(place, at, merged) {
                    let b = out[element] << (BELOW_A - BELOW_B);
                    let noisy = b.wrapping_add(product[coefficient]).wrapping_add(1 << (BELOW_A - 1));
                    out[element] = noisy >> BELOW_A;
                }
            }
        }
        products.iter_mut().for_each(|product| crate::random::wipe_wide(product));
        let shares = out.iter().map(|word| *word as u64 & (u64::MAX >> (64 - bits))).collect();
        crate::random::wipe_wide(&mut out);
        Ok(shares)
    }
}

/// Small numbers mod `p`.
fn residues(small: &[u64], p: u64) -> Vec<u64> {
    small.iter().map(|x| x.wrapping_add(p & (x.cast_signed() >> 63).cast_unsigned())).collect()
}
