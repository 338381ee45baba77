//! What this machine does in a second: `ombra-run measure`.
//!
//! Three parties of a setting run small programs in three threads of this process, over TCP and TLS on the loopback interface, as
//! they do in a local run: times hold what encryption, frames and waking cost, and that parties share cores. From the
//! difference of a short and a long program follows the rate of one unit of `ombra_ir::profile`, less what is known of
//! the units before it. Links to the peers of a configuration are measured with those peers.

mod links;
mod probes;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::bind::{Bound, bind};
use ombra_ir::module::{Id, Module, Setting};
use ombra_ir::plain::Tensor;
use ombra_ir::profile::{Profile, Unit, VERSION, Work, work_of};
use ombra_ir::schedule::{Schedule, schedule};
use ombra_ir::{Diagnostic, Result};

pub use links::{BURST_BYTES, answer};
pub use probes::{Probe, Size, probes};

use super::local::make_private;
use crate::backend::products::Products;
use crate::config::PartyConfig;
use crate::exec::{LinkNet, Steps, TensorSource};
use crate::keygen::write_local_set;
use crate::prg::{Key, Label, Prg};
use crate::settings;
use crate::settings::weights::{Weights, agree_weight_key};
use crate::transport::{Acceptor, Endpoint, Network, Party, Purpose, Session, SessionId};

/// How often a program runs; the shortest time counts.
const REPEATS: usize = 4;
/// Words that the generator makes, and how often.
const PRG_WORDS: usize = 1 << 18;
/// Time to connect on the loopback interface.
const CONNECT: Duration = Duration::from_secs(10);
/// A rate that stands for work too quick to be seen.
const FASTEST: f64 = 1e15;

/// The profile of this machine for a setting, with `threads` threads a party, and of the links of `config`, emulated as
/// `network`.
///
/// # Errors
/// Sockets or threads that the system refuses; peers that do not answer.
pub fn measure(
    setting: Setting,
    config: Option<&Path>,
    network: Option<Network>,
    threads: usize,
    size: Size,
) -> Result<Profile> {
    let third = setting.third().map_err(|error| {
        error.note(
            "help      time is predicted for the settings with a third party; of 2pc `inspect` gives bytes and rounds",
        )
    })?;
    let links = match config {
        Some(path) => {
            let endpoint = Endpoint::new(&PartyConfig::read(path)?, "", network)?;
            if endpoint.party() != Party::Client {
                return Err(Diagnostic::input(
                    "E0711",
                    format!("the configuration is that of the {}", endpoint.party()),
                )
                .note("expected  party = \"client\""));
            }
            let session = endpoint.open(Purpose::Measure)?;
            session.wait_for_turn(&mut |_| ())?;
            let links = links::measure(&session)?;
            session.finish();
            links
        }
        None => Vec::new(),
    };
    let per_second = rates(&probes(setting, size)?, third, threads)?;
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let whole = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let setting = setting.name().to_owned();
    Ok(Profile { ombra_profile: VERSION, setting, cores: whole(cores), threads: whole(threads), per_second, links })
}

/// Rates from the times of all probes.
fn rates(probes: &[Probe], third: Party, threads: usize) -> Result<BTreeMap<Unit, f64>> {
    let prepared = probes.iter().flat_map(|p| p.modules.iter().zip(&p.inputs)).map(|(module, inputs)| {
        let bound = bind(module, &[], &[])?;
        let schedule = schedule(module, &bound)?;
        Ok(Program { module: Arc::new(module.clone()), bound, schedule, inputs: inputs.clone() })
    });
    let programs = prepared.collect::<Result<Vec<Program>>>()?;
    let times = run_all(&programs, third, threads)?;
    let mut rates = BTreeMap::from([(Unit::PrgBytes, generator())]);
    for ((probe, pair), times) in probes.iter().zip(programs.chunks_exact(2)).zip(times.chunks_exact(2)) {
        let [short, long] = pair else { continue };
        let (before, after) = (short.work()?, long.work()?);
        let mut seconds = times[1] - times[0];
        for (unit, rate) in &rates {
            let more = |work: &Work| work.get(unit).copied().unwrap_or(0.0);
            seconds -= (more(&after) - more(&before)) / rate;
        }
        let count = |work: &Work| work.get(&probe.unit).copied().unwrap_or(0.0);
        let units = count(&after) - count(&before);
        rates.insert(probe.unit, (units / seconds.max(units / FASTEST)).max(f64::MIN_POSITIVE));
    }
    Ok(rates)
}

/// Bytes of the random streams that one thread makes in a second.
fn generator() -> f64 {
    let prg = Prg::new(&Key::from_bytes([7; 16]));
    let mut words = vec![0u64; PRG_WORDS];
    let mut best = f64::INFINITY;
    for step in 0..8 {
        let start = Instant::now();
        prg.fill_u64(Label { op: 0, step, purpose: 0, part: 0 }, &mut words);
        best = best.min(start.elapsed().as_secs_f64());
    }
    8.0 * PRG_WORDS as f64 / best.max(1e-9)
}

/// A module that is ready to run.
struct Program {
    module: Arc<Module>,
    bound: Bound,
    schedule: Schedule,
    inputs: Vec<Tensor>,
}

