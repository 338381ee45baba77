//! The ratios of "MPC-Minimized Secure LLM Inference" (Rathee et al., arXiv 2408.03561) recomputed by our cost model for the
//! model, the settings and the lengths of the paper, and compared with `benchmarks/marill/README.md`.
//!
//! The 3B model is generated without its weights, every form of it is made by `advise` and compiled for its costs. Nothing
//! here is timed: seconds are those that messages take on the paper's network by the model of `ombra_ir::network`, and
//! those that computing takes besides by a machine profile in `benchmarks/results`.
//! `OMBRA_BLESS=1 cargo test -p ombra-bench --test marill` writes the table anew.

mod common;

use common::{Folder, three_billion};
use ombra_bench::compare_table;
use ombra_compiler::advise::{Prediction, Request, StepCost, Variant, plan_of_variant, predict};
use ombra_compiler::inspect::size;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Options, analyse, compile};
use ombra_examples::generate::{Llama, Seeds};
use ombra_ir::module::Setting;
use ombra_ir::network::Network;
use ombra_ir::profile::Profile;
use std::path::Path;

/// The network of the paper's measurements: 16 Gbps, 0.1 ms (§6).
const NETWORK: &str = "16Gbps,0.1ms";
/// Rank of adapters (§6.2).
const RANK: u32 = 64;

fn request(length: u64) -> Request {
    let network = Network::parse(NETWORK).expect("it is a network").expect("and not none");
    Request { prompt: length, cached: length, tokens: 1, networks: vec![(NETWORK.into(), network)], machine: None }
}

/// A setting of the paper.
struct Case {
    title: &'static str,
    setting: Setting,
    /// Tokens of the prompt, and cached tokens when a further one is made (§6).
    length: u64,
    /// Of 13, 9, 6, 5 and 4 private layers of 26: prefill time and communication, decode time and communication (table 2).
    frozen: [[f64; 4]; 5],
    /// Of every form of [`FORMS`]: prefill time and communication, decode time (figure 4, table 1).
    forms: [[&'static str; 3]; 8],
}

const FROZEN: [u32; 5] = [13, 9, 6, 5, 4];

/// Private layers, rank of adapters, merged heads, 2ReLU.
const FORMS: [(Option<u32>, Option<u32>, u32, bool); 8] = [
    (None, Some(RANK), 1, false),
    (None, None, 2, false),
    (None, None, 4, false),
    (Some(13), None, 1, false),
    (Some(13), None, 4, false),
    (Some(13), Some(RANK), 4, false),
    (None, None, 4, true),
    (Some(13), None, 4, true),
];

/// What the paper says of two settings together.
const BOTH: [[&str; 3]; 8] = [
    ["", "", "1.8 to 1.9"],
    ["1.55", "1.8", ""],
    ["2.1 to 2.4", "2.6 to 2.8", ""],
    ["2.1", "2.0", "2.0"],
    ["4.8", "5.4", ""],
    ["", "", ""],
    ["3.25", "4.25", ""],
    ["6.9", "8.5", ""],
];

const CASES: [Case; 3] = [
    Case {
        title: "Three parties, 2048 tokens",
        setting: Setting::ThreeParty,
        length: 2048,
        frozen: [
            [2.1, 2.0, 2.0, 2.0],
            [3.1, 2.9, 2.8, 2.8],
            [4.6, 4.3, 4.0, 4.3],
            [5.5, 5.2, 4.7, 4.9],
            [6.9, 6.5, 5.7, 6.4],
        ],
        forms: BOTH,
    },
    Case {
        title: "Two parties with a dealer, 2048 tokens",
        setting: Setting::Dealer,
        length: 2048,
        frozen: [
            [2.0, 2.0, 2.0, 2.0],
            [2.9, 2.9, 2.8, 2.8],
            [4.3, 4.3, 4.0, 4.1],
            [5.1, 5.2, 4.7, 4.8],
            [6.4, 6.4, 5.7, 5.8],
        ],
        forms: BOTH,
    },
    Case {
        title: "Two parties alone, 64 tokens",
        setting: Setting::TwoParty,
        length: 64,
        frozen: [
            [2.1, 2.0, 2.0, 2.0],
            [2.9, 2.9, 2.8, 2.8],
            [4.3, 4.3, 4.1, 4.3],
            [5.1, 5.2, 4.9, 5.1],
            [6.3, 6.4, 5.9, 6.1],
        ],
        forms: [
            ["4.9", "", "2.2"],
            ["", "", ""],
            ["", "", ""],
            ["2.1", "2.0", "2.0"],
            ["", "", ""],
            ["", "", ""],
            ["", "", ""],
            ["", "", ""],
        ],
    },
];

fn seconds(step: &StepCost) -> f64 {
    step.seconds.get(NETWORK).copied().expect("the network was asked for")
}

/// The profile of a machine with two cores, all parties on it, where there is one for the setting.
fn machine(setting: Setting) -> Option<Profile> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/2026-11-20-zen5-2cores/machine.json");
    let text = std::fs::read_to_string(path).expect("the profile is there");
    let profile: Profile = serde_json::from_str(&text).expect("it is a profile");
    (profile.setting == setting.name()).then_some(profile)
}

/// What one step of a form costs.
struct Step {
    bytes: u64,
    rounds: u32,
    messages_s: f64,
    all_s: Option<f64>,
}

/// What a form costs: a prompt, a further token, and sharing its private weights.
struct Costs {
    prompt: Step,
    token: Step,
    setup_bytes: u64,
}

/// A row of cells, those that there are.
fn row(cells: impl IntoIterator<Item = Option<String>>) -> String {
    let cells: Vec<String> = cells.into_iter().flatten().collect();
    format!("| {} |\n", cells.join(" | "))
}

/// The head of a table, and the line below it.
fn head<'a>(cells: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let head = row(cells.into_iter().map(|cell| cell.map(str::to_owned)));
    let columns = head.matches('|').count() - 1;
    format!("{head}|{}\n", "---|".repeat(columns))
}

