//! The runtime's command line, for the program `ombra-run` and for other languages.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ombra_ir::draw::{Choosing, Penalties, Sampling};
use ombra_ir::{Diagnostic, Kind, Result};

use crate::app::access::{Access, MaterialPaths, Peers};
use crate::app::chat::{self, Chat};
use crate::app::command::{
    self, ClientRun, Deal, Given, make_keys, measure_machine, print_renewed, print_written, run_client,
};
use crate::app::gateway::{self, Gateway};
use crate::app::isolation::{self, Program};
use crate::app::material::SPENT_FILE;
use crate::app::service::log::Format;
use crate::app::service::{self, serve_party};
use crate::backend::products::Choice;
use crate::transport::{SessionId, parse_session};

/// Runs a plan that `ombra compile` made between client, server and the third party of its setting, where that has one.
#[derive(Parser)]
#[command(name = "ombra-run", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all parties as processes on this machine, over TCP and TLS.
    Local {
        /// The folder that the compiler wrote.
        dir: PathBuf,
        #[command(flatten)]
        prompt: Prompt,
        #[command(flatten)]
        tensors: Tensors,
        #[command(flatten)]
        comparing: Comparing,
        /// What a dealer made ahead of time, as `deal` wrote it. Lists of what was used are beside it.
        #[arg(long, value_name = "FOLDER")]
        material: Option<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    /// Make a key and a certificate, and print its fingerprint.
    Keygen {
        /// client, server, helper or dealer.
        #[arg(long, value_name = "NAME")]
        party: String,
        /// Where key.pem and cert.pem are written.
        #[arg(short, value_name = "DIR")]
        output: PathBuf,
    },
    /// Serve sessions, side by side.
    Serve {
        /// The folder that the compiler wrote; all but the server need its public part only.
        dir: PathBuf,
        /// server, or the third party of the plan's setting: helper or dealer.
        #[arg(long, value_name = "NAME")]
        party: String,
        /// This party's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How the log is written to standard error.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        log: Format,
        /// End when standard input does, and log errors alone.
        #[arg(long, hide = true)]
        end_with_input: bool,
        #[command(flatten)]
        material: Material,
        #[command(flatten)]
        common: ServeCommon,
    },
    /// Make a session's messages of the dealer ahead of time, in the setting 2pc-dealer: it need not run then.
    Deal {
        /// The folder that the compiler wrote; its public part suffices with --weights.
        #[arg(required_unless_present = "plan")]
        dir: Option<PathBuf>,
        /// The same.
        #[arg(long, value_name = "DIR", conflicts_with = "dir")]
        plan: Option<PathBuf>,
        /// A size: of the prompt, of texts side by side, or of one step on given inputs, repeatable.
        #[arg(long, value_name = "NAME=N", value_parser = named_size)]
        dim: Vec<(String, u64)>,
        /// Steps of the session: the prompt, then one for every further token.
        #[arg(long, value_name = "N", default_value_t = 1)]
        steps: u64,
        /// The id of the session, 32 hexadecimal digits; a fresh one by default.
        #[arg(long, value_name = "ID", value_parser = session_id)]
        session: Option<SessionId>,
        /// The dealer's file that `share-weights` wrote, of its term of the weights or of its key; by default it is made from the folder's own.
        #[arg(long, value_name = "FILE")]
        weights: Option<PathBuf>,
        /// Where the parts of client and server are written.
        #[arg(short, value_name = "FOLDER")]
        output: PathBuf,
        #[command(flatten)]
        common: ServeCommon,
    },
    /// Share the server's weights with a dealer through files.
    ShareWeights {
        /// The folder that the compiler wrote, with the server's part.
        dir: PathBuf,
        /// Where the dealer's file and the server's key are written.
        #[arg(short, value_name = "FOLDER")]
        output: PathBuf,
    },
    /// Write systemd units and Kubernetes manifests for the server and, where there is one, helper or dealer.
    ServiceFiles {
        /// The setting whose parties are to run: 3pc, 2pc-dealer or 2pc.
        #[arg(long, default_value = "3pc", value_name = "NAME")]
        setting: String,
        /// Where they are written.
        #[arg(short, value_name = "FOLDER")]
        output: PathBuf,
    },
    /// Have a running server share its weights anew, under a new key.
    Renew {
        /// The server's configuration, which names its socket for commands.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Generate text as the client.
    Generate {
        /// The folder that the compiler wrote; its public part suffices.
        dir: PathBuf,
        /// The client's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        prompt: Prompt,
        #[command(flatten)]
        material: Material,
        #[command(flatten)]
        common: Common,
    },
    /// Chat with the model, a turn a line of standard input; /new begins another chat.
    Chat {
        /// The folder that the compiler wrote; its public part suffices where the other parties are elsewhere.
        dir: PathBuf,
        /// The client's configuration; without one, all parties run on this machine.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// What the model is told before the first turn.
        #[arg(long, value_name = "TEXT")]
        system: Option<String>,
        /// Most tokens of an answer.
        #[arg(short = 'n', value_name = "N", default_value_t = 512)]
        count: u64,
        #[command(flatten)]
        ends: Ends,
        #[command(flatten)]
        drawing: Drawing,
        /// An input that the plan may show to every party though it is no mask or position, repeatable.
        #[arg(long, value_name = "NAME")]
        allow_public: Vec<String>,
        #[command(flatten)]
        common: ServeCommon,
    },
    /// Answer HTTP requests in the forms of OpenAI's API as the client, with a page to chat.
    Gateway {
        /// The folder that the compiler wrote; its public part suffices where the other parties are elsewhere.
        dir: PathBuf,
        /// The client's configuration; without one, all parties run on this machine.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Where requests are answered.
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Listen at an address that other machines reach. Nothing is encrypted: put a server with TLS before it.
        #[arg(long)]
        allow_remote: bool,
        /// Ask no key of callers from there: whoever reaches the address can use this client.
        #[arg(long)]
        allow_anyone: bool,
        /// A name, without a port, by which the gateway may be called, beside those of this machine, repeatable.
        #[arg(long, value_name = "NAME")]
        allow_host: Vec<String>,
        /// A file with the key that callers must have.
        #[arg(long, value_name = "FILE")]
        api_key_file: Option<PathBuf>,
        /// What the model is called.
        #[arg(long, value_name = "NAME", default_value = "ombra")]
        model_name: String,
        /// Most sessions side by side, each with a text of its own in its cache.
        #[arg(long, value_name = "N", default_value_t = 1)]
        sessions: usize,
        /// Most requests that wait for a session.
        #[arg(long, value_name = "N", default_value_t = 16)]
        queue: usize,
        /// Seconds after which a session without work is closed.
        #[arg(long, value_name = "S", default_value_t = 120)]
        idle: u64,
        /// Choose the most probable token, whatever requests say of temperature, top_p and top_k.
        #[arg(long)]
        ignore_temperature: bool,
        /// A token id that ends an answer, beside those that the model names, repeatable.
        #[arg(long, value_name = "ID")]
        stop_token: Vec<i64>,
        /// An input that the plan may show to every party though it is no mask or position, repeatable.
        #[arg(long, value_name = "NAME")]
        allow_public: Vec<String>,
        #[command(flatten)]
        common: ServeCommon,
    },
    /// Run one step on given inputs as the client.
    Infer {
        /// The folder that the compiler wrote; its public part suffices.
        dir: PathBuf,
        /// The client's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        tensors: Tensors,
        #[command(flatten)]
        material: Material,
        #[command(flatten)]
        common: Common,
    },
    /// Answer what the client asks of libraries; it starts this itself.
    #[command(hide = true)]
    Work {
        /// Memory that they may take, in bytes.
        memory: u64,
    },
    /// Measure this machine with three parties at work, and write what it does in a second as JSON.
    Measure {
        /// The setting whose parties are measured: 3pc or 2pc-dealer.
        #[arg(long, default_value = "3pc", value_name = "NAME")]
        setting: String,
        /// The client's configuration: its links to the serving peers are measured too.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        common: ServeCommon,
    },
}

#[derive(Args, Default)]
struct Prompt {
    /// The prompt as text.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A file with the prompt as text, - for standard input: no other user of this machine sees it among the arguments. One
    /// end of line at its end does not count.
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A file with prompts as text, one a line, - for standard input: they run side by side.
    #[arg(long, value_name = "FILE")]
    prompts_file: Option<PathBuf>,
    /// The prompt as token ids, such as 1,2,3.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    tokens: Vec<i64>,
    /// Most tokens to generate.
    #[arg(short = 'n', value_name = "N", default_value_t = 16)]
    count: u64,
    #[command(flatten)]
    ends: Ends,
    #[command(flatten)]
    drawing: Drawing,
}

#[derive(Args, Default)]
struct Drawing {
    /// Draw next tokens from the softmax of the logits over this; 0 chooses the most probable one, as without it.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K most probable tokens.
    #[arg(long, value_name = "K")]
    top_k: Option<u64>,
    /// Draw from the fewest of the most probable tokens that hold this share of their mass; of 128 without --top-k.
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Take this off the logit of every token that the answer has already, -2 to 2; the plan needs --penalties.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Take this off the logit of a token for every time that the answer has it, -2 to 2; the plan needs --penalties.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Not supported: a factor for logits, by their sign, would be a comparison and a product for every token.
    #[arg(long, value_name = "P")]
    repetition_penalty: Option<f32>,
    /// Not supported: no party alone may choose what is drawn.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

#[derive(Args, Default)]
struct Ends {
    /// A token id that ends the text, beside those that the model names, repeatable.
    #[arg(long, value_name = "ID")]
    stop_token: Vec<i64>,
    /// A string that ends the text, repeatable.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

#[derive(Args)]
struct Tensors {
    /// An input tensor from an .npy or .pb file, repeatable.
    #[arg(long, value_name = "NAME=FILE", value_parser = named_file)]
    input: Vec<(String, PathBuf)>,
    /// Where outputs are written, each as NAME.npy.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

#[derive(Args, Default)]
struct Material {
    /// This party's part of what a dealer made ahead of time, as `deal` wrote it: the dealer need not run then.
    #[arg(long, value_name = "FOLDER")]
    material: Option<PathBuf>,
    /// The list of sessions whose material was used; by default spent-sessions beside the configuration.
    #[arg(long, value_name = "FILE", requires = "material")]
    spent: Option<PathBuf>,
}

impl Material {
    /// The client's paths, whose configuration is `config`.
    fn of_client(self, config: &Path) -> Option<MaterialPaths> {
        let spent = self.spent.unwrap_or_else(|| config.with_file_name(SPENT_FILE));
        self.material.map(|folder| MaterialPaths { folder, spent: spent.clone(), spent_of_server: spent })
    }
}

#[derive(Args, Default)]
struct Comparing {
    /// Inputs and expected outputs as input_K.pb and output_K.pb: run and compare.
    #[arg(long, value_name = "FOLDER")]
    test_data: Option<PathBuf>,
    /// Also run in the clear and compare.
    #[arg(long)]
    verify: bool,
    /// Maximum difference that --verify and --test-data accept; by default 0.02, or a thousandth of the maximum element.
    #[arg(long, value_name = "T", value_parser = tolerance)]
    tolerance: Option<f64>,
}

#[derive(Args)]
struct ServeCommon {
    /// Emulated links: none, lan, wan or BANDWIDTH,RTT.
    #[arg(long, default_value = "none")]
    network: String,
    /// Threads for matrix products; one for each core by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Where products with large weights run.
    #[arg(long, value_enum, default_value_t = Backend::Cpu)]
    backend: Backend,
}

#[derive(Args)]
struct Common {
    #[command(flatten)]
    serve: ServeCommon,
    /// Where the report is written as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// An input that the plan may show to every party though it is no mask or position, repeatable.
    #[arg(long, value_name = "NAME")]
    allow_public: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// On a graphics processor where one is faster and right, else on the processor.
    Auto,
    /// On this machine's processor.
    Cpu,
    /// On a graphics processor, or not at all.
    Gpu,
}

impl From<Backend> for Choice {
    fn from(backend: Backend) -> Choice {
        match backend {
            Backend::Auto => Choice::Auto,
            Backend::Cpu => Choice::Cpu,
            Backend::Gpu => Choice::Gpu,
        }
    }
}

fn named_file(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), PathBuf::from(file))),
        _ => Err("expected NAME=FILE".to_owned()),
    }
}

