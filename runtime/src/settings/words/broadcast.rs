//! Element-wise functions of two tensors whose shapes broadcast as in ONNX.

use ombra_ir::{Diagnostic, Result};

/// Axes of a result with how far each operand moves along them; neighbouring axes that move alike are one.
struct Walk {
    /// Size, stride of the left operand, stride of the right one; outermost first.
    axes: Vec<(usize, usize, usize)>,
    /// Elements of the result.
    count: usize,
}

/// `f` of the elements of `x` and `y` broadcast to `out`. E0804 when the shapes do not broadcast or the words do not
/// fill them.
pub fn zip(
    x: (&[u64], &[usize]),
    y: (&[u64], &[usize]),
    out: &[usize],
    f: impl Fn(u64, u64) -> u64 + Copy,
) -> Result<Vec<u64>> {
    let walk = walk(x, y, out)?;
    let ((x, _), (y, _)) = (x, y);
    let mut result = Vec::with_capacity(walk.count);
    walk.each_run(|i, j, (len, sx, sy)| match (sx, sy) {
        (1, 1) => result.extend(x[i..i + len].iter().zip(&y[j..j + len]).map(|(x, y)| f(*x, *y))),
        (1, _) => {
            let y = y[j];
            result.extend(x[i..i + len].iter().map(|x| f(*x, y)));
        }
        (_, 1) => {
            let x = x[i];
            result.extend(y[j..j + len].iter().map(|y| f(x, *y)));
        }
        _ => result.extend(std::iter::repeat_n(f(x[i], y[j]), len)),
    });
    Ok(result)
}

/// The elements of `x` broadcast to `out`.
pub fn expand(x: &[u64], shape: &[usize], out: &[usize]) -> Result<Vec<u64>> {
    zip((x, shape), (&[0], &[]), out, |x, _| x)
}

/// The product of the sizes. E0804 when it overflows.
pub fn volume(shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .ok_or_else(|| Diagnostic::internal("E0804", format!("a tensor of shape {shape:?} has too many elements")))
}

/// The shape that two shapes broadcast to. E0804 when there is none.
pub fn broadcast_shape(x: &[usize], y: &[usize]) -> Result<Vec<usize>> {
    let rank = x.len().max(y.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|axis| match (size(x, axis), size(y, axis)) {
            (1, n) | (n, 1) => Ok(n),
            (n, m) if n == m => Ok(n),
            _ => Err(mismatch(x, y)),
        })
        .collect()
}

/// Stride of each axis of `out` in a row-major tensor of `shape` that broadcasts to it; 0 where it repeats.
pub(super) fn strides(shape: &[usize], out: &[usize]) -> Result<Vec<usize>> {
    let skipped = out.len().checked_sub(shape.len()).ok_or_else(|| mismatch(shape, out))?;
    let mut strides = vec![0; out.len()];
    let mut stride = 1;
    for (axis, &size) in shape.iter().enumerate().rev() {
        if size == out[skipped + axis] {
            strides[skipped + axis] = stride;
        } else if size != 1 {
            return Err(mismatch(shape, out));
        }
        stride *= size;
    }
    Ok(strides)
}

fn walk(x: (&[u64], &[usize]), y: (&[u64], &[usize]), out: &[usize]) -> Result<Walk> {
    for (words, shape) in [x, y] {
        if words.len() != volume(shape)? {
            return Err(Diagnostic::internal("E0804", "a tensor's words do not fill its shape")
                .note(format!("expected  shape {shape:?}"))
                .note(format!("found     {} words", words.len())));
        }
    }
    let count = volume(out)?;
    let (sx, sy) = (strides(x.1, out)?, strides(y.1, out)?);
    let mut axes: Vec<(usize, usize, usize)> = Vec::with_capacity(out.len());
    for ((&size, sx), sy) in out.iter().zip(sx).zip(sy).filter(|((size, _), _)| **size != 1) {
        match axes.last_mut() {
            Some((outer, ox, oy)) if *ox == sx * size && *oy == sy * size => {
                (*outer, *ox, *oy) = (*outer * size, sx, sy);
            }
            _ => axes.push((size, sx, sy)),
        }
    }
    Ok(Walk { axes, count })
}

impl Walk {
    /// Calls `run(i, j, innermost axis)` with both operands' positions at the start of every innermost run.
    fn each_run(&self, mut run: impl FnMut(usize, usize, (usize, usize, usize))) {
        if self.count == 0 {
            return;
        }
        let Some((&inner, outer)) = self.axes.split_last() else { return run(0, 0, (1, 1, 1)) };
        let mut index = vec![0; outer.len()];
        let (mut i, mut j) = (0, 0);
        loop {
            run(i, j, inner);
            let mut axis = outer.len();
            loop {
                let Some(at) = axis.checked_sub(1) else { return };
                let (size, sx, sy) = outer[at];
                index[at] += 1;
                (i, j) = (i + sx, j + sy);
                if index[at] < size {
                    break;
                }
                (i, j) = (i - sx * size, j - sy * size);
                index[at] = 0;
                axis = at;
            }
        }
    }
}

fn mismatch(x: &[usize], y: &[usize]) -> Diagnostic {
    Diagnostic::internal("E0804", format!("shapes {x:?} and {y:?} do not broadcast"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element of `x` at a position of the result, by the definition.
    fn at(x: &[u64], shape: &[usize], position: &[usize]) -> u64 {
        let skipped = position.len() - shape.len();
        let index = shape.iter().zip(&position[skipped..]).fold(0, |i, (&n, &p)| i * n + if n == 1 { 0 } else { p });
        x[index]
    }

    #[test]
    fn zip_follows_the_definition_of_broadcasting() {
        let shapes: [(&[usize], &[usize]); 12] = [
            (&[], &[]),
            (&[3], &[]),
            (&[2, 3], &[3]),
            (&[2, 1], &[1, 3]),
            (&[2, 3, 4], &[3, 1]),
            (&[2, 1, 4], &[2, 3, 4]),
            (&[1, 3, 1, 2], &[2, 1, 4, 1]),
            (&[2, 3, 4], &[2, 3, 4]),
            (&[2, 1, 1], &[2, 3, 4]),
            (&[0, 3], &[3]),
            (&[2, 0], &[1, 1]),
            (&[1, 1], &[1]),
        ];
        for (xs, ys) in shapes {
            let out = broadcast_shape(xs, ys).unwrap();
            let x: Vec<u64> = (0..volume(xs).unwrap() as u64).map(|i| i * 7 + 1).collect();
            let y: Vec<u64> = (0..volume(ys).unwrap() as u64).map(|i| i * 1000).collect();
            let expected: Vec<u64> = (0..volume(&out).unwrap())
                .map(|flat| {
                    let mut rest = flat;
                    let mut position = vec![0; out.len()];
                    for axis in (0..out.len()).rev() {
                        position[axis] = rest % out[axis];
                        rest /= out[axis];
                    }
                    at(&x, xs, &position) + at(&y, ys, &position)
                })
                .collect();
            assert_eq!(zip((&x, xs), (&y, ys), &out, |x, y| x + y).unwrap(), expected, "{xs:?} {ys:?}");
        }
    }

    #[test]
    fn shapes_that_do_not_broadcast_are_refused() {
        assert!(broadcast_shape(&[2, 3], &[2]).is_err());
        assert!(zip((&[1, 2], &[2]), (&[1, 2, 3], &[3]), &[3], |x, _| x).is_err());
        assert!(expand(&[1, 2], &[2], &[3]).is_err());
        assert!(expand(&[1, 2, 3], &[2], &[2]).is_err());
    }
}
