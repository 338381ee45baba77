//! Reports: their numbers are those of the schedule, their JSON keeps its fields, their page escapes every name.

use ombra_compiler::inspect::{
    By, Conditions, OpCost, compare, default_public_inputs, inspect, inspect_under, page, size,
};
use ombra_compiler::onnx::Model;
use ombra_compiler::passes::approximate::Approximations;
use ombra_compiler::pipeline::{Options, compile};
use ombra_compiler::savings::savings;
use ombra_ir::bind::bind;
use ombra_ir::network::Network;
use ombra_ir::plan::{Place, Plan, Quantity, Role};
use ombra_ir::profile::{Profile, Unit, VERSION};
use ombra_ir::schedule::schedule;
use ombra_ir::settings::Setting;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn read(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models");
    Model::read(&models.join(name).join("model.onnx")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn plan(counted: bool) -> Plan {
    plan_in(Setting::ThreeParty, counted)
}

fn plan_in(setting: Setting, counted: bool) -> Plan {
    let options = Options { setting, ..Options::default() };
    let (model, base) = (read("llama-pair/frozen"), read("llama-pair/base"));
    let mut plan = compile(&model, Some(&base), &options).expect("the corpus compiles").plan;
    if counted {
        plan.savings = savings(&model, Some(&base), &options, &plan).expect("savings can be counted");
    }
    plan
}

fn sizes(seq: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("seq".to_string(), seq)])
}

fn profile(rate: f64) -> Profile {
    let per_second = Unit::ALL.into_iter().map(|unit| (unit, rate)).collect();
    let setting = Setting::ThreeParty.name().to_string();
    Profile { ombra_profile: VERSION, setting, cores: 1, threads: 1, per_second, links: Vec::new() }
}

#[test]
fn costs_are_those_of_the_schedule() {
    let plan = plan(false);
    for seq in [1, 7, 16] {
        let report = inspect(&plan, &sizes(seq)).expect("the sizes are the plan's");
        let pairs: Vec<(&str, u64)> = report.dims.iter().map(|(n, &v)| (n.as_str(), v)).collect();
        let inputs = default_public_inputs(&plan, &pairs).expect("the plan has defaults");
        let bound = bind(&plan.module, &pairs, &inputs).expect("the sizes are the plan's");
        let schedule = schedule(&plan.module, &bound).expect("the masks fit");
        let cost = schedule.cost(&plan.module);
        assert_eq!(report.rounds, cost.rounds);
        assert_eq!(report.total_bytes(), cost.bytes.iter().sum::<u64>());
        assert_eq!(report.ops.iter().map(|op| op.bytes).sum::<u64>(), report.total_bytes());
        assert_eq!(report.ops.iter().map(|op| op.path_rounds).sum::<u32>(), schedule.ticks);
        assert_eq!(report.ticks, schedule.ticks);
    }
}

