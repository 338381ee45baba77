//! The self-test of plans: what it passes, what it refuses, and the layer that it names.

use ombra_compiler::onnx::Model;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_compiler::self_test::clear::{Whose, step_seen, steps_seen, two_seen};
use ombra_compiler::self_test::rows::{Special, read_tokens, rows_of_tokens};
use ombra_compiler::self_test::{Report, What, self_test};
use ombra_ir::Diagnostic;
use ombra_ir::module::OutputKind;
use ombra_ir::op::Op;
use ombra_ir::reference::Rounding;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models")
}

fn compiled(name: &str, options: &Options) -> (Model, Compiled) {
    let model = Model::read(&models().join(name).join("model.onnx")).unwrap();
    let compiled = compile(&model, None, options).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    (model, compiled)
}

fn tested(model: &Model, compiled: &Compiled, options: &Options, what: What) -> Result<Report, Vec<Diagnostic>> {
    self_test(model, None, options, compiled, what, &mut |_, _| ())
}

#[test]
fn a_plan_agrees_with_its_model_on_all_positions_and_in_its_own_program() {
    let options = Options::default();
    let (model, compiled) = compiled("llama-trained/base", &options);
    let special = Special::read(&models().join("llama-trained/tokenizer.json")).unwrap();
    let report = tested(&model, &compiled, &options, What::BuiltIn { special: &special, most: 60 }).unwrap();
    let positions: usize = report.rows.iter().map(|(_, n)| n).sum();
    assert!(positions > 40, "{:?}", report.rows);
    assert_eq!((report.logits.positions, report.last.positions), (positions, report.rows.len()));
    assert_eq!(report.logits.agreed, positions, "{}", report.text());
    assert!(report.logits.greatest_error > 0.0 && report.logits.greatest_error < 0.1, "{}", report.text());
    assert!(report.last.greatest_error > 0.0 && report.last.greatest_error < 0.1, "{}", report.text());
}

#[test]
fn steps_side_by_side_are_those_one_by_one_and_ask_for_weights_once() {
    let (model, compiled) = compiled("llama-trained/base", &Options::default());
    let rows =
        rows_of_tokens(&compiled.graph, &compiled.graph, &[vec![1, 5, 9], vec![7], vec![2, 4, 6, 8, 10]]).unwrap();
    let inputs: Vec<_> = rows.iter().map(|row| &row.inputs).collect();
    let rounding = Rounding::Drawn { seed: 3 };
    let is_weight = |id| matches!(compiled.plan.module.node(id).op, Op::Weight { .. });
    let (mut weights, mut others) = (0, 0);
    let together = steps_seen(&compiled, &model, &inputs, rounding, &mut |_, id, _| {
        *if is_weight(id) { &mut weights } else { &mut others } += 1;
        Ok(())
    });
    let together = together.unwrap();
    assert_eq!(together.len(), 3);
    for (inputs, found) in inputs.iter().zip(&together) {
        let mut shown = 0;
        let mut see = |id, _: &_| {
            shown += usize::from(is_weight(id));
            Ok(())
        };
        let alone = step_seen(&compiled, &model, inputs, rounding, &mut see).unwrap();
        assert_eq!(shown, weights);
        assert_eq!((&alone.outputs, &alone.states), (&found.outputs, &found.states));
        assert!(alone.outputs.iter().any(Option::is_some) && alone.states.iter().any(Option::is_some));
    }
    assert!(weights > 0 && others > weights);
}

/// The program that reveals all positions and the plan's own differ in the last layer alone.
#[test]
fn of_two_programs_what_both_compute_is_computed_once() {
    let options = Options::default();
    let (model, own) = compiled("llama-trained/base", &options);
    let all = Options { reveal: vec![Reveal::Output("logits".into())], ..options };
    let whole = compile(&model, None, &all).unwrap_or_else(|e| panic!("{e:?}"));
    let rows = rows_of_tokens(&own.graph, &own.graph, &[vec![1, 5, 9], vec![7], vec![2, 4, 6, 8, 10]]).unwrap();
    let inputs: Vec<_> = rows.iter().map(|row| &row.inputs).collect();
    let (mut first, mut second, mut scores) = (0, 0, Vec::new());
    let module = &own.plan.module;
    let argmax = module.ops.iter().find(|n| matches!(n.op, Op::ArgMax { .. })).expect("a token is chosen");
    two_seen((&whole, &own), &model, &inputs, Rounding::Floor, &mut |whose, _, id, value| {
        *if whose == Whose::First { &mut first } else { &mut second } += 1;
        if whose == Whose::Second && id == argmax.args[0] {
            scores.push(value.clone());
        }
        Ok(())
    })
    .unwrap();
    assert!(second * 2 < first, "{second} values of the second program, {first} of the first");
    // Rounding down is the same in both, so that the scores are those of the program by itself.
    let mut alone = Vec::new();
    steps_seen(&own, &model, &inputs, Rounding::Floor, &mut |_, id, value| {
        if id == argmax.args[0] {
            alone.push(value.clone());
        }
        Ok(())
    })
    .unwrap();
    assert_eq!((scores.len(), &scores), (rows.len(), &alone));
}

