//! The client's half: keys, encryption of its shares, decryption of answers.

use super::{ANSWER, BELOW, Slots, write_residues};
use crate::bits::{Unpacker, packed_bytes};
use crate::error::{Error, Result, check_length};
use crate::exact::{Ternary, draw_ternary};
use crate::lanes::each_lanes;
use crate::random::Stream;
use crate::rns::Poly;

/// The client's secret for products in slots. It has no `Debug`.
pub struct SlotKey {
    secret: Poly<3>,
    ternary: Ternary,
}

impl SlotKey {
    /// The key of `seed`.
    pub fn new(slots: &Slots, seed: &[u8; 16]) -> SlotKey {
        let small = draw_ternary(&mut Stream::new(seed, 0), slots.set.n);
        let mut secret = slots.ring.small(&small);
        slots.ring.prepare(&mut secret);
        SlotKey { secret, ternary: slots.exact.ternary(&small) }
    }

    #[cfg(test)]
    pub(super) fn secret(&self) -> &Poly<3> {
        &self.secret
    }
}

/// The public key, an encryption of zero, as it is sent. `public_seed` is known to both parties; `seed` is fresh.
pub fn slot_public_key(slots: &Slots, key: &SlotKey, public_seed: &[u8; 16], seed: &[u8; 16]) -> Vec<u8> {
    let a = slots.ring.uniform(&mut Stream::new(public_seed, 0));
    let mut b = slots.ring.zero();
    slots.ring.encrypt(&mut b, &a, &key.secret, &mut Stream::new(seed, 0));
    write_residues(&b, 1)
}

/// Encrypts `width` values below the modulus, [`super::WIDTHS`] many. `index` is the number of the ciphertext under
/// `public_seed`, never used twice; `seed` is fresh. Errors for other widths and values.
pub fn encrypt_slots(
    slots: &Slots,
    key: &SlotKey,
    width: usize,
    values: &[u64],
    public_seed: &[u8; 16],
    index: u32,
    seed: &[u8; 16],
) -> Result<Vec<u8>> {
    let message = slots.polynomial(width, values)?;
    let mut b = slots.ring.encode(&slots.encoding, &message);
    let a = slots.ring.uniform(&mut Stream::new(public_seed, 1 + u64::from(index)));
    slots.ring.encrypt(&mut b, &a, &key.secret, &mut Stream::new(seed, 0));
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
    let p = slots.set.prime;
    let noisy = noisy_values(slots, key, width, answer)?;
    let mut out = vec![0; width];
    // Above zero, by a multiple of p: the product has at most 67 bits before the shift.
    let offset = i128::from(p) << 14;
    for (out, v) in out.iter_mut().zip(&noisy) {
        *out = (((v + (1 << (BELOW - 1))) >> BELOW) + offset) as u64;
    }
    reduce(transform.isa(), p, out.as_chunks_mut().0);
    transform.forward(&mut out);
    Ok(out)
}

/// `c_0 + c_1 s`, not reduced, at the coefficients that hold values.
pub(super) fn noisy_values(slots: &Slots, key: &SlotKey, width: usize, answer: &[u8]) -> Result<Vec<i128>> {
    let n = slots.set.n;
    let modulus = u128::from(slots.set.prime) << BELOW;
    let (first, second) = answer.split_at(packed_bytes(n, ANSWER));
    let mut unpacker = Unpacker::new(first);
    let c1: Vec<u128> = (0..n).map(|_| unpacker.pull(ANSWER)).collect();
    let mut unpacker = Unpacker::new(second);
    let c0: Vec<u128> = (0..width).map(|_| unpacker.pull(ANSWER)).collect();
    if c0.iter().chain(&c1).any(|c| *c >= modulus) {
        return Err(Error::new("an answer holds a number above its modulus"));
    }
    let mut product = vec![0; n];
    // One bit more than the words have: none of them is negative.
    slots.exact.product(&slots.exact.transform(&c1, ANSWER + 1), &key.ternary, &mut product);
    let few = product.iter().step_by(n / width);
    Ok(few.zip(&c0).map(|(product, c0)| product.wrapping_add(*c0).cast_signed()).collect())
}

each_lanes! {
    /// Words below 2^58 mod `p`, below `4p`.
    fn reduce(isa, l; p: u64, words: &mut [[u64; 8]]) {
        let m = l.modulus(p);
        let factor = (1 << 26) % p;
        let (factor, ratio) = (l.splat(factor), l.splat(crate::arith::ratio(factor, p)));
        let low = l.splat((1 << 26) - 1);
        for word in words.iter_mut() {
            let x = l.load(word);
            let high = l.mul_shoup(l.shr(x, 26), factor, ratio, m);
            l.store(l.add(high, l.and(x, low)), word);
        }
    }
}
