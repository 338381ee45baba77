//! Sessions of three threads over links in memory.

use std::cell::RefCell;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use ombra_ir::draw::{Choice, Choosing, Sampling, Way};
use ombra_ir::module::Setting;
use ombra_ir::plain::{self, Tensor};
use ombra_ir::{Diagnostic, Dim, Kind, Result, plan};
use ombra_runtime::app::client::{self, Conversation, Options, Outcome, Prepared, Task, max_positions, tokens_left};
use ombra_runtime::app::party::{Keep, serve_session};
use ombra_runtime::app::report::{Phase, Report};
use ombra_runtime::app::request::{Advance, Course, Request};
use ombra_runtime::app::talk::{self, Event, Finish, Job};
use ombra_runtime::app::{PlanFolder, test_data, verify};
use ombra_runtime::backend::products::Products;
use ombra_runtime::transport::{Party, Session};

use super::plans::{self, MAX, VOCABULARY, WIDTH, continuation, head, table};

/// Runs `task` with fresh parties. The result of the client, the server and the helper.
fn run(folder: &Path, task: Task) -> (Result<Outcome>, [Result<()>; 2]) {
    let mut sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let peers: Vec<_> = sessions
        .drain(1..)
        .map(|session| {
            let folder = folder.to_path_buf();
            thread::spawn(move || {
                let folder = PlanFolder::open(&folder).unwrap();
                let keep = Keep::new(session.party(), &folder).unwrap();
                serve_session(&folder, &session, &keep, 1)
            })
        })
        .collect();
    let folder = PlanFolder::open(folder).unwrap();
    let session = sessions.remove(0);
    let outcome = Prepared::new(&folder, task, &[]).and_then(|task| {
        client::run(
            &folder,
            &session,
            task,
            Options {
                products: Products::cpu(1),
                keep_steps: true,
                isolation: None,
                dealt: None,
                on_token: &mut |_, _| Ok(ControlFlow::Continue(())),
            },
        )
    });
    drop(session);
    let peers: Vec<_> = peers.into_iter().map(|peer| peer.join().unwrap()).collect();
    (outcome, peers.try_into().unwrap())
}

fn succeed(folder: &Path, task: Task) -> Outcome {
    let (outcome, peers) = run(folder, task);
    let outcome = outcome.unwrap();
    assert_eq!(peers, [Ok(()), Ok(())]);
    let report = Report { phases: outcome.costs.phases.clone(), ..Report::default() };
    report.check_costs().unwrap();
    let bytes = |phase: &Phase| phase.bytes.values().map(|pair| pair.measured).sum::<u64>();
    assert!(outcome.costs.phases.iter().all(|phase| bytes(phase) > 0 && phase.rounds.measured > 0));
    outcome
}

/// One step on token ids, which a task on given inputs does not look at.
fn ids(tokens: &[i64]) -> Task {
    Task::Infer { inputs: vec![("input_ids".to_owned(), Tensor::i64(&[1, tokens.len()], tokens.to_vec()).unwrap())] }
}

fn generate(prompt: &[i64], count: u64) -> Task {
    Task::Generate { prompts: vec![prompt.to_vec()], count, stop: vec![], choosing: Choosing::default() }
}

#[test]
fn tokens_are_generated_from_a_shared_cache() {
    let folder = plans::cached();
    let outcome = succeed(&folder.0, generate(&[3, 1, 4], 5));
    assert_eq!(outcome.tokens, [continuation(&[3, 1, 4], 5)]);
    let names: Vec<&str> = outcome.costs.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["setup", "prefill", "decode", "decode", "decode", "decode"]);
    assert_eq!(outcome.costs.phases[0].bytes["server"].measured, 8 * 2 * (VOCABULARY * WIDTH) as u64);
    assert_eq!((outcome.costs.phases[5].dims["seq"], outcome.costs.phases[5].dims["past"]), (1, 6));
    let verify = verify::compare(&PlanFolder::open(&folder.0).unwrap(), &outcome).unwrap();
    verify.check(Kind::Internal, "the run in the clear", None).unwrap();
    let tokens = &verify.outputs[0];
    assert_eq!((tokens.token_agreement, tokens.max_margin, tokens.max_abs_error), (Some(1.0), Some(0.0), None));
    // Another token whose score is clearly lower is refused.
    let mut other = outcome;
    let (_, tensor) = &mut other.steps[1].outputs[0];
    *tensor = Tensor::i64(&[1], vec![(tensor.as_i64().unwrap()[0] + 1) % VOCABULARY as i64]).unwrap();
    let verify = verify::compare(&PlanFolder::open(&folder.0).unwrap(), &other).unwrap();
    assert_eq!(verify.outputs[0].token_agreement, Some(0.8));
    let error = verify.check(Kind::Internal, "the run in the clear", None).unwrap_err();
    assert_eq!((error.code, error.kind), ("E1019", Kind::Internal));
}

