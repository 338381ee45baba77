//! The server's half: products with its tiles, merged and randomised.

use std::array::from_fn;

use rayon::prelude::*;

use super::merge::{Ciphertext, Room, SwitchKey, merge, turns};
use super::{BELOW_A, BELOW_B, CIPHERTEXTS, LEVELS, Labels, Place, Tiles, Tiling, read_residues};
use crate::arith::inverse_mod;
use crate::bits::{pack, packed_bytes};
use crate::error::{Error, Result, check_length};
use crate::random::{Secret, Seed, Stream, Use};
use crate::rns::{Poly, add};

/// The client's public key as the server uses it.
pub struct TilePublicKey {
    zero: [Poly<2>; 2],
    switches: Vec<SwitchKey>,
}

/// The public key that [`super::tile_public_key`] wrote under the same public seed. Errors when it has another length or
/// holds a number above its modulus.
pub fn read_tile_public_key(tiles: &Tiles, public_seed: &[u8; 16], bytes: &[u8]) -> Result<TilePublicKey> {
    check_length("bytes of a public key", bytes.len(), tiles.public_key_bytes())?;
    let mut pairs = Vec::new();
    for (i, bytes) in bytes.chunks_exact(tiles.ciphertext_bytes()).enumerate() {
        let a = tiles.ring.uniform(&mut Stream::new(public_seed, i as u64));
        let mut pair = [read_residues(&tiles.ring, bytes)?, a];
        pair.iter_mut().for_each(|part| tiles.ring.prepare(part));
        pairs.push(pair);
    }
    let mut pairs = pairs.into_iter();
    let mut next = || pairs.next().unwrap_or_else(|| [tiles.ring.zero(), tiles.ring.zero()]);
    let zero = next();
    let switches = (0..LEVELS).map(|level| {
        let (from, negative) = turns(tiles.set.n, level);
        SwitchKey { parts: from_fn(|_| next()), from, negative }
    });
    Ok(TilePublicKey { zero, switches: switches.collect() })
}

/// The server's product of the client's encrypted left matrices with its own right ones, elements mod 2^bits row by row.
///
/// Returns the answer for the client, of [`Tiling::answer_bytes`] bytes, and the server's shares, row by row. Public seed
/// and number are those of the encryption. Errors when `bits`, sizes or elements are wrong, or a ciphertext holds a number
/// above its modulus.
pub fn multiply_right(
    tiles: &Tiles,
    key: &TilePublicKey,
    tiling: &Tiling,
    bits: u32,
    message: &[u8],
    right: &[u64],
    labels: Labels,
) -> Result<(Vec<u8>, Vec<u64>)> {
    tiles.check_ring(bits)?;
    tiling.check("elements of right matrices", right.len(), tiling.inner, tiling.cols)?;
    check_length("bytes of encrypted tiles", message.len(), tiling.message_bytes())?;
    let mask = u64::MAX >> (64 - bits);
    if right.iter().fold(0, |all, x| all | x) & !mask != 0 {
        return Err(Error::new(format!("expected elements below 2^{bits}")));
    }
    let lefts: Result<Vec<Ciphertext>> = message
        .par_chunks_exact(tiles.ciphertext_bytes())
        .enumerate()
        .map(|(i, bytes)| {
            let index = CIPHERTEXTS + u64::from(labels.first_index) + i as u64;
            Ok([read_residues(&tiles.ring, bytes)?, tiles.ring.uniform(&mut Stream::new(labels.public_seed, index))])
        })
        .collect();
    let lefts = lefts?;
    let answers: Vec<(Vec<u8>, Vec<u64>)> = (0..tiling.answers())
        .into_par_iter()
        .map(|group| {
            let packed = merged_products(tiles, key, tiling, bits, &lefts, right, group);
            answer(tiles, key, tiling, bits, packed, group, &labels.seed)
        })
        .collect();
    let mut out = vec![0; tiling.batch * tiling.rows * tiling.cols];
    let mut bytes = Vec::with_capacity(tiling.answer_bytes(bits));
    for (group, (answer, shares)) in answers.iter().enumerate() {
        bytes.extend(answer);
        let merged = tiling.merged(group);
        for (at, place) in tiling.group(group).enumerate() {
            for (coefficient, element) in tiling.positions(place, at, merged) {
                out[element] = shares[coefficient].wrapping_neg() & mask;
            }
        }
    }
    Ok((bytes, out))
}

