//! Polynomials mod products of two or three primes: keys, encryption, encodings, and the change to small moduli.
//!
//! A ciphertext of `m` mod `t` is `(b, a)` with `b + a s = ⌊q m/t⌉ + e`. The encoding is of `q m/t`, rounded, and not
//! of ⌊q/t⌋ times `m`: what a product wraps around `t` would otherwise count `q mod t` each time.

use std::array::from_fn;

use crate::arith::{inverse_mod, mul_mod, pow_mod, ratio};
use crate::exact::lift;
use crate::lanes::{Isa, each_lanes};
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

/// A modulus of messages.
#[derive(Clone, Copy)]
pub(crate) enum Modulus {
    /// This power of two, up to 2^64.
    Bits(u32),
    /// An odd number below each of a ciphertext's primes.
    Odd(u64),
}

/// A modulus of messages, and what encoding needs of it.
pub(crate) struct Encoding<const K: usize> {
    t: Modulus,
    /// q mod t, and its ratio where `t` is odd.
    q: [u64; 2],
    /// -1/t mod each prime.
    minus_inverse: [u64; K],
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
    pub(crate) fn encoding(&self, t: Modulus) -> Encoding<K> {
        let primes = self.transforms.iter().map(Ntt::prime);
        let q = match t {
            Modulus::Bits(bits) => [primes.fold(1, u64::wrapping_mul) & mask(bits), 0],
            Modulus::Odd(t) => {
                let q = primes.fold(1, |product, p| mul_mod(product, p % t, t));
                [q, ratio(q, t)]
            }
        };
        let residue = |p: u64| match t {
            Modulus::Bits(bits) => pow_mod(2, bits.into(), p),
            Modulus::Odd(t) => t,
        };
        let minus_inverse = from_fn(|k| self.prime(k) - inverse_mod(residue(self.prime(k)), self.prime(k)));
        Encoding { t, q, minus_inverse }
    }

    /// ⌊q m/t⌉ mod each prime, below `2q`, for numbers `m` below `t`: with `r` the number nearest to zero that is `q m`
    /// mod `t`, it is `(q m - r)/t`, and `-r/t` mod every prime.
    pub(crate) fn encode(&self, encoding: &Encoding<K>, m: &[u64]) -> Poly<K> {
        let mut rest = Secret(m.to_vec());
        match encoding.t {
            Modulus::Bits(bits) => rest.iter_mut().for_each(|m| *m = m.wrapping_mul(encoding.q[0]) & mask(bits)),
            Modulus::Odd(t) => crate::ntt::scale(self.isa(), t, encoding.q, rest.as_chunks_mut().0),
        }
        from_fn(|k| self.balanced(k, encoding.t, encoding.minus_inverse[k], &rest))
    }

    /// Values of the polynomial whose coefficients are the numbers nearest to zero that are `m` mod `t`, times `factor`,
    /// prepared for products.
    pub(crate) fn plain(&self, t: Modulus, m: &[u64], factor: [u64; K]) -> Poly<K> {
        from_fn(|k| {
            let p = self.prime(k);
            let mut out = self.balanced(k, t, mul_mod(pow_mod(2, 52, p), factor[k], p), m);
            self.transforms[k].forward(&mut out);
            out
        })
    }

    /// The numbers nearest to zero that are `m` mod `t`, times a constant mod a prime; below `2p`.
    fn balanced(&self, k: usize, t: Modulus, factor: u64, m: &[u64]) -> Secret {
        let p = self.prime(k);
        let mut out = Secret::zeros(m.len());
        let pair = |x: u64| [x, ratio(x, p)];
        let narrow = match t {
            Modulus::Bits(bits) => 1u64.checked_shl(bits).filter(|t| *t < p),
            Modulus::Odd(t) => Some(t),
        };
        match (narrow, t) {
            (None, Modulus::Bits(bits)) => {
                let (mut low, mut high) = (Secret::zeros(m.len()), Secret::zeros(m.len()));
                for ((low, high), m) in low.iter_mut().zip(high.iter_mut()).zip(m) {
                    let centred = m.cast_signed() << (64 - bits) >> (64 - bits);
                    *low = centred.cast_unsigned() & mask(48);
                    *high = (centred >> 48).cast_unsigned();
                }
                let factors = [pair(factor), pair(mul_mod(pow_mod(2, 48, p), factor, p))];
                let parts = [low.as_chunks().0, high.as_chunks().0];
                balance_wide(self.isa(), p, factors, parts, out.as_chunks_mut().0);
            }
            (t, _) => {
                balance(self.isa(), t.unwrap_or_default(), p, pair(factor), m.as_chunks().0, out.as_chunks_mut().0)
            }
        }
        out
    }

