//! Merging of ciphertexts by automorphisms, with key switches.

use std::array::from_fn;

use super::{DIGITS, Tiles};
use crate::lanes::each_lanes;
use crate::random::Secret;
use crate::rns::{Poly, Ring, add};

/// A key switch for one level: prepared encryptions of the digits' weights times the turned secret, and the turn itself.
pub(super) struct SwitchKey<const K: usize> {
    /// `b` and `a` of every digit of every residue.
    pub(super) parts: [[Ciphertext<K>; K]; DIGITS],
    pub(super) from: Vec<u16>,
    pub(super) negative: Vec<u64>,
}

/// A ciphertext in coefficients: `b` and `a`.
pub(super) type Ciphertext<const K: usize> = [Poly<K>; 2];

/// X → X^(N/h + 1) with h = 2^level: which coefficient comes to a place, and all bits where with a changed sign. It fixes
/// multiples of 2h and negates other multiples of h.
pub(super) fn turns(n: usize, level: usize) -> (Vec<u16>, Vec<u64>) {
    let g = (n >> level) + 1;
    let (mut from, mut negative) = (vec![0; n], vec![0; n]);
    for i in 0..n {
        let e = i * g % (2 * n);
        from[e % n] = i as u16;
        negative[e % n] = if e < n { 0 } else { u64::MAX };
    }
    (from, negative)
}

/// The turned polynomial, at most `p`, for coefficients below `p`.
pub(super) fn automorphism(a: &[u64], from: &[u16], negative: &[u64], p: u64, out: &mut [u64]) {
    for ((out, from), negative) in out.iter_mut().zip(from).zip(negative) {
        let x = a[usize::from(*from) % a.len()];
        // x, or p - x.
        *out = (x ^ negative).wrapping_add(negative & p.wrapping_add(1));
    }
}

/// Room for one merge.
pub(super) struct Room<const K: usize> {
    minus: Ciphertext<K>,
    turned: Ciphertext<K>,
    digits: [Poly<K>; DIGITS],
    spare: [Secret; 2],
}

impl<const K: usize> Room<K> {
    pub(super) fn new(ring: &Ring<K>) -> Room<K> {
        let zero = || [ring.zero(), ring.zero()];
        Room { minus: zero(), turned: zero(), digits: zero(), spare: from_fn(|_| Secret::zeros(ring.len())) }
    }
}

/// `x + X^h y + auto(x - X^h y)` in place of `x`, with h = 2^level; all coefficients below their primes.
pub(super) fn merge<const K: usize>(
    tiles: &Tiles<K>,
    (level, key): (usize, &SwitchKey<K>),
    x: &mut Ciphertext<K>,
    y: &Ciphertext<K>,
    room: &mut Room<K>,
) {
    let (ring, digit) = (&tiles.ring, tiles.digit());
    let (n, h, isa) = (ring.len(), 1 << level, ring.isa());
    let [spare, other] = &mut room.spare;
    for side in 0..2 {
        for k in 0..K {
            let p = ring.prime(k);
            let from = &y[side][k];
            for (to, y) in spare.iter_mut().zip(&from[n - h..]) {
                *to = p - y;
            }
            spare[h..].copy_from_slice(&from[..n - h]);
            let minus = room.minus[side][k].as_chunks_mut().0;
            plus_minus(isa, p, spare.as_chunks().0, x[side][k].as_chunks_mut().0, minus);
            automorphism(&room.minus[side][k], &key.from, &key.negative, p, &mut room.turned[side][k]);
        }
    }
    for k in 0..K {
        let (t, p) = (&ring.transforms()[k], ring.prime(k));
        for (part, digits) in (0u32..).zip(&mut room.digits) {
            for (turned, to) in room.turned[1].iter().zip(digits) {
                cut_digit(isa, digit, digit * part, turned.as_chunks().0, to.as_chunks_mut().0);
                t.forward(to);
            }
        }
        for (side, x) in x.iter_mut().enumerate() {
            let parts: [[&[u64]; K]; DIGITS] = from_fn(|part| from_fn(|d| &*key.parts[part][d][side][k]));
            let digits: [[&[u64]; K]; DIGITS] = from_fn(|part| from_fn(|d| &*room.digits[part][d]));
            t.dot(digits[0], parts[0], spare);
            t.dot(digits[1], parts[1], other);
            add(isa, p, other.as_chunks().0, spare.as_chunks_mut().0);
            t.inverse(spare);
            add_below(isa, p, spare.as_chunks().0, x[k].as_chunks_mut().0);
        }
        add_below(isa, p, room.turned[0][k].as_chunks().0, x[0][k].as_chunks_mut().0);
    }
}

each_lanes! {
    /// `x + y` in place of `x`, and `x - y`, below `p`, for `x` below `p` and `y` at most `p`.
    fn plus_minus(isa, l; p: u64, y: &[[u64; 8]], x: &mut [[u64; 8]], minus: &mut [[u64; 8]]) {
        let pv = l.splat(p);
        for ((x, y), minus) in x.iter_mut().zip(y).zip(minus) {
            let (a, b) = (l.load(x), l.cut(l.load(y), pv));
            l.store(l.cut(l.add(a, b), pv), x);
            l.store(l.cut(l.add(l.sub(a, b), pv), pv), minus);
        }
    }

    /// `x + y` in place of `x`, below `p`, for `x` below `p` and `y` at most `p`.
    fn add_below(isa, l; p: u64, y: &[[u64; 8]], x: &mut [[u64; 8]]) {
        let pv = l.splat(p);
        for (x, y) in x.iter_mut().zip(y) {
            l.store(l.cut(l.add(l.load(x), l.cut(l.load(y), pv)), pv), x);
        }
    }

    fn cut_digit(isa, l; bits: u32, shift: u32, x: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let mask = l.splat((1 << bits) - 1);
        for (out, x) in out.iter_mut().zip(x) {
            l.store(l.and(l.shr(l.load(x), shift), mask), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::PRIMES_44;
    use crate::random::Stream;

    #[test]
    fn turns_are_automorphisms_and_merging_packs_what_is_wanted() {
        let (n, p) = (64, PRIMES_44[0]);
        let mut a = vec![0; n];
        Stream::new(&[1; 16], 0).uniform(p, &mut a);
        for level in 0..5 {
            let (from, negative) = turns(n, level);
            let mut out = vec![0; n];
            automorphism(&a, &from, &negative, p, &mut out);
            let mut want = vec![0; n];
            for (i, a) in a.iter().enumerate() {
                let e = i * ((n >> level) + 1) % (2 * n);
                want[e % n] = if e < n { *a } else { p - a };
            }
            assert!(out == want);
            let h = 1 << level;
            assert!((0..n).step_by(2 * h).all(|i| out[i] == a[i]));
            assert!((h..n).step_by(2 * h).all(|i| out[i] == p - a[i]));
        }
    }

    #[test]
    fn digits_sum_to_what_was_cut() {
        let x = [[PRIMES_44[0] - 1, PRIMES_44[0], 0, 1, 1 << 22, (1 << 22) - 1, 12345, 1 << 43]];
        for isa in crate::lanes::Isa::available() {
            let (mut low, mut high) = ([[0; 8]], [[0; 8]]);
            cut_digit(isa, 22, 0, &x, &mut low);
            cut_digit(isa, 22, 22, &x, &mut high);
            assert!((0..8).all(|i| low[0][i] + (high[0][i] << 22) == x[0][i]));
        }
    }
}
