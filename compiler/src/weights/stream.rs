//! Elements of weights in blocks, from the mapped files to the files of a plan: a head of half a billion elements is
//! never in memory whole.
//!
//! Values that are a matrix of the file, or element-wise sums and products with one, such as a matrix with the scale of a
//! norm, are computed some rows at a time, with the results of [`static_value`] to the bit. Other values are computed whole:
//! they are small, or follow from all of a matrix.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use ombra_ir::plain::{self, Binary, Data, Tensor};
use ombra_ir::{Bindings, Diagnostic, Result};

use crate::graph::eval::{static_value, value_limit};
use crate::graph::{Graph, Op, TensorOp, ValueId};
use crate::import::{find_tensor, load_weight};
use crate::onnx::{Model, element_size, element_type, floats_of, shape};

/// Elements of a block, unless a row has more.
const BLOCK: usize = 1 << 22;
/// Rows of the stored matrix that are exchanged with columns at a time.
const TILE: usize = 16;

/// Where the elements of weights come from.
pub trait Elements {
    /// The whole tensor called `name`.
    ///
    /// # Errors
    /// It cannot be read.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// Some rows of the matrix called `name`, or of its transpose; nothing where there are only whole tensors.
    ///
    /// # Errors
    /// It cannot be read.
    fn rows(&self, name: &str, transposed: bool, rows: Range<usize>) -> Result<Option<Tensor>>;
}

impl<F: Fn(&str) -> Result<Tensor>> Elements for F {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        self(name)
    }

    fn rows(&self, _: &str, _: bool, _: Range<usize>) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

impl Elements for Model {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        load_weight(self, name)
    }

    fn rows(&self, name: &str, transposed: bool, rows: Range<usize>) -> Result<Option<Tensor>> {
        let tensor = find_tensor(self, name)?;
        let kind = element_type(&tensor)?;
        // What has to be brought into one piece first is no larger than the file that holds it.
        let (Cow::Borrowed(bytes), Some(width)) = (self.bytes(&tensor)?, element_size(kind)) else { return Ok(None) };
        let [height, columns] = shape(&tensor)?[..] else { return Ok(None) };
        let read = |from: usize, to: usize| bytes.get(from * width..to * width).and_then(|part| floats_of(kind, part));
        let outside = || Diagnostic::internal("E0299", format!("rows outside of `{name}`"));
        self.was_read(rows.len() * if transposed { height } else { columns } * width);
        if !transposed {
            let part = read(rows.start * columns, rows.end * columns).ok_or_else(outside)?;
            return Tensor::f32(&[rows.len(), columns], part).map(Some);
        }
        let mut out = vec![0.0; rows.len() * height];
        for first in (0..height).step_by(TILE) {
            let stored = (first..height.min(first + TILE))
                .map(|row| read(row * columns + rows.start, row * columns + rows.end).ok_or_else(outside))
                .collect::<Result<Vec<_>>>()?;
            for (at, line) in out.chunks_exact_mut(height).enumerate() {
                let line = line.iter_mut().skip(first);
                line.zip(&stored).for_each(|(to, row)| *to = row.get(at).copied().unwrap_or_default());
            }
        }
        Tensor::f32(&[rows.len(), height], out).map(Some)
    }
}

/// Gives the elements of the static value `id` to `put`, some at a time, in order.
///
/// # Errors
/// Those of [`static_value`] and of `put`.
pub fn each_block(
    graph: &Graph,
    elements: &dyn Elements,
    id: ValueId,
    put: &mut dyn FnMut(&Data) -> Result<()>,
) -> Result<()> {
    let sizes = sizes_of(graph, id)?;
    let (rows, total) = (sizes.first().copied().unwrap_or(1), sizes.iter().fold(1usize, |n, &d| n.saturating_mul(d)));
    let mut bands = Bands { graph, elements, rows, rank: sizes.len(), whole: BTreeMap::new() };
    bands.prepare(id)?;
    if let Some(whole) = bands.whole.get(&id) {
        return put(whole.data());
    }
    let step = (BLOCK / (total / rows.max(1)).max(1)).max(1);
    for first in (0..rows).step_by(step) {
        put(bands.band(id, first..rows.min(first + step))?.data())?;
    }
    Ok(())
}

fn sizes_of(graph: &Graph, id: ValueId) -> Result<Vec<usize>> {
    graph.node(id)?.shape.iter().map(|d| d.eval_usize(&Bindings::new())).collect()
}

/// A value that is computed some rows at a time.
struct Bands<'a> {
    graph: &'a Graph,
    elements: &'a dyn Elements,
    rows: usize,
    rank: usize,
    /// Values that are computed whole.
    whole: BTreeMap<ValueId, Tensor>,
}

