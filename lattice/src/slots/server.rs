//! The server's half: products of ciphertexts with its shares, randomised and flooded.

use std::array::from_fn;

use super::{ANSWER, BELOW, FLOOD, Slots, pick, read_residues};
use crate::arith::{pow_mod, ratio};
use crate::bits::{pack, packed_bytes};
use crate::error::{Error, Result};
use crate::lanes::each_lanes;
use crate::random::{Secret, Seed, Stream, Use};
use crate::rns::{Modulus, Poly};

/// The client's public key as the server uses it.
pub struct SlotPublicKey {
    pub(super) parts: [Poly<3>; 2],
}

/// An operand of the client.
pub struct SlotCiphertext {
    pub(super) width: usize,
    pub(super) parts: [Poly<3>; 2],
}

/// Most terms of a sum of products.
pub const MAX_TERMS: usize = 3;

/// The public key that [`super::slot_public_key`] wrote under the same public seed. Errors when it has another length or
/// holds a number above its modulus.
pub fn read_slot_public_key(slots: &Slots, public_seed: &[u8; 16], bytes: &[u8]) -> Result<SlotPublicKey> {
    let mut parts = [read_residues(&slots.ring, 1, bytes)?, slots.ring.uniform(&mut Stream::new(public_seed, 0))];
    parts.iter_mut().for_each(|part| slots.ring.prepare(part));
    Ok(SlotPublicKey { parts })
}

/// The operand that [`super::encrypt_slots`] wrote with the same width, public seed and index. Errors as above.
pub fn read_slot_ciphertext(
    slots: &Slots,
    width: usize,
    public_seed: &[u8; 16],
    index: u32,
    bytes: &[u8],
) -> Result<SlotCiphertext> {
    slots.transform(width)?;
    let step = slots.set.n / width;
    let mut b = read_residues(&slots.ring, step, bytes)?;
    if step > 1 {
        slots.ring.forward(&mut b);
    }
    let a = slots.ring.uniform(&mut Stream::new(public_seed, 1 + u64::from(index)));
    Ok(SlotCiphertext { width, parts: [b, a] })
}

/// The server's product: the sum of every operand times values of the server, slot by slot, minus a fresh mask. Returns
/// the answer for the client and the mask, which is the server's share; what the client decrypts is the other. Errors
/// when there are no terms or more than three, or widths or values are wrong.
pub fn multiply_slots(
    slots: &Slots,
    key: &SlotPublicKey,
    terms: &[(&SlotCiphertext, &[u64])],
    seed: Seed,
) -> Result<(Vec<u8>, Vec<u64>)> {
    let Some((first, _)) = terms.first().filter(|_| terms.len() <= MAX_TERMS) else {
        return Err(Error::new(format!("expected 1 to {MAX_TERMS} products, found {}", terms.len())));
    };
    let width = first.width;
    if terms.iter().any(|(ciphertext, _)| ciphertext.width != width) {
        return Err(Error::new("expected operands of one width"));
    }
    let ([c0, c1], mask) = masked_products(slots, key, terms, &seed)?;
    let modulus = slots.set.prime << BELOW;
    let mut message = vec![0; slots.answer_bytes(width)];
    let (to_c1, to_c0) = message.split_at_mut(packed_bytes(slots.set.n, ANSWER));
    for (poly, out, step) in [(&c1, to_c1, 1), (&c0, to_c0, slots.set.n / width)] {
        pack(&pick(&slots.ring.rescale(poly, modulus), step), ANSWER, out);
    }
    Ok((message, mask))
}

/// The products, flooded and with the mask taken off, below `2q`; and the mask's values.
pub(super) fn masked_products(
    slots: &Slots,
    key: &SlotPublicKey,
    terms: &[(&SlotCiphertext, &[u64])],
    seed: &Seed,
) -> Result<([Poly<3>; 2], Vec<u64>)> {
    let width = terms.first().map_or(slots.set.n, |(ciphertext, _)| ciphertext.width);
    let [mut c0, c1] = products(slots, key, terms, seed)?;
    flood(slots, &mut c0, seed);
    let mut mask = vec![0; width];
    seed.stream(Use::SlotAnswer, MASK).uniform(slots.set.prime, &mut mask);
    let spread = slots.spread(width, Secret(mask.clone()));
    let encoded = slots.ring.encode(&slots.encoding, &spread);
    for (k, (c0, encoded)) in c0.iter_mut().zip(&encoded).enumerate() {
        minus(slots.ring.isa(), slots.ring.prime(k), encoded.as_chunks().0, c0.as_chunks_mut().0);
    }
    slots.transform(width)?.forward(&mut mask);
    Ok(([c0, c1], mask))
}

