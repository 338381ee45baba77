//! Expansions against the functions in double precision, with every choice that shares leave drawn: what a truncation
//! rounds to, what a cut lacks, which side a blurred comparison takes.

use super::expand;
use fastrand::Rng;
use ombra_ir::bind::bind;
use ombra_ir::curve::Curve;
use ombra_ir::dim::{Dim, Dims};
use ombra_ir::infer::{push, push_source};
use ombra_ir::module::{Count, Id, InputSlot, Module, Origin, OutputKind, OutputSlot, Party, Setting, Stage};
use ombra_ir::op::Op;
use ombra_ir::plain::{self, DType, Program, Tensor};
use ombra_ir::reference::{RefValue, eval, mask, signed};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::verify;

/// Near to a normal variable of deviation 1.
fn normal(random: &mut Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

/// One op of one operand, lowered: rows of `columns` at `scale` below `2^bound`. An op of two operands is given a mask
/// that keeps everything.
fn module(op: Op, (rows, columns): (usize, usize), scale: u8, bound: u8) -> Module {
    let shape = [rows, columns].map(|n| Dim::from_usize(n).unwrap()).to_vec();
    let mut module = Module {
        name: "m".into(),
        setting: Setting::ThreeParty,
        stage: Stage::Lowered,
        dims: Dims::default(),
        counts: vec![],
        public: Program::default(),
        inputs: vec![InputSlot { name: "x".into(), dtype: DType::F32, shape: shape.clone() }],
        states: vec![],
        outputs: vec![OutputSlot { name: "y".into(), kind: OutputKind::Tensor, to: Party::Client }],
        ops: vec![],
    };
    let m = &mut module;
    let origin = || Origin { node: "/the/node".into(), ..Origin::default() };
    let x = Ty::ring(64, scale, Sharing::Shared, shape.clone(), bound);
    let x = push_source(m, Op::Input { slot: 0 }, x, origin()).unwrap();
    let mut args = vec![x];
    if op.arity() == Some(2) {
        let all = plain::Op::Constant(Tensor::bool(&[rows, columns], vec![true; rows * columns]).unwrap());
        let all = m.public.push(all, vec![]).unwrap();
        m.public.outputs.push(all);
        let sym = m.dims.symbol("kept").unwrap();
        let info = m.dims.info_mut(sym).unwrap();
        (info.min, info.max) = (0, Some((rows * columns) as u64));
        m.counts.push(Count { sym, mask: 0, shape: shape.clone() });
        let ty = Ty::plain(DType::Bool, Sharing::Public, shape);
        args.push(push_source(m, Op::Public { value: 0 }, ty, origin()).unwrap());
    }
    let y = push(m, op, &args, None, origin()).unwrap();
    push(m, Op::Reveal { slot: 0 }, &[y], None, origin()).unwrap();
    module
}

/// The result's integers and scale, with the choices of shares drawn from `random`, or as the reference takes them.
fn run(module: &Module, x: &[i64], random: Option<&mut Rng>) -> (Vec<i64>, u8) {
    let expanded = expand(module).unwrap();
    let found = verify::findings(&expanded);
    assert!(found.is_empty(), "{:?}", found.iter().map(|f| f.diagnostic.to_string()).collect::<Vec<_>>());
    run_expanded(&expanded, x, random)
}

fn run_expanded(module: &Module, x: &[i64], mut random: Option<&mut Rng>) -> (Vec<i64>, u8) {
    let components = module.setting.protocol().components;
    let bound = bind(module, &[], &[]).unwrap();
    let mut values: Vec<RefValue> = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let args: Vec<_> = node.args.iter().map(|a| (&values[a.index()], module.ty(*a))).collect();
        let value = match &node.op {
            Op::Input { .. } => {
                RefValue::ring(64, bound.shapes[i].clone(), x.iter().map(|x| *x as u64).collect()).unwrap()
            }
            Op::Public { value } => RefValue::plain(bound.public[*value as usize].clone()),
            op => match random.as_deref_mut().map(|r| drawn(components, op, &args, r)) {
                Some(Some(value)) => value,
                _ => eval(op, &args, &node.ty, &bound.bindings).unwrap(),
            },
        };
        values.push(value);
    }
    let last = module.ops.last().unwrap();
    let (bits, scale) = module.ty(last.args[0]).as_ring().unwrap();
    let (_, words) = values.last().unwrap().as_ring().unwrap();
    (words.iter().map(|w| signed(*w, bits)).collect(), scale)
}

