//! Programs on public tensors: what masks, positions and lengths determine.

use serde::{Deserialize, Serialize};

use super::infer::mismatch;
use super::{DType, Op, Tensor, Type, eval, infer};
use crate::dim::{Bindings, Dim};
use crate::{Diagnostic, Result};

/// A value of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ValueRef {
    /// The input with this index.
    Input(u32),
    /// The result of the node with this index.
    Node(u32),
}

/// An input of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Name, as the model calls it.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Vec<Dim>,
}

/// One operation of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Its operands: inputs, or nodes before it.
    pub inputs: Vec<ValueRef>,
    /// Element type of the result.
    pub dtype: DType,
    /// Sizes of the result's axes.
    pub shape: Vec<Dim>,
}

/// A program: nodes in an order in which operands come first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// What is given.
    pub inputs: Vec<Input>,
    /// What is computed.
    pub nodes: Vec<Node>,
    /// What is wanted.
    pub outputs: Vec<ValueRef>,
}

impl Program {
    /// Appends a node, with the type that follows from its operands.
    pub fn push(&mut self, op: Op, inputs: Vec<ValueRef>) -> Result<ValueRef> {
        let types = inputs.iter().map(|v| self.ty(*v, self.nodes.len())).collect::<Result<Vec<_>>>()?;
        let ty = infer(&op, &types.iter().collect::<Vec<_>>())?;
        let index = u32::try_from(self.nodes.len()).map_err(|_| mismatch("program", "too many nodes"))?;
        self.nodes.push(Node { op, inputs, dtype: ty.dtype, shape: ty.shape });
        Ok(ValueRef::Node(index))
    }

    /// The type of `value`, which must be an input or one of the first `before` nodes.
    pub fn ty(&self, value: ValueRef, before: usize) -> Result<Type> {
        let found = match value {
            ValueRef::Input(i) => self.inputs.get(i as usize).map(|x| Type::new(x.dtype, x.shape.clone())),
            ValueRef::Node(i) => {
                self.nodes.get(..before).and_then(|n| n.get(i as usize)).map(|n| Type::new(n.dtype, n.shape.clone()))
            }
        };
        found.ok_or_else(|| mismatch("program", format!("{value:?} is not defined before its use")))
    }

    /// Checks that every operand is defined before its use, that every declared type is the inferred one, and that
    /// the outputs exist.
    pub fn check(&self) -> Result<()> {
        for (i, node) in self.nodes.iter().enumerate() {
            let types = node.inputs.iter().map(|v| self.ty(*v, i)).collect::<Result<Vec<_>>>()?;
            let ty = infer(&node.op, &types.iter().collect::<Vec<_>>())?;
            if ty.dtype != node.dtype || ty.shape != node.shape {
                return Err(mismatch(node.op.name(), format!("node {i} is declared with another type")));
            }
        }
        self.outputs.iter().try_for_each(|v| self.ty(*v, self.nodes.len()).map(|_| ()))
    }

    /// The outputs for given lengths and inputs (in order). No tensor has more than `limit` elements.
    ///
    /// Errors: an input of another type or shape than declared, and all of [`eval`].
    pub fn run(&self, bindings: &Bindings, inputs: &[Tensor], limit: usize) -> Result<Vec<Tensor>> {
        if inputs.len() != self.inputs.len() {
            let (expected, found) = (self.inputs.len(), inputs.len());
            return Err(Diagnostic::input("E0214", format!("expected {expected} public inputs, found {found}")));
        }
        for (tensor, input) in inputs.iter().zip(&self.inputs) {
            let shape = input.shape.iter().map(|d| d.eval_usize(bindings)).collect::<Result<Vec<_>>>()?;
            if tensor.dtype() != input.dtype || tensor.shape() != shape {
                return Err(Diagnostic::input("E0214", format!("input `{}` has the wrong type or shape", input.name))
                    .note(format!("expected {}{shape:?}", input.dtype.name()))
                    .note(format!("found {}{:?}", tensor.dtype().name(), tensor.shape())));
            }
        }
        let mut uses = self.uses();
        let mut results: Vec<Option<Tensor>> = Vec::with_capacity(self.nodes.len().min(1 << 16));
        for (i, node) in self.nodes.iter().enumerate() {
            let operands = node.inputs.iter().map(|v| find(*v, inputs, &results)).collect::<Result<Vec<_>>>()?;
            let result = eval(&node.op, &operands, bindings, limit)?;
            results.push(uses.get(i).is_some_and(|uses| *uses > 0).then_some(result));
            for value in &node.inputs {
                if let Some(last) = last_use(&mut uses, *value) {
                    results.get_mut(last).and_then(Option::take);
                }
            }
        }
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for value in &self.outputs {
            let taken = last_use(&mut uses, *value).and_then(|last| results.get_mut(last).and_then(Option::take));
            outputs.push(taken.map_or_else(|| find(*value, inputs, &results).cloned(), Ok)?);
        }
        Ok(outputs)
    }

