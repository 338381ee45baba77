//! Eight words at a time: the vector operations of which all kernels of this crate are made.
//!
//! A kernel is written once, over [`Lanes`], and compiled for every instruction set. All sets give the same bits,
//! because they implement the same operations on integers; tests compare each of them with the portable one.
//! A value of a set's type is the proof that the machine has its instructions, so kernels are safe code.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::avx512::Avx512;
pub(crate) use self::portable::Portable;

/// The 52 bits that multiply-adds work on.
pub(crate) const MASK52: u64 = (1 << 52) - 1;

/// An instruction set that this machine has. A value can only be had from the functions below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(crate) Level);

/// The sets, from the plainest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The fastest set of this machine.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f")
                && has!("avx512dq")
                && has!("avx512vl")
                && has!("avx512bw")
                && has!("avx512ifma")
                && has!("avx512vbmi")
            {
                return Isa(Level::Avx512);
            }
            if has!("avx2") && has!("fma") {
                return Isa(Level::Avx2);
            }
        }
        Isa(Level::Portable)
    }

    /// All sets of this machine, plainest first.
    pub fn available() -> Vec<Isa> {
        let all = [
            Level::Portable,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512,
        ];
        let best = Isa::best();
        let last = all.iter().position(|level| *level == best.0).unwrap_or_default();
        all.into_iter().take(last + 1).map(Isa).collect()
    }

    /// Name for reports: `portable`, `avx2` or `avx512-ifma`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512-ifma",
        }
    }
}

