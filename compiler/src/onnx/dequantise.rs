//! Operators on quantised weights, as operators on the numbers that the weights stand for.
//!
//! `DequantizeLinear`, `MatMulNBits` and `GatherBlockQuantized` of weights mean exactly that. Where a file rounds values
//! that are no weights to 8 bits on the way, with `DynamicQuantizeLinear` or with `QuantizeLinear` and `DequantizeLinear`
//! one after another, they are not rounded here, and only limited as the file limits them: the results are those of the
//! model that was quantised, with the weights of the file, and nearer to it than the file's own.

use std::collections::{HashMap, HashSet};

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};
use protobuf::Enum;

use super::check::{describe, used_names};
use super::external::ExternalFiles;
use super::quantised::{self, Layout, Quantised, Table};
use super::split::step;
use super::{attribute, is_default_domain, tensor};

/// Domain of ONNX Runtime's own operators.
const MICROSOFT: &str = "com.microsoft";

/// A graph that is rewritten.
struct File<'a> {
    graph: &'a mut GraphProto,
    files: &'a ExternalFiles,
    initializers: HashMap<String, usize>,
    producers: HashMap<String, usize>,
    uses: HashMap<String, usize>,
    table: Table,
    made: Vec<TensorProto>,
    replaced: HashMap<usize, Vec<NodeProto>>,
    taken: HashSet<String>,
}

/// Replaces quantised weights of `graph`; gives what their elements are made from. Nodes of other forms are left.
///
/// # Errors
/// `E0123`: integers, scales and zero points that do not go together.
pub(crate) fn dequantise(graph: &mut GraphProto, files: &ExternalFiles) -> Result<Table> {
    let known = |node: &NodeProto| {
        let names =
            ["DequantizeLinear", "MatMulInteger", "MatMulNBits", "GatherBlockQuantized", "DynamicQuantizeMatMul"];
        names.contains(&node.op_type.as_str()) || node.op_type == "MatMulIntegerToFloat"
    };
    if !graph.node.iter().any(known) {
        return Ok(Table::new());
    }
    let mut file = File::new(graph, files);
    for at in 0..file.graph.node.len() {
        let Some(node) = file.graph.node.get(at).cloned() else { continue };
        let ours = node.domain == MICROSOFT;
        let place = describe(at, &node);
        let done = match node.op_type.as_str() {
            "DequantizeLinear" if ours || is_default_domain(&node.domain) => file.linear(at, &node),
            "MatMulInteger" if is_default_domain(&node.domain) => file.integer_product(&node),
            "DynamicQuantizeMatMul" if ours => file.fused_product(at, &node, [2, 3, 4], node.input.first().cloned()),
            "MatMulIntegerToFloat" if ours => {
                let x = file.quantised_dynamically(&node, 0);
                file.fused_product(at, &node, [3, 5, 6], x)
            }
            "MatMulNBits" if ours => file.packed_product(at, &node),
            "GatherBlockQuantized" if ours => file.packed_lookup(at, &node),
            _ => Ok(()),
        };
        done.map_err(|e| if e.place.is_none() { e.at(place) } else { e })?;
    }
    Ok(file.finish())
}

/// Input `i` of `node`, unless it is left out.
fn input(node: &NodeProto, i: usize) -> Option<&str> {
    node.input.get(i).map(String::as_str).filter(|name| !name.is_empty())
}

fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |a| a.i)
}

fn bad(what: impl Into<String>) -> Diagnostic {
    Diagnostic::input("E0123", what)
}

impl<'a> File<'a> {
    fn new(graph: &'a mut GraphProto, files: &'a ExternalFiles) -> Self {
        let initializers = graph.initializer.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        let mut producers = HashMap::new();
        let mut uses: HashMap<String, usize> = HashMap::new();
        for (i, node) in graph.node.iter().enumerate() {
            producers.extend(node.output.iter().filter(|o| !o.is_empty()).map(|o| (o.clone(), i)));
            used_names(node, &mut |name| *uses.entry(name.to_owned()).or_default() += 1);
        }
        for output in &graph.output {
            *uses.entry(output.name.clone()).or_default() += 1;
        }
        File {
            graph,
            files,
            initializers,
            producers,
            uses,
            table: Table::new(),
            made: Vec::new(),
            replaced: HashMap::new(),
            taken: HashSet::new(),
        }
    }

