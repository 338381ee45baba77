//! A report as one page: no script, no font and no picture from elsewhere, readable in light and in dark.
//!
//! Names from the model are escaped by the templates, wherever they stand.

use super::picture::picture;
use super::text::{count, power, seconds, size};
use super::{OpCost, Report};
use maud::{DOCTYPE, Markup, html};
use ombra_ir::plan::{Saving, StepCost};
use std::collections::BTreeMap;

/// Kinds of op that have a colour of their own; the rest share one.
const COLOURS: usize = 8;
const STYLE: &str = include_str!("page.css");

/// The page of a report.
pub fn page(report: &Report) -> String {
    let kinds = Kinds::of(report);
    let dims = report.dims.iter().map(|(n, v)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (report.model) " in " (report.setting) }
                style { (maud::PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (report.model) }
                    p { "Setting " (report.setting) ", one step at " (dims) "." }
                }
                main {
                    (tiles(report))
                    @if !report.changes.is_empty() {
                        section { h2 { "What changes the model" } ul { @for c in &report.changes { li { (c) } } } }
                    }
                    (saved(report, &kinds))
                    (by_layer(report, &kinds))
                    (by_kind(report, &kinds))
                    (partitioned(report))
                    (seen(report))
                    (bounds(report))
                }
                footer {
                    p {
                        "Bytes are payload, of all parties together. Rounds are the longest chain of messages that wait "
                        "for one another. Tables give rounds of one longest path of operations, so that they add up; "
                        "a chain of messages may be shorter."
                    }
                }
            }
        }
    }
    .into_string()
}

/// Kinds of op by bytes, with their colours.
struct Kinds(Vec<String>);

impl Kinds {
    fn of(report: &Report) -> Kinds {
        let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
        for op in &report.ops {
            *bytes.entry(shown(op.kind())).or_default() += op.total_bytes();
        }
        for (kind, b) in report.savings.iter().flat_map(|s| &s.steps).flat_map(|s| &s.kinds) {
            bytes.entry(shown(kind)).or_insert(*b);
        }
        let mut kinds: Vec<(String, u64)> = bytes.into_iter().filter(|(_, b)| *b > 0).collect();
        kinds.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Kinds(kinds.into_iter().map(|(kind, _)| kind).collect())
    }

    fn colour(&self, kind: &str) -> String {
        let at = self.0.iter().position(|k| k == kind).unwrap_or(COLOURS);
        format!("k{}", at.min(COLOURS))
    }

    fn legend(&self) -> Markup {
        let more = self.0.len() > COLOURS;
        html! {
            ul.legend aria-label="Colours of the kinds of operations" {
                @for kind in self.0.iter().take(COLOURS) { li { span class=(format!("swatch {}", self.colour(kind))) {} (kind) } }
                @if more { li { span class=(format!("swatch k{COLOURS}")) {} "other" } }
            }
        }
    }

    /// A bar of parts, `whole` being its full width.
    fn bar(&self, parts: &BTreeMap<String, u64>, whole: u64) -> Markup {
        let mut x = 0.0;
        let mut pieces = Vec::new();
        for kind in &self.0 {
            let Some(&bytes) = parts.get(kind).filter(|&&b| b > 0) else { continue };
            let width = 100.0 * bytes as f64 / whole.max(1) as f64;
            pieces.push((kind, bytes, x, width));
            x += width;
        }
        let label = pieces.iter().map(|(kind, bytes, ..)| format!("{kind} {}", size(*bytes))).collect::<Vec<_>>();
        html! {
            svg.bar viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=(label.join(", ")) {
                @for (kind, bytes, x, width) in &pieces {
                    rect class=(self.colour(kind)) x=(format!("{x:.3}")) y="0" width=(format!("{width:.3}")) height="10" {
                        title { (kind) ": " (size(*bytes)) }
                    }
                }
            }
        }
    }
}

/// Softmax is one kind, with and without a mask.
fn shown(kind: &str) -> String {
    if kind == "masked_softmax" { "softmax".into() } else { kind.replace('_', " ") }
}

fn tiles(report: &Report) -> Markup {
    let time = report.predicted_seconds.as_ref();
    html! {
        section.tiles aria-label="The step in numbers" {
            (tile("sent in a step", &size(report.online_bytes()), &each(report)))
            @for (dealer, bytes) in &report.offline_bytes {
                (tile("dealt", &size(*bytes), &format!("by the {dealer}; with what is sent {}", size(report.total_bytes()))))
            }
            (tile("rounds", &report.rounds.to_string(), "messages that wait for one another"))
            @if let Some(time) = time {
                (tile("predicted time", &seconds(time.total()), &made_of(report)))
            }
            @if report.setup_to == "nobody" {
                (tile("sent in every session", &size(report.setup_bytes), "to set up correlations; private weights stay where they are"))
            } @else {
                (tile("sent once", &size(report.setup_bytes), &format!("to share the private weights with the {}", report.setup_to)))
            }
            (tile("products of secrets", &count(report.macs.secret), &format!("and {} by public factors", count(report.macs.public))))
            (tile("assumed bounds", &report.bounds.assumed.to_string(), "ranges of values that nothing proves"))
        }
    }
}

