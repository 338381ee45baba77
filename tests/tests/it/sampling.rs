//! Drawn next tokens between three parties: their distribution, their costs, what passes between the parties, and what is
//! refused.

use ombra_compiler::graph::eval::evaluate;
use ombra_compiler::import::{Options as Sizes, import, load_weight};
use ombra_compiler::pipeline::Options;
use ombra_ir::draw::{Choice, Choosing, Filter, PENALTIES, Penalties, Sampling, Way};
use ombra_ir::module::Setting;
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::verify;
use ombra_runtime::app::Request;
use ombra_runtime::app::client::Conversation;
use ombra_runtime::app::inputs::token_ids;
use ombra_runtime::app::party::{Keep, serve_session};
use ombra_runtime::app::report::Report;
use ombra_runtime::app::request::{Advance, Course};
use ombra_runtime::transport::Session;
use ombra_tests::built::{Built, build, build_in, build_with};
use ombra_tests::corpus;
use ombra_tests::parties::{self, Side};
use std::collections::BTreeMap;

const NAME: &str = "llama-optimum-1.10";
const PROMPT: [i64; 3] = [3, 1, 4];
/// Rows of a step.
const ROWS: usize = 256;

/// Settings that draw.
const SETTINGS: [Setting; 2] = [Setting::ThreeParty, Setting::Dealer];

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
    chosen(built, rows, prompt, &sampling.into(), Vec::new())
}

/// The same, with what the client gives beside the prompt.
fn chosen(
    built: &Built,
    rows: usize,
    prompt: &[i64],
    choosing: &Choosing,
    mut given: Vec<(String, Tensor)>,
) -> (Request, [Side; 3]) {
    let choice = choosing.choice();
    let positions = prompt.len() as u64;
    let request = Request::Generate { padding: vec![0; rows], positions, ways: vec![choice.way()] };
    given.push(token_ids(&built.plan.plan, &vec![prompt.to_vec(); rows]).expect("the model takes tokens"));
    let sides = parties::run_choosing(&built.plan, &request, choice, &[given]);
    (request, sides.unwrap_or_else(|e| panic!("{choosing:?}: {e}")))
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
    SETTINGS.into_iter().for_each(draws_follow);
}

fn draws_follow(setting: Setting) {
    let model = corpus::model(NAME).expect("it is bundled");
    let mut options = Options { setting, ..Options::default() };
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
    SETTINGS.into_iter().for_each(drawing_costs);
}