#[test]
fn rows_of_tokens_have_a_perplexity() {
    let options = Options::default();
    let (model, compiled) = compiled("llama-trained/base", &options);
    let file = std::env::temp_dir().join(format!("ombra-self-test-{}.txt", std::process::id()));
    std::fs::write(&file, "[1, 5, 9, 13]\n\n2 4 6\n").unwrap();
    let rows = read_tokens(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(rows, [vec![1, 5, 9, 13], vec![2, 4, 6]]);
    let report = tested(&model, &compiled, &options, What::Tokens(&rows)).unwrap();
    assert_eq!(report.logits.positions, 7);
    let (float, plan) = report.logits.perplexity.expect("tokens follow");
    assert!(float > 1.0 && (plan / float - 1.0).abs() < 2e-3, "{float} {plan}");
    let unknown = [vec![1, 1 << 40]];
    let errors = tested(&model, &compiled, &options, What::Tokens(&unknown)).unwrap_err();
    assert_eq!(errors[0].code, "E0587");
}

#[test]
fn a_classifier_is_compared_by_its_outputs() {
    let options = Options::default();
    let (model, compiled) = compiled("bert-trained/dynamo-op20", &options);
    let what = What::BuiltIn { special: &Special::default(), most: 64 };
    let report = tested(&model, &compiled, &options, what).unwrap();
    assert!(report.outputs.values().any(|e| *e > 0.0), "{report:?}");
}

/// Rows on which the guard takes the result away are named, and not compared.
#[test]
fn a_guard_that_is_set_is_seen() {
    let options = Options::default();
    let (model, mut compiled) = compiled("../approximations/llama-2quad", &options);
    let special = Special::default();
    let what = || What::BuiltIn { special: &special, most: 30 };
    let report = tested(&model, &compiled, &options, what()).unwrap();
    assert!(report.last.positions > 0, "{report:?}");
    assert_eq!(report.guarded.len() + report.last.positions, report.rows.len());
    // Less than none are counted, however many there are.
    let module = &mut compiled.plan.module;
    let guard = module.outputs.iter().position(|o| o.kind == OutputKind::Guard).expect("something is assumed");
    let mut at = module.ops.iter().position(|n| matches!(n.op, Op::Reveal { slot } if slot as usize == guard)).unwrap();
    while module.ops[at].op != Op::Neg {
        at = module.ops[at].args[0].index();
    }
    module.ops[at].op = Op::AddInt { k: -1000 };
    let report = tested(&model, &compiled, &options, what()).unwrap();
    assert_eq!((report.guarded.len(), report.last.positions), (report.rows.len(), 0));
    assert_eq!(report.logits.positions, report.rows.iter().map(|(_, n)| n).sum::<usize>());
}

/// Drawn calibration sees short prompts too: of a row of one score the divisor is a single square.
#[test]
fn short_prompts_are_within_what_drawn_ones_show() {
    let (model, compiled) = compiled("../approximations/llama-2quad", &Options::default());
    let guard = compiled.plan.module.outputs.iter().position(|o| o.kind == OutputKind::Guard).unwrap();
    let tokens: Vec<Vec<i64>> = (0..64).flat_map(|i| [vec![i], vec![i, 63 - i], vec![i, i, 5]]).collect();
    let rows = rows_of_tokens(&compiled.graph, &compiled.graph, &tokens).unwrap();
    let inputs: Vec<_> = rows.iter().map(|row| &row.inputs).collect();
    let outcomes = steps_seen(&compiled, &model, &inputs, Rounding::Floor, &mut |_, _, _| Ok(())).unwrap();
    for (tokens, outcome) in tokens.iter().zip(&outcomes) {
        assert_eq!(outcome.outputs[guard].as_ref().unwrap().decode(0).unwrap(), [0.0], "{tokens:?}");
    }
}

#[test]
fn a_wrong_plan_is_refused_with_the_layer_where_it_goes_wrong() {
    let options = Options::default();
    let (model, mut compiled) = compiled("llama-trained/base", &options);
    let rows = [vec![1, 5, 9, 13, 20, 40, 60, 80]];
    let wrong = |op: &&mut ombra_ir::module::Node| {
        op.origin.layer == Some(1) && matches!(op.op, Op::Add) && op.origin.kind == "add"
    };
    let add = compiled.plan.module.ops.iter_mut().rev().find(wrong).expect("layer 1 has a sum");
    add.op = Op::Sub;
    let errors =
        tested(&model, &compiled, &options, What::BuiltIn { special: &Special::default(), most: 80 }).unwrap_err();
    assert_eq!(errors[0].code, "E0586");
    let notes = errors[0].notes.join("\n");
    assert!(notes.contains("goes wrong is layer 1:"), "{notes}");
    // The program of all positions is another one, which is not wrong.
    assert!(tested(&model, &compiled, &options, What::Tokens(&rows)).is_ok());
}
