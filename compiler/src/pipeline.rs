//! From a model file to a plan: the one place that knows the order of passes.

use crate::assign_rotations::{Spread, assign_rotations};
use crate::calibrate::{Inputs, Ranges, calibrate, complete_inputs, drawn_inputs};
use crate::client_region;
use crate::expand::expand;
use crate::graph::{Graph, InputRole, Op, Owner, ValueId, eval};
use crate::import::ops::attention::ROTARY;
use crate::import::{self, Published, load_weight};
use crate::labels::{self, Labels, Overrides, label};
use crate::lower::{self, lower};
use crate::onnx::Model;
use crate::partition::partition;
use crate::passes::assign_owners::{assign_owners, client_states, secret_states};
use crate::passes::decompose::decompose;
use crate::passes::fold_norms::fold_norms;
use crate::passes::lift_reshapes::lift_reshapes;
use crate::passes::narrow_demand::{narrow_demand, take_last};
use crate::published::{MASK, check_published, structure, weights_of};
use crate::reveal::{Reveal, keep_outputs, reveals};
use crate::savings::{Pass, Passes, unpack_masks, widen};
use ombra_ir::module::{Module, OutputKind, Stage};
use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::plan::{ClientState, FileDigest, GraphInput, Plan};
use ombra_ir::{Diagnostic, Dim, Result, plan};
use onnx_protobuf::ModelProto;
use std::collections::{BTreeMap, BTreeSet};

/// Diagnostics of one attempt.
pub type Errors = Vec<Diagnostic>;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sizes and maxima.
    pub sizes: import::Options,
    /// Names that are public or private whatever their content.
    pub overrides: Overrides,
    /// What the client learns; empty for the default.
    pub reveal: Vec<Reveal>,
    /// Fraction bits.
    pub f: u8,
    /// Calibration inputs; drawn if there are none. Masks, positions and caches have defaults.
    pub calibration: Vec<Inputs>,
    /// How roles are spread over parties.
    pub spread: Spread,
    /// Passes that are applied: all of them, unless their savings are counted.
    pub passes: Passes,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            sizes: import::Options::default(),
            overrides: Overrides::default(),
            reveal: Vec::new(),
            f: 16,
            calibration: Vec::new(),
            spread: Spread::Fixed,
            passes: Passes::default(),
        }
    }
}

/// Greatest batch where the user gives none.
const DEFAULT_BATCH: u64 = 8;
/// Greatest number of new or cached tokens where the user gives none.
const DEFAULT_LENGTH: u64 = 2048;
/// Bits above the greatest value seen in calibration.
const MARGIN: u8 = 3;
/// Tokens of a drawn calibration prompt.
const DRAWN_LENGTH: u64 = 32;
/// Drawn calibration prompts.
const DRAWN_SETS: usize = 2;

/// A model with owners, before anything is decided about how it runs.
pub struct Analysed {
    /// The graph as imported and recognised, with owners.
    pub graph: Graph,
    /// Owners of weights, with reasons.
    pub labels: Labels,
    /// What was recognised, in full or in part.
    pub found: Vec<import::recognise::Found>,
}

/// A compiled model.
pub struct Compiled {
    /// The plan, without digests of the files beside it.
    pub plan: Plan,
    /// The module before expansion.
    pub lowered: Module,
    /// The graph that was lowered.
    pub graph: Graph,
    /// Weights of both files.
    pub weights: BTreeMap<String, (ValueId, Owner)>,
    /// The client's plaintext region.
    pub client_model: Option<ModelProto>,
    /// Owners of weights.
    pub labels: Labels,
}