    /// Bytes of the tensors that [`run`](Self::run) holds at once, at most, inputs and outputs included. Computed from
    /// the declared shapes; saturates.
    ///
    /// Errors: a size that is negative or has no value.
    pub fn bytes(&self, bindings: &Bindings) -> Result<u64> {
        let mut held = 0u64;
        for input in &self.inputs {
            held = held.saturating_add(tensor_bytes(input.dtype, &input.shape, bindings)?);
        }
        let sizes = self.nodes.iter().map(|node| tensor_bytes(node.dtype, &node.shape, bindings));
        let sizes = sizes.collect::<Result<Vec<_>>>()?;
        let size_of = |value: usize| sizes.get(value).copied().unwrap_or(u64::MAX);
        let mut uses = self.uses();
        let mut most = held;
        for (i, node) in self.nodes.iter().enumerate() {
            held = held.saturating_add(size_of(i));
            most = most.max(held);
            if uses.get(i) == Some(&0) {
                held = held.saturating_sub(size_of(i));
            }
            for value in &node.inputs {
                held = held.saturating_sub(last_use(&mut uses, *value).map_or(0, size_of));
            }
        }
        for value in &self.outputs {
            let copied = match *value {
                ValueRef::Input(i) => match self.inputs.get(i as usize) {
                    Some(input) => tensor_bytes(input.dtype, &input.shape, bindings)?,
                    None => 0,
                },
                ValueRef::Node(i) if last_use(&mut uses, *value).is_none() => size_of(i as usize),
                ValueRef::Node(_) => 0,
            };
            held = held.saturating_add(copied);
        }
        Ok(most.max(held))
    }

    /// How often every node is an operand or an output.
    fn uses(&self) -> Vec<u32> {
        let mut uses = vec![0u32; self.nodes.len()];
        for value in self.nodes.iter().flat_map(|node| &node.inputs).chain(&self.outputs) {
            if let ValueRef::Node(i) = value
                && let Some(uses) = uses.get_mut(*i as usize)
            {
                *uses = uses.saturating_add(1);
            }
        }
        uses
    }
}

/// Counts a use of `value`: the node's index when it was the last one.
fn last_use(uses: &mut [u32], value: ValueRef) -> Option<usize> {
    let ValueRef::Node(i) = value else { return None };
    let uses = uses.get_mut(i as usize)?;
    *uses = uses.saturating_sub(1);
    (*uses == 0).then_some(i as usize)
}

/// Bytes of a tensor's elements.
fn tensor_bytes(dtype: DType, shape: &[Dim], bindings: &Bindings) -> Result<u64> {
    let element = match dtype {
        DType::F32 => 4,
        DType::I64 => 8,
        DType::Bool => 1,
    };
    shape.iter().try_fold(element, |bytes: u64, dim| Ok(bytes.saturating_mul(dim.eval(bindings)?)))
}

