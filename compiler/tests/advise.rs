//! What is predicted for a form of a model is what a model exported in that form costs.

use ombra_compiler::advise::bottleneck::{Bottleneck, bottleneck, shares};
use ombra_compiler::advise::{Choice, Request, Variant, advise, plan_of_variant};
use ombra_compiler::inspect::{Report, inspect};
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Errors, Options, analyse, compile};
use ombra_ir::network::Network;
use ombra_ir::plan::Plan;
use ombra_ir::settings::Setting;
use std::collections::BTreeMap;
use std::path::Path;

fn corpus(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models").join(name).join("model.onnx");
    Model::read(&path).unwrap()
}

fn show(errors: Errors) -> String {
    errors.iter().map(|d| format!("{d}\n")).collect()
}

fn at(plan: &Plan, seq: u64, past: u64) -> Report {
    inspect(plan, &BTreeMap::from([("seq".to_string(), seq), ("past".to_string(), past)])).unwrap()
}

/// Sizes that are compared: new tokens, cached tokens.
const SIZES: [(u64, u64); 3] = [(32, 0), (1, 40), (7, 5)];

fn frozen(merged: u32) -> Variant {
    Variant { private_layers: Some(2), merged, ..Variant::default() }
}

#[test]
fn predictions_are_the_costs_of_exported_models() {
    let options = Options { assume: true, ..Options::default() };
    let base = corpus("llama-trained/base");
    let analysed = analyse(&base, None, &options).map_err(show).unwrap();
    for (name, variant) in [
        ("llama-trained/full", Variant::default()),
        ("llama-trained/frozen", frozen(1)),
        ("llama-trained/lora", Variant { rank: Some(4), ..Variant::default() }),
        ("llama-trained/frozen-headmerge", frozen(2)),
    ] {
        let predicted = plan_of_variant(&base, &analysed, &variant, &options).map_err(show).unwrap();
        assert!(predicted.costs_only);
        let exported = compile(&corpus(name), Some(&base), &options).map_err(show).unwrap().plan;
        for (seq, past) in SIZES {
            let (a, b) = (at(&predicted, seq, past), at(&exported, seq, past));
            println!(
                "{name} {seq} {past}: {} and {} bytes, {} and {} rounds",
                a.total_bytes(),
                b.total_bytes(),
                a.rounds,
                b.rounds
            );
            assert!(b.total_bytes() > 0);
            assert_eq!(
                (a.bytes, a.rounds, a.setup_bytes, a.macs),
                (b.bytes, b.rounds, b.setup_bytes, b.macs),
                "{name}"
            );
        }
    }
}

#[test]
fn approximations_are_those_of_a_compile() {
    let options = Options { assume: true, ..Options::default() };
    let base = corpus("llama-trained/base");
    let analysed = analyse(&base, None, &options).map_err(show).unwrap();
    let exact = plan_of_variant(&base, &analysed, &frozen(1), &options).map_err(show).unwrap();
    let variant = Variant { two_relu: true, relu: true, ..frozen(1) };
    let predicted = plan_of_variant(&base, &analysed, &variant, &options).map_err(show).unwrap();
    let mut asked = options.clone();
    asked.approximations.softmax.push("2relu".parse().unwrap());
    asked.approximations.activation.push("relu".parse().unwrap());
    let exported = compile(&corpus("llama-trained/frozen"), Some(&base), &asked).map_err(show).unwrap().plan;
    assert_eq!(predicted.changes, exported.changes);
    for (seq, past) in SIZES {
        let (a, b) = (at(&predicted, seq, past), at(&exported, seq, past));
        assert_eq!((&a.bytes, a.rounds), (&b.bytes, b.rounds));
        assert!(a.total_bytes() < at(&exact, seq, past).total_bytes(), "{seq} {past}");
    }
}

/// Measured ranges differ between a base and what was trained from it, and with them the widths of comparisons.
#[test]
fn measured_ranges_change_predictions_by_little() {
    let options = Options::default();
    let base = corpus("llama-trained/base");
    let analysed = analyse(&base, None, &options).map_err(show).unwrap();
    let predicted = plan_of_variant(&base, &analysed, &frozen(1), &options).map_err(show).unwrap();
    let exported = compile(&corpus("llama-trained/frozen"), Some(&base), &options).map_err(show).unwrap().plan;
    for (seq, past) in SIZES {
        let (a, b) = (at(&predicted, seq, past), at(&exported, seq, past));
        let ratio = a.total_bytes() as f64 / b.total_bytes() as f64;
        println!("{seq} {past}: {ratio}");
        assert!((0.95..1.05).contains(&ratio), "{seq} {past}: {ratio}");
    }
}

