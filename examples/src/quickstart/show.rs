//! Compile, predict, run, compare: for three variants of one small trained model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ombra_compiler::graph::Owner;
use ombra_compiler::inspect::{self, By};
use ombra_compiler::onnx::Model;
use ombra_compiler::output;
use ombra_compiler::pipeline::{Compiled, Options, compile};
use ombra_compiler::secrecy::labels;
use ombra_ir::Diagnostic;
use ombra_ir::draw::Choosing;
use ombra_ir::folder;
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::access::{Access, Peers};
use ombra_runtime::app::command::{ClientRun, Given, run_client};
use ombra_runtime::app::isolation::Program;
use ombra_runtime::app::report::Report;
use ombra_runtime::app::text::Text;
use ombra_runtime::backend::products::Choice;

use super::table::{Column, table};
use super::{plaintext, root, say, write};

/// The prompt where the user gives none.
pub const PROMPT: &str = "This License";
/// Tokens to generate.
const COUNT: u64 = 16;

/// One way to protect a model.
struct Variant {
    name: &'static str,
    what: &'static str,
    model: &'static str,
    public_base: bool,
}

const VARIANTS: [Variant; 3] = [
    Variant {
        name: "frozen",
        what: "the last two of four layers were fine-tuned; the rest is that of the public base model",
        model: "frozen",
        public_base: true,
    },
    Variant {
        name: "lora",
        what: "low-rank adapters in every layer; all other weights are those of the public base model",
        model: "lora",
        public_base: true,
    },
    Variant {
        name: "nothing public",
        what: "the model of `frozen` compiled without a base: every weight is private",
        model: "frozen",
        public_base: false,
    },
];

/// What kept a model from being shown.
pub(super) type Errors = Vec<Diagnostic>;

pub(super) fn one(error: Diagnostic) -> Errors {
    vec![error]
}

/// Shows every variant, then the table. Only the client learns `prompt`.
///
/// # Errors
/// The first failure, or a token or a cost that is not the expected one.
pub fn show(prompt: &str) -> Result<(), Errors> {
    let root = root();
    let models = root.join("tests/data/models/llama-trained");
    say("A LLaMA of 0.5 million parameters answers a prompt that only the client knows,");
    say("with weights that only the server knows. A helper holds shares of both and learns neither.");
    let columns: Vec<Column> =
        VARIANTS.iter().map(|v| variant(v, prompt, &models, &root.join("out/quickstart"))).collect::<Result<_, _>>()?;
    say(format_args!("\n{}", table(&columns)));
    say("Bytes are those of all parties; rounds are the longest chain of messages that wait for one another.");
    say("The plans are in out/quickstart: `ombra inspect out/quickstart/frozen` shows where the costs are.");
    check(&columns)
}

/// Checks that every token is that of the model in the clear.
pub(super) fn check(columns: &[Column]) -> Result<(), Errors> {
    match columns.iter().find(|c| c.agreeing() < c.expected.len()) {
        None => Ok(()),
        Some(c) => {
            Err(one(Diagnostic::internal("E0913", format!("{}: tokens differ from those in the clear", c.name))
                .note(format!("expected  {:?}", c.expected))
                .note(format!("found     {:?}", c.report.tokens.as_deref().unwrap_or_default()))))
        }
    }
}

fn variant(variant: &Variant, text: &str, models: &Path, out: &Path) -> Result<Column, Errors> {
    say(format_args!("\n== {}: {}", variant.name, variant.what));
    let path = models.join(variant.model).join("model.onnx");
    let model = Model::read(&path).map_err(one)?;
    let base = variant.public_base.then(|| Model::read(&models.join("base/model.onnx"))).transpose().map_err(one)?;
    let mut compiled = compile(&model, base.as_ref(), &Options::default())?;
    let folder = out.join(variant.name.replace(' ', "-"));
    output::write(&mut compiled, &model, &[(folder::TOKENIZER, models.join("tokenizer.json"))], &folder)
        .map_err(one)?;
    say(where_it_runs(&compiled));

    let opened = PlanFolder::open(&folder).map_err(one)?;
    let prompt = Text::open(&opened, None).and_then(|tokenizer| tokenizer.tokens(text)).map_err(one)?;
    say(prediction(&compiled, prompt.len() as u64).map_err(one)?);
    let expected = plaintext::generate(&path, &opened.plan, &prompt, COUNT as usize).map_err(one)?;

    write(format_args!("client, server and helper over TLS: {text}"));
    let report = run(&Run { folder: &folder, prompt: text, count: COUNT, stop: &[] }).map_err(one)?;
    Ok(Column { name: variant.name, expected, report })
}

