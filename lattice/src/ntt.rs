//! Number-theoretic transforms: products in Z_p[X]/(X^n + 1) as products of values.
//!
//! With ψ a root of X^n + 1 mod p, the transform of `a` holds `a(ψ^(2 r(j) + 1))`, `r` reversing the bits of its
//! argument; `j` is the position, but within every sixteen values those of even `j` come first. All instruction sets
//! keep to that order. Forward steps are Cooley and Tukey's, backward ones Gentleman and Sande's, with lazily reduced
//! values (Harvey 2014) and factors by Shoup's method; ψ is merged into the factors (Longa, Naehrig 2016).

use crate::arith::{inverse_mod, inverse_mod_2_52, mul_mod, pow_mod, ratio};
use crate::lanes::{Isa, Lanes, each_lanes};

/// The transform of one length and prime.
pub struct Ntt {
    n: usize,
    p: u64,
    isa: Isa,
    forward: Factors,
    backward: Factors,
    /// 1/n and its ratio.
    inverse_n: [u64; 2],
    /// 1/p mod 2^52.
    inverse_p: u64,
    /// 2^52 mod p and its ratio.
    montgomery: [u64; 2],
}

/// Powers of a root in the order of use, with their ratios.
struct Factors {
    /// Factor `m + i` belongs to group `i` of the level of `m` groups.
    all: Vec<[u64; 2]>,
    /// For every sixteen values the factors of the levels of stride 4, 2 and 1, lane by lane, and their ratios.
    last: Vec<[[u64; 8]; 6]>,
}

impl Factors {
    fn new(n: usize, p: u64, root: u64) -> Factors {
        let bits = n.trailing_zeros();
        let mut powers = vec![1; n];
        for i in 1..n {
            powers[i] = mul_mod(powers[i - 1], root, p);
        }
        let at = |i: usize| powers[i.reverse_bits() >> (usize::BITS - bits)];
        let all = (0..n).map(|i| [at(i), ratio(at(i), p)]).collect();
        // Positions of the first operands' lanes among sixteen.
        let lanes: [[usize; 8]; 3] =
            [[0, 1, 2, 3, 8, 9, 10, 11], [0, 1, 4, 5, 8, 9, 12, 13], [0, 2, 4, 6, 8, 10, 12, 14]];
        let block = |b: usize| -> [[u64; 8]; 6] {
            std::array::from_fn(|row| {
                let (level, stride) = (row / 2, 4 >> (row / 2));
                std::array::from_fn(|lane| {
                    let factor = at(n / (2 * stride) + (16 * b + lanes[level][lane]) / (2 * stride));
                    if row % 2 == 0 { factor } else { ratio(factor, p) }
                })
            })
        };
        Factors { all, last: (0..n / 16).map(block).collect() }
    }
}

impl Ntt {
    /// The transform of `n` values, a power of two of at least 16, mod the prime `p`, below 2^50 and 1 mod 2n.
    ///
    /// # Panics
    /// When `n` or `p` is not such a number.
    pub fn new(n: usize, p: u64) -> Ntt {
        Ntt::new_at(Isa::best(), n, p)
    }