fn find<'a>(value: ValueRef, inputs: &'a [Tensor], results: &'a [Option<Tensor>]) -> Result<&'a Tensor> {
    let found = match value {
        ValueRef::Input(i) => inputs.get(i as usize),
        ValueRef::Node(i) => results.get(i as usize).and_then(Option::as_ref),
    };
    found.ok_or_else(|| mismatch("program", format!("{value:?} is not defined before its use")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Dims;
    use crate::plain::{Binary, DEFAULT_LIMIT};

    #[test]
    fn causal_mask_of_a_cached_step() {
        let mut dims = Dims::default();
        let (past, seq) = (dims.symbol("past").unwrap(), dims.symbol("seq").unwrap());
        let (past, seq) = (Dim::from(past), Dim::from(seq));
        let total = past.add(&seq).unwrap();
        let mut p = Program::default();
        p.inputs.push(Input { name: "mask".into(), dtype: DType::I64, shape: vec![Dim::constant(1), total.clone()] });
        let row = |len: &Dim, start: &Dim| Op::Iota { start: start.clone(), len: len.clone(), step: 1 };
        let keys = p.push(row(&total, &Dim::constant(0)), vec![]).unwrap();
        let queries = p.push(row(&seq, &past), vec![]).unwrap();
        let queries = p.push(Op::Reshape { shape: vec![seq, Dim::constant(1)] }, vec![queries]).unwrap();
        let causal = p.push(Op::Binary(Binary::LessOrEqual), vec![keys, queries]).unwrap();
        let given = p.push(Op::Cast { to: DType::Bool }, vec![ValueRef::Input(0)]).unwrap();
        let both = p.push(Op::Binary(Binary::And), vec![causal, given]).unwrap();
        p.outputs.push(both);
        p.check().unwrap();
        let bindings = dims.bind(&[("past", 2), ("seq", 2)]).unwrap();
        let mask = Tensor::i64(&[1, 4], vec![0, 1, 1, 1]).unwrap();
        let out = p.run(&bindings, &[mask], DEFAULT_LIMIT).unwrap();
        assert_eq!(out, [Tensor::bool(&[2, 4], vec![false, true, true, false, false, true, true, true]).unwrap()]);
        let short = Tensor::i64(&[1, 3], vec![0; 3]).unwrap();
        assert_eq!(p.run(&bindings, &[short], DEFAULT_LIMIT).unwrap_err().code, "E0214");
        let bytes = postcard::to_stdvec(&p).unwrap();
        assert_eq!(postcard::from_bytes::<Program>(&bytes).unwrap(), p);
        p.nodes[0].inputs.push(ValueRef::Node(3));
        assert!(p.check().is_err());
    }

    #[test]
    fn values_are_held_until_their_last_use() {
        let mut dims = Dims::default();
        let n = Dim::from(dims.symbol("n").unwrap());
        let mut p = Program::default();
        p.inputs.push(Input { name: "x".into(), dtype: DType::I64, shape: vec![n.clone()] });
        let mut value = ValueRef::Input(0);
        for _ in 0..10 {
            value = p.push(Op::Binary(Binary::Add), vec![value, ValueRef::Input(0)]).unwrap();
        }
        p.push(Op::Iota { start: Dim::constant(0), len: n, step: 1 }, vec![]).unwrap();
        p.outputs = vec![value, ValueRef::Node(0), value, ValueRef::Input(0)];
        p.check().unwrap();
        let bindings = dims.bind(&[("n", 2)]).unwrap();
        // Of four: the input, the first node for the output, and the last two of the chain. At the end: the input, the
        // two outputs that are moved, and the two that are copied.
        assert_eq!(p.bytes(&bindings).unwrap(), 5 * 2 * 8);
        let x = Tensor::i64(&[2], vec![1, 5]).unwrap();
        let scaled = |k| Tensor::i64(&[2], vec![k, 5 * k]).unwrap();
        let out = p.run(&bindings, &[x], DEFAULT_LIMIT).unwrap();
        assert_eq!(out, [scaled(11), scaled(2), scaled(11), scaled(1)]);
        let bindings = dims.bind(&[("n", u64::from(u32::MAX))]).unwrap();
        assert_eq!(p.bytes(&bindings).unwrap(), 5 * u64::from(u32::MAX) * 8);
    }
}
