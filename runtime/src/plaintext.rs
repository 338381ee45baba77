//! Running a part of a model in the clear, on the client: the layers that the provider left as they are public.
//!
//! The part is an ONNX file with its weights inside or in a data file beside it, and rten runs it. rten keeps integers and
//! booleans in 32 bits and all floating-point numbers in single precision; its own panics, on a model it cannot handle,
//! become errors here. A model that nobody vouches for can still ask it for more memory than there is, which ends the
//! process: [`crate::app::isolation`] runs it in one of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ombra_ir::{Diagnostic, Result};
use rten::{LoadError, Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::prelude::*;

/// A loaded model that runs in the clear.
pub struct PlaintextModel {
    model: Model,
    threads: Option<Arc<ThreadPool>>,
}

/// One input of a run: row-major elements and their shape. It has no `Debug`, inputs are the client's.
#[derive(Clone, Copy)]
pub struct PlainInput<'a> {
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// As many elements as the product of the sizes.
    pub elements: PlainElements<'a>,
}

/// Elements of an input.
#[derive(Clone, Copy)]
pub enum PlainElements<'a> {
    /// Single-precision numbers.
    F32(&'a [f32]),
    /// Integers, each within 32 bits.
    I64(&'a [i64]),
    /// Booleans.
    Bool(&'a [bool]),
}

impl PlaintextModel {
    /// Loads the ONNX file `bytes`, which must hold all its weights.
    ///
    /// # Errors
    /// `E0721` when rten cannot load it, with the operator at fault where there is one.
    pub fn load(bytes: Vec<u8>) -> Result<Self> {
        Self::loaded(|| ModelOptions::with_all_ops().load(bytes))
    }

    /// Loads the ONNX file at `path`, whose weights may lie in data files of its folder: a model of one's own, which no
    /// digest vouches for.
    ///
    /// # Errors
    /// As [`PlaintextModel::load`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::loaded(|| ModelOptions::with_all_ops().load_file(path))
    }

    /// [`load`](Self::load) for a file whose weights lie in the file `name` of its folder, with the content `data`.
    ///
    /// # Errors
    /// As [`PlaintextModel::load`].
    pub fn load_with_data(bytes: Vec<u8>, name: &str, data: Vec<u8>) -> Result<Self> {
        Self::loaded(|| {
            let mut options = ModelOptions::with_all_ops();
            options.external_data(name, data);
            options.load(bytes)
        })
    }

    fn loaded(load: impl FnOnce() -> std::result::Result<Model, LoadError>) -> Result<Self> {
        let loaded = guarded(load).ok_or_else(|| broken("loading"))?;
        let model = loaded.map_err(|e| {
            let error =
                Diagnostic::unsupported("E0721", format!("the model to run in the clear cannot be loaded: {e}"));
            match e.node() {
                Some(node) => error.at(format!("node '{node}'")),
                None => error,
            }
        })?;
        Ok(PlaintextModel { model, threads: None })
    }

    /// The same model, run by `threads` threads of its own instead of one for each core.
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = Some(Arc::new(ThreadPool::with_num_threads(threads.max(1))));
        self
    }

    /// Names of the inputs, in the order of the file.
    pub fn inputs(&self) -> Vec<&str> {
        self.names(self.model.input_ids())
    }

    /// Names of the outputs, in the order of the file.
    pub fn outputs(&self) -> Vec<&str> {
        self.names(self.model.output_ids())
    }

    /// Runs the model and returns shape and elements of each of `outputs`, in their order. Integer and boolean outputs
    /// come as numbers of the same value.
    ///
    /// # Errors
    /// `E0722` when an input or output does not exist, an input's elements are not as many as its shape says, or an integer
    /// is beyond 32 bits; `E0723` when the run fails, an input being missing or of a wrong shape; `E0724` when an integer
    /// output cannot be represented exactly.
    pub fn run(&self, inputs: &[(&str, PlainInput)], outputs: &[&str]) -> Result<Vec<(Vec<usize>, Vec<f32>)>> {
        let mut values: Vec<(NodeId, ValueOrView)> = Vec::with_capacity(inputs.len());
        for (name, input) in inputs {
            values.push((self.id(name, "input", &self.inputs())?, input.value(name)?));
        }
        let ids = outputs.iter().map(|name| self.id(name, "output", &self.outputs())).collect::<Result<Vec<_>>>()?;
        let options = RunOptions::default().with_thread_pool(self.threads.clone());
        let results = guarded(|| self.model.run(values, &ids, Some(options)))
            .ok_or_else(|| broken("running"))?
            .map_err(|e| Diagnostic::input("E0723", format!("a part of the model cannot be run in the clear: {e}")))?;
        outputs.iter().zip(results).map(|(name, value)| numbers(name, value)).collect()
    }

    /// The names of `ids`.
    fn names(&self, ids: &[NodeId]) -> Vec<&str> {
        ids.iter().filter_map(|&id| self.model.node_info(id)?.name()).collect()
    }

    /// The node called `name`, one of `known`.
    fn id(&self, name: &str, what: &str, known: &[&str]) -> Result<NodeId> {
        self.model.find_node(name).filter(|_| known.contains(&name)).ok_or_else(|| {
            Diagnostic::input("E0722", format!("the model to run in the clear has no {what} '{name}'"))
                .note(format!("it has {}", known.join(", ")))
        })
    }
}

