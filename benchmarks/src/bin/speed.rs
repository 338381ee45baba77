//! Time, bytes, rounds and memory of the models that speed is measured on, as a page of tables.
//!
//! ```text
//! speed [--folder DIR] [--runs N] [--only PART_OF_A_NAME] [--spu PYTHON] [-o FILE.md]
//! ```
//! Every model is made, compiled with all weights private, and run between the processes of its setting on this machine,
//! so many times; medians are shown. Predicted and measured bytes and rounds are equal, or the run fails. The programs are
//! those beside this one: build them first, `cargo build --release --workspace`. With `--spu`, the same shapes run under
//! SPU (ABY3, PUMA's forms) by a Python that has the package `spu`, each between two works of Ombra.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use ombra_compiler::inspect::{OpCost, inspect, size};
use ombra_compiler::onnx::Model;
use ombra_compiler::pipeline::{Options, compile};
use ombra_ir::{Diagnostic, Kind, Result};
use ombra_runtime::app::report::{Phase, Report};

/// The settings that are measured.
const SETTINGS: &[&str] = &["3pc", "2pc-dealer"];
/// Tokens that follow a prompt.
const FURTHER: usize = 4;

/// A model and what is done with it.
struct Work {
    name: &'static str,
    /// What `generate-model` is called with, or nothing for the trained model.
    generate: &'static [&'static str],
    /// Layers, where they are not those of the family.
    layers: Option<&'static str>,
    /// Tokens of the prompt.
    prompt: usize,
    /// Token ids that the model knows.
    vocabulary: usize,
    /// The same shape under SPU: options of `peers/spu_shapes.py`.
    peer: &'static [&'static str],
}

const GPT2: &[&str] = &["gpt2"];
const BERT: &[&str] = &["bert"];
const LLAMA: &[&str] =
    &["llama", "--hidden", "1024", "--heads", "16", "--kv-heads", "16", "--ff", "2816", "--vocab", "1000"];

const WORKS: &[Work] = &[
    Work {
        name: "GPT-2 small's shape, prompt of 64",
        generate: GPT2,
        layers: None,
        prompt: 64,
        vocabulary: 50257,
        peer: &["--model", "gpt2", "--layers", "12", "--seq", "64", "--head", "last"],
    },
    Work {
        name: "GPT-2 small's shape, prompt of 128",
        generate: GPT2,
        layers: None,
        prompt: 128,
        vocabulary: 50257,
        peer: &["--model", "gpt2", "--layers", "12", "--seq", "128", "--head", "last"],
    },
    Work {
        name: "BERT-base's shape, 128 tokens",
        generate: BERT,
        layers: None,
        prompt: 128,
        vocabulary: 30522,
        peer: &["--model", "bert", "--layers", "12", "--seq", "128"],
    },
    Work {
        name: "LLaMA, 2 layers 1024 wide",
        generate: LLAMA,
        layers: Some("2"),
        prompt: 64,
        vocabulary: 1000,
        peer: &[],
    },
    Work {
        name: "LLaMA, 3 layers 1024 wide",
        generate: LLAMA,
        layers: Some("3"),
        prompt: 64,
        vocabulary: 1000,
        peer: &["--model", "llama", "--layers", "1", "--seq", "64"],
    },
    Work {
        name: "SmolLM2-135M-Instruct, prompt of 64",
        generate: &[],
        layers: None,
        prompt: 64,
        vocabulary: 49152,
        peer: &[],
    },
];

/// Two works that differ by one layer, and what that layer is called.
const LAYER: (&str, &str, &str) =
    ("LLaMA, 3 layers 1024 wide", "LLaMA, 2 layers 1024 wide", "LLaMA, a layer 1024 wide");

/// What the command line asks for.
struct Request {
    folder: PathBuf,
    runs: usize,
    only: String,
    spu: Option<String>,
    output: Option<PathBuf>,
}

/// Medians of the runs of one work in one setting.
#[derive(Clone)]
struct Measured {
    work: &'static str,
    setting: &'static str,
    phase: String,
    seconds: f64,
    online: u64,
    dealt: u64,
    rounds: u64,
    memory: String,
}

