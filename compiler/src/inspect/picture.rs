//! The partitioned graph as a picture: rows are parts of the model in order, lanes are who computes them.
//!
//! Layers that are alike and follow one another are one row, so that the picture stays small for every model.

use super::text::{count, size};
use super::{OpCost, Report};
use maud::{Markup, html};
use ombra_ir::plan::{Part, Place, Role};

/// Lanes from left to right.
const LANES: [Place; 4] = [Place::Everybody, Place::Client, Place::Mpc, Place::Server];
/// Width of the labels at the left, of a lane, and of a box, in units of the picture.
const LABELS: u32 = 170;
const LANE: u32 = 190;
const BOX: u32 = 166;
/// Heights of the lanes' names, of a row, and of a box.
const TOP: u32 = 44;
const ROW: u32 = 62;
const HEIGHT: u32 = 42;

/// One row: parts of one role, of one layer or of several that are alike.
struct Row {
    label: String,
    detail: String,
    structure: bool,
    /// Parts by lane.
    lanes: [Option<Part>; 4],
}

impl Row {
    /// The lane through which the model's values go.
    fn main(&self) -> Option<usize> {
        [2, 1, 3, 0].into_iter().find(|&lane| self.lanes[lane].is_some())
    }
}

/// The picture, or nothing for a plan without parts.
pub(super) fn picture(report: &Report) -> Markup {
    let rows = rows(report);
    let width = LABELS + LANE * LANES.len() as u32;
    let height = TOP + ROW * rows.len() as u32 + 8;
    let lane_x = |lane: usize| LABELS + LANE * lane as u32;
    let row_y = |row: usize| TOP + ROW * row as u32;
    let described: Vec<String> = rows
        .iter()
        .map(|row| {
            let places: Vec<&str> =
                LANES.iter().zip(&row.lanes).filter(|(_, p)| p.is_some()).map(|(place, _)| place.name()).collect();
            format!("{}: {}", row.label, places.join("; "))
        })
        .collect();
    html! {
        svg.picture viewBox=(format!("0 0 {width} {height}")) role="img" aria-labelledby="picture-title picture-desc" {
            title id="picture-title" { "Who computes which part of the model" }
            desc id="picture-desc" { (described.join(". ")) }
            @for (lane, place) in LANES.iter().enumerate() {
                rect.lane x=(lane_x(lane) + 4) y="0" width=(LANE - 8) height=(height) rx="8" {}
                text.lane-name x=(lane_x(lane) + LANE / 2) y="18" text-anchor="middle" { (lane_name(*place).0) }
                text.small x=(lane_x(lane) + LANE / 2) y="34" text-anchor="middle" { (lane_name(*place).1) }
            }
            @for (i, pair) in rows.windows(2).enumerate() {
                @if let (Some(from), Some(to), false) = (pair[0].main(), pair[1].main(), pair[0].structure) {
                    (arrow(lane_x(from) + LANE / 2, row_y(i) + HEIGHT + 4, lane_x(to) + LANE / 2, row_y(i + 1) + 4))
                }
            }
            @for (i, row) in rows.iter().enumerate() {
                text.row-name x="0" y=(row_y(i) + 21) { (row.label) }
                text.small x="0" y=(row_y(i) + 38) { (row.detail) }
                @for (lane, part) in row.lanes.iter().enumerate() {
                    @if let Some(part) = part {
                        rect class=(format!("part {}", class(part.place))) x=(lane_x(lane) + (LANE - BOX) / 2)
                            y=(row_y(i) + 4) width=(BOX) height=(HEIGHT) rx="6" {}
                        text.in-part x=(lane_x(lane) + LANE / 2) y=(row_y(i) + 22) text-anchor="middle" {
                            (part.role.name())
                        }
                        text.in-part.small x=(lane_x(lane) + LANE / 2) y=(row_y(i) + 37) text-anchor="middle" {
                            (contents(part))
                        }
                    }
                }
            }
        }
    }
}