/// What shares decide of an op.
fn drawn(components: u8, op: &Op, args: &[(&RefValue, &Ty)], random: &mut Rng) -> Option<RefValue> {
    let (x, _) = args.first()?;
    let (bits, values) = x.as_ring().ok()?;
    let shape = x.shape.clone();
    match *op {
        Op::Cut { by } => {
            let cut = |x: &u64| {
                let (mut last, mut sum) = (*x, 0u64);
                for _ in 1..components {
                    let component = random.u64(..) & mask(bits);
                    last = last.wrapping_sub(component);
                    sum = sum.wrapping_add(component >> by);
                }
                sum.wrapping_add((last & mask(bits)) >> by)
            };
            Some(RefValue::ring(bits - by, shape, values.iter().map(cut).collect()).unwrap())
        }
        Op::Truncate { by, bits: to } if by > 0 => {
            let divide = |x: &u64| ((signed(*x, bits) as i128 + i128::from(random.u64(..) & mask(by))) >> by) as u64;
            Some(RefValue::ring(to, shape, values.iter().map(divide).collect()).unwrap())
        }
        Op::Msb { width, drop } if drop > 0 => {
            let sign = |x: &u64| {
                let lowered = x.wrapping_sub(random.u64(..) & mask(drop));
                (lowered >> (width - 1)) & 1 == 1
            };
            Some(RefValue::bit(shape, values.iter().map(sign).collect()).unwrap())
        }
        _ => None,
    }
}

/// A norm of rows of one operand.
#[derive(Clone, Copy)]
struct Norm {
    setting: Setting,
    columns: usize,
    scale: u8,
    length: u8,
    eps: f32,
    centred: bool,
}

const NORM_SCALE: u8 = 16;

impl Norm {
    fn module(self, rows: usize) -> Module {
        let (eps, length, scale) = (self.eps.into(), self.length, NORM_SCALE);
        let op = if self.centred { Op::LayerNorm { eps, length, scale } } else { Op::RmsNorm { eps, length, scale } };
        Module { setting: self.setting, ..module(op, (rows, self.columns), self.scale, 60) }
    }

    /// What it is of integers.
    fn exactly(self, row: &[i64]) -> Vec<f64> {
        let n = row.len() as f64;
        let x: Vec<f64> = row.iter().map(|&x| libm::ldexp(x as f64, -i32::from(self.scale))).collect();
        // Integers, so that the mean of large ones is exact.
        let mean = if self.centred { row.iter().map(|&x| i128::from(x)).sum::<i128>() as f64 / n } else { 0.0 };
        let mean = libm::ldexp(mean, -i32::from(self.scale));
        let square = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        let root = libm::sqrt(square + f64::from(self.eps));
        x.iter().map(|x| if root > 0.0 { (x - mean) / root } else { 0.0 }).collect()
    }

    /// The maximum error of every row, less what the result's own rounding makes, relative to its maximum entry.
    fn errors(self, rows: &[Vec<i64>], random: Option<&mut Rng>) -> Vec<f64> {
        let all: Vec<i64> = rows.concat();
        let (found, scale) = run(&self.module(rows.len()), &all, random);
        assert_eq!(scale, NORM_SCALE);
        let unit = libm::ldexp(1.0, -i32::from(NORM_SCALE));
        let rows = rows.iter().zip(found.chunks_exact(self.columns));
        rows.map(|(row, found)| {
            let exactly = self.exactly(row);
            let most = exactly.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let error = found.iter().zip(&exactly).map(|(y, x)| (*y as f64 * unit - x).abs()).fold(0.0, f64::max);
            (error - 1.001 * unit).max(0.0) / most.max(unit)
        })
        .collect()
    }