#[test]
fn what_is_dealt_stands_apart_from_what_is_sent() {
    let (three, dealer) = (plan(false), plan_in(Setting::Dealer, true));
    let [three, dealer] = [&three, &dealer].map(|plan| inspect(plan, &sizes(8)).expect("the sizes are the plan's"));
    let sum = |part: fn(&OpCost) -> u64| dealer.ops.iter().map(part).sum::<u64>();
    let (online, dealt) = (sum(|op| op.bytes), sum(|op| op.offline_bytes));
    assert!(online > 0 && dealt > 0 && dealer.rounds > 0);
    assert_eq!((online, dealt), (dealer.online_bytes(), dealer.dealt_bytes()));
    assert_eq!(online + dealt, dealer.total_bytes());
    assert_eq!(dealer.savings.last().map(|saving| saving.steps.len()), Some(2));

    let json = serde_json::to_value(&dealer).expect("a report is JSON");
    let of =
        |field: &str| json[field].as_object().expect("by party").values().map(|v| v.as_u64().unwrap()).sum::<u64>();
    assert_eq!((of("bytes"), of("offline_bytes")), (online, dealt));
    assert_eq!(serde_json::to_value(&three).expect("JSON")["offline_bytes"], serde_json::json!({}));

    let (with, without) = (dealer.text(By::Kind), three.text(By::Kind));
    assert!(with.contains(&format!("dealt   {}", size(dealt))) && with.contains(&size(online + dealt)), "{with}");
    assert!(!without.contains("dealt"), "{without}");
    let head = |text: &str| text.lines().find(|line| line.contains("where; rounds")).unwrap_or_default().to_string();
    assert!(head(&with).contains("online        dealt        bytes") && !head(&without).contains("online"));
    let row = with.lines().find(|line| line.ends_with("  silu")).unwrap_or_default();
    let silu = |part: fn(&OpCost) -> u64| dealer.ops.iter().filter(|op| op.kind() == "silu").map(part).sum::<u64>();
    for bytes in [silu(|op| op.bytes), silu(|op| op.offline_bytes), silu(OpCost::total_bytes)] {
        assert!(row.contains(&size(bytes)), "{row}");
    }

    let side = compare(&three, &dealer);
    for line in ["bytes of a step", "  online ", "  dealt ", "    online ", "    dealt "] {
        assert!(side.lines().any(|found| found.starts_with(line)), "{line}\n{side}");
    }
    assert!(!compare(&three, &three).contains("dealt"));
    for (report, apart) in [(&three, false), (&dealer, true)] {
        let page = page(report);
        well_formed(&page);
        assert_eq!(page.contains("dealt"), apart);
        assert!(page.contains(&size(report.total_bytes())), "the sum stands there");
    }
}

#[test]
fn a_strict_dealer_is_part_of_a_plan_with_a_dealer() {
    let compiled = |setting: Setting, strict_dealer: bool| {
        let options = Options { setting, strict_dealer, ..Options::default() };
        let (model, base) = (read("llama-pair/frozen"), read("llama-pair/base"));
        compile(&model, Some(&base), &options).map(|compiled| compiled.plan)
    };
    let error = compiled(Setting::ThreeParty, true).err().unwrap().into_iter().next().unwrap();
    assert!(error.code == "E0421" && error.message.contains("nobody deals in the setting 3pc"), "{error}");
    let reports = [false, true].map(|strict| {
        let plan = compiled(Setting::Dealer, strict).unwrap();
        assert_eq!(plan.strict_dealer, strict);
        inspect(&plan, &sizes(4)).unwrap()
    });
    let [ordinary, strict] = &reports;
    assert_eq!((ordinary.setup_to, strict.setup_to), ("dealer", "client"));
    assert!(strict.setup_bytes > 0 && strict.setup_bytes == ordinary.setup_bytes && strict.bytes == ordinary.bytes);
    let text = reports.each_ref().map(|report| report.text(By::Kind));
    assert!(text[1].contains("to every client: the dealer gets nothing") && !text[0].contains("every client"));
}

#[test]
fn every_range_that_is_taken_for_granted_is_listed() {
    assert_eq!(plan(false).assumed, []);
    let softmax = vec!["2quad".parse().expect("a form")];
    let approximations = Approximations { softmax, ..Approximations::default() };
    let options = Options { approximations, ..Options::default() };
    let (model, base) = (read("llama-pair/frozen"), read("llama-pair/base"));
    let plan = compile(&model, Some(&base), &options).expect("the corpus compiles").plan;
    let report = inspect(&plan, &sizes(8)).expect("the sizes are the plan's");
    // The divisors of the two private layers.
    assert_eq!(plan.assumed.iter().filter(|range| range.quantity == Quantity::RowStatistic).count(), 2);
    assert_eq!(report.bounds.assumed, plan.assumed.len());
    let text = report.text(By::Bound);
    for range in &plan.assumed {
        let line = text.lines().find(|line| line.ends_with(&range.node) && line.contains(range.quantity.name()));
        assert!(line.is_some(), "{range:?} is missing in\n{text}");
    }
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!(json["assumed"].as_array().map(Vec::len), Some(plan.assumed.len()));
}

