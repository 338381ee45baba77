//! A norm's scale and shift into the products that follow.
//!
//! `(n ∘ γ + β)·W = n·(diag(γ)·W) + β·W`. Where every use of a norm is the left side of a product with a weight whose
//! owner covers γ's (and β's), the scaled weight is computed once, by its owner, and the norm has neither scale nor
//! shift left: one secret product an element less when γ is private, one public factor less when it is not. A private γ
//! is never folded into a public weight, since that would make a message-free product cost messages, nor is any scale
//! folded into a head that is tied to the private embedding table, since that would make a second copy of the largest
//! weight.
//!
//! A norm without division goes whole: `(x − mean(x))·W = x·(W − mean of W's rows)`.

use crate::graph::{Graph, Op, Origin, Owner, TensorOp, ValueId};
use crate::onnx::ABSENT;
use crate::weights::statics::{Known, Statics, key_of};
use crate::weights::stream::Elements;
use ombra_ir::plain::{self, Reduce, Tensor};
use ombra_ir::{Bindings, Dim, Result};

/// Folds every norm that allows it; returns how many.
pub fn fold_norms(graph: &mut Graph, elements: &dyn Elements, known: &Known) -> Result<usize> {
    let mut folded = 0;
    for id in graph.topological() {
        let (gamma, beta) = match graph.op(id) {
            Some(Op::RmsNorm { .. }) => (graph.operand(id, 1), None),
            Some(Op::LayerNorm { .. } | Op::AffineNorm { .. }) => (graph.operand(id, 1), graph.operand(id, 2)),
            _ => continue,
        };
        let Some(gamma) = gamma else { continue };
        let divides = !matches!(graph.op(id), Some(Op::AffineNorm { .. }));
        if graph.node(id)?.owner != Owner::Secret || divides && is_ones(graph, gamma) && beta.is_none() {
            continue;
        }
        let mut affine = graph.node(gamma)?.owner;
        if let Some(beta) = beta {
            affine = affine.join(graph.node(beta)?.owner);
        }
        let Some(products) = products_of(id, affine, &Statics::new(graph, elements, known))? else { continue };
        fold(graph, id, gamma, beta, &products)?;
        folded += 1;
    }
    graph.remove_dead();
    Ok(folded)
}

/// Elements that are compared at a time.
const BLOCK: usize = 1 << 20;