/// The bytes of words, the lowest first, as a stream of words is stored.
#[cfg(target_endian = "little")]
pub(crate) fn bytes_of(words: &[u64]) -> &[u8] {
    // SAFETY: every byte of initialised words is initialised, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// Operations on eight unsigned words of 64 bits.
pub(crate) trait Lanes: Copy {
    /// Eight words.
    type V: Copy;
    /// A modulus below 2^50 as [`Lanes::mul_shoup`] wants it.
    type Modulus: Copy;

    /// Eight times `x`.
    fn splat(self, x: u64) -> Self::V;
    /// The words of `x`.
    fn load(self, x: &[u64; 8]) -> Self::V;
    /// Puts the words into `out`.
    fn store(self, x: Self::V, out: &mut [u64; 8]);
    /// Sums, mod 2^64.
    fn add(self, x: Self::V, y: Self::V) -> Self::V;
    /// Differences, mod 2^64.
    fn sub(self, x: Self::V, y: Self::V) -> Self::V;
    /// Bits that both have.
    fn and(self, x: Self::V, y: Self::V) -> Self::V;
    /// Shifts to lower bits; `by` below 64.
    fn shr(self, x: Self::V, by: u32) -> Self::V;
    /// Shifts to higher bits; `by` below 64.
    fn shl(self, x: Self::V, by: u32) -> Self::V;
    /// `x - m` where that is not negative, `x` elsewhere, for words below 2^63.
    fn cut(self, x: Self::V, m: Self::V) -> Self::V;
    /// `x + a` where `x` is above `bound`, `x` elsewhere, for words below 2^63.
    fn add_if_above(self, x: Self::V, bound: Self::V, a: Self::V) -> Self::V;
    /// `x + a` where `x` is negative in two's complement, `x` elsewhere.
    fn add_if_negative(self, x: Self::V, a: Self::V) -> Self::V;
    /// `acc` plus the low 52 bits of the product of the low 52 bits of `x` and of `y`.
    fn madd_low(self, acc: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `acc` plus the high 52 bits of the product of the low 52 bits of `x` and of `y`.
    fn madd_high(self, acc: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Prepares `p`, below 2^50.
    fn modulus(self, p: u64) -> Self::Modulus;
    /// `x w mod p`, below `2p`, for `x` below 2^52, `w` below `p` and `ratio` = ⌊2^52 w / p⌋.
    fn mul_shoup(self, x: Self::V, w: Self::V, ratio: Self::V, m: Self::Modulus) -> Self::V;
    /// The lower halves of both, and the higher halves of both.
    fn zip4(self, x: Self::V, y: Self::V) -> (Self::V, Self::V);
    /// Of each half, the lower pairs of both and the higher pairs of both.
    fn zip2(self, x: Self::V, y: Self::V) -> (Self::V, Self::V);
    /// Of each pair, the lower words of both and the higher words of both.
    fn zip1(self, x: Self::V, y: Self::V) -> (Self::V, Self::V);
    /// Eight little-endian words of `B` bytes each, 1 to 6.
    fn load_bytes<const B: usize>(self, bytes: &[u8]) -> Self::V;
}

/// Defines functions over [`Lanes`], compiled once per instruction set: `fn name(isa, l; ..)` runs its body with `l` the
/// set that its caller passes as `isa`. What the body calls has to be inlined always.
macro_rules! each_lanes {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident ($isa:ident, $l:ident; $($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($isa: $crate::lanes::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<L: $crate::lanes::Lanes>($l: L, $($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2(l: $crate::lanes::Avx2, $($arg: $ty),*) $(-> $ret)? {
                body(l, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx512ifma,avx512vbmi")]
            #[allow(clippy::too_many_arguments)]
            fn avx512(l: $crate::lanes::Avx512, $($arg: $ty),*) $(-> $ret)? {
                body(l, $($arg),*)
            }
            match $isa.0 {
                // SAFETY: an `Isa` of this level exists only where the processor reports these features.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::Level::Avx512 => unsafe { avx512($crate::lanes::Avx512::proven(), $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::Level::Avx2 => unsafe { avx2($crate::lanes::Avx2::proven(), $($arg),*) },
                $crate::lanes::Level::Portable => body($crate::lanes::Portable, $($arg),*),
            }
        }
    )*};
}
pub(crate) use each_lanes;

#[cfg(test)]
mod tests {
    use super::*;

    /// Words of all sizes up to 2^52, and their extremes.
    fn words(seed: u64) -> [u64; 8] {
        std::array::from_fn(|i| {
            let x = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_mul(2 * i as u64 + 3);
            match (seed + i as u64) % 11 {
                0 => 0,
                1 => MASK52,
                2 => 1,
                k => (x ^ x >> 29) & (MASK52 >> (k - 3)),
            }
        })
    }

    each_lanes! {
        /// Every operation's result after another.
        fn all(isa, l; x: &[u64; 8], y: &[u64; 8], p: u64, bytes: &[u8; 48]) -> Vec<[u64; 8]> {
            let (a, b) = (l.load(x), l.load(y));
            let (pv, m) = (l.splat(p), l.modulus(p));
            let w: [u64; 8] = std::array::from_fn(|i| y[i] % p);
            let ratio: [u64; 8] = std::array::from_fn(|i| ((u128::from(w[i]) << 52) / u128::from(p)) as u64);
            let small: [u64; 8] = std::array::from_fn(|i| (x[i] as i64 % 5 - 2).cast_unsigned());
            let (z4, z2, z1) = (l.zip4(a, b), l.zip2(a, b), l.zip1(a, b));
            let found = [
                l.add(a, b), l.sub(a, b), l.and(a, b), l.shr(a, 7), l.shl(a, 9), l.cut(a, b), l.cut(b, pv),
                l.add_if_above(a, b, pv), l.add_if_negative(l.load(&small), pv), l.madd_low(a, a, b),
                l.madd_high(b, a, b), l.mul_shoup(a, l.load(&w), l.load(&ratio), m), z4.0, z4.1, z2.0, z2.1, z1.0, z1.1,
                l.load_bytes::<1>(&bytes[..8]), l.load_bytes::<2>(&bytes[..16]), l.load_bytes::<3>(&bytes[..24]),
                l.load_bytes::<4>(&bytes[..32]), l.load_bytes::<5>(&bytes[..40]), l.load_bytes::<6>(bytes),
            ];
            let mut out = vec![[0; 8]; found.len()];
            let mut i = 0;
            while i < found.len() {
                l.store(found[i], &mut out[i]);
                i += 1;
            }
            out
        }
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        let primes = [(1 << 50) - 16_383, (1 << 44) - 16_383, (1 << 43) - 16_383, 257, (1 << 50) - 1];
        for seed in 0..2000 {
            let (x, y, p) = (words(seed), words(seed * 7 + 3), primes[seed as usize % 5]);
            let bytes: [u8; 48] = std::array::from_fn(|i| (x[i % 8] >> (i / 8 * 7)) as u8);
            let want = all(Isa(Level::Portable), &x, &y, p, &bytes);
            for isa in Isa::available() {
                let found = all(isa, &x, &y, p, &bytes);
                for (op, (found, want)) in found.iter().zip(&want).enumerate() {
                    // A product by Shoup's method is fixed up to one p.
                    let equal = if op == 11 {
                        (0..8).all(|i| found[i] % p == want[i] % p && found[i] < 2 * p)
                    } else {
                        found == want
                    };
                    assert!(equal, "{} seed {seed} operation {op}: {found:?} {want:?}", isa.name());
                }
            }
        }
    }

    #[test]
    fn portable_operations_mean_what_they_say() {
        let l = Portable;
        let (x, y) = (words(5), words(6));
        for i in 0..8 {
            let product = u128::from(x[i]) * u128::from(y[i]);
            assert_eq!(l.madd_low(x, x, y)[i], x[i] + (product as u64 & MASK52));
            assert_eq!(l.madd_high(x, x, y)[i], x[i] + (product >> 52) as u64);
            let p = (1 << 50) - 27;
            let w = y[i] % p;
            let ratio = ((u128::from(w) << 52) / u128::from(p)) as u64;
            let r = l.mul_shoup(x, l.splat(w), l.splat(ratio), l.modulus(p))[i];
            assert!(r < 2 * p && u128::from(r % p) == u128::from(x[i]) * u128::from(w) % u128::from(p));
        }
        let count: [u64; 8] = std::array::from_fn(|i| i as u64);
        let more = count.map(|i| i + 8);
        assert_eq!(l.zip4(count, more).0, [0, 1, 2, 3, 8, 9, 10, 11]);
        assert_eq!(l.zip2(count, more).0, [0, 1, 8, 9, 4, 5, 12, 13]);
        assert_eq!(l.zip1(count, more).1, [1, 9, 3, 11, 5, 13, 7, 15]);
    }
}
