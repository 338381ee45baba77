//! What there is to say about an attention, as a sentence and for JSON.

use ombra_ir::plain::{Binary, Unary};
use std::fmt;

use serde::Serialize;

use super::mask::{Form, Mask, is_zero, mask_of};
use super::walk::{Way, arrangement, back, factor};
use super::{Attention, Kind, is_activation, name_of};
use crate::graph::{Graph, InputRole, Numerator, Op, OutputRole, Owner, TensorOp, ValueId};
use crate::import::recognise::{Found, rotated};
use crate::passes::approximate::TWO_QUAD_SHIFT;

/// A cache of keys or of values, by the names in the ONNX file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Continued {
    /// The input to which new ones are appended.
    pub past: Option<String>,
    /// The output that holds all of them.
    pub present: Option<String>,
}

/// The caches of an attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// Of keys.
    pub keys: Continued,
    /// Of values.
    pub values: Continued,
}

/// An attention in words and numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Number of the layer, where names say it.
    pub layer: Option<u32>,
    /// The node of the softmax.
    pub node: String,
    /// `exact`, `2relu`, `2quad`, or `l2quad` for squares with another shift.
    pub softmax: String,
    /// Query heads that have a softmax of their own.
    pub heads: usize,
    /// Heads of keys and values.
    pub key_value_heads: usize,
    /// Size of a head of queries and keys.
    pub head_width: usize,
    /// Size of a head of values.
    pub value_width: usize,
    /// Original heads whose scores are summed for one softmax; 1 where heads are not merged.
    pub merged: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Scores are `cap · tanh(score / cap)`.
    pub cap: Option<f64>,
    /// Who owns what is added to the scores beside the mask, if anything is.
    pub bias: Option<&'static str>,
    /// What the softmax runs over.
    pub mask: Mask,
    /// Numbers of every original head that are rotated by position; `None` without rotary embedding.
    pub rotary: Option<usize>,
    /// The caches; `None` when there are none.
    pub cache: Option<Cache>,
}

/// Describes an attention of `graph`. `found` is what was recognised when the graph was made: it says how masks were
/// written.
pub fn describe(graph: &Graph, a: &Attention, found: &[Found]) -> Description {
    let (queries, keys, values) = (back(graph, a.queries), back(graph, a.keys), back(graph, a.values));
    let mut scale = 1.0;
    let mut above_cap = 1.0;
    let mut cap = None;
    let mut bias = None;
    for &at in &a.chain {
        if let Some((_, k)) = factor(graph, at) {
            scale *= k;
        }
        match graph.op(at) {
            Some(Op::Tensor(TensorOp::Unary(Unary::Tanh))) => cap = Some(above_cap),
            Some(Op::Tensor(TensorOp::Binary(Binary::Add | Binary::Sub))) => {
                for other in graph.operands(at).into_iter().filter(|&o| !is_activation(graph, o)) {
                    let owner = graph.node(other).map_or(Owner::Public, |n| n.owner);
                    // What is left of a mask whose booleans were taken out is 0 there.
                    if owner != Owner::Public || !is_zero(graph, other) {
                        bias = Some(bias.map_or(owner, |all: Owner| all.join(owner)));
                    }
                }
            }
            _ => above_cap *= factor(graph, at).map_or(1.0, |(_, k)| k),
        }
    }
    for operand in [a.queries, a.keys] {
        let way = arrangement(graph, operand);
        // What is rotated may be scaled in turn.
        let inner = way.last().and_then(|&v| rotated(graph, v)).map(|r| arrangement(graph, r.x));
        let factors = way.into_iter().chain(inner.unwrap_or_default()).filter_map(|v| factor(graph, v));
        scale *= factors.map(|(_, k)| k).product::<f64>();
    }
    let last = |v: ValueId| graph.shape(v).last().and_then(|d| usize::try_from(d.as_constant()?).ok());
    let turned = queries.rotations.iter().filter_map(|&v| last(v)).max();
    let cache = Cache {
        keys: continued(graph, &keys, |role| matches!(role, OutputRole::PresentKey { .. })),
        values: continued(graph, &values, |role| matches!(role, OutputRole::PresentValue { .. })),
    };
    let empty = |c: &Continued| c.past.is_none() && c.present.is_none();
    Description {
        layer: a.layer,
        node: name_of(graph, a.softmax).into(),
        softmax: softmax_name(a.kind).into(),
        heads: a.heads,
        key_value_heads: a.key_heads,
        head_width: a.key_size,
        value_width: a.value_size,
        merged: merged(graph, a, &queries),
        // Six digits, as many as say something.
        scale: libm::round(scale * 1e6) / 1e6,
        cap,
        bias: bias.map(Owner::name),
        mask: mask_of(graph, a, found),
        rotary: turned.filter(|_| !keys.rotations.is_empty()),
        cache: Some(cache).filter(|c| !(empty(&c.keys) && empty(&c.values))),
    }
}

