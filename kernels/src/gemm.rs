//! Matrix product on Z_2^64: `C += A B`, wrapping, for operands of any strides.
//!
//! The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a panel
//! of B stays in the first cache, a block of A in the second, and a tile of C in registers. With few rows B is streamed
//! once, unpacked. All paths give the same bits.

use std::cell::RefCell;
use std::ops::Range;

use super::Error;
use super::gemm_kernels::{Block, Line, MR, NR, axpy, axpy4, dots, tile, words_mut};
use super::isa::Isa;

/// Steps of the inner dimension per panel.
const KC: usize = 192;
/// Rows of A per block.
const MC: usize = 192;
/// Columns of B packed at a time.
const NC: usize = 1536;
/// Up to this many rows, B is streamed unpacked.
const FEW_ROWS: usize = 8;
/// Products of at most this many multiplications run on one thread.
const SMALL: usize = 1 << 21;

/// A read-only matrix in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [u64],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A `rows` x `cols` view of `data` with these strides in elements. [`Error::Outside`] when an element would lie outside.
    pub fn new(data: &'a [u64], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Result<Self, Error> {
        let view = MatRef { data, rows, cols, row_stride, col_stride };
        if rows == 0 || cols == 0 {
            return Ok(view);
        }
        let last = (rows - 1)
            .checked_mul(row_stride)
            .and_then(|r| (cols - 1).checked_mul(col_stride).and_then(|c| r.checked_add(c)));
        match last {
            Some(last) if last < data.len() => Ok(view),
            _ => Err(Error::Outside { rows, cols, row_stride, col_stride, len: data.len() }),
        }
    }

    /// A `rows` x `cols` row-major matrix without gaps. [`Error::Outside`] when `data` is shorter.
    pub fn row_major(data: &'a [u64], rows: usize, cols: usize) -> Result<Self, Error> {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The transposed view of the same elements.
    pub fn transposed(self) -> Self {
        MatRef { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Element (i, j).
    fn at(&self, i: usize, j: usize) -> u64 {
        self.data[i * self.row_stride + j * self.col_stride]
    }

    /// The rectangle `rows` x `cols`, both inside the matrix.
    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let data = if rows.is_empty() || cols.is_empty() {
            &[]
        } else {
            &self.data[rows.start * self.row_stride + cols.start * self.col_stride..]
        };
        MatRef { data, rows: rows.len(), cols: cols.len(), ..self }
    }

    /// Row `i` as a slice; the column stride is 1.
    fn row(&self, i: usize) -> &'a [u64] {
        &self.data[i * self.row_stride..][..self.cols]
    }
}

/// `0..n` in ranges of at most `step`.
fn steps(n: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(step).map(move |i| i..n.min(i + step))
}

/// `c += a b` with `c` row-major m x n, on at most `threads` threads.
///
/// # Panics
/// When the shapes do not fit together.
pub fn gemm_acc(a: MatRef<'_>, b: MatRef<'_>, c: &mut [u64], threads: usize) {
    gemm_acc_at(Isa::best(), a, b, c, threads);
}

/// [`gemm_acc`] at a given vector level.
///
/// # Panics
/// When the shapes do not fit together.
pub fn gemm_acc_at(isa: Isa, a: MatRef<'_>, b: MatRef<'_>, c: &mut [u64], threads: usize) {
    assert_eq!(a.cols, b.rows, "the inner dimensions of a product are equal");
    if b.cols < a.rows && b.cols <= FEW_ROWS && b.cols > 0 {
        let (m, n) = (a.rows, b.cols);
        assert_eq!(Some(c.len()), m.checked_mul(n), "a result of {m} x {n} elements was expected");
        if n == 1 {
            return product(isa, b.transposed(), a.transposed(), Block::new(c, 1, m), threads);
        }
        let mut flipped = vec![0u64; m * n];
        product(isa, b.transposed(), a.transposed(), Block::new(&mut flipped, n, m), threads);
        for (i, c) in c.chunks_exact_mut(n).enumerate() {
            for (j, c) in c.iter_mut().enumerate() {
                *c = c.wrapping_add(flipped[j * m + i]);
            }
        }
        return;
    }
    product(isa, a, b, Block::new(c, a.rows, b.cols), threads);
}

