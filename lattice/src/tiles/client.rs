//! The client's half: keys, encryption of left tiles, decryption.

use rayon::prelude::*;

use super::merge::{automorphism, turns};
use super::{BELOW_A, BELOW_B, CIPHERTEXTS, DIGIT, DIGITS, Labels, Tiles, Tiling, write_residues};
use crate::arith::pow_mod;
use crate::bits::{Unpacker, packed_bytes};
use crate::error::{Error, Result, check_length};
use crate::exact::{Ternary, draw_ternary};
use crate::random::{Secret, Seed, Stream, Use};
use crate::rns::Poly;

/// The client's secret for products in tiles. It has no `Debug`.
pub struct TileKey {
    small: Secret,
    pub(super) secret: Poly<2>,
    ternary: Ternary,
}

impl TileKey {
    /// The key of `seed`.
    pub fn new(tiles: &Tiles, seed: Seed) -> TileKey {
        let small = draw_ternary(&mut seed.stream(Use::TileKey, 0), tiles.set.n);
        let mut secret = tiles.ring.small(&small);
        tiles.ring.prepare(&mut secret);
        let ternary = tiles.exact.ternary(&small);
        TileKey { small, secret, ternary }
    }
}

/// The public key as it is sent: an encryption of zero, and for every level of merging the digits of the turned secret.
/// `public_seed` is known to both parties.
pub fn tile_public_key(tiles: &Tiles, key: &TileKey, public_seed: &[u8; 16], seed: Seed) -> Vec<u8> {
    let (ring, n) = (&tiles.ring, tiles.set.n);
    let mut out = vec![0; tiles.public_key_bytes()];
    for (i, out) in out.chunks_exact_mut(tiles.ciphertext_bytes()).enumerate() {
        let mut b = ring.zero();
        if let Some(i) = i.checked_sub(1) {
            let (level, digit) = (i / DIGITS, i % DIGITS);
            let (prime, high) = (digit / 2, digit % 2);
            // The factor is 1 mod this prime and 0 mod the other.
            let p = ring.prime(prime);
            let factor = pow_mod(2, u64::from(DIGIT) * high as u64, p);
            let (from, negative) = turns(n, level);
            let mut turned = Secret::zeros(n);
            // -1, 0 and 1 as p - 1, 0 and 1.
            let small = Secret(residues(&key.small, p));
            automorphism(&small, &from, &negative, p, &mut turned);
            // 1 is odd, -1 is p - 1 and even with its highest bit set: no branch and no division.
            let top = u64::BITS - 1 - p.leading_zeros();
            b[prime].iter_mut().zip(turned.iter()).for_each(|(b, s)| {
                *b = factor & (s & 1).wrapping_neg() | (p - factor) & (s >> top & 1).wrapping_neg();
            });
        }
        let a = ring.uniform(&mut Stream::new(public_seed, i as u64));
        ring.encrypt(&mut b, &a, &key.secret, &mut seed.stream(Use::TilePublicKey, i as u64));
        write_residues(&b, out);
    }
    out
}

/// Small numbers mod `p`.
fn residues(small: &[u64], p: u64) -> Vec<u64> {
    small.iter().map(|x| x.wrapping_add(p & (x.cast_signed() >> 63).cast_unsigned())).collect()
}

/// Encrypts the left matrices of a batch, elements mod 2^bits row by row. It takes [`Tiling::ciphertexts`] numbers of the
/// labels. Errors when `bits`, sizes or elements are wrong.
pub fn encrypt_left(
    tiles: &Tiles,
    key: &TileKey,
    tiling: &Tiling,
    bits: u32,
    left: &[u64],
    labels: Labels,
) -> Result<Vec<u8>> {
    tiles.check_ring(bits)?;
    tiling.check("elements of left matrices", left.len(), tiling.rows, tiling.inner)?;
    let mask = u64::MAX >> (64 - bits);
    if left.iter().fold(0, |all, x| all | x) & !mask != 0 {
        return Err(Error::new(format!("expected elements below 2^{bits}")));
    }
    let encoding = tiles.ring.encoding(1 << bits);
    let [rows, inner, _] = tiling.counts();
    let mut out = vec![0; tiling.message_bytes()];
    out.par_chunks_exact_mut(tiles.ciphertext_bytes()).enumerate().for_each(|(i, out)| {
        let tile = Secret(tiling.left(i / (rows * inner), i / inner % rows, i % inner, left));
        let mut b = tiles.ring.encode(&encoding, &tile);
        let index = CIPHERTEXTS + u64::from(labels.first_index) + i as u64;
        let a = tiles.ring.uniform(&mut Stream::new(labels.public_seed, index));
        tiles.ring.encrypt(&mut b, &a, &key.secret, &mut labels.seed.stream(Use::Tile, i as u64));
        write_residues(&b, out);
    });
    Ok(out)
}

/// The client's shares of a batch's products, mod 2^bits, from the server's answer. Errors when `bits` is wrong or the
/// answer has another length.
pub fn decrypt_products(tiles: &Tiles, key: &TileKey, tiling: &Tiling, bits: u32, answer: &[u8]) -> Result<Vec<u64>> {
    tiles.check_ring(bits)?;
    check_length("bytes of an answer", answer.len(), tiling.answer_bytes(bits))?;
    let n = tiles.set.n;
    let mut out = vec![0; tiling.batch * tiling.rows * tiling.cols];
    let mut rest = answer;
    let mut product = vec![0; n];
    for group in 0..tiling.answers() {
        let (own, next) = rest.split_at(tiling.group_bytes(group, bits));
        rest = next;
        let (a, b) = own.split_at(packed_bytes(n, bits + BELOW_A));
        let a = tiles.exact.transform_packed(a, bits + BELOW_A, n);
        tiles.exact.product(&a, &key.ternary, &mut product);
        let mut unpacker = Unpacker::new(b);
        let merged = tiling.merged(group);
        for (at, place) in tiling.group(group).enumerate() {
            for (coefficient, element) in tiling.positions(place, at, merged) {
                let b = unpacker.pull(bits + BELOW_B) << (BELOW_A - BELOW_B);
                let noisy = b.wrapping_add(product[coefficient]).wrapping_add(1 << (BELOW_A - 1));
                out[element] = (noisy >> BELOW_A) as u64 & (u64::MAX >> (64 - bits));
            }
        }
    }
    crate::random::wipe_wide(&mut product);
    Ok(out)
}
