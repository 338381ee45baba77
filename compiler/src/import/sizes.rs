//! Operators on small integer tensors whose elements are symbolic sizes: the arithmetic of shapes.
//!
//! Operators that move elements run on element numbers; those that compute run on polynomials.

use ombra_ir::plain::{self, Binary, Data, Op, Reduce, Tensor, Unary};
use ombra_ir::{Bindings, Dim, Dims};

use super::Value;
use super::positions::leaves_room;
use crate::graph::Graph;

/// Most elements of a tensor of sizes.
const LIMIT: usize = 4096;

/// The result of `op`, when the operands are sizes or constants and it can be said symbolically. The graph remembers
/// what that takes sizes to be at most.
pub fn eval(op: &Op, operands: &[Value], graph: &mut Graph) -> Option<Value> {
    match op {
        Op::Identity
        | Op::Reshape { .. }
        | Op::Expand { .. }
        | Op::Transpose { .. }
        | Op::Slice { .. }
        | Op::Tile { .. } => moved(op, operands, 1),
        Op::Cast { to: plain::DType::I64 } => moved(&Op::Identity, operands, 1),
        Op::Concat { .. } => moved(op, operands, operands.len()),
        Op::Gather { .. } | Op::GatherNd { .. } | Op::GatherElements { .. } => moved(op, operands, 1),
        Op::Where => chosen(operands),
        Op::Binary(b) => binary(*b, operands, graph),
        Op::Unary(Unary::Neg) => {
            let (shape, values) = as_sizes(operands.first()?)?;
            let zero = Dim::constant(0);
            finish(shape, values.iter().map(|v| zero.sub(v).ok()).collect::<Option<_>>()?)
        }
        Op::Unary(Unary::Abs) => {
            let (shape, values) = as_sizes(operands.first()?)?;
            values.iter().all(|v| graph.dims.lower(v).is_some_and(|l| l >= 0)).then(|| finish(shape, values))?
        }
        Op::Reduce { kind: kind @ (Reduce::Sum | Reduce::Prod), keepdims, .. } => {
            let (shape, values) = as_sizes(operands.first()?)?;
            if shape.len() != 1 {
                return None;
            }
            let all = match kind {
                Reduce::Sum => values.iter().try_fold(Dim::constant(0), |s, v| s.add(v)).ok()?,
                _ => values.iter().try_fold(Dim::constant(1), |s, v| s.mul(v)).ok()?,
            };
            finish(if *keepdims { vec![1] } else { vec![] }, vec![all])
        }
        _ => None,
    }
}

/// The shape and elements of an integer value.
pub fn as_sizes(value: &Value) -> Option<(Vec<usize>, Vec<Dim>)> {
    match value {
        Value::Sizes { shape, dims } => Some((shape.clone(), dims.clone())),
        Value::Const { tensor, .. } if tensor.len() <= LIMIT => {
            let values = tensor.as_i64().ok()?.iter().map(|v| Dim::constant(*v)).collect();
            Some((tensor.shape().to_vec(), values))
        }
        _ => None,
    }
}

/// Sizes, or a constant when no symbol occurs.
pub fn finish(shape: Vec<usize>, dims: Vec<Dim>) -> Option<Value> {
    match dims.iter().map(Dim::as_constant).collect::<Option<Vec<_>>>() {
        Some(values) => Some(Value::constant(Tensor::new(shape, Data::I64(values)).ok()?)),
        None => Some(Value::Sizes { shape, dims }),
    }
}

/// Runs `op` on the numbers of the elements of the first `count` operands; the others must be constants.
fn moved(op: &Op, operands: &[Value], count: usize) -> Option<Value> {
    let mut arena = Vec::new();
    let mut tensors = Vec::with_capacity(operands.len());
    for (i, operand) in operands.iter().enumerate() {
        if i >= count {
            tensors.push(operand.as_const()?.clone());
            continue;
        }
        let (shape, values) = as_sizes(operand)?;
        let first = i64::try_from(arena.len()).ok()?;
        let numbers = (first..).take(values.len()).collect();
        arena.extend(values);
        tensors.push(Tensor::i64(&shape, numbers).ok()?);
    }
    let result = plain::eval(op, &tensors.iter().collect::<Vec<_>>(), &Bindings::new(), LIMIT).ok()?;
    let pick = |n: &i64| arena.get(usize::try_from(*n).ok()?).cloned();
    let values = result.as_i64().ok()?.iter().map(pick).collect::<Option<_>>()?;
    finish(result.shape().to_vec(), values)
}