fn tables(model: &Model, case: &Case) -> String {
    let options = Options { setting: case.setting, ..Options::default() };
    let analysed = analyse(model, None, &options).unwrap_or_else(|e| panic!("{}", e[0]));
    let of_messages = request(case.length);
    let of_all = machine(case.setting).map(|machine| Request { machine: Some(machine), ..request(case.length) });
    let timed = of_all.is_some();
    let of = |variant: &Variant| -> Costs {
        let plan = plan_of_variant(model, &analysed, variant, &options).unwrap_or_else(|e| panic!("{}", e[0]));
        let ask = |r: &Request| predict(&plan, variant, r).unwrap_or_else(|e| panic!("{e}"));
        let (messages, all) = (ask(&of_messages), of_all.as_ref().map(ask));
        let step = |a: &StepCost, b: Option<&StepCost>| Step {
            bytes: a.bytes,
            rounds: a.rounds,
            messages_s: seconds(a),
            all_s: b.map(seconds),
        };
        let decode = |p: &Prediction| p.decode.clone().expect("the model keeps a cache");
        Costs {
            prompt: step(&messages.prefill, all.as_ref().map(|all| &all.prefill)),
            token: step(&decode(&messages), all.as_ref().map(decode).as_ref()),
            setup_bytes: messages.setup_bytes,
        }
    };
    let full = of(&Variant::default());
    // Of both steps: communication, messages' time, all time.
    let factors = |c: &Costs| {
        [(&full.prompt, &c.prompt), (&full.token, &c.token)].map(|(full, own)| {
            let all = full.all_s.zip(own.all_s).map(|(full, own)| format!("{:.2}", full / own));
            let [bytes, messages] = [full.bytes as f64 / own.bytes as f64, full.messages_s / own.messages_s];
            [Some(format!("{bytes:.2}")), Some(format!("{messages:.2}")), all]
        })
    };
    let absolute = |name: &str, c: &Costs| {
        let step = |s: &Step| {
            let messages = format!("{:.3}", s.messages_s);
            [Some(size(s.bytes)), Some(s.rounds.to_string()), Some(messages), s.all_s.map(|all| format!("{all:.2}"))]
        };
        let name = [Some(name.to_owned())];
        row(name.into_iter().chain(step(&c.prompt)).chain(step(&c.token)).chain([Some(size(c.setup_bytes))]))
    };
    let all = timed.then_some("all, s");
    let of_step = |bytes| [Some(bytes), Some("rounds"), Some("messages, s"), all];
    let columns = [Some("form")].into_iter().chain(of_step("prompt: bytes")).chain(of_step("token: bytes"));
    let mut out = format!("## {}\n\nAll parties together", case.title);
    out += if timed {
        "; seconds are those of messages, then with computing:\n\n"
    } else {
        "; seconds are those of messages:\n\n"
    };
    out += &head(columns.chain([Some("set-up")]));
    out += &absolute("full", &full);
    let of_step = |time| [time, "paper", "communication", "paper"].map(Some);
    let columns = of_step("prompt: messages' time").into_iter().chain(of_step("token: messages' time"));
    let mut frozen = head([Some("private layers")].into_iter().chain(columns));
    for (layers, paper) in FROZEN.iter().zip(case.frozen) {
        let [prompt, token] = factors(&of(&Variant { private_layers: Some(*layers), ..Variant::default() }));
        let ours = [&prompt[1], &prompt[0], &token[1], &token[0]];
        let cells = ours.into_iter().zip(paper).flat_map(|(ours, paper)| [ours.clone(), Some(format!("{paper:.1}"))]);
        frozen += &row([Some(format!("{layers} of 26"))].into_iter().chain(cells));
    }
    let all = timed.then_some("all time");
    let names = ["form", "prompt: communication", "paper", "messages' time"].map(Some).into_iter().chain([all]);
    let names = names.chain(["paper's time", "token: communication", "messages' time"].map(Some)).chain([all]);
    let mut relative = head(names.chain([Some("paper's time")]));
    for ((private_layers, rank, merged, two_relu), paper) in FORMS.into_iter().zip(case.forms) {
        let variant = Variant { private_layers, rank, merged, two_relu, relu: false };
        let costs = of(&variant);
        out += &absolute(&variant.name(), &costs);
        let [[bytes, messages, all], token] = factors(&costs);
        let [paper_time, paper_bytes, paper_token] = paper.map(|cell| Some(cell.to_owned()));
        let prompt = [Some(variant.name()), bytes, paper_bytes, messages, all, paper_time];
        relative += &row(prompt.into_iter().chain(token).chain([paper_token]));
    }
    out += "\nFactors over full, as layers are frozen (the paper's table 2):\n\n";
    out += &frozen;
    out += "\nFactors over full, by technique (the paper's figure 4 and table 1):\n\n";
    out + &relative
}