    /// The same on a given instruction set; all give the same values.
    ///
    /// # Panics
    /// As [`Ntt::new`].
    pub fn new_at(isa: Isa, n: usize, p: u64) -> Ntt {
        assert!(n.is_power_of_two() && n >= 16, "a transform has a power of two of values, at least 16");
        let order = 2 * n as u64;
        assert!(p < 1 << 50 && p % order == 1, "a transform's prime is below 2^50 and 1 mod 2n");
        let root = (2..p).map(|x| pow_mod(x, (p - 1) / order, p)).find(|root| pow_mod(*root, n as u64, p) == p - 1);
        let root = root.unwrap_or_default();
        let inverse_n = inverse_mod(n as u64, p);
        let montgomery = pow_mod(2, 52, p);
        Ntt {
            n,
            p,
            isa,
            forward: Factors::new(n, p, root),
            backward: Factors::new(n, p, inverse_mod(root, p)),
            inverse_n: [inverse_n, ratio(inverse_n, p)],
            inverse_p: inverse_mod_2_52(p),
            montgomery: [montgomery, ratio(montgomery, p)],
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no values: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The prime.
    pub fn prime(&self) -> u64 {
        self.p
    }

    /// The instruction set that it runs on.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Coefficients, each below `4p`, to values below `p`.
    ///
    /// # Panics
    /// When `a` has another length.
    pub fn forward(&self, a: &mut [u64]) {
        assert_eq!(a.len(), self.n, "as many coefficients as the transform has");
        forward(self.isa, self, a.as_chunks_mut().0);
    }

    /// Values, each below `2p`, to coefficients below `p`.
    ///
    /// # Panics
    /// When `a` has another length.
    pub fn inverse(&self, a: &mut [u64]) {
        assert_eq!(a.len(), self.n, "as many values as the transform has");
        inverse(self.isa, self, a.as_chunks_mut().0);
    }

    /// Makes values, each below 2^52, an operand of [`Ntt::dot`]: multiplies them by 2^52 mod p.
    ///
    /// # Panics
    /// When `a` has another length.
    pub fn prepare(&self, a: &mut [u64]) {
        assert_eq!(a.len(), self.n, "as many values as the transform has");
        scale(self.isa, self.p, self.montgomery, a.as_chunks_mut().0);
    }

    /// Sets `out` to the sums of the products of values `x`, each below 2^50, with prepared ones; below `2p`.
    ///
    /// # Panics
    /// When a length is another, or there are more than four products.
    pub fn dot<const T: usize>(&self, x: [&[u64]; T], prepared: [&[u64]; T], out: &mut [u64]) {
        assert!(T <= 4, "at most four products are summed");
        assert!(x.iter().chain(&prepared).all(|a| a.len() == self.n) && out.len() == self.n, "equal lengths");
        let (x, y) = (x.map(|a| a.as_chunks().0), prepared.map(|a| a.as_chunks().0));
        let out = out.as_chunks_mut().0;
        match T {
            1 => dot1(self.isa, self, x[0], y[0], out),
            2 => dot2(self.isa, self, [x[0], x[1]], [y[0], y[1]], out),
            3 => dot3(self.isa, self, [x[0], x[1], x[2]], [y[0], y[1], y[2]], out),
            _ => dot4(self.isa, self, [x[0], x[1], x[2], x[3]], [y[0], y[1], y[2], y[3]], out),
        }
    }
}

/// The first half step: `x` below `4p` and `y` below 2^52 become `x + w y` and `x - w y`, below `4p`.
#[inline(always)]
fn split<L: Lanes>(l: L, m: (L::Modulus, L::V), x: L::V, y: L::V, w: [L::V; 2]) -> (L::V, L::V) {
    let x = l.cut(x, m.1);
    let y = l.mul_shoup(y, w[0], w[1], m.0);
    (l.add(x, y), l.add(l.sub(x, y), m.1))
}

/// The way back: `x` and `y` below `2p` become `x + y` and `w (x - y)`, below `2p`.
#[inline(always)]
fn join<L: Lanes>(l: L, m: (L::Modulus, L::V), x: L::V, y: L::V, w: [L::V; 2]) -> (L::V, L::V) {
    (l.cut(l.add(x, y), m.1), l.mul_shoup(l.add(l.sub(x, y), m.1), w[0], w[1], m.0))
}

#[inline(always)]
fn both<L: Lanes>(l: L, w: [u64; 2]) -> [L::V; 2] {
    [l.splat(w[0]), l.splat(w[1])]
}

each_lanes! {
    fn forward(isa, l; t: &Ntt, a: &mut [[u64; 8]]) {
        let m = (l.modulus(t.p), l.splat(2 * t.p));
        let p = l.splat(t.p);
        let all = &t.forward.all;
        let (mut groups, mut stride) = (1, t.n / 2);
        // Two levels at a time while both strides are whole vectors.
        while stride >= 16 {
            let quarter = stride / 16;
            for (i, group) in a.chunks_exact_mut(4 * quarter).enumerate() {
                let first = both(l, all[groups + i]);
                let second = [both(l, all[2 * (groups + i)]), both(l, all[2 * (groups + i) + 1])];
                let (x, y) = group.split_at_mut(2 * quarter);
                let ((x0, x1), (x2, x3)) = (x.split_at_mut(quarter), y.split_at_mut(quarter));
                for (((x0, x1), x2), x3) in x0.iter_mut().zip(x1).zip(x2).zip(x3) {
                    let (a0, a2) = split(l, m, l.load(x0), l.load(x2), first);
                    let (a1, a3) = split(l, m, l.load(x1), l.load(x3), first);
                    let (b0, b1) = split(l, m, a0, a1, second[0]);
                    let (b2, b3) = split(l, m, a2, a3, second[1]);
                    l.store(b0, x0);
                    l.store(b1, x1);
                    l.store(b2, x2);
                    l.store(b3, x3);
                }
            }
            groups *= 4;
            stride /= 4;
        }
        let eight = stride == 8;
        for (i, (pair, w)) in a.as_chunks_mut::<2>().0.iter_mut().zip(&t.forward.last).enumerate() {
            let (mut x, mut y) = (l.load(&pair[0]), l.load(&pair[1]));
            if eight {
                (x, y) = split(l, m, x, y, both(l, all[groups + i]));
            }
            (x, y) = l.zip4(x, y);
            (x, y) = split(l, m, x, y, [l.load(&w[0]), l.load(&w[1])]);
            (x, y) = l.zip2(x, y);
            (x, y) = split(l, m, x, y, [l.load(&w[2]), l.load(&w[3])]);
            (x, y) = l.zip1(x, y);
            (x, y) = split(l, m, x, y, [l.load(&w[4]), l.load(&w[5])]);
            l.store(l.cut(l.cut(x, m.1), p), &mut pair[0]);
            l.store(l.cut(l.cut(y, m.1), p), &mut pair[1]);
        }
    }

    fn inverse(isa, l; t: &Ntt, a: &mut [[u64; 8]]) {
        let m = (l.modulus(t.p), l.splat(2 * t.p));
        let p = l.splat(t.p);
        let all = &t.backward.all;
        let (mut groups, mut stride) = (t.n / 16, 8);
        let eight = t.n.trailing_zeros().is_multiple_of(2);
        for (i, (pair, w)) in a.as_chunks_mut::<2>().0.iter_mut().zip(&t.backward.last).enumerate() {
            let (mut x, mut y) = (l.load(&pair[0]), l.load(&pair[1]));
            (x, y) = join(l, m, x, y, [l.load(&w[4]), l.load(&w[5])]);
            (x, y) = l.zip1(x, y);
            (x, y) = join(l, m, x, y, [l.load(&w[2]), l.load(&w[3])]);
            (x, y) = l.zip2(x, y);
            (x, y) = join(l, m, x, y, [l.load(&w[0]), l.load(&w[1])]);
            (x, y) = l.zip4(x, y);
            if eight {
                (x, y) = join(l, m, x, y, both(l, all[groups + i]));
            }
            l.store(x, &mut pair[0]);
            l.store(y, &mut pair[1]);
        }
        if eight {
            groups /= 2;
            stride *= 2;
        }
        while groups > 1 {
            let (half, quarter) = (groups / 2, stride / 8);
            for (i, group) in a.chunks_exact_mut(4 * quarter).enumerate() {
                let first = [both(l, all[2 * (half + i)]), both(l, all[2 * (half + i) + 1])];
                let second = both(l, all[half + i]);
                let (x, y) = group.split_at_mut(2 * quarter);
                let ((x0, x1), (x2, x3)) = (x.split_at_mut(quarter), y.split_at_mut(quarter));
                for (((x0, x1), x2), x3) in x0.iter_mut().zip(x1).zip(x2).zip(x3) {
                    let (a0, a1) = join(l, m, l.load(x0), l.load(x1), first[0]);
                    let (a2, a3) = join(l, m, l.load(x2), l.load(x3), first[1]);
                    let (b0, b2) = join(l, m, a0, a2, second);
                    let (b1, b3) = join(l, m, a1, a3, second);
                    l.store(b0, x0);
                    l.store(b1, x1);
                    l.store(b2, x2);
                    l.store(b3, x3);
                }
            }
            groups /= 4;
            stride *= 4;
        }
        let inverse_n = both(l, t.inverse_n);
        for x in a.iter_mut() {
            l.store(l.cut(l.mul_shoup(l.load(x), inverse_n[0], inverse_n[1], m.0), p), x);
        }
    }

    /// Multiplies words below 2^52 by a constant with its ratio; below `p`.
    pub(crate) fn scale(isa, l; p: u64, factor: [u64; 2], a: &mut [[u64; 8]]) {
        let (m, pv) = (l.modulus(p), l.splat(p));
        let factor = both(l, factor);
        for x in a.iter_mut() {
            l.store(l.cut(l.mul_shoup(l.load(x), factor[0], factor[1], m), pv), x);
        }
    }

    fn dot1(isa, l; t: &Ntt, x: &[[u64; 8]], y: &[[u64; 8]], out: &mut [[u64; 8]]) {
        let c = (l.splat(t.p), l.splat(t.inverse_p));
        for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
            let (x, y, zero) = (l.load(x), l.load(y), l.splat(0));
            l.store(reduce(l, c, l.madd_low(zero, x, y), l.madd_high(zero, x, y)), out);
        }
    }

    fn dot2(isa, l; t: &Ntt, x: [&[[u64; 8]]; 2], y: [&[[u64; 8]]; 2], out: &mut [[u64; 8]]) {
        dot_many(l, t, x, y, out);
    }

    fn dot3(isa, l; t: &Ntt, x: [&[[u64; 8]]; 3], y: [&[[u64; 8]]; 3], out: &mut [[u64; 8]]) {
        dot_many(l, t, x, y, out);
    }

    fn dot4(isa, l; t: &Ntt, x: [&[[u64; 8]]; 4], y: [&[[u64; 8]]; 4], out: &mut [[u64; 8]]) {
        dot_many(l, t, x, y, out);
    }
}

#[inline(always)]
fn dot_many<L: Lanes, const T: usize>(l: L, t: &Ntt, x: [&[[u64; 8]]; T], y: [&[[u64; 8]]; T], out: &mut [[u64; 8]]) {
    let c = (l.splat(t.p), l.splat(t.inverse_p));
    for (i, out) in out.iter_mut().enumerate() {
        let (mut low, mut high) = (l.splat(0), l.splat(0));
        let mut k = 0;
        while k < T {
            let (x, y) = (l.load(&x[k][i]), l.load(&y[k][i]));
            low = l.madd_low(low, x, y);
            high = l.madd_high(high, x, y);
            k += 1;
        }
        l.store(reduce(l, c, low, high), out);
    }
}

/// `(high 2^52 + low) / 2^52 mod p`, below `2p`, for sums of at most four products of words below 2^50 and `p`
/// (Montgomery 1985): subtracting a multiple of `p` with equal low bits leaves the high ones.
#[inline(always)]
fn reduce<L: Lanes>(l: L, (p, inverse_p): (L::V, L::V), low: L::V, high: L::V) -> L::V {
    let high = l.add(high, l.shr(low, 52));
    let multiple = l.madd_low(l.splat(0), low, inverse_p);
    // The first is at most p, since four products have 102 bits.
    l.sub(l.add(high, p), l.madd_high(l.splat(0), multiple, p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{PRIMES_44, PRIMES_50, SLOT_PRIME};
    use crate::random::Stream;

    fn random(n: usize, p: u64, seed: u8) -> Vec<u64> {
        let mut out = vec![0; n];
        Stream::new(&[seed; 16], 0).uniform(p, &mut out);
        out
    }

    /// The product mod X^n + 1 and p, term by term.
    fn schoolbook(a: &[u64], b: &[u64], p: u64) -> Vec<u64> {
        let n = a.len();
        let mut out = vec![0; n];
        for i in 0..n {
            for j in 0..n {
                let term = mul_mod(a[i], b[j], p);
                let at = &mut out[(i + j) % n];
                *at = (*at + if i + j < n { term } else { p - term }) % p;
            }
        }
        out
    }

    #[test]
    fn products_are_those_of_the_schoolbook() {
        for n in [16, 32, 64, 128, 256, 512] {
            for p in [PRIMES_44[0], PRIMES_50[2], SLOT_PRIME] {
                let (a, b) = (random(n, p, 1), random(n, p, 2));
                let want = schoolbook(&a, &b, p);
                for isa in Isa::available() {
                    let t = Ntt::new_at(isa, n, p);
                    let (mut x, mut y, mut z) = (a.clone(), b.clone(), vec![0; n]);
                    t.forward(&mut x);
                    t.forward(&mut y);
                    t.prepare(&mut y);
                    t.dot([&x], [&y], &mut z);
                    t.inverse(&mut z);
                    assert!(z == want, "{} {n} {p}", isa.name());
                }
            }
        }
    }

    #[test]
    fn values_stand_where_the_order_says() {
        let (n, p) = (64, PRIMES_50[0]);
        let t = Ntt::new(n, p);
        let a = random(n, p, 3);
        let root = t.forward.all[n / 2][0];
        let psi = (2..p).map(|x| pow_mod(x, (p - 1) / 128, p)).find(|x| pow_mod(*x, 64, p) == p - 1);
        let psi = psi.expect("there is a root");
        assert_eq!(root, psi);
        let mut values = a.clone();
        t.forward(&mut values);
        for (at, value) in values.iter().enumerate() {
            let j = at / 16 * 16 + 2 * (at % 8) + at % 16 / 8;
            let x = pow_mod(psi, 2 * (j.reverse_bits() >> (usize::BITS - 6)) as u64 + 1, p);
            let want = a.iter().rev().fold(0, |sum, c| (mul_mod(sum, x, p) + c) % p);
            assert_eq!(*value, want, "position {at}");
        }
    }

    #[test]
    fn all_instruction_sets_agree_at_full_length_and_at_the_edges_of_their_ranges() {
        for n in [4096, 8192] {
            for p in PRIMES_44.into_iter().chain(PRIMES_50).chain([SLOT_PRIME]) {
                let sets: Vec<Ntt> = Isa::available().into_iter().map(|isa| Ntt::new_at(isa, n, p)).collect();
                let a = random(n, p, 4);
                let edges: Vec<u64> = (0..n).map(|i| if i % 3 == 0 { 4 * p - 1 } else { a[i] }).collect();
                let low: Vec<u64> = (0..n).map(|i| if i % 5 == 0 { 2 * p - 1 } else { a[i] }).collect();
                let run = |t: &Ntt| {
                    let (mut x, mut y, mut z, mut back) = (edges.clone(), low.clone(), vec![0; n], low.clone());
                    t.forward(&mut x);
                    t.inverse(&mut y);
                    t.prepare(&mut back);
                    t.dot([&x, &a, &a, &x], [&back, &back, &y, &y], &mut z);
                    assert!(x.iter().chain(&y).all(|v| *v < p) && z.iter().all(|v| *v < 2 * p));
                    z.iter_mut().for_each(|v| *v %= p);
                    let mut again = x.clone();
                    t.inverse(&mut again);
                    assert!(again.iter().zip(&edges).all(|(found, want)| *found == want % p), "there and back");
                    (x, y, z)
                };
                let want = run(&sets[0]);
                assert!(sets.iter().all(|t| run(t) == want), "{n} {p}");
                let sum = |i: usize| {
                    let (x, b, y) = (want.0[i], low[i] % p, want.1[i]);
                    let r = inverse_mod(pow_mod(2, 52, p), p);
                    let plain = mul_mod(x, b, p) + mul_mod(a[i], b, p);
                    (plain + mul_mod(mul_mod(a[i], y, p) + mul_mod(x, y, p), r, p)) % p
                };
                assert!((0..n).all(|i| want.2[i] == sum(i)), "sums of products {n} {p}");
            }
        }
    }

    #[test]
    fn wrong_lengths_and_primes_are_refused() {
        use std::panic::catch_unwind;
        assert!(catch_unwind(|| Ntt::new(8, 17)).is_err());
        assert!(catch_unwind(|| Ntt::new(16, 37)).is_err());
        let t = Ntt::new(16, PRIMES_50[0]);
        assert!(catch_unwind(|| t.forward(&mut [0; 32])).is_err());
        assert!(catch_unwind(|| t.dot([&[0; 16]; 5], [&[0; 16]; 5], &mut [0; 16])).is_err());
    }
}
