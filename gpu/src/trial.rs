//! What a device has to show before it is used: that known products come out right, and how long it takes for one of the
//! sizes that are wanted, beside this machine's processor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ombra_kernels::gemm::{MatRef, gemm_acc};

use crate::device::Gpu;
use crate::{Error, Result};

/// Rows, inner size and columns of known products: ragged, with one row and with few, and of more than one tile.
const KNOWN: [(usize, usize, usize); 4] = [(1, 37, 43), (7, 150, 9), (67, 33, 71), (130, 65, 66)];
/// Multiplications of a trial at most.
const MOST_WORK: usize = 1 << 27;
/// How long a trial goes on, for each of the two.
const TIME: Duration = Duration::from_millis(30);

/// How long a product took at best, in seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trial {
    /// Rows, inner size and columns.
    pub sizes: [usize; 3],
    /// On the device, with the way there and back of all but the right operand.
    pub device: f64,
    /// On this machine's processor.
    pub processor: f64,
}

/// Numbers that use all bits, the same every time.
pub(crate) fn numbers(n: usize, seed: u64) -> Vec<u64> {
    let mut state = seed;
    let step = || {
        // SplitMix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    };
    std::iter::repeat_with(step).take(n).collect()
}

/// Compares known products with what the device makes of them.
pub(crate) fn check_known(gpu: &Arc<Gpu>) -> Result<()> {
    for (m, k, n) in KNOWN {
        let (x, y) = (numbers(m * k, 1), numbers(k * n, 2));
        for trans_b in [false, true] {
            let element = |p: usize, j: usize| if trans_b { y[j * k + p] } else { y[p * n + j] };
            let mut expected = numbers(m * n, 3);
            let mut found = expected.clone();
            for (i, row) in expected.chunks_exact_mut(n).enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    (0..k).for_each(|p| *sum = sum.wrapping_add(x[i * k + p].wrapping_mul(element(p, j))));
                }
            }
            if !gpu.add_product((&x, &y), (k, n), trans_b, &mut found)? {
                return Err(Error::Unfit(format!("{} has no room for a small matrix", gpu.name())));
            }
            if found != expected {
                let what = format!("{} gave a wrong product of {m} x {k} and {k} x {n}", gpu.name());
                return Err(Error::Unfit(what));
            }
        }
    }
    Ok(())
}

/// The sizes of a trial: those that are wanted, made smaller where it would take long.
fn trial_sizes([m, k, n]: [usize; 3]) -> [usize; 3] {
    let mut sizes = [m.max(1), k.max(1), n.max(1)];
    while sizes.iter().fold(1, |work: usize, &size| work.saturating_mul(size)) > MOST_WORK {
        let largest = (0..3).max_by_key(|&i| sizes[i]).unwrap_or(0);
        sizes[largest] = sizes[largest].div_ceil(2);
    }
    sizes
}

/// The best time of some runs.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    let mut best = f64::INFINITY;
    loop {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
        if begun.elapsed() >= TIME {
            return Ok(best);
        }
    }
}

/// Times a product of about these rows, inner size and columns on the device, and on `threads` threads of this machine.
/// `None` where the device has no room for it.
///
/// # Errors
/// [`Error::Failed`].
pub fn compare(gpu: &Arc<Gpu>, sizes: [usize; 3], threads: usize) -> Result<Option<Trial>> {
    let sizes = trial_sizes(sizes);
    let [m, k, n] = sizes;
    let (x, y) = (numbers(m * k, 1), numbers(k * n, 2));
    let Some(mut placing) = gpu.place(k, n)? else { return Ok(None) };
    placing.put(&y)?;
    let placed = placing.end()?;
    let mut out = vec![0; m * n];
    let device = best(|| placed.add_product(&x, false, &mut out))?;
    let unfit = |error| Error::Unfit(format!("a trial of sizes that do not fit: {error}"));
    let left = MatRef::row_major(&x, m, k).map_err(|error| unfit(format!("{error:?}")))?;
    let right = MatRef::row_major(&y, k, n).map_err(|error| unfit(format!("{error:?}")))?;
    let processor = best(|| {
        gemm_acc(left, right, &mut out, threads);
        Ok(())
    })?;
    Ok(Some(Trial { sizes, device, processor }))
}
