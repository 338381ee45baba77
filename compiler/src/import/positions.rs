//! How far a model's tables of positions reach: the maximum index that lengths allow, and the lengths that tables allow.

use std::collections::BTreeMap;

use ombra_ir::plain::{Binary, DType, Data};
use ombra_ir::{Diagnostic, Dim, Dims, Result};

use super::recognise::values::possible;
use super::{Context, Options, Value};
use crate::graph::{Graph, InputRole, Op, TensorOp, ValueId};

/// Maximum number of new or cached tokens where nobody gives one and no table allows less.
pub const DEFAULT_LENGTH: u64 = 2048;
/// Fewer tokens than this are no use.
const USEFUL: u64 = 16;
/// Most nodes that one question looks at.
const STEPS: usize = 200;
/// Most sizes of which one is the maximum.
const MOST: usize = 4;

/// Remembers that `index`, which counts entries of an axis of `data`, stays within it, where the index follows from
/// lengths.
///
/// # Errors
/// Lengths that are known and too large.
pub fn limit_index(cx: &mut Context, data: &Value, axis: usize, index: &Value) -> Result<()> {
    let Some(rows) = cx.shape(data)?.get(axis).and_then(Dim::as_constant) else { return Ok(()) };
    let past = cx.role_sizes.get("past").cloned().unwrap_or_default();
    let greatest = match index {
        Value::Node(id) => Walk { graph: &cx.graph, past, left: STEPS }.greatest(*id),
        Value::Sizes { dims, .. } if dims.len() <= MOST => Some(dims.clone()),
        Value::Sizes { .. } | Value::Const { .. } => None,
    };
    for last in greatest.unwrap_or_default() {
        let count = last.add(&Dim::constant(1))?;
        match count.as_constant() {
            Some(n) if n > rows => {
                return Err(Diagnostic::input("E0255", format!("positions up to {last} are looked up", last = n - 1))
                    .note(format!("expected at most {}: the table has {rows} entries", rows - 1))
                    .note("bind smaller sizes with --dim"));
            }
            Some(_) => {}
            None => cx.graph.limit(count, rows),
        }
    }
    Ok(())
}

struct Walk<'a> {
    graph: &'a Graph,
    past: Dim,
    left: usize,
}

impl Walk<'_> {
    /// Sizes of which one is the maximum element of `id`, or above it; `None` when that is not known.
    fn greatest(&mut self, id: ValueId) -> Option<Vec<Dim>> {
        self.left = self.left.checked_sub(1)?;
        let graph = self.graph;
        let one = |dim: Dim| Some(vec![dim]);
        let node = graph.node(id).ok()?;
        let op = match &node.op {
            Op::Tensor(TensorOp::Constant(tensor)) => match tensor.data() {
                Data::I64(values) => return one(Dim::constant(values.iter().copied().max()?)),
                Data::F32(_) | Data::Bool(_) => return None,
            },
            // Positions of new tokens follow the cache, by their meaning.
            Op::Input { role: InputRole::PositionIds, .. } if node.dtype == DType::I64 => {
                return one(self.past.add(node.shape.last()?).ok()?.sub(&Dim::constant(1)).ok()?);
            }
            // The client counts positions from its tokens with operators of the same meaning.
            op => op.tensor()?,
        };
        let operands = graph.operands(id);
        match (op, operands.as_slice()) {
            (TensorOp::Iota { start, len, step }, _) if *step >= 0 => {
                let last = len.sub(&Dim::constant(1)).ok()?.mul(&Dim::constant(*step)).ok()?;
                one(start.add(&last).ok()?)
            }
            (TensorOp::Sizes { values, .. }, _) if values.len() <= MOST => Some(values.clone()),
            (
                TensorOp::Identity
                | TensorOp::Reshape { .. }
                | TensorOp::Expand { .. }
                | TensorOp::Transpose { .. }
                | TensorOp::Slice { .. }
                | TensorOp::Tile { .. },
                [x],
            ) => self.greatest(*x),
            (TensorOp::Gather { .. } | TensorOp::GatherNd { .. } | TensorOp::GatherElements { .. }, [x, _]) => {
                self.greatest(*x)
            }
            (TensorOp::Cast { .. }, [x]) if self.is_integer(id) && self.is_integer(*x) => self.greatest(*x),
            (TensorOp::Cast { .. }, _) => {
                let high = possible(graph, id)?.high();
                (self.is_integer(id) && high.abs() < 1e9).then(|| vec![Dim::constant(high as i64)])
            }
            (TensorOp::Where, [_, a, b]) | (TensorOp::Binary(Binary::Max), [a, b]) => {
                let mut all = self.greatest(*a)?;
                all.extend(self.greatest(*b)?);
                kept(all)
            }
            (TensorOp::Binary(Binary::Min), [a, b]) => match (self.greatest(*a), self.greatest(*b)) {
                (Some(a), Some(b)) => {
                    let known = |list: &[Dim]| list.iter().all(|d| d.as_constant().is_some());
                    Some(if known(&b) { b } else { a })
                }
                (found, None) | (None, found) => found,
            },
            (TensorOp::Binary(Binary::Add), [a, b]) => {
                let (a, b) = (self.greatest(*a)?, self.greatest(*b)?);
                let sums = a.iter().flat_map(|a| b.iter().map(|b| a.add(b).ok()));
                kept(sums.collect::<Option<Vec<_>>>()?)
            }
            (TensorOp::Binary(Binary::Sub), [a, b]) => {
                let low = possible(graph, *b)?.low();
                let less = (low.abs() < 1e9).then(|| Dim::constant(low as i64))?;
                self.greatest(*a)?.iter().map(|d| d.sub(&less).ok()).collect()
            }
            // Times 0 or 1.
            (TensorOp::Binary(Binary::Mul), [a, b]) => {
                let is_bit = |v: ValueId| possible(graph, v).is_some_and(|v| v.all(|x| x == 0.0 || x == 1.0));
                let x = if is_bit(*b) { *a } else { is_bit(*a).then_some(*b)? };
                let mut all = self.greatest(x)?;
                all.push(Dim::constant(0));
                kept(all)
            }
            // Running sums of 0 and 1.
            (TensorOp::CumSum { axis, .. }, [x]) => {
                let is_bit = possible(graph, *x).is_some_and(|v| v.low() >= 0.0 && v.high() <= 1.0);
                is_bit.then(|| graph.shape(*x).get(*axis).cloned().map(|d| vec![d]))?
            }
            _ => None,
        }
    }

    fn is_integer(&self, id: ValueId) -> bool {
        self.graph.node(id).is_ok_and(|n| n.dtype == DType::I64)
    }
}