/// Reads a model into the graph, recognises patterns and assigns owners.
///
/// # Errors
/// Everything that cannot be imported, at once.
pub fn analyse(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Analysed, Errors> {
    let mut imported = import::import(model, &options.sizes)?;
    let before = weights_of(&imported.graph);
    let found =
        import::recognise::recognise(&mut imported.graph, &|name: &str| load_weight(model, name)).map_err(one)?;
    let (mut graph, mut published) = (imported.graph, imported.published);
    for info in &mut graph.dims.syms {
        info.max.get_or_insert(if info.name == "batch" { DEFAULT_BATCH } else { DEFAULT_LENGTH });
    }
    let after = weights_of(&graph);
    for tensor in before.difference(&after) {
        if import::recognise::is_mask(&load_weight(model, tensor).map_err(one)?) {
            let (tensor, node) = (tensor.clone(), "softmax".into());
            published.insert(Published { tensor, node, op: MASK, integer: false });
        }
    }
    for f in &found {
        let node = &f.origin.node;
        let of = |t: &String| Published { tensor: t.clone(), node: node.clone(), op: ROTARY, integer: false };
        published.extend(f.published.iter().map(of));
    }
    let mut overrides = options.overrides.clone();
    let base = base.filter(|_| options.passes.has(Pass::Owners));
    if !options.passes.has(Pass::Owners) {
        overrides.public.clear();
    }
    overrides.structure.extend(structure(&published, &after));
    overrides.integers.extend(published.iter().filter(|p| p.integer).map(|p| p.tensor.clone()));
    let labels = label(model, base, &overrides).map_err(one)?;
    check_published(&published, &labels)?;
    assign_owners(&mut graph, |name| weight_owner(&labels, name));
    Ok(Analysed { graph, labels, found })
}

fn weight_owner(labels: &Labels, name: &str) -> Owner {
    match labels.get(name).map(|l| l.owner) {
        Some(labels::Owner::Public) => Owner::Public,
        Some(labels::Owner::Private) | None => Owner::Server,
    }
}

/// Compiles a model for the `3pc` setting.
///
/// # Errors
/// All that is wrong with the model at the first stage that refuses it.
pub fn compile(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Compiled, Errors> {
    let Program { plan, lowered, graph, labels } = program(model, base, options)?;
    let client_model = client_region::build(model, &graph, &plan.module, &labels).map_err(one)?;
    ombra_ir::verify::verify(&plan.module)?;
    debug_assert_eq!(plan.module.stage, Stage::Scheduled);
    Ok(Compiled { plan, lowered: lowered.module, weights: lowered.weights, client_model, labels, graph })
}

/// A model's plan for its costs alone: without the client's region, and not for running.
///
/// # Errors
/// Those of [`compile`].
pub fn plan_of(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Plan, Errors> {
    let Program { plan, .. } = program(model, base, options)?;
    ombra_ir::verify::verify(&plan.module)?;
    Ok(plan)
}

/// What the passes made of a model.
struct Program {
    plan: Plan,
    lowered: lower::Lowered,
    graph: Graph,
    labels: Labels,
}

fn program(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Program, Errors> {
    let Analysed { mut graph, labels, .. } = analyse(model, base, options)?;
    let has = |pass: Pass| options.passes.has(pass);
    let owner = |name: &str| weight_owner(&labels, name);
    let reveal = reveals(&mut graph, &options.reveal)?;
    let reveal = keep_outputs(&mut graph, &reveal);
    // Reshapes first: a sequence merged with the batch has no last position to narrow to.
    if has(Pass::Demand) {
        lift_reshapes(&mut graph).map_err(one)?;
    }
    for &(index, _) in reveal.iter().filter(|(_, kind)| *kind == OutputKind::NextToken) {
        if has(Pass::Demand) {
            narrow_demand(&mut graph, index, 1).map_err(one)?;
        } else {
            take_last(&mut graph, index, 1).map_err(one)?;
        }
    }
    assign_owners(&mut graph, owner);
    let weights = |name: &str| load_weight(model, name);
    // Owners before folding: a scale goes only into weights of an owner that may know it.
    if has(Pass::Norms) {
        fold_norms(&mut graph, &|graph, v| eval::static_value(graph, &weights, v)).map_err(one)?;
        assign_owners(&mut graph, owner);
    }
    client_region::hide_unnamed(&mut graph).map_err(one)?;
    decompose(&mut graph).map_err(one)?;
    check_inputs(&graph)?;

    let sets = match &options.calibration {
        given if !given.is_empty() => {
            given.iter().map(|set| complete_inputs(&graph, set)).collect::<Result<_>>().map_err(one)?
        }
        _ => drawn_inputs(&graph, DRAWN_SETS, DRAWN_LENGTH).map_err(one)?,
    };
    let ranges = calibrate(&graph, &weights, &sets).map_err(one)?;
    if !has(Pass::Packing) {
        unpack_masks(&mut graph, &ranges).map_err(one)?;
        assign_owners(&mut graph, owner);
        client_region::hide_unnamed(&mut graph).map_err(one)?;
    }
    let statics = |v: ValueId| eval::static_value(&graph, &weights, v);
    let states = secret_states(&graph);
    let lowered = lower(
        &graph,
        lower::Options {
            name: model.graph().name.clone(),
            f: options.f,
            margin: MARGIN,
            ranges: &ranges,
            statics: &statics,
            reveal,
            states,
            defer: has(Pass::Sums),
        },
    )?;
    let mut module = expand(&lowered.module).map_err(one)?;
    if !has(Pass::Widths) {
        module = widen(&module).map_err(one)?;
    }
    assign_rotations(&mut module, if has(Pass::Rotations) { options.spread } else { Spread::Fixed });
    let plan = Plan {
        failure_log2: failure_log2(&graph, &ranges),
        client_model: None,
        public_weights: FileDigest { file: String::new(), sha256: String::new() },
        client_states: client_states_of(&graph).map_err(one)?,
        graph_inputs: graph_inputs(&graph).map_err(one)?,
        batch: symbol(&module, "batch"),
        seq: symbol(&module, "seq"),
        past: symbol(&module, "past"),
        limits: limits(&graph).map_err(one)?,
        changes: Vec::new(),
        parts: partition(&graph),
        savings: Vec::new(),
        module,
    };
    Ok(Program { plan, lowered, graph, labels })
}

fn one(d: Diagnostic) -> Errors {
    vec![d]
}

fn symbol(module: &Module, name: &str) -> Option<String> {
    module.dims.find(name).map(|_| name.to_string())
}

/// Refuses inputs of the client's that decide what happens under MPC, such as masks: the program's course is public.
/// Integers that look up rows are no such thing.
fn check_inputs(graph: &Graph) -> std::result::Result<(), Errors> {
    let mut names = BTreeSet::new();
    for (id, node) in graph.iter().filter(|(_, node)| node.owner == Owner::Secret) {
        for (slot, operand) in graph.operands(id).into_iter().enumerate() {
            let found = graph.node(operand).map_err(one)?;
            let looks_up = slot == 1 && matches!(node.op, Op::Gather { .. });
            if found.dtype == DType::F32 || found.owner != Owner::Client || looks_up {
                continue;
            }
            for a in graph.ancestors(operand) {
                if let Some(Op::Input { name, role: InputRole::Other }) = graph.op(a) {
                    names.insert(name.clone());
                }
            }
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let error = |name: String| {
        let message = format!("input `{name}` is the client's, but decides what happens under MPC");
        Diagnostic::unsupported("E0259", message)
            .note("expected a mask or positions whose contents server and helper may learn")
            .note(format!("if they may learn them, say so with --public-input {name}"))
    };
    Err(names.into_iter().map(error).collect())
}

/// Sizes that the plan takes to be at most a number.
fn limits(graph: &Graph) -> Result<Vec<(Dim, u64)>> {
    let negative = |_| Diagnostic::internal("E0543", "a size is taken to be negative");
    graph.limits.iter().map(|(dim, most)| Ok((dim.clone(), u64::try_from(*most).map_err(negative)?))).collect()
}

fn client_states_of(graph: &Graph) -> Result<Vec<ClientState>> {
    client_states(graph)
        .into_iter()
        .map(|(input, output)| {
            let shape = input_shape(graph, &input)?;
            Ok(ClientState { input, output, shape })
        })
        .collect()
}

fn input_shape(graph: &Graph, name: &str) -> Result<Vec<Dim>> {
    for &id in &graph.inputs {
        let node = graph.node(id)?;
        if matches!(&node.op, Op::Input { name: n, .. } if n == name) {
            return Ok(node.shape.clone());
        }
    }
    Err(Diagnostic::internal("E0543", format!("no input is called `{name}`")))
}

fn graph_inputs(graph: &Graph) -> Result<Vec<GraphInput>> {
    let mut inputs = Vec::new();
    for &id in &graph.inputs {
        let node = graph.node(id)?;
        let Op::Input { name, role } = &node.op else { continue };
        let role = match role {
            InputRole::TokenIds => plan::InputRole::TokenIds,
            InputRole::AttentionMask => plan::InputRole::AttentionMask,
            InputRole::PositionIds => plan::InputRole::PositionIds,
            InputRole::PastKey { .. } | InputRole::PastValue { .. } => plan::InputRole::Past,
            InputRole::Embeddings | InputRole::Public | InputRole::Other => plan::InputRole::Other,
        };
        inputs.push(GraphInput { name: name.clone(), role, dtype: node.dtype, shape: node.shape.clone() });
    }
    Ok(inputs)
}

/// Exponent of probabilities that are told from zero no more.
const LEAST_LOG2: f64 = -1000.0;

/// Union bound over calibrated bounds, its exponent rounded up to a whole number, each value taken as sub-Gaussian with the spread that calibration measured:
/// `P(|x| ≥ B) ≤ 2 exp(−(B/σ)²/2)` an element, at 2^20 elements a value.
fn failure_log2(graph: &Graph, ranges: &Ranges) -> f64 {
    let mut total = 0.0f64;
    for (id, node) in graph.iter() {
        let (Some(&max), Some(&rms)) = (ranges.abs.get(&id), ranges.rms.get(&id)) else { continue };
        if node.owner != Owner::Secret || rms <= 0.0 {
            continue;
        }
        let bound = libm::exp2(libm::floor(libm::log2(max)) + 1.0 + f64::from(MARGIN));
        let sigmas = bound / rms;
        total += libm::exp2(21.0 - sigmas * sigmas / 2.0 * std::f64::consts::LOG2_E);
    }
    // The measured spread stands in the plan as one whole number.
    if total > 0.0 { libm::ceil(libm::log2(total)).max(LEAST_LOG2) } else { LEAST_LOG2 }
}

/// Raw little-endian `f32` values of a tensor.
pub fn f32_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    match tensor.data() {
        Data::F32(v) => Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Data::I64(_) | Data::Bool(_) => Err(Diagnostic::internal("E0544", "a weight is not a float tensor")),
    }
}