fn named_size(text: &str) -> std::result::Result<(String, u64), String> {
    let pair = text.split_once('=').and_then(|(name, size)| Some((name.to_owned(), size.parse().ok()?)));
    pair.filter(|(name, _)| !name.is_empty()).ok_or_else(|| "expected NAME=N".to_owned())
}

fn session_id(text: &str) -> std::result::Result<SessionId, String> {
    parse_session(text).ok_or_else(|| "expected 32 hexadecimal digits".to_owned())
}

fn tolerance(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(number) if number >= 0.0 => Ok(number),
        _ => Err("expected a number that is not negative".to_owned()),
    }
}

/// Does what the command line `arguments` says, the name of the program first; the exit status.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    crate::memory::keep_freed_blocks();
    match command(Cli::parse_from(arguments).command) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            match error.kind {
                Kind::Input | Kind::Unsupported => 2,
                Kind::Peer | Kind::Internal => 1,
            }
        }
    }
}

fn command(command: Command) -> Result<()> {
    match command {
        Command::Keygen { party, output } => make_keys(party.parse()?, &output),
        Command::Serve { dir, party, config, log, end_with_input, material, common } => {
            let threads = threads(&common)?;
            serve_party(&service::Options {
                folder: dir,
                party: party.parse()?,
                config,
                network: common.network,
                threads,
                backend: common.backend.into(),
                with_input: end_with_input,
                log,
                material: material.material,
                spent: material.spent,
            })
        }
        Command::Deal { dir, plan, dim: sizes, steps, session, weights, output, common } => {
            let threads = threads_alone(&common)?;
            let folder = dir.or(plan).unwrap_or_default();
            command::deal(&Deal { folder, sizes, steps, session, weights, output, threads })
        }
        Command::ShareWeights { dir, output } => command::share_weights(&dir, &output),
        Command::ServiceFiles { setting, output } => print_written(&service::files::write(&output, setting.parse()?)?),
        Command::Renew { config } => print_renewed(service::renew(&config)?),
        Command::Local { dir, mut prompt, tensors, mut comparing, material, common } => {
            let test_data = comparing.test_data.take();
            let given = given(&mut prompt, tensors.input, test_data)?;
            let material = material.as_deref().map(MaterialPaths::local);
            client(dir, (Peers::Local, material), given, prompt, tensors.output_dir, comparing, common)
        }
        Command::Generate { dir, config, mut prompt, material, common } => {
            let given = given(&mut prompt, Vec::new(), None)?;
            let material = material.of_client(&config);
            client(dir, (Peers::Configured(config), material), given, prompt, None, Comparing::default(), common)
        }
        Command::Chat { dir, config, system, count, ends, drawing, allow_public, common } => {
            let peers = config.map_or(Peers::Local, Peers::Configured);
            let access = access(dir, peers, allow_public, common)?;
            let choosing = choosing(&drawing)?;
            chat::run(&Chat { access, system, count, stop_tokens: ends.stop_token, stop: ends.stop, choosing })
        }
        Command::Gateway {
            dir,
            config,
            listen,
            allow_remote,
            allow_anyone,
            allow_host,
            api_key_file,
            model_name,
            sessions,
            queue,
            idle,
            ignore_temperature,
            stop_token,
            allow_public,
            common,
        } => {
            let peers = config.map_or(Peers::Local, Peers::Configured);
            let access = access(dir, peers, allow_public, common)?;
            gateway::run(&Gateway {
                access,
                listen,
                allow_remote,
                allow_anyone,
                hosts: allow_host,
                api_key_file,
                model_name,
                sessions,
                queue,
                idle: Duration::from_secs(idle),
                ignore_temperature,
                stop_tokens: stop_token,
            })
        }
        Command::Infer { dir, config, tensors, material, common } => {
            let mut none = Prompt { count: 1, ..Prompt::default() };
            let given = given(&mut none, tensors.input, None)?;
            let (material, outputs) = (material.of_client(&config), tensors.output_dir);
            client(dir, (Peers::Configured(config), material), given, none, outputs, Comparing::default(), common)
        }
        Command::Work { memory } => isolation::work(memory),
        Command::Measure { setting, config, common } => {
            let threads = threads_alone(&common)?;
            measure_machine(setting.parse()?, config.as_deref(), &common.network, threads)
        }
    }
}

