//! Products of polynomials mod a power of two with ternary ones, exact: in two or three primes of 50 bits.

use crate::arith::{inverse_mod, pow_mod, ratio};
use crate::bits::{Unpacker, WIDEST, unpack};
use crate::lanes::each_lanes;
use crate::ntt::Ntt;
use crate::params::PRIMES_50;
use crate::random::{Secret, Stream};

/// Transforms mod the first primes of [`PRIMES_50`], and the constants that join residues.
pub(crate) struct Exact {
    transforms: Vec<Ntt>,
    joins: Joins,
}

/// Constants of Garner's mixed radix.
struct Joins {
    /// 1/p0 mod p1 and its ratio.
    first: [u64; 2],
    /// 1/p0 mod p2 and its ratio.
    second: [u64; 2],
    /// 1/p1 mod p2 and its ratio.
    third: [u64; 2],
}

/// A ternary polynomial's transforms, prepared for products. Wiped on drop.
pub(crate) struct Ternary(Vec<Secret>);

/// A polynomial's transforms.
pub(crate) struct Transformed(Vec<Secret>);

/// A ternary polynomial with at most three quarters of its coefficients non-zero, which the bounds of [`Exact::new`]
/// assume. A uniform one has more with a chance below 2^-80; then another is drawn.
pub(crate) fn draw_ternary(stream: &mut Stream, n: usize) -> Secret {
    let mut small = Secret::zeros(n);
    loop {
        stream.ternary(&mut small);
        if small.iter().map(|x| x & 1).sum::<u64>() <= n as u64 / 4 * 3 {
            return small;
        }
    }
}

impl Exact {
    /// For words mod 2^bits and polynomials of `n` coefficients: a product's coefficients are below
    /// 2^(bits-1) · ¾ n in absolute value, and half the product of the primes has to be above that.
    ///
    /// # Panics
    /// When three primes do not suffice.
    pub(crate) fn new(n: usize, bits: u32) -> Exact {
        let [two, three] = [99.0, 149.0].map(|limit| f64::from(bits - 1) + (0.75 * n as f64).log2() < limit - 0.01);
        assert!(three, "the product of three primes holds every coefficient");
        let [p0, p1, p2] = PRIMES_50;
        let constant = |x: u64, p: u64| [inverse_mod(x % p, p), ratio(inverse_mod(x % p, p), p)];
        Exact {
            transforms: PRIMES_50.iter().take(if two { 2 } else { 3 }).map(|p| Ntt::new(n, *p)).collect(),
            joins: Joins { first: constant(p0, p1), second: constant(p0, p2), third: constant(p1, p2) },
        }
    }

    /// Prepares a ternary polynomial.
    pub(crate) fn ternary(&self, small: &[u64]) -> Ternary {
        let each = |t: &Ntt| {
            let mut values = Secret(small.to_vec());
            lift(t.isa(), t.prime(), values.as_chunks_mut().0);
            t.forward(&mut values);
            t.prepare(&mut values);
            values
        };
        Ternary(self.transforms.iter().map(each).collect())
    }

    /// Transforms words mod 2^bits, taken as the numbers nearest to zero.
    pub(crate) fn transform(&self, words: &[u128], bits: u32) -> Transformed {
        let n = words.len();
        let (mut low, mut middle, mut high) = (Secret::zeros(n), Secret::zeros(n), Secret::zeros(n));
        for (i, word) in words.iter().enumerate() {
            // The sign becomes that of the highest part.
            let word = word.cast_signed() << (128 - bits) >> (128 - bits);
            low[i] = word as u64 & MASK48;
            middle[i] = (word >> 48) as u64 & MASK48;
            high[i] = (word >> 96) as u64;
        }
        let parts = [low.as_chunks().0, middle.as_chunks().0, high.as_chunks().0];
        let each = |t: &Ntt| {
            let mut values = Secret::zeros(n);
            residues(t.isa(), t.prime(), parts, values.as_chunks_mut().0);
            t.forward(&mut values);
            values
        };
        Transformed(self.transforms.iter().map(each).collect())
    }

    /// Transforms words below 2^60, without a sign.
    pub(crate) fn transform_words(&self, words: &[u64]) -> Transformed {
        let each = |t: &Ntt| {
            let mut values = Secret(words.to_vec());
            reduce_words(t.isa(), t.prime(), values.as_chunks_mut().0);
            t.forward(&mut values);
            values
        };
        Transformed(self.transforms.iter().map(each).collect())
    }

    /// Transforms `n` packed words mod 2^bits, up to a multiple of that: without a sign where they are short.
    pub(crate) fn transform_packed(&self, bytes: &[u8], bits: u32, n: usize) -> Transformed {
        if bits <= WIDEST {
            let mut words = vec![0; n];
            unpack(bytes, bits, &mut words);
            return self.transform_words(&words);
        }
        let mut unpacker = Unpacker::new(bytes);
        let words: Vec<u128> = (0..n).map(|_| unpacker.pull(bits)).collect();
        self.transform(&words, bits)
    }