fn main() -> ExitCode {
    match request().and_then(|request| run(&request)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.kind == Kind::Input { 2 } else { 1 })
        }
    }
}

/// Reads the command line.
fn request() -> Result<Request> {
    let mut request = Request { folder: "out/speed".into(), runs: 5, only: String::new(), spu: None, output: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = arguments.next().ok_or_else(|| usage(format!("{option} has no value")))?;
        match option.as_str() {
            "--folder" => request.folder = value.into(),
            "--runs" => {
                let runs = value.parse().ok().filter(|&n: &usize| n > 0);
                request.runs = runs.ok_or_else(|| usage(format!("--runs {value} is no number of runs")))?;
            }
            "--only" => request.only = value,
            "--spu" => request.spu = Some(value),
            "-o" => request.output = Some(value.into()),
            _ => return Err(usage(format!("there is no option {option}"))),
        }
    }
    if WORKS.iter().all(|work| !work.name.contains(&request.only)) {
        return Err(usage(format!("no work has '{}' in its name", request.only)));
    }
    Ok(request)
}

/// The error of a wrong command line.
fn usage(what: String) -> Diagnostic {
    Diagnostic::input("E0901", what)
        .note("speed [--folder DIR] [--runs N] [--only PART_OF_A_NAME] [--spu PYTHON] [-o FILE.md]")
}

/// Runs all works and writes the page.
fn run(request: &Request) -> Result<()> {
    fs::create_dir_all(&request.folder).map_err(|e| unwritable(&request.folder, &e))?;
    let (mut rows, mut peers) = (Vec::new(), String::new());
    for work in WORKS.iter().filter(|work| work.name.contains(&request.only)) {
        let model = made(work, &request.folder)?;
        let mut plans = Vec::new();
        for &setting in SETTINGS {
            let plan = request.folder.join(format!("{setting}-{}", stem(work)));
            eprintln!("{}: {setting}, compiled", work.name);
            let mut compile = tool("ombra")?;
            compile.arg("compile").arg(&model).args(["--setting", setting, "-o"]).arg(&plan);
            if work.generate == BERT {
                compile.args(["--reveal", "logits"]);
            }
            quiet(compile)?;
            plans.push((setting, plan));
        }
        // Runs of the settings take turns, so that what else the machine does meets both alike.
        let mut reports: Vec<Vec<Report>> = vec![Vec::new(); plans.len()];
        for turn in 0..request.runs {
            for ((setting, plan), reports) in plans.iter().zip(&mut reports) {
                eprintln!("{}: {setting}, run {} of {}", work.name, turn + 1, request.runs);
                reports.push(session(work, plan)?);
            }
            if let (Some(python), 0, [_, ..]) = (&request.spu, turn, work.peer) {
                eprintln!("{}: SPU", work.name);
                peers += &peer(python, work)?;
            }
        }
        for ((setting, _), reports) in plans.iter().zip(&reports) {
            rows.extend(medians(work.name, setting, reports));
        }
    }
    let page = page(request, &rows, &peers)?;
    match &request.output {
        Some(file) => fs::write(file, page).map_err(|e| unwritable(file, &e)),
        None => {
            print!("{page}");
            Ok(())
        }
    }
}

/// The name of a work's model among files.
fn stem(work: &Work) -> String {
    let name = if work.generate.is_empty() { "trained" } else { work.generate[0] };
    format!("{name}-{}", work.layers.unwrap_or_default())
}

/// The model file of a work, written if it is not there.
fn made(work: &Work, folder: &Path) -> Result<PathBuf> {
    let at = folder.join(stem(work));
    let (file, mut command) = if work.generate.is_empty() {
        let mut command = tool("fetch-model")?;
        command.arg("-o").arg(&at);
        (at.join("model.onnx"), command)
    } else {
        let mut command = tool("generate-model")?;
        let file = at.with_extension("onnx");
        command.args(work.generate).args(work.layers.iter().flat_map(|layers| ["--layers", layers]));
        command.arg("-o").arg(&file);
        (file, command)
    };
    if !file.exists() {
        eprintln!("{}: model written", work.name);
        command.stdout(Stdio::null());
        quiet(command)?;
    }
    Ok(file)
}

