//! Elements picked at regular distances: what transposes, slices and broadcasts are on concrete tensors.

use rayon::prelude::*;

use crate::diag::{Diagnostic, Result};

/// Results of at least this many elements are written by several threads.
const PARALLEL: usize = 1 << 16;
/// Rows that a transpose writes together: what one cache line of the operand holds, at least.
const BLOCK: usize = 16;

/// Writes the elements of `values` at `base + Σ index · step`, for every index of `shape` in row-major order, to `out`.
///
/// # Errors
/// `E0380` when an element is outside of `values`, or `out` has not as many elements as `shape`.
pub fn fill<T: Copy + Send + Sync>(
    values: &[T],
    out: &mut [T],
    shape: &[usize],
    steps: &[isize],
    base: isize,
) -> Result<()> {
    let wrong = || Diagnostic::internal("E0380", "an element is outside of its operand");
    if shape.len() != steps.len() || crate::plain::tensor::volume(shape)? != out.len() {
        return Err(wrong());
    }
    if out.is_empty() {
        return Ok(());
    }
    let (mut least, mut most) = (base as i128, base as i128);
    for (size, step) in shape.iter().zip(steps) {
        let span = (*size as i128 - 1) * *step as i128;
        least += span.min(0);
        most += span.max(0);
    }
    if least < 0 || most >= values.len() as i128 {
        return Err(wrong());
    }
    // Axes of one element say nothing, and two axes that the operand has as one are one.
    let mut axes: Vec<(usize, isize)> = Vec::with_capacity(shape.len());
    for (&size, &step) in shape.iter().zip(steps).filter(|(size, _)| **size != 1) {
        match axes.last_mut() {
            Some((outer, last)) if *last == step * size as isize => (*outer, *last) = (*outer * size, step),
            _ => axes.push((size, step)),
        }
    }
    write(values, out, &axes, base);
    Ok(())
}

/// As [`fill`], for indices that are known to be inside.
fn write<T: Copy + Send + Sync>(values: &[T], out: &mut [T], axes: &[(usize, isize)], base: isize) {
    let at = |offset: isize| values.get(offset.unsigned_abs()..).unwrap_or(&[]);
    match axes {
        [] => out.iter_mut().zip(at(base)).for_each(|(o, v)| *o = *v),
        [(_, 0)] => at(base).iter().take(1).for_each(|v| out.fill(*v)),
        [(_, 1)] => out.iter_mut().zip(at(base)).for_each(|(o, v)| *o = *v),
        [(_, step)] if *step > 0 => {
            out.iter_mut().zip(at(base).iter().step_by(step.unsigned_abs())).for_each(|(o, v)| *o = *v);
        }
        [(_, step)] => {
            let offsets = (0isize..).map(|i| base + i * step);
            out.iter_mut().zip(offsets).for_each(|(o, i)| at(i).iter().take(1).for_each(|v| *o = *v));
        }
        [(_, 1), (columns, step)] if *step > 1 => {
            let block = |(i, rows): (usize, &mut [T])| {
                let base = base + (i * BLOCK) as isize;
                let mut rows: Vec<&mut [T]> = rows.chunks_mut(*columns).collect();
                for j in 0..*columns {
                    let line = at(base + j as isize * step);
                    for (row, v) in rows.iter_mut().zip(line) {
                        if let Some(slot) = row.get_mut(j) {
                            *slot = *v;
                        }
                    }
                }
            };
            if out.len() >= PARALLEL {
                out.par_chunks_mut(BLOCK * columns).enumerate().for_each(block);
            } else {
                out.chunks_mut(BLOCK * columns).enumerate().for_each(block);
            }
        }
        [(size, step), inner @ ..] => {
            let len = out.len() / size;
            let part = |(i, out): (usize, &mut [T])| write(values, out, inner, base + i as isize * step);
            if out.len() >= PARALLEL {
                out.par_chunks_mut(len).enumerate().for_each(part);
            } else {
                out.chunks_mut(len).enumerate().for_each(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn elements_are_those_of_the_definition() {
        let values: Vec<u32> = (0..200_000).collect();
        let cases: &[(&[usize], &[isize], isize)] = &[
            (&[], &[], 5),
            (&[7], &[0], 3),
            (&[7], &[1], 3),
            (&[7], &[-2], 90),
            (&[3, 4, 5], &[20, 5, 1], 0),
            (&[3, 4, 5], &[20, 1, 4], 0),
            (&[5, 1, 4, 3], &[1, 9, 5, 20], 2),
            (&[2, 3, 2], &[0, 1, 0], 8),
            (&[300, 400], &[1, 300], 0),
            (&[2, 37, 1000, 2], &[1, 2, 74, 0], 0),
            (&[400, 300], &[-300, 1], 399 * 300),
            (&[2, 0, 3], &[1, 1, 1], 0),
        ];
        for (shape, steps, base) in cases {
            let n: usize = shape.iter().product();
            let expected: Vec<u32> = (0..n)
                .map(|flat| {
                    let mut rest = flat;
                    let mut at = *base;
                    for (size, step) in shape.iter().zip(*steps).rev() {
                        at += (rest % size) as isize * step;
                        rest /= size;
                    }
                    values[at.unsigned_abs()]
                })
                .collect();
            let mut out = vec![0u32; n];
            fill(&values, &mut out, shape, steps, *base).unwrap();
            assert!(out == expected, "{shape:?} {steps:?}");
        }
    }

    #[test]
    fn elements_outside_are_refused() {
        let values = [1u8, 2, 3];
        for (shape, steps, base) in
            [(&[2usize, 2], &[2isize, 1], 0isize), (&[1, 3], &[0, -1], 1), (&[2, 1], &[1, 0], -1)]
        {
            let n: usize = shape.iter().product();
            assert_eq!(fill(&values, &mut vec![0; n], shape, steps, base).unwrap_err().code, "E0380");
        }
        assert_eq!(fill(&values, &mut [0; 2], &[3], &[1], 0).unwrap_err().code, "E0380");
    }
}
