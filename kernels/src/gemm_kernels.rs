//! Inner loops of the ring product: register tiles on packed operands, and streaming loops for few rows.

use std::marker::PhantomData;

use super::isa::{self, Isa};
use crate::each_isa;

/// Rows of a register tile and of a packed panel of the left operand.
pub(super) const MR: usize = 8;
/// Columns of a register tile and of a packed panel of the right operand.
pub(super) const NR: usize = 24;

/// One cache line of ring elements; gives packed buffers their alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u64; 8]);

impl Line {
    pub(super) const ZERO: Line = Line([0; 8]);
}

/// The elements of `lines`, to write.
pub(super) fn words_mut(lines: &mut [Line]) -> &mut [u64] {
    // SAFETY: `Line` is `[u64; 8]` with a greater alignment and no padding; the length stays within the allocation, the
    // borrow of `lines` is exclusive and every bit pattern is a valid element.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 8) }
}

/// An exclusive rectangle of a row-major matrix. Unlike a slice it can be split by columns.
pub(super) struct Block<'a> {
    ptr: *mut u64,
    ld: usize,
    rows: usize,
    cols: usize,
    owner: PhantomData<&'a mut [u64]>,
}

// SAFETY: a block is an exclusive borrow of its elements, which are plain integers.
unsafe impl Send for Block<'_> {}

impl<'a> Block<'a> {
    /// The whole of a row-major `rows` x `cols` matrix.
    pub(super) fn new(c: &'a mut [u64], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(c.len()), rows.checked_mul(cols), "a result of {rows} x {cols} elements was expected");
        Block { ptr: c.as_mut_ptr(), ld: cols, rows, cols, owner: PhantomData }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// The columns before `at` and those from `at` on.
    pub(super) fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols, "a column split lies inside the block");
        let right = Block { ptr: self.ptr.wrapping_add(at), cols: self.cols - at, ..self };
        (Block { cols: at, ..self }, right)
    }

    /// The rows before `at` and those from `at` on.
    pub(super) fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows, "a row split lies inside the block");
        let low = Block { ptr: self.ptr.wrapping_add(at * self.ld), rows: self.rows - at, ..self };
        (Block { rows: at, ..self }, low)
    }

    /// The rectangle of at most `rows` x `cols` elements from (`i`, `j`) on, cut at the block's edges.
    pub(super) fn part(&mut self, i: usize, j: usize, rows: usize, cols: usize) -> Block<'_> {
        assert!(i <= self.rows && j <= self.cols, "a part starts inside the block");
        Block {
            ptr: self.ptr.wrapping_add(i * self.ld + j),
            ld: self.ld,
            rows: rows.min(self.rows - i),
            cols: cols.min(self.cols - j),
            owner: PhantomData,
        }
    }

    /// Row `i`.
    pub(super) fn row(&mut self, i: usize) -> &mut [u64] {
        assert!(i < self.rows, "a row lies inside the block");
        // SAFETY: the block covers `cols` consecutive elements from `i * ld` on for each `i < rows`, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.ld), self.cols) }
    }
}