    /// The known tensor `name`: an initializer or the value of a `Constant` node.
    fn constant(&self, name: &str) -> Option<TensorProto> {
        if let Some(i) = self.initializers.get(name) {
            return self.graph.initializer.get(*i).cloned();
        }
        let node = self.producer(name).filter(|n| n.op_type == "Constant" && is_default_domain(&n.domain))?;
        let tensor = attribute(node, "value")?.t.as_ref()?;
        Some(TensorProto { name: name.to_owned(), ..tensor.clone() })
    }

    fn producer(&self, name: &str) -> Option<&NodeProto> {
        self.graph.node.get(*self.producers.get(name)?)
    }

    /// The only node that uses `name`, by index.
    fn only_user(&self, name: &str) -> Option<usize> {
        if self.uses.get(name) != Some(&1) {
            return None;
        }
        self.graph.node.iter().position(|n| n.input.iter().any(|i| i == name))
    }

    /// An initializer of `shape` for `weight`, called as the integers are, unless others use them: then `instead`.
    fn add(&mut self, integers: &str, instead: &str, weight: Quantised) -> Result<String> {
        let alone = self.uses.get(integers) == Some(&1) && self.initializers.contains_key(integers);
        let mut name = if alone { integers } else { instead }.to_owned();
        while !alone && (self.initializers.contains_key(&name) || self.table.contains_key(&name)) {
            name.push('_');
        }
        let dims = weight.shape.iter().map(|d| i64::try_from(*d)).collect::<std::result::Result<_, _>>();
        let dims = dims.map_err(|_| bad("a size is beyond 63 bits"))?;
        let data_type = DataType::FLOAT.value();
        let parts = [Some(&weight.elements), Some(&weight.scale), weight.zero.as_ref()];
        self.taken.extend(parts.into_iter().flatten().map(|t| t.name.clone()));
        self.made.push(TensorProto { name: name.clone(), dims, data_type, ..TensorProto::default() });
        self.table.insert(name.clone(), weight);
        Ok(name)
    }

    /// The integers `name` with the scale and zero point that inputs `scale` and `zero` of `node` name; nothing when one
    /// of them is computed.
    fn weight(&self, node: &NodeProto, name: &str, scale: usize, zero: usize, layout: Layout) -> Option<Quantised> {
        let elements = self.constant(name)?;
        let scale = self.constant(input(node, scale)?)?;
        let zero = match input(node, zero) {
            Some(zero) => Some(self.constant(zero)?),
            None => None,
        };
        let shape = tensor::shape(&elements).ok()?;
        Some(Quantised { shape, elements, scale, zero, layout })
    }