impl<'a> PlainInput<'a> {
    /// The input as rten takes it.
    fn value(self, name: &str) -> Result<ValueOrView<'a>> {
        let count = match self.elements {
            PlainElements::F32(elements) => elements.len(),
            PlainElements::I64(elements) => elements.len(),
            PlainElements::Bool(elements) => elements.len(),
        };
        let wrong = |what: String| Diagnostic::input("E0722", what).at(format!("input '{name}'"));
        let expected = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let mismatch = || wrong(format!("{count} elements for a shape of {:?}", self.shape));
        if expected != Some(count) {
            return Err(mismatch());
        }
        let narrow = |v: &i64| i32::try_from(*v).map_err(|_| wrong("an integer is beyond 32 bits".into()));
        match self.elements {
            PlainElements::F32(elements) => {
                ValueView::from_shape(self.shape, elements).map(ValueOrView::from).map_err(|_| mismatch())
            }
            PlainElements::I64(elements) => {
                let elements = elements.iter().map(narrow).collect::<Result<Vec<i32>>>()?;
                Value::from_shape(self.shape, elements).map(ValueOrView::from).map_err(|_| mismatch())
            }
            PlainElements::Bool(elements) => {
                let elements = elements.iter().map(|&b| i32::from(b)).collect();
                Value::from_shape(self.shape, elements).map(ValueOrView::from).map_err(|_| mismatch())
            }
        }
    }
}

/// Shape and elements of the output `name`.
fn numbers(name: &str, value: Value) -> Result<(Vec<usize>, Vec<f32>)> {
    let exact = |v: i32| {
        let number = v as f32;
        if f64::from(number) == f64::from(v) {
            return Ok(number);
        }
        Err(Diagnostic::unsupported("E0724", "an integer output has more digits than single precision holds")
            .at(format!("output '{name}'")))
    };
    match value {
        Value::FloatTensor(tensor) => Ok((tensor.shape().to_vec(), tensor.into_data())),
        Value::Int32Tensor(tensor) => {
            Ok((tensor.shape().to_vec(), tensor.into_data().into_iter().map(exact).collect::<Result<_>>()?))
        }
        Value::Int8Tensor(tensor) => {
            Ok((tensor.shape().to_vec(), tensor.into_data().into_iter().map(f32::from).collect()))
        }
        Value::UInt8Tensor(tensor) => {
            Ok((tensor.shape().to_vec(), tensor.into_data().into_iter().map(f32::from).collect()))
        }
        _ => Err(Diagnostic::unsupported("E0724", "an output is no tensor").at(format!("output '{name}'"))),
    }
}