fn chosen(operands: &[Value]) -> Option<Value> {
    let [condition, a, b] = operands else { return None };
    let condition = condition.as_const()?;
    let ((a_shape, mut arena), (b_shape, b)) = (as_sizes(a)?, as_sizes(b)?);
    let numbers = |from: usize, n: usize| (i64::try_from(from).unwrap_or(0)..).take(n).collect();
    let left = Tensor::i64(&a_shape, numbers(0, arena.len())).ok()?;
    let right = Tensor::i64(&b_shape, numbers(arena.len(), b.len())).ok()?;
    arena.extend(b);
    let result = plain::eval(&Op::Where, &[condition, &left, &right], &Bindings::new(), LIMIT).ok()?;
    let pick = |n: &i64| arena.get(usize::try_from(*n).ok()?).cloned();
    finish(result.shape().to_vec(), result.as_i64().ok()?.iter().map(pick).collect::<Option<_>>()?)
}

fn binary(op: Binary, operands: &[Value], graph: &mut Graph) -> Option<Value> {
    let [a, b] = operands else { return None };
    let (a_shape, b_shape) = (as_sizes(a)?.0, as_sizes(b)?.0);
    let as_dims = |s: &[usize]| s.iter().map(|d| Dim::from_usize(*d).ok()).collect::<Option<Vec<_>>>();
    let shape = plain::infer::broadcast(op.name(), &as_dims(&a_shape)?, &as_dims(&b_shape)?).ok()?;
    let expand = Op::Expand { shape };
    let (shape, a) = as_sizes(&moved(&expand, std::slice::from_ref(a), 1)?)?;
    let (_, b) = as_sizes(&moved(&expand, std::slice::from_ref(b), 1)?)?;
    let pairs = a.iter().zip(&b);
    if op.is_comparison() {
        let decided = pairs.map(|(x, y)| compare(op, x, y, &graph.dims)).collect::<Option<Vec<_>>>()?;
        return Some(Value::constant(Tensor::bool(&shape, decided).ok()?));
    }
    let values = pairs.map(|(x, y)| compute(op, x, y, graph)).collect::<Option<_>>()?;
    finish(shape, values)
}

fn compute(op: Binary, x: &Dim, y: &Dim, graph: &mut Graph) -> Option<Dim> {
    match op {
        Binary::Add => x.add(y).ok(),
        Binary::Sub => x.sub(y).ok(),
        Binary::Mul => x.mul(y).ok(),
        Binary::Div => match (x.as_constant(), y.as_constant()) {
            (Some(a), Some(b)) => a.checked_div(b).map(Dim::constant),
            _ => x.div_exact(y).ok(),
        },
        Binary::Max => match least(x, y, graph)? == *x {
            true => Some(y.clone()),
            false => Some(x.clone()),
        },
        Binary::Min => least(x, y, graph),
        _ => None,
    }
}

/// The smaller of `x` and `y`. A size and a number are as in the lengths that a model is made for: the size is the
/// smaller one, where that leaves room for some tokens, and the graph remembers it.
fn least(x: &Dim, y: &Dim, graph: &mut Graph) -> Option<Dim> {
    if let Some(found) = smaller(x, y, &graph.dims) {
        return Some(found);
    }
    let (size, most) = match (x.as_constant(), y.as_constant()) {
        (Some(most), None) => (y, most),
        (None, Some(most)) => (x, most),
        _ => return None,
    };
    leaves_room(&graph.dims, size, most).then(|| graph.limit(size.clone(), most))?;
    Some(size.clone())
}