    /// `DequantizeLinear` of a weight, of a weight that was moved, or of what was rounded just before.
    fn linear(&mut self, at: usize, node: &NodeProto) -> Result<()> {
        let (Some(x), Some(output)) = (input(node, 0), node.output.first()) else { return Ok(()) };
        if let Some(rounded) = self.producer(x).filter(|n| n.op_type == "QuantizeLinear") {
            if let Some((value, [low, high])) = self.limits(rounded, node) {
                let mut bound = |name: &str, value: f32| {
                    let name = format!("{output}/{name}");
                    let (data_type, float_data) = (DataType::FLOAT.value(), vec![value]);
                    self.made.push(TensorProto { name: name.clone(), data_type, float_data, ..TensorProto::default() });
                    name
                };
                let inputs = vec![value, bound("low", low), bound("high", high)];
                self.replaced.insert(at, vec![step(node, "Clip", inputs, output.clone())]);
            }
            return Ok(());
        }
        let block = int(node, "block_size", 0);
        let block = usize::try_from(block).map_err(|_| bad(format!("blocks of {block} elements")))?;
        // Operators that only move elements keep one scale for all.
        let mut source = x.to_owned();
        while let Some(mover) = self.producer(&source).filter(|n| is_movement(n)) {
            if self.uses.get(&source) != Some(&1) {
                return Ok(());
            }
            source = input(mover, 0).unwrap_or_default().to_owned();
        }
        let Some(mut weight) = self.weight(node, &source, 1, 2, Layout::Linear { axis: 0, block }) else {
            return Ok(());
        };
        let scales = tensor::shape(&weight.scale)?;
        let one = scales.iter().product::<usize>() == 1;
        if source != x {
            if one {
                self.add_in_place(&source, weight)?;
                let identity = step(node, "Identity", vec![x.to_owned()], output.clone());
                self.replaced.insert(at, vec![identity]);
            }
            return Ok(());
        }
        let rank = weight.shape.len();
        let axis = int(node, "axis", 1);
        let axis = if axis < 0 { axis.saturating_add(i64::try_from(rank).unwrap_or(0)) } else { axis };
        let axis = usize::try_from(axis).ok().filter(|a| one || *a < rank);
        let axis =
            axis.ok_or_else(|| bad(format!("scales along an axis that a tensor of {rank} axes does not have")))?;
        let by_index = weight.shape.get(axis).copied();
        let fits = one
            || match block {
                0 => scales.len() == 1 && scales.first() == by_index.as_ref(),
                _ => {
                    scales.iter().enumerate().all(|(i, s)| {
                        weight.shape.get(i).is_some_and(|d| *s == if i == axis { d.div_ceil(block) } else { *d })
                    }) && scales.len() == rank
                }
            };
        if !fits {
            let what = format!("scales of shape {scales:?} for a tensor of shape {:?}, axis {axis}", weight.shape);
            return Err(bad(what).note("expected one scale, one for each index of the axis, or one for each block"));
        }
        weight.layout = Layout::Linear { axis, block: if one { 0 } else { block } };
        let name = self.add(x, output, weight)?;
        let identity = step(node, "Identity", vec![name], output.clone());
        self.replaced.insert(at, vec![identity]);
        Ok(())
    }

    /// What `rounded` rounds for `node`, which undoes that, and the minimum and the maximum number that come of it. Exporters
    /// leave out an activation where these say the same.
    fn limits(&self, rounded: &NodeProto, node: &NodeProto) -> Option<(String, [f32; 2])> {
        let number = |n: &NodeProto, i: usize| {
            let tensor = self.constant(input(n, i)?)?;
            let kind = tensor::element_type(&tensor).ok()?;
            let count = tensor::shape(&tensor).ok()?.iter().product::<usize>();
            (count == 1).then(|| quantised::single(&tensor, self.files).map(|value| (kind, value)))?
        };
        let scale = number(rounded, 1)?.1;
        let (kind, zero) = match input(rounded, 2) {
            Some(_) => number(rounded, 2)?,
            None => (DataType::UINT8, 0.0),
        };
        let undone = match input(node, 2) {
            Some(_) => number(node, 2)?.1,
            None => 0.0,
        };
        let (least, most) = match kind {
            DataType::UINT8 => (0.0, 255.0),
            DataType::INT8 => (-128.0, 127.0),
            DataType::UINT16 => (0.0, 65535.0),
            DataType::INT16 => (-32768.0, 32767.0),
            _ => return None,
        };
        let same = number(node, 1)?.1 == scale && undone == zero;
        same.then(|| Some((input(rounded, 0)?.to_owned(), [(least - zero) * scale, (most - zero) * scale])))?
    }

    /// A weight in the place of its integers, which one node that moves elements uses.
    fn add_in_place(&mut self, source: &str, weight: Quantised) -> Result<()> {
        if self.uses.get(source) == Some(&1) && self.initializers.contains_key(source) {
            self.add(source, source, weight)?;
            return Ok(());
        }
        Err(Diagnostic::unsupported("E0123", format!("the quantised tensor '{source}' is used in several ways"))
            .note("expected one use, or DequantizeLinear before all of them"))
    }

    /// What `DynamicQuantizeLinear` rounds to make input `i` of `node`.
    fn quantised_dynamically(&self, node: &NodeProto, i: usize) -> Option<String> {
        let rounded = self.producer(input(node, i)?).filter(|n| n.op_type == "DynamicQuantizeLinear")?;
        input(rounded, 0).map(str::to_owned)
    }

    /// The last axis of a matrix of integers, which scales by column go along.
    fn columns(&self, name: &str) -> usize {
        self.constant(name).map_or(0, |t| t.dims.len().saturating_sub(1))
    }

