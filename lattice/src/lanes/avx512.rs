//! The operations on one vector of 512 bits, with 52-bit multiply-adds (IFMA) and byte permutations (VBMI).

use std::arch::x86_64::*;

use super::{Lanes, MASK52};

/// The proof that this machine has AVX-512 F, DQ, VL, BW, IFMA and VBMI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof.
    ///
    /// # Safety
    /// The machine must have the instructions.
    #[inline(always)]
    pub(crate) unsafe fn proven() -> Avx512 {
        Avx512(())
    }
}

/// What to pick for eight words of `B` bytes: byte `i` of word `j` at `8 j + i`.
const fn byte_index<const B: usize>() -> [u8; 64] {
    let mut index = [0; 64];
    let mut i = 0;
    while i < 64 {
        if i % 8 < B {
            index[i] = (i / 8 * B + i % 8) as u8;
        }
        i += 1;
    }
    index
}

/// Bytes of `byte_index` that are picked.
const fn byte_mask<const B: usize>() -> u64 {
    0x0101_0101_0101_0101 * ((1 << B) - 1)
}

// SAFETY of all functions below: a value of `Avx512` proves the instructions; loads and stores are of references.
impl Lanes for Avx512 {
    type V = __m512i;
    type Modulus = __m512i;

    #[inline(always)]
    fn splat(self, x: u64) -> __m512i {
        unsafe { _mm512_set1_epi64(x.cast_signed()) }
    }

    #[inline(always)]
    fn load(self, x: &[u64; 8]) -> __m512i {
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store(self, x: __m512i, out: &mut [u64; 8]) {
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }

    #[inline(always)]
    fn add(self, x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_add_epi64(x, y) }
    }

    #[inline(always)]
    fn sub(self, x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi64(x, y) }
    }

    #[inline(always)]
    fn and(self, x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(x, y) }
    }

    #[inline(always)]
    fn shr(self, x: __m512i, by: u32) -> __m512i {
        unsafe { _mm512_srl_epi64(x, _mm_cvtsi32_si128(by.cast_signed())) }
    }

    #[inline(always)]
    fn shl(self, x: __m512i, by: u32) -> __m512i {
        unsafe { _mm512_sll_epi64(x, _mm_cvtsi32_si128(by.cast_signed())) }
    }

    #[inline(always)]
    fn cut(self, x: __m512i, m: __m512i) -> __m512i {
        unsafe { _mm512_min_epu64(x, _mm512_sub_epi64(x, m)) }
    }

    #[inline(always)]
    fn add_if_above(self, x: __m512i, bound: __m512i, a: __m512i) -> __m512i {
        unsafe { _mm512_mask_add_epi64(x, _mm512_cmpgt_epu64_mask(x, bound), x, a) }
    }

    #[inline(always)]
    fn add_if_negative(self, x: __m512i, a: __m512i) -> __m512i {
        unsafe { _mm512_mask_add_epi64(x, _mm512_movepi64_mask(x), x, a) }
    }

    #[inline(always)]
    fn madd_low(self, acc: __m512i, x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_madd52lo_epu64(acc, x, y) }
    }

    #[inline(always)]
    fn madd_high(self, acc: __m512i, x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_madd52hi_epu64(acc, x, y) }
    }

    /// `2^52 - p`: a product with it is one with `-p` in the low 52 bits.
    #[inline(always)]
    fn modulus(self, p: u64) -> __m512i {
        self.splat((1 << 52) - p)
    }

    #[inline(always)]
    fn mul_shoup(self, x: __m512i, w: __m512i, ratio: __m512i, minus_p: __m512i) -> __m512i {
        let zero = self.splat(0);
        let quotient = self.madd_high(zero, x, ratio);
        let r = self.madd_low(self.madd_low(zero, x, w), quotient, minus_p);
        self.and(r, self.splat(MASK52))
    }

    #[inline(always)]
    fn zip4(self, x: __m512i, y: __m512i) -> (__m512i, __m512i) {
        unsafe { (_mm512_shuffle_i64x2::<0b01_00_01_00>(x, y), _mm512_shuffle_i64x2::<0b11_10_11_10>(x, y)) }
    }

    #[inline(always)]
    fn zip2(self, x: __m512i, y: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let low = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
            let high = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
            (_mm512_permutex2var_epi64(x, low, y), _mm512_permutex2var_epi64(x, high, y))
        }
    }

    #[inline(always)]
    fn zip1(self, x: __m512i, y: __m512i) -> (__m512i, __m512i) {
        unsafe { (_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y)) }
    }

    #[inline(always)]
    fn load_bytes<const B: usize>(self, bytes: &[u8]) -> __m512i {
        let bytes = &bytes[..8 * B];
        let index = const { byte_index::<B>() };
        unsafe {
            let all = _mm512_maskz_loadu_epi8(u64::MAX >> (64 - 8 * B), bytes.as_ptr().cast());
            let index = _mm512_loadu_si512(index.as_ptr().cast());
            _mm512_maskz_permutexvar_epi8(const { byte_mask::<B>() }, index, all)
        }
    }
}
