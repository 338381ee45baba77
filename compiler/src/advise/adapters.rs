//! Low-rank adapters beside matrices: `x·W + s·(x·A)·B`, kept apart from W, which stays public (Hu et al., LoRA, arXiv
//! 2106.09685; Rathee et al., arXiv 2408.03561, §5.2).

use super::variant::{beside, is_static};
use crate::graph::{Graph, Op, Origin, TensorOp, ValueId};
use ombra_ir::plain::Tensor;
use ombra_ir::{Diagnostic, Dim, Result};
use std::collections::BTreeMap;

/// What the product of the factors is multiplied by: a power of two, as alpha is by custom a multiple of the rank.
const SCALE: f32 = 2.0;
/// Names of adapters begin so.
pub const PREFIX: &str = "ombra.adapter.";

/// Adds adapters of `rank` to every product with a matrix in the layers from `first` on. Gives their shapes by name.
///
/// # Errors
/// `E0595` when there is no such product, or a matrix is smaller than the rank.
pub(super) fn add(graph: &mut Graph, first: u32, rank: u32) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut shapes = BTreeMap::new();
    for id in graph.topological() {
        let node = graph.node(id)?.clone();
        let operands = graph.operands(id);
        let (Op::Tensor(TensorOp::MatMul), &[x, w]) = (&node.op, operands.as_slice()) else { continue };
        if node.origin.layer.is_none_or(|layer| layer < first) || !is_static(graph, w) || is_static(graph, x) {
            continue;
        }
        let [rows, columns] = graph.shape(w) else { continue };
        let (Some(rows), Some(columns)) = (size(rows), size(columns)) else { continue };
        if rank == 0 || rank as usize > rows.min(columns) {
            return Err(Diagnostic::input("E0595", format!("adapters of rank {rank} are not possible"))
                .at(node.origin.node)
                .note(format!("expected a rank from 1 to {}: a matrix is {rows} by {columns}", rows.min(columns))));
        }
        let origin = beside(&node.origin);
        let mut factor = |graph: &mut Graph, side: &str, shape: [usize; 2]| -> Result<ValueId> {
            let name = format!("{PREFIX}{}.{side}", id.index());
            let dims = shape.iter().map(|&n| Dim::from_usize(n)).collect::<Result<_>>()?;
            let origin = Origin { value: name.clone(), node: String::new(), layer: node.origin.layer };
            shapes.insert(name.clone(), shape.to_vec());
            Ok(graph.add_weight(&name, false, dims, origin))
        };
        let down = factor(graph, "down", [rows, rank as usize])?;
        let up = factor(graph, "up", [rank as usize, columns])?;
        let low = graph.add(Op::MATMUL, &[x, down], origin.clone())?;
        let change = graph.add(Op::MATMUL, &[low, up], origin.clone())?;
        let scale = graph.add_const(Tensor::scalar_f32(SCALE), origin.clone())?;
        let change = graph.add(Op::MUL, &[change, scale], origin.clone())?;
        let sum = graph.add(Op::ADD, &[id, change], origin)?;
        graph.replace_all_uses(id, sum)?;
    }
    if shapes.is_empty() {
        return Err(Diagnostic::input("E0595", "adapters are not possible")
            .note("expected products with matrices in layers whose numbers names show"));
    }
    Ok(shapes)
}

fn size(dim: &Dim) -> Option<usize> {
    usize::try_from(dim.as_constant()?).ok()
}

/// Elements of an adapter that was never trained, for measuring ranges: small numbers by a fixed rule.
///
/// # Errors
/// None that the shapes of [`add`] do not exclude.
pub(super) fn elements(shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let width = shape.first().copied().unwrap_or(1).max(1) as f32;
    // A sequence that is spread evenly over (−1, 1), scaled so that a product keeps the size of its operand.
    let element = |i: usize| ((i as f64 * 0.618_033_988_749_895).fract() as f32 * 2.0 - 1.0) * 0.2 / width.sqrt();
    Tensor::f32(shape, (0..count).map(element).collect())
}