    /// The first prime, and a product mod two primes plus `offset` as its residue mod that prime and what is
    /// left, divided by the prime: the sum is `residue + prime · rest`, if it is not negative and below their product.
    pub(crate) fn product_digits(&self, x: &Transformed, s: &Ternary, offset: u128) -> (u64, [Secret; 2]) {
        let mut digits: [Secret; 2] = std::array::from_fn(|k| Secret::zeros(x.0[k].len()));
        for (((t, x), s), r) in self.transforms.iter().zip(&x.0).zip(&s.0).zip(&mut digits) {
            t.dot([x], [s], r);
            t.inverse(r);
            let p = t.prime();
            add_constant(t.isa(), p, (offset % u128::from(p)) as u64, r.as_chunks_mut().0);
        }
        let [r0, r1] = &mut digits;
        second_digits(self.transforms[0].isa(), &self.joins, r0.as_chunks().0, r1.as_chunks_mut().0);
        (PRIMES_50[0], digits)
    }

    /// Sets `out` to the product mod 2^128.
    pub(crate) fn product(&self, x: &Transformed, s: &Ternary, out: &mut [u128]) {
        let n = out.len();
        let mut residues: [Secret; 3] = std::array::from_fn(|_| Secret::zeros(n));
        for (((t, x), s), r) in self.transforms.iter().zip(&x.0).zip(&s.0).zip(&mut residues) {
            t.dot([x], [s], r);
            t.inverse(r);
        }
        let isa = self.transforms[0].isa();
        let [r0, r1, r2] = &mut residues;
        let [p0, p1, p2] = PRIMES_50;
        second_digits(isa, &self.joins, r0.as_chunks().0, r1.as_chunks_mut().0);
        if self.transforms.len() == 2 {
            for ((out, r0), k) in out.iter_mut().zip(r0.iter()).zip(r1.iter()) {
                let k = k.cast_signed() - (p1.cast_signed() & above(*k, p1 / 2));
                *out = (i128::from(r0.cast_signed()) + i128::from(p0.cast_signed()) * i128::from(k)).cast_unsigned();
            }
            return;
        }
        third_digits(isa, &self.joins, r0.as_chunks().0, r1.as_chunks().0, r2.as_chunks_mut().0);
        let both = u128::from(p0) * u128::from(p1);
        for (((out, r0), k1), k2) in out.iter_mut().zip(r0.iter()).zip(r1.iter()).zip(r2.iter()) {
            let k2 = i128::from(k2.cast_signed() - (p2.cast_signed() & above(*k2, p2 / 2))).cast_unsigned();
            let low = u128::from(*r0) + u128::from(p0) * u128::from(*k1);
            *out = low.wrapping_add(both.wrapping_mul(k2));
        }
    }
}

const MASK48: u64 = (1 << 48) - 1;

/// All bits where `x` is above `bound`, both below 2^63.
#[inline(always)]
fn above(x: u64, bound: u64) -> i64 {
    bound.wrapping_sub(x).cast_signed() >> 63
}