    /// `Cast(MatMulInteger(DynamicQuantizeLinear(x), w)) · (scale of x · scale of w)`.
    fn integer_product(&mut self, node: &NodeProto) -> Result<()> {
        let found = || {
            let x = self.quantised_dynamically(node, 0)?;
            let rounded = self.producer(input(node, 0)?)?;
            let same_zero = input(node, 2) == rounded.output.get(2).map(String::as_str).filter(|z| !z.is_empty());
            let cast = self.graph.node.get(self.only_user(node.output.first()?)?).filter(|n| n.op_type == "Cast")?;
            let number = cast.output.first()?;
            let at = self.only_user(number)?;
            let scaled = self.graph.node.get(at).filter(|n| n.op_type == "Mul" && same_zero)?;
            let scales = scaled.input.iter().find(|name| *name != number)?;
            let scales = self.producer(scales).filter(|n| n.op_type == "Mul")?;
            let of_x = rounded.output.get(1)?;
            let position = scales.input.iter().position(|name| name != of_x)?;
            if !scales.input.contains(of_x) {
                return None;
            }
            let w = input(node, 1)?;
            // Inputs of the product: integers, their scale, their zero point.
            let parts = NodeProto {
                input: vec![w.into(), scales.input.get(position)?.clone(), input(node, 3).unwrap_or_default().into()],
                ..NodeProto::default()
            };
            let weight = self.weight(&parts, w, 1, 2, Layout::Linear { axis: self.columns(w), block: 0 })?;
            let output = scaled.output.first()?.clone();
            Some((at, x, w.to_owned(), weight, output))
        };
        let Some((at, x, w, weight, output)) = found() else { return Ok(()) };
        let name = self.add(&w, &format!("{output}/weight"), weight)?;
        let product = step(node, "MatMul", vec![x, name], output);
        self.replaced.insert(at, vec![product]);
        Ok(())
    }

    /// A product of `x` with the integers in input 1; the slots of their scale, their zero point and a bias follow.
    fn fused_product(&mut self, at: usize, node: &NodeProto, slots: [usize; 3], x: Option<String>) -> Result<()> {
        let [scale, zero, bias] = slots;
        let (Some(x), Some(w), Some(output)) = (x, input(node, 1), node.output.first()) else { return Ok(()) };
        let layout = Layout::Linear { axis: self.columns(w), block: 0 };
        let Some(weight) = self.weight(node, w, scale, zero, layout) else { return Ok(()) };
        let name = self.add(w, &format!("{output}/weight"), weight)?;
        self.product(at, node, x, name, input(node, bias));
        Ok(())
    }

    /// `x · weight + bias` in the place of node `at`.
    fn product(&mut self, at: usize, node: &NodeProto, x: String, weight: String, bias: Option<&str>) {
        let output = node.output.first().cloned().unwrap_or_default();
        let nodes = match bias {
            None => vec![step(node, "MatMul", vec![x, weight], output)],
            Some(bias) => {
                let product = format!("{output}/product");
                let sum = step(node, "Add", vec![product.clone(), bias.to_owned()], output);
                vec![step(node, "MatMul", vec![x, weight], product), sum]
            }
        };
        self.replaced.insert(at, nodes);
    }

    /// `MatMulNBits`.
    fn packed_product(&mut self, at: usize, node: &NodeProto) -> Result<()> {
        let size = |name: &str, default: i64| {
            let value = int(node, name, default);
            let most = 1 << 24;
            let read = usize::try_from(value).ok().filter(|n| (1..=most).contains(n));
            read.ok_or_else(|| bad(format!("attribute {name} is {value}")).note(format!("expected 1 to {most}")))
        };
        let (k, n, bits, block) = (size("K", 0)?, size("N", 0)?, size("bits", 4)?, size("block_size", 0)?);
        if ![2, 4, 8].contains(&bits) || block * bits % 8 != 0 {
            return Err(Diagnostic::unsupported("E0123", format!("MatMulNBits of {bits} bits in blocks of {block}"))
                .note("expected integers of 2, 4 or 8 bits, and blocks of whole bytes"));
        }
        if input(node, 4).is_some() {
            return Err(Diagnostic::unsupported("E0123", "MatMulNBits with the order of its columns in g_idx")
                .note("quantise the model without an order by activations"));
        }
        let (Some(x), Some(w), Some(output)) = (input(node, 0), input(node, 1), node.output.first()) else {
            return Ok(());
        };
        let Some(mut weight) = self.weight(node, w, 2, 3, Layout::Packed { bits, block }) else { return Ok(()) };
        weight.shape = vec![k, n];
        let name = self.add(w, &format!("{output}/weight"), weight)?;
        self.product(at, node, x.to_owned(), name, input(node, 5));
        Ok(())
    }

