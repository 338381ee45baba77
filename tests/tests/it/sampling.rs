//! Drawn next tokens between three parties: their distribution, their costs, what passes between the parties, and what is
//! refused.

use ombra_compiler::graph::eval::evaluate;
use ombra_compiler::import::{Options as Sizes, import, load_weight};
use ombra_compiler::pipeline::Options;
use ombra_ir::draw::{Filter, Sampling};
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::verify;
use ombra_runtime::app::Request;
use ombra_runtime::app::inputs::token_ids;
use ombra_tests::built::{Built, build, build_with};
use ombra_tests::corpus;
use ombra_tests::parties::{self, Side};
use std::collections::BTreeMap;

const NAME: &str = "llama-optimum-1.10";
const PROMPT: [i64; 3] = [3, 1, 4];
/// Rows of a step.
const ROWS: usize = 256;

fn sampling(temperature: f32, top_k: Option<u64>, top_p: Option<f32>) -> Sampling {
    Sampling { temperature, top_k, top_p }
}

/// Every program, with the parameters that tell it from the others.
const WAYS: [Sampling; 4] = [
    Sampling { temperature: 1.5, top_k: None, top_p: None },
    Sampling { temperature: 1.0, top_k: Some(6), top_p: None },
    Sampling { temperature: 2.0, top_k: None, top_p: Some(0.8) },
    Sampling { temperature: 1.0, top_k: Some(20), top_p: Some(0.7) },
];

/// One step on as many copies of a prompt.
fn step(built: &Built, rows: usize, prompt: &[i64], sampling: Sampling) -> (Request, [Side; 3]) {
    let request =
        Request::Generate { padding: vec![0; rows], positions: prompt.len() as u64, sampling: Some(sampling) };
    let ids = token_ids(&built.plan.plan, &vec![prompt.to_vec(); rows]).expect("the model takes tokens");
    let sides = parties::run(&built.plan, &request, &[vec![ids]]).unwrap_or_else(|e| panic!("{sampling:?}: {e}"));
    (request, sides)
}

/// Logits after the prompt by the model in floats.
fn logits(built: &Built) -> Vec<f32> {
    let graph = import(&built.model, &Sizes::default()).expect("the model can be read").graph;
    let mut inputs = BTreeMap::from([("input_ids".to_owned(), Tensor::i64(&[1, 3], PROMPT.to_vec()).unwrap())]);
    inputs.insert("attention_mask".to_owned(), Tensor::i64(&[1, 3], vec![1; 3]).unwrap());
    inputs.insert("position_ids".to_owned(), Tensor::i64(&[1, 3], vec![0, 1, 2]).unwrap());
    let named: Vec<String> = built.plan.plan.graph_inputs.iter().map(|input| input.name.clone()).collect();
    inputs.retain(|name, _| named.contains(name));
    let outputs = evaluate(&graph, &|name: &str| load_weight(&built.model, name), &inputs).expect("it evaluates");
    let at = graph.outputs.iter().position(|output| output.name == "logits").expect("it has logits");
    let width = *outputs[at].shape().last().unwrap();
    let all = outputs[at].as_f32().expect("they are floats");
    all[all.len() - width..].to_vec()
}

/// Probabilities as usual libraries have them.
fn probabilities(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(sampling.candidates().unwrap_or(u64::MAX).min(logits.len() as u64) as usize);
    let mass = |i: usize| (f64::from(logits[i] - logits[order[0]]) / f64::from(sampling.temperature)).exp();
    let all: f64 = order.iter().map(|&i| mass(i)).sum();
    let mut before = 0.0;
    let mut p = vec![0.0; logits.len()];
    for &i in &order {
        if before < all * sampling.top_p.map_or(2.0, f64::from) {
            p[i] = mass(i);
        }
        before += mass(i);
    }
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}

/// Chi-square of the draws, and its degrees of freedom; rare tokens count together.
fn chi_square(draws: &[i64], p: &[f64]) -> (f64, f64) {
    let n = draws.len() as f64;
    let found = |i: usize| draws.iter().filter(|&&drawn| drawn == i as i64).count() as f64;
    let term = |found: f64, expected: f64| (found - expected).powi(2) / expected;
    let (mut sum, mut cells, mut rare) = (0.0, 0.0, (0.0, 0.0));
    for (i, p) in p.iter().enumerate() {
        if p * n >= 5.0 {
            sum += term(found(i), p * n);
            cells += 1.0;
        } else {
            rare = (rare.0 + found(i), rare.1 + p * n);
        }
    }
    if rare.1 >= 5.0 {
        sum += term(rare.0, rare.1);
        cells += 1.0;
    }
    (sum, cells - 1.0)
}

/// What is drawn follows the model in floats: a chance below 10^-9 for a false alarm, by Laurent and Massart's bound with
/// x = 21.
#[test]
fn draws_follow_the_model_in_floats() {
    let model = corpus::model(NAME).expect("it is bundled");
    let mut options = Options::default();
    options.sizes.max.insert("batch".into(), ROWS as u64);
    let built = build_with(model, None, &options).expect("it compiles");
    let logits = logits(&built);
    for sampling in WAYS {
        let p = probabilities(&logits, &sampling);
        let mut draws: Vec<i64> = Vec::new();
        while draws.len() < 2048 {
            let (_, sides) = step(&built, ROWS, &PROMPT, sampling);
            draws.extend(&sides[0].steps[0].opened[0].values);
        }
        let inside = |token: &i64| p.get(*token as usize).is_some_and(|p| *p > 0.0);
        assert!(draws.iter().all(inside), "{sampling:?}: a token was drawn that is not to be");
        let (found, freedom) = chi_square(&draws, &p);
        let alarm = freedom + 2.0 * (21.0 * freedom).sqrt() + 42.0;
        println!("{sampling:?}: {} draws, chi-square {found:.1} with {freedom} degrees of freedom", draws.len());
        assert!(freedom > 2.0 && found < alarm, "{sampling:?}: chi-square {found} with {freedom} degrees of freedom");
    }
}

