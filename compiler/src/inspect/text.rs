//! Reports as text.

use super::Report;
use ombra_ir::profile::Time;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What the text form groups by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// One line an op that sends something or multiplies.
    Op,
    /// One line a layer.
    Layer,
    /// One line a kind: the composite op that messages belong to.
    Kind,
    /// One line for every range that is taken for granted, instead of costs.
    Bound,
}

impl Report {
    /// Payload bytes of all parties, online and dealt.
    pub fn total_bytes(&self) -> u64 {
        self.online_bytes() + self.dealt_bytes()
    }

    /// Payload bytes that all parties send online.
    pub fn online_bytes(&self) -> u64 {
        self.bytes.values().sum()
    }

    /// Payload bytes that are dealt.
    pub fn dealt_bytes(&self) -> u64 {
        self.offline_bytes.values().sum()
    }

    /// Whether a party of the setting deals.
    pub(super) fn has_dealer(&self) -> bool {
        !self.offline_bytes.is_empty()
    }

    /// The report for people.
    pub fn text(&self, by: By) -> String {
        let mut out = String::new();
        let dims = self.dims.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ");
        let _ = writeln!(out, "{} in {} at {dims}", self.model, self.setting);
        if self.costs_only {
            let _ = writeln!(out, "plan    for costs only: it cannot run; what was not measured is assumed");
        }
        let each = self.bytes.iter().map(|(p, &b)| format!("{p} {}", size(b))).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "step    {} rounds, {} sent ({each})", self.rounds, size(self.online_bytes()));
        for (dealer, &bytes) in &self.offline_bytes {
            let all = size(self.total_bytes());
            let _ = writeln!(
                out,
                "dealt   {} by the {dealer}, which waits for nobody; {all} with what is sent",
                size(bytes)
            );
        }
        if let Some(time) = &self.predicted_seconds {
            let _ = writeln!(out, "time    {}", self.time_line(time));
        }
        let to = match self.setup_to {
            "client" => "once, to every client: the dealer gets nothing of the model",
            "nobody" if self.setup_bytes > 0 => {
                "in every session, for transfers: the server's weights stay where they are"
            }
            _ => "once",
        };
        let _ = writeln!(out, "set-up  {} sent {to}", size(self.setup_bytes));
        let _ = writeln!(
            out,
            "work    {} secret by secret, {} by public factors",
            count(self.macs.secret),
            count(self.macs.public)
        );
        let b = &self.bounds;
        let of = if self.costs_only { "typical weights" } else { b.of };
        let _ = writeln!(
            out,
            "bounds  {} proven from types, {} from the weights of the {of}, {} by formula; {} assumed bounds",
            b.proven, b.weights, b.guarded, b.assumed
        );
        let _ = writeln!(out, "client  learns {}", self.revealed.join(", "));
        let contents = match self.public_inputs.as_slice() {
            [] => String::new(),
            names => format!("the contents of {}, ", names.join(" and ")),
        };
        let _ = writeln!(out, "others  learn {contents}lengths, and the number of generated tokens\n");
        if by == By::Bound {
            self.write_assumed(&mut out);
            return out;
        }
        self.write_savings(&mut out);
        let mut groups: Vec<(String, Line)> = Vec::new();
        for op in self.ops.iter().filter(|o| o.total_bytes() > 0 || o.macs > 0) {
            let key = match by {
                By::Op => format!("%{} {} [{}] {}", op.id, op.op, join(&op.dims), op.origin),
                By::Layer => op.layer.map_or("outside layers".into(), |l| format!("layer {l}")),
                By::Kind | By::Bound => op.kind().into(),
            };
            let known = groups.iter().position(|(known, _)| *known == key && by != By::Op);
            let at = known.unwrap_or_else(|| {
                groups.push((key, Line::default()));
                groups.len() - 1
            });
            let line = &mut groups[at].1;
            line.online += op.bytes;
            line.dealt += op.offline_bytes;
            line.macs += op.macs;
            line.rounds += op.path_rounds;
        }
        let apart = |online: &str, dealt: &str| match self.has_dealer() {
            true => format!("{online:>12} {dealt:>12} "),
            false => String::new(),
        };
        let heads = apart("online", "dealt");
        let _ = writeln!(
            out,
            "{heads}{:>12} {:>10} {:>7}  where; rounds are those of one longest path",
            "bytes", "macs", "rounds"
        );
        for (key, Line { online, dealt, macs, rounds }) in groups {
            let parts = apart(&size(online), &size(dealt));
            let _ = writeln!(out, "{parts}{:>12} {:>10} {rounds:>7}  {key}", size(online + dealt), count(macs));
        }
        out
    }
}

/// What a line of the table sums up.
#[derive(Default)]
struct Line {
    online: u64,
    dealt: u64,
    macs: u64,
    rounds: u32,
}