    /// Rows of every length from `2^from` units on, a quarter of a bit apart: plain, with one entry 300 times the others,
    /// and with a mean as large as their deviation.
    fn rows(self, from: i32, random: &mut Rng) -> Vec<(f64, Vec<i64>)> {
        let mut rows = Vec::new();
        for quarter in 4 * from..4 * i32::from(self.length) {
            for kind in 0..3 {
                let mut row: Vec<f64> = (0..self.columns).map(|_| normal(random)).collect();
                match kind {
                    1 => row[self.columns / 3] = 300.0,
                    2 => row.iter_mut().for_each(|x| *x += 1.0),
                    _ => {}
                }
                let log = f64::from(quarter) / 4.0;
                let norm = libm::sqrt(row.iter().map(|x| x * x).sum::<f64>());
                let size = 0.999 * libm::exp2(log) / norm;
                rows.push((log, row.iter().map(|x| libm::round(x * size) as i64).collect()));
            }
        }
        rows
    }
}

/// Rows of any length below the longest, with any eps: 1e-4 below the level of 32 bits, 2e-3 above.
#[test]
fn norms_of_rows_of_any_length() {
    let mut random = Rng::with_seed(1);
    let sizes = [(48, 20, 27), (96, 16, 31), (64, 20, 36), (576, 20, 43), (80, 20, 46)];
    let settings = [Setting::ThreeParty, Setting::Dealer];
    for ((columns, scale, length), setting) in sizes.into_iter().flat_map(|s| settings.map(|setting| (s, setting))) {
        for eps in [1e-5, 1e-6, 1e-12, 0.0] {
            let norm = Norm { setting, columns, scale, length, eps, centred: false };
            let (logs, rows): (Vec<f64>, Vec<Vec<i64>>) = norm.rows(8, &mut random).into_iter().unzip();
            let errors = norm.errors(&rows, Some(&mut random));
            for (log, error) in logs.iter().zip(&errors) {
                // Rows near the longest have a factor of fewer bits.
                let near = *log > f64::from(length) - 4.0;
                let most = match *log {
                    log if log < 30.0 => {
                        if near {
                            6e-5
                        } else {
                            2e-5
                        }
                    }
                    log if log < 42.0 => 1e-4,
                    _ => 2e-3,
                };
                assert!(*error <= most, "{setting:?}, {columns} columns, eps {eps:e}, length 2^{log}: {error:.1e}");
            }
            let plain = norm.errors(&rows, None).into_iter().fold(0.0, f64::max);
            assert!(plain < 3e-3, "the own choices of the reference: {plain:.1e}");
        }
    }
}

/// Of two parties alone, whose factors are shorter.
#[test]
fn norms_of_rows_of_any_length_with_short_factors() {
    let mut random = Rng::with_seed(3);
    for (columns, scale, length) in [(48, 14, 27), (96, 14, 31), (576, 14, 36)] {
        for (eps, centred) in [(1e-5, false), (1e-5, true), (0.0, false)] {
            let norm = Norm { setting: Setting::TwoParty, columns, scale, length, eps, centred };
            let (logs, rows): (Vec<f64>, Vec<Vec<i64>>) = norm.rows(8, &mut random).into_iter().unzip();
            for (log, error) in logs.iter().zip(norm.errors(&rows, Some(&mut random))) {
                let most = match f64::from(length) - log {
                    below if below < 4.0 => 2e-3,
                    below if below < 8.0 => 7e-4,
                    _ => 2e-4,
                };
                assert!(error <= most, "{columns} columns, {eps:e}, {centred}, length 2^{log}: {error:.1e}");
            }
        }
    }
}

