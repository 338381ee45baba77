//! The client's plaintext region as an ONNX model of its own: what comes before the first private weight.
//!
//! It is written from the typed graph as it is lowered, so that every model that can be imported has one, whatever its
//! exporter's operators were: [`ops`] and [`public`] say how each operator of the graph is written in operators of
//! ONNX's own set [`OPSET`], [`writer`] keeps names, constants and sizes. Sizes are polynomials over a few symbols; the
//! region takes each symbol that it needs as an input of its own, `[1]` of integers, whose name begins with
//! [`SIZE`](ombra_ir::plan::SIZE), since a size may follow from no input that the client has.
//!
//! Everything in the region is public or the client's: owners and labels are checked again for every value before
//! anything is written. Elements of weights are not here; they are read one tensor after another when the file is.

mod ops;
mod public;
mod writer;

use crate::graph::{Graph, Op, Owner, ValueId};
use crate::onnx::{write_external, write_model_with};
use crate::passes::assign_owners::client_states;
use crate::secrecy::labels::{self, Labels};
use crate::weights::stream::{Elements, each_block};
use ombra_ir::plain::Data;
use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{ModelProto, OperatorSetIdProto, TensorProto};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use writer::Writer;

/// Version of ONNX's operator set that regions are written in.
pub const OPSET: i64 = 20;
/// Bytes of elements that a region's own file holds; more go into a file beside it, which the client maps or reads apart.
pub const INSIDE: u64 = 256 << 20;
/// Version of the file format that came with [`OPSET`].
const IR_VERSION: i64 = 9;

/// A region, without the elements of its larger tensors.
pub struct Region {
    /// The model without `tensors`.
    pub proto: ModelProto,
    /// Further initializers, without elements, and the weights or constants of the graph that they are.
    pub tensors: Vec<(TensorProto, ValueId)>,
    /// Bytes of `tensors` that the model's own file may hold; see [`INSIDE`].
    pub inside: u64,
}

impl Region {
    /// Writes the region of `graph` to `path`; the elements of `tensors` into the file `data` in the same folder if they
    /// have more bytes than `inside`. Says whether they do.
    ///
    /// # Errors
    /// Those of `elements`, and `E0115`.
    pub fn write(&self, graph: &Graph, elements: &dyn Elements, path: &Path, data: &Path) -> Result<bool> {
        let (entries, values): (Vec<_>, Vec<_>) = self.tensors.iter().map(|(entry, id)| (entry, *id)).unzip();
        let mut blocks = |index: usize, put: &mut dyn FnMut(&Data) -> Result<()>| match values.get(index) {
            Some(value) => each_block(graph, elements, *value, put),
            None => Err(Diagnostic::internal("E0548", "a tensor of the region without a value")),
        };
        let bytes = |entry: &&TensorProto| entry.dims.iter().fold(4u64, |n, d| n.saturating_mul(d.unsigned_abs()));
        let external = entries.iter().map(bytes).fold(0, u64::saturating_add) > self.inside;
        match external {
            true => write_external(&self.proto, &entries, &mut blocks, path, data)?,
            false => write_model_with(&self.proto, &entries, &mut blocks, path)?,
        }
        Ok(external)
    }
}

/// The region that computes the values `inputs` of the program, by their names there, if that is more than the model's
/// own inputs.
///
/// # Errors
/// `E0552` for what has no form in ONNX, with the node it came from; `E0542`, internal, if a private value would be part
/// of it.
pub fn build(graph: &Graph, inputs: &BTreeMap<String, ValueId>, labels: &Labels) -> Result<Option<Region>> {
    let given = |v: &ValueId| matches!(graph.op(*v), Some(Op::Input { .. }));
    let mut outputs: BTreeMap<&str, ValueId> =
        inputs.iter().filter(|(_, v)| !given(v)).map(|(name, v)| (name.as_str(), *v)).collect();
    if outputs.is_empty() {
        return Ok(None);
    }
    let kept = client_states(graph);
    for output in graph.outputs.iter().filter(|o| kept.iter().any(|(_, name)| *name == o.name)) {
        outputs.insert(&output.name, output.value);
    }
    let needed: BTreeSet<ValueId> = outputs.values().flat_map(|v| graph.ancestors(*v)).collect();
    let mut writer = Writer::new(graph);
    for id in graph.topological().into_iter().filter(|id| needed.contains(id)) {
        check_public(graph, id, labels)?;
        let place = graph.node(id)?.origin.clone();
        let place = if place.node.is_empty() { place.value } else { place.node };
        writer.enter(&place);
        ops::write(&mut writer, id).map_err(|e| if e.place.is_none() { e.at(place) } else { e })?;
    }
    for (name, id) in outputs {
        writer.output(name, id)?;
    }
    let (graph, tensors) = writer.finish();
    let opset = OperatorSetIdProto { version: OPSET, ..Default::default() };
    let proto = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![opset],
        graph: Some(graph).into(),
        ..ModelProto::default()
    };
    Ok(Some(Region { proto, tensors, inside: INSIDE }))
}

