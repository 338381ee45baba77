//! What the mask of an attention keeps, by evaluating it at small sizes.
//!
//! Exporters write one and the same mask in a dozen ways, but all of them follow from lengths, positions and public
//! inputs, so what a mask is can be computed. Rows and columns beyond the sizes of the sample are not seen: a window that
//! is wider looks like none.

use std::collections::{BTreeMap, BTreeSet};

use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::{Bindings, Diagnostic, Result, Sym};
use serde::Serialize;

use super::Attention;
use crate::graph::{Graph, InputRole, Op, Origin, Output, OutputRole, ValueId, eval};
use crate::import::recognise::Found;

/// Positions before those of the sample.
const PAST: u64 = 5;
/// Positions of the sample.
const NEW: u64 = 12;
/// Maximum number of elements of a mask that is evaluated.
const SAMPLE: usize = 1 << 22;

/// How a mask is written in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Huge negative numbers are added to scores.
    Addition,
    /// Huge negative numbers are chosen in place of scores, or 0 in place of numerators, also by a product with 0 and 1.
    Where,
    /// An operator for attention takes it as booleans or makes it.
    Operator,
}

/// What a mask keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mask {
    /// No position sees a later one.
    pub causal: bool,
    /// Number of the last positions that are seen, the position itself among them, where there is a window.
    pub window: Option<u64>,
    /// Public inputs on which it depends.
    pub given: Vec<String>,
    /// It keeps something else when all inputs keep everything.
    pub other: bool,
    /// How it is written; empty when there is none.
    pub forms: Vec<Form>,
}

/// The mask of an attention. `found` says how it was written.
pub(super) fn mask_of(graph: &Graph, a: &Attention, found: &[Found]) -> Mask {
    let Some(mask) = graph.operand(a.softmax, 1) else { return Mask::default() };
    let origin = graph.node(a.softmax).ok().map(|n| &n.origin);
    let is_here = |f: &&Found| {
        let same = |o: &Origin| (&o.value, &o.node) == (&f.origin.value, &f.origin.node);
        f.near_miss.is_none() && origin.is_some_and(same)
    };
    let patterns: Vec<&str> = found.iter().filter(is_here).map(|f| f.pattern).collect();
    let forms = patterns.iter().filter_map(|pattern| match *pattern {
        "softmax with additive mask" => Some(Form::Addition),
        "softmax with chosen mask" => Some(Form::Where),
        _ => None,
    });
    let mut forms: BTreeSet<Form> = forms.collect();
    if forms.is_empty() {
        let quotient = patterns.contains(&"softmax by quotients");
        forms.insert(if quotient { Form::Where } else { Form::Operator });
    }
    let given = graph.ancestors(mask).into_iter().filter_map(|id| match graph.op(id) {
        Some(Op::Input { name, role }) if *role != InputRole::PositionIds => Some(name.clone()),
        _ => None,
    });
    let given: BTreeSet<String> = given.collect();
    let seen = bits(graph, a, mask).map_or(Seen::Other, |bits| seen(&bits));
    Mask {
        causal: matches!(seen, Seen::Causal(_)),
        window: match seen {
            Seen::Causal(window) => window,
            _ => None,
        },
        given: given.into_iter().collect(),
        other: seen == Seen::Other,
        forms: forms.into_iter().collect(),
    }
}

/// What a mask keeps in the sample.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Everything,
    /// With the size of a window, if there is one.
    Causal(Option<u64>),
    Other,
}

/// One table of booleans for every head and row of the batch: `new` rows of `all` each.
struct Bits {
    new: usize,
    all: usize,
    kept: Vec<bool>,
}

