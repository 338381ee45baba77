//! The client's half: keys, encryption of its shares, decryption of answers.

use super::{ANSWER, BELOW, Slots, pick, write_residues};
use crate::bits::{packed_bytes, unpack};
use crate::error::{Error, Result, check_length};
use crate::exact::{Ternary, draw_ternary};
use crate::lanes::each_lanes;
use crate::random::{Seed, Stream, Use};
use crate::rns::Poly;

/// The client's secret for products in slots. It has no `Debug`.
pub struct SlotKey {
    secret: Poly<3>,
    ternary: Ternary,
}

impl SlotKey {
    /// The key of `seed`.
    pub fn new(slots: &Slots, seed: Seed) -> SlotKey {
        let small = draw_ternary(&mut seed.stream(Use::SlotKey, 0), slots.set.n);
        let mut secret = slots.ring.small(&small);
        slots.ring.prepare(&mut secret);
        SlotKey { secret, ternary: slots.exact.ternary(&small) }
    }

    #[cfg(test)]
    pub(super) fn secret(&self) -> &Poly<3> {
        &self.secret
    }
}

/// The public key, an encryption of zero, as it is sent. `public_seed` is known to both parties.
pub fn slot_public_key(slots: &Slots, key: &SlotKey, public_seed: &[u8; 16], seed: Seed) -> Vec<u8> {
    let a = slots.ring.uniform(&mut Stream::new(public_seed, 0));
    let mut b = slots.ring.zero();
    slots.ring.encrypt(&mut b, &a, &key.secret, &mut seed.stream(Use::SlotPublicKey, 0));
    write_residues(&b, 1)
}

/// Encrypts `width` values below the modulus, [`super::WIDTHS`] many. `index` is the number of the ciphertext under
/// `public_seed`, never used twice. Errors for other widths and values.
pub fn encrypt_slots(
    slots: &Slots,
    key: &SlotKey,
    width: usize,
    values: &[u64],
    public_seed: &[u8; 16],
    index: u32,
    seed: Seed,
) -> Result<Vec<u8>> {
    let message = slots.polynomial(width, values)?;
    let mut b = slots.ring.encode(&slots.encoding, &message);
    let a = slots.ring.uniform(&mut Stream::new(public_seed, 1 + u64::from(index)));
    slots.ring.encrypt(&mut b, &a, &key.secret, &mut seed.stream(Use::Slots, index.into()));
    let step = slots.set.n / width;
    if step > 1 {
        slots.ring.inverse(&mut b);
    }
    Ok(write_residues(&b, step))
}

/// The values of an answer. Errors when `width` is none, or the answer has another length or holds a number above its
/// modulus.
pub fn decrypt_slots(slots: &Slots, key: &SlotKey, width: usize, answer: &[u8]) -> Result<Vec<u64>> {
    let transform = slots.transform(width)?;
    check_length("bytes of an answer", answer.len(), slots.answer_bytes(width))?;
    let n = slots.set.n;
    let [c1, c0] = read_answer(slots, width, answer)?;
    // A multiple of the answer's modulus, above what the product can be below zero: 54 bits times ¾ N.
    let offset = u128::from(slots.set.prime) << (BELOW + 14);
    let (p0, [low, high]) = slots.exact.product_digits(&slots.exact.transform_words(&c1), &key.ternary, offset);
    let (low, high) = (pick(&low, n / width), pick(&high, n / width));
    let mut out = vec![0; width];
    round(
        transform.isa(),
        slots.set.prime,
        p0,
        [c0.as_chunks().0, low.as_chunks().0, high.as_chunks().0],
        out.as_chunks_mut().0,
    );
    transform.forward(&mut out);
    Ok(out)
}

/// `c_1` and `c_0` of an answer. Refuses numbers above the modulus.
fn read_answer(slots: &Slots, width: usize, answer: &[u8]) -> Result<[Vec<u64>; 2]> {
    let modulus = slots.set.prime << BELOW;
    let (first, second) = answer.split_at(packed_bytes(slots.set.n, ANSWER));
    let mut parts = [vec![0; slots.set.n], vec![0; width]];
    for (bytes, part) in [first, second].into_iter().zip(&mut parts) {
        unpack(bytes, ANSWER, part);
        if part.iter().fold(false, |above, c| above | (*c >= modulus)) {
            return Err(Error::new("an answer holds a number above its modulus"));
        }
    }
    Ok(parts)
}

/// `c_0 + c_1 s`, not reduced, at the coefficients that hold values.
#[cfg(test)]
pub(super) fn noisy_values(slots: &Slots, key: &SlotKey, width: usize, answer: &[u8]) -> Result<Vec<i128>> {
    let [c1, c0] = read_answer(slots, width, answer)?;
    let mut product = vec![0; slots.set.n];
    slots.exact.product(&slots.exact.transform_words(&c1), &key.ternary, &mut product);
    let few = product.iter().step_by(slots.set.n / width);
    Ok(few.zip(&c0).map(|(product, c0)| product.wrapping_add(u128::from(*c0)).cast_signed()).collect())
}

each_lanes! {
    /// `(c + low + p0 high) / 2^11`, rounded, mod `p`, below `4p`, for a sum below 2^69.
    fn round(isa, l; p: u64, p0: u64, parts: [&[[u64; 8]]; 3], out: &mut [[u64; 8]]) {
        let (m, p0) = (l.modulus(p), l.splat(p0));
        let factor = (1 << 26) % p;
        let (factor, ratio) = (l.splat(factor), l.splat(crate::arith::ratio(factor, p)));
        let (mask, half) = (l.splat((1 << 26) - 1), l.splat(1 << (BELOW - 1)));
        for (i, out) in out.iter_mut().enumerate() {
            let [c, low, high] = [l.load(&parts[0][i]), l.load(&parts[1][i]), l.load(&parts[2][i])];
            let below = l.madd_low(l.add(l.add(c, low), half), high, p0);
            let above = l.madd_high(l.splat(0), high, p0);
            // Below 2^58.
            let x = l.add(l.shr(below, BELOW), l.shl(above, 52 - BELOW));
            let high = l.mul_shoup(l.shr(x, 26), factor, ratio, m);
            l.store(l.add(high, l.and(x, mask)), out);
        }
    }
}