/// How next tokens are chosen.
fn choosing(drawing: &Drawing) -> Result<Choosing> {
    let Drawing { temperature, top_k, top_p, presence_penalty, frequency_penalty, repetition_penalty, seed } = *drawing;
    if repetition_penalty.is_some_and(|penalty| penalty != 1.0) {
        return Err(Diagnostic::unsupported("E1012", "the repetition penalty is not supported")
            .note("it multiplies or divides by the sign of a logit: a comparison and a product under MPC for every token")
            .note("help      --presence-penalty and --frequency-penalty are additions, which need no message but their own"));
    }
    if seed.is_some() {
        return Err(Diagnostic::unsupported("E1012", "no seed can be given for what is drawn")
            .note("its bits come from keys of all parties, so that none of them chooses the tokens")
            .note("help      leave out --seed; --temperature 0 always gives the same text"));
    }
    let penalties =
        Penalties { presence: presence_penalty.unwrap_or(0.0), frequency: frequency_penalty.unwrap_or(0.0) };
    let check = |sampling| {
        let choosing = Choosing { sampling, penalties };
        choosing.check().map(|()| choosing)
    };
    let given = temperature.is_some() || top_k.is_some() || top_p.is_some();
    if temperature == Some(0.0) && (top_k.is_some() || top_p.is_some()) {
        return Err(Diagnostic::input("E0415", "a temperature of 0 chooses the most probable token, and draws none")
            .note("help      leave out --top-k and --top-p, or give another temperature"));
    }
    if !given || temperature == Some(0.0) {
        return check(None);
    }
    let sampling = Sampling { temperature: temperature.unwrap_or(1.0), top_k, top_p };
    check(Some(sampling))
}