impl Report {
    /// Seconds and what they are made of.
    fn time_line(&self, time: &Time) -> String {
        let mut parts = Vec::new();
        if let Some(network) = &self.network {
            let transmission = time.network - time.latency;
            parts.push(format!(
                "{} latency and {} transmission on {network}",
                seconds(time.latency),
                seconds(transmission)
            ));
        }
        if self.machine {
            parts.push(format!("{} local work, {} handling of rounds", seconds(time.work), seconds(time.rounds)));
        } else {
            parts.push("local work not counted: give --machine".into());
        }
        format!("about {} ({})", seconds(time.total()), parts.join("; "))
    }

    /// Every range that is taken for granted, and where it comes from.
    fn write_assumed(&self, out: &mut String) {
        let end = |end: Option<f64>| end.map_or("-".into(), power);
        let _ = writeln!(out, "{:>12} {:>12}  taken for granted", "at least", "below");
        for range in &self.assumed {
            let what = range.quantity.name();
            let layer = range.layer.map_or(String::new(), |layer| format!(" in layer {layer}"));
            let (low, high) = (end(range.low), end(range.high));
            let _ = writeln!(out, "{low:>12} {high:>12}  {what}, {}{layer}: {}", range.op, range.node);
        }
    }

    /// One block for every step whose savings were counted.
    fn write_savings(&self, out: &mut String) {
        let Some(first) = self.savings.first() else { return };
        for (i, step) in first.steps.iter().enumerate() {
            let dims = step.dims.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(" ");
            let _ =
                writeln!(out, "{:>12} {:>10} {:>7}  passes, {} at {dims}", "bytes", "of naive", "rounds", step.name);
            for (saving, cost) in self.savings.iter().filter_map(|s| s.steps.get(i).map(|cost| (s, cost))) {
                let part = 100.0 * cost.total_bytes() as f64 / step.total_bytes().max(1) as f64;
                let bytes = size(cost.total_bytes());
                let _ = writeln!(out, "{bytes:>12} {:>10} {:>7}  {}", format!("{part:.1} %"), cost.rounds, saving.pass);
            }
            out.push('\n');
        }
    }
}

/// Two reports side by side, with the ratio of the second to the first.
pub fn compare(a: &Report, b: &Report) -> String {
    let mut out = String::new();
    let ratio = |x: u64, y: u64| if x == 0 { "-".to_string() } else { format!("{:.2}", y as f64 / x as f64) };
    let _ = writeln!(out, "{:<24} {:>14} {:>14} {:>8}", "", a.model, b.model, "ratio");
    let mut line = |name: &str, x: u64, y: u64, show: &dyn Fn(u64) -> String| {
        let _ = writeln!(out, "{name:<24} {:>14} {:>14} {:>8}", show(x), show(y), ratio(x, y));
    };
    let has_dealer = a.has_dealer() || b.has_dealer();
    line("bytes of a step", a.total_bytes(), b.total_bytes(), &size);
    if has_dealer {
        line("  online", a.online_bytes(), b.online_bytes(), &size);
        line("  dealt", a.dealt_bytes(), b.dealt_bytes(), &size);
    }
    line("rounds of a step", a.rounds.into(), b.rounds.into(), &|v| v.to_string());
    line("set-up bytes", a.setup_bytes, b.setup_bytes, &size);
    line("secret by secret macs", a.macs.secret, b.macs.secret, &count);
    line("macs by public factors", a.macs.public, b.macs.public, &count);
    let kinds = |r: &Report| {
        let mut m: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        for op in r.ops.iter().filter(|o| o.total_bytes() > 0) {
            let [online, dealt] = m.entry(op.kind().into()).or_default();
            *online += op.bytes;
            *dealt += op.offline_bytes;
        }
        m
    };
    let (ka, kb) = (kinds(a), kinds(b));
    for kind in ka.keys().chain(kb.keys().filter(|k| !ka.contains_key(*k))) {
        let [a, b] = [&ka, &kb].map(|kinds| kinds.get(kind).copied().unwrap_or_default());
        line(&format!("  {kind}"), a.iter().sum(), b.iter().sum(), &size);
        if has_dealer {
            line("    online", a[0], b[0], &size);
            line("    dealt", a[1], b[1], &size);
        }
    }
    out
}

/// A number as a power of two, if it is one.
pub(super) fn power(x: f64) -> String {
    let log2 = libm::log2(x);
    if x > 0.0 && log2 == libm::trunc(log2) { format!("2^{log2}") } else { format!("{x:.4}") }
}

/// Seconds with a unit.
pub(super) fn seconds(s: f64) -> String {
    if s >= 1.0 { format!("{s:.2} s") } else { format!("{:.1} ms", s * 1e3) }
}

fn join(dims: &[usize]) -> String {
    dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(", ")
}

/// Bytes with a unit: powers of 1000.
pub fn size(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB"])
}

pub(super) fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "G", "T"])
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut v = n as f64;
    let mut unit = 0;
    while v >= 1000.0 && unit + 1 < units.len() {
        v /= 1000.0;
        unit += 1;
    }
    let text = if unit == 0 { format!("{n} {}", units[0]) } else { format!("{v:.2} {}", units[unit]) };
    text.trim_end().to_string()
}
