//! A test between three parties, its floating operands secret.
//!
//! A test has no weights, so nothing in it would be secret: its inputs are the client's, who would compute alone.
//! Therefore every floating operand is split into a sum of two: the client's input, and a weight of the server's. Where
//! there are several, the test runs once more with the first as the client's input and the others as weights.

use std::collections::{BTreeMap, BTreeSet};

use ombra_compiler::graph::{Output, Owner};
use ombra_compiler::import;
use ombra_compiler::onnx::Model;
use ombra_compiler::output;
use ombra_compiler::output::reveal::Reveal;
use ombra_compiler::pipeline::{self, Options, analyse};
use ombra_ir::plain::{self, DType, Op, Tensor};
use ombra_ir::{Bindings, Diagnostic, Result};
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::inputs::infer_request;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{AttributeProto, GraphProto, NodeProto, TensorProto};
use protobuf::Enum;

use super::case::{Case, Given, difference};
use super::{Outcome, first};
use crate::built::Folder;
use crate::parties;

/// Fixed point has an absolute error, and functions are approximated to about this.
const ABSOLUTE: f64 = 2e-3;
const RELATIVE: f64 = 2e-3;
/// The server's parts of secret operands, in turn.
const PARTS: [f32; 4] = [0.5, -0.25, 0.125, -0.75];

/// What becomes of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// A part is the client's, a part the server's.
    Secret,
    /// An input of the client's.
    Client,
    /// A weight of the server's.
    Weight,
    /// An input that everybody sees.
    Public,
    /// A constant of the model.
    Bound,
}

/// Names of inputs that are parameters of a norm.
const WEIGHTS: [&str; 2] = ["W", "B"];
/// Names of floating inputs that models compute from lengths and positions.
const PUBLIC: [&str; 3] = ["attn_mask", "cos_cache", "sin_cache"];

fn is_finite(given: &Given) -> bool {
    given.tensor.as_f32().map_or(true, |v| v.iter().all(|x| x.is_finite()))
}

fn treatment(case: &Case, input: &Given) -> Treatment {
    let norm = case.name.contains("_normalization_");
    if case.is_structure(&input.name) {
        Treatment::Bound
    } else if input.tensor.dtype() != DType::F32 {
        Treatment::Public
    } else if PUBLIC.contains(&input.name.as_str()) {
        if is_finite(input) { Treatment::Public } else { Treatment::Bound }
    } else if input.tensor.rank() == 0 {
        // Numbers are structure of a model, as an alpha or an epsilon is.
        Treatment::Bound
    } else if norm && WEIGHTS.contains(&input.name.as_str()) {
        Treatment::Weight
    } else {
        Treatment::Secret
    }
}

/// Why a test is not run, for a reason that lies in its values.
fn left_out(case: &Case) -> Option<&'static str> {
    let kinds = || case.inputs.iter().chain(&case.outputs).map(|g| g.kind);
    if kinds().any(|k| matches!(k, DataType::FLOAT16 | DataType::DOUBLE)) {
        Some("half or double precision")
    } else if case.name.starts_with("test_isnan") {
        Some("fixed point has no NaN")
    } else if case.name.contains("softmax_large_number") {
        Some("scores far beyond those of models")
    } else {
        None
    }
}

/// Runs the test.
///
/// # Errors
/// The first refusal of the compiler, or an error of a party.
pub fn run(case: &Case) -> Result<Outcome> {
    if let Some(why) = left_out(case) {
        return Ok(Outcome::LeftOut(why));
    }
    let sums: Vec<Treatment> = case.inputs.iter().map(|i| treatment(case, i)).collect();
    let mut secrets = (0..sums.len()).filter(|i| sums[*i] == Treatment::Secret);
    let Some(data) = secrets.next() else { return Ok(Outcome::LeftOut("not secret")) };
    let mut outcome = run_with(case, &sums)?;
    if secrets.next().is_some() && outcome == Outcome::Passed {
        let mut apart = sums;
        apart.iter_mut().filter(|t| **t == Treatment::Secret).for_each(|t| *t = Treatment::Weight);
        apart[data] = Treatment::Client;
        outcome = match run_with(case, &apart)? {
            Outcome::Failed(why) => Outcome::Failed(format!("of client and server: {why}")),
            // With a weight of one number, which is public, everything is the client's.
            Outcome::LeftOut(_) => Outcome::Passed,
            other => other,
        };
    }
    Ok(outcome)
}