/// A public value at the sizes of the sample, where all inputs keep everything.
fn sample(graph: &Graph, value: ValueId) -> Result<(Tensor, Bindings)> {
    let mut bindings = Bindings::new();
    for (i, info) in (0u32..).zip(&graph.dims.syms) {
        let wanted = match info.name.as_str() {
            "seq" => NEW,
            "past" => PAST,
            _ => 1,
        };
        bindings.set(Sym(i), wanted.min(info.max.unwrap_or(wanted)).max(info.min));
    }
    let past = graph.dims.find("past").and_then(|sym| bindings.get(sym)).unwrap_or(0);
    let past = i64::try_from(past).unwrap_or(i64::MAX);
    let mut cone = graph.clone();
    cone.outputs = vec![Output { name: String::new(), role: OutputRole::Other, value }];
    cone.remove_dead();
    let mut inputs = BTreeMap::new();
    for &id in &cone.inputs {
        let node = cone.node(id)?;
        let Op::Input { name, role } = &node.op else { continue };
        let shape = node.shape.iter().map(|d| d.eval_usize(&bindings)).collect::<Result<Vec<_>>>()?;
        let n = limit(ombra_ir::plain::tensor::volume(&shape)?)?;
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let data = match (role, node.dtype) {
            (InputRole::PositionIds, DType::I64) => {
                Data::I64((0..n).map(|i| past.saturating_add((i % columns) as i64)).collect())
            }
            (_, DType::I64) => Data::I64(vec![1; n]),
            (_, DType::Bool) => Data::Bool(vec![true; n]),
            (InputRole::AttentionMask, DType::F32) => Data::F32(vec![1.0; n]),
            (_, DType::F32) => Data::F32(vec![0.0; n]),
        };
        inputs.insert(name.clone(), Tensor::new(shape, data)?);
    }
    let none = |name: &str| Err(Diagnostic::internal("E0299", format!("a mask depends on the weight `{name}`")));
    let tensor = eval::evaluate(&cone, &none, &inputs)?.into_iter().next();
    Ok((tensor.ok_or_else(|| Diagnostic::internal("E0299", "a mask was not computed"))?, bindings))
}

fn limit(size: usize) -> Result<usize> {
    match size <= SAMPLE {
        true => Ok(size),
        false => Err(Diagnostic::unsupported("E0598", "a mask is too large to be evaluated")),
    }
}

/// Whether a public value is 0 in the sample.
pub(super) fn is_zero(graph: &Graph, value: ValueId) -> bool {
    let zero = |tensor: &Tensor| tensor.as_f32().is_ok_and(|v| v.iter().all(|x| *x == 0.0));
    sample(graph, value).is_ok_and(|(tensor, _)| zero(&tensor))
}

/// The mask of every row and head of the batch in the sample.
fn bits(graph: &Graph, a: &Attention, mask: ValueId) -> Result<Bits> {
    let (tensor, bindings) = sample(graph, mask)?;
    let size = |back: usize| match graph.shape(a.softmax).iter().rev().nth(back) {
        Some(dim) => dim.eval_usize(&bindings),
        None => Ok(1),
    };
    let (new, all) = (size(1)?, size(0)?);
    let values = tensor.as_bool()?;
    let have = |back: usize| tensor.shape().iter().rev().nth(back).copied().unwrap_or(1).max(1);
    let (rows, columns) = (have(1), have(0));
    let mut kept = Vec::new();
    for table in values.chunks(rows.saturating_mul(columns)) {
        limit(kept.len().saturating_add(new.saturating_mul(all)))?;
        for at in 0..new.saturating_mul(all) {
            let (row, column) = (at / all % rows, at % all % columns);
            kept.push(table.get(row * columns + column).copied().unwrap_or(false));
        }
    }
    Ok(Bits { new, all, kept })
}

fn seen(bits: &Bits) -> Seen {
    if bits.kept.iter().all(|b| *b) {
        return Seen::Everything;
    }
    let Some(past) = bits.all.checked_sub(bits.new) else { return Seen::Other };
    let is = |window: usize| {
        bits.kept.chunks(bits.new.saturating_mul(bits.all).max(1)).all(|table| {
            table.iter().enumerate().all(|(at, kept)| {
                let (row, column) = (past + at / bits.all, at % bits.all);
                *kept == (column <= row && row - column < window)
            })
        })
    };
    if is(usize::MAX) {
        return Seen::Causal(None);
    }
    // The last row sees the whole of a window.
    let width = bits.kept.iter().rev().take(bits.all).filter(|b| **b).count();
    if is(width) { Seen::Causal(u64::try_from(width).ok()) } else { Seen::Other }
}