each_lanes! {
    /// Small numbers in two's complement to residues.
    pub(crate) fn lift(isa, l; p: u64, a: &mut [[u64; 8]]) {
        let p = l.splat(p);
        for x in a.iter_mut() {
            l.store(l.add_if_negative(l.load(x), p), x);
        }
    }

    /// `low + 2^48 middle + 2^96 high mod p`, below `4p`; `high` is a number of at most 33 bits with its sign.
    fn residues(isa, l; p: u64, parts: [&[[u64; 8]]; 3], out: &mut [[u64; 8]]) {
        let (m, p2) = (l.modulus(p), l.splat(2 * p));
        let power = |e: u64| pow_mod(2, e, p);
        let (middle, middle_ratio) = (l.splat(power(48)), l.splat(ratio(power(48), p)));
        let (high, high_ratio) = (l.splat(power(96)), l.splat(ratio(power(96), p)));
        let pv = l.splat(p);
        for (i, out) in out.iter_mut().enumerate() {
            let top = l.add_if_negative(l.load(&parts[2][i]), pv);
            let sum = l.add(l.mul_shoup(l.load(&parts[1][i]), middle, middle_ratio, m), l.load(&parts[0][i]));
            l.store(l.add(l.cut(sum, p2), l.mul_shoup(top, high, high_ratio, m)), out);
        }
    }

    /// Words below 2^60 mod `p`, below `4p`.
    fn reduce_words(isa, l; p: u64, words: &mut [[u64; 8]]) {
        let (m, power, low) = (l.modulus(p), (1 << 30) % p, l.splat((1 << 30) - 1));
        let (power, power_ratio) = (l.splat(power), l.splat(ratio(power, p)));
        for word in words.iter_mut() {
            let x = l.load(word);
            let high = l.mul_shoup(l.shr(x, 30), power, power_ratio, m);
            l.store(l.add(high, l.and(x, low)), word);
        }
    }

    /// `x + constant mod p`, below `p`, for `x` and the constant below `p`.
    fn add_constant(isa, l; p: u64, constant: u64, x: &mut [[u64; 8]]) {
        let (p, constant) = (l.splat(p), l.splat(constant));
        for x in x.iter_mut() {
            l.store(l.cut(l.add(l.load(x), constant), p), x);
        }
    }

    /// (y - x)/p0 mod p1 in place of y, for residues x mod p0 and y mod p1.
    fn second_digits(isa, l; joins: &Joins, x: &[[u64; 8]], y: &mut [[u64; 8]]) {
        let (m, p) = (l.modulus(PRIMES_50[1]), l.splat(PRIMES_50[1]));
        let (factor, factor_ratio) = (l.splat(joins.first[0]), l.splat(joins.first[1]));
        for (y, x) in y.iter_mut().zip(x) {
            let difference = l.add(l.sub(l.load(y), l.cut(l.load(x), p)), p);
            l.store(l.cut(l.mul_shoup(difference, factor, factor_ratio, m), p), y);
        }
    }

    /// ((z - x)/p0 - k)/p1 mod p2 in place of z, k the second digits.
    fn third_digits(isa, l; joins: &Joins, x: &[[u64; 8]], k: &[[u64; 8]], z: &mut [[u64; 8]]) {
        let (m, p) = (l.modulus(PRIMES_50[2]), l.splat(PRIMES_50[2]));
        let (second, second_ratio) = (l.splat(joins.second[0]), l.splat(joins.second[1]));
        let (third, third_ratio) = (l.splat(joins.third[0]), l.splat(joins.third[1]));
        for ((z, x), k) in z.iter_mut().zip(x).zip(k) {
            let difference = l.add(l.sub(l.load(z), l.cut(l.load(x), p)), p);
            let first = l.cut(l.mul_shoup(difference, second, second_ratio, m), p);
            let difference = l.add(l.sub(first, l.cut(l.load(k), p)), p);
            l.store(l.cut(l.mul_shoup(difference, third, third_ratio, m), p), z);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product mod X^n + 1 and 2^128, term by term, of numbers with signs.
    fn schoolbook(a: &[i128], s: &[u64]) -> Vec<u128> {
        let n = a.len();
        let mut out = vec![0i128; n];
        for (i, a) in a.iter().enumerate() {
            for (j, s) in s.iter().enumerate() {
                let term = a.wrapping_mul(i128::from(s.cast_signed()));
                let at = &mut out[(i + j) % n];
                *at = if i + j < n { at.wrapping_add(term) } else { at.wrapping_sub(term) };
            }
        }
        out.into_iter().map(i128::cast_unsigned).collect()
    }

    #[test]
    fn products_are_exact_for_every_width() {
        let n = 64;
        for (bits, primes) in [(52, 2), (64, 2), (72, 2), (80, 2), (88, 2), (96, 3), (104, 3), (120, 3), (128, 3)] {
            let exact = Exact::new(if bits < 88 { 8192 } else { 4096 }, bits);
            assert_eq!(exact.transforms.len(), primes, "{bits}");
            let small =
                Exact { transforms: PRIMES_50[..primes].iter().map(|p| Ntt::new(n, *p)).collect(), joins: exact.joins };
            let mut stream = Stream::new(&[7; 16], u64::from(bits));
            let mut words = vec![0; 2 * n];
            stream.words(&mut words);
            let mut a: Vec<u128> = words.chunks(2).map(|w| u128::from(w[0]) | u128::from(w[1]) << 64).collect();
            // The extremes, too.
            (a[0], a[1], a[2]) = (1 << (bits - 1), (1 << (bits - 1)) - 1, u128::MAX);
            let centred: Vec<i128> = a.iter().map(|a| a.cast_signed() << (128 - bits) >> (128 - bits)).collect();
            let mut s = vec![0; n];
            stream.ternary(&mut s);
            let (ternary, transformed) = (small.ternary(&s), small.transform(&a, bits));
            let mut out = vec![0; n];
            small.product(&transformed, &ternary, &mut out);
            assert!(out == schoolbook(&centred, &s), "{bits}");
        }
    }

    #[test]
    fn the_largest_product_is_exact_at_full_length() {
        let (n, bits) = (4096, 88);
        let exact = Exact::new(n, bits);
        // Three quarters of ones, and the most negative number everywhere: the largest coefficient there is.
        let s: Vec<u64> = (0..n).map(|i| u64::from(i % 4 != 3)).collect();
        let a = vec![1u128 << 87; n];
        let mut out = vec![0; n];
        exact.product(&exact.transform(&a, bits), &exact.ternary(&s), &mut out);
        let want = -((1i128 << 87) * 3072);
        assert_eq!(out[n - 1].cast_signed(), want);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(std::panic::catch_unwind(|| Exact::new(1 << 23, 128)).is_err());
        let mut stream = Stream::new(&[1; 16], 0);
        assert!(draw_ternary(&mut stream, 4096).iter().filter(|x| **x != 0).count() <= 3072);
    }
}
