//! Matrix product of single-precision floats, with one result on every machine.
//!
//! Every element of the result is the sum of its products in ascending order of the inner index, each product and each
//! sum rounded by itself. Vectors run over columns and threads over rows or columns, so that neither changes a bit.

use rayon::prelude::*;

use super::isa::Isa;
use crate::each_isa;

/// Rows of a register tile.
const MR: usize = 6;
/// Columns of a register tile and of a packed panel.
const NR: usize = 16;
/// Steps of the inner dimension per panel: a panel stays in the first cache.
const KC: usize = 256;
/// Columns that are packed at a time: a block stays in the second cache.
const NC: usize = 512;
/// Up to this many rows, the right operand is streamed unpacked.
const FEW_ROWS: usize = 4;
/// Products of at most this many multiplications run on one thread.
const SMALL: usize = 1 << 18;

/// `c += a b` for row-major matrices without gaps: `a` has `k` columns, `b` has `k` rows and `n` columns.
///
/// # Panics
/// When the lengths do not fit together.
pub fn matmul_acc(a: &[f32], b: &[f32], c: &mut [f32], k: usize, n: usize) {
    if k == 0 || n == 0 {
        return;
    }
    let m = c.len() / n;
    assert!(c.len() == m * n && a.len() == m * k && b.len() == k * n, "the lengths of a product fit together");
    let isa = Isa::best();
    let threads = rayon::current_num_threads();
    if threads <= 1 || m.saturating_mul(n).saturating_mul(k) <= SMALL {
        return columns(isa, a, b, c, [k, n, 0, n]);
    }
    if m >= 2 * threads * MR {
        let rows = m.div_ceil(2 * threads).next_multiple_of(MR);
        return blocks(b, [k, n, 0, n], &mut |panels, [pc, jc]| {
            let parts = c.par_chunks_mut(rows * n).zip(a.par_chunks(rows * k));
            parts.for_each(|(c, a)| block(isa, a, panels, c, [k, n, pc, jc]));
        });
    }
    // Columns of a part are not one slice of the result: a part is summed by itself and written back.
    let width = n.div_ceil(2 * threads).next_multiple_of(NR);
    let starts: Vec<usize> = (0..n).step_by(width).collect();
    let sums: Vec<Vec<f32>> = starts
        .par_iter()
        .map(|&j| {
            let width = width.min(n - j);
            let mut own = Vec::with_capacity(m * width);
            c.chunks_exact(n).for_each(|row| own.extend_from_slice(&row[j..j + width]));
            columns(isa, a, b, &mut own, [k, n, j, width]);
            own
        })
        .collect();
    for (j, own) in starts.into_iter().zip(sums) {
        let width = width.min(n - j);
        for (row, own) in c.chunks_exact_mut(n).zip(own.chunks_exact(width)) {
            row[j..j + width].copy_from_slice(own);
        }
    }
}

/// One thread's product with the columns from `first` on of `b`, as many as `c` has: `width`.
fn columns(isa: Isa, a: &[f32], b: &[f32], c: &mut [f32], [k, n, first, width]: [usize; 4]) {
    if c.len() <= FEW_ROWS * width {
        for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(width)) {
            for (at, c) in c.chunks_mut(4096).enumerate().map(|(i, c)| (first + i * 4096, c)) {
                for (x, row) in a.iter().zip(b.chunks_exact(n)) {
                    add_scaled(isa, *x, &row[at..at + c.len()], c);
                }
            }
        }
        return;
    }
    blocks(b, [k, n, first, width], &mut |panels, [pc, jc]| block(isa, a, panels, c, [k, width, pc, jc]));
}