/// The private embedding table that a private weight is the transpose of, to the bit: a tied head.
pub fn tied_table(w: ValueId, statics: &Statics) -> Result<Option<ValueId>> {
    let graph = statics.graph;
    if graph.node(w)?.owner != Owner::Server || graph.shape(w).len() != 2 {
        return Ok(None);
    }
    let reversed: Vec<Dim> = graph.shape(w).iter().rev().cloned().collect();
    for (id, node) in graph.iter() {
        let table = graph.operand(id, 0).filter(|_| matches!(node.op, Op::Tensor(TensorOp::Gather { axis: 0 })));
        let Some(table) = table.filter(|&t| t != w && graph.shape(t) == reversed) else { continue };
        if graph.node(table)?.owner != Owner::Server {
            continue;
        }
        let name = |v| match graph.op(v) {
            Some(Op::Weight { name, transposed }) => Some((name, *transposed)),
            _ => None,
        };
        // One initializer is known to be equal to itself.
        if name(table).zip(name(w)).is_some_and(|(t, w)| t.0 == w.0 && t.1 != w.1) {
            return Ok(Some(table));
        }
        let key = key_of(&[statics.key(table)?, statics.key(w)?], []);
        match statics.known.tied.get(key, || is_transpose(table, w, statics)) {
            Ok(true) => return Ok(Some(table)),
            Ok(false) => {}
            // A model that was read without its weights.
            Err(e) if e.code == ABSENT => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// Whether `head` is the transpose of `table`, to the bit; both are matrices, of shapes that fit.
fn is_transpose(table: ValueId, head: ValueId, statics: &Statics) -> Result<bool> {
    let sizes =
        statics.graph.shape(table).iter().map(|d| d.eval_usize(&Bindings::new())).collect::<Result<Vec<_>>>()?;
    let (rows, columns) = (sizes[0], sizes[1]);
    let same = |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
    let step = (BLOCK / columns.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let part = first..rows.min(first + step);
        let (a, b) = (statics.rows(table, false, part.clone())?, statics.rows(head, true, part)?);
        let Some((a, b)) = a.zip(b) else {
            let (table, head) = (statics.value(table)?, statics.value(head)?);
            let turned =
                plain::eval(&TensorOp::Transpose { perm: vec![1, 0] }, &[&head], &Bindings::new(), head.len())?;
            return Ok(same(table.as_f32()?, turned.as_f32()?));
        };
        if !same(a.as_f32()?, b.as_f32()?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a value is a constant full of ones.
pub fn is_ones(graph: &Graph, id: ValueId) -> bool {
    graph.constant(id).and_then(|t| t.as_f32().ok()).is_some_and(|v| v.iter().all(|&x| x == 1.0))
}

/// The products whose left side is `id`, through movement that keeps the last axis; `None` if there is any other use
/// or a weight that must not take the scale.
fn products_of(id: ValueId, affine: Owner, statics: &Statics) -> Result<Option<Vec<ValueId>>> {
    let graph = statics.graph;
    if graph.is_output(id) {
        return Ok(None);
    }
    let mut products = Vec::new();
    let width = graph.shape(id).last().cloned();
    for user in graph.users(id) {
        let node = graph.node(user)?;
        let rank = graph.shape(id).len();
        match &node.op {
            Op::Tensor(TensorOp::MatMul) => {
                let (x, w) = (graph.operand(user, 0), graph.operand(user, 1));
                let fits = x == Some(id) && w != Some(id);
                let Some(w) = w.filter(|_| fits) else { return Ok(None) };
                let owner = graph.node(w)?.owner;
                let takes = matches!(owner, Owner::Public | Owner::Server) && owner.join(affine) == owner;
                if !takes || graph.shape(w).len() != 2 || tied_table(w, statics)?.is_some() {
                    return Ok(None);
                }
                products.push(user);
            }
            Op::Tensor(TensorOp::Reshape { .. } | TensorOp::Slice { .. }) if node.shape.last() == width.as_ref() => {
                if matches!(node.op, Op::Tensor(TensorOp::Slice { axis, .. }) if axis + 1 == rank) {
                    return Ok(None);
                }
                match products_of(user, affine, statics)? {
                    Some(more) => products.extend(more),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(products))
}

fn fold(graph: &mut Graph, id: ValueId, gamma: ValueId, beta: Option<ValueId>, products: &[ValueId]) -> Result<()> {
    let node = graph.node(id)?.clone();
    let width = node.shape.last().cloned().unwrap_or_default();
    let x = graph.operands(id)[0];
    let centred = node.op == Op::AffineNorm { centred: true };
    let bare = if matches!(node.op, Op::AffineNorm { .. }) {
        x
    } else {
        let n = width.as_constant().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let ones = graph.add_const(Tensor::f32(&[n], vec![1.0; n])?, Origin::default())?;
        // The bare norm is no value of the model: it has no name.
        let bare_origin = Origin { value: String::new(), ..node.origin.clone() };
        graph.add(node.op.clone(), &[x, ones], bare_origin)?
    };
    let column = graph.add(
        Op::Tensor(TensorOp::Reshape { shape: vec![width.clone(), Dim::constant(1)] }),
        &[gamma],
        Origin::default(),
    )?;
    for &product in products {
        let origin = graph.node(product)?.origin.clone();
        let (left, w) = (graph.operands(product)[0], graph.operands(product)[1]);
        let w_origin = graph.node(w)?.origin.clone();
        let mut scaled = graph.add(Op::MUL, &[column, w], w_origin.clone())?;
        if centred {
            let mean = Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![0], keepdims: true });
            let mean = graph.add(mean, &[scaled], w_origin.clone())?;
            scaled = graph.add(Op::SUB, &[scaled, mean], w_origin.clone())?;
        }
        let mut new = graph.add(Op::MATMUL, &[left, scaled], origin.clone())?;
        if let Some(beta) = beta {
            let row = graph.add(
                Op::Tensor(TensorOp::Reshape { shape: vec![Dim::constant(1), width.clone()] }),
                &[beta],
                Origin::default(),
            )?;
            let shift = graph.add(Op::MATMUL, &[row, w], w_origin)?;
            let out = graph.shape(shift)[1].clone();
            let shift = graph.add(Op::Tensor(TensorOp::Reshape { shape: vec![out] }), &[shift], Origin::default())?;
            new = graph.add(Op::ADD, &[new, shift], origin)?;
        }
        graph.replace_all_uses(product, new)?;
    }
    graph.replace_all_uses(id, bare)
}
