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
    /// Payload bytes of all parties.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.values().sum()
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
        let _ = writeln!(out, "step    {} rounds, {} sent ({each})", self.rounds, size(self.total_bytes()));
        if let Some(time) = &self.predicted_seconds {
            let _ = writeln!(out, "time    {}", self.time_line(time));
        }
        let _ = writeln!(out, "set-up  {} sent once", size(self.setup_bytes));
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
        let mut groups: Vec<(String, u64, u64, u32)> = Vec::new();
        for op in self.ops.iter().filter(|o| o.bytes > 0 || o.macs > 0) {
            let key = match by {
                By::Op => format!("%{} {} [{}] {}", op.id, op.op, join(&op.dims), op.origin),
                By::Layer => op.layer.map_or("outside layers".into(), |l| format!("layer {l}")),
                By::Kind | By::Bound => op.kind().into(),
            };
            match groups.iter_mut().find(|g| g.0 == key && by != By::Op) {
                Some(g) => {
                    g.1 += op.bytes;
                    g.2 += op.macs;
                    g.3 += op.path_rounds;
                }
                None => groups.push((key, op.bytes, op.macs, op.path_rounds)),
            }
        }
        let _ = writeln!(
            out,
            "{:>12} {:>10} {:>7}  where; rounds are those of one longest path",
            "bytes", "macs", "rounds"
        );
        for (key, bytes, macs, rounds) in groups {
            let _ = writeln!(out, "{:>12} {:>10} {rounds:>7}  {key}", size(bytes), count(macs));
        }
        out
    }
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
    line("bytes of a step", a.total_bytes(), b.total_bytes(), &size);
    line("rounds of a step", a.rounds.into(), b.rounds.into(), &|v| v.to_string());
    line("set-up bytes", a.setup_bytes, b.setup_bytes, &size);
    line("secret by secret macs", a.macs.secret, b.macs.secret, &count);
    line("macs by public factors", a.macs.public, b.macs.public, &count);
    let kinds = |r: &Report| {
        let mut m: BTreeMap<String, u64> = BTreeMap::new();
        for op in r.ops.iter().filter(|o| o.bytes > 0) {
            *m.entry(op.kind().into()).or_default() += op.bytes;
        }
        m
    };
    let (ka, kb) = (kinds(a), kinds(b));
    for kind in ka.keys().chain(kb.keys().filter(|k| !ka.contains_key(*k))) {
        let of = |m: &BTreeMap<String, u64>| m.get(kind).copied().unwrap_or(0);
        line(&format!("  {kind}"), of(&ka), of(&kb), &size);
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