/// Shows the `width` columns from `first` on of `b` to `see`, packed, a block after another: panels of [`NR`] columns, and
/// where the block begins: its row, and its column among those.
fn blocks(b: &[f32], [k, n, first, width]: [usize; 4], see: &mut dyn FnMut(Panels, [usize; 2])) {
    let mut packed = vec![0.0f32; k.min(KC) * width.min(NC).next_multiple_of(NR)];
    for jc in (0..width).step_by(NC) {
        let nc = NC.min(width - jc);
        for pc in (0..k).step_by(KC) {
            let kc = KC.min(k - pc);
            for (p, row) in b.chunks_exact(n).skip(pc).take(kc).enumerate() {
                let row = &row[first + jc..first + jc + nc];
                for (src, panel) in row.chunks(NR).zip(packed.chunks_exact_mut(kc * NR)) {
                    let dst = &mut panel[p * NR..][..NR];
                    dst[..src.len()].copy_from_slice(src);
                    dst[src.len()..].fill(0.0);
                }
            }
            see(Panels { packed: &packed, kc, nc }, [pc, jc]);
        }
    }
}

/// A packed block of `kc` rows and `nc` columns.
#[derive(Clone, Copy)]
struct Panels<'a> {
    packed: &'a [f32],
    kc: usize,
    nc: usize,
}

/// Adds the product with a block that begins at row `pc` and column `jc` to `c`, which has `width` columns.
fn block(isa: Isa, a: &[f32], Panels { packed, kc, nc }: Panels, c: &mut [f32], [k, width, pc, jc]: [usize; 4]) {
    for (j, panel) in (0..nc).step_by(NR).zip(packed.chunks_exact(kc * NR)) {
        let used = NR.min(nc - j);
        for (a, c) in a.chunks(MR * k).zip(c.chunks_mut(MR * width)) {
            let mut sums = [[0.0f32; NR]; MR];
            for (sums, c) in sums.iter_mut().zip(c.chunks_exact(width)) {
                sums[..used].copy_from_slice(&c[jc + j..jc + j + used]);
            }
            // Where the last rows are fewer, others stand in for those that are not there.
            let rows = a.len() / k;
            let rows: [&[f32]; MR] = std::array::from_fn(|r| &a[r.min(rows - 1) * k + pc..][..kc]);
            tile(isa, rows, panel, &mut sums);
            for (sums, c) in sums.iter().zip(c.chunks_exact_mut(width)) {
                c[jc + j..jc + j + used].copy_from_slice(&sums[..used]);
            }
        }
    }
}

each_isa! {
    /// `sums[r] += ` the products of row `r` with `panel`, step by step.
    fn tile(isa; rows: [&[f32]; MR], panel: &[f32], sums: &mut [[f32; NR]; MR]) {
        let mut own = *sums;
        let kc = panel.len() / NR;
        let rows = rows.map(|row| &row[..kc]);
        for (p, b) in panel.as_chunks::<NR>().0.iter().enumerate() {
            for r in 0..MR {
                let x = rows[r][p];
                for s in 0..NR {
                    own[r][s] += x * b[s];
                }
            }
        }
        *sums = own;
    }

    /// `c += x b` for one row.
    fn add_scaled(isa; x: f32, b: &[f32], c: &mut [f32]) {
        for (c, b) in c.iter_mut().zip(b) {
            *c += x * *b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed;
        (0..n)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn sums_run_in_order_whatever_the_sizes_and_levels() {
        for (m, k, n) in [
            (1, 1, 1),
            (1, 300, 5000),
            (3, 7, 40),
            (5, 513, 33),
            (6, 256, 16),
            (7, 700, 530),
            (100, 65, 70),
            (61, 3, 1),
        ] {
            let (a, b, c) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
            let mut expected = c.clone();
            for i in 0..m {
                for p in 0..k {
                    for j in 0..n {
                        expected[i * n + j] += a[i * k + p] * b[p * n + j];
                    }
                }
            }
            for isa in Isa::available() {
                let mut got = c.clone();
                columns(isa, &a, &b, &mut got, [k, n, 0, n]);
                assert!(got == expected, "{m} x {k} x {n} {}", isa.name());
            }
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                let mut got = c.clone();
                pool.install(|| matmul_acc(&a, &b, &mut got, k, n));
                assert!(got == expected, "{m} x {k} x {n} on {threads} threads");
            }
        }
    }

    #[test]
    fn products_without_elements() {
        let mut c = [1.0f32; 4];
        matmul_acc(&[], &[], &mut c, 0, 2);
        matmul_acc(&[], &[1.0, 2.0], &mut [], 2, 1);
        assert_eq!(c, [1.0; 4]);
    }
}
