//! The operations on two vectors of 256 bits.
//!
//! Without wide integer products, a product mod `p` is found by floating-point numbers whose steps are exact: the
//! quotient is rounded to a whole number by a sum, and the product's error comes from a fused multiply-add
//! (Dekker 1971; van der Hoeven, Lecerf, Quintin, arXiv 1407.3383). Other products are of pieces of 26 bits.

use std::arch::x86_64::*;

use super::{Lanes, MASK52, portable};

/// The proof that this machine has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof.
    ///
    /// # Safety
    /// The machine must have the instructions.
    #[inline(always)]
    pub(crate) unsafe fn proven() -> Avx2 {
        Avx2(())
    }

    #[inline(always)]
    fn set(self, x: u64) -> __m256i {
        unsafe { _mm256_set1_epi64x(x.cast_signed()) }
    }

    /// Four words below 2^52 as numbers: they become the mantissa of a number between 2^52 and 2^53.
    #[inline(always)]
    fn number(self, x: __m256i) -> __m256d {
        unsafe {
            let bits = _mm256_or_si256(x, self.set(TWO_52.to_bits()));
            _mm256_sub_pd(_mm256_castsi256_pd(bits), _mm256_set1_pd(TWO_52))
        }
    }

    /// Four words below 2^52, divided by 2^52, as numbers.
    #[inline(always)]
    fn fraction(self, x: __m256i) -> __m256d {
        unsafe {
            let bits = _mm256_or_si256(x, self.set(1f64.to_bits()));
            _mm256_sub_pd(_mm256_castsi256_pd(bits), _mm256_set1_pd(1.0))
        }
    }

    #[inline(always)]
    fn mul4(self, x: __m256i, w: __m256i, ratio: __m256i, p: __m256d) -> __m256i {
        unsafe {
            let (x, w, ratio) = (self.number(x), self.number(w), self.fraction(ratio));
            // Adding 2^52 rounds to a whole number, once: the quotient is off by less than 3/2.
            let rounder = _mm256_set1_pd(TWO_52);
            let quotient = _mm256_sub_pd(_mm256_fmadd_pd(x, ratio, rounder), rounder);
            let high = _mm256_mul_pd(x, w);
            let low = _mm256_fmsub_pd(x, w, high);
            // Between -p/2 and 3p/2, every step exact.
            let r = _mm256_add_pd(_mm256_fnmadd_pd(quotient, p, high), low);
            let negative = _mm256_cmp_pd::<_CMP_LT_OQ>(r, _mm256_setzero_pd());
            let r = _mm256_add_pd(r, _mm256_and_pd(negative, p));
            let bits = _mm256_castpd_si256(_mm256_add_pd(r, _mm256_set1_pd(TWO_52)));
            _mm256_and_si256(bits, self.set(MASK52))
        }
    }

    /// Low and high 52 bits of four products of 52-bit words.
    #[inline(always)]
    fn wide4(self, x: __m256i, y: __m256i) -> (__m256i, __m256i) {
        unsafe {
            let mask = self.set((1 << 26) - 1);
            let (x0, y0) = (_mm256_and_si256(x, mask), _mm256_and_si256(y, mask));
            let x1 = _mm256_and_si256(_mm256_srli_epi64::<26>(x), mask);
            let y1 = _mm256_and_si256(_mm256_srli_epi64::<26>(y), mask);
            let middle = _mm256_add_epi64(_mm256_mul_epu32(x0, y1), _mm256_mul_epu32(x1, y0));
            let shifted = _mm256_slli_epi64::<26>(_mm256_and_si256(middle, mask));
            let low = _mm256_add_epi64(_mm256_mul_epu32(x0, y0), shifted);
            let high = _mm256_add_epi64(_mm256_mul_epu32(x1, y1), _mm256_srli_epi64::<26>(middle));
            let high = _mm256_add_epi64(high, _mm256_srli_epi64::<52>(low));
            (_mm256_and_si256(low, self.set(MASK52)), high)
        }
    }
}

const TWO_52: f64 = (1u64 << 52) as f64;

#[inline(always)]
fn each(x: [__m256i; 2], y: [__m256i; 2], f: impl Fn(__m256i, __m256i) -> __m256i) -> [__m256i; 2] {
    [f(x[0], y[0]), f(x[1], y[1])]
}

// SAFETY of all functions below and above: a value of `Avx2` proves the instructions; loads and stores are of references.
impl Lanes for Avx2 {
    type V = [__m256i; 2];
    type Modulus = __m256d;

    #[inline(always)]
    fn splat(self, x: u64) -> [__m256i; 2] {
        [self.set(x); 2]
    }