impl Program {
    fn work(&self) -> Result<Work> {
        let mut all = Work::from([(Unit::Rounds, f64::from(self.schedule.ticks))]);
        for i in 0..self.module.ops.len() {
            for (unit, count) in work_of(&self.module, &self.bound, Id(i as u32))? {
                *all.entry(unit).or_default() += count;
            }
        }
        Ok(all)
    }
}

/// Weights of zeros.
struct Zeros(BTreeMap<String, Vec<usize>>);

impl Zeros {
    fn of(module: &Module, bound: &Bound) -> Zeros {
        use ombra_ir::op::Op;
        let shape = |i: usize| bound.shapes.get(i).cloned().unwrap_or_default();
        let named = module.ops.iter().enumerate().filter_map(|(i, node)| match &node.op {
            Op::Weight { name } | Op::PublicWeight { name } => Some((name.clone(), shape(i))),
            _ => None,
        });
        Zeros(named.collect())
    }
}

impl TensorSource for Zeros {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let shape = self.shape(name)?;
        let count = shape.iter().product();
        Ok((shape, vec![0.0; count]))
    }

    fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let none = || Diagnostic::internal("E0813", format!("a probe has no weight `{name}`"));
        self.0.get(name).cloned().ok_or_else(none)
    }

    fn elements(&self, _: &str, _: usize, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }
}

/// The shortest time of every program.
fn run_all(programs: &[Program], third: Party, threads: usize) -> Result<Vec<f64>> {
    let sessions = Loopback::open(third)?;
    let barrier = Barrier::new(sessions.0.len());
    let mut results = thread::scope(|scope| {
        let parties: Vec<_> = sessions
            .0
            .iter()
            .map(|session| {
                let barrier = &barrier;
                scope.spawn(move || party(session, programs, threads, barrier).inspect_err(|e| session.abort(e)))
            })
            .collect();
        let panicked = || Diagnostic::internal("E1014", "a fault of this program ended a measurement");
        parties.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(panicked()))).collect::<Vec<_>>()
    });
    // The client comes first; the others' times are the same but for the last message.
    results.drain(1..).find_map(Result::err).map_or(Ok(()), Err)?;
    results.pop().unwrap_or_else(|| Ok(Vec::new()))
}

fn party(session: &Session, programs: &[Program], threads: usize, barrier: &Barrier) -> Result<Vec<f64>> {
    let own = session.party();
    let mut times = Vec::new();
    let mut failed = None;
    for (run, program) in (1u64..).zip(programs) {
        let mut best = f64::INFINITY;
        let mut prepared = if failed.is_none() { start(session, run, program, threads) } else { Err(no_more()) };
        for _ in 0..REPEATS {
            // Everybody waits at every barrier, whatever failed.
            barrier.wait();
            let begin = Instant::now();
            if let Ok(ready) = &mut prepared {
                let inputs = if own == Party::Client { program.inputs.as_slice() } else { &[] };
                let mut net = LinkNet::new(session, run);
                let step = ready.step(&program.bound, &program.schedule, inputs, &mut net);
                if let Err(error) = step {
                    session.abort(&error);
                    prepared = Err(error);
                }
            }
            best = best.min(begin.elapsed().as_secs_f64());
        }
        if let Err(error) = prepared {
            failed.get_or_insert(error);
        }
        times.push(best);
    }
    failed.map_or(Ok(times), Err)
}

fn no_more() -> Diagnostic {
    Diagnostic::internal("E0808", "the session has ended")
}

fn start(session: &Session, run: u64, program: &Program, threads: usize) -> Result<Box<dyn Steps>> {
    let own = session.party();
    let mut net = LinkNet::new(session, run);
    let keys = settings::agree_keys(&program.module, "measure", own, &mut net)?;
    let key = agree_weight_key(Party::Client, own, &mut net)?;
    let zeros: Arc<dyn TensorSource> = Arc::new(Zeros::of(&program.module, &program.bound));
    let server = (own == Party::Server).then(|| Arc::clone(&zeros));
    let weights = Weights::share(&program.module, (Party::Client, own), key.as_ref(), zeros, server, &mut net)?;
    settings::begin(Arc::clone(&program.module), own, keys, Arc::new(weights), Products::cpu(threads))
}

/// Sessions of client, server and the third party in this process, over the loopback interface.
struct Loopback(Vec<Session>);

impl Loopback {
    fn open(third: Party) -> Result<Loopback> {
        let keys = KeyFolder(env::temp_dir().join(format!("ombra-{}", SessionId::random()?)));
        make_private(&keys.0)?;
        let configs = write_local_set(&keys.0, third)?;
        let endpoint = |path: &PathBuf| Endpoint::new(&PartyConfig::read(path)?, "", None);
        let [client, server, third] = [endpoint(&configs[0])?, endpoint(&configs[1])?, endpoint(&configs[2])?];
        let server = Acceptor::bind(&server, drop)?;
        let third = Acceptor::bind(&third, drop)?;
        let late = || Diagnostic::internal("E1011", "the parties of a measurement do not connect");
        let client = client.open(Purpose::Measure)?;
        let server = server.next(Some(CONNECT)).ok_or_else(late)?;
        let third = third.next(Some(CONNECT)).ok_or_else(late)?;
        Ok(Loopback(vec![client, server, third]))
    }
}

/// A folder of keys that goes when this does.
struct KeyFolder(PathBuf);

impl Drop for KeyFolder {
    fn drop(&mut self) {
        // Its name is random and it is this process's own: what is left after an error here harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}