/// Purposes of the seed's streams.
const SECRET: u64 = 0;
const FLOODING: u64 = 1;
const MASK: u64 = 2;

/// The coefficients of the products and of the fresh encryption of zero, below `2q`.
pub(super) fn products(
    slots: &Slots,
    key: &SlotPublicKey,
    terms: &[(&SlotCiphertext, &[u64])],
    seed: &Seed,
) -> Result<[Poly<3>; 2]> {
    let ring = &slots.ring;
    let mut plain = Vec::new();
    for (ciphertext, values) in terms {
        let polynomial = slots.polynomial(ciphertext.width, values)?;
        plain.push(ring.plain(Modulus::Odd(slots.set.prime), &polynomial, [1; 3]));
    }
    let mut stream = seed.stream(Use::SlotAnswer, SECRET);
    let mut small = Secret::zeros(ring.len());
    stream.ternary(&mut small);
    let u = ring.small(&small);
    let mut out = from_fn(|_| ring.zero());
    for (side, out) in out.iter_mut().enumerate() {
        for (k, t) in ring.transforms().iter().enumerate() {
            let (pk, u) = (&key.parts[side][k], &u[k]);
            let of = |i: usize| (&*terms[i].0.parts[side][k], &*plain[i][k]);
            match terms.len() {
                1 => t.dot([of(0).0, u], [of(0).1, pk], &mut out[k]),
                2 => t.dot([of(0).0, of(1).0, u], [of(0).1, of(1).1, pk], &mut out[k]),
                _ => t.dot([of(0).0, of(1).0, of(2).0, u], [of(0).1, of(1).1, of(2).1, pk], &mut out[k]),
            }
        }
        ring.inverse(out);
    }
    stream.errors(&mut small);
    ring.add_small(&mut out[1], &small);
    Ok(out)
}

/// Adds uniform numbers of ±2^105 to coefficients below `2q`; below `2q` again.
fn flood(slots: &Slots, poly: &mut Poly<3>, seed: &Seed) {
    let mut words = Secret::zeros(2 * slots.set.n);
    seed.stream(Use::SlotAnswer, FLOODING).words(&mut words);
    let (low, high) = words.split_at(slots.set.n);
    for (k, poly) in poly.iter_mut().enumerate() {
        let p = slots.ring.prime(k);
        add_flood(slots.ring.isa(), p, low.as_chunks().0, high.as_chunks().0, poly.as_chunks_mut().0);
    }
}

/// Bits of the pieces of a flooding number of 106 bits.
const PIECES: [u32; 3] = [36, 35, 35];

each_lanes! {
    fn add_flood(isa, l; p: u64, low: &[[u64; 8]], high: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let m = l.modulus(p);
        let power = |e: u32| pow_mod(2, u64::from(e), p);
        let (second, second_ratio) = (l.splat(power(PIECES[0])), l.splat(ratio(power(PIECES[0]), p)));
        let third = power(PIECES[0] + PIECES[1]);
        let (third, third_ratio) = (l.splat(third), l.splat(ratio(third, p)));
        let minus = l.splat(p - power(FLOOD));
        let (mask0, mask1) = (l.splat((1 << PIECES[0]) - 1), l.splat((1 << PIECES[1]) - 1));
        let seven = l.splat((1 << (PIECES[1] + PIECES[0] - 64)) - 1);
        let (p2, p4) = (l.splat(2 * p), l.splat(4 * p));
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            let (low, high) = (l.load(low), l.load(high));
            let f0 = l.and(low, mask0);
            let f1 = l.add(l.shr(low, PIECES[0]), l.shl(l.and(high, seven), 64 - PIECES[0]));
            let f2 = l.and(l.shr(high, PIECES[1] + PIECES[0] - 64), mask1);
            let f1 = l.mul_shoup(f1, second, second_ratio, m);
            let f2 = l.mul_shoup(f2, third, third_ratio, m);
            // Below 2p + 2p + 2p + p + 2^36.
            let sum = l.add(l.add(l.load(out), f0), l.add(l.add(f1, f2), minus));
            l.store(l.cut(l.cut(sum, p4), p2), out);
        }
    }

    /// `out - x`, below `p`, for both below `2p`.
    fn minus(isa, l; p: u64, x: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let (pv, p2) = (l.splat(p), l.splat(2 * p));
        for (out, x) in out.iter_mut().zip(x) {
            let difference = l.add(l.sub(l.load(out), l.load(x)), p2);
            l.store(l.cut(l.cut(difference, p2), pv), out);
        }
    }
}