/// Which weights and layers need no secure computation.
pub(super) fn where_it_runs(compiled: &Compiled) -> String {
    let numbers = |owner: labels::Owner| {
        let own = compiled.labels.tensors.iter().filter(|label| label.owner == owner);
        let (mut tensors, mut parameters) = (0, 0usize);
        for label in own {
            tensors += 1;
            parameters += label.shape.iter().product::<usize>();
        }
        format!("{parameters} parameters in {tensors} tensors")
    };
    let (mut all, mut secret) = (BTreeSet::new(), BTreeSet::new());
    for (_, node) in compiled.graph.iter() {
        let Some(layer) = node.origin.layer else { continue };
        all.insert(layer);
        if node.owner == Owner::Secret {
            secret.insert(layer);
        }
    }
    let list = |layers: &mut dyn Iterator<Item = &u32>| {
        let names: Vec<String> = layers.map(u32::to_string).collect();
        if names.is_empty() { "none".to_string() } else { names.join(", ") }
    };
    format!(
        "public weights   {}\nprivate weights  {}\nlayers           {} at the client in the clear; {} under MPC",
        numbers(labels::Owner::Public),
        numbers(labels::Owner::Private),
        list(&mut all.difference(&secret)),
        list(&mut secret.iter()),
    )
}

/// What the plan says the prompt will cost.
pub(super) fn prediction(compiled: &Compiled, prompt: u64) -> ombra_ir::Result<String> {
    let sizes = compiled.plan.seq.iter().map(|name| (name.clone(), prompt)).collect::<BTreeMap<_, _>>();
    let report = inspect::inspect(&compiled.plan, &sizes)?;
    // The first line names the model, the last ones list every kind.
    let text = report.text(By::Kind);
    let lines: Vec<&str> = text.lines().skip(1).take_while(|line| !line.starts_with("client")).collect();
    Ok(format!("predicted for the {prompt} tokens of the prompt:\n  {}", lines.join("\n  ")))
}

/// What is run.
pub(super) struct Run<'a> {
    /// The plan folder.
    pub(super) folder: &'a Path,
    /// The prompt.
    pub(super) prompt: &'a str,
    /// Most tokens to generate.
    pub(super) count: u64,
    /// Tokens that end the text.
    pub(super) stop: &'a [i64],
}

/// Runs a plan between this process and two more, shows the tokens' text as it comes, and gives the report.
pub(super) fn run(what: &Run) -> ombra_ir::Result<Report> {
    let path: PathBuf = what.folder.join("report.json");
    let access = Access {
        folder: what.folder.to_path_buf(),
        peers: Peers::Local,
        allow_public: Vec::new(),
        threads: std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(3)),
        backend: Choice::Cpu,
        network: "none".to_string(),
        program: Program::this()?,
        // The plan was made by this program.
        isolated: false,
        material: None,
    };
    run_client(&ClientRun {
        access,
        given: Given::Prompt(what.prompt.to_string()),
        count: what.count,
        stop_tokens: what.stop.to_vec(),
        stop: Vec::new(),
        choosing: Choosing::default(),
        output_dir: None,
        verify: false,
        tolerance: None,
        report: Some(path.clone()),
    })?;
    let unreadable = |what: String| Diagnostic::internal("E0914", format!("the report cannot be read: {what}"));
    let text = std::fs::read_to_string(&path).map_err(|e| unreadable(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))
}
