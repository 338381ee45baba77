//! Drawing programs in the reference meaning, against distributions in double precision.

use fastrand::Rng;
use ombra_compiler::passes::assign_rotations::{Spread, assign_rotations};
use ombra_compiler::sampling::drawings;
use ombra_ir::bind::bind;
use ombra_ir::dim::{Dim, Dims};
use ombra_ir::draw::{Drawing, Filter, Sampling, USUAL_CANDIDATES};
use ombra_ir::infer::{push, push_source};
use ombra_ir::module::{InputSlot, Module, Origin, OutputKind, OutputSlot, Party, Setting, Stage};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::reference::{RefValue, encode, eval};
use ombra_ir::schedule::schedule;
use ombra_ir::ty::{Sharing, Ty};
use ombra_ir::verify;

const SCALE: u8 = 16;

/// A module that reveals the maximum of the client's logits.
fn greedy(rows: usize, tokens: usize, bound: u8) -> Module {
    let shape = [rows, 1, tokens].map(|n| Dim::from_usize(n).unwrap()).to_vec();
    let mut m = Module::empty("m".into(), Setting::ThreeParty, Stage::Expanded, Dims::default());
    m.inputs.push(InputSlot { name: "x".into(), dtype: DType::F32, shape: shape.clone() });
    m.outputs.push(OutputSlot { name: "logits".into(), kind: OutputKind::NextToken, to: Party::Client });
    let origin = Origin { node: "/head".into(), ..Origin::default() };
    let ty = Ty::ring(64, SCALE, Sharing::Shared, shape, bound);
    let x = push_source(&mut m, Op::Input { slot: 0 }, ty, origin.clone()).unwrap();
    let mut op = |op: Op, args: &[_]| push(&mut m, op, args, None, origin.clone()).unwrap();
    let small = op(Op::Narrow { bits: ((bound + 3).div_ceil(8) * 8).max(32) }, &[x]);
    let best = op(Op::ArgMax { width: bound + 2 }, &[small]);
    op(Op::Reveal { slot: 0 }, &[best]);
    assign_rotations(&mut m, Spread::Fixed);
    m
}

/// What is drawn in every row, with fresh bits from `random`.
fn run(greedy: &Module, drawing: &Drawing, logits: &[f32], sampling: &Sampling, random: &mut Rng) -> Vec<usize> {
    let module = &drawing.module(greedy).unwrap();
    let found = verify::findings(module);
    assert!(found.is_empty(), "{:?}", found.iter().map(|f| f.diagnostic.to_string()).collect::<Vec<_>>());
    let sizes = sampling.sizes(drawing);
    let sizes: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let bound = bind(module, &sizes, &sampling.public_inputs(drawing).unwrap()).unwrap();
    let mut values: Vec<RefValue> = Vec::with_capacity(module.ops.len());
    for (i, node) in module.ops.iter().enumerate() {
        let args: Vec<_> = node.args.iter().map(|a| (&values[a.index()], module.ty(*a))).collect();
        let shape = bound.shapes[i].clone();
        values.push(match &node.op {
            Op::Input { .. } => RefValue::ring(64, shape, encode(logits, 64, SCALE, node.ty.bound).unwrap()).unwrap(),
            Op::Public { value } => RefValue::plain(bound.public[*value as usize].clone()),
            Op::Random { .. } => {
                let n = shape.iter().product();
                RefValue::bit(shape, (0..n).map(|_| random.bool()).collect()).unwrap()
            }
            op => eval(op, &args, &node.ty, &bound.bindings).unwrap(),
        });
    }
    let (_, drawn) = values.last().unwrap().as_ring().unwrap();
    drawn.iter().map(|&index| index as usize).collect()
}

