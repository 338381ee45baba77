//! Polynomials mod products of two or three primes: keys, encryption, encodings, and the change to small moduli.
//!
//! A ciphertext of `m` mod `t` is `(b, a)` with `b + a s = ⌊q m/t⌉ + e`. The encoding is of `q m/t`, rounded, and not
//! of ⌊q/t⌋ times `m`: what a product wraps around `t` would otherwise count `q mod t` each time.

use std::array::from_fn;

use crate::arith::{inverse_mod, mul_mod, pow_mod, ratio};
use crate::exact::lift;
use crate::lanes::{Isa, Lanes, each_lanes};
use crate::ntt::Ntt;
use crate::random::{Secret, Stream};

/// Coefficients or values of a polynomial, mod each prime. Wiped on drop.
pub(crate) type Poly<const K: usize> = [Secret; K];

/// The ring Z_q[X]/(X^n + 1), `q` the product of `K` primes.
pub(crate) struct Ring<const K: usize> {
    n: usize,
    transforms: [Ntt; K],
    /// For each prime the inverse of the product of the others, and its ratio.
    hats: [[u64; 2]; K],
}

/// A modulus of messages, and what encoding needs of it.
pub(crate) struct Encoding<const K: usize> {
    t: u64,
    /// q mod t and its ratio, where `t` is no power of two.
    q: [u64; 2],
    /// -1/t mod each prime and its ratio.
    minus_inverse: [[u64; 2]; K],
}

impl<const K: usize> Ring<K> {
    pub(crate) fn new(n: usize, primes: [u64; K]) -> Ring<K> {
        let hat = |k: usize| {
            let others = primes.iter().filter(|p| **p != primes[k]);
            let hat = inverse_mod(others.fold(1, |product, p| mul_mod(product, p % primes[k], primes[k])), primes[k]);
            [hat, ratio(hat, primes[k])]
        };
        Ring { n, transforms: primes.map(|p| Ntt::new(n, p)), hats: from_fn(hat) }
    }

    pub(crate) fn len(&self) -> usize {
        self.n
    }

    pub(crate) fn transforms(&self) -> &[Ntt; K] {
        &self.transforms
    }

    pub(crate) fn prime(&self, k: usize) -> u64 {
        self.transforms[k].prime()
    }

    pub(crate) fn isa(&self) -> Isa {
        self.transforms[0].isa()
    }

    /// Zero.
    pub(crate) fn zero(&self) -> Poly<K> {
        from_fn(|_| Secret::zeros(self.n))
    }

    /// Values of a polynomial of small coefficients.
    pub(crate) fn small(&self, small: &[u64]) -> Poly<K> {
        from_fn(|k| {
            let mut values = Secret(small.to_vec());
            lift(self.isa(), self.prime(k), values.as_chunks_mut().0);
            self.transforms[k].forward(&mut values);
            values
        })
    }

    /// Makes values operands of products.
    pub(crate) fn prepare(&self, values: &mut Poly<K>) {
        self.transforms.iter().zip(values).for_each(|(t, values)| t.prepare(values));
    }

    /// Uniform values or coefficients.
    pub(crate) fn uniform(&self, stream: &mut Stream) -> Poly<K> {
        from_fn(|k| {
            let mut values = Secret::zeros(self.n);
            stream.uniform(self.prime(k), &mut values);
            values
        })
    }

    /// To values.
    pub(crate) fn forward(&self, poly: &mut Poly<K>) {
        self.transforms.iter().zip(poly).for_each(|(t, poly)| t.forward(poly));
    }

    /// To coefficients.
    pub(crate) fn inverse(&self, poly: &mut Poly<K>) {
        self.transforms.iter().zip(poly).for_each(|(t, poly)| t.inverse(poly));
    }

    /// Adds small coefficients to coefficients below `2q`; below `2q` again.
    pub(crate) fn add_small(&self, poly: &mut Poly<K>, small: &[u64]) {
        for (k, poly) in poly.iter_mut().enumerate() {
            add_small(self.isa(), self.prime(k), small.as_chunks().0, poly.as_chunks_mut().0);
        }
    }

    /// Turns coefficients `m` below `2q` into the values of `m + e - a s`, below `q`: with the values `a`, which are
    /// uniform, an encryption. `secret` is prepared.
    pub(crate) fn encrypt(&self, m: &mut Poly<K>, a: &Poly<K>, secret: &Poly<K>, stream: &mut Stream) {
        let mut product = Secret::zeros(self.n);
        stream.errors(&mut product);
        self.add_small(m, &product);
        for (k, t) in self.transforms.iter().enumerate() {
            t.forward(&mut m[k]);
            t.dot([&a[k]], [&secret[k]], &mut product);
            subtract(self.isa(), t.prime(), product.as_chunks().0, m[k].as_chunks_mut().0);
        }
    }

