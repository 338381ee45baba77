//! What a machine does in a second, and how long a step takes with it.
//!
//! `ombra-run measure` writes a profile; the compiler predicts with it. Rates hold with all three parties at work at the
//! same time. A step takes the time of its messages on the network, the time of its local work, and what every round
//! costs beside: frames, encryption, waking of threads. The parts are added, as parties compute while others wait.

use crate::bind::Bound;
use crate::module::{Id, Module};
use crate::network::{Network, step_seconds};
use crate::op::Op;
use crate::schedule::Schedule;
use crate::settings::Setting;
use crate::{Diagnostic, Result};
use core::time::Duration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the format.
pub const VERSION: u32 = 1;

/// What local work is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rounds of a step, however little is sent in them.
    Rounds,
    /// Multiply-accumulates of two secret factors in matrix products.
    SecretMacs,
    /// Multiply-accumulates with a public factor in matrix products.
    PublicMacs,
    /// Elements of a private weight, made from a key or a file while a product reads them.
    WeightElements,
    /// Elements of local results that are no matrix products.
    LocalElements,
    /// Elements that a truncation or an extension divides.
    Truncations,
    /// Elements that are reshared.
    ResharedElements,
    /// Bits that comparisons look at: elements times width.
    ComparedBits,
    /// Bits that become ring elements.
    ConvertedBits,
    /// Points at which point functions of lookups are evaluated: tokens times rows of the table.
    DpfPoints,
    /// Bytes of the random streams.
    PrgBytes,
}

impl Unit {
    /// All units.
    pub const ALL: [Unit; 11] = [
        Unit::Rounds,
        Unit::SecretMacs,
        Unit::PublicMacs,
        Unit::WeightElements,
        Unit::LocalElements,
        Unit::Truncations,
        Unit::ResharedElements,
        Unit::ComparedBits,
        Unit::ConvertedBits,
        Unit::DpfPoints,
        Unit::PrgBytes,
    ];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Rounds => "rounds",
            Unit::SecretMacs => "multiply-accumulates, both factors secret",
            Unit::PublicMacs => "multiply-accumulates, one factor public",
            Unit::WeightElements => "elements of private weights",
            Unit::LocalElements => "elements of local operations",
            Unit::Truncations => "truncations",
            Unit::ResharedElements => "reshared elements",
            Unit::ComparedBits => "compared bits",
            Unit::ConvertedBits => "converted bits",
            Unit::DpfPoints => "points of point functions",
            Unit::PrgBytes => "random bytes",
        }
    }
}

/// A link as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRate {
    /// The peer.
    pub peer: String,
    /// Payload bits per second of the slower direction.
    pub bandwidth_bits_per_s: f64,
    /// Seconds from sending a byte to having its answer.
    pub rtt_s: f64,
}

/// What `ombra-run measure` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// [`VERSION`].
    pub ombra_profile: u32,
    /// The setting that the parties of the measurement ran, whose kernels the rates are of.
    #[serde(default = "first_setting")]
    pub setting: String,
    /// Cores of the machine.
    pub cores: u32,
    /// Threads of a matrix product at every party.
    pub threads: u32,
    /// Units per second, with three parties at work on this machine.
    pub per_second: BTreeMap<Unit, f64>,
    /// Links to the peers of a configuration; empty where none was given.
    pub links: Vec<LinkRate>,
}

/// The setting of profiles that do not name one.
fn first_setting() -> String {
    Setting::ThreeParty.name().to_owned()
}

impl Profile {
    /// Checks that the profile was measured in the setting of a plan.
    ///
    /// # Errors
    /// `E0420`.
    pub fn check_setting(&self, setting: Setting) -> Result<()> {
        if self.setting == setting.name() {
            return Ok(());
        }
        Err(Diagnostic::input("E0420", "the machine profile is of another setting")
            .note(format!("expected  {}, found {}", setting.name(), self.setting.escape_debug()))
            .note(format!("help      write one with `ombra-run measure --setting {}`", setting.name())))
    }

    /// Checks a profile that was read from a file.
    ///
    /// # Errors
    /// `E0420` for another version, a unit that is missing, and numbers that are not positive.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: String| {
            Diagnostic::input("E0420", format!("not a usable machine profile: {what}"))
                .note("help      write one with `ombra-run measure`")
        };
        if self.ombra_profile != VERSION {
            return Err(wrong(format!("expected version {VERSION}, found {}", self.ombra_profile)));
        }
        for unit in Unit::ALL {
            match self.per_second.get(&unit) {
                Some(rate) if rate.is_finite() && *rate > 0.0 => {}
                Some(rate) => return Err(wrong(format!("expected a rate of {} above 0, found {rate}", unit.name()))),
                None => return Err(wrong(format!("the rate of {} is missing", unit.name()))),
            }
        }
        for link in &self.links {
            let good = (1e3..=1e13).contains(&link.bandwidth_bits_per_s) && (0.0..=10.0).contains(&link.rtt_s);
            if !good {
                return Err(wrong("the bandwidth or round-trip time of a link is out of range".into()));
            }
        }
        Ok(())
    }

    /// The slowest of the measured links, as a network; `None` where no link was measured.
    pub fn network(&self) -> Option<Network> {
        let bandwidth = self.links.iter().map(|l| l.bandwidth_bits_per_s).reduce(f64::min)?;
        let rtt = self.links.iter().map(|l| l.rtt_s).reduce(f64::max)?;
        Some(Network { bandwidth_bits_per_s: bandwidth as u64, rtt: Duration::from_secs_f64(rtt) })
    }

    /// Seconds of local work.
    pub fn seconds(&self, work: &Work) -> f64 {
        work.iter().map(|(unit, count)| count / self.per_second.get(unit).copied().unwrap_or(f64::INFINITY)).sum()
    }
}