/// Probabilities in double precision, as usual libraries have them.
fn probabilities(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let few = sampling.top_k.or(sampling.top_p.map(|_| USUAL_CANDIDATES));
    order.truncate(few.unwrap_or(u64::MAX).min(logits.len() as u64) as usize);
    let mass = |i: usize| (f64::from(logits[i] - logits[order[0]]) / f64::from(sampling.temperature)).exp();
    let all: f64 = order.iter().map(|&i| mass(i)).sum();
    let mut before = 0.0;
    let mut p = vec![0.0; logits.len()];
    for &i in &order {
        if before < all * f64::from(sampling.top_p.unwrap_or(1.0)) || sampling.top_p.is_none() {
            p[i] = mass(i);
        }
        before += mass(i);
    }
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}

fn sampling(temperature: f32, top_k: Option<u64>, top_p: Option<f32>) -> Sampling {
    Sampling { temperature, top_k, top_p }
}

/// How far the numbers of draws are from what is expected, in deviations of chi-square.
fn chi_square(draws: &[usize], p: &[f64]) -> f64 {
    let mut found = vec![0usize; p.len()];
    draws.iter().for_each(|&i| found[i] += 1);
    let n = draws.len() as f64;
    // Rare tokens together.
    let (mut rare, mut rare_found, mut sum, mut cells) = (0.0, 0.0, 0.0, 0);
    for (&p, &found) in p.iter().zip(&found) {
        assert!(p > 0.0 || found == 0, "a token that must not be drawn was drawn {found} times");
        if p * n < 8.0 {
            rare += p * n;
            rare_found += found as f64;
        } else {
            sum += (found as f64 - p * n).powi(2) / (p * n);
            cells += 1;
        }
    }
    if rare > 0.0 {
        sum += (rare_found - rare).powi(2) / rare.max(1.0);
        cells += 1;
    }
    let freedom = f64::from(cells.max(2) - 1);
    (sum - freedom) / (2.0 * freedom).sqrt()
}

fn normal(random: &mut Rng) -> f32 {
    ((0..12).map(|_| random.f64()).sum::<f64>() - 6.0) as f32
}

#[test]
fn draws_follow_the_distribution() {
    let mut random = Rng::with_seed(11);
    // Bounds of logits for which scores have 13, 10, 16 and 8 fraction bits, the last two in rings of 40 bits.
    for (tokens, spread, bound) in [(7, 1.0, 25), (16, 3.0, 28), (97, 2.0, 30), (40, 3.0, 38), (1000, 3.0, 22)] {
        let logits: Vec<f32> = (0..tokens).map(|_| spread * normal(&mut random)).collect();
        let rows = 2500;
        let module = greedy(rows, tokens, bound);
        let all: Vec<f32> = (0..rows).flat_map(|_| logits.iter().copied()).collect();
        let drawings = drawings(&module, Spread::Fixed, false).unwrap();
        assert_eq!(drawings.iter().map(|d| d.way.filter).collect::<Vec<_>>(), Filter::ALL[1..]);
        for sampling in [
            sampling(1.0, None, None),
            sampling(0.7, None, None),
            sampling(2.5, None, None),
            sampling(1.0, Some(1), None),
            sampling(0.8, Some(5), None),
            sampling(3.0, Some(40), None),
            sampling(1.0, None, Some(0.9)),
            sampling(1.5, Some(6), Some(0.6)),
            sampling(1.0, Some(20), Some(1e-6)),
        ] {
            sampling.check().unwrap();
            let drawing = drawings.iter().find(|d| d.way.filter == sampling.filter()).unwrap();
            let found = run(&module, drawing, &all, &sampling, &mut random);
            let off = chi_square(&found, &probabilities(&logits, &sampling));
            assert!(off < 6.0, "{tokens} tokens, {sampling:?}: {off:.1} deviations");
        }
    }
}