/// Splits the product over threads: by columns when there are enough of them, else by rows.
fn product(isa: Isa, a: MatRef<'_>, b: MatRef<'_>, c: Block<'_>, threads: usize) {
    let (m, n) = (c.rows(), c.cols());
    if m == 0 || n == 0 || a.cols == 0 {
        return;
    }
    let work = m.saturating_mul(n).saturating_mul(a.cols);
    let (panels, strips) = (n.div_ceil(NR), m.div_ceil(MR));
    if threads <= 1 || work <= SMALL || panels.max(strips) == 1 {
        return on_one_thread(isa, a, b, c);
    }
    let half = threads / 2;
    if panels >= threads || panels >= strips {
        let at = (panels * half / threads).max(1) * NR;
        let (b0, b1) = (b.part(0..b.rows, 0..at), b.part(0..b.rows, at..b.cols));
        let (c0, c1) = c.split_cols(at);
        rayon::join(|| product(isa, a, b0, c0, half), || product(isa, a, b1, c1, threads - half));
    } else {
        let at = (strips * half / threads).max(1) * MR;
        let (c0, c1) = c.split_rows(at);
        let (a0, a1) = (a.part(0..at, 0..a.cols), a.part(at..m, 0..a.cols));
        rayon::join(|| product(isa, a0, b, c0, half), || product(isa, a1, b, c1, threads - half));
    }
}

