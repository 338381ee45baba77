//! Reading, checking and writing ONNX files.
//!
//! What comes out of [`Model::read`] keeps the promises that everything after it relies on: the graph is there, its
//! default operator set is one that is supported, value names are unique, nodes stand in an order in which every input is
//! defined before it is used, no local functions are left, every tensor has as much data as its shape says, and quantised
//! weights are read as the numbers that they stand for.

mod check;
mod dequantise;
mod element;
mod external;
mod inline;
mod quantised;
mod scopes;
mod split;
mod tensor;
mod wire;
mod write;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ombra_ir::{Diagnostic, Result};
use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto, TensorProto};

use external::ExternalFiles;

pub use check::OPSETS;
pub(crate) use check::used_names;
pub(crate) use element::element_of;
pub use external::ABSENT;
pub(crate) use tensor::floats as floats_of;
pub use tensor::{element_size, element_type, is_floating, shape};
pub(crate) use write::blocks;
pub use write::{ExternalWriter, write_external, write_model, write_model_with};

/// One ONNX file that was read and checked, with its external data mapped.
pub struct Model {
    /// The file's content. `raw_data` of external tensors stays empty; read elements with [`Model::bytes`].
    pub proto: ModelProto,
    /// Where the file was.
    pub path: PathBuf,
    files: ExternalFiles,
    quantised: quantised::Table,
    initializers: HashMap<String, usize>,
}

impl Model {
    /// Reads and checks the ONNX file at `path` and maps its external data.
    ///
    /// # Errors
    /// One error names the file and, where there is one, the node: `E0101` the file cannot be read, `E0102` it is no ONNX
    /// file, `E0103` to `E0109` its graph breaks a rule, `E0110` to `E0112` external data, `E0120` to `E0122` a tensor.
    pub fn read(path: &Path) -> Result<Model> {
        let proto = parse_file(path).map_err(|d| within(path, d))?;
        Model::from_proto(proto, path)
    }

    /// [`Model::read`] for costs alone: files of external data need not be there. See [`Model::absent`].
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn read_for_costs(path: &Path) -> Result<Model> {
        let proto = parse_file(path).map_err(|d| within(path, d))?;
        Model::checked(proto, path, true)
    }

    /// Checks `proto` as the content of a file at `path`, in whose folder external data lie.
    ///
    /// # Errors
    /// As [`Model::read`].
    pub fn from_proto(proto: ModelProto, path: &Path) -> Result<Model> {
        Model::checked(proto, path, false)
    }

    fn checked(mut proto: ModelProto, path: &Path, may_be_absent: bool) -> Result<Model> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut files = ExternalFiles::new(folder, may_be_absent);
        check::structure(&mut proto).map_err(|d| within(path, d))?;
        each_tensor(&proto, &mut |tensor| {
            if tensor::is_external(tensor) {
                files.open(tensor).map_err(|d| d.at(tensor::place(tensor)))?;
            }
            tensor::check(tensor, Some(&files))
        })
        .map_err(|d| within(path, d))?;
        let quantised = match proto.graph.as_mut() {
            Some(graph) => dequantise::dequantise(graph, &files).map_err(|d| within(path, d))?,
            None => quantised::Table::new(),
        };
        let initializers = proto.graph.initializer.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Model { proto, path: path.to_owned(), files, quantised, initializers })
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        &self.proto.graph
    }

    /// Locations of the data files that are not there; none but for a model that was read for costs.
    pub fn absent(&self) -> &BTreeSet<String> {
        self.files.absent()
    }

    /// Whether the elements of `tensor` can be read.
    pub fn has_data(&self, tensor: &TensorProto) -> bool {
        match self.quantised_as(tensor) {
            Some(weight) => weight.has_data(&self.files),
            None => !tensor::is_external(tensor) || !self.files.lacks(tensor),
        }
    }

    /// Whether weights of the file are integers that stand for floating-point numbers.
    pub fn is_quantised(&self) -> bool {
        !self.quantised.is_empty()
    }

    /// What the elements of `tensor` are made from, if it has none of its own.
    fn quantised_as(&self, tensor: &TensorProto) -> Option<&quantised::Quantised> {
        let empty = tensor.raw_data.is_empty() && tensor.float_data.is_empty() && !tensor::is_external(tensor);
        self.quantised.get(&tensor.name).filter(|_| empty)
    }

    /// Version of the default operator set.
    pub fn opset(&self) -> i64 {
        self.proto.opset_import.iter().find(|o| is_default_domain(&o.domain)).map_or(0, |o| o.version)
    }

    /// The initializer of the main graph called `name`.
    pub fn initializer(&self, name: &str) -> Option<&TensorProto> {
        let at = *self.initializers.get(name)?;
        self.proto.graph.initializer.get(at).filter(|tensor| tensor.name == name)
    }

    /// The elements of `tensor` in canonical form: little-endian, one after another, booleans as bytes 0 and 1. The
    /// tensor may stand anywhere in this model.
    ///
    /// # Errors
    /// `E0112`, `E0120`, `E0121` or `E0122` when type, shape and data do not go together.
    pub fn bytes<'a>(&'a self, tensor: &'a TensorProto) -> Result<Cow<'a, [u8]>> {
        if let Some(weight) = self.quantised_as(tensor) {
            let bytes = weight.bytes(&self.files).map_err(|d| within(&self.path, d))?;
            return Ok(Cow::Owned(bytes));
        }
        tensor::bytes(tensor, &self.files).map_err(|d| within(&self.path, d))
    }

    /// Says that so many of the [`Model::bytes`] are read in passing: mapped files do not stay in memory for them.
    pub fn was_read(&self, bytes: usize) {
        self.files.was_read(bytes);
    }

    /// The elements of a tensor of single, half, bfloat16 or double precision, in single precision.
    ///
    /// # Errors
    /// `E0120` when the elements are of another type, otherwise as [`Model::bytes`].
    pub fn floats(&self, tensor: &TensorProto) -> Result<Vec<f32>> {
        let kind = element_type(tensor).map_err(|d| within(&self.path, d))?;
        let bytes = self.bytes(tensor)?;
        let floats = tensor::floats(kind, &bytes);
        self.was_read(bytes.len());
        floats.ok_or_else(|| self.other_type(tensor, "floating-point numbers"))
    }

    /// The elements of a tensor of integers or booleans.
    ///
    /// # Errors
    /// `E0120` when the elements are of another type or beyond 2^63 - 1, otherwise as [`Model::bytes`].
    pub fn ints(&self, tensor: &TensorProto) -> Result<Vec<i64>> {
        let kind = element_type(tensor).map_err(|d| within(&self.path, d))?;
        tensor::ints(kind, &self.bytes(tensor)?)
            .ok_or_else(|| self.other_type(tensor, "integers of at most 63 bits or booleans"))
    }

    /// The error of a tensor with elements of another type than `expected`.
    fn other_type(&self, tensor: &TensorProto, expected: &str) -> Diagnostic {
        let found = element_type(tensor).map_or_else(|_| "unknown".into(), |kind| format!("{kind:?}"));
        let error = Diagnostic::input("E0120", format!("elements are {found}, expected {expected}"));
        within(&self.path, error.at(tensor::place(tensor)))
    }
}