#[test]
fn forms_that_a_model_cannot_have_are_refused() {
    let options = Options { assume: true, ..Options::default() };
    let base = corpus("llama-trained/base");
    let analysed = analyse(&base, None, &options).map_err(show).unwrap();
    for variant in [
        Variant { private_layers: Some(5), ..Variant::default() },
        Variant { private_layers: Some(0), ..Variant::default() },
        Variant { rank: Some(97), ..Variant::default() },
        Variant { merged: 4, ..Variant::default() },
    ] {
        let errors = plan_of_variant(&base, &analysed, &variant, &options).err().unwrap();
        assert_eq!(errors[0].code, "E0595", "{}", variant.name());
    }
}

#[test]
fn advice_follows_from_predictions() {
    let request = Request {
        prompt: 64,
        cached: 64,
        tokens: 4,
        machine: None,
        networks: vec![("lan".into(), Network::LAN), ("wan".into(), Network::WAN)],
    };
    let options = Options { assume: true, ..Options::default() };
    let (model, base) = (corpus("llama-trained/frozen"), corpus("llama-trained/base"));
    let choice = Choice { rank: Some(4), merged: Some(2), ..Choice::default() };
    let advice = advise(&model, Some(&base), &options, &request, choice).map_err(show).unwrap();
    let of = |name: &str| advice.forms.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{name}"));
    let (full, frozen, merged) = (of("full"), of("last 2 layers"), of("2 heads merged"));
    assert!(2 * frozen.prefill.bytes <= full.prefill.bytes, "the embedding is gone too");
    assert!(5 * frozen.prefill.rounds <= 3 * full.prefill.rounds);
    let softmax = |f: &ombra_compiler::advise::Prediction| f.prefill.kinds.get("masked_softmax").copied().unwrap();
    let ratio = softmax(full) as f64 / softmax(merged) as f64;
    assert!((1.9..=2.1).contains(&ratio), "softmax costs half of it: {ratio}");
    assert_eq!(of("as it is").prefill.bytes, frozen.prefill.bytes, "the model is frozen so");
    assert!(of("LoRA rank 4").setup_bytes * 10 < full.setup_bytes);
    assert!(advice.recommended.starts_with("last 2 layers"), "{}", advice.recommended);
    assert!(advice.rules.iter().any(|r| r.about == "freezing"));
    let text = advice.text();
    assert!(advice.forms.iter().all(|f| text.contains(&f.name)) && text.contains("choose: "));
    assert_eq!(advice.layers, 4);
}

/// Every setting has its own predictions, and says what the paper's rule makes of them.
#[test]
fn every_setting_is_told_its_bottleneck() {
    let request =
        Request { prompt: 64, cached: 64, tokens: 4, machine: None, networks: vec![("lan".into(), Network::LAN)] };
    let base = corpus("llama-trained/base");
    let mut said = Vec::new();
    for setting in [Setting::ThreeParty, Setting::Dealer] {
        let options = Options { assume: true, setting, ..Options::default() };
        let choice = Choice { rank: Some(4), merged: Some(2), ..Choice::default() };
        let advice = advise(&base, None, &options, &request, choice).map_err(show).unwrap();
        assert_eq!(advice.setting, setting.name());
        let rule = advice.rules.iter().find(|r| r.about == "bottleneck").unwrap();
        let found = shares(&advice.forms[0], &request);
        // Between three parties products are local, and without a machine nothing is computed.
        assert_eq!(found.arithmetic > 0.0, setting == Setting::Dealer, "{setting:?}: {found:?}");
        let expected = match bottleneck(found) {
            Bottleneck::RestOfPrompts => "the paper's choice is 2 heads merged",
            Bottleneck::RestOfTokens | Bottleneck::Arithmetic => "the paper's choice is LoRA rank 4",
            Bottleneck::None => "the paper's choice is last 2 layers",
        };
        assert!(rule.says.contains(expected) && rule.says.contains("on top, last 2 layers"), "{}", rule.says);
        said.push(rule.says.clone());
    }
    assert_ne!(said[0], said[1], "each by its own costs");
}