/// A line from a box to the next one, down and where needed across.
fn arrow(x: u32, y: u32, to_x: u32, to_y: u32) -> Markup {
    let middle = y.midpoint(to_y);
    let end = to_y.saturating_sub(4);
    html! {
        path.arrow d=(format!("M{x} {y} V{middle} H{to_x} V{end}")) {}
        path.head d=(format!("M{} {end} L{} {end} L{to_x} {to_y} Z", to_x.saturating_sub(4), to_x + 4)) {}
    }
}

fn lane_name(place: Place) -> (&'static str, &'static str) {
    match place {
        Place::Everybody => ("everybody", "public values, in the clear"),
        Place::Client => ("client", "in the clear, alone"),
        Place::Mpc => ("all parties", "on shares, under MPC"),
        Place::Server => ("server", "in the clear, once"),
    }
}

/// Class of a place's colour.
pub(super) fn class(place: Place) -> &'static str {
    match place {
        Place::Everybody => "everybody",
        Place::Client => "client",
        Place::Mpc => "mpc",
        Place::Server => "server",
    }
}

fn contents(part: &Part) -> String {
    let mut all = vec![format!("{} node{}", part.nodes, if part.nodes == 1 { "" } else { "s" })];
    if part.private_weights > 0 {
        all.push(format!("{} private", count(part.private_weights)));
    } else if part.public_weights > 0 {
        all.push(format!("{} public", count(part.public_weights)));
    }
    all.join(", ")
}

fn rows(report: &Report) -> Vec<Row> {
    let parts = &report.parts;
    let outside = |roles: &[Role], label: &str| {
        let own: Vec<&Part> = parts.iter().filter(|p| p.layer.is_none() && roles.contains(&p.role)).collect();
        row(&own, label.to_string(), String::new())
    };
    let mut layers: Vec<u32> = parts.iter().filter_map(|p| p.layer).collect();
    layers.dedup();
    let of_layer = |layer: u32| parts.iter().filter(move |p| p.layer == Some(layer));
    let alike = |a: u32, b: u32| {
        let shape = |layer| of_layer(layer).map(|p| (p.role, p.place, p.nodes)).collect::<Vec<_>>();
        shape(a) == shape(b)
    };
    let mut rows = Vec::new();
    rows.extend(outside(&[Role::Structure, Role::Weights], "before a step"));
    rows.extend(outside(&[Role::Embedding], "embedding"));
    for group in layers.chunk_by(|&a, &b| alike(a, b)) {
        let (Some(&first), Some(&last)) = (group.first(), group.last()) else { continue };
        let name = if first == last { format!("layer {first}") } else { format!("layers {first} to {last}") };
        let bytes = bytes_of(&report.ops, |op| op.layer.is_some_and(|l| group.contains(&l)));
        for (i, role) in [Role::Attention, Role::FeedForward].into_iter().enumerate() {
            let own: Vec<&Part> = of_layer(first).filter(|p| p.role == role).collect();
            let (label, detail) = if i == 0 {
                (name.clone(), sent(bytes))
            } else {
                (String::new(), if group.len() > 1 { format!("{} alike", group.len()) } else { String::new() })
            };
            rows.extend(row(&own, label, detail));
        }
    }
    let bytes = bytes_of(&report.ops, |op| op.layer.is_none());
    rows.extend(outside(&[Role::Head], "head").map(|row| Row { detail: sent(bytes), ..row }));
    rows
}

fn bytes_of(ops: &[OpCost], of: impl Fn(&OpCost) -> bool) -> u64 {
    ops.iter().filter(|op| of(op)).map(OpCost::total_bytes).sum()
}

fn sent(bytes: u64) -> String {
    if bytes > 0 { format!("{} sent", size(bytes)) } else { String::new() }
}

fn row(parts: &[&Part], label: String, detail: String) -> Option<Row> {
    let structure = matches!(parts.first()?.role, Role::Structure | Role::Weights);
    let lanes = LANES.map(|place| parts.iter().find(|p| p.place == place).map(|&p| p.clone()));
    Some(Row { label, detail, structure, lanes })
}