/// The result of `work`, or nothing when it panicked.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The error of a panic while `doing`.
fn broken(doing: &str) -> Diagnostic {
    Diagnostic::unsupported("E0723", format!("{doing} a part of the model in the clear ended with a panic in rten"))
        .note("the model uses an operator in a way that rten does not support")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use onnx_protobuf::tensor_proto::DataType;
    use onnx_protobuf::{Message, TensorProto};
    use protobuf::Enum;

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/llama-trained/base")
    }

    fn load() -> PlaintextModel {
        PlaintextModel::load(std::fs::read(folder().join("model.onnx")).unwrap()).unwrap().with_threads(1)
    }

    struct Tensor {
        name: String,
        shape: Vec<usize>,
        floats: Vec<f32>,
        ints: Vec<i64>,
    }

    impl Tensor {
        fn input(&self) -> (&str, PlainInput<'_>) {
            let elements = match self.name.as_str() {
                name if name.starts_with("past") => PlainElements::F32(&self.floats),
                _ => PlainElements::I64(&self.ints),
            };
            (&self.name, PlainInput { shape: &self.shape, elements })
        }
    }

    /// The tensors `prefix_0.pb`, `prefix_1.pb` and so on of a test set.
    fn tensors(set: usize, prefix: &str) -> Vec<Tensor> {
        let folder = folder().join(format!("test_data_set_{set}"));
        let paths = (0..).map(|i| folder.join(format!("{prefix}_{i}.pb"))).take_while(|path| path.exists());
        let read = |path: PathBuf| {
            let proto = TensorProto::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap();
            let (floats, ints) = match DataType::from_i32(proto.data_type).unwrap() {
                DataType::FLOAT => {
                    (proto.raw_data.as_chunks().0.iter().map(|w| f32::from_le_bytes(*w)).collect(), vec![])
                }
                _ => (vec![], proto.raw_data.as_chunks().0.iter().map(|w| i64::from_le_bytes(*w)).collect()),
            };
            Tensor { name: proto.name, shape: proto.dims.iter().map(|&d| d as usize).collect(), floats, ints }
        };
        paths.map(read).collect()
    }

    #[test]
    fn a_whole_model_gives_its_reference_outputs() {
        let model = load();
        for set in 0..3 {
            let (inputs, expected) = (tensors(set, "input"), tensors(set, "output"));
            let given: Vec<_> = inputs.iter().map(Tensor::input).collect();
            let wanted: Vec<&str> = expected.iter().map(|t| t.name.as_str()).collect();
            assert_eq!((given.len(), wanted.len()), (11, 9));
            for ((shape, found), expected) in model.run(&given, &wanted).unwrap().iter().zip(&expected) {
                assert_eq!(shape, &expected.shape, "set {set}, {}", expected.name);
                let error = found.iter().zip(&expected.floats).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < 1e-3, "set {set}, {}: {error}", expected.name);
            }
        }
    }

    #[test]
    fn inputs_and_outputs_have_their_names() {
        let model = load();
        assert_eq!(model.inputs()[..3], ["input_ids", "attention_mask", "position_ids"]);
        assert_eq!(model.outputs()[..2], ["logits", "present.0.key"]);
    }

    #[test]
    fn wrong_inputs_are_errors() {
        let model = load();
        let inputs = tensors(0, "input");
        let given: Vec<_> = inputs.iter().map(Tensor::input).collect();
        let code = |given: &[(&str, PlainInput)], output: &str| model.run(given, &[output]).err().map(|d| d.code);
        let with = |at: usize, name: &'static str, shape: &'static [usize], elements: PlainElements<'static>| {
            let mut changed = given.clone();
            changed[at] = (name, PlainInput { shape, elements });
            code(&changed, "logits")
        };
        assert_eq!(code(&given, "logits"), None);
        assert_eq!(code(&given, "nothing"), Some("E0722"));
        assert_eq!(code(&given[1..], "logits"), Some("E0723"));
        assert_eq!(with(0, "nothing", &[1, 1], PlainElements::I64(&[1])), Some("E0722"));
        assert_eq!(with(0, "input_ids", &[7, 7], PlainElements::I64(&[1])), Some("E0722"));
        assert_eq!(with(0, "input_ids", &[usize::MAX, 2], PlainElements::I64(&[1])), Some("E0722"));
        assert_eq!(with(0, "input_ids", &[1, 1], PlainElements::I64(&[1 << 40])), Some("E0722"));
        assert_eq!(with(1, "attention_mask", &[2], PlainElements::Bool(&[true, false])), Some("E0723"));
    }

    #[test]
    fn what_is_no_model_is_an_error() {
        assert_eq!(PlaintextModel::load(vec![]).err().unwrap().code, "E0721");
        let bytes = std::fs::read(folder().join("model.onnx")).unwrap();
        assert_eq!(PlaintextModel::load(bytes[..bytes.len() / 2].to_vec()).err().unwrap().code, "E0721");
    }
}