/// Bytes and rounds are those declared, op by op, in batches too; frames depend on sizes alone.
#[test]
fn drawing_costs_what_is_declared_whatever_is_drawn() {
    let built = build(NAME, None, Vec::new()).expect("it compiles");
    let greedy = Request::text(3);
    let ids = |prompt: &[i64]| vec![token_ids(&built.plan.plan, &[prompt.to_vec()]).expect("the model takes tokens")];
    let chosen = parties::run(&built.plan, &greedy, &[ids(&PROMPT)]).expect("it runs");
    for sampling in WAYS {
        for rows in [1, 3] {
            let (request, sides) = step(&built, rows, &PROMPT, sampling);
            let costs = parties::costs(&built.plan, &request, &sides, 0).expect("the step has costs");
            assert_eq!(costs.wrong, [], "{sampling:?}: ops whose bytes are not the declared ones");
            assert_eq!(costs.measured, costs.predicted, "{sampling:?}");
            assert_eq!(sides[0].steps[0].opened[0].values.len(), rows);
            assert!(sides[1..].iter().all(|side| side.steps[0].opened.is_empty()), "others learn nothing");
            let (_, other) = step(&built, rows, &[59, 0, 26], sampling);
            for (side, other) in sides.iter().zip(&other) {
                assert!(side.log.sent == other.log.sent, "{sampling:?}: frames depend on the prompt");
            }
        }
    }
    let (_, one) = step(&built, 1, &PROMPT, sampling(4.0, Some(1), None));
    assert_eq!(one[0].steps[0].opened[0].values, chosen[0].steps[0].opened[0].values, "the most probable token");
}

/// A plan whose drawing programs say more than they may is refused, and so are parameters out of range.
#[test]
fn other_programs_and_parameters_are_refused() {
    let built = build(NAME, None, Vec::new()).expect("it compiles");
    let plan = &built.plan.plan;
    let refused = |sampling: Sampling| {
        let request = Request::Generate { padding: vec![0], positions: 3, sampling: Some(sampling) };
        request.check(plan).err().map(|error| error.code)
    };
    for sampling in [
        sampling(0.0, None, None),
        sampling(0.05, None, None),
        sampling(17.0, None, None),
        sampling(f32::NAN, None, None),
        sampling(1.0, Some(0), None),
        sampling(1.0, Some(257), None),
        sampling(1.0, None, Some(0.0)),
        sampling(1.0, None, Some(1.5)),
        sampling(1.0, None, Some(f32::NAN)),
    ] {
        assert_eq!(refused(sampling), Some("E0415"), "{sampling:?}");
    }
    for sampling in WAYS {
        assert_eq!(refused(sampling), None);
    }
    // All of the mass is no filter.
    assert_eq!(sampling(1.0, None, Some(1.0)).filter(), Filter::None);
    assert_eq!(sampling(1.0, Some(5), Some(1.0)).filter(), Filter::TopK);
    // Both the most probable token and a drawn one.
    let drawing = plan.drawing(Filter::None).expect("the plan draws").clone();
    let mut both = drawing.module(&plan.module).expect("it fits");
    let chosen = plan.module.ops.iter().find(|node| matches!(node.op, Op::ArgMax { .. })).expect("it chooses");
    both.outputs.push(ombra_ir::module::OutputSlot { name: "too".into(), ..both.outputs[0].clone() });
    let logits = both.ops.iter().rposition(|node| node.ty.shape == plan.module.ty(chosen.args[0]).shape);
    let logits = ombra_ir::module::Id(logits.expect("it has logits") as u32);
    let args: Vec<_> = vec![logits];
    let origin = chosen.origin.clone();
    let small =
        ombra_ir::infer::push(&mut both, Op::Narrow { bits: 40 }, &args, None, origin.clone()).expect("it fits");
    let width = both.ty(small).bound + 2;
    let index =
        ombra_ir::infer::push(&mut both, Op::ArgMax { width }, &[small], None, origin.clone()).expect("it fits");
    let slot = both.outputs.len() as u32 - 1;
    ombra_ir::infer::push(&mut both, Op::Reveal { slot }, &[index], None, origin).expect("it fits");
    let codes: Vec<_> = verify::findings(&both).iter().map(|finding| finding.diagnostic.code).collect();
    assert!(codes.contains(&"E0344"), "{codes:?}");
    // Weights of its own, more ops than there are, and public inputs that are none of its parameters.
    let mut wrong = drawing.clone();
    wrong.kept = u32::MAX;
    assert_eq!(wrong.module(&plan.module).err().map(|e| e.code), Some("E0416"));
    let mut wrong = drawing.clone();
    wrong.ops[0].op = Op::Weight { name: "w".into() };
    assert_eq!(wrong.module(&plan.module).err().map(|e| e.code), Some("E0416"));
    let mut wrong = drawing;
    wrong.public.inputs[0].name = "input_ids".into();
    assert_eq!(wrong.module(&plan.module).err().map(|e| e.code), Some("E0416"));
}