/// The far end, beyond what scales are chosen for.
#[test]
fn norms_of_the_longest_rows() {
    let mut random = Rng::with_seed(2);
    let norm = Norm { setting: Setting::ThreeParty, columns: 32, scale: 20, length: 50, eps: 1e-5, centred: false };
    let (logs, rows): (Vec<f64>, Vec<Vec<i64>>) = norm.rows(20, &mut random).into_iter().unzip();
    for (log, error) in logs.iter().zip(norm.errors(&rows, Some(&mut random))) {
        assert!(error < if *log < 42.0 { 1e-4 } else { 5e-2 }, "length 2^{log}: {error:.1e}");
    }
}

/// Rows of zeros and of one unit, with an eps and without.
#[test]
fn norms_of_the_shortest_rows() {
    for (eps, centred) in [(0.0, false), (1e-12, false), (1e-5, false), (0.0, true), (1e-5, true)] {
        for length in [20, 41] {
            let norm = Norm { setting: Setting::ThreeParty, columns: 16, scale: 20, length, eps, centred };
            let mut unit = vec![0; 16];
            unit[5] = 1;
            let errors = norm.errors(&[vec![0; 16], unit.clone()], Some(&mut Rng::with_seed(3)));
            // An eps of few squared units is rounded to a whole number of them.
            let most = if eps == 1e-12 { 2e-2 } else { 2e-5 };
            assert!(errors.iter().all(|e| *e < most), "eps {eps:e}: {errors:?}");
            let (zeros, _) = run(&norm.module(1), &[0; 16], Some(&mut Rng::with_seed(4)));
            assert!(zeros.iter().all(|y| y.abs() <= 1), "{zeros:?}");
        }
    }
}

/// What a level below holds of a long row has wrapped: whatever the shares are, it counts for nothing.
#[test]
fn wrapped_statistics_are_multiplied_by_zero() {
    let norm = Norm { setting: Setting::ThreeParty, columns: 48, scale: 20, length: 44, eps: 1e-5, centred: false };
    let mut random = Rng::with_seed(5);
    let rows: Vec<Vec<i64>> = norm.rows(32, &mut random).into_iter().map(|(_, row)| row).collect();
    let module = norm.module(rows.len());
    let expanded = expand(&module).unwrap();
    let all = rows.concat();
    let first = run_expanded(&expanded, &all, None).0;
    for seed in 0..8 {
        let found = run_expanded(&expanded, &all, Some(&mut Rng::with_seed(seed))).0;
        for ((row, x), y) in rows.iter().zip(first.chunks_exact(48)).zip(found.chunks_exact(48)) {
            let most = x.iter().map(|x| x.abs()).max().unwrap();
            let apart = x.iter().zip(y).map(|(x, y)| (x - y).abs()).max().unwrap();
            assert!(apart as f64 <= 2.0 + 3e-3 * most as f64, "seed {seed}: {apart} of {most}, row of {}", row[0]);
        }
    }
}