    #[inline(always)]
    fn load(self, x: &[u64; 8]) -> [__m256i; 2] {
        let (low, high) = x.split_at(4);
        unsafe { [_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())] }
    }

    #[inline(always)]
    fn store(self, x: [__m256i; 2], out: &mut [u64; 8]) {
        let (low, high) = out.split_at_mut(4);
        unsafe {
            _mm256_storeu_si256(low.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(high.as_mut_ptr().cast(), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        each(
            x,
            y,
            #[inline(always)]
            |x, y| unsafe { _mm256_add_epi64(x, y) },
        )
    }

    #[inline(always)]
    fn sub(self, x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        each(
            x,
            y,
            #[inline(always)]
            |x, y| unsafe { _mm256_sub_epi64(x, y) },
        )
    }

    #[inline(always)]
    fn and(self, x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        each(
            x,
            y,
            #[inline(always)]
            |x, y| unsafe { _mm256_and_si256(x, y) },
        )
    }

    #[inline(always)]
    fn shr(self, x: [__m256i; 2], by: u32) -> [__m256i; 2] {
        let by = unsafe { _mm_cvtsi32_si128(by.cast_signed()) };
        unsafe { [_mm256_srl_epi64(x[0], by), _mm256_srl_epi64(x[1], by)] }
    }

    #[inline(always)]
    fn shl(self, x: [__m256i; 2], by: u32) -> [__m256i; 2] {
        let by = unsafe { _mm_cvtsi32_si128(by.cast_signed()) };
        unsafe { [_mm256_sll_epi64(x[0], by), _mm256_sll_epi64(x[1], by)] }
    }

    #[inline(always)]
    fn cut(self, x: [__m256i; 2], m: [__m256i; 2]) -> [__m256i; 2] {
        each(
            x,
            m,
            #[inline(always)]
            |x, m| unsafe {
                let less = _mm256_castsi256_pd(_mm256_sub_epi64(x, m));
                _mm256_castpd_si256(_mm256_blendv_pd(less, _mm256_castsi256_pd(x), less))
            },
        )
    }

    #[inline(always)]
    fn add_if_above(self, x: [__m256i; 2], bound: [__m256i; 2], a: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let above = [_mm256_cmpgt_epi64(x[0], bound[0]), _mm256_cmpgt_epi64(x[1], bound[1])];
            self.add(x, self.and(a, above))
        }
    }

    #[inline(always)]
    fn add_if_negative(self, x: [__m256i; 2], a: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            let zero = _mm256_setzero_si256();
            self.add(x, self.and(a, [_mm256_cmpgt_epi64(zero, x[0]), _mm256_cmpgt_epi64(zero, x[1])]))
        }
    }

    #[inline(always)]
    fn madd_low(self, acc: [__m256i; 2], x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        self.add(acc, [self.wide4(x[0], y[0]).0, self.wide4(x[1], y[1]).0])
    }

    #[inline(always)]
    fn madd_high(self, acc: [__m256i; 2], x: [__m256i; 2], y: [__m256i; 2]) -> [__m256i; 2] {
        self.add(acc, [self.wide4(x[0], y[0]).1, self.wide4(x[1], y[1]).1])
    }

    #[inline(always)]
    fn modulus(self, p: u64) -> __m256d {
        unsafe { _mm256_set1_pd(p as f64) }
    }

    #[inline(always)]
    fn mul_shoup(self, x: [__m256i; 2], w: [__m256i; 2], ratio: [__m256i; 2], p: __m256d) -> [__m256i; 2] {
        [self.mul4(x[0], w[0], ratio[0], p), self.mul4(x[1], w[1], ratio[1], p)]
    }

    #[inline(always)]
    fn zip4(self, x: [__m256i; 2], y: [__m256i; 2]) -> ([__m256i; 2], [__m256i; 2]) {
        ([x[0], y[0]], [x[1], y[1]])
    }

    #[inline(always)]
    fn zip2(self, x: [__m256i; 2], y: [__m256i; 2]) -> ([__m256i; 2], [__m256i; 2]) {
        unsafe {
            (
                [_mm256_permute2x128_si256::<0x20>(x[0], y[0]), _mm256_permute2x128_si256::<0x20>(x[1], y[1])],
                [_mm256_permute2x128_si256::<0x31>(x[0], y[0]), _mm256_permute2x128_si256::<0x31>(x[1], y[1])],
            )
        }
    }

    #[inline(always)]
    fn zip1(self, x: [__m256i; 2], y: [__m256i; 2]) -> ([__m256i; 2], [__m256i; 2]) {
        unsafe {
            (
                [_mm256_unpacklo_epi64(x[0], y[0]), _mm256_unpacklo_epi64(x[1], y[1])],
                [_mm256_unpackhi_epi64(x[0], y[0]), _mm256_unpackhi_epi64(x[1], y[1])],
            )
        }
    }

    #[inline(always)]
    fn load_bytes<const B: usize>(self, bytes: &[u8]) -> [__m256i; 2] {
        self.load(&portable::load_bytes::<B>(bytes))
    }
}