fn run_with(case: &Case, treatments: &[Treatment]) -> Result<Outcome> {
    let mut proto = case.model.proto.clone();
    let graph = proto.graph.as_mut().ok_or_else(|| Diagnostic::internal("E0000", "a model without a graph"))?;
    let mut sizes = import::Options::default();
    let mut given: Vec<(String, Tensor)> = Vec::new();
    for (input, treatment) in case.inputs.iter().zip(treatments) {
        let named = |t: Tensor| (input.name.clone(), t);
        match treatment {
            Treatment::Secret => given.push(named(share(graph, input)?)),
            Treatment::Client => given.push(named(input.tensor.clone())),
            Treatment::Weight => {
                graph.input.retain(|i| i.name != input.name);
                graph.initializer.push(weight(&input.name, input.tensor.shape(), input.tensor.as_f32()?.to_vec()));
            }
            Treatment::Public => {
                sizes.public_inputs.insert(input.name.clone());
                given.push(named(input.tensor.clone()));
            }
            Treatment::Bound => {
                sizes.constants.insert(input.name.clone(), input.tensor.clone());
            }
        }
    }
    let model = Model::from_proto(proto, &case.model.path)?;
    let calibration = vec![given.iter().cloned().collect::<BTreeMap<_, _>>()];
    // The recorded inputs are all there are: how likely others leave their range is not asked.
    let mut options = Options { sizes, calibration, ..Options::default() };
    let analysed = analyse(&model, None, &options).map_err(first)?;
    let owned = |o: &&Output| analysed.graph.node(o.value).is_ok_and(|n| n.owner == Owner::Secret);
    let secret: BTreeSet<String> = analysed.graph.outputs.iter().filter(owned).map(|o| o.name.clone()).collect();
    if secret.is_empty() {
        return Ok(Outcome::LeftOut("not secret"));
    }
    let revealed: Vec<&Given> = case.outputs.iter().filter(|o| secret.contains(&o.name) && is_finite(o)).collect();
    if revealed.is_empty() {
        return Ok(Outcome::LeftOut("infinite outputs"));
    }
    options.reveal = revealed.iter().map(|o| Reveal::Output(o.name.clone())).collect();
    let mut compiled = pipeline::compile(&model, None, &options).map_err(first)?;
    let folder = Folder::new()?;
    output::write(&mut compiled, &model, &[], folder.path())?;
    let plan = PlanFolder::open(folder.path())?;
    let known = |name: &str| plan.plan.graph_inputs.iter().any(|i| i.name == name);
    given.retain(|(name, _)| known(name));
    let (request, given) = infer_request(&plan.plan, given)?;
    let sides = parties::run(&plan, &request, &[given])?;
    let costs = parties::costs(&plan, &request, &sides, 0)?;
    if !costs.wrong.is_empty() || costs.measured != costs.predicted {
        return Ok(Outcome::Failed("it does not cost what is declared".into()));
    }
    let opened = sides[0].steps.first().map_or(&[][..], |step| &step.opened);
    let slots = &plan.plan.module.outputs;
    for output in revealed {
        let at = opened.iter().find(|o| slots.get(o.slot as usize).is_some_and(|s| s.name == output.name));
        let Some(at) = at else { return Ok(Outcome::Failed(format!("{} is not revealed", output.name))) };
        let reals: Vec<f32> = at.reals().into_iter().map(|v| v as f32).collect();
        let got = Tensor::f32(&at.shape, reals)?;
        // Booleans and integers are revealed as numbers.
        let want = Op::Cast { to: DType::F32 };
        let want = plain::eval(&want, &[&output.tensor], &Bindings::new(), output.tensor.len())?;
        let exact = output.tensor.dtype() != DType::F32;
        let (absolute, relative) = if exact { (0.0, 0.0) } else { (ABSOLUTE, RELATIVE) };
        if let Some(wrong) = difference(&got, &want, absolute, relative) {
            return Ok(Outcome::Failed(format!("{}: {wrong}", output.name)));
        }
    }
    Ok(Outcome::Passed)
}

/// Lets the nodes of `graph` use the sum of `input` and a weight, and gives the client's part of it.
fn share(graph: &mut GraphProto, input: &Given) -> Result<Tensor> {
    let (sum, part) = (format!("{}.sum", input.name), format!("{}.part", input.name));
    for used in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|used| **used == input.name) {
        used.clone_from(&sum);
    }
    let values = input.tensor.as_f32()?;
    // A single number would be structure and public: it is cut from a weight of two.
    let server: Vec<f32> = PARTS.into_iter().cycle().take(values.len().max(2)).collect();
    let client = values.iter().zip(&server).map(|(v, part)| v - part).collect();
    let node = |op: &str, input: &[&str], output: &str| NodeProto {
        op_type: op.into(),
        name: output.into(),
        input: input.iter().map(|s| (*s).into()).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let mut nodes = vec![node("Add", &[&input.name, &part], &sum)];
    if values.len() < 2 {
        let (whole, start, end, shape) =
            (format!("{part}.whole"), format!("{part}.start"), format!("{part}.end"), format!("{part}.shape"));
        let cut = format!("{part}.cut");
        let count = values.len() as i64;
        let sizes = input.tensor.shape().iter().map(|d| *d as i64).collect();
        graph.initializer.extend([
            weight(&whole, &[2], server),
            ints(&start, vec![0]),
            ints(&end, vec![count]),
            ints(&shape, sizes),
        ]);
        let mut reshape = node("Reshape", &[&cut, &shape], &part);
        reshape.attribute.push(AttributeProto { name: "allowzero".into(), i: 1, ..AttributeProto::default() });
        nodes.insert(0, reshape);
        nodes.insert(0, node("Slice", &[&whole, &start, &end], &cut));
    } else {
        graph.initializer.push(weight(&part, input.tensor.shape(), server));
    }
    graph.node.splice(0..0, nodes);
    Tensor::f32(input.tensor.shape(), client)
}

fn weight(name: &str, shape: &[usize], values: Vec<f32>) -> TensorProto {
    let dims = shape.iter().map(|d| *d as i64).collect();
    TensorProto {
        name: name.into(),
        data_type: DataType::FLOAT.value(),
        dims,
        float_data: values,
        ..Default::default()
    }
}

fn ints(name: &str, values: Vec<i64>) -> TensorProto {
    let dims = vec![values.len() as i64];
    TensorProto {
        name: name.into(),
        data_type: DataType::INT64.value(),
        dims,
        int64_data: values,
        ..Default::default()
    }
}