    /// What encoding messages mod `t` needs.
    pub(crate) fn encoding(&self, t: u64) -> Encoding<K> {
        let q = self.transforms.iter().fold(1, |product, p| mul_mod(product, p.prime() % t, t));
        let minus = |k: usize| {
            let p = self.prime(k);
            let minus = p - inverse_mod(t % p, p);
            [minus, ratio(minus, p)]
        };
        let q_ratio = if t.is_power_of_two() { 0 } else { ratio(q, t) };
        Encoding { t, q: [q, q_ratio], minus_inverse: from_fn(minus) }
    }

    /// ⌊q m/t⌉ mod each prime, below `2q`, for numbers `m` below `t`: with `r` the number nearest to zero that is `q m`
    /// mod `t`, it is `(q m - r)/t`, and `-r/t` mod every prime.
    pub(crate) fn encode(&self, encoding: &Encoding<K>, m: &[u64]) -> Poly<K> {
        let t = encoding.t;
        let mut rest = Secret(m.to_vec());
        if t.is_power_of_two() {
            rest.iter_mut().for_each(|m| *m = m.wrapping_mul(encoding.q[0]) & (t - 1));
        } else {
            crate::ntt::scale(self.isa(), t, encoding.q, rest.as_chunks_mut().0);
        }
        from_fn(|k| {
            let mut out = Secret::zeros(self.n);
            balance(self.isa(), t, self.prime(k), encoding.minus_inverse[k], rest.as_chunks().0, out.as_chunks_mut().0);
            out
        })
    }

    /// Values of the polynomial whose coefficients are the numbers nearest to zero that are `m` mod `t`, times `factor`,
    /// prepared for products.
    pub(crate) fn plain(&self, t: u64, m: &[u64], factor: [u64; K]) -> Poly<K> {
        from_fn(|k| {
            let p = self.prime(k);
            let c = mul_mod(pow_mod(2, 52, p), factor[k], p);
            let mut out = Secret::zeros(self.n);
            balance(self.isa(), t, p, [c, ratio(c, p)], m.as_chunks().0, out.as_chunks_mut().0);
            self.transforms[k].forward(&mut out);
            out
        })
    }

    /// `x modulus / q`, rounded, mod `modulus`, for coefficients `x` below `2q` and a modulus below 2^56. A result is off
    /// by less than one half and `K`/8.
    pub(crate) fn rescale(&self, x: &Poly<K>, modulus: u64) -> Vec<u64> {
        let share = |k: usize| {
            let p = self.prime(k);
            // The fraction is rounded to the nearest.
            let fraction = ((u128::from(modulus % p) << 52) + u128::from(p / 2)) / u128::from(p);
            [modulus / p, fraction as u64]
        };
        let shares: [[u64; 2]; K] = from_fn(share);
        let primes: [u64; K] = from_fn(|k| self.prime(k));
        let mut out = vec![0; x[0].len()];
        let x: [&[[u64; 8]]; K] = from_fn(|k| x[k].as_chunks().0);
        let out8 = out.as_chunks_mut().0;
        // One function for each number of primes: kernels are compiled without parameters of their own.
        match K {
            2 => rescale2(
                self.isa(),
                [primes[0], primes[1]],
                [self.hats[0], self.hats[1]],
                [shares[0], shares[1]],
                modulus,
                [x[0], x[1]],
                out8,
            ),
            _ => rescale3(
                self.isa(),
                from_fn(|k| primes[k]),
                from_fn(|k| self.hats[k]),
                from_fn(|k| shares[k]),
                modulus,
                from_fn(|k| x[k]),
                out8,
            ),
        }
        out
    }
}