/// Blocks with equal maxima at the border of the candidates: what is better than these stays, wherever it stands.
#[test]
fn equal_tokens_displace_no_better_one() {
    let mut random = Rng::with_seed(5);
    for (tokens, equal, best) in
        [(1000, (0..1000).collect::<Vec<_>>(), 999), (1000, vec![0, 32, 200], 500), (64, (0..64).collect(), 63)]
    {
        let rows = 300;
        let module = greedy(rows, tokens, 22);
        let mut logits = vec![-5.0; tokens];
        equal.iter().for_each(|&i| logits[i] = 0.0);
        logits[best] = 15.0;
        let all: Vec<f32> = (0..rows).flat_map(|_| logits.iter().copied()).collect();
        let drawings = drawings(&module, Spread::Fixed, false).unwrap();
        for sampling in [
            sampling(1.0, Some(1), None),
            sampling(1.0, Some(2), None),
            sampling(1.0, Some(20), Some(0.9)),
            sampling(1.0, None, Some(0.9)),
            sampling(1.0, Some(20), Some(1e-30)),
        ] {
            let drawing = drawings.iter().find(|d| d.way.filter == sampling.filter()).unwrap();
            let found = run(&module, drawing, &all, &sampling, &mut random);
            let missed = found.iter().filter(|&&index| index != best).count();
            // Its probability is at least 0.9996.
            assert!(missed <= 8, "{tokens} tokens, {sampling:?}: {missed} of {rows}");
        }
    }
}

/// Payload bytes of all parties and rounds of a step, on a vocabulary of 49152.
fn cost(module: &Module, sizes: &[(&str, u64)], public: &[(String, Tensor)]) -> (u64, u32) {
    let bound = bind(module, sizes, public).unwrap();
    let cost = schedule(module, &bound).unwrap().cost(module);
    (cost.bytes.iter().sum(), cost.rounds)
}

#[test]
fn drawing_costs_little_more_than_choosing() {
    let module = greedy(1, 49152, 25);
    let mut found = vec![("greedy", 0, cost(&module, &[], &[]))];
    let drawings = drawings(&module, Spread::Fixed, false).unwrap();
    for (sampling, k) in [
        (sampling(1.0, None, None), 0),
        (sampling(1.0, Some(20), None), 20),
        (sampling(1.0, Some(50), None), 50),
        (sampling(1.0, Some(20), Some(0.9)), 20),
        (sampling(1.0, Some(50), Some(0.9)), 50),
        (sampling(1.0, None, Some(0.9)), 128),
    ] {
        let drawing = drawings.iter().find(|d| d.way.filter == sampling.filter()).unwrap();
        let sizes = sampling.sizes(drawing);
        let sizes: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let drawn = drawing.module(&module).unwrap();
        let public = sampling.public_inputs(drawing).unwrap();
        found.push((sampling.filter().name(), k, cost(&drawn, &sizes, &public)));
    }
    let lines: Vec<String> =
        found.iter().map(|(name, k, (bytes, rounds))| format!("{name} {k}: {bytes} B, {rounds} rounds")).collect();
    assert_eq!(lines, COSTS, "{lines:#?}");
}

const COSTS: [&str; 7] = [
    "greedy 0: 3134372 B, 36 rounds",
    "temperature 0: 6627927 B, 54 rounds",
    "top-k 20: 6141686 B, 170 rounds",
    "top-k 50: 8664330 B, 170 rounds",
    "top-p 20: 6568178 B, 234 rounds",
    "top-p 50: 9726822 B, 234 rounds",
    "top-p 128: 17349093 B, 236 rounds",
];

#[test]
fn modules_that_cannot_be_drawn_from_have_no_drawings() {
    // Logits too wide for scores, and too few tokens.
    assert!(drawings(&greedy(1, 50, 39), Spread::Fixed, true).unwrap().is_empty());
    assert!(drawings(&greedy(1, 3, 22), Spread::Fixed, true).unwrap().is_empty());
    let mut tensor = greedy(1, 50, 22);
    tensor.outputs[0].kind = OutputKind::Index;
    assert!(drawings(&tensor, Spread::Fixed, true).unwrap().is_empty());
}