/// The run in the clear leaves states without an axis for positions alone, as the parties do, where nothing is cut.
#[test]
fn states_that_are_not_cut_need_no_axis_for_positions() {
    let folder = plans::cached();
    let mut outcome = succeed(&folder.0, generate(&[3, 1, 4], 3));
    let mut open = PlanFolder::open(&folder.0).unwrap();
    // No axis of the states is called so.
    open.plan.past = Some("seq".to_owned());
    let verify = verify::compare(&open, &outcome).unwrap();
    assert_eq!(verify.outputs[0].token_agreement, Some(1.0));
    outcome.steps[1].advance.keep = 2;
    assert_eq!(verify::compare(&open, &outcome).err().map(|error| error.code), Some("E1004"));
}

/// Tables of the model may end before the sizes that the plan was made for.
#[test]
fn texts_are_as_long_as_the_models_tables() {
    let folder = plans::cached();
    let mut plan = PlanFolder::open(&folder.0).unwrap().plan;
    let [seq, past] = ["seq", "past"].map(|name| Dim::from(plan.module.dims.find(name).unwrap()));
    let most = max_positions(&plan).unwrap();
    for (limit, expected) in [(most + 5, most), (most, most), (most - 1, most - 1), (1, 1), (0, 0)] {
        plan.limits = vec![(past.add(&seq).unwrap(), limit)];
        assert_eq!(max_positions(&plan), Some(expected));
        assert_eq!(tokens_left(&plan, 1).ok(), Some(expected).filter(|left| *left > 0));
    }
}

#[test]
fn tokens_are_generated_from_a_cache_in_the_clear() {
    let folder = plans::client_cached();
    let outcome = succeed(&folder.0, generate(&[2, 5], 4));
    assert_eq!(outcome.tokens, [continuation(&[2, 5], 4)]);
    let verify = verify::compare(&PlanFolder::open(&folder.0).unwrap(), &outcome).unwrap();
    assert_eq!(verify.outputs[0].token_agreement, Some(1.0));
}

#[test]
fn a_stop_token_ends_the_session_early() {
    let folder = plans::cached();
    let all = continuation(&[3, 1, 4], 6);
    let stop = *all.last().unwrap();
    let until = all.iter().position(|token| *token == stop).unwrap() + 1;
    let task =
        Task::Generate { prompts: vec![vec![3, 1, 4]], count: 6, stop: vec![stop], choosing: Choosing::default() };
    assert_eq!(succeed(&folder.0, task).tokens, [&all[..until]]);
    let first =
        Task::Generate { prompts: vec![vec![3, 1, 4]], count: 6, stop: vec![all[0]], choosing: Choosing::default() };
    assert_eq!(succeed(&folder.0, first).tokens, [&all[..1]]);
}

/// Does `work` with the client's side of a session whose other parties are threads; what these ended with.
fn converse(folder: &Path, work: impl FnOnce(&PlanFolder, Session)) -> [Result<()>; 2] {
    let mut sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let peers: Vec<_> = sessions
        .drain(1..)
        .map(|session| {
            let folder = PlanFolder::open(folder).unwrap();
            let keep = Keep::new(session.party(), &folder).unwrap();
            thread::spawn(move || serve_session(&folder, &session, &keep, 1))
        })
        .collect();
    work(&PlanFolder::open(folder).unwrap(), sessions.remove(0));
    let peers: Vec<_> = peers.into_iter().map(|peer| peer.join().unwrap()).collect();
    peers.try_into().unwrap()
}

/// The cache stays from turn to turn; a text that goes on from an earlier place keeps what it has in common.
#[test]
fn a_conversation_keeps_what_texts_have_in_common() {
    for folder in [plans::cached(), plans::client_cached()] {
        let peers = converse(&folder.0, |folder, session| {
            let mut talk = Conversation::open(folder, &session, Request::text(MAX + 1), 1, None).unwrap();
            let texts: [(&[i64], u64); 6] = [
                (&[3, 1, 4], 0),
                (&[3, 1, 4, 2], 3),
                (&[3, 1, 4, 2, 0, 5], 4),
                (&[3, 1, 2, 2], 2),
                (&[3, 1, 2, 2], 3),
                (&[5], 0),
            ];
            for (text, kept) in texts {
                let keep = talk.common(text);
                assert_eq!(keep as u64, kept);
                let (next, done) = talk
                    .next_tokens(kept, &[text[keep..].to_vec()], (&Choosing::default(), &[]), &mut |_, _| {})
                    .unwrap();
                assert_eq!(next, continuation(text, 1), "{text:?}");
                let size = |name: &str| done.inputs.sizes.iter().find(|(other, _)| other == name).unwrap().1;
                assert_eq!((size("past"), size("seq")), (kept, text.len() as u64 - kept));
            }
            let costs = talk.end().unwrap();
            assert_eq!(costs.phases.len(), 1 + texts.len());
            Report { phases: costs.phases, ..Report::default() }.check_costs().unwrap();
            session.finish();
        });
        assert_eq!(peers, [Ok(()), Ok(())]);
    }
}