each_lanes! {
    fn add_small(isa, l; p: u64, small: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let (pv, p2) = (l.splat(p), l.splat(2 * p));
        for (out, small) in out.iter_mut().zip(small) {
            let small = l.add_if_negative(l.load(small), pv);
            l.store(l.cut(l.add(l.load(out), small), p2), out);
        }
    }

    /// `out - x`, below `p`, for `out` below `p` and `x` below `2p`.
    pub(crate) fn subtract(isa, l; p: u64, x: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let (pv, p2) = (l.splat(p), l.splat(2 * p));
        for (out, x) in out.iter_mut().zip(x) {
            let difference = l.add(l.sub(l.load(out), l.load(x)), p2);
            l.store(l.cut(l.cut(difference, p2), pv), out);
        }
    }

    /// `out + x`, below `p`, for `out` below `2p` and `x` below `2p`.
    pub(crate) fn add(isa, l; p: u64, x: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let (pv, p2) = (l.splat(p), l.splat(2 * p));
        for (out, x) in out.iter_mut().zip(x) {
            l.store(l.cut(l.cut(l.add(l.load(out), l.load(x)), p2), pv), out);
        }
    }

    /// The numbers nearest to zero that are `m` mod `t`, times a constant mod `p`; below `2p`.
    fn balance(isa, l; t: u64, p: u64, factor: [u64; 2], m: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let (modulus, half) = (l.modulus(p), l.splat(t / 2));
        let (factor, factor_ratio) = (l.splat(factor[0]), l.splat(factor[1]));
        // m - t, mod p; t is below p.
        let negative = l.splat(p - t);
        for (out, m) in out.iter_mut().zip(m) {
            let centred = l.add_if_above(l.load(m), half, negative);
            l.store(l.mul_shoup(centred, factor, factor_ratio, modulus), out);
        }
    }

    fn rescale2(isa, l; p: [u64; 2], hats: [[u64; 2]; 2], shares: [[u64; 2]; 2], modulus: u64, x: [&[[u64; 8]]; 2], out: &mut [[u64; 8]]) {
        rescale_any(l, p, hats, shares, modulus, x, out);
    }

    fn rescale3(isa, l; p: [u64; 3], hats: [[u64; 2]; 3], shares: [[u64; 2]; 3], modulus: u64, x: [&[[u64; 8]]; 3], out: &mut [[u64; 8]]) {
        rescale_any(l, p, hats, shares, modulus, x, out);
    }
}