    /// `GatherBlockQuantized`.
    fn packed_lookup(&mut self, at: usize, node: &NodeProto) -> Result<()> {
        let (Some(w), Some(ids), Some(output)) = (input(node, 0), input(node, 1), node.output.first()) else {
            return Ok(());
        };
        let block = usize::try_from(int(node, "block_size", 128)).unwrap_or(0);
        let axis = int(node, "quantize_axis", 1);
        let Some(mut weight) = self.weight(node, w, 2, 3, Layout::Linear { axis: 0, block }) else { return Ok(()) };
        let rank = i64::try_from(weight.shape.len()).unwrap_or(0);
        let axis = if axis < 0 { axis.saturating_add(rank) } else { axis };
        let along = usize::try_from(axis).ok().filter(|a| *a < weight.shape.len() && block > 0);
        let along = along.ok_or_else(|| bad(format!("blocks of {block} elements along axis {axis} of {rank}")))?;
        let bytes = tensor::element_type(&weight.elements)? == DataType::UINT8;
        weight.layout = Layout::Linear { axis: along, block };
        if bytes && int(node, "bits", 4) == 4 {
            if along + 1 != weight.shape.len() {
                return Err(Diagnostic::unsupported("E0123", "GatherBlockQuantized of packed bytes in blocks of rows")
                    .note("expected blocks along the last axis"));
            }
            weight.layout = Layout::Nibbles { block };
            if let Some(columns) = weight.shape.last_mut() {
                *columns = columns.checked_mul(2).ok_or_else(|| bad("a size is beyond 64 bits"))?;
            }
        } else if bytes && weight.zero.is_none() {
            return Err(Diagnostic::unsupported("E0123", "GatherBlockQuantized of bytes without zero points"));
        }
        let gather_axis = attribute(node, "gather_axis").map(|a| a.i).unwrap_or(0);
        let name = self.add(w, &format!("{output}/weight"), weight)?;
        let mut lookup = step(node, "Gather", vec![name, ids.to_owned()], output.clone());
        lookup.attribute.push(onnx_protobuf::AttributeProto {
            name: "axis".into(),
            type_: onnx_protobuf::attribute_proto::AttributeType::INT.into(),
            i: gather_axis,
            ..onnx_protobuf::AttributeProto::default()
        });
        self.replaced.insert(at, vec![lookup]);
        Ok(())
    }

    /// The graph with what replaces its nodes, without what nothing uses any more.
    fn finish(self) -> Table {
        let File { graph, table, made, taken, mut replaced, .. } = self;
        let nodes = std::mem::take(&mut graph.node).into_iter().enumerate();
        let nodes: Vec<NodeProto> = nodes.flat_map(|(at, node)| replaced.remove(&at).unwrap_or(vec![node])).collect();
        let mut wanted: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
        let mut kept = Vec::with_capacity(nodes.len());
        for node in nodes.into_iter().rev() {
            if node.output.iter().any(|o| wanted.contains(o)) {
                used_names(&node, &mut |name| {
                    wanted.insert(name.to_owned());
                });
                kept.push(node);
            }
        }
        kept.reverse();
        graph.node = kept;
        graph
            .initializer
            .retain(|t| !table.contains_key(&t.name) && (wanted.contains(&t.name) || !taken.contains(&t.name)));
        graph.initializer.extend(made);
        table
    }
}

/// Whether a node moves the elements of its first input and changes none.
fn is_movement(node: &NodeProto) -> bool {
    let ops = ["Gather", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Identity", "Flatten", "Expand"];
    is_default_domain(&node.domain) && ops.contains(&node.op_type.as_str())
}