/// The one of `x` and `y` that is never above the other.
pub fn smaller<'a>(x: &'a Dim, y: &'a Dim, dims: &Dims) -> Option<Dim> {
    let difference = y.sub(x).ok()?;
    if dims.lower(&difference).is_some_and(|l| l >= 0) {
        Some(x.clone())
    } else if dims.upper(&difference).is_some_and(|u| u <= 0) {
        Some(y.clone())
    } else {
        None
    }
}

fn compare(op: Binary, x: &Dim, y: &Dim, dims: &Dims) -> Option<bool> {
    let difference = x.sub(y).ok()?;
    let (lower, upper) = (dims.lower(&difference), dims.upper(&difference));
    let always = |test: fn(i128) -> bool, at: Option<i128>| at.is_some_and(test);
    let (is_less, not_less) = (always(|u| u < 0, upper), always(|l| l >= 0, lower));
    let (is_more, not_more) = (always(|l| l > 0, lower), always(|u| u <= 0, upper));
    let decide = |yes: bool, no: bool| if yes { Some(true) } else { no.then_some(false) };
    match op {
        Binary::Equal => decide(not_less && not_more, is_less || is_more),
        Binary::Less => decide(is_less, not_less),
        Binary::GreaterOrEqual => decide(not_less, is_less),
        Binary::Greater => decide(is_more, not_more),
        Binary::LessOrEqual => decide(not_more, is_more),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_arithmetic() {
        let mut graph = Graph::new();
        let seq = Dim::from(graph.dims.symbol("seq").unwrap());
        let dims = graph.dims.clone();
        let c = |values: &[i64]| Value::constant(Tensor::i64(&[values.len()], values.to_vec()).unwrap());
        let sizes = Value::Sizes { shape: vec![2], dims: vec![seq.clone(), Dim::constant(96)] };
        let show = |v: Option<Value>| v.and_then(|v| as_sizes(&v)).map(|(_, d)| dims.show_shape(&d));
        let mut run = |op: Op, operands: &[Value]| eval(&op, operands, &mut graph);
        let at = run(Op::Gather { axis: 0 }, &[sizes.clone(), c(&[-1, 0])]);
        assert_eq!(show(at).as_deref(), Some("[96, seq]"));
        let joined = run(Op::Concat { axis: 0 }, &[sizes.clone(), c(&[-1])]);
        assert_eq!(show(joined).as_deref(), Some("[seq, 96, -1]"));
        let half = run(Op::Binary(Binary::Div), &[sizes.clone(), c(&[2])]);
        assert!(half.is_none(), "seq / 2 is no polynomial");
        let minus = run(Op::Binary(Binary::Equal), &[sizes.clone(), c(&[-1])]).unwrap();
        assert_eq!(minus.as_const().unwrap().as_bool().unwrap(), [false, false]);
        assert!(run(Op::Binary(Binary::Equal), &[sizes.clone(), c(&[1])]).is_none());
        let condition = Value::constant(Tensor::bool(&[2], vec![false, true]).unwrap());
        let chosen = run(Op::Where, &[condition, c(&[1]), sizes.clone()]);
        assert_eq!(show(chosen).as_deref(), Some("[seq, 1]"));
        let product =
            run(Op::Reduce { kind: Reduce::Prod, axes: vec![0], keepdims: false }, std::slice::from_ref(&sizes));
        assert_eq!(show(product).as_deref(), Some("[96*seq]"));
        let min = run(Op::Binary(Binary::Min), &[c(&[128, 7]), sizes.clone()]);
        assert_eq!(show(min).as_deref(), Some("[seq, 7]"));
        let max = run(Op::Binary(Binary::Max), &[sizes.clone(), c(&[64, 7])]);
        assert_eq!(show(max).as_deref(), Some("[64, 96]"));
        assert!(run(Op::Binary(Binary::Min), &[sizes, c(&[2])]).is_none(), "a limit of 2 is of no use");
        assert_eq!(graph.limits, [(seq, 64)]);
    }
}
