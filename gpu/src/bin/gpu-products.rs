//! Times ring products on this machine's graphics processor beside its processor, and writes a table.
//!
//! `--tiny` takes sizes at which a driver that computes on the processor needs seconds, and says nothing about speed.
//! `OMBRA_GPU_SOFTWARE` and `OMBRA_GPU_MEMORY` mean what they mean to `ombra-run`.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use ombra_gpu::{Error, Form, Gpu, Options, Placed, Result, open};
use ombra_kernels::gemm::{MatRef, gemm_acc};

/// Sizes of a run.
struct Sizes {
    /// Width of a layer, and of what is between its two last products.
    width: usize,
    between: usize,
    /// Rows of a prompt.
    rows: [usize; 2],
    /// Rows and columns of a matrix that is sent and fetched.
    moved: usize,
}

/// A layer as wide as LLaMA-7B's.
const FULL: Sizes = Sizes { width: 4096, between: 11008, rows: [512, 2048], moved: 4096 };
const TINY: Sizes = Sizes { width: 128, between: 344, rows: [16, 40], moved: 256 };

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let sizes = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => FULL,
        ["--tiny"] => TINY,
        _ => {
            eprintln!("expected  gpu-products [--tiny]");
            return ExitCode::from(2);
        }
    };
    match run(&sizes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(sizes: &Sizes) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut opened = Vec::new();
    for form in [Form::Wide, Form::Limbs] {
        let options = Options { form: Some(form), ..Options::from_environment()? };
        match open(&options) {
            Ok(gpu) => opened.push(gpu),
            // A device without 64-bit integers has the other form.
            Err(Error::Unfit(why)) if form == Form::Wide => eprintln!("{why}"),
            Err(error) => return Err(error),
        }
    }
    println!("| what | {} | processor, {threads} threads |\n|---|---|---|", names(&opened).join(" | "));
    let row = |what: &str, found: Vec<String>, processor: String| {
        // Where there is one form only, its column is the only one.
        println!("| {what} | {} | {processor} |", found.join(" | "));
    };
    let all = |measure: &dyn Fn(&Arc<Gpu>) -> Result<String>| opened.iter().map(measure).collect::<Result<Vec<_>>>();
    let words = words(sizes.moved * sizes.moved);
    let bytes = 8.0 * words.len() as f64;
    row(
        "matrix to the device",
        all(&|gpu| {
            let seconds = best(3, || place(gpu, &words, sizes.moved, sizes.moved).map(drop))?;
            Ok(format!("{:.2} GB/s", bytes / seconds / 1e9))
        })?,
        String::new(),
    );
    row(
        "result from the device",
        all(&|gpu| {
            let placed = place(gpu, &words[..sizes.moved], 1, sizes.moved)?;
            let mut out = vec![0; words.len()];
            let seconds = best(3, || placed.add_product(&words[..sizes.moved], false, &mut out))?;
            Ok(format!("{:.2} GB/s", bytes / seconds / 1e9))
        })?,
        String::new(),
    );
    row(
        "smallest product, there and back",
        all(&|gpu| {
            let placed = place(gpu, &words[..256], 16, 16)?;
            let mut out = vec![0; 16];
            let seconds = best(50, || placed.add_product(&words[..16], false, &mut out))?;
            Ok(format!("{:.0} us", seconds * 1e6))
        })?,
        String::new(),
    );
    let Sizes { width, between, .. } = *sizes;
    for trans_b in [false, true] {
        for m in [1, 8, sizes.rows[0]] {
            let what =
                format!("{m} x {width} times {width} x {width}{}", if trans_b { ", axes exchanged" } else { "" });
            compare(&row, &opened, &what, (m, &[(width, width)]), trans_b, threads)?;
        }
    }
    let layer = [
        (width, width),
        (width, width),
        (width, width),
        (width, width),
        (width, between),
        (width, between),
        (between, width),
    ];
    for m in [1, sizes.rows[0], sizes.rows[1]] {
        compare(&row, &opened, &format!("a layer's 7 products, {m} rows"), (m, &layer), false, threads)?;
    }
    Ok(())
}

fn names(opened: &[Arc<Gpu>]) -> Vec<&str> {
    opened.iter().map(|gpu| gpu.name()).collect()
}

/// A line for products of `m` rows with matrices of these sizes, one after another.
fn compare(
    row: &dyn Fn(&str, Vec<String>, String),
    opened: &[Arc<Gpu>],
    what: &str,
    (m, matrices): (usize, &[(usize, usize)]),
    trans_b: bool,
    threads: usize,
) -> Result<()> {
    let work: f64 = matrices.iter().map(|(k, n)| (m * k * n) as f64).sum();
    let shown = |seconds: f64| format!("{:.3} ms, {:.1} GMAC/s", seconds * 1e3, work / seconds / 1e9);
    let largest = matrices.iter().map(|(k, n)| k * n).max().unwrap_or(0);
    let (weights, x) = (words(largest), words(m * matrices.iter().map(|(k, _)| *k).max().unwrap_or(0)));
    let mut out = vec![0; m * matrices.iter().map(|(_, n)| *n).max().unwrap_or(0)];
    let mut found = Vec::new();
    for gpu in opened {
        let placed = matrices.iter().map(|&(k, n)| {
            let (rows, columns) = if trans_b { (n, k) } else { (k, n) };
            place(gpu, &weights[..k * n], rows, columns)
        });
        let placed = placed.collect::<Result<Vec<_>>>()?;
        let seconds = best(3, || {
            for (placed, &(k, n)) in placed.iter().zip(matrices) {
                placed.add_product(&x[..m * k], trans_b, &mut out[..m * n])?;
            }
            Ok(())
        })?;
        found.push(shown(seconds));
    }
    let view = |words, rows, columns| {
        MatRef::row_major(words, rows, columns).map_err(|_| Error::Sizes("a view of other sizes".to_owned()))
    };
    let seconds = best(2, || {
        for &(k, n) in matrices {
            let right = if trans_b { view(&weights, n, k)?.transposed() } else { view(&weights, k, n)? };
            gemm_acc(view(&x, m, k)?, right, &mut out[..m * n], threads);
        }
        Ok(())
    })?;
    row(what, found, shown(seconds));
    Ok(())
}

/// Words that use all bits.
fn words(n: usize) -> Vec<u64> {
    (0..n as u64).map(|i| (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ i << 29).collect()
}

fn place(gpu: &Arc<Gpu>, words: &[u64], rows: usize, columns: usize) -> Result<Placed> {
    let placing = gpu.place(rows, columns)?;
    let mut placing = placing.ok_or_else(|| Error::Unfit(format!("no room for {rows} x {columns} elements")))?;
    placing.put(words)?;
    placing.end()
}

/// The best time of some runs, in seconds.
fn best(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}