fn softmax_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Exact => "exact",
        Kind::Ratio { numerator: Numerator::Relu, .. } => "2relu",
        Kind::Ratio { numerator: Numerator::Square { shift }, eps } if shift == TWO_QUAD_SHIFT && eps == 0.0 => "2quad",
        Kind::Ratio { numerator: Numerator::Square { .. }, .. } => "l2quad",
    }
}

/// How many original heads one softmax has: on the way of the queries more heads stood apart, with fewer numbers each.
fn merged(graph: &Graph, a: &Attention, queries: &Way) -> usize {
    let new = graph.shape(a.scores).iter().rev().nth(1);
    let before = queries.passed.iter().filter_map(|&v| match graph.shape(v) {
        [_, heads, positions, size] if Some(positions) == new => {
            let heads = usize::try_from(heads.as_constant()?).ok()?;
            let size = usize::try_from(size.as_constant()?).ok()?;
            (heads.checked_mul(size)? == a.heads.checked_mul(a.key_size)?).then_some(heads)
        }
        _ => None,
    });
    before.max().filter(|most| most % a.heads == 0).map_or(1, |most| most / a.heads)
}

fn continued(graph: &Graph, way: &Way, is_present: impl Fn(&OutputRole) -> bool) -> Continued {
    let name = |v: &ValueId| match graph.op(*v) {
        Some(Op::Input { name, .. }) => Some(name.clone()),
        _ => None,
    };
    let by_role = |v: &&ValueId| {
        let role = InputRole::Other;
        matches!(graph.op(**v), Some(Op::Input { role: r, .. }) if *r != role)
    };
    let past = way.appended.iter().find(by_role).or(way.appended.first()).and_then(name);
    let same = |v: ValueId| arrangement(graph, v).last().is_some_and(|source| way.passed.contains(source));
    let present = graph.outputs.iter().find(|o| is_present(&o.role) && same(o.value));
    Continued { past, present: present.map(|o| o.name.clone()) }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = self.layer.map_or("a layer without a number".to_owned(), |l| format!("layer {l}"));
        let kind = match self.key_value_heads {
            k if k == self.heads => "multi-head attention",
            1 => "multi-query attention",
            _ => "grouped-query attention",
        };
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(f, "{layer}: {kind}, {} query head{}", self.heads, plural(self.heads))?;
        if self.key_value_heads != self.heads {
            write!(f, " over {} key head{}", self.key_value_heads, plural(self.key_value_heads))?;
        }
        write!(f, ", head width {}", self.head_width)?;
        if self.value_width != self.head_width {
            write!(f, " (values {})", self.value_width)?;
        }
        if self.merged > 1 {
            write!(f, ", each merged of {}", self.merged)?;
        }
        if self.softmax != "exact" {
            write!(f, ", {} in place of softmax", self.softmax)?;
        }
        write!(f, ", {}", self.mask)?;
        match &self.cache {
            Some(Cache { keys: Continued { past: Some(past), .. }, .. }) => write!(f, ", cache {past}")?,
            Some(Cache { keys: Continued { present: Some(present), .. }, .. }) => {
                write!(f, ", cache written to {present}")?
            }
            _ => {}
        }
        if let Some(turned) = self.rotary {
            f.write_str(", rotary")?;
            if turned.saturating_mul(self.merged) != self.head_width {
                write!(f, " on {turned} numbers")?;
            }
        }
        if let Some(cap) = self.cap {
            write!(f, ", scores capped at {cap}")?;
        }
        if let Some(owner) = self.bias {
            write!(f, ", {owner} bias")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.forms.is_empty() {
            return f.write_str("no mask");
        }
        match self.window {
            Some(window) => write!(f, "causal mask of the last {window}")?,
            None if self.causal => f.write_str("causal mask")?,
            None if self.other => f.write_str("mask of another form")?,
            None => f.write_str("mask")?,
        }
        match self.given.as_slice() {
            [] if !self.causal && !self.other => f.write_str(" that keeps everything")?,
            [] => {}
            given => write!(f, " with {}", given.join(" and "))?,
        }
        let forms = self.forms.iter().map(|form| match form {
            Form::Addition => "addition",
            Form::Where => "where",
            Form::Operator => "operator",
        });
        write!(f, " by {}", forms.collect::<Vec<_>>().join(" and "))
    }
}