impl Bands<'_> {
    /// Computes what has to be whole for the rows of `id`.
    fn prepare(&mut self, id: ValueId) -> Result<()> {
        let sizes = sizes_of(self.graph, id)?;
        let by_rows = sizes.len() == self.rank && sizes.first() == Some(&self.rows);
        match self.graph.op(id) {
            Some(Op::Weight { name, transposed })
                if by_rows && self.rank == 2 && self.elements.rows(name, *transposed, 0..0)?.is_some() =>
            {
                return Ok(());
            }
            Some(Op::Tensor(TensorOp::Binary(Binary::Mul | Binary::Add | Binary::Sub))) if by_rows && self.rank > 1 => {
                return self.graph.operands(id).into_iter().try_for_each(|operand| self.prepare(operand));
            }
            _ => {}
        }
        let tensor = static_value(self.graph, &|name: &str| self.elements.tensor(name), id)?;
        self.whole.insert(id, tensor);
        Ok(())
    }

    /// The rows `rows` of `id`; all of a value that is the same for every row.
    fn band(&self, id: ValueId, rows: Range<usize>) -> Result<Tensor> {
        let missing = || Diagnostic::internal("E0299", format!("%{} has no rows", id.index()));
        if let Some(whole) = self.whole.get(&id) {
            if whole.rank() != self.rank || whole.shape().first() != Some(&self.rows) {
                return Ok(whole.clone());
            }
            let (start, len) = (ombra_ir::Dim::from_usize(rows.start)?, ombra_ir::Dim::from_usize(rows.len())?);
            let slice = TensorOp::Slice { axis: 0, start, len, step: 1 };
            return plain::eval(&slice, &[whole], &Bindings::new(), whole.len());
        }
        match self.graph.op(id) {
            Some(Op::Weight { name, transposed }) => self.elements.rows(name, *transposed, rows)?.ok_or_else(missing),
            Some(op) => {
                let operands = self.graph.operands(id).into_iter().map(|o| self.band(o, rows.clone()));
                let operands = operands.collect::<Result<Vec<_>>>()?;
                let operands: Vec<&Tensor> = operands.iter().collect();
                let plain = op.tensor().ok_or_else(missing)?;
                plain::eval(plain, &operands, &Bindings::new(), value_limit(&operands))
            }
            None => Err(missing()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ombra_ir::Dim;
    use onnx_protobuf::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto};

    use super::*;
    use crate::graph::Origin;

    #[test]
    fn blocks_are_the_value_and_small() {
        let (height, width) = (300usize, 20_000usize);
        let data: Vec<u8> = (0..(height * width) as u32).flat_map(|i| (i as f32 * 0.37).sin().to_le_bytes()).collect();
        let scale: Vec<f32> = (0..height).map(|i| i as f32 + 0.5).collect();
        let tensor = |name: &str, dims: &[usize]| TensorProto {
            name: name.into(),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: 1,
            ..TensorProto::default()
        };
        let w = TensorProto { raw_data: data, ..tensor("w", &[width, height]) };
        let s = TensorProto { float_data: scale, ..tensor("s", &[height]) };
        let proto = GraphProto { initializer: vec![w, s], ..GraphProto::default() };
        let opset_import = vec![OperatorSetIdProto { version: 18, ..Default::default() }];
        let proto = ModelProto { ir_version: 8, opset_import, graph: Some(proto).into(), ..Default::default() };
        let model = Model::from_proto(proto, Path::new("m.onnx")).unwrap();
        let mut g = Graph::new();
        let dim = |n: usize| Dim::from_usize(n).unwrap();
        let w = g.add_weight("w", true, vec![dim(height), dim(width)], Origin::default());
        let s = g.add_weight("s", false, vec![dim(height)], Origin::default());
        let s =
            g.add(Op::Tensor(TensorOp::Reshape { shape: vec![dim(height), dim(1)] }), &[s], Origin::default()).unwrap();
        let y = g.add(Op::MUL, &[s, w], Origin::default()).unwrap();
        for id in [w, y] {
            let whole = static_value(&g, &|name: &str| load_weight(&model, name), id).unwrap();
            let (mut found, mut blocks) = (Vec::new(), 0);
            let mut put = |data: &Data| {
                let Data::F32(values) = data else { panic!("floats") };
                assert!(values.len() <= BLOCK);
                blocks += 1;
                found.extend_from_slice(values);
                Ok(())
            };
            each_block(&g, &model, id, &mut put).unwrap();
            assert!(blocks > 1);
            assert_eq!(found, whole.as_f32().unwrap());
        }
        let last = g.add(Op::Tensor(TensorOp::Transpose { perm: vec![1, 0] }), &[y], Origin::default()).unwrap();
        let mut count = 0;
        each_block(&g, &model, last, &mut |data| {
            count += data.len();
            Ok(())
        })
        .unwrap();
        assert_eq!(count, height * width);
    }
}