/// A program that was built beside this one.
fn tool(name: &str) -> Result<Command> {
    let here = std::env::current_exe().map_err(|e| Diagnostic::internal("E0908", e.to_string()))?;
    let path = here.with_file_name(name);
    if !path.exists() {
        return Err(Diagnostic::input("E0908", format!("'{}' is not built", path.display()))
            .note("cargo build --release --workspace"));
    }
    Ok(Command::new(path))
}

/// Runs a program to its end.
fn quiet(mut command: Command) -> Result<()> {
    let output = command.output().map_err(|e| Diagnostic::internal("E0908", e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Diagnostic::internal("E0908", format!("{command:?} failed")).note(said))
}

/// One session between the processes of a setting: its report, whose measured costs are the predicted ones.
fn session(work: &Work, plan: &Path) -> Result<Report> {
    let path = plan.join("speed.json");
    let mut command = tool("ombra-run")?;
    command.arg("local").arg(plan).arg("--report").arg(&path);
    let ids: Vec<i64> = (0..work.prompt).map(|i| (i * 7919 % work.vocabulary) as i64).collect();
    if work.generate == BERT {
        let ones = vec![1; work.prompt];
        for (name, values) in
            [("input_ids", &ids), ("attention_mask", &ones), ("token_type_ids", &vec![0; work.prompt])]
        {
            let file = plan.join(format!("{name}.npy"));
            fs::write(&file, npy(values)).map_err(|e| unwritable(&file, &e))?;
            command.arg("--input").arg(format!("{name}={}", file.display()));
        }
        let file = plan.join("outputs");
        command.arg("--output-dir").arg(file);
    } else {
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        command.args(["--tokens", &ids.join(","), "-n", &(FURTHER + 1).to_string()]);
    }
    quiet(command)?;
    let unreadable = |what: String| Diagnostic::internal("E0908", format!("{} cannot be read: {what}", path.display()));
    let text = fs::read_to_string(&path).map_err(|e| unreadable(e.to_string()))?;
    let report: Report = serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?;
    report.check_costs()?;
    Ok(report)
}

/// A row of 64-bit integers as a NumPy file, version 1.0.
fn npy(values: &[i64]) -> Vec<u8> {
    let mut header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': (1, {}), }}", values.len());
    // The header's whole length is a multiple of 64, magic, version and length included, and ends in a new line.
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let length = (header.len() as u16).to_le_bytes();
    let data = values.iter().flat_map(|v| v.to_le_bytes());
    b"\x93NUMPY\x01\x00".iter().copied().chain(length).chain(header.into_bytes()).chain(data).collect()
}

/// Medians of every kind of phase.
fn medians(work: &'static str, setting: &'static str, reports: &[Report]) -> Vec<Measured> {
    let mut rows = Vec::new();
    for kind in ["setup", "prefill", "decode", "infer"] {
        let mut phases: Vec<&Phase> = reports.iter().flat_map(|r| &r.phases).filter(|p| p.name == kind).collect();
        phases.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let Some(median) = phases.get(phases.len() / 2) else { continue };
        // Bytes of a token grow with the cache: those of the first one are shown.
        let first = reports.iter().flat_map(|r| &r.phases).find(|p| p.name == kind).unwrap_or(median);
        let parties = reports.iter().flat_map(|r| r.peak_rss_bytes.keys());
        let mut parties: Vec<&String> = parties.collect();
        parties.sort();
        parties.dedup();
        let memory = parties.iter().map(|&party| {
            let most = reports.iter().filter_map(|r| r.peak_rss_bytes.get(party)).max().copied().unwrap_or(0);
            format!("{party} {}", size(most))
        });
        rows.push(Measured {
            work,
            setting,
            phase: kind.to_owned(),
            seconds: median.seconds,
            online: first.bytes.values().map(|pair| pair.measured).sum(),
            dealt: first.offline_bytes.values().map(|pair| pair.measured).sum(),
            rounds: first.rounds.measured,
            memory: memory.collect::<Vec<_>>().join(", "),
        });
    }
    rows
}

/// What SPU says of the same shape.
fn peer(python: &str, work: &Work) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/spu_shapes.py");
    let output = Command::new(python).arg(script).args(work.peer).output();
    let output = output.map_err(|e| Diagnostic::input("E0908", format!("{python} cannot be run: {e}")))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().find(|line| line.starts_with('|')) {
        Some(row) if output.status.success() => Ok(format!("| {} {row}\n", work.name)),
        _ => Err(Diagnostic::input("E0908", "SPU did not run".to_owned())
            .note(String::from_utf8_lossy(&output.stderr).into_owned())
            .note("pip install spu==0.9.5, with CPython 3.11")),
    }
}