/// `c += a * b` for one tile: `a` is a packed panel `kc` x [`MR`], `b` a packed panel `kc` x [`NR`], both step by
/// step; `c` has at most [`MR`] rows and [`NR`] columns.
pub(super) fn tile(isa: Isa, kc: usize, a: &[u64], b: &[u64], mut c: Block<'_>) {
    assert!(a.len() == kc * MR && b.len() == kc * NR, "panels have {kc} steps");
    assert!(c.rows <= MR && c.cols <= NR, "a tile has at most {MR} x {NR} elements");
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        isa::Level::Avx512 => {
            // SAFETY: an `Isa` of this level exists only where the processor reports these features; the lengths
            // were checked above, and each call computes at least `c.rows` rows.
            unsafe {
                match c.rows {
                    0 => {}
                    1 => x86::tile_avx512::<1>(kc, a, b, c),
                    2 => x86::tile_avx512::<2>(kc, a, b, c),
                    3 | 4 => x86::tile_avx512::<4>(kc, a, b, c),
                    _ => x86::tile_avx512::<8>(kc, a, b, c),
                }
            }
        }
        _ if c.rows == 1 => {
            let mut sums = [0u64; NR];
            one_row(isa, a, b, &mut sums);
            for (c, s) in c.row(0).iter_mut().zip(sums) {
                *c = c.wrapping_add(s);
            }
        }
        #[cfg(target_arch = "x86_64")]
        isa::Level::Avx2 => {
            for i in (0..c.rows).step_by(4) {
                for j in (0..c.cols).step_by(4) {
                    // SAFETY: an `Isa` of this level exists only where the processor reports AVX2; the lengths were
                    // checked above and `i + 4 <= MR`, `j + 4 <= NR`.
                    let sums = unsafe { x86::sums_avx2(kc, a, i, b, j) };
                    add_sums(&sums, c.part(i, j, 4, 4));
                }
            }
        }
        _ => {
            for i in (0..c.rows).step_by(4) {
                for j in (0..c.cols).step_by(4) {
                    add_sums(&sums_portable(a, i, b, j), c.part(i, j, 4, 4));
                }
            }
        }
    }
}

/// The 4 x 4 sums of products of rows `i..i + 4` of panel `a` and columns `j..j + 4` of panel `b`.
fn sums_portable(a: &[u64], i: usize, b: &[u64], j: usize) -> [[u64; 4]; 4] {
    let mut sums = [[0u64; 4]; 4];
    for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
        let (a, b) = (&a[i..i + 4], &b[j..j + 4]);
        for r in 0..4 {
            for s in 0..4 {
                sums[r][s] = sums[r][s].wrapping_add(a[r].wrapping_mul(b[s]));
            }
        }
    }
    sums
}

fn add_sums(sums: &[[u64; 4]; 4], mut c: Block<'_>) {
    for (i, sums) in sums.iter().enumerate().take(c.rows) {
        for (c, s) in c.row(i).iter_mut().zip(sums) {
            *c = c.wrapping_add(*s);
        }
    }
}

