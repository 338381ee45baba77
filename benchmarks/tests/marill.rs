//! The ratios of "MPC-Minimized Secure LLM Inference" (Rathee et al., arXiv 2408.03561) recomputed by our cost model for the
//! model and the lengths of the paper, and compared with `benchmarks/marill/README.md`.
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
use ombra_compiler::pipeline::{Options, analyse, compile};
use ombra_examples::generate::{Llama, Seeds};
use ombra_ir::network::Network;
use ombra_ir::profile::Profile;
use std::fmt::Write;
use std::path::Path;

/// The network of the paper's measurements: 16 Gbps, 0.1 ms (§6).
const NETWORK: &str = "16Gbps,0.1ms";
/// Tokens of the prompt, and cached tokens when a further one is made (§6).
const LENGTH: u64 = 2048;
/// Rank of adapters (§6.2).
const RANK: u32 = 64;

fn request() -> Request {
    let network = Network::parse(NETWORK).expect("it is a network").expect("and not none");
    Request { prompt: LENGTH, cached: LENGTH, tokens: 1, networks: vec![(NETWORK.into(), network)], machine: None }
}

/// Private layers, and the paper's factors for three parties: prefill time and communication, decode time and
/// communication (table 2).
const FROZEN: &[(u32, [f64; 4])] = &[
    (13, [2.1, 2.0, 2.0, 2.0]),
    (9, [3.1, 2.9, 2.8, 2.8]),
    (6, [4.6, 4.3, 4.0, 4.3]),
    (5, [5.5, 5.2, 4.7, 4.9]),
    (4, [6.9, 6.5, 5.7, 6.4]),
];

/// A form, and what the paper says of it: prefill time and communication, decode time.
struct Row {
    private_layers: Option<u32>,
    rank: Option<u32>,
    merged: u32,
    two_relu: bool,
    paper: [&'static str; 3],
}

const ROWS: &[Row] = &[
    Row { private_layers: None, rank: Some(RANK), merged: 1, two_relu: false, paper: ["", "", "1.8 to 1.9"] },
    Row { private_layers: None, rank: None, merged: 2, two_relu: false, paper: ["1.55", "1.8", ""] },
    Row { private_layers: None, rank: None, merged: 4, two_relu: false, paper: ["2.1 to 2.4", "2.6 to 2.8", ""] },
    Row { private_layers: Some(13), rank: None, merged: 1, two_relu: false, paper: ["2.1", "2.0", "2.0"] },
    Row { private_layers: Some(13), rank: None, merged: 4, two_relu: false, paper: ["4.8", "5.4", ""] },
    Row { private_layers: Some(13), rank: Some(RANK), merged: 4, two_relu: false, paper: ["", "", ""] },
    Row { private_layers: None, rank: None, merged: 4, two_relu: true, paper: ["3.25", "4.25", ""] },
    Row { private_layers: Some(13), rank: None, merged: 4, two_relu: true, paper: ["6.9", "8.5", ""] },
];

fn seconds(step: &StepCost) -> f64 {
    step.seconds.get(NETWORK).copied().expect("the network was asked for")
}

/// The profile of a machine with two cores, all three parties on it.
fn machine() -> Profile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/2026-11-20-zen5-2cores/machine.json");
    let text = std::fs::read_to_string(path).expect("the profile is there");
    serde_json::from_str(&text).expect("it is a profile")
}

/// What one step of a form costs.
struct Step {
    bytes: u64,
    rounds: u32,
    messages_s: f64,
    all_s: f64,
}

/// What a form costs: a prompt, a further token, and sharing its private weights.
struct Costs {
    prompt: Step,
    token: Step,
    setup_bytes: u64,
}