/// Local work, by unit.
pub type Work = BTreeMap<Unit, f64>;

/// The local work of one op at one party.
///
/// # Errors
/// The op's mask does not fit its operand.
pub fn work_of(module: &Module, bound: &Bound, id: Id) -> Result<Work> {
    let node = module.node(id);
    let n = bound.len(id) as f64;
    let shared = |i: usize| node.args.get(i).is_some_and(|&a| module.ty(a).sharing.is_secret());
    let elements = |i: usize| node.args.get(i).map_or(0.0, |&a| bound.len(a) as f64);
    let mut work = Work::new();
    let mut add = |unit: Unit, count: f64| *work.entry(unit).or_default() += count;
    match &node.op {
        Op::MatMul { .. } => {
            let inner = node.args.first().and_then(|a| bound.shapes[a.index()].last()).map_or(0, |&k| k) as f64;
            add(if shared(0) && shared(1) { Unit::SecretMacs } else { Unit::PublicMacs }, n * inner);
            for (i, &arg) in node.args.iter().enumerate() {
                if matches!(module.node(arg).op, Op::Weight { .. }) {
                    add(Unit::WeightElements, elements(i));
                }
            }
        }
        Op::Truncate { .. } => add(Unit::Truncations, n),
        Op::Reshare => add(Unit::ResharedElements, n),
        Op::Msb { width, .. } => add(Unit::ComparedBits, n * f64::from(*width)),
        Op::And => add(Unit::ComparedBits, 2.0 * n),
        Op::BitToRing { .. } => add(Unit::ConvertedBits, n),
        // Four products and five streams where a conversion has one.
        Op::ExpDigits { .. } => add(Unit::ConvertedBits, 4.0 * n),
        Op::RowMax { width, .. } | Op::ArgMax { width } => {
            // One bit conversion and about two products for each pair, of which there are one less than entries.
            let pairs = elements(0);
            add(Unit::ComparedBits, pairs * f64::from(*width));
            add(Unit::ConvertedBits, pairs);
            add(Unit::ResharedElements, pairs);
        }
        Op::Embed => {
            let points =
                elements(0) * node.args.get(1).and_then(|a| bound.shapes[a.index()].first()).map_or(0, |&r| r) as f64;
            add(Unit::DpfPoints, points);
            add(Unit::SecretMacs, points * bound.shapes[id.index()].last().copied().unwrap_or(0) as f64);
            add(Unit::WeightElements, elements(1));
            add(Unit::ResharedElements, n);
        }
        Op::Input { .. } => add(Unit::PrgBytes, 8.0 * n),
        Op::Weight { .. } | Op::PublicWeight { .. } | Op::State { .. } | Op::Public { .. } | Op::ClientInts { .. } => {}
        Op::Reveal { .. } | Op::SetState { .. } => {}
        Op::Reshape { .. } | Op::SetScale { .. } => {}
        _ => add(Unit::LocalElements, n),
    }
    Ok(work)
}

/// How long a step takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Time {
    /// Seconds of messages on their way: latency and transmission.
    pub network: f64,
    /// Of these, what remains when bandwidth is without limit.
    pub latency: f64,
    /// Seconds of local work; 0 without a profile.
    pub work: f64,
    /// Seconds of what every round costs beside; 0 without a profile.
    pub rounds: f64,
}

impl Time {
    /// Seconds in all.
    pub fn total(&self) -> f64 {
        self.network + self.work + self.rounds
    }
}

/// The time of a step on `network`, `None` for links that cost nothing, with a machine of `profile`, `None` for one that
/// computes in no time.
///
/// # Errors
/// A mask that does not fit its operand, `E0420` for a profile of another setting.
pub fn predict(
    module: &Module,
    bound: &Bound,
    schedule: &Schedule,
    network: Option<&Network>,
    profile: Option<&Profile>,
) -> Result<Time> {
    let mut time = Time::default();
    if let Some(network) = network {
        time.network = step_seconds(module, schedule, network);
        time.latency = step_seconds(module, schedule, &Network { bandwidth_bits_per_s: u64::MAX, ..*network });
    }
    if let Some(profile) = profile {
        profile.check_setting(module.setting)?;
        for i in 0..module.ops.len() {
            time.work += profile.seconds(&work_of(module, bound, Id(i as u32))?);
        }
        time.rounds = profile.seconds(&Work::from([(Unit::Rounds, f64::from(schedule.ticks))]));
    }
    Ok(time)
}