/// Refuses a value that is not public or the client's, and a weight that is not labelled public.
fn check_public(graph: &Graph, id: ValueId, labels: &Labels) -> Result<()> {
    let node = graph.node(id)?;
    let labelled = match &node.op {
        Op::Weight { name, .. } => labels.get(name).is_some_and(|label| label.owner == labels::Owner::Public),
        _ => true,
    };
    if labelled && matches!(node.owner, Owner::Public | Owner::Client) {
        return Ok(());
    }
    let name = if node.origin.value.is_empty() { &node.origin.node } else { &node.origin.value };
    Err(Diagnostic::internal("E0542", format!("private value `{name}` reached the client's region")))
}

/// The name of a value of the client in the program and in the region: its own in the model, unless it has none or
/// another value has that too, as rewritten ones may.
///
/// # Errors
/// The graph has no such value.
pub fn name_of(graph: &Graph, v: ValueId) -> Result<String> {
    let node = graph.node(v)?;
    if let Op::Input { name, .. } = &node.op {
        return Ok(name.clone());
    }
    let name = &node.origin.value;
    let other = |(id, n): (ValueId, &crate::graph::Node)| {
        id != v && (n.origin.value == *name || matches!(&n.op, Op::Input { name: input, .. } if input == name))
    };
    let taken = graph.outputs.iter().any(|o| o.name == *name && o.value != v) || graph.iter().any(other);
    if name.is_empty() || name.starts_with(writer::OWN) || taken {
        return Ok(format!("{}v{} {}", writer::OWN, v.index(), node.origin.node));
    }
    Ok(name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{InputRole, Origin, propagate_owners};
    use crate::secrecy::labels::Label;
    use ombra_ir::Dim;
    use ombra_ir::plain::{DType, Type};

    fn sample(owner: labels::Owner) -> (Graph, ValueId, Labels) {
        let mut g = Graph::new();
        let four = || Dim::constant(4);
        let seq = Dim::from(g.dims.symbol("seq").unwrap());
        let x = g.add_input("x", InputRole::Other, Type::new(DType::F32, vec![seq, four()]), Origin::default());
        let w = g.add_weight("w", true, vec![four(), four()], Origin::default());
        let y = g.add(Op::MATMUL, &[x, w], Origin { value: "y".into(), ..Origin::default() }).unwrap();
        propagate_owners(&mut g, |_, _| Owner::Client, |_| Owner::Public);
        let label = Label { name: "w".into(), owner, ..Label::default() };
        (g, y, Labels { tensors: vec![label], ..Labels::default() })
    }

    #[test]
    fn a_region_has_its_values_by_name_and_its_weights_apart() {
        let (g, y, labels) = sample(labels::Owner::Public);
        let region = build(&g, &BTreeMap::from([("y".to_owned(), y)]), &labels).unwrap().unwrap();
        let graph = &region.proto.graph;
        assert_eq!(graph.input.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["x"]);
        assert_eq!(graph.output.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["y"]);
        assert_eq!(region.tensors.len(), 1);
        assert!(graph.initializer.is_empty());
        let x = g.inputs[0];
        assert!(build(&g, &BTreeMap::from([("x".to_owned(), x)]), &labels).unwrap().is_none(), "nothing to compute");
    }

    #[test]
    fn nothing_private_is_written() {
        let (mut g, y, labels) = sample(labels::Owner::Private);
        let build = |g: &Graph, labels: &Labels| build(g, &BTreeMap::from([("y".to_owned(), y)]), labels);
        assert_eq!(build(&g, &labels).err().unwrap().code, "E0542", "a private label");
        assert_eq!(build(&g, &Labels::default()).err().unwrap().code, "E0542", "no label");
        let public = sample(labels::Owner::Public).2;
        assert!(build(&g, &public).is_ok());
        g.node_mut(y).unwrap().owner = Owner::Secret;
        assert_eq!(build(&g, &public).err().unwrap().code, "E0542", "a secret value");
    }

    #[test]
    fn names_are_the_models_where_they_are_unique() {
        let (mut g, y, _) = sample(labels::Owner::Public);
        assert_eq!(name_of(&g, y).unwrap(), "y");
        let origin = Origin { value: "y".into(), ..Origin::default() };
        let z = g.add(Op::TANH, &[y], origin).unwrap();
        assert_ne!(name_of(&g, y).unwrap(), name_of(&g, z).unwrap());
        assert_ne!(name_of(&g, y).unwrap(), "y");
    }
}