fn tile(name: &str, value: &str, detail: &str) -> Markup {
    html! { div.tile { div.name { (name) } div.value { (value) } div.detail { (detail) } } }
}

fn each(report: &Report) -> String {
    report.bytes.iter().map(|(party, &b)| format!("{party} {}", size(b))).collect::<Vec<_>>().join(", ")
}

fn made_of(report: &Report) -> String {
    let Some(time) = &report.predicted_seconds else { return String::new() };
    let mut parts = Vec::new();
    if let Some(network) = &report.network {
        parts.push(format!("{} on network {network}", seconds(time.network)));
    }
    if report.machine {
        parts.push(format!("{} at the machines", seconds(time.work + time.rounds)));
    }
    parts.join(", ")
}

fn saved(report: &Report, kinds: &Kinds) -> Markup {
    let Some(first) = report.savings.first() else {
        return html! {
            section {
                h2 { "What each pass saved" }
                p { "Not counted for this plan: compile it with " code { "--savings" } "." }
            }
        };
    };
    html! {
        section {
            h2 { "What each pass saved" }
            (kinds.legend())
            @for (i, step) in first.steps.iter().enumerate() {
                (saved_step(&report.savings, i, step, kinds))
            }
        }
    }
}

fn saved_step(savings: &[Saving], i: usize, naive: &StepCost, kinds: &Kinds) -> Markup {
    let dims = naive.dims.iter().map(|(n, v)| format!("{n} {v}")).collect::<Vec<_>>().join(", ");
    let whole = naive.total_bytes();
    html! {
        h3 { (naive.name) " at " (dims) }
        div.scroll {
            table {
                thead { tr { th scope="col" { "after" } th.wide scope="col" { "bytes by kind" } th.n scope="col" { "bytes" } th.n scope="col" { "of naive" } th.n scope="col" { "rounds" } } }
                tbody {
                    @for saving in savings {
                        @if let Some(cost) = saving.steps.get(i) {
                            tr {
                                th scope="row" { (saving.pass) }
                                td { (kinds.bar(&cost.kinds.iter().map(|(k, b)| (shown(k), *b)).collect(), whole)) }
                                td.n { (size(cost.total_bytes())) }
                                td.n { (percent(cost.total_bytes(), whole)) }
                                td.n { (cost.rounds) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// Sums over ops.
#[derive(Default)]
struct Sum {
    bytes: u64,
    /// Of these, what is dealt.
    dealt: u64,
    rounds: u32,
    macs: u64,
    kinds: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, op: &OpCost) {
        self.bytes += op.total_bytes();
        self.dealt += op.offline_bytes;
        self.rounds += op.path_rounds;
        self.macs += op.macs;
        if op.total_bytes() > 0 {
            *self.kinds.entry(shown(op.kind())).or_default() += op.total_bytes();
        }
    }

    /// Cells of a row: bytes, with what is dealt apart where the setting has a dealer.
    fn bytes(&self, report: &Report) -> Markup {
        html! {
            @if report.has_dealer() { td.n { (size(self.bytes - self.dealt)) } td.n { (size(self.dealt)) } }
            td.n { (size(self.bytes)) }
            td.n { (percent(self.bytes, report.total_bytes())) }
        }
    }
}

/// Heads of the cells of [`Sum::bytes`].
fn bytes_heads(report: &Report) -> Markup {
    html! {
        @if report.has_dealer() { th.n scope="col" { "online" } th.n scope="col" { "dealt" } }
        th.n scope="col" { "bytes" }
        th.n scope="col" { "of all" }
    }
}

fn by_layer(report: &Report, kinds: &Kinds) -> Markup {
    let mut layers: BTreeMap<Option<u32>, Sum> = BTreeMap::new();
    report.ops.iter().for_each(|op| layers.entry(op.layer).or_default().add(op));
    let most = layers.values().map(|s| s.bytes).max().unwrap_or(0);
    html! {
        section {
            h2 { "Where bytes and rounds go, by layer" }
            p { "Layers that are not listed are not computed under MPC." }
            (kinds.legend())
            div.scroll {
                table {
                    thead { tr { th scope="col" { "layer" } th.wide scope="col" { "bytes by kind" } (bytes_heads(report)) th.n scope="col" { "rounds" } } }
                    tbody {
                        @for (layer, sum) in layers.iter().filter(|(_, s)| s.bytes > 0) {
                            tr {
                                th scope="row" { (layer.map_or("outside layers".to_string(), |l| format!("layer {l}"))) }
                                td { (kinds.bar(&sum.kinds, most)) }
                                (sum.bytes(report))
                                td.n { (sum.rounds) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn by_kind(report: &Report, kinds: &Kinds) -> Markup {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    report.ops.iter().for_each(|op| sums.entry(shown(op.kind())).or_default().add(op));
    let mut sums: Vec<(String, Sum)> = sums.into_iter().filter(|(_, s)| s.bytes > 0 || s.macs > 0).collect();
    sums.sort_by(|a, b| b.1.bytes.cmp(&a.1.bytes).then_with(|| a.0.cmp(&b.0)));
    let most = sums.first().map_or(0, |s| s.1.bytes);
    html! {
        section {
            h2 { "Where bytes and rounds go, by kind of operation" }
            p { "A sum of products is divided where it ends: the division belongs to the operation that ends it." }
            div.scroll {
                table {
                    thead { tr { th scope="col" { "kind" } th.wide scope="col" { "bytes" } (bytes_heads(report)) th.n scope="col" { "rounds" } th.n scope="col" { "products" } } }
                    tbody {
                        @for (kind, sum) in &sums {
                            tr {
                                th scope="row" { (kind) }
                                td { (kinds.bar(&sum.kinds, most)) }
                                (sum.bytes(report))
                                td.n { (sum.rounds) }
                                td.n { (count(sum.macs)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn partitioned(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Who computes what" }
            p { "From top to bottom, the parts of the model; the line is the way of the hidden state." }
            div.scroll { (picture(report)) }
        }
    }
}

fn seen(report: &Report) -> Markup {
    let mut public = String::from("lengths, the number of generated tokens");
    for name in &report.public_inputs {
        public += &format!(", the contents of {name}");
    }
    let senders = report.bytes.keys().chain(report.offline_bytes.keys());
    let third = senders.copied().find(|name| !["client", "server"].contains(name));
    let mut rows = vec![
        ("client", format!("{}; {public}", report.revealed.join(", ")), "private weights, what is computed under MPC"),
        ("server", public.clone(), "the client's inputs and results, what is computed under MPC"),
    ];
    if let Some(third) = third {
        rows.push((third, public, "the client's inputs and results, private weights, what is computed under MPC"));
    }
    html! {
        section {
            h2 { "Who sees what" }
            div.scroll {
                table {
                    thead { tr { th scope="col" { "party" } th scope="col" { "learns, beside the plan and the public weights" } th scope="col" { "does not learn" } } }
                    tbody { @for (party, learns, hidden) in &rows { tr { th scope="row" { (party) } td { (learns) } td { (hidden) } } } }
                }
            }
            p { "One party that follows the protocol but reads everything it sees learns no more than this. Two parties together learn everything." }
        }
    }
}

fn bounds(report: &Report) -> Markup {
    // By what is bounded and the operator: how many, the least low end and the maximum high end.
    let mut assumed: BTreeMap<(&str, String), (usize, f64, f64)> = BTreeMap::new();
    for range in &report.assumed {
        let entry = assumed.entry((range.quantity.name(), shown(&range.op))).or_insert((0, f64::INFINITY, 0.0));
        let (low, high) = (range.low.unwrap_or(f64::INFINITY), range.high.unwrap_or(0.0));
        *entry = (entry.0 + 1, entry.1.min(low), entry.2.max(high));
    }
    let end = |end: f64| if end > 0.0 && end.is_finite() { power(end) } else { "–".into() };
    let b = &report.bounds;
    html! {
        section {
            h2 { "Bounds" }
            p {
                (b.proven) " bounds follow from types, " (b.weights) " from the weights of the " (b.of) ", and "
                (b.guarded) " from the formula of a function. " (b.assumed) " ranges are assumed."
            }
            @if !assumed.is_empty() {
                div.scroll {
                    table {
                        thead { tr { th scope="col" { "taken for granted" } th scope="col" { "of" } th.n scope="col" { "how many" } th.n scope="col" { "at least" } th.n scope="col" { "below" } } }
                        tbody {
                            @for ((quantity, op), (n, low, high)) in &assumed {
                                tr { th scope="row" { (quantity) } td { (op) } td.n { (n) } td.n { (end(*low)) } td.n { (end(*high)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
