//! One plan serves prompts of any length and many steps, session after session.

use std::ops::ControlFlow;

use ombra_ir::draw::Choosing;
use ombra_ir::module::Setting;
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::client::{self, Options, Outcome, Prepared, Task};
use ombra_runtime::app::party::{Keep, serve_session};
use ombra_runtime::app::report::Report;
use ombra_runtime::app::request::takes_padding;
use ombra_runtime::backend::products::Products;
use ombra_runtime::transport::{Party, Session};
use ombra_tests::built::{build, logits};
use ombra_tests::corpus;
use ombra_tests::logits::{difference, greatest};
use ombra_tests::parties::secret_logits;
use ombra_tests::reference::Reference;

/// One session of the application between three threads; server and helper keep their weights for the next one.
fn generate(folder: &PlanFolder, server: &Keep, helper: &Keep, prompts: &[&[i64]], count: u64) -> Outcome {
    generate_until(folder, server, helper, prompts, (count, &[]))
}

/// The same, of texts that some tokens end.
fn generate_until(
    folder: &PlanFolder,
    server: &Keep,
    helper: &Keep,
    prompts: &[&[i64]],
    (count, stop): (u64, &[i64]),
) -> Outcome {
    let sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).expect("links in memory");
    let [to_client, to_server, to_helper] = <[Session; 3]>::try_from(sessions).ok().expect("three sessions");
    let prompts = prompts.iter().map(|prompt| prompt.to_vec()).collect();
    let task = Prepared::new(
        folder,
        Task::Generate { prompts, count, stop: stop.to_vec(), choosing: Choosing::default() },
        &[],
    );
    let task = task.expect("the plan generates");
    std::thread::scope(|scope| {
        let serving = [(to_server, server), (to_helper, helper)]
            .map(|(session, keep)| scope.spawn(move || serve_session(folder, &session, keep, 1)));
        let mut told = vec![Vec::new(); task.prompts()];
        let mut on_token = |row: usize, token| {
            told[row].push(token);
            Ok(ControlFlow::Continue(()))
        };
        let options = Options {
            products: Products::cpu(1),
            keep_steps: false,
            isolation: None,
            dealt: None,
            on_token: &mut on_token,
        };
        let outcome = client::run(folder, &to_client, task, options).unwrap_or_else(|e| panic!("client: {e}"));
        for thread in serving {
            thread.join().expect("no party panics").unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(told, outcome.tokens);
        outcome
    })
}

#[test]
fn one_plan_serves_prompts_of_all_lengths() {
    let name = "llama-trained/frozen";
    let base = Some("llama-trained/base");
    let next = build(name, base, Vec::new()).expect("it compiles");
    let all = build(name, base, logits()).expect("it compiles");
    let reference = Reference::load(name, &next.plan.plan).expect("rten loads it");
    let text = &corpus::token_rows("llama-trained/eval_pydoc.pb").expect("rows are bundled")[1];
    let server = Keep::new(Party::Server, &next.plan).expect("it has its weights");
    let helper = Keep::new(Party::Helper, &next.plan).expect("it needs nothing");
    for (session, length) in [1, 7, 32].into_iter().enumerate() {
        let prompt = &text[..length];
        let outcome = generate(&next.plan, &server, &helper, &[prompt], 65);
        assert_eq!((outcome.tokens[0].len(), outcome.costs.phases.len()), (65, 66), "a prefill, then 64 steps");
        for phase in &outcome.costs.phases {
            assert_eq!(phase.rounds.measured, phase.rounds.predicted, "{} {:?}", phase.name, phase.dims);
            for (party, bytes) in &phase.bytes {
                assert_eq!(bytes.measured, bytes.predicted, "{} {:?} {party}", phase.name, phase.dims);
            }
        }
        assert_eq!(outcome.costs.phases[0].bytes["server"].measured > 0, session == 0, "weights are shared once");

        // Every token against the model in the clear after the same tokens.
        let tokens = [prompt, &outcome.tokens[0]].concat();
        let clear = reference.logits(&tokens).expect("rten runs it");
        let secret = secret_logits(&all.plan, std::slice::from_ref(&tokens)).expect("it runs");
        let error = difference(&secret, &clear);
        let mut same = 0;
        for (index, token) in outcome.tokens[0].iter().enumerate() {
            let (expected, margin) = greatest(&clear[length - 1 + index]);
            same += usize::from(expected as i64 == *token);
            assert!(expected as i64 == *token || margin <= 2.0 * error, "prompt of {length}: step {index}");
        }
        println!("prompt of {length}: {same} of {} tokens equal, error {error:.5}", outcome.tokens[0].len());
        assert!(same >= 60, "prompt of {length}: {same} tokens equal");
    }
}

/// Prompts of different lengths side by side give what each gives alone, in the rounds of one.
#[test]
fn prompts_side_by_side_are_answered_as_one_by_one() {
    let prompts: [&[i64]; 3] = [&[3, 1, 4, 1, 5, 9, 2, 6], &[5, 3, 5], &[7]];
    for name in ["llama-gqa-dynamo-op18", "gpt2-optimum-past", "qwen2-optimum-past", "mistral-optimum"] {
        let built = build(name, None, Vec::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(takes_padding(&built.plan.plan), "{name} has inputs for masks and positions");
        let server = Keep::new(Party::Server, &built.plan).expect("it has its weights");
        let helper = Keep::new(Party::Helper, &built.plan).expect("it needs nothing");
        let together = generate(&built.plan, &server, &helper, &prompts, 4);
        let report = Report { phases: together.costs.phases.clone(), ..Report::default() };
        report.check_costs().unwrap_or_else(|e| panic!("{name}: {e}"));
        // A text that ends early leaves the others as they are.
        let end = together.tokens[1][1];
        let ended = generate_until(&built.plan, &server, &helper, &prompts, (4, &[end]));
        for (row, tokens) in together.tokens.iter().enumerate() {
            let until = tokens.iter().position(|token| *token == end).map_or(4, |at| at + 1);
            assert_eq!(ended.tokens[row], tokens[..until], "{name}: row {row} until {end}");
        }
        for (prompt, tokens) in prompts.iter().zip(&together.tokens) {
            let alone = generate(&built.plan, &server, &helper, &[prompt], 4);
            assert_eq!(*tokens, alone.tokens[0], "{name}: {prompt:?}");
            let rounds = |outcome: &Outcome| outcome.costs.phases[2].rounds.measured;
            assert!(rounds(&together) <= rounds(&alone) + rounds(&alone) / 8, "{name}: a step's rounds");
        }
    }
}