thread_local! {
    /// Packing buffers of this thread: a fresh allocation per product would cost a page fault per 4 KiB.
    static SCRATCH: RefCell<[Vec<Line>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Calls `f` with two aligned buffers of these many elements, of unspecified content.
fn with_scratch(left: usize, right: usize, f: impl FnOnce(&mut [u64], &mut [u64])) {
    SCRATCH.with_borrow_mut(|[a, b]| {
        for (buffer, len) in [(&mut *a, left), (&mut *b, right)] {
            if buffer.len() < len.div_ceil(8) {
                buffer.resize(len.div_ceil(8), Line::ZERO);
            }
        }
        f(&mut words_mut(a)[..left], &mut words_mut(b)[..right]);
    });
}

/// One thread's product.
fn on_one_thread(isa: Isa, a: MatRef<'_>, b: MatRef<'_>, mut c: Block<'_>) {
    if a.rows <= FEW_ROWS && (b.col_stride == 1 || b.row_stride == 1) {
        return few_rows(isa, a, b, c);
    }
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let (kc, mc, nc) = (k.min(KC), m.min(MC).next_multiple_of(MR), n.min(NC).next_multiple_of(NR));
    with_scratch(kc * mc, kc * nc, |left, right| {
        for jc in steps(n, NC) {
            for pc in steps(k, KC) {
                pack_right(b.part(pc.clone(), jc.clone()), right);
                for ic in steps(m, MC) {
                    pack_left(a.part(ic.clone(), pc.clone()), left);
                    for (j, b) in (0..jc.len()).step_by(NR).zip(right.chunks_exact(pc.len() * NR)) {
                        let mut c = c.part(ic.start, jc.start + j, ic.len(), NR);
                        tiles(isa, pc.len(), left, b, &mut c);
                    }
                }
            }
        }
    });
}

/// All tiles of the packed rows `a` with one panel `b`.
fn tiles(isa: Isa, kc: usize, a: &[u64], b: &[u64], c: &mut Block<'_>) {
    for (i, a) in (0..c.rows()).step_by(MR).zip(a.chunks_exact(kc * MR)) {
        tile(isa, kc, a, b, c.part(i, 0, MR, NR));
    }
}

/// Packs the m x kc matrix `a` into panels of [`MR`] rows, step by step, padded with zeros.
fn pack_left(a: MatRef<'_>, out: &mut [u64]) {
    let kc = a.cols;
    for (i, panel) in (0..a.rows).step_by(MR).zip(out.chunks_exact_mut(kc * MR)) {
        let rows = MR.min(a.rows - i);
        if a.col_stride == 1 && rows == MR {
            let rows: [&[u64]; MR] = std::array::from_fn(|r| a.row(i + r));
            for (p, out) in panel.chunks_exact_mut(MR).enumerate() {
                for (out, row) in out.iter_mut().zip(&rows) {
                    *out = row[p];
                }
            }
            continue;
        }
        for (p, out) in panel.chunks_exact_mut(MR).enumerate() {
            for (r, out) in out.iter_mut().enumerate() {
                *out = if r < rows { a.at(i + r, p) } else { 0 };
            }
        }
    }
}

/// Packs the kc x n matrix `b` into panels of [`NR`] columns, step by step, padded with zeros.
fn pack_right(b: MatRef<'_>, out: &mut [u64]) {
    let kc = b.rows;
    if b.col_stride == 1 {
        for p in 0..kc {
            scatter_row(b.row(p), p, kc, out);
        }
        return;
    }
    for (j, panel) in (0..b.cols).step_by(NR).zip(out.chunks_exact_mut(kc * NR)) {
        let cols = NR.min(b.cols - j);
        for (p, out) in panel.chunks_exact_mut(NR).enumerate() {
            for (s, out) in out.iter_mut().enumerate() {
                *out = if s < cols { b.at(p, j + s) } else { 0 };
            }
        }
    }
}

/// Writes step `p` of `kc` of every panel in `out` from one row of the right operand.
fn scatter_row(row: &[u64], p: usize, kc: usize, out: &mut [u64]) {
    for (src, panel) in row.chunks(NR).zip(out.chunks_exact_mut(kc * NR)) {
        let dst = &mut panel[p * NR..][..NR];
        dst[..src.len()].copy_from_slice(src);
        dst[src.len()..].fill(0);
    }
}

/// A product with few rows, which reads each element of `b` once; `b` is contiguous along rows or columns.
fn few_rows(isa: Isa, a: MatRef<'_>, b: MatRef<'_>, mut c: Block<'_>) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    with_scratch(m * k, 0, |left, _| {
        for (i, row) in left.chunks_exact_mut(k).enumerate() {
            row.iter_mut().enumerate().for_each(|(p, x)| *x = a.at(i, p));
        }
        if b.col_stride == 1 {
            // The part of C that is being summed, m x width, stays in the first cache.
            for jc in steps(n, 2048 / m.next_power_of_two()) {
                let b = b.part(0..k, jc.clone());
                for p in (0..k).step_by(4) {
                    for (i, x) in left.chunks_exact(k).enumerate() {
                        let mut c = c.part(i, jc.start, 1, jc.len());
                        if let &[x0, x1, x2, x3, ..] = &x[p..] {
                            let rows = [b.row(p), b.row(p + 1), b.row(p + 2), b.row(p + 3)];
                            axpy4(isa, [x0, x1, x2, x3], rows, c.row(0));
                        } else {
                            (p..k).for_each(|p| axpy(isa, x[p], b.row(p), c.row(0)));
                        }
                    }
                }
            }
        } else {
            let columns = b.transposed();
            let mut sums = [0u64; FEW_ROWS];
            for j in 0..n {
                sums.fill(0);
                dots(isa, left, columns.row(j), &mut sums[..m]);
                for (i, sum) in sums.iter().enumerate().take(m) {
                    let mut c = c.part(i, j, 1, 1);
                    let c = &mut c.row(0)[0];
                    *c = c.wrapping_add(*sum);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<u64> {
        let mut x = seed.wrapping_mul(2).wrapping_add(1);
        (0..n)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x.wrapping_mul(0x2545_F491_4F6C_DD1D)
            })
            .collect()
    }

    fn naive(a: MatRef<'_>, b: MatRef<'_>, c: &[u64]) -> Vec<u64> {
        let n = b.cols;
        let mut out = c.to_vec();
        for i in 0..a.rows {
            for j in 0..n {
                for p in 0..a.cols {
                    out[i * n + j] = out[i * n + j].wrapping_add(a.at(i, p).wrapping_mul(b.at(p, j)));
                }
            }
        }
        out
    }

    fn check(a: MatRef<'_>, b: MatRef<'_>) {
        let c = numbers(a.rows * b.cols, 7);
        let expected = naive(a, b, &c);
        let shape = format!("{}x{}x{}", a.rows, a.cols, b.cols);
        for isa in Isa::available() {
            for threads in [1, 3] {
                let mut got = c.clone();
                gemm_acc_at(isa, a, b, &mut got, threads);
                assert!(got == expected, "{shape} {} {threads} threads", isa.name());
            }
        }
    }

    const SIZES: [(usize, usize, usize); 20] = [
        (0, 3, 3),
        (3, 0, 3),
        (3, 3, 0),
        (1, 1, 1),
        (1, 7, 1),
        (9, 5, 1),
        (13, 200, 3),
        (1, 193, 100),
        (2, 64, 25),
        (3, 5, 24),
        (5, 17, 49),
        (7, 192, 23),
        (8, 193, 24),
        (9, 33, 47),
        (16, 385, 26),
        (31, 40, 73),
        (193, 20, 30),
        (100, 130, 129),
        (200, 70, 8),
        (8, 70, 1540),
    ];

    #[test]
    fn every_level_equals_the_definition_for_ragged_sizes_and_strides() {
        for (m, k, n) in SIZES {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let a_rows = MatRef::row_major(&a, m, k).expect("fits");
            let a_cols = MatRef::row_major(&a, k, m).expect("fits").transposed();
            let b_rows = MatRef::row_major(&b, k, n).expect("fits");
            let b_cols = MatRef::row_major(&b, n, k).expect("fits").transposed();
            for (a, b) in [(a_rows, b_rows), (a_cols, b_rows), (a_rows, b_cols), (a_cols, b_cols)] {
                check(a, b);
            }
        }
    }

    #[test]
    fn views_with_gaps_and_repeated_elements() {
        let x = numbers(4000, 3);
        for (m, k, n) in [(1, 9, 30), (12, 11, 30), (5, 20, 2)] {
            let a = MatRef::new(&x, m, k, 40, 2).expect("fits");
            for (row_stride, col_stride) in [(3, 61), (61, 3), (0, 1), (1, 0), (0, 5), (90, 1)] {
                check(a, MatRef::new(&x, k, n, row_stride, col_stride).expect("fits"));
            }
        }
    }

    #[test]
    fn a_product_above_the_threading_limit() {
        // The first is split by columns, the second by rows.
        const { assert!(130 * 200 * 90 > SMALL && 900 * 300 * 20 > SMALL) };
        let (m, k, n) = (130, 200, 90);
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        check(MatRef::row_major(&a, m, k).expect("fits"), MatRef::row_major(&b, k, n).expect("fits"));
        let (m, k, n) = (900, 300, 20);
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        check(MatRef::row_major(&a, m, k).expect("fits"), MatRef::row_major(&b, k, n).expect("fits"));
    }

    #[test]
    fn views_outside_their_buffer_are_refused() {
        let x = [0u64; 12];
        assert!(MatRef::new(&x, 3, 4, 4, 1).is_ok());
        assert!(MatRef::new(&x, 0, 4, usize::MAX, 1).is_ok());
        for (rows, cols, row_stride, col_stride) in
            [(4, 4, 4, 1), (3, 5, 4, 1), (2, 2, usize::MAX, 1), (usize::MAX, usize::MAX, 2, 2), (2, 2, 1, usize::MAX)]
        {
            let error = MatRef::new(&x, rows, cols, row_stride, col_stride).err();
            assert_eq!(error, Some(Error::Outside { rows, cols, row_stride, col_stride, len: 12 }));
        }
    }
}