/// What a client announces must be one of the steps that its request allows, at server and helper.
#[test]
fn steps_beyond_the_request_are_refused() {
    let positions = |keep, new| Advance { keep, new, ..Advance::default() };
    let sampling = Sampling { temperature: 1.0, top_k: None, top_p: None };
    let drawn = Choice { sampling: Some(sampling), penalized: false };
    let penalized = Choice { sampling: None, penalized: true };
    let otherwise = |choice| Advance { choice, ..positions(0, 1) };
    let [all, drawn, penalized] = [positions(u64::MAX, u64::MAX), otherwise(drawn), otherwise(penalized)];
    for advance in [positions(1, 1), positions(0, 0), positions(0, 4), all, drawn, penalized] {
        let folder = plans::cached();
        let request = Request::text(3);
        let mut course = Course::default();
        assert_eq!(course.take(&request, advance).map_err(|error| error.code), Err("E1007"));
        let peers = converse(&folder.0, |folder, session| {
            drop(Conversation::open(folder, &session, request.clone(), 1, None).unwrap());
            for peer in [Party::Server, Party::Helper] {
                let step = serde_json::json!({ "step": advance });
                // A peer that was told of the other's refusal reads no more.
                let _ = session.link(peer).unwrap().send_control(&step);
            }
        });
        let codes = peers.map(|peer| peer.unwrap_err().code);
        assert!(
            codes.contains(&"E1007") && codes.iter().all(|code| ["E1007", "E0705", "E0701"].contains(code)),
            "{codes:?}"
        );
    }
}

/// A client that has server and helper do different things is told so by the helper, before any of them does it.
#[test]
fn different_steps_at_server_and_helper_are_refused() {
    let folder = plans::cached();
    let step = |new| serde_json::json!({ "step": Advance { new, ..Advance::default() } });
    for [to_server, to_helper] in [[step(1), step(2)], [step(1), serde_json::json!("end")]] {
        let [server, helper] = converse(&folder.0, |folder, session| {
            drop(Conversation::open(folder, &session, Request::text(3), 1, None).unwrap());
            session.link(Party::Server).unwrap().send_control(&to_server).unwrap();
            session.link(Party::Helper).unwrap().send_control(&to_helper).unwrap();
            // The server's message tells of the helper's refusal.
            let _ = session.link(Party::Helper).unwrap().recv_control::<serde_json::Value>(1 << 10);
        });
        assert_eq!(helper.map_err(|error| error.code), Err("E1008"));
        assert!(server.is_err_and(|error| ["E0705", "E0701"].contains(&error.code)));
    }
}