    /// `x 2^bits / q`, rounded, mod `2^bits`, for coefficients `x` below `2q` and up to 100 bits. A result is off by less
    /// than one half and `K 2^(bits - 78)`.
    pub(crate) fn rescale_bits(&self, x: &Poly<K>, bits: u32) -> Vec<u128> {
        let mut out = vec![0u128; self.n];
        for (k, x) in x.iter().enumerate() {
            // x/q is the sum of the y_k/q_k up to a whole number, which 128 bits of a fraction lose.
            let (p, mut y) = (self.prime(k), Secret(x.to_vec()));
            crate::ntt::scale(self.isa(), p, self.hats[k], y.as_chunks_mut().0);
            let inverse = u128::MAX / u128::from(p);
            out.iter_mut()
                .zip(y.iter())
                .for_each(|(out, y)| *out = out.wrapping_add(inverse.wrapping_mul((*y).into())));
        }
        out.iter_mut().for_each(|x| *x = x.wrapping_add(1 << (127 - bits)) >> (128 - bits));
        out
    }
}

impl Ring<3> {
    /// `x modulus / q`, rounded, mod `modulus`, for coefficients `x` below `2q` and a modulus below 2^56. A result is off
    /// by less than one half and three eighths.
    pub(crate) fn rescale(&self, x: &Poly<3>, modulus: u64) -> Vec<u64> {
        let primes: [u64; 3] = from_fn(|k| self.prime(k));
        let shares = primes.map(|p| {
            // The fraction is rounded to the nearest.
            let fraction = ((u128::from(modulus % p) << 52) + u128::from(p / 2)) / u128::from(p);
            [modulus / p, fraction as u64]
        });
        let hats = from_fn(|k| [self.hats[k][0], self.hats[k][1]]);
        let mut out = vec![0; x[0].len()];
        rescale(self.isa(), primes, hats, shares, modulus, from_fn(|k| x[k].as_chunks().0), out.as_chunks_mut().0);
        out
    }
}