/// The products of one answer, merged: coefficients below their primes.
pub(super) fn merged_products(
    tiles: &Tiles,
    key: &TilePublicKey,
    tiling: &Tiling,
    bits: u32,
    lefts: &[Ciphertext],
    right: &[u64],
    group: usize,
) -> Ciphertext {
    let ring = &tiles.ring;
    let merged = tiling.merged(group);
    let factor = from_fn(|k| inverse_mod(merged as u64, ring.prime(k)));
    let mut all: Vec<Ciphertext> =
        tiling.group(group).map(|place| product(tiles, tiling, bits, lefts, right, place, factor)).collect();
    all.resize_with(merged, || [ring.zero(), ring.zero()]);
    let mut room = Room::new(ring);
    // The first merge is that of coefficients half a tile's inner size apart.
    let mut level = tiling.tile[1].trailing_zeros() as usize;
    while all.len() > 1 {
        level -= 1;
        let others = all.split_off(all.len() / 2);
        for (x, y) in all.iter_mut().zip(&others) {
            merge(ring, &key.switches[level], level, x, y, &mut room);
        }
    }
    all.pop().unwrap_or_else(|| [ring.zero(), ring.zero()])
}

/// One sum of products of tiles, times `factor`.
fn product(
    tiles: &Tiles,
    tiling: &Tiling,
    bits: u32,
    lefts: &[Ciphertext],
    right: &[u64],
    place: Place,
    factor: [u64; 2],
) -> Ciphertext {
    let ring = &tiles.ring;
    let [rows, inner, _] = tiling.counts();
    let mut out = [ring.zero(), ring.zero()];
    let mut term = Secret::zeros(ring.len());
    for i in 0..inner {
        let tile = Secret(tiling.right(place.batch, i, place.col, right, bits));
        let plain = ring.plain(1 << bits, &tile, factor);
        let left = &lefts[(place.batch * rows + place.row) * inner + i];
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

/// Randomises a merged ciphertext and changes its moduli: the answer, and the mask changed to 2^bits.
pub(super) fn answer(
    tiles: &Tiles,
    key: &TilePublicKey,
    tiling: &Tiling,
    bits: u32,
    mut packed: Ciphertext,
    group: usize,
    seed: &Seed,
) -> (Vec<u8>, Vec<u64>) {
    let (ring, n) = (&tiles.ring, tiles.set.n);
    let mut stream = seed.stream(Use::TileAnswer, group as u64);
    let mut small = Secret::zeros(n);
    stream.ternary(&mut small);
    let u = ring.small(&small);
    let mut term = Secret::zeros(n);
    for (packed, zero) in packed.iter_mut().zip(&key.zero) {
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
    let mut message = vec![0; tiling.group_bytes(group, bits)];
    let (to_a, to_b) = message.split_at_mut(packed_bytes(n, bits + BELOW_A));
    pack(&ring.rescale(&packed[1], 1 << (bits + BELOW_A)), bits + BELOW_A, to_a);
    let b = ring.rescale(&packed[0], 1 << (bits + BELOW_B));
    let merged = tiling.merged(group);
    let places = tiling.group(group).enumerate();
    let coefficients = places.flat_map(|(at, place)| tiling.positions(place, at, merged));
    let results: Vec<u64> = coefficients.map(|(coefficient, _)| b[coefficient]).collect();
    pack(&results, bits + BELOW_B, to_b);
    (message, ring.rescale(&mask, 1 << bits))
}