/// A mean of 3000 beside a spread of 1 takes nothing of the result.
#[test]
fn layer_norm_centres_exactly() {
    let mut random = Rng::with_seed(6);
    for (columns, mean) in [(96, 0.0), (96, 300.0), (96, 3000.0), (1024, 3000.0), (1024, -300.0)] {
        let norm = Norm {
            setting: Setting::ThreeParty,
            columns,
            scale: 20,
            length: 38 - u8::from(columns == 1024),
            eps: 1e-5,
            centred: true,
        };
        let row = |random: &mut Rng| -> Vec<i64> {
            (0..columns).map(|_| libm::round(libm::ldexp(normal(random) + mean, 20)) as i64).collect()
        };
        let rows: Vec<Vec<i64>> = (0..6).map(|_| row(&mut random)).collect();
        let (found, _) = run(&norm.module(6), &rows.concat(), Some(&mut random));
        for (row, found) in rows.iter().zip(found.chunks_exact(columns)) {
            let exactly = norm.exactly(row);
            // What is revealed is rounded down, by half a unit on average.
            let real = |y: &i64| libm::ldexp(*y as f64 + 0.5, -16);
            let errors: Vec<f64> = found.iter().zip(exactly).map(|(y, x)| real(y) - x).collect();
            let worst = errors.iter().fold(0.0f64, |m, e| m.max(e.abs()));
            let bias = errors.iter().sum::<f64>() / columns as f64;
            assert!(worst <= 2e-4, "{columns} columns of mean {mean}: {worst:.1e}");
            assert!(bias.abs() <= 2e-6, "{columns} columns of mean {mean}: bias {bias:.1e}");
        }
    }
}

/// Errors of a function of one operand at every real of `xs`, of a row each, with shares' choices drawn.
fn errors_of(op: &Op, scale: u8, bound: u8, xs: &[f64], exactly: impl Fn(f64) -> f64) -> Vec<f64> {
    let integers: Vec<i64> = xs.iter().map(|x| libm::round(libm::ldexp(*x, scale.into())) as i64).collect();
    let module = module(op.clone(), (xs.len(), 1), scale, bound);
    let (found, out) = run(&module, &integers, Some(&mut Rng::with_seed(7)));
    let reals = integers.iter().map(|&x| libm::ldexp(x as f64, -i32::from(scale)));
    reals.zip(found).map(|(x, y)| (libm::ldexp(y as f64, -i32::from(out)) - exactly(x)).abs()).collect()
}

fn largest(errors: &[f64]) -> f64 {
    errors.iter().copied().fold(0.0, f64::max)
}

/// Reals between `−most` and `most`, and some beside the powers of two up to `2^beyond`.
fn reals(most: f64, beyond: i32) -> Vec<f64> {
    let inside = (0..=800).map(|i| most * (f64::from(i) / 400.0 - 1.0));
    let outside = (4..=beyond).flat_map(|j| [-1.0, 1.0].map(|sign| sign * libm::ldexp(0.997, j)));
    inside.chain(outside).collect()
}

/// Values far outside the polynomial's interval, at every scale, up to bounds that fill the ring.
#[test]
fn activations_of_wide_values() {
    let sigmoid = |x: f64| 1.0 / (1.0 + libm::exp(-x));
    let gelu = |x: f64| x * 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
    type Function<'a> = (Op, f64, &'a dyn Fn(f64) -> f64);
    let functions: [Function; 8] = [
        (Op::Silu, 1.4e-3, &|x| x * sigmoid(x)),
        (Op::Gelu { tanh: false }, 1e-3, &gelu),
        (Op::Softplus, 5e-4, &|x| x.max(0.0) + libm::log1p(libm::exp(-x.abs()))),
        (Op::Tanh, 3e-4, &libm::tanh),
        (Op::Sigmoid, 2e-4, &sigmoid),
        (Op::Erf, 2e-4, &libm::erf),
        (Op::Sin, 2e-5, &libm::sin),
        (Op::Cos, 2e-5, &libm::cos),
    ];
    for (op, most, f) in functions {
        // Bounds below the interval's ends: the result is bounded as its operand is.
        for bound in [12, 17, 18, 19, 20] {
            let xs = reals(0.999 * libm::ldexp(1.0, i32::from(bound) - 16), 0);
            let found = largest(&errors_of(&op, 16, bound, &xs, f));
            assert!(found < most, "{} at bound {bound}: {found:.1e}", op.name());
        }
        for (scale, bound) in [(16, 21), (16, 27), (16, 46), (16, 61), (20, 46), (8, 30), (12, 24)] {
            let xs = reals(14.0, i32::from(bound) - i32::from(scale));
            let found = largest(&errors_of(&op, scale, bound, &xs, f));
            // Coarse values and results have units of their own.
            let most = most + libm::ldexp(if scale < 12 { 4.0 } else { 2.0 }, -i32::from(scale));
            assert!(found < most, "{} at scale {scale}, bound {bound}: {found:.1e}", op.name());
        }
    }
}