#[test]
fn latency_is_half_a_round_trip_a_round() {
    let plan = plan(false);
    let network =
        |bits, millis: u64| Network { bandwidth_bits_per_s: bits, rtt: std::time::Duration::from_millis(millis) };
    let under = |network: Network, profile| {
        let conditions = Conditions { network: Some((network.to_string(), network)), profile };
        inspect_under(&plan, &sizes(16), &conditions).expect("the sizes are the plan's")
    };
    let report = under(network(1_000_000_000_000, 40), None);
    let time = report.predicted_seconds.expect("a network is given");
    assert!((time.latency - 0.020 * f64::from(report.rounds)).abs() < 1e-6 * time.latency, "{time:?}");
    assert_eq!((time.work, time.rounds), (0.0, 0.0));
    // One link carries at least a sixth of all bytes, and at most all of them.
    let slow = under(network(1_000_000, 0), None).predicted_seconds.expect("a network is given");
    let all = report.total_bytes() as f64 * 8.0 / 1e6;
    assert!((all / 6.0..=all).contains(&slow.network), "{} of {all}", slow.network);
    let busy = under(network(1_000_000, 0), Some(profile(1e6))).predicted_seconds.expect("a network is given");
    let idle = under(network(1_000_000, 0), Some(profile(2e6))).predicted_seconds.expect("a network is given");
    assert!(busy.work > 0.0 && (busy.work / idle.work - 2.0).abs() < 1e-9);
    assert!((busy.rounds - f64::from(report.ticks) / 1e6).abs() < 1e-12);
}

#[test]
fn profiles_are_checked() {
    assert_eq!(profile(1.0).check(), Ok(()));
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(profile(rate).check().map_err(|e| e.code), Err("E0420"), "{rate}");
    }
    assert!(Profile { ombra_profile: VERSION + 1, ..profile(1.0) }.check().is_err());
    let mut missing = profile(1.0);
    missing.per_second.remove(&Unit::Rounds);
    assert!(missing.check().is_err());
    let conditions = Conditions { network: None, profile: Some(profile(1.0)) };
    let other = inspect_under(&plan_in(Setting::Dealer, false), &sizes(4), &conditions);
    assert_eq!(other.map(|_| ()).map_err(|e| e.code), Err("E0420"), "rates of another setting");
}

#[test]
fn json_keeps_its_fields() {
    let report = inspect(&plan(true), &sizes(8)).expect("the sizes are the plan's");
    let json = serde_json::to_value(&report).expect("a report is JSON");
    let keys = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| n.to_string()).collect() };
    // Fields may be added here, none may go.
    let whole = [
        "model",
        "setting",
        "dims",
        "revealed",
        "public_inputs",
        "rounds",
        "ticks",
        "bytes",
        "setup_bytes",
        "setup_to",
        "macs",
        "bounds",
        "network",
        "machine",
        "predicted_seconds",
        "parts",
        "changes",
        "savings",
        "ops",
    ];
    assert!(keys(&json).is_superset(&set(&whole)), "{:?}", keys(&json));
    let op = [
        "id",
        "op",
        "kind",
        "origin",
        "layer",
        "party",
        "dims",
        "rounds",
        "path_rounds",
        "bytes",
        "offline_bytes",
        "macs",
        "bound_log2",
        "bound_from",
    ];
    assert!(keys(&json["ops"][0]).is_superset(&set(&op)), "{:?}", keys(&json["ops"][0]));
    assert!(keys(&json["savings"][0]["steps"][0]).is_superset(&set(&["name", "dims", "rounds", "bytes", "kinds"])));
    let part = ["layer", "role", "place", "nodes", "public_weights", "private_weights"];
    assert!(keys(&json["parts"][0]).is_superset(&set(&part)));
}