/// Bytes of scores and softmax in one layer of a LLaMA of 7 billion parameters at 2048 tokens, by the cost formulas.
fn wide_layer(folder: &Path, setting: &str) -> Result<u64> {
    let scores = |layers: &str| -> Result<u64> {
        let file = folder.join(format!("wide-{layers}.onnx"));
        let mut command = tool("generate-model")?;
        command.args(["llama", "--layers", layers, "--hidden", "4096", "--heads", "32", "--kv-heads", "32", "--ff"]);
        command.args(["11008", "--vocab", "32000", "--no-weights", "-o"]).arg(&file);
        quiet(command)?;
        let model = Model::read_for_costs(&file)?;
        let options = Options { setting: setting.parse()?, assume: true, ..Options::default() };
        let plan = compile(&model, None, &options).map_err(|mut e| e.remove(0))?.plan;
        let sizes = [("batch", 1), ("seq", 2048), ("past", 0)].map(|(name, n)| (name.to_owned(), n));
        let report = inspect(&plan, &sizes.into())?;
        // What has an element for every score that the causal mask keeps, and what else the softmax does.
        let kept = 32 * 2048 * 2048 / 2;
        let of_scores = |op: &&OpCost| op.kind() == "softmax" || op.dims.iter().product::<usize>() >= kept;
        Ok(report.ops.iter().filter(of_scores).map(|op| op.bytes + op.offline_bytes).sum())
    };
    Ok(scores("3")? - scores("2")?)
}

/// The page.
fn page(request: &Request, rows: &[Measured], peers: &str) -> Result<String> {
    let mut page = String::from("# Speed of whole models\n\n");
    let machine = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = machine.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let _ =
        writeln!(page, "{cores} cores of {model}; load {load} at the end; processes on loopback; all weights private.");
    let _ = writeln!(page, "Medians of {} runs; bytes and rounds are predicted and measured alike.\n", request.runs);
    page += "| model | setting | phase | seconds | bytes | of them dealt | rounds | largest resident memory |\n";
    page += "|---|---|---|---|---|---|---|---|\n";
    for row in rows {
        page += &line(row);
    }
    for setting in SETTINGS {
        let of = |work: &str| rows.iter().find(|r| r.work == work && r.setting == *setting && r.phase == "prefill");
        if let (Some(more), Some(less)) = (of(LAYER.0), of(LAYER.1)) {
            page += &line(&Measured {
                work: LAYER.2,
                seconds: more.seconds - less.seconds,
                online: more.online - less.online,
                dealt: more.dealt - less.dealt,
                rounds: more.rounds - less.rounds,
                memory: String::new(),
                ..more.clone()
            });
        }
    }
    if request.only.is_empty() {
        page += "\nScores and softmax of a layer of LLaMA-7B's width at 2048 tokens, by the cost formulas:";
        for setting in SETTINGS {
            let _ = write!(page, " `{setting}` {};", size(wide_layer(&request.folder, setting)?));
        }
        page = page.trim_end_matches(';').to_owned() + ".\n";
    }
    if !peers.is_empty() {
        page += "\nSPU, ABY3, PUMA's forms, one thread a party:\n\n";
        page += "| shape | seconds | bytes | largest error |\n|---|---|---|---|\n";
        page += peers;
    }
    Ok(page)
}

/// One row of the table.
fn line(row: &Measured) -> String {
    format!(
        "| {} | `{}` | {} | {:.2} | {} | {} | {} | {} |\n",
        row.work,
        row.setting,
        row.phase,
        row.seconds,
        size(row.online + row.dealt),
        size(row.dealt),
        row.rounds,
        row.memory
    )
}

/// The error of a file that cannot be written.
fn unwritable(path: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::input("E0115", format!("'{}' cannot be written: {error}", path.display()))
}