/// What no ring holds is refused in words that name the node and no rule of the IR.
#[test]
fn what_does_not_fit_is_said_in_the_users_terms() {
    for op in [Op::Tanh, Op::Sigmoid, Op::Exp { max: 0 }, Op::Softmax] {
        let error = expand(&module(op.clone(), (2, 2), 16, 63)).unwrap_err();
        assert_eq!((error.code, error.place.as_deref()), ("E0510", Some("/the/node")), "{}: {error}", op.name());
        assert!(!error.to_string().contains("_c"), "{error}");
    }
}

/// The exponential to 4e-6 at every scale, and 0 far below, whatever the bound.
#[test]
fn exponentials_of_wide_values() {
    for (scale, bound) in [(16, 20), (16, 28), (18, 32), (19, 32), (20, 33), (20, 46), (8, 20), (16, 60)] {
        let unit = libm::ldexp(1.0, -i32::from(scale));
        let mut xs: Vec<f64> = (0..=1200).map(|i| -f64::from(i) / 100.0).collect();
        xs.extend((4..i32::from(bound) - i32::from(scale)).map(|j| -libm::ldexp(0.997, j)));
        let errors = errors_of(&Op::Exp { max: 0 }, scale, bound, &xs, libm::exp);
        assert!(largest(&errors) < 4e-6 + unit, "scale {scale}, bound {bound}: {:.1e}", largest(&errors));
    }
}

/// Rows of scores, wide and tiny ones, and ones whose bound is below what their maximum leaves out.
#[test]
fn softmax_of_wide_and_of_tiny_scores() {
    let mut random = Rng::with_seed(8);
    for (scale, bound, spread) in [
        (16, 20, 3.0),
        (16, 29, 2000.0),
        (20, 33, 1000.0),
        (16, 7, 5e-4),
        (16, 11, 0.01),
        (16, 46, 3e8),
        (16, 61, 1e13),
        (12, 17, 8.0),
    ] {
        let columns = 24;
        let x: Vec<i64> = (0..4 * columns)
            .map(|_| libm::round(libm::ldexp((2.0 * random.f64() - 1.0) * spread, scale.into())) as i64)
            .collect();
        let module = module(Op::Softmax, (4, columns), scale, bound);
        let (found, out) = run(&module, &x, Some(&mut random));
        for (row, found) in x.chunks_exact(columns).zip(found.chunks_exact(columns)) {
            let most = *row.iter().max().unwrap();
            let e: Vec<f64> =
                row.iter().map(|x| libm::exp(libm::ldexp((x - most) as f64, -i32::from(scale)))).collect();
            let sum: f64 = e.iter().sum();
            // Of three terms a quotient is up to two units off.
            let most_off = 4e-5 + libm::ldexp(2.0, -i32::from(scale));
            for (e, y) in e.iter().zip(found) {
                let error = (libm::ldexp(*y as f64, -i32::from(out)) - e / sum).abs();
                assert!(error < most_off, "scale {scale}, bound {bound}: {error:.1e}");
            }
        }
    }
}