#[test]
fn frozen_layers_are_the_clients_and_the_rest_is_under_mpc() {
    let plan = plan(false);
    let places = |layer: u32, role: Role| -> BTreeSet<Place> {
        plan.parts.iter().filter(|p| p.layer == Some(layer) && p.role == role).map(|p| p.place).collect()
    };
    let layers: BTreeSet<u32> = plan.parts.iter().filter_map(|p| p.layer).collect();
    let (first, last) = (layers.first().copied().expect("layers"), layers.last().copied().expect("layers"));
    assert!(first < last);
    for role in [Role::Attention, Role::FeedForward] {
        assert_eq!(places(first, role), BTreeSet::from([Place::Client]), "{role:?}");
        assert!(places(last, role).contains(&Place::Mpc), "{role:?}");
    }
    assert!(plan.parts.iter().any(|p| p.role == Role::Head && p.place == Place::Mpc));
    let private: u64 = plan.parts.iter().filter(|p| p.place == Place::Client).map(|p| p.private_weights).sum();
    assert_eq!(private, 0, "the client reads no private weight");
}

#[test]
fn text_and_comparison_name_what_they_count() {
    let plan = plan(true);
    let report = inspect(&plan, &sizes(8)).expect("the sizes are the plan's");
    let text = report.text(By::Layer);
    for word in ["owners by content", "norms folded", "layer ", "rounds"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let side = compare(&report, &report);
    let ratios = side.lines().filter(|line| line.trim_end().ends_with("1.00")).count();
    assert!(ratios > 5, "{side}");
}

/// A name that would end any element, attribute or script that it stood in unescaped.
const HOSTILE: &str = "\"'></title></style></svg><script>alert(1)</script><img src=x onerror=alert(2)>&copy;";

#[test]
fn the_page_is_well_formed_and_escapes_every_name() {
    let mut plan = plan(true);
    plan.module.name = HOSTILE.into();
    plan.changes = vec![HOSTILE.into()];
    for node in &mut plan.module.ops {
        node.origin.node = HOSTILE.into();
        node.origin.kind = format!("{HOSTILE}{}", node.origin.kind);
    }
    for input in &mut plan.module.public.inputs {
        input.name += HOSTILE;
    }
    for output in &mut plan.module.outputs {
        output.name = HOSTILE.into();
    }
    for step in plan.savings.iter_mut().flat_map(|s| &mut s.steps) {
        step.name = HOSTILE.into();
        step.dims.iter_mut().for_each(|d| d.0 = HOSTILE.into());
    }
    let network = Network::LAN;
    let conditions = Conditions { network: Some((HOSTILE.into(), network)), profile: Some(profile(1e9)) };
    let report = inspect_under(&plan, &sizes(8), &conditions).expect("the sizes are the plan's");
    let page = page(&report);
    assert!(page.contains("&lt;script&gt;"), "the name is shown");
    for outside in ["http", "url(", "@import", "href", "src=x onerror=alert(2)>", "<script", "<img", "<link", "<iframe"]
    {
        assert!(!page.contains(outside), "the page contains {outside}");
    }
    well_formed(&page);
}

/// Every element that is opened is closed, in order; every attribute is quoted.
fn well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a page begins with its type");
    while let Some(at) = rest.find('<') {
        let tag_and_rest = &rest[at + 1..];
        let end = tag_and_rest.find('>').expect("a tag ends");
        let tag = &tag_and_rest[..end];
        rest = &tag_and_rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "…{}", &rest[..rest.len().min(60)]);
            continue;
        }
        let name = tag.split(' ').next().unwrap_or_default();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{tag}>");
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        if !["meta"].contains(&name) {
            open.push(name);
        }
    }
    assert_eq!(open, [""; 0]);
}
