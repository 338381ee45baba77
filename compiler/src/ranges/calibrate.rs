//! Ranges on calibration inputs, for values that nothing proves a range of.
//!
//! The graph is evaluated in single precision on given inputs, or on token sequences drawn by a fixed generator. Bounds
//! from measurement are assumptions: they get a margin and are listed in the plan.

use crate::expand::FINE;
use crate::graph::eval::{Weights, visit_each};
use crate::graph::{Graph, InputRole, Op, Owner, TensorOp, ValueId, ratio};
use crate::ranges::bounds::MARGIN;
use crate::self_test::rows::{longest, rows_of_tokens};
use ombra_ir::plain::{Binary, DType, Data, Tensor, Unary};
use ombra_ir::{Bindings, Diagnostic, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What calibration saw, by value.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Minimum and maximum value.
    pub ends: BTreeMap<ValueId, (f64, f64)>,
    /// Maximum 2-norm of rows along the last axis, which are taken to be as long as they may be.
    pub lengths: BTreeMap<ValueId, f64>,
    /// Of what must not be zero, such as a divisor: the least size.
    pub least: BTreeMap<ValueId, f64>,
    /// For a softmax by quotients, its divisors.
    pub rows: BTreeMap<ValueId, Rows>,
}

impl Seen {
    /// Widens what is known of divisors by those of short rows in `other`. Where the longest rows' ends do not fit beside
    /// the short ones', those of short rows are left to the guard.
    pub fn see_short_rows(&mut self, graph: &Graph, other: &Seen) {
        for (id, short) in &other.rows {
            let Some(rows) = self.rows.get_mut(id) else { continue };
            let all =
                Rows { low: rows.low.min(short.low), high: rows.high.max(short.high), log: rows.log.and(short.log) };
            let columns = graph.shape(*id).last().and_then(|d| graph.dims.upper(d)).map_or(1.0, |n| n.max(1) as f64);
            if libm::log2(all.high * columns / all.low) + 2.0 * f64::from(MARGIN) < f64::from(FINE) {
                *rows = all;
            }
        }
    }
}

/// Count, sum and sum of squares of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Number of elements.
    pub count: f64,
    /// Their sum.
    pub sum: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl Moments {
    /// Adds one element.
    pub fn add(&mut self, x: f64) {
        self.count += 1.0;
        self.sum += x;
        self.squares += x * x;
    }

    /// Both samples together.
    pub fn and(self, other: Moments) -> Moments {
        Moments { count: self.count + other.count, sum: self.sum + other.sum, squares: self.squares + other.squares }
    }

    /// Mean of the sample; 0 for an empty one.
    pub fn mean(&self) -> f64 {
        if self.count > 0.0 { self.sum / self.count } else { 0.0 }
    }

    /// Standard deviation of the sample; 0 for an empty one.
    pub fn deviation(&self) -> f64 {
        if self.count > 0.0 {
            libm::sqrt((self.squares / self.count - self.mean() * self.mean()).max(0.0))
        } else {
            0.0
        }
    }
}

/// What was seen of the divisor of a softmax by quotients, of rows with an entry that is not 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rows {
    /// Least.
    pub low: f64,
    /// Maximum, over the number of its row's entries where they are not few; for positive parts of scores the root of the
    /// mean square of the scores, which is no less.
    pub high: f64,
    /// Spread of the natural logarithm of what `low` is the least of.
    pub log: Moments,
}

impl Rows {
    /// Adds what one row has at its low and its high end to what `rows` has for `id`.
    fn see(rows: &mut BTreeMap<ValueId, Rows>, id: ValueId, low: f64, high: f64) {
        let new = Rows { low, high, log: Moments::default() };
        let seen = rows.entry(id).or_insert(new);
        (seen.low, seen.high) = (seen.low.min(low), seen.high.max(high));
        seen.log.add(libm::log(low.max(f64::MIN_POSITIVE)));
    }
}

/// The operand that must not be zero.
fn divisor(op: &Op) -> Option<u32> {
    match op {
        Op::Tensor(TensorOp::Binary(Binary::Div)) => Some(1),
        Op::Tensor(TensorOp::Unary(Unary::Reciprocal | Unary::Log)) => Some(0),
        Op::Pow(p) if *p < 0.0 => Some(0),
        _ => None,
    }
}