/// Whether `domain` is ONNX's own.
pub fn is_default_domain(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// The attribute of `node` called `name`.
pub fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

/// The graphs that `node` holds: the branches of an `If`, the body of a `Loop`.
pub fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// Every tensor of a model that was read: initializers and tensor attributes, subgraphs included.
pub fn each_tensor<'a>(proto: &'a ModelProto, visit: &mut dyn FnMut(&'a TensorProto) -> Result<()>) -> Result<()> {
    proto.graph.as_ref().map_or(Ok(()), |graph| graph_tensors(graph, visit))
}

/// Every tensor of `graph`.
fn graph_tensors<'a>(graph: &'a GraphProto, visit: &mut dyn FnMut(&'a TensorProto) -> Result<()>) -> Result<()> {
    graph.initializer.iter().try_for_each(&mut *visit)?;
    node_tensors(&graph.node, visit)
}

/// Every tensor in attributes of `nodes`.
fn node_tensors<'a>(nodes: &'a [NodeProto], visit: &mut dyn FnMut(&'a TensorProto) -> Result<()>) -> Result<()> {
    for node in nodes {
        for attribute in &node.attribute {
            attribute.t.iter().chain(&attribute.tensors).try_for_each(&mut *visit)?;
        }
        subgraphs(node).try_for_each(|graph| graph_tensors(graph, visit))?;
    }
    Ok(())
}

/// Parses the file at `path`, which may have at most 2 GiB as every protobuf file.
fn parse_file(path: &Path) -> Result<ModelProto> {
    let map = external::map_file(path).map_err(|d| Diagnostic { code: "E0101", ..d })?;
    if map.len() > i32::MAX as usize {
        return Err(Diagnostic::input(
            "E0102",
            format!("the file has {} bytes, more than an ONNX file may", map.len()),
        )
        .note("keep the weights of large models in an external data file"));
    }
    parse(&map)
}

/// Parses `bytes` as an ONNX file without checking the graph.
///
/// # Errors
/// `E0102` when they are none.
pub fn parse(bytes: &[u8]) -> Result<ModelProto> {
    wire::check(bytes)?;
    ModelProto::parse_from_bytes(bytes)
        .map_err(|e| Diagnostic::input("E0102", format!("this is not a readable ONNX file: {e}")))
}

/// The error `error` with the file in front of its place.
fn within(path: &Path, mut error: Diagnostic) -> Diagnostic {
    error.place = Some(match error.place.take() {
        Some(place) => format!("{}: {place}", path.display()),
        None => path.display().to_string(),
    });
    error
}