fn table() -> String {
    let folder = Folder::new("marill-table");
    let model = folder.model(&three_billion());
    let options = Options::default();
    let analysed = analyse(&model, None, &options).unwrap_or_else(|e| panic!("{}", e[0]));
    let (of_messages, of_all) = (request(), Request { machine: Some(machine()), ..request() });
    let of = |variant: &Variant| -> Costs {
        let plan = plan_of_variant(&model, &analysed, variant, &options).unwrap_or_else(|e| panic!("{}", e[0]));
        let [messages, all] =
            [&of_messages, &of_all].map(|r| predict(&plan, variant, r).unwrap_or_else(|e| panic!("{e}")));
        let step = |a: &StepCost, b: &StepCost| Step {
            bytes: a.bytes,
            rounds: a.rounds,
            messages_s: seconds(a),
            all_s: seconds(b),
        };
        let token = messages.decode.as_ref().zip(all.decode.as_ref()).map(|(a, b)| step(a, b));
        Costs {
            prompt: step(&messages.prefill, &all.prefill),
            token: token.expect("the model keeps a cache"),
            setup_bytes: messages.setup_bytes,
        }
    };
    let full = of(&Variant::default());
    // Of both steps: messages' time, all time, communication.
    let factors = |c: &Costs| -> [[f64; 3]; 2] {
        [(&full.prompt, &c.prompt), (&full.token, &c.token)].map(|(full, own)| {
            [full.messages_s / own.messages_s, full.all_s / own.all_s, full.bytes as f64 / own.bytes as f64]
        })
    };
    let mut out = String::new();
    let line = |out: &mut String, text: String| {
        let _ = writeln!(out, "{text}");
    };
    let absolute = |name: &str, c: &Costs| {
        let step = |s: &Step| format!("{} | {} | {:.3} | {:.2}", size(s.bytes), s.rounds, s.messages_s, s.all_s);
        format!("| {name} | {} | {} | {} |", step(&c.prompt), step(&c.token), size(c.setup_bytes))
    };
    line(&mut out, "Absolute, all parties together; seconds are those of messages, then with computing:\n".into());
    line(&mut out, "| form | prompt: bytes | rounds | messages, s | all, s | token: bytes | rounds | messages, s | all, s | set-up |".into());
    line(&mut out, "|---|---|---|---|---|---|---|---|---|---|".into());
    line(&mut out, absolute("full", &full));
    let mut relative = String::new();
    let mut frozen = String::new();
    for (layers, paper) in FROZEN {
        let [prompt, token] = factors(&of(&Variant { private_layers: Some(*layers), ..Variant::default() }));
        let ours = [prompt[0], prompt[2], token[0], token[2]];
        let cells: Vec<String> = ours.iter().zip(paper).map(|(o, p)| format!("{o:.2} | {p:.1}")).collect();
        line(&mut frozen, format!("| {layers} of 26 | {} |", cells.join(" | ")));
    }
    for row in ROWS {
        let variant = Variant {
            private_layers: row.private_layers,
            rank: row.rank,
            merged: row.merged,
            two_relu: row.two_relu,
            relu: false,
        };
        let costs = of(&variant);
        line(&mut out, absolute(&variant.name(), &costs));
        let [prompt, token] = factors(&costs).map(|[messages, all, bytes]| [bytes, messages, all]);
        let [paper_time, paper_bytes, paper_token] = row.paper;
        line(
            &mut relative,
            format!(
                "| {} | {:.2} | {paper_bytes} | {:.2} | {:.2} | {paper_time} | {:.2} | {:.2} | {:.2} | {paper_token} |",
                variant.name(),
                prompt[0],
                prompt[1],
                prompt[2],
                token[0],
                token[1],
                token[2],
            ),
        );
    }
    line(&mut out, "\nFactors over full, as layers are frozen (the paper's table 2, three parties):\n".into());
    line(&mut out, "| private layers | prompt: messages' time | paper | communication | paper | token: messages' time | paper | communication | paper |".into());
    line(&mut out, "|---|---|---|---|---|---|---|---|---|".into());
    out += &frozen;
    line(&mut out, "\nFactors over full, by technique (the paper's figure 4 and table 1):\n".into());
    line(&mut out, "| form | prompt: communication | paper | messages' time | all time | paper's time | token: communication | messages' time | all time | paper's time |".into());
    line(&mut out, "|---|---|---|---|---|---|---|---|---|---|".into());
    out += &relative;
    out
}

#[test]
fn the_table_is_the_one_on_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("marill/README.md");
    compare_table(&path, "table", &table()).unwrap_or_else(|e| panic!("{e}"));
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
        let ask = Request { prompt: 24, cached: 17, ..request() };
        let (a, b) = (predict(&generated, &variant, &ask), predict(&varied, &variant, &ask));
        let (a, b) = (a.unwrap_or_else(|e| panic!("{e}")), b.unwrap_or_else(|e| panic!("{e}")));
        let steps = |p: &Prediction| {
            let d = p.decode.clone().expect("the model keeps a cache");
            (p.prefill.bytes, p.prefill.rounds, d.bytes, d.rounds, p.setup_bytes)
        };
        assert_eq!(steps(&a), steps(&b), "{}", variant.name());
    }
}