#[test]
fn jobs_share_a_session_and_end_for_their_own_reasons() {
    let folder = plans::cached();
    let all = continuation(&[3, 1, 4], 6);
    let seen = RefCell::new(Vec::new());
    let sizes = RefCell::new(Vec::new());
    let job = |tokens: &[i64], count, stop: &[i64], most: usize| {
        let mut got = Vec::new();
        let (seen, sizes) = (&seen, &sizes);
        let listen = move |event: Event<'_>| {
            match event {
                Event::Token(token) => got.push(token),
                Event::Step(step, _) => sizes.borrow_mut().push(step.positions),
                Event::End(result) => seen.borrow_mut().push((got.clone(), result.clone().map_err(|error| error.code))),
                Event::Waiting(_) | Event::Open(_) | Event::Begin(_) => {}
            }
            Ok(if got.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        let (tokens, stop) = (tokens.to_vec(), stop.iter().copied().collect());
        Job { tokens, count, stop, choosing: Choosing::default(), listen: Box::new(listen) }
    };
    let longer = [&[3, 1, 4], &all[..2], &[2]].concat();
    let mut jobs = vec![
        job(&[3, 1, 4], 2, &[], 9),
        job(&[VOCABULARY as i64], 2, &[], 9),
        job(&[-1], 2, &[], 9),
        job(&[], 2, &[], 9),
        job(&vec![0; MAX as usize], 4, &[], 9),
        job(&longer, 3, &[continuation(&longer, 1)[0]], 9),
        job(&[3, 1, 4], 6, &[], 4),
    ]
    .into_iter();
    let peers = converse(&folder.0, |folder, session| {
        let mut only = Some(session);
        let mut connect = || only.take().ok_or_else(|| Diagnostic::peer("E0707", "no second session"));
        let options = talk::Options {
            products: Products::cpu(1),
            isolation: None,
            allow_public: &[],
            ways: vec![Way::default()],
        };
        talk::run(folder, &mut connect, &mut || jobs.next(), &options);
    });
    assert_eq!(peers, [Ok(()), Ok(())]);
    let expected = [
        (all[..2].to_vec(), Ok(Finish::Length)),
        (vec![], Err("E1006")),
        (vec![], Err("E1006")),
        (vec![], Err("E1007")),
        (vec![], Err("E1007")),
        (continuation(&longer, 1), Ok(Finish::Stop)),
        (all[..4].to_vec(), Ok(Finish::Listener)),
    ];
    assert_eq!(*seen.borrow(), expected);
    // The last token of an answer is not fed before the next turn.
    assert_eq!(*sizes.borrow(), [(0, 3), (3, 1), (4, 2), (2, 1), (3, 1), (4, 1), (5, 1)]);
}

#[test]
fn a_given_cache_continues_where_it_was_made() {
    let folder = plans::cached();
    let (old, new) = ([3, 1, 4, 0], [2i64]);
    let rows = old.iter().flat_map(|&token| (0..WIDTH).map(move |column| table(token, column))).collect();
    let inputs = vec![
        ("input_ids".to_owned(), Tensor::i64(&[1, 1], new.to_vec()).unwrap()),
        ("past.rows".to_owned(), Tensor::f32(&[1, 4, WIDTH], rows).unwrap()),
    ];
    let outcome = succeed(&folder.0, Task::Infer { inputs });
    assert_eq!(outcome.outputs[0].1.as_i64().unwrap(), continuation(&[3, 1, 4, 0, 2], 1));
    assert_eq!(outcome.costs.phases[1].dims["past"], 4);
    let verify = verify::compare(&PlanFolder::open(&folder.0).unwrap(), &outcome).unwrap();
    assert_eq!(verify.outputs[0].token_agreement, Some(1.0));
}

#[test]
fn floats_come_out_as_the_product_with_the_private_weights() {
    for region in [false, true] {
        let folder = plans::linear(region);
        let x: Vec<f32> = (0..3 * WIDTH).map(|index| index as f32 / 4.0 - 1.0).collect();
        let inputs = vec![("x".to_owned(), Tensor::f32(&[3, WIDTH], x.clone()).unwrap())];
        let outcome = succeed(&folder.0, Task::Infer { inputs });
        let (name, y) = &outcome.outputs[0];
        assert_eq!((name.as_str(), y.shape()), ("y", &[3, VOCABULARY][..]));
        let factor = if region { 2.0 } else { 1.0 };
        for (index, found) in y.as_f32().unwrap().iter().enumerate() {
            let (row, column) = (index / VOCABULARY, index % VOCABULARY);
            let expected: f32 = (0..WIDTH).map(|k| factor * x[row * WIDTH + k] * head(k, column)).sum();
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
        let verify = verify::compare(&PlanFolder::open(&folder.0).unwrap(), &outcome).unwrap();
        assert!(verify.outputs[0].max_abs_error.unwrap() <= 1.0 / 65536.0, "{:?}", verify.outputs);
    }
}

#[test]
fn expected_outputs_are_compared_where_the_mask_keeps_them() {
    let folder = plans::linear(false);
    let open = PlanFolder::open(&folder.0).unwrap();
    let mut expected: Vec<f32> =
        (0..2 * VOCABULARY).map(|index| (0..WIDTH).map(|k| 0.5 * head(k, index % VOCABULARY)).sum::<f32>()).collect();
    expected[0] = 99.0;
    for (mask, compared) in [(vec![0, 1], 0.0), (vec![1, 1], 99.0)] {
        let inputs = vec![
            ("x".to_owned(), Tensor::f32(&[2, WIDTH], vec![0.5; 2 * WIDTH]).unwrap()),
            ("attention_mask".to_owned(), Tensor::i64(&[1, 2], mask).unwrap()),
        ];
        let outcome = succeed(&folder.0, Task::Infer { inputs });
        let wanted = ("y".to_owned(), Tensor::f32(&[2, VOCABULARY], expected.clone()).unwrap());
        let found = test_data::compare(&open, &outcome, &[wanted]).unwrap().outputs;
        let error = found[0].max_abs_error.unwrap();
        assert!((error - compared).abs() < 10.0 && (error < 1e-3) == (compared == 0.0), "{error}");
        let other = ("y".to_owned(), Tensor::f32(&[VOCABULARY, 2], expected.clone()).unwrap());
        assert_eq!(test_data::compare(&open, &outcome, &[other]).err().map(|error| error.code), Some("E1005"));
    }
}

#[test]
fn wrong_inputs_are_refused_before_anything_is_sent() {
    let folder = plans::linear(false);
    let open = PlanFolder::open(&folder.0).unwrap();
    let refused = |name: &str, tensor: Tensor| {
        let inputs = vec![(name.to_owned(), tensor)];
        Prepared::new(&open, Task::Infer { inputs }, &[]).err().map(|error| error.code)
    };
    let floats = |shape: &[usize]| Tensor::f32(shape, vec![0.0; shape.iter().product()]).unwrap();
    assert_eq!(refused("x", floats(&[2, WIDTH])), None);
    assert_eq!(refused("z", floats(&[2, WIDTH])), Some("E1006"));
    assert_eq!(refused("x", floats(&[2, WIDTH + 1])), Some("E1006"));
    assert_eq!(refused("x", floats(&[WIDTH])), Some("E1006"));
    assert_eq!(refused("x", floats(&[MAX as usize + 1, WIDTH])), Some("E1007"));
    assert_eq!(refused("x", Tensor::bool(&[1, WIDTH], vec![true; WIDTH]).unwrap()), None);
    let code = Prepared::new(&open, generate(&[1], 1), &[]).err().map(|error| error.code);
    assert_eq!(code, Some("E1006"));
    let cached = plans::cached();
    let open = PlanFolder::open(&cached.0).unwrap();
    for (prompt, count) in [(vec![], 1), (vec![1; MAX as usize + 1], 1), (vec![1], MAX + 2), (vec![1], 0)] {
        let code = Prepared::new(&open, generate(&prompt, count), &[]).err().map(|error| error.code);
        assert_eq!(code, Some("E1007"), "{prompt:?} {count}");
    }
}

#[test]
fn public_inputs_are_masks_and_positions_unless_the_user_allows_more() {
    let folder = plans::linear(false);
    let mut open = PlanFolder::open(&folder.0).unwrap();
    let mask = || Tensor::f32(&[1, 2], vec![0.0, f32::NEG_INFINITY]).unwrap();
    let task = |given: Tensor| {
        let x = Tensor::f32(&[2, WIDTH], vec![0.5; 2 * WIDTH]).unwrap();
        Task::Infer { inputs: vec![("x".to_owned(), x), ("attention_mask".to_owned(), given)] }
    };
    let inputs: Vec<plain::program::Input> = ["attention_mask", "x", "unknown"]
        .map(|name| {
            let shape = open.plan.graph_inputs[usize::from(name != "x")].shape.clone();
            plain::program::Input { name: name.to_owned(), dtype: plain::DType::F32, shape }
        })
        .to_vec();
    open.plan.graph_inputs[1].dtype = plain::DType::F32;
    let mut refused = |public: &[plain::program::Input], given: Tensor, allowed: &[&str]| {
        open.plan.module.public.inputs = public.to_vec();
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        Prepared::new(&open, task(given), &allowed).err().map(|error| error.code)
    };
    let finite = || Tensor::f32(&[1, 2], vec![0.0, 1.0]).unwrap();
    let other = Tensor::f32(&[1, 2], vec![0.0, -1e9]).unwrap();
    assert_eq!(refused(&inputs[..1], finite(), &[]), None);
    assert_eq!(refused(&inputs[..1], mask(), &[]), Some("E1006"), "JSON has no infinity");
    assert_eq!(refused(&inputs[..1], other, &[]), Some("E1006"), "a mask holds 0 and 1");
    assert_eq!(refused(&inputs[..2], finite(), &[]), Some("E1016"));
    assert_eq!(refused(&inputs[..2], finite(), &["x"]), None);
    assert_eq!(refused(&inputs, finite(), &["x"]), Some("E1016"));
    assert_eq!(refused(&inputs, finite(), &["unknown", "x"]), None);
}

/// Whatever a plan calls them, token ids are shown to the others only where they are no more than masks and positions are.
#[test]
fn contents_prove_what_a_plan_says_of_a_public_input() {
    let folder = plans::linear(false);
    let mut open = PlanFolder::open(&folder.0).unwrap();
    let (seq, past) = (open.plan.module.dims.find("seq").unwrap(), open.plan.module.dims.find("past").unwrap());
    open.plan.past = Some("past".to_owned());
    let total = vec![Dim::from(1), Dim::from(seq).add(&Dim::from(past)).unwrap()];
    let graph = &mut open.plan.graph_inputs;
    graph.iter_mut().find(|input| input.name == "attention_mask").unwrap().shape = total;
    let input = |name: &str, role, dtype| plan::GraphInput {
        name: name.to_owned(),
        role,
        dtype,
        shape: vec![Dim::from(1), Dim::from(seq)],
    };
    graph.push(input("input_ids", plan::InputRole::PositionIds, plain::DType::I64));
    graph.push(input("ids", plan::InputRole::AttentionMask, plain::DType::I64));
    graph.push(input("position_ids", plan::InputRole::PositionIds, plain::DType::F32));
    let cache = vec![Dim::from(past), Dim::from(1)];
    graph.push(plan::GraphInput {
        shape: cache,
        ..input("rows", plan::InputRole::PastKey { layer: 0 }, plain::DType::F32)
    });
    let public = |name: &str| open.plan.graph_inputs.iter().find(|input| input.name == name).unwrap().clone();
    let public = ["attention_mask", "input_ids", "ids", "position_ids"].map(public);
    let public = public.map(|i| plain::program::Input { name: i.name, dtype: i.dtype, shape: i.shape });
    open.plan.module.public.inputs = public.to_vec();
    let refused_after = |past: usize, given: &[(&str, &[i64])], allowed: &[&str]| {
        let x = Tensor::f32(&[4, WIDTH], vec![0.5; 4 * WIDTH]).unwrap();
        let rows = Tensor::f32(&[past, 1], vec![0.5; past]).unwrap();
        let mut inputs = vec![("x".to_owned(), x), ("rows".to_owned(), rows)];
        for (name, values) in given {
            inputs.push(((*name).to_owned(), Tensor::i64(&[1, values.len()], values.to_vec()).unwrap()));
        }
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        Prepared::new(&open, Task::Infer { inputs }, &allowed).err().map(|error| error.code)
    };
    let refused = |given: &[(&str, &[i64])], allowed: &[&str]| refused_after(0, given, allowed);
    for name in ["input_ids", "position_ids"] {
        assert_eq!(refused(&[(name, &[0, 1, 2, 3])], &[]), None, "{name}");
        for ids in [[3, 1, 4, 1], [1, 2, 3, 4], [0, 1, 2, 2], [0, 0, 0, 1], [1, 1, 0, 1]] {
            assert_eq!(refused(&[(name, &ids)], &[]), Some("E1016"), "{name} {ids:?}");
            assert_eq!(refused(&[(name, &ids)], &[name]), None, "{name} {ids:?}");
        }
        // Padding on the left, with each of what exporters put there.
        let mask = ("attention_mask", &[0, 0, 1, 1][..]);
        for proven in [[0, 0, 0, 1], [1, 1, 0, 1], [-1, -1, 0, 1], [0, 1, 2, 3]] {
            assert_eq!(refused(&[mask, (name, &proven)], &[]), None, "{name} {proven:?}");
        }
        for ids in [[1, 0, 0, 1], [7, 7, 0, 1], [0, 0, 1, 2], [0, 0, 1, 0]] {
            assert_eq!(refused(&[mask, (name, &ids)], &[]), Some("E1016"), "{name} {ids:?}");
        }
        let cached = ("attention_mask", &[0, 1, 1, 1, 1, 1][..]);
        let after = |values: &[i64]| refused_after(2, &[cached, (name, values)], &[]);
        assert_eq!((after(&[1, 2, 3, 4]), after(&[2, 3, 4, 5])), (None, None), "{name}");
        assert_eq!((after(&[0, 1, 2, 3]), after(&[3, 4, 5, 6])), (Some("E1016"), Some("E1016")), "{name}");
    }
    assert_eq!(refused(&[("ids", &[3, 1, 4, 1])], &[]), Some("E1006"), "a mask holds 0 and 1");
    assert_eq!(refused(&[("ids", &[1, 1, 0, 1])], &[]), None);
}

#[test]
fn a_value_beyond_its_bound_ends_the_session_at_every_party() {
    let folder = plans::linear(false);
    let inputs = vec![("x".to_owned(), Tensor::f32(&[1, WIDTH], vec![100.0; WIDTH]).unwrap())];
    let (outcome, peers) = run(&folder.0, Task::Infer { inputs });
    assert_eq!(outcome.err().map(|error| error.code), Some("E0381"));
    assert_told_nothing(peers);
}

/// That server and helper learn that the client ended the session, and neither why nor where.
fn assert_told_nothing(peers: [Result<()>; 2]) {
    for error in peers.map(Result::unwrap_err) {
        assert_eq!((error.code, error.place.clone()), ("E0705", None), "{error}");
        assert_eq!(error.message, "client aborted the run with E1015");
    }
}

/// What only a later step finds wrong ends the session between two steps: nobody has sent anything of that step.
#[test]
fn a_step_is_announced_after_its_inputs_were_checked() {
    let folder = plans::cached();
    let open = PlanFolder::open(&folder.0).unwrap();
    let sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let [client, server, helper] = <[Session; 3]>::try_from(sessions).ok().unwrap();
    let meters = [&client, &server, &helper].map(|session| session.meter().clone());
    let peers = [server, helper].map(|session| {
        let folder = PlanFolder::open(&folder.0).unwrap();
        let keep = Keep::new(session.party(), &folder).unwrap();
        thread::spawn(move || serve_session(&folder, &session, &keep, 1))
    });
    let task = Prepared::new(&open, ids(&[1, VOCABULARY as i64]), &[]).unwrap();
    let options = Options {
        products: Products::cpu(1),
        keep_steps: false,
        isolation: None,
        dealt: None,
        on_token: &mut |_, _| Ok(ControlFlow::Continue(())),
    };
    assert_eq!(client::run(&open, &client, task, options).err().map(|error| error.code), Some("E0806"));
    assert_told_nothing(peers.map(|peer| peer.join().unwrap()));
    let sent = meters.map(|meter| meter.snapshot().sent_bytes());
    assert_eq!(sent, [0, 8 * 2 * (VOCABULARY * WIDTH) as u64 + 16, 0], "the weights and their key alone");
}

#[test]
fn a_token_out_of_the_vocabulary_ends_the_session_at_every_party() {
    let folder = plans::cached();
    let (outcome, peers) = run(&folder.0, ids(&[VOCABULARY as i64]));
    assert_eq!(outcome.err().map(|error| error.code), Some("E0806"));
    assert_told_nothing(peers);
}

/// The errors of server and helper when a client that keeps to no rules asks for `request`.
fn ask(folder: &Path, request: &Request) -> Vec<Diagnostic> {
    let mut sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let client = sessions.remove(0);
    let peers = sessions.into_iter().map(|session| {
        let folder = folder.to_path_buf();
        thread::spawn(move || {
            let folder = PlanFolder::open(&folder).unwrap();
            serve_session(&folder, &session, &Keep::new(session.party(), &folder).unwrap(), 1).unwrap_err()
        })
    });
    let peers: Vec<_> = peers.collect();
    offer(&client, [request, request]);
    peers.into_iter().map(|peer| peer.join().unwrap()).collect()
}

/// The client's part of a session up to the first step, with a request for the server and one for the helper.
fn offer(client: &Session, requests: [&Request; 2]) {
    let key = ombra_runtime::transport::Frame::new(1, u32::MAX, 0, vec![0; 16]);
    client.link(Party::Helper).unwrap().send(key).unwrap();
    for (peer, request) in [Party::Server, Party::Helper].into_iter().zip(requests) {
        client.link(peer).unwrap().send_control(request).unwrap();
    }
    let new = u64::from(matches!(requests[0], Request::Generate { .. }));
    for peer in [Party::Server, Party::Helper] {
        // A peer that has refused the request reads no more.
        let advance = Advance { new, ..Advance::default() };
        let _ = client.link(peer).unwrap().send_control(&serde_json::json!({ "step": advance }));
    }
}

#[test]
fn different_requests_to_server_and_helper_are_refused() {
    let folder = plans::cached();
    let sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let [client, server, helper] = <[Session; 3]>::try_from(sessions).ok().unwrap();
    let peers = [server, helper].map(|session| {
        let folder = PlanFolder::open(&folder.0).unwrap();
        let keep = Keep::new(session.party(), &folder).unwrap();
        thread::spawn(move || serve_session(&folder, &session, &keep, 1).unwrap_err())
    });
    let request = Request::text;
    offer(&client, [&request(2), &request(3)]);
    let errors = peers.map(|peer| peer.join().unwrap());
    let found = errors.iter().find(|error| error.code == "E1008").unwrap_or_else(|| panic!("{errors:?}"));
    assert!(found.message.contains("client sent one request to the server and another to the helper"), "{found}");
}

/// The key of the weights that the server gives the client in a session with these parties.
fn weight_key(folder: &PlanFolder, keep: &Keep, parts: &Keep) -> Vec<u8> {
    let sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let [client, server, helper] = <[Session; 3]>::try_from(sessions).ok().unwrap();
    let request = Request::text(1);
    offer(&client, [&request, &request]);
    thread::scope(|scope| {
        let helper = scope.spawn(|| serve_session(folder, &helper, parts, 1).unwrap_err());
        let server = scope.spawn(|| serve_session(folder, &server, keep, 1).unwrap_err());
        let link = client.link(Party::Server).unwrap();
        link.recv(1, u32::MAX, 0, 16).unwrap();
        let _: serde_json::Value = link.recv_control(1 << 10).unwrap();
        let (key, _) = link.recv(1, u32::MAX - 2, 0, 16).unwrap();
        // The client gives no inputs: the session ends here.
        drop(client);
        server.join().unwrap();
        helper.join().unwrap();
        key
    })
}

/// A helper that has lost its part gets one under another key; one that holds it gets the same key again.
#[test]
fn one_key_makes_one_sharing_of_the_weights() {
    let plan = plans::cached();
    let folder = PlanFolder::open(&plan.0).unwrap();
    let fresh = |party| Keep::new(party, &folder).unwrap();
    let (server, mut helper) = (fresh(Party::Server), fresh(Party::Helper));
    let keys: Vec<Vec<u8>> = (0..3)
        .map(|index| {
            if index == 2 {
                helper = fresh(Party::Helper);
            }
            weight_key(&folder, &server, &helper)
        })
        .collect();
    assert!(keys[0] == keys[1] && keys[1] != keys[2]);
}

/// Steps whose memory is above the default limit: the defaults of public inputs, the public program, and shared values.
#[test]
fn requests_for_more_memory_than_allowed_are_refused_before_it_is_taken() {
    const LARGE: u64 = 1 << 29;
    for place in ["defaults", "program", "values"] {
        let folder = plans::linear(false);
        let path = folder.join("public/plan.ombra");
        let mut plan = plan::decode(&fs::read(&path).unwrap()).unwrap();
        let seq = plan.module.dims.find("seq").unwrap();
        plan.module.dims.info_mut(seq).unwrap().max = Some(4 * LARGE);
        if place != "defaults" {
            plan.graph_inputs.retain(|input| input.name == "x");
        }
        if place == "program" {
            let iota = |start| plain::Op::Iota { start: Dim::from(start), len: Dim::from(seq), step: 1 };
            let program = &mut plan.module.public;
            let numbers = [0u32, 1, 2].map(|start| program.push(iota(start), vec![]).unwrap());
            program.outputs = numbers.to_vec();
        }
        fs::write(&path, plan::encode(&plan).unwrap()).unwrap();
        let size = if place == "defaults" { 4 * LARGE } else { LARGE };
        let request = Request::Infer { sizes: vec![("seq".to_owned(), size)], public: vec![], states: false };
        let errors = ask(&folder.0, &request);
        assert!(errors.iter().any(|error| error.code == "E0405"), "{place}: {errors:?}");
        assert!(errors.iter().all(|error| ["E0405", "E0705"].contains(&error.code)), "{place}: {errors:?}");
    }
}

/// A plan that was changed after it was verified lets the program panic: that ends the session and nothing else.
#[test]
fn a_panic_ends_the_session_in_an_error() {
    let plan = plans::linear(false);
    let sessions = Session::in_memory(Setting::ThreeParty.protocol().parties).unwrap();
    let [client, server, helper] = <[Session; 3]>::try_from(sessions).ok().unwrap();
    let mut folder = PlanFolder::open(&plan.0).unwrap();
    folder.plan.module.ops[2].args[0] = ombra_ir::module::Id(u32::MAX);
    let request = Request::Infer { sizes: vec![("seq".to_owned(), 1)], public: vec![], states: false };
    offer(&client, [&request, &request]);
    let helper = thread::spawn({
        let folder = PlanFolder::open(&plan.0).unwrap();
        move || serve_session(&folder, &helper, &Keep::new(Party::Helper, &folder).unwrap(), 1).unwrap_err()
    });
    let keep = Keep::new(Party::Server, &folder).unwrap();
    assert_eq!(serve_session(&folder, &server, &keep, 1).unwrap_err().code, "E1014");
    drop(client);
    let told = helper.join().unwrap();
    assert!(["E0701", "E0705"].contains(&told.code), "{told}");
}

#[test]
fn requests_beyond_the_plan_are_refused_by_server_and_helper() {
    let folder = plans::cached();
    let size = |name: &str, value| (name.to_owned(), value);
    let infer = |sizes, public| Request::Infer { sizes, public, states: true };
    let mask = Tensor::i64(&[1], vec![1]).unwrap();
    for request in [
        Request::text(MAX + 2),
        Request::text(u64::MAX),
        Request::text(0),
        Request::Generate { padding: vec![], positions: 1, ways: vec![Way::default()] },
        Request::Generate { padding: vec![1], positions: 1, ways: vec![Way::default()] },
        Request::Generate { padding: vec![0, 1], positions: 2, ways: vec![Way::default()] },
        Request::Generate { padding: vec![0], positions: 2, ways: vec![] },
        Request::Generate { padding: vec![0], positions: 2, ways: vec![Way::default(); 2] },
        infer(vec![size("seq", u64::MAX)], vec![]),
        infer(vec![size("seq", 1), size("seq", 1)], vec![]),
        infer(vec![size("unknown", 1)], vec![]),
        infer(vec![size("seq", 1)], vec![("input_ids".to_owned(), mask)]),
    ] {
        let errors = ask(&folder.0, &request);
        // Whoever refuses first tells the other, who may learn of it before it comes to the request.
        assert!(errors.iter().any(|error| error.code == "E1007"), "{request:?}: {errors:?}");
        assert!(errors.iter().all(|error| ["E1007", "E0705"].contains(&error.code)), "{request:?}: {errors:?}");
    }
}