/// The sizes without repetition, unless there are many.
fn kept(mut all: Vec<Dim>) -> Option<Vec<Dim>> {
    all.sort();
    all.dedup();
    (all.len() <= MOST).then_some(all)
}

/// Gives sizes the maxima that the limits of `graph` leave them, each with the others at their least.
///
/// # Errors
/// A maximum that the user gave and that is above.
pub fn bound_sizes(graph: &mut Graph, options: &Options, names: &BTreeMap<String, Dim>) -> Result<()> {
    let limits = graph.limits.clone();
    for (dim, most) in limits {
        for sym in dim.terms().iter().filter(|t| t.coefficient > 0 && t.symbols.len() == 1).map(|t| t.symbols.clone()) {
            let Some(sym) = sym.first().copied() else { continue };
            let Some(allowed) = largest(&graph.dims, &dim, sym, most) else { continue };
            let Some(info) = graph.dims.info_mut(sym) else { continue };
            let is_it = |name: &String| *name == info.name || names.get(name) == Some(&Dim::from(sym));
            match options.max.iter().find(|(name, _)| is_it(name)) {
                Some((name, given)) if *given > allowed => {
                    let text = format!("a maximum of {given} for `{name}` is more than the model's tables allow");
                    return Err(Diagnostic::input("E0255", text).note(format!("expected at most {allowed}")));
                }
                Some(_) => {}
                None => info.max = Some(allowed.min(info.max.unwrap_or(DEFAULT_LENGTH))),
            }
        }
    }
    Ok(())
}

/// Whether `dim` at most `most` leaves every symbol of it a useful length.
pub fn leaves_room(dims: &Dims, dim: &Dim, most: i64) -> bool {
    let mut symbols = dim.terms().iter().flat_map(|t| t.symbols.iter());
    symbols.all(|sym| largest(dims, dim, *sym, most).is_some_and(|n| n >= USEFUL))
}

/// The largest value of `sym` for which `dim` is at most `most`, when every other symbol has its least value and none
/// is taken away.
fn largest(dims: &Dims, dim: &Dim, sym: ombra_ir::Sym, most: i64) -> Option<u64> {
    let mut rest = i128::from(dim.constant_term());
    let mut factor = 0i128;
    for term in dim.terms() {
        match term.symbols.as_slice() {
            [s] if *s == sym => factor = i128::from(term.coefficient),
            symbols if term.coefficient > 0 => {
                let least = symbols.iter().map(|s| i128::from(dims.info(*s).map_or(0, |i| i.min)));
                rest = rest.checked_add(least.fold(i128::from(term.coefficient), i128::saturating_mul))?;
            }
            _ => return None,
        }
    }
    let left = i128::from(most).checked_sub(rest)?;
    u64::try_from(left.checked_div(factor).filter(|_| factor > 0)?).ok()
}