/// With `y_k = x (q/q_k)^-1 mod q_k`, `x/q` is the sum of the `y_k/q_k` up to a whole number.
#[inline(always)]
fn rescale_any<L: Lanes, const K: usize>(
    l: L,
    p: [u64; K],
    hats: [[u64; 2]; K],
    shares: [[u64; 2]; K],
    modulus: u64,
    x: [&[[u64; 8]]; K],
    out: &mut [[u64; 8]],
) {
    let top = l.splat(modulus);
    let twice = l.splat(2 * modulus);
    for (i, out) in out.iter_mut().enumerate() {
        let (mut whole, mut fraction) = (l.splat(0), l.splat(1 << 51));
        let mut k = 0;
        while k < K {
            let hat = [l.splat(hats[k][0]), l.splat(hats[k][1])];
            let y = l.mul_shoup(l.load(&x[k][i]), hat[0], hat[1], l.modulus(p[k]));
            let y = l.cut(y, l.splat(p[k]));
            // The quotient has at most 13 bits, so the low half is all of this product but what is above 2^52.
            whole = l.madd_low(whole, y, l.splat(shares[k][0]));
            whole = l.add(whole, l.shl(l.madd_high(l.splat(0), y, l.splat(shares[k][0])), 52));
            whole = l.madd_high(whole, y, l.splat(shares[k][1]));
            fraction = l.madd_low(fraction, y, l.splat(shares[k][1]));
            k += 1;
        }
        let sum = l.add(whole, l.shr(fraction, 52));
        l.store(l.cut(l.cut(sum, twice), top), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::centred;
    use crate::params::{PRIMES_44, PRIMES_50, SLOT_PRIME};

    /// The number below q with these residues.
    fn join<const K: usize>(ring: &Ring<K>, residues: [u64; K]) -> Big {
        // Schoolbook: sums of y_k q/q_k in 64-bit limbs, reduced by subtraction.
        let q = (0..K).fold(Big([1, 0, 0, 0]), |q, k| q.times(ring.prime(k)));
        let mut sum = Big([0; 4]);
        for (k, residue) in residues.into_iter().enumerate() {
            let y = mul_mod(residue, ring.hats[k][0], ring.prime(k));
            let hat = (0..K).filter(|j| *j != k).fold(Big([1, 0, 0, 0]), |h, j| h.times(ring.prime(j)));
            sum = sum.plus(&hat.times(y));
            if !sum.less(&q) {
                sum = sum.minus(&q);
            }
        }
        sum
    }

    /// Numbers of 256 bits, lowest limb first.
    #[derive(Clone, Debug, PartialEq)]
    struct Big([u64; 4]);

    impl Big {
        fn times(&self, x: u64) -> Big {
            let mut carry = 0;
            Big(self.0.map(|limb| {
                let wide = u128::from(limb) * u128::from(x) + carry;
                carry = wide >> 64;
                wide as u64
            }))
        }
        fn plus(&self, other: &Big) -> Big {
            let mut carry = 0;
            Big(from_fn(|i| {
                let wide = u128::from(self.0[i]) + u128::from(other.0[i]) + carry;
                carry = wide >> 64;
                wide as u64
            }))
        }
        fn minus(&self, other: &Big) -> Big {
            let complement = Big(other.0.map(|limb| !limb)).plus(&Big([1, 0, 0, 0]));
            self.plus(&complement)
        }
        fn less(&self, other: &Big) -> bool {
            self.0.iter().rev().lt(other.0.iter().rev())
        }
        fn float(&self) -> f64 {
            self.0.iter().rev().fold(0.0, |sum, limb| sum * 2f64.powi(64) + *limb as f64)
        }
    }

    fn residues<const K: usize>(poly: &Poly<K>, ring: &Ring<K>, i: usize) -> [u64; K] {
        from_fn(|k| poly[k][i] % ring.prime(k))
    }

    fn encodings_are_rounded<const K: usize>(primes: [u64; K], moduli: &[u64]) {
        let n = 64;
        let ring = Ring::new(n, primes);
        let q = primes.iter().fold(Big([1, 0, 0, 0]), |q, p| q.times(*p));
        for &t in moduli {
            let mut m = vec![0; n];
            Stream::new(&[5; 16], 0).uniform(t, &mut m);
            (m[0], m[1], m[2]) = (0, t - 1, t / 2);
            let found = ring.encode(&ring.encoding(t), &m);
            for (i, m) in m.iter().enumerate() {
                let found = join(&ring, residues(&found, &ring, i));
                // |q m - t found| is at most t/2, mod q t.
                let (left, right) = (q.times(*m), found.times(t));
                let off = if right.less(&left) { left.minus(&right) } else { right.minus(&left) };
                let wrapped = q.times(t).minus(&off);
                let off = if wrapped.less(&off) { wrapped } else { off };
                assert!(off.less(&Big([t / 2 + 1, 0, 0, 0])), "{t} {i}: {off:?}");
            }
            // The way back, as far as the new modulus is exact.
            let modulus = if t.is_power_of_two() { t << 12 } else { t << 11 };
            for (i, found) in ring.rescale(&found, modulus).iter().enumerate() {
                let want = m[i] * (modulus / t);
                let off = centred((found + modulus - want) % modulus, modulus);
                assert!(off.abs() <= 1, "{t} {i}: {off}");
            }
        }
    }

    #[test]
    fn messages_are_encoded_to_the_nearest() {
        encodings_are_rounded(PRIMES_44, &[1 << 40, 1 << 33]);
        encodings_are_rounded(PRIMES_50, &[SLOT_PRIME, 1 << 40]);
    }

    fn rescaling<const K: usize>(primes: [u64; K], modulus: u64) {
        let n = 512;
        let ring = Ring::new(n, primes);
        let x = ring.uniform(&mut Stream::new(&[6; 16], 0));
        let q = primes.iter().fold(Big([1, 0, 0, 0]), |q, p| q.times(*p)).float();
        for (i, found) in ring.rescale(&x, modulus).iter().enumerate() {
            let exact = join(&ring, residues(&x, &ring, i)).float() / q * modulus as f64;
            let off = (*found as f64 - exact).abs();
            let off = off.min(modulus as f64 - off);
            // Floats know the quotient to some units themselves where the modulus has 54 bits.
            assert!(off < 0.5 + K as f64 / 8.0 + modulus as f64 / 2f64.powi(51), "{i}: {off}");
        }
    }

    #[test]
    fn moduli_are_changed_to_the_nearest() {
        rescaling(PRIMES_44, 1 << 52);
        rescaling(PRIMES_44, 1 << 30);
        rescaling(PRIMES_50, 1 << 45);
        rescaling(PRIMES_50, SLOT_PRIME << 11);
    }

    #[test]
    fn encryptions_decrypt_to_their_message_and_an_error() {
        let ring = Ring::new(256, PRIMES_44);
        let mut stream = Stream::new(&[7; 16], 0);
        let mut small = vec![0; 256];
        stream.ternary(&mut small);
        let mut secret = ring.small(&small);
        ring.prepare(&mut secret);
        let a = ring.uniform(&mut stream);
        let mut b = ring.zero();
        b[0][3] = 5;
        b[1][3] = 5;
        ring.encrypt(&mut b, &a, &secret, &mut stream);
        let mut product = vec![0; 256];
        for k in 0..2 {
            let t = &ring.transforms[k];
            t.dot([&a[k]], [&secret[k]], &mut product);
            add(ring.isa(), t.prime(), product.as_chunks().0, b[k].as_chunks_mut().0);
        }
        ring.inverse(&mut b);
        b.iter_mut().enumerate().for_each(|(k, b)| b[3] = (b[3] + ring.prime(k) - 5) % ring.prime(k));
        for (i, (x, y)) in b[0].iter().zip(b[1].iter()).enumerate() {
            let found = [centred(*x, ring.prime(0)), centred(*y, ring.prime(1))];
            assert!(found[0] == found[1] && found[0].abs() <= 21, "{i}: {found:?}");
        }
        assert!(b[0].iter().any(|x| *x != 0), "errors are drawn");
    }
}