/// The lowest `bits` bits.
fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
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

    /// `low + 2^48 high`, times a constant mod p, whose products with 1 and 2^48 are the factors; below `2p`. `low` has 48
    /// bits, `high` at most 16 with its sign.
    fn balance_wide(isa, l; p: u64, factors: [[u64; 2]; 2], parts: [&[[u64; 8]]; 2], out: &mut [[u64; 8]]) {
        let (modulus, pv, p2) = (l.modulus(p), l.splat(p), l.splat(2 * p));
        let [low, high] = factors;
        let (low, low_ratio, high, high_ratio) = (l.splat(low[0]), l.splat(low[1]), l.splat(high[0]), l.splat(high[1]));
        for (i, out) in out.iter_mut().enumerate() {
            let top = l.add_if_negative(l.load(&parts[1][i]), pv);
            let sum = l.mul_shoup(l.load(&parts[0][i]), low, low_ratio, modulus);
            let sum = l.add(sum, l.mul_shoup(top, high, high_ratio, modulus));
            l.store(l.cut(sum, p2), out);
        }
    }

    /// With `y_k = x (q/q_k)^-1 mod q_k`, `x/q` is the sum of the `y_k/q_k` up to a whole number.
    fn rescale(isa, l; p: [u64; 3], hats: [[u64; 2]; 3], shares: [[u64; 2]; 3], modulus: u64, x: [&[[u64; 8]]; 3], out: &mut [[u64; 8]]) {
        let top = l.splat(modulus);
        let twice = l.splat(2 * modulus);
        for (i, out) in out.iter_mut().enumerate() {
            let (mut whole, mut fraction) = (l.splat(0), l.splat(1 << 51));
            let mut k = 0;
            while k < 3 {
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

    fn encodings_are_rounded<const K: usize>(primes: [u64; K], t: Modulus) {
        let n = 64;
        let ring = Ring::new(n, primes);
        let q = primes.iter().fold(Big([1, 0, 0, 0]), |q, p| q.times(*p));
        let (most, half, times) = match t {
            Modulus::Bits(bits) => (mask(bits), 1 << (bits - 1), [1 << (bits / 2), 1 << (bits - bits / 2)]),
            Modulus::Odd(t) => (t - 1, t / 2, [t, 1]),
        };
        let times = |x: &Big| x.times(times[0]).times(times[1]);
        let mut m = vec![0; n];
        match t {
            Modulus::Bits(_) => Stream::new(&[5; 16], 0).words(&mut m),
            Modulus::Odd(t) => Stream::new(&[5; 16], 0).uniform(t, &mut m),
        }
        m.iter_mut().for_each(|m| *m &= mask(64 - most.leading_zeros()));
        (m[0], m[1], m[2]) = (0, most, half);
        let encoded = ring.encode(&ring.encoding(t), &m);
        for (i, m) in m.iter().enumerate() {
            let found = join(&ring, residues(&encoded, &ring, i));
            // |q m - t found| is at most t/2, mod q t.
            let (left, right) = (q.times(*m), times(&found));
            let off = if right.less(&left) { left.minus(&right) } else { right.minus(&left) };
            let wrapped = times(&q).minus(&off);
            let off = if wrapped.less(&off) { wrapped } else { off };
            assert!(off.less(&Big([half + 1, 0, 0, 0])), "{most} {i}: {off:?}");
        }
        // The way back.
        if let Modulus::Bits(bits) = t {
            for (i, (found, m)) in ring.rescale_bits(&encoded, bits + 12).iter().zip(&m).enumerate() {
                let off = found.wrapping_sub(u128::from(*m) << 12) << (116 - bits);
                assert!(off.cast_signed().unsigned_abs() <= 1 << (116 - bits), "{bits} {i}");
            }
        }
    }

    #[test]
    fn messages_are_encoded_to_the_nearest() {
        [33, 40].into_iter().for_each(|bits| encodings_are_rounded(PRIMES_44, Modulus::Bits(bits)));
        [33, 48, 50, 56, 64].into_iter().for_each(|bits| encodings_are_rounded(PRIMES_50, Modulus::Bits(bits)));
        encodings_are_rounded(PRIMES_50, Modulus::Odd(SLOT_PRIME));
    }

    /// Numbers mod 2^bits are the same as those that are nearest to zero, times any constant.
    #[test]
    fn plain_polynomials_have_signs() {
        let ring = Ring::new(64, PRIMES_50);
        for bits in [24, 49, 51, 64] {
            let mut m = vec![0; 64];
            Stream::new(&[8; 16], 0).words(&mut m);
            m.iter_mut().for_each(|m| *m &= mask(bits));
            (m[0], m[1], m[2]) = (mask(bits), (1 << (bits - 1)) + 1, (1 << (bits - 1)) - 1);
            for (k, p) in PRIMES_50.into_iter().enumerate() {
                for (found, m) in ring.balanced(k, Modulus::Bits(bits), 12_345, &m).iter().zip(&m) {
                    let centred = i128::from(m.cast_signed() << (64 - bits) >> (64 - bits));
                    assert_eq!(i128::from(found % p), (centred * 12_345).rem_euclid(p.into()), "{bits} {m}");
                }
            }
        }
    }

    fn exact<const K: usize>(ring: &Ring<K>, x: &Poly<K>, i: usize) -> f64 {
        let q = (0..K).fold(Big([1, 0, 0, 0]), |q, k| q.times(ring.prime(k))).float();
        join(ring, residues(x, ring, i)).float() / q
    }

    fn rescaling_to_bits<const K: usize>(primes: [u64; K], bits: u32) {
        let ring = Ring::new(512, primes);
        let x = ring.uniform(&mut Stream::new(&[6; 16], 0));
        for (i, found) in ring.rescale_bits(&x, bits).iter().enumerate() {
            let off = (*found as f64 * (-f64::from(bits)).exp2() - exact(&ring, &x, i)).abs();
            // Floats know the quotient to 2^-52 themselves.
            assert!(off.min(1.0 - off) < 0.51 * (-f64::from(bits)).exp2() + 2f64.powi(-51), "{bits} {i}: {off}");
        }
    }

    #[test]
    fn moduli_are_changed_to_the_nearest() {
        [20, 30, 44, 52].into_iter().for_each(|bits| rescaling_to_bits(PRIMES_44, bits));
        [20, 45, 76].into_iter().for_each(|bits| rescaling_to_bits(PRIMES_50, bits));
        let ring = Ring::new(512, PRIMES_50);
        let x = ring.uniform(&mut Stream::new(&[6; 16], 0));
        for modulus in [1 << 45, SLOT_PRIME << 11] {
            for (i, found) in ring.rescale(&x, modulus).iter().enumerate() {
                let off = (*found as f64 - exact(&ring, &x, i) * modulus as f64).abs();
                let off = off.min(modulus as f64 - off);
                // Floats know the quotient to some units themselves where the modulus has 54 bits.
                assert!(off < 0.875 + modulus as f64 / 2f64.powi(51), "{i}: {off}");
            }
        }
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