each_isa! {
    /// `sums += ` the products of the first row of panel `a` with panel `b`.
    fn one_row(isa; a: &[u64], b: &[u64], sums: &mut [u64; NR]) {
        for (a, b) in a.chunks_exact(MR).zip(b.chunks_exact(NR)) {
            for (s, b) in sums.iter_mut().zip(b) {
                *s = s.wrapping_add(a[0].wrapping_mul(*b));
            }
        }
    }

    /// `c += x0 b0 + x1 b1 + x2 b2 + x3 b3` for four rows `b` of equal length.
    pub(super) fn axpy4(isa; x: [u64; 4], b: [&[u64]; 4], c: &mut [u64]) {
        let n = c.len();
        let (b0, b1, b2, b3) = (&b[0][..n], &b[1][..n], &b[2][..n], &b[3][..n]);
        for j in 0..n {
            let p = x[0].wrapping_mul(b0[j]).wrapping_add(x[1].wrapping_mul(b1[j]));
            let q = x[2].wrapping_mul(b2[j]).wrapping_add(x[3].wrapping_mul(b3[j]));
            c[j] = c[j].wrapping_add(p.wrapping_add(q));
        }
    }

    /// `c += x b` for one row.
    pub(super) fn axpy(isa; x: u64, b: &[u64], c: &mut [u64]) {
        for (c, b) in c.iter_mut().zip(b) {
            *c = c.wrapping_add(x.wrapping_mul(*b));
        }
    }

    /// `c[i] += sum of a[i][p] b[p]` for each row `a[i]` of length `b.len()`.
    pub(super) fn dots(isa; a: &[u64], b: &[u64], c: &mut [u64]) {
        for (a, c) in a.chunks_exact(b.len()).zip(c.iter_mut()) {
            let mut sum = 0u64;
            for (a, b) in a.iter().zip(b) {
                sum = sum.wrapping_add(a.wrapping_mul(*b));
            }
            *c = c.wrapping_add(sum);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Block, MR, NR};

    /// The tile with 64-bit vector products (`vpmullq`), `R` rows of accumulators in registers.
    ///
    /// # Safety
    /// The processor has AVX-512 F and DQ; `a` has `kc * MR` and `b` has `kc * NR` elements; `c` has at most `R`
    /// rows and `NR` columns.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) unsafe fn tile_avx512<const R: usize>(kc: usize, a: &[u64], b: &[u64], c: Block<'_>) {
        let mut sums = [[_mm512_setzero_si512(); 3]; R];
        let (mut ap, mut bp) = (a.as_ptr(), b.as_ptr());
        for _ in 0..kc {
            // SAFETY: step p reads `a[p * MR..p * MR + R]` with `R <= MR` and `b[p * NR..(p + 1) * NR]`.
            unsafe {
                let b = [
                    _mm512_loadu_si512(bp.cast()),
                    _mm512_loadu_si512(bp.add(8).cast()),
                    _mm512_loadu_si512(bp.add(16).cast()),
                ];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi64((*ap.add(i)).cast_signed());
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_add_epi64(*sum, _mm512_mullo_epi64(b, x));
                    }
                }
                ap = ap.add(MR);
                bp = bp.add(NR);
            }
        }
        for (i, sums) in sums.iter().enumerate().take(c.rows) {
            for (v, sum) in sums.iter().enumerate() {
                let left = c.cols.saturating_sub(8 * v);
                let mask: __mmask8 = if left >= 8 { 0xff } else { (1 << left) - 1 };
                let p = c.ptr.wrapping_add(i * c.ld + 8 * v).cast::<i64>();
                // SAFETY: the mask keeps to the block's columns of row `i`, which the block owns.
                unsafe {
                    let old = _mm512_maskz_loadu_epi64(mask, p);
                    _mm512_mask_storeu_epi64(p, mask, _mm512_add_epi64(old, *sum));
                }
            }
        }
    }

    /// The 4 x 4 sums of products of rows `i..i + 4` of panel `a` and columns `j..j + 4` of panel `b`.
    ///
    /// Modulo 2^64, `x y = lo(x) lo(y) + 2^32 (hi(x) lo(y) + lo(x) hi(y))`: the first product is summed in 64-bit
    /// lanes, the two cross products by one 32-bit product with the halves of `y` exchanged.
    ///
    /// # Safety
    /// The processor has AVX2; `a` has `kc * MR` and `b` has `kc * NR` elements; `i + 4 <= MR`, `j + 4 <= NR`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn sums_avx2(kc: usize, a: &[u64], i: usize, b: &[u64], j: usize) -> [[u64; 4]; 4] {
        let mut low = [_mm256_setzero_si256(); 4];
        let mut cross = [_mm256_setzero_si256(); 4];
        for p in 0..kc {
            // SAFETY: step p reads `b[p * NR + j..][..4]` and `a[p * MR + i..][..4]`, inside the panels.
            let (b, ap) =
                unsafe { (_mm256_loadu_si256(b.as_ptr().add(p * NR + j).cast()), a.as_ptr().add(p * MR + i)) };
            let swapped = _mm256_shuffle_epi32::<0xB1>(b);
            for r in 0..4 {
                // SAFETY: as above.
                let x = _mm256_set1_epi64x(unsafe { *ap.add(r) }.cast_signed());
                low[r] = _mm256_add_epi64(low[r], _mm256_mul_epu32(b, x));
                cross[r] = _mm256_add_epi32(cross[r], _mm256_mullo_epi32(swapped, x));
            }
        }
        let mut sums = [[0u64; 4]; 4];
        for r in 0..4 {
            let both = _mm256_add_epi32(cross[r], _mm256_shuffle_epi32::<0xB1>(cross[r]));
            let sum = _mm256_add_epi64(low[r], _mm256_slli_epi64::<32>(both));
            // SAFETY: `sums[r]` has room for four 64-bit lanes.
            unsafe { _mm256_storeu_si256(sums[r].as_mut_ptr().cast(), sum) };
        }
        sums
    }
}