/// Values that must not be zero.
pub(crate) fn divisors(graph: &Graph) -> BTreeSet<ValueId> {
    graph.iter().filter_map(|(id, node)| graph.operand(id, divisor(&node.op)?)).collect()
}

/// Inputs of one evaluation, by name.
pub type Inputs = BTreeMap<String, Tensor>;

/// Measures every value on every set of inputs.
///
/// # Errors
/// Inputs that the model cannot take.
pub fn calibrate(graph: &Graph, weights: &Weights, sets: &[Inputs]) -> Result<Seen> {
    let mut seen = Seen::default();
    let quotients: Vec<ValueId> =
        graph.iter().filter(|(_, n)| matches!(n.op, Op::RatioSoftmax { .. })).map(|(id, _)| id).collect();
    let divisors = divisors(graph);
    let scores_and_masks: BTreeSet<ValueId> = quotients.iter().flat_map(|&id| graph.operands(id)).collect();
    let mut held: Vec<BTreeMap<ValueId, Tensor>> = vec![BTreeMap::new(); sets.len()];
    let sets: Vec<&Inputs> = sets.iter().collect();
    visit_each(graph, weights, &sets, &mut |set, id, tensor| {
        if let Some(held) = held.get_mut(set) {
            if scores_and_masks.contains(&id) {
                held.insert(id, tensor.clone());
            }
            if quotients.contains(&id) {
                see_divisors(graph, id, held, &mut seen.rows);
            }
        }
        let Data::F32(values) = tensor.data() else { return };
        let finite = || values.iter().filter(|v| v.is_finite()).map(|&v| f64::from(v));
        let ends = finite().map(|v| (v, v)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
        if let Some((low, high)) = ends {
            let known = seen.ends.entry(id).or_insert((low, high));
            *known = (known.0.min(low), known.1.max(high));
            let length = seen.lengths.entry(id).or_insert(0.0);
            *length = longest_row(graph, id, tensor.shape(), values).max(*length);
        }
        if divisors.contains(&id) {
            let least = seen.least.entry(id).or_insert(f64::INFINITY);
            *least = finite().map(f64::abs).fold(*least, f64::min);
        }
    })?;
    Ok(seen)
}

/// The maximum 2-norm of rows along the last axis, as if all rows were as long as the graph's longest.
fn longest_row(graph: &Graph, id: ValueId, shape: &[usize], values: &[f32]) -> f64 {
    let n = shape.last().copied().unwrap_or(1).max(1);
    let most = graph.shape(id).last().and_then(|d| graph.dims.upper(d)).map_or(n as f64, |most| most as f64);
    let squares = |row: &[f32]| {
        let finite = row.iter().filter(|x| x.is_finite());
        finite.map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    };
    libm::sqrt(values.chunks(n).map(squares).fold(0.0, f64::max) * (most / n as f64).max(1.0))
}

/// Widens what is known of the divisors of `id` by those of its operands among `held`.
fn see_divisors(graph: &Graph, id: ValueId, held: &BTreeMap<ValueId, Tensor>, rows: &mut BTreeMap<ValueId, Rows>) {
    let Some(Op::RatioSoftmax { axis, numerator, eps }) = graph.op(id) else { return };
    let operands: Vec<Option<&Tensor>> = graph.operands(id).iter().map(|o| held.get(o)).collect();
    let Some(Some(x)) = operands.first() else { return };
    let mask = operands.get(1).copied().flatten();
    // It was evaluated, so its operands fit.
    for ratio::Divisor { divisor, mean } in ratio::divisors(x, mask, *axis, *numerator, *eps).unwrap_or_default() {
        if divisor > f64::from(*eps) && divisor.is_finite() && mean.is_finite() {
            Rows::see(rows, id, divisor, mean);
        }
    }
}

/// Inputs for a causal language model drawn by a fixed generator: a prompt of every length, without padding or cache.
/// Symbols other than the sequence are 1.
///
/// # Errors
/// The model has no token ids, or its vocabulary is unknown.
pub fn drawn_inputs(graph: &Graph, lengths: &[u64]) -> Result<Vec<Inputs>> {
    let vocabulary = vocabulary(graph)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || xorshift(&mut state);
    lengths
        .iter()
        .map(|&len| {
            let len = len.min(positions(graph).unwrap_or(len));
            let mut bindings = Bindings::new();
            for (i, info) in graph.dims.syms.iter().enumerate() {
                let value = match info.name.as_str() {
                    "seq" => len.min(info.max.unwrap_or(len)).max(info.min),
                    "past" => 0,
                    _ => 1.max(info.min),
                };
                bindings.set(ombra_ir::Sym(i as u32), value);
            }
            let mut inputs = Inputs::new();
            for &id in &graph.inputs {
                let node = graph.node(id)?;
                let Op::Input { name, role } = &node.op else { continue };
                let shape = node.shape.iter().map(|d| d.eval_usize(&bindings)).collect::<Result<Vec<_>>>()?;
                let n: usize = shape.iter().product();
                let tensor = match (role, node.dtype) {
                    (InputRole::TokenIds, _) => {
                        Tensor::i64(&shape, (0..n).map(|_| (next() % vocabulary) as i64).collect())?
                    }
                    (InputRole::PositionIds, _) => {
                        let columns = shape.last().copied().unwrap_or(1).max(1);
                        Tensor::i64(&shape, (0..n).map(|i| (i % columns) as i64).collect())?
                    }
                    (_, DType::I64) => Tensor::i64(&shape, vec![1; n])?,
                    (_, DType::Bool) => Tensor::bool(&shape, vec![true; n])?,
                    (InputRole::AttentionMask, DType::F32) => Tensor::f32(&shape, vec![1.0; n])?,
                    (_, DType::F32) => {
                        let unit = |v: u64| (v >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                        Tensor::f32(&shape, (0..n).map(|_| unit(next())).collect())?
                    }
                };
                inputs.insert(name.clone(), tensor);
            }
            Ok(inputs)
        })
        .collect()
}

/// `given` with what is missing: masks that keep everything, positions that follow the cache, caches without entries or
/// of zeros, where another input says how long they are.
///
/// # Errors
/// `E0531` for a name that is no input of the model, and for a missing input that has no default.
pub fn complete_inputs(graph: &Graph, given: &Inputs) -> Result<Inputs> {
    let names: Vec<&str> = graph.inputs.iter().filter_map(|&id| input_name(graph, id)).collect();
    if let Some(unknown) = given.keys().find(|name| !names.contains(&name.as_str())) {
        let message = format!("calibration gives `{}`, which is no input of the model", unknown.escape_debug());
        return Err(Diagnostic::input("E0531", message).note(format!("its inputs are {}", names.join(", "))));
    }
    let mut bindings = Bindings::new();
    for (i, info) in graph.dims.syms.iter().enumerate() {
        let unknown = if info.name == "past" { 0 } else { 1.max(info.min) };
        bindings.set(ombra_ir::Sym(i as u32), unknown);
    }
    for &id in &graph.inputs {
        let Some(tensor) = input_name(graph, id).and_then(|name| given.get(name)) else { continue };
        for (dim, size) in graph.shape(id).iter().zip(tensor.shape()) {
            if let Some(sym) = dim.as_symbol() {
                bindings.set(sym, *size as u64);
            }
        }
    }
    let past = graph.dims.find("past").and_then(|sym| bindings.get(sym)).unwrap_or(0);
    let past = i64::try_from(past).unwrap_or(i64::MAX);
    let mut inputs = given.clone();
    for &id in &graph.inputs {
        let node = graph.node(id)?;
        let Op::Input { name, role } = &node.op else { continue };
        if given.contains_key(name) || graph.users(id).is_empty() && !graph.is_output(id) {
            continue;
        }
        let shape = node.shape.iter().map(|d| d.eval_usize(&bindings)).collect::<Result<Vec<_>>>()?;
        let n = ombra_ir::plain::tensor::volume(&shape)?;
        let tensor = match (role, node.dtype) {
            (InputRole::AttentionMask, DType::Bool) => Tensor::bool(&shape, vec![true; n])?,
            (InputRole::AttentionMask, DType::I64) => Tensor::i64(&shape, vec![1; n])?,
            (InputRole::AttentionMask, DType::F32) => Tensor::f32(&shape, vec![1.0; n])?,
            (InputRole::PositionIds, DType::I64) => {
                let columns = shape.last().copied().unwrap_or(1).max(1);
                Tensor::i64(&shape, (0..n).map(|i| past.saturating_add((i % columns) as i64)).collect())?
            }
            (InputRole::PastKey { .. } | InputRole::PastValue { .. }, DType::F32) => Tensor::f32(&shape, vec![0.0; n])?,
            _ => {
                return Err(Diagnostic::input("E0531", format!("calibration does not give input `{name}`"))
                    .note("expected all inputs but masks, positions and caches"));
            }
        };
        inputs.insert(name.clone(), tensor);
    }
    Ok(inputs)
}

/// Inputs for rows of token ids, without padding; rows that are longer than the model takes are cut into several.
///
/// # Errors
/// `E0532` for a model that takes no tokens, and for an id that it does not have.
pub fn token_rows(graph: &Graph, rows: &[Vec<i64>]) -> Result<Vec<Inputs>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let no_tokens = |_| {
        Diagnostic::input("E0532", "the model takes no token ids, so text says nothing of its values")
            .note("give calibration inputs with --calibrate")
    };
    let vocabulary = vocabulary(graph).map_err(no_tokens)?;
    let outside = |id: &&i64| u64::try_from(**id).map_or(true, |id| id >= vocabulary);
    if let Some(id) = rows.iter().flatten().find(outside) {
        return Err(Diagnostic::input("E0532", format!("the text has token {id}, which the model does not have"))
            .note(format!("expected 0 to {}", vocabulary - 1))
            .note("give the model's own tokenizer with --tokenizer"));
    }
    let most = longest(graph).max(1);
    let rows: Vec<Vec<i64>> = rows.iter().flat_map(|row| row.chunks(most).map(<[i64]>::to_vec)).collect();
    Ok(rows_of_tokens(graph, graph, &rows)?.into_iter().map(|row| row.inputs).collect())
}

fn input_name(graph: &Graph, id: ValueId) -> Option<&str> {
    match graph.op(id)? {
        Op::Input { name, .. } => Some(name),
        _ => None,
    }
}

/// The next number of a fixed generator, and its next state (Marsaglia, "Xorshift RNGs", 2003; 64 bits: 13, 7, 17).
/// Inputs and weights that stand for others are drawn from it, so that a plan is the same every time.
pub(crate) fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Rows of the smallest table that positions look up: there are no more positions than that.
pub(crate) fn positions(graph: &Graph) -> Option<u64> {
    let looks_up = |id: ValueId| {
        let (table, index) = (graph.operand(id, 0)?, graph.operand(id, 1)?);
        let of_tokens = graph.ancestors(index).into_iter().chain([index]).any(|a| {
            matches!(graph.op(a), Some(Op::Input { role: InputRole::TokenIds, .. }))
                && graph.node(index).is_ok_and(|n| n.owner != Owner::Public)
        });
        let by_position = !of_tokens && graph.shape(index).iter().any(|d| d.as_constant().is_none());
        let rows = graph.shape(table).first()?.as_constant().filter(|_| by_position)?;
        u64::try_from(rows).ok().filter(|&rows| rows > 0)
    };
    graph
        .iter()
        .filter(|(_, n)| matches!(n.op, Op::Tensor(TensorOp::Gather { axis: 0 })))
        .filter_map(|(id, _)| looks_up(id))
        .min()
}

/// Rows of the table that token ids look up, as they are or in another shape.
pub(crate) fn vocabulary(graph: &Graph) -> Result<u64> {
    let ids = graph.inputs.iter().copied();
    let mut ids: Vec<ValueId> =
        ids.filter(|&id| matches!(graph.op(id), Some(Op::Input { role: InputRole::TokenIds, .. }))).collect();
    while let Some(id) = ids.pop() {
        for user in graph.users(id) {
            if matches!(graph.op(user), Some(Op::Tensor(TensorOp::Reshape { .. }))) {
                ids.push(user);
            }
            if let (Some(Op::Tensor(TensorOp::Gather { axis: 0 })), Some(table)) =
                (graph.op(user), graph.operand(user, 0))
                && let Some(rows) = graph.shape(table).first().and_then(|d| d.as_constant())
                && rows > 0
            {
                return Ok(rows as u64);
            }
        }
    }
    Err(Diagnostic::input("E0530", "the model's vocabulary is unknown, so no calibration inputs can be drawn")
        .note("give calibration inputs with --calibrate"))
}