#[test]
fn the_tables_are_those_on_file() {
    let folder = Folder::new("marill-table");
    let model = folder.model(&three_billion());
    let tables: Vec<String> = CASES.iter().map(|case| tables(&model, case)).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("marill/README.md");
    compare_table(&path, "table", &tables.join("\n")).unwrap_or_else(|e| panic!("{e}"));
}

/// What the generator writes in a form costs what the same form made of the full model does.
#[test]
fn generated_forms_cost_what_is_predicted() {
    let small = Llama { layers: 4, hidden: 64, heads: 8, kv_heads: 8, ff: 96, vocab: 100, ..three_billion() };
    let folder = Folder::new("marill-forms");
    let options = Options { assume: true, ..Options::default() };
    let full = folder.model(&small);
    let analysed = analyse(&full, None, &options).unwrap_or_else(|e| panic!("{}", e[0]));
    for (tuned_from, lora, merged) in [
        (None, None, 1),
        (Some(2), None, 1),
        (None, Some(4), 1),
        (None, None, 4),
        (Some(1), None, 2),
        (Some(3), Some(4), 4),
    ] {
        let seeds = Seeds { tuned_from, ..small.seeds };
        let shape = Llama { lora, merged: merged as usize, seeds, ..small };
        let variant = Variant {
            private_layers: tuned_from.map(|first| (small.layers - first) as u32),
            rank: lora.map(|r| r as u32),
            merged,
            ..Variant::default()
        };
        // Without contents the owners are said by name: what the generator tunes.
        let mut options = options.clone();
        let layers = (tuned_from.unwrap_or(0)..small.layers).map(|l| format!("model.layers.{l}."));
        options.overrides.private = match (lora, tuned_from) {
            (Some(_), _) => vec!["*lora*".into()],
            (None, None) => vec!["model.*".into(), "lm_head*".into()],
            (None, Some(_)) => layers.map(|l| l + "*").chain(["model.norm*".into(), "lm_head*".into()]).collect(),
        };
        options.overrides.public = vec!["*".into()];
        options.overrides.partly_public = true;
        let generated = compile(&folder.model(&shape), None, &options).unwrap_or_else(|e| panic!("{}", e[0])).plan;
        let varied = plan_of_variant(&full, &analysed, &variant, &options).unwrap_or_else(|e| panic!("{}", e[0]));
        let ask = Request { prompt: 24, cached: 17, ..request(24) };
        let (a, b) = (predict(&generated, &variant, &ask), predict(&varied, &variant, &ask));
        let (a, b) = (a.unwrap_or_else(|e| panic!("{e}")), b.unwrap_or_else(|e| panic!("{e}")));
        let steps = |p: &Prediction| {
            let d = p.decode.clone().expect("the model keeps a cache");
            (p.prefill.bytes, p.prefill.rounds, d.bytes, d.rounds, p.setup_bytes)
        };
        assert_eq!(steps(&a), steps(&b), "{}", variant.name());
    }
}