/// Quotients by positive parts over as many powers of two as a reciprocal tells apart: scores near nothing beside rows of
/// thousands.
#[test]
fn positive_parts_over_sums_of_any_size() {
    let mut random = Rng::with_seed(9);
    let (columns, scale, eps) = (16, 16, libm::exp2(-6.0));
    for max_log2 in [10, 20, 26] {
        let largest = libm::exp2(f64::from(max_log2) - 5.0);
        let op =
            Op::RatioSoftmax { square: false, shift: 0f32.into(), eps: (eps as f32).into(), min_log2: -6, max_log2 };
        let mut sizes = vec![0.0];
        sizes.extend((-8..max_log2.into()).map(|j| libm::ldexp(largest, j - i32::from(max_log2))));
        let mut score = |size: f64| libm::round(libm::ldexp(size * (2.0 * random.f64() - 1.0), scale)) as i64;
        let x: Vec<i64> = sizes.iter().flat_map(|size| [*size; 16]).map(&mut score).collect();
        let module = module(op, (sizes.len(), columns), scale as u8, (scale + i32::from(max_log2) - 4) as u8);
        let (found, out) = run(&module, &x, Some(&mut random));
        for (row, found) in x.chunks_exact(columns).zip(found.chunks_exact(columns)) {
            let parts: Vec<f64> = row.iter().map(|x| libm::ldexp((*x).max(0) as f64, -scale)).collect();
            let sum = parts.iter().sum::<f64>() + eps;
            for (part, y) in parts.iter().zip(found) {
                let error = (libm::ldexp(*y as f64, -i32::from(out)) - part / sum).abs();
                // Below 2^-12 a score may count as 0.
                let allowed = 4e-5 + libm::exp2(-16.0) + columns as f64 * libm::exp2(-12.0) / sum;
                assert!(error < allowed, "up to 2^{max_log2}, a sum of {sum}: {error:.1e}");
            }
        }
    }
}

/// A comparison is wide enough for what is dropped, and whole where there is no bit to spare.
#[test]
fn comparisons_make_room_for_what_they_drop() {
    use super::comparison;
    assert_eq!(comparison(2000, 0, 64), Some((21, 0)));
    assert_eq!(comparison(2000, 8, 64), Some((22, 8)));
    assert_eq!(comparison(1950, 0, 64), Some((21, 0)));
    assert_eq!(comparison(1999, 8, 64), Some((21, 8)));
    assert_eq!(comparison(1999, 14, 64), Some((22, 14)));
    assert_eq!(comparison(700, 11, 64), Some((13, 11)));
    assert_eq!(comparison(6300, 8, 64), Some((64, 0)));
    assert_eq!(comparison(6350, 8, 64), None);
    assert_eq!(comparison(6400, 0, 64), None);
}

/// What is revealed behind a selection or a lookup is rounded down as what is revealed behind a product is: no output
/// depends on how shares round.
#[test]
fn no_output_behind_a_selection_or_a_lookup_depends_on_shares() {
    let of = |op: Op, bits: u8| {
        let mut module = module(Op::Neg, (1, 60), 16, 30);
        module.setting = Setting::Dealer;
        module.ops.truncate(1);
        let (m, x) = (&mut module, Id(0));
        let origin = Origin::default;
        let quotient = push(m, Op::Truncate { by: 6, bits: 64 }, &[x], None, origin()).unwrap();
        let y = if let Op::Select = op {
            let negative = push(m, Op::Msb { width: 30, drop: 0 }, &[quotient], None, origin()).unwrap();
            let keep = push(m, Op::Not, &[negative], None, origin()).unwrap();
            push(m, op, &[keep, quotient], None, origin()).unwrap()
        } else {
            push(m, op, &[quotient], Some((bits - 2, BoundFrom::Guarded)), origin()).unwrap()
        };
        push(m, Op::Reveal { slot: 0 }, &[y], None, origin()).unwrap();
        module
    };
    let lookup = Op::Lookup { curve: Curve::Tanh, window: 14, cell: 7, bits: 32, scale: 20 };
    for module in [of(Op::Select, 64), of(lookup, 32)] {
        let x: Vec<i64> = (0..60).map(|i| 1009 * i - 30_000).collect();
        let (expected, _) = run(&module, &x, None);
        for seed in 0..20 {
            assert_eq!(run(&module, &x, Some(&mut Rng::with_seed(seed))).0, expected);
        }
    }
}
