//! The ratios of "MPC-Minimized Secure LLM Inference" (Rathee et al., arXiv 2408.03561) recomputed by our cost model for the
//! model and the lengths of the paper, and compared with `benchmarks/marill/README.md`.
//!
//! The 3B model is generated without its weights, every form of it is made by `advise` and compiled for its costs. Nothing
//! here is timed: seconds are those that messages take on the paper's network by the model of `ombra_ir::network`.
//! `OMBRA_BLESS=1 cargo test -p ombra-bench --test marill` writes the table anew.

use ombra_compiler::advise::{Prediction, Request, Variant, plan_of_variant, predict};
use ombra_compiler::inspect::size;
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Options, analyse, compile};
use ombra_examples::generate::{Llama, Seeds, write_llama};
use ombra_ir::network::Network;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The network of the paper's measurements: 16 Gbps, 0.1 ms (§6).
const NETWORK: &str = "16Gbps,0.1ms";
/// Tokens of the prompt, and cached tokens when a further one is made (§6).
const LENGTH: u64 = 2048;
/// Rank of adapters (§6.2).
const RANK: u32 = 64;

/// openLLaMA-3B's shape.
fn three_billion() -> Llama {
    let seeds = Seeds { no_weights: true, ..Seeds::default() };
    Llama { layers: 26, hidden: 3200, heads: 32, kv_heads: 32, ff: 8640, vocab: 32000, seeds, ..Llama::default() }
}

/// A folder that is removed with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ombra-marill-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder can be made");
        Folder(path)
    }

    fn model(&self, shape: &Llama) -> Model {
        let path = self.0.join("model.onnx");
        write_llama(shape, &path).unwrap_or_else(|e| panic!("{e}"));
        Model::read_for_costs(&path).unwrap_or_else(|e| panic!("{e}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

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

fn seconds(step: &ombra_compiler::advise::StepCost) -> f64 {
    step.seconds.get(NETWORK).copied().expect("the network was asked for")
}

fn table() -> String {
    let folder = Folder::new("table");
    let model = folder.model(&three_billion());
    let options = Options::default();
    let analysed = analyse(&model, None, &options).unwrap_or_else(|e| panic!("{}", e[0]));
    let of = |variant: &Variant| -> Prediction {
        let plan = plan_of_variant(&model, &analysed, variant, &options).unwrap_or_else(|e| panic!("{}", e[0]));
        predict(&plan, variant, &request()).unwrap_or_else(|e| panic!("{e}"))
    };
    let full = of(&Variant::default());
    let decode = |p: &Prediction| p.decode.clone().expect("the model keeps a cache");
    let factors = |p: &Prediction| -> [f64; 4] {
        let (a, b) = (decode(&full), decode(p));
        [
            seconds(&full.prefill) / seconds(&p.prefill),
            full.prefill.bytes as f64 / p.prefill.bytes as f64,
            seconds(&a) / seconds(&b),
            a.bytes as f64 / b.bytes as f64,
        ]
    };
    let mut out = String::new();
    let line = |out: &mut String, text: String| {
        let _ = writeln!(out, "{text}");
    };
    let absolute = |name: &str, p: &Prediction| {
        let d = decode(p);
        format!(
            "| {name} | {} | {} | {:.1} | {} | {} | {:.3} | {} |",
            size(p.prefill.bytes),
            p.prefill.rounds,
            seconds(&p.prefill),
            size(d.bytes),
            d.rounds,
            seconds(&d),
            size(p.setup_bytes)
        )
    };
    line(&mut out, "Absolute, all parties together:\n".into());
    line(
        &mut out,
        "| form | prompt: bytes | rounds | message seconds | token: bytes | rounds | message seconds | set-up |".into(),
    );
    line(&mut out, "|---|---|---|---|---|---|---|---|".into());
    line(&mut out, absolute("full", &full));
    let mut relative = String::new();
    let mut frozen = String::new();
    for (layers, paper) in FROZEN {
        let p = of(&Variant { private_layers: Some(*layers), ..Variant::default() });
        let ours = factors(&p);
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
        let p = of(&variant);
        line(&mut out, absolute(&variant.name(), &p));
        let [time, bytes, token_time, token_bytes] = factors(&p);
        let [paper_time, paper_bytes, paper_token] = row.paper;
        line(
            &mut relative,
            format!(
                "| {} | {bytes:.2} | {paper_bytes} | {time:.2} | {paper_time} | {token_bytes:.2} | {token_time:.2} | {paper_token} |",
                variant.name()
            ),
        );
    }
    line(&mut out, "\nFactors over full, as layers are frozen (the paper's table 2, three parties):\n".into());
    line(&mut out, "| private layers | prompt: time | paper | communication | paper | token: time | paper | communication | paper |".into());
    line(&mut out, "|---|---|---|---|---|---|---|---|---|".into());
    out += &frozen;
    line(&mut out, "\nFactors over full, by technique (the paper's figure 4 and table 1):\n".into());
    line(
        &mut out,
        "| form | prompt: communication | paper | time | paper | token: communication | time | paper |".into(),
    );
    line(&mut out, "|---|---|---|---|---|---|---|---|".into());
    out += &relative;
    out
}

#[test]
fn the_table_is_the_one_on_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("marill/README.md");
    let file = std::fs::read_to_string(&path).expect("benchmarks/marill/README.md is there");
    let (before, rest) = file.split_once("<!-- table -->\n").expect("it has the table's begin");
    let (found, after) = rest.split_once("<!-- end of table -->").expect("it has the table's end");
    let expected = table();
    if std::env::var_os("OMBRA_BLESS").is_some() {
        let text = format!("{before}<!-- table -->\n{expected}<!-- end of table -->{after}");
        std::fs::write(&path, text).expect("the file can be written");
    } else {
        assert_eq!(
            found, expected,
            "if the change of cost is meant: OMBRA_BLESS=1 cargo test -p ombra-bench --test marill"
        );
    }
}

/// What the generator writes in a form costs what the same form made of the full model does.
#[test]
fn generated_forms_cost_what_is_predicted() {
    let small = Llama { layers: 4, hidden: 64, heads: 8, kv_heads: 8, ff: 96, vocab: 100, ..three_billion() };
    let folder = Folder::new("forms");
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