/// The one thing that is given to run on.
fn given(prompt: &mut Prompt, inputs: Vec<(String, PathBuf)>, test_data: Option<PathBuf>) -> Result<Given> {
    let tokens = Some(std::mem::take(&mut prompt.tokens)).filter(|tokens| !tokens.is_empty()).map(Given::Tokens);
    let inputs = Some(inputs).filter(|inputs| !inputs.is_empty()).map(Given::Inputs);
    let (text, file, lines) = (prompt.prompt.take(), prompt.prompt_file.take(), prompt.prompts_file.take());
    let texts = [text.map(Given::Prompt), file.map(Given::PromptFile), lines.map(Given::PromptsFile)];
    let mut all = texts.into_iter().chain([tokens, inputs, test_data.map(Given::TestData)]).flatten();
    let help = "help      give one of --prompt, --prompt-file, --prompts-file, --tokens, --input and --test-data, where \
                the command has it";
    match (all.next(), all.next()) {
        (Some(given), None) => Ok(given),
        (None, _) => Err(Diagnostic::input("E1006", "nothing to run on is given").note(help)),
        (Some(_), Some(_)) => Err(Diagnostic::input("E1006", "more than one thing to run on is given").note(help)),
    }
}

fn client(
    folder: PathBuf,
    (peers, material): (Peers, Option<MaterialPaths>),
    given: Given,
    prompt: Prompt,
    output_dir: Option<PathBuf>,
    comparing: Comparing,
    common: Common,
) -> Result<()> {
    let Common { serve, report, allow_public } = common;
    let access = Access { material, ..access(folder, peers, allow_public, serve)? };
    let choosing = choosing(&prompt.drawing)?;
    let Prompt { count, ends: Ends { stop_token: stop_tokens, stop }, .. } = prompt;
    run_client(&ClientRun {
        access,
        given,
        count,
        stop_tokens,
        stop,
        choosing,
        output_dir,
        verify: comparing.verify,
        tolerance: comparing.tolerance,
        report,
    })
}

/// How a plan is to be opened.
fn access(folder: PathBuf, peers: Peers, allow_public: Vec<String>, common: ServeCommon) -> Result<Access> {
    let threads = threads(&common)?;
    let program = Program::this()?;
    Ok(Access {
        folder,
        peers,
        allow_public,
        threads,
        backend: common.backend.into(),
        network: common.network,
        program,
        isolated: true,
        material: None,
    })
}

/// Number of threads of a command that runs on the processor alone.
fn threads_alone(common: &ServeCommon) -> Result<usize> {
    if common.backend == Backend::Gpu {
        return Err(Diagnostic::unsupported("E1012", "this command runs on the processor alone")
            .note("expected  --backend cpu or auto"));
    }
    threads(common)
}

/// Number of threads.
fn threads(common: &ServeCommon) -> Result<usize> {
    match common.threads {
        Some(0) => Err(Diagnostic::input("E1012", "no run without threads").note("expected  --threads 1 or more")),
        Some(count) => Ok(count),
        None => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
    }
}