fn drawing_costs(setting: Setting) {
    let built = build_in(setting, NAME, None, Vec::new()).expect("it compiles");
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

/// Penalties are taken off before a token is chosen, for each row its own; they cost an element for every token and no
/// round, and a plan that was not asked for them has none.
#[test]
fn penalties_are_taken_off_the_logits() {
    SETTINGS.into_iter().for_each(penalties_are_taken);
}

fn penalties_are_taken(setting: Setting) {
    let options = Options { setting, penalties: true, ..Options::default() };
    let built = build_with(corpus::model(NAME).expect("it is bundled"), None, &options).expect("it compiles");
    let plan = &built.plan.plan;
    assert_eq!(plan.ways().len(), 8);
    let logits = logits(&built);
    let vocabulary = logits.len();
    let order = {
        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order
    };
    let row = |penalties: &Penalties, answer: &[usize]| {
        penalties.of(&answer.iter().map(|token| *token as i64).collect::<Vec<_>>(), vocabulary)
    };
    // One row without an answer, one in which the best token came so often that the next one is better, one in which all
    // but the worst are all but excluded.
    let penalties = Penalties { presence: 2.0, frequency: 2.0 };
    let often = vec![order[0]; 40];
    let all_but_worst: Vec<usize> = order[..vocabulary - 1].iter().flat_map(|token| [*token; 40]).collect();
    let answers: [&[usize]; 3] = [&[], &often, &all_but_worst];
    let added: Vec<f32> = answers.iter().flat_map(|answer| row(&penalties, answer)).collect();
    let given = || vec![(PENALTIES.to_owned(), Tensor::f32(&[3, vocabulary], added.clone()).unwrap())];
    let expected = [order[0], order[1], order[vocabulary - 1]].map(|token| token as i64);
    let own = Request::Generate { padding: vec![0; 3], positions: 3, ways: vec![Way::default()] };
    let ids = token_ids(plan, &vec![PROMPT.to_vec(); 3]).expect("the model takes tokens");
    let plain = parties::run(&built.plan, &own, &[vec![ids]]).expect("it runs");
    let plain = parties::costs(&built.plan, &own, &plain, 0).expect("the step has costs").measured;
    for sampling in [None, Some(sampling(1.0, Some(1), None)), Some(WAYS[3])] {
        let choosing = Choosing { sampling, penalties };
        let (request, sides) = chosen(&built, 3, &PROMPT, &choosing, given());
        let costs = parties::costs(&built.plan, &request, &sides, 0).expect("the step has costs");
        assert_eq!(costs.wrong, [], "{choosing:?}: ops whose bytes are not the declared ones");
        assert_eq!(costs.measured, costs.predicted, "{choosing:?}");
        let found = &sides[0].steps[0].opened[0].values;
        if sampling.is_none_or(|sampling| sampling.top_k != Some(20)) {
            assert_eq!(found, &expected, "{choosing:?}");
        }
        assert!(sides[1..].iter().all(|side| side.steps[0].opened.is_empty()), "others learn nothing");
        if sampling.is_none() {
            // The client sends a word of eight bytes for every logit, where it does not share with itself; comparisons may be a
            // little wider, and logits that have a narrow ring are brought into the large one.
            let more = costs.measured.bytes.iter().sum::<u64>() - plain.bytes.iter().sum::<u64>();
            assert!((4 * added.len() as u64..48 * added.len() as u64).contains(&more), "{more} bytes more");
            let wider = if setting == Setting::Dealer { 10 } else { 4 };
            assert!(
                costs.measured.rounds <= plain.rounds + wider,
                "{} and {} rounds",
                costs.measured.rounds,
                plain.rounds
            );
        }
        // Frames are the same whatever the penalties are.
        let nothing = vec![(PENALTIES.to_owned(), Tensor::f32(&[3, vocabulary], vec![0.0; added.len()]).unwrap())];
        let (_, other) = chosen(&built, 3, &PROMPT, &choosing, nothing);
        for (side, other) in sides.iter().zip(&other) {
            assert!(side.log.sent == other.log.sent, "{choosing:?}: frames depend on the penalties");
        }
    }
    // What the type does not allow is refused where it is encoded, before anything is sent.
    let beyond = vec![(PENALTIES.to_owned(), Tensor::f32(&[1, vocabulary], vec![64.0; vocabulary]).unwrap())];
    let choice = Choosing { sampling: None, penalties }.choice();
    let request = Request::Generate { padding: vec![0], positions: 3, ways: vec![choice.way()] };
    let ids = token_ids(plan, &[PROMPT.to_vec()]).expect("the model takes tokens");
    let refused = parties::run_choosing(&built.plan, &request, choice, &[[beyond, vec![ids]].concat()]);
    assert_eq!(refused.err().map(|error| error.code), Some("E0381"));
    let without = build(NAME, None, Vec::new()).expect("it compiles");
    assert_eq!(request.check(&without.plan.plan).err().map(|error| error.code), Some("E0417"));
}

/// Penalties are OpenAI's: presence once, frequency for every time; beyond their range they end.
#[test]
fn penalties_count_what_an_answer_has() {
    let penalties = Penalties { presence: 0.5, frequency: 0.25 };
    assert_eq!(penalties.of(&[2, 0, 2, 9, -1], 4), [-0.75, 0.0, -1.0, 0.0]);
    assert_eq!(Penalties { presence: -2.0, frequency: 0.0 }.of(&[1], 2), [0.0, 2.0]);
    assert_eq!(Penalties { presence: 0.0, frequency: 2.0 }.of(&[0; 100], 1), [-63.0]);
    for (presence, frequency) in [(2.1, 0.0), (0.0, -2.1), (f32::NAN, 0.0), (0.0, f32::INFINITY)] {
        assert!(Penalties { presence, frequency }.check().is_err(), "{presence} {frequency}");
    }
    assert!(Penalties { presence: 2.0, frequency: -2.0 }.check().is_ok());
}

/// Ways to choose tokens alternate over one session, whose cache stays: each gives the token that there is no doubt of.
#[test]
fn one_session_chooses_tokens_in_every_way() {
    let options = Options { penalties: true, ..Options::default() };
    let built = build_with(corpus::model(NAME).expect("it is bundled"), None, &options).expect("it compiles");
    let folder = &built.plan;
    let penalties = Penalties { presence: 1.0, frequency: 0.0 };
    let few = |top_p| Some(sampling(2.0, Some(1), top_p));
    let choosings = [
        (None, false),
        (few(None), false),
        (None, true),
        (few(Some(0.5)), false),
        (few(None), true),
        (few(None), false),
    ];
    let choosings = choosings.map(|(sampling, penalized)| Choosing {
        sampling,
        penalties: if penalized { penalties } else { Penalties::default() },
    });
    let positions = (PROMPT.len() + choosings.len()) as u64;
    let sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).expect("links in memory");
    let [client, server, helper] = <[Session; 3]>::try_from(sessions).ok().expect("three sessions");
    std::thread::scope(|scope| {
        let serving = [server, helper].map(|session| {
            scope.spawn(move || serve_session(folder, &session, &Keep::new(session.party(), folder)?, 1))
        });
        let request = Request::Generate { padding: vec![0], positions, ways: folder.plan.ways() };
        let mut talk = Conversation::open(folder, &client, request, 1, None).expect("it opens");
        let mut texts = Vec::new();
        for choosings in [[Choosing::default(); 6], choosings] {
            let mut text = PROMPT.to_vec();
            for (index, choosing) in choosings.iter().enumerate() {
                let keep = if index == 0 { 0 } else { text.len() - 1 };
                let new = [text[keep..].to_vec()];
                let none = (choosing, &[vec![]][..]);
                let (next, done) = talk.next_tokens(keep as u64, &new, none, &mut |_, _| {}).expect("it steps");
                assert_eq!(done.advance.choice, choosing.choice());
                text.extend(next);
            }
            texts.push(text);
        }
        assert_eq!(texts[0], texts[1]);
        let costs = talk.end().expect("it ends");
        Report { phases: costs.phases, ..Report::default() }.check_costs().expect("costs are those of the plan");
        client.finish();
        for thread in serving {
            thread.join().expect("no party panics").expect("it serves");
        }
    });
}

/// A plan whose drawing programs say more than they may is refused, and so are parameters out of range.
#[test]
fn other_programs_and_parameters_are_refused() {
    let built = build(NAME, None, Vec::new()).expect("it compiles");
    let plan = &built.plan.plan;
    let refused = |sampling: Sampling| {
        let choice = Choice { sampling: Some(sampling), penalized: false };
        let request = Request::Generate { padding: vec![0], positions: 3, ways: vec![choice.way()] };
        let advance = Advance { keep: 0, new: 3, choice };
        let checked = request.check(plan).and_then(|()| Course::default().take(&request, advance));
        checked.err().map(|error| error.code)
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
    let drawing = plan
        .drawing(Way { filter: Filter::None, penalized: false })
        .expect("the plan draws")
        .expect("it is no own one")
        .clone();
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
