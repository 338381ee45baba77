//! From a model file to a plan: the one place that knows the order of passes.

use crate::client_region;
use crate::egraph::{Rewrite, rewrite};
use crate::expand::expand;
use crate::graph::eval::Weights;
use crate::graph::{Graph, Op, Owner, ValueId, propagate_owners};
use crate::import::ops::attention::ROTARY;
use crate::import::positions::DEFAULT_LENGTH;
use crate::import::{self, Published, load_weight};
use crate::inspect::session::{SessionCost, session_cost};
use crate::lower::{self, Lowered, lower};
use crate::onnx::{ABSENT, Model};
use crate::output::partition::partition;
use crate::output::reveal::{Reveal, keep_outputs, reveals};
use crate::passes::approximate::{Approximations, approximate};
use crate::passes::assign_masks::assign_masks;
use crate::passes::assign_owners::{assign_owners, client_states, secret_states};
use crate::passes::assign_rotations::{Spread, assign_rotations};
use crate::passes::decompose::decompose;
use crate::passes::delay_normalisation::delay_normalisation;
use crate::passes::fold_norms::fold_norms;
use crate::passes::lift_reshapes::lift_reshapes;
use crate::passes::narrow_demand::{narrow_demand, take_last};
use crate::passes::narrow_rings::narrow_rings;
use crate::passes::pack_first::pack_first;
use crate::ranges;
use crate::ranges::assume::assume;
use crate::ranges::bounds::{Ranges, listed};
use crate::ranges::calibrate::Inputs;
use crate::sampling;
use crate::savings::{Passes, unpack_masks, widen};
use crate::secrecy::labels::{self, Labels, Overrides, label};
use crate::secrecy::published::{MASK, check_inputs, check_published, linear_biases, structure, weights_of};
use crate::weights::statics::{Known, Statics};
use crate::weights::stream::Elements;
use ombra_ir::module::{Module, OutputKind, Stage};
use ombra_ir::network::Network;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::{BoundsOf, ClientState, FileDigest, GraphInput, Plan};
use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, Dim, Result};
use std::collections::BTreeMap;

/// Diagnostics of one attempt.
pub type Errors = Vec<Diagnostic>;

/// Makes the list of passes that may be left out: the enum, all of them in order, and their names.
macro_rules! passes {
    ($( $(#[doc = $doc:literal])* $pass:ident = $name:literal, )*) => {
        /// A pass that lowers costs and may be left out.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Pass {
            $( $(#[doc = $doc])* $pass, )*
        }

        impl Pass {
            /// All passes, in the order in which they are counted, which is that of this file.
            pub const ALL: &'static [Pass] = &[$( Pass::$pass, )*];

            /// Name in reports.
            pub fn name(self) -> &'static str {
                match self {
                    $( Pass::$pass => $name, )*
                }
            }
        }
    };
}

passes! {
    /// Weights are public where their content occurs in the base model, and what follows from public values and the
    /// client's alone leaves MPC.
    Owners = "owners by content",
    /// Only the last position goes through what the next token alone needs.
    Demand = "demand narrowed",
    /// Scores that the mask removes are packed away before the softmax.
    Packing = "causal packing",
    /// Sums of products are divided once, not every product.
    Sums = "one truncation a sum",
    /// Values are computed in the way that is cheapest among equal ones.
    Rewrites = "algebra rewritten",
    /// Scales and shifts of norms are folded into the weights that follow.
    Norms = "norms folded",
    /// Comparisons are as wide and rings as large as bounds demand.
    Widths = "narrow rings and comparisons",
    /// Parties take turns in the roles of protocols.
    Rotations = "rotated roles",
}

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who computes, and what they are trusted with.
    pub setting: Setting,
    /// Sizes and maxima.
    pub sizes: import::Options,
    /// Names that are public or private whatever their content.
    pub overrides: Overrides,
    /// What the client learns; empty for the default.
    pub reveal: Vec<Reveal>,
    /// Fraction bits of activations; those of the setting where nothing is said.
    pub f: Option<u8>,
    /// Inputs to measure ranges on that nothing proves; drawn if there are none. Masks, positions and caches have defaults.
    pub calibration: Vec<Inputs>,
    /// Rows of token ids to measure on beside them; longer ones than the model takes are cut.
    pub calibration_rows: Vec<Vec<i64>>,
    /// The weights that bounds follow from.
    pub bounds_of: BoundsOf,
    /// How roles are spread over parties.
    pub spread: Spread,
    /// Cheaper functions in place of the model's own.
    pub approximations: Approximations,
    /// Ranges are assumed and not measured, as they are for a model without its weights. For costs alone.
    pub assume: bool,
    /// The network that rewriting chooses for.
    pub network: Network,
    /// Passes that are applied: all of them, unless their savings are counted.
    pub passes: Passes,
    /// Whether what rewriting did is kept; nothing where its price decides.
    pub keep_rewrites: Option<bool>,
    /// Whether the client may take penalties off the logits.
    pub penalties: bool,
    /// Whether the dealer gets nothing of the model, in a setting with one.
    pub strict_dealer: bool,
}

impl Options {
    /// Fraction bits of activations.
    pub fn fraction_bits(&self) -> u8 {
        self.f.unwrap_or(self.setting.protocol().fraction_bits)
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            setting: Setting::ThreeParty,
            sizes: import::Options::default(),
            overrides: Overrides::default(),
            reveal: Vec::new(),
            f: None,
            calibration: Vec::new(),
            calibration_rows: Vec::new(),
            bounds_of: BoundsOf::Model,
            spread: Spread::Fixed,
            approximations: Approximations::default(),
            assume: false,
            network: Network::WAN,
            passes: Passes::default(),
            keep_rewrites: None,
            penalties: false,
            strict_dealer: false,
        }
    }
}

/// Maximum batch where the user gives none.
const DEFAULT_BATCH: u64 = 8;

/// A model with owners, before anything is decided about how it runs.
pub struct Analysed {
    /// The graph as imported and recognised, with owners.
    pub graph: Graph,
    /// Owners of weights, with reasons.
    pub labels: Labels,
    /// What was recognised, in full or in part.
    pub found: Vec<import::recognise::Found>,
    /// Elements of the model's or the base's weights are not there, so that owners may be guesses.
    pub absent: bool,
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
    /// What the client gives the program, by its name there.
    pub inputs: BTreeMap<String, ValueId>,
    /// The client's plaintext region.
    pub client_model: Option<client_region::Region>,
    /// Owners of weights.
    pub labels: Labels,
    /// What rewriting did and refused.
    pub rewrites: Vec<Rewrite>,
    /// What was found of the model's weights.
    pub known: Known,
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
    let most = limit_positions(&mut graph, &options.sizes).map_err(one)?.min(DEFAULT_LENGTH);
    for info in &mut graph.dims.syms {
        info.max.get_or_insert(if info.name == "batch" { DEFAULT_BATCH } else { most });
    }
    let after = weights_of(&graph);
    for tensor in before.difference(&after) {
        match load_weight(model, tensor) {
            Ok(elements) if import::recognise::is_mask(&elements) => {
                let (tensor, node) = (tensor.clone(), "softmax".into());
                published.insert(Published { tensor, node, op: MASK, integer: false });
            }
            // What was not read was not made a mask.
            Err(e) if e.code != ABSENT => return Err(one(e)),
            _ => {}
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
    overrides.structure.extend(linear_biases(&graph, &|name: &str| load_weight(model, name)).map_err(one)?);
    overrides.integers.extend(published.iter().filter(|p| p.integer).map(|p| p.tensor.clone()));
    overrides.layers = import::layers::of_weights(&graph);
    let labels = label(model, base, &overrides).map_err(one)?;
    check_published(&published, &labels)?;
    assign_owners(&mut graph, |name| weight_owner(&labels, name));
    let absent = [Some(model), base].into_iter().flatten().any(|m| !m.absent().is_empty());
    Ok(Analysed { graph, labels, found, absent })
}

/// Limits new and cached tokens together to the positions that the model has, unless the user says how many there may be;
/// the maximum number of either.
fn limit_positions(graph: &mut Graph, sizes: &import::Options) -> Result<u64> {
    let Some(positions) = sizes.positions.filter(|_| sizes.max.is_empty()) else { return Ok(u64::MAX) };
    let mut tokens = Dim::constant(0);
    for name in ["seq", "past"] {
        if let Some(sym) = graph.dims.find(name) {
            tokens = tokens.add(&sym.into())?;
        }
    }
    if let (None, Ok(positions)) = (tokens.as_constant(), i64::try_from(positions)) {
        graph.limits.push((tokens, positions));
    }
    Ok(positions)
}

fn weight_owner(labels: &Labels, name: &str) -> Owner {
    match labels.get(name).map(|l| l.owner) {
        Some(labels::Owner::Public) => Owner::Public,
        Some(labels::Owner::Private) | None => Owner::Server,
    }
}

/// Compiles a model for the setting that `options` name.
///
/// # Errors
/// All that is wrong with the model at the first stage that refuses it.
pub fn compile(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Compiled, Errors> {
    let known = Known::default();
    let compiled = compile_knowing(model, base, &known, options)?;
    Ok(Compiled { known, ..compiled })
}

/// As [`compile`], with what was found of the model's weights before.
///
/// # Errors
/// Those of [`compile`].
pub fn compile_knowing(
    model: &Model,
    base: Option<&Model>,
    known: &Known,
    options: &Options,
) -> std::result::Result<Compiled, Errors> {
    if options.strict_dealer {
        options.setting.dealer().map_err(one)?;
    }
    let analysed = analyse(model, base, options)?;
    let Program { plan, lowered, graph, labels, rewrites } = program(model, base, analysed, (model, known), options)?;
    let plan = drawing(plan, options)?;
    let region = || client_region::build(&graph, &lowered.inputs, &labels);
    let client_model = if plan.costs_only { None } else { region().map_err(one)? };
    debug_assert_eq!(plan.module.stage, Stage::Scheduled);
    let Lowered { module: lowered, weights, inputs, .. } = lowered;
    Ok(Compiled { plan, lowered, weights, inputs, client_model, labels, graph, rewrites, known: Known::default() })
}

/// A model's plan for its costs alone: without the client's region, and not for running.
///
/// # Errors
/// Those of [`compile`].
pub fn plan_of(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Plan, Errors> {
    plan_knowing(model, base, &Known::default(), options)
}

/// As [`plan_of`], with what was found of the model's weights before.
///
/// # Errors
/// Those of [`compile`].
pub fn plan_knowing(
    model: &Model,
    base: Option<&Model>,
    known: &Known,
    options: &Options,
) -> std::result::Result<Plan, Errors> {
    let analysed = analyse(model, base, options)?;
    drawing(program(model, base, analysed, (model, known), options)?.plan, options)
}

/// [`plan_of`] for a model whose graph and labels may have been changed since they were analysed. `weights` gives the
/// elements of all weights that the graph has now.
///
/// # Errors
/// Those of [`compile`].
pub fn plan_of_analysed(
    model: &Model,
    analysed: Analysed,
    weights: &Weights,
    options: &Options,
) -> std::result::Result<Plan, Errors> {
    let weights = |name: &str| weights(name);
    Ok(program(model, None, analysed, (&weights, &Known::default()), options)?.plan)
}

/// Where weights are read, and what was found of them before.
pub type Read<'a> = (&'a dyn Elements, &'a Known);

/// What the passes made of a model: its plan is verified.
struct Program {
    plan: Plan,
    lowered: Lowered,
    graph: Graph,
    labels: Labels,
    rewrites: Vec<Rewrite>,
}

/// A model whose graph is rewritten, before norms are folded.
#[derive(Clone)]
pub struct Rewritten {
    /// The graph, with owners.
    pub graph: Graph,
    /// Owners of weights.
    pub labels: Labels,
    /// Outputs to reveal: index in the graph's outputs, and what is revealed.
    pub reveal: Vec<(usize, OutputKind)>,
    /// What rewriting did and refused.
    pub rewrites: Vec<Rewrite>,
    /// What was changed by request, in words.
    pub changes: Vec<String>,
    /// As in [`Analysed`].
    pub absent: bool,
}

/// Analyses a model, leaves out what the outputs do not need, and rewrites what remains.
///
/// # Errors
/// Those of [`analyse`], and outputs that the model does not have.
pub fn rewritten(model: &Model, base: Option<&Model>, options: &Options) -> std::result::Result<Rewritten, Errors> {
    rewritten_analysed(model, analyse(model, base, options)?, (model, &Known::default()), options)
}

fn rewritten_analysed(
    model: &Model,
    analysed: Analysed,
    weights: Read,
    options: &Options,
) -> std::result::Result<Rewritten, Errors> {
    let Analysed { mut graph, labels, absent, .. } = analysed;
    let has = |pass: Pass| options.passes.has(pass);
    let reveal = reveals(&graph, &options.reveal)?;
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
    assign_owners(&mut graph, |name| weight_owner(&labels, name));
    let mut changes = taken(&graph, options);
    changes.extend(approximate(&mut graph, &options.approximations).map_err(one)?);
    let whole = Rewritten { graph, labels, reveal, rewrites: Vec::new(), changes, absent };
    // Before norms are folded: a factor of the norm in the sum of a matrix and its adapter would hide what is public.
    if has(Pass::Rewrites) { rewritten_where_cheaper(model, whole, weights, options) } else { Ok(whole) }
}

/// Prices with assumed ranges that are as near as this say nothing of which program is cheaper: ranges decide how functions
/// are computed.
const NEAR: f64 = 1.0 / 16.0;

/// Rewrites, and takes it back unless the whole program costs less than before. Both are priced with assumed ranges, and
/// with their own where these leave it open.
fn rewritten_where_cheaper(
    model: &Model,
    before: Rewritten,
    weights: Read,
    options: &Options,
) -> std::result::Result<Rewritten, Errors> {
    let mut after = before.clone();
    let cost = |region: Graph| cost_alone(region, weights, options).ok();
    after.rewrites = rewrite(&mut after.graph, options.network, &cost).map_err(one)?;
    assign_owners(&mut after.graph, |name| weight_owner(&before.labels, name));
    if after.rewrites.iter().all(|r| r.applied.is_empty()) || options.keep_rewrites == Some(true) {
        return Ok(after);
    }
    if options.keep_rewrites == Some(false) {
        return Ok(before);
    }
    let quote = |rewritten: &Rewritten, assume: bool| -> f64 {
        let options = Options { assume: assume || options.assume, ..options.clone() };
        // What does not compile is worth nothing; the program that is kept says why it does not.
        let plan = finish(model, None, rewritten.clone(), weights, &options).map(|program| program.plan);
        plan.ok().and_then(|plan| session_cost(&plan).ok()).map_or(f64::INFINITY, |cost| cost.price(options.network))
    };
    let (mut old, mut new) = (quote(&before, true), quote(&after, true));
    if (new - old).abs() < old * NEAR && options.bounds_of != BoundsOf::Base && !options.assume {
        let own = (quote(&before, false), quote(&after, false));
        // Where neither compiles, both keep their assumed prices.
        if own.0.is_finite() || own.1.is_finite() {
            (old, new) = own;
        }
    }
    if new < old {
        return Ok(after);
    }
    let rewrites = after.rewrites.into_iter().map(|r| r.taken_back(old, new)).collect();
    Ok(Rewritten { rewrites, ..before })
}

/// What a part of a graph costs as a program of its own, by lowering it. The owners of its inputs and weights are those
/// that they have, all outputs are opened, and ranges are assumed.
///
/// # Errors
/// What has no lowering.
pub fn cost_alone(
    mut graph: Graph,
    (elements, known): Read,
    options: &Options,
) -> std::result::Result<SessionCost, Errors> {
    let owners: BTreeMap<String, Owner> =
        graph.iter().filter_map(|(_, n)| Some((n.op.given()?.to_owned(), n.owner))).collect();
    let owner = |name: &str| owners.get(name).copied().unwrap_or(Owner::Secret);
    propagate_owners(&mut graph, |name, _| owner(name), owner);
    if options.passes.has(Pass::Norms) {
        fold_norms(&mut graph, elements, known).map_err(one)?;
        propagate_owners(&mut graph, |name, _| owner(name), owner);
    }
    decompose(&mut graph).map_err(one)?;
    let parts = Parts {
        name: String::new(),
        reveal: (0..graph.outputs.len()).map(|i| (i, OutputKind::Tensor)).collect(),
        changes: Vec::new(),
        absent: true,
        assumed: true,
    };
    let (_, plan) = scheduled(&graph, &assume(&graph), parts, (elements, known), options)?;
    session_cost(&plan).map_err(one)
}

fn program(
    model: &Model,
    base: Option<&Model>,
    analysed: Analysed,
    weights: Read,
    options: &Options,
) -> std::result::Result<Program, Errors> {
    finish(model, base, rewritten_analysed(model, analysed, weights, options)?, weights, options)
}

/// A model as it is lowered, and what is proven of its values.
///
/// # Errors
/// Those of [`rewritten`], and weights that cannot be read.
pub fn bounded(
    model: &Model,
    base: Option<&Model>,
    options: &Options,
) -> std::result::Result<(Rewritten, Ranges), Errors> {
    bounded_analysed(model, base, rewritten(model, base, options)?, (model, &Known::default()), options)
}

fn bounded_analysed(
    model: &Model,
    base: Option<&Model>,
    rewritten: Rewritten,
    weights: Read,
    options: &Options,
) -> std::result::Result<(Rewritten, Ranges), Errors> {
    let Rewritten { mut graph, .. } = rewritten;
    let labels = &rewritten.labels;
    let has = |pass: Pass| options.passes.has(pass);
    let owner = |name: &str| weight_owner(labels, name);
    // Owners before folding: a scale goes only into weights of an owner that may know it.
    if has(Pass::Norms) {
        fold_norms(&mut graph, weights.0, weights.1).map_err(one)?;
        assign_owners(&mut graph, owner);
    }
    decompose(&mut graph).map_err(one)?;
    check_inputs(&graph)?;
    import::recognise::check_masks(&graph)?;
    let assumed = options.assume || !model.absent().is_empty();
    let ranges = if assumed { assume(&graph) } else { ranges::prove(&graph, (model, base, labels), weights, options)? };
    if !has(Pass::Packing) {
        unpack_masks(&mut graph, &ranges).map_err(one)?;
        assign_owners(&mut graph, owner);
    }
    Ok((Rewritten { graph, ..rewritten }, ranges))
}

/// The plan with the programs that choose its next token otherwise, each of which the verifier has passed.
fn drawing(plan: Plan, options: &Options) -> std::result::Result<Plan, Errors> {
    (options.setting.protocol().check)(&plan.module).map_err(one)?;
    let spread = if options.passes.has(Pass::Rotations) { options.spread } else { Spread::Fixed };
    let drawings = sampling::drawings(&plan.module, spread, options.penalties).map_err(one)?;
    for drawing in &drawings {
        ombra_ir::verify::verify(&drawing.module(&plan.module).map_err(one)?)?;
    }
    Ok(Plan { drawings, ..plan })
}

/// From a rewritten graph to a plan.
fn finish(
    model: &Model,
    base: Option<&Model>,
    rewritten: Rewritten,
    weights: Read,
    options: &Options,
) -> std::result::Result<Program, Errors> {
    let (rewritten, ranges) = bounded_analysed(model, base, rewritten, weights, options)?;
    let Rewritten { graph, labels, reveal, rewrites, changes, absent } = rewritten;
    let assumed = options.assume || !model.absent().is_empty();
    let parts = Parts { name: model.graph().name.clone(), reveal, changes, absent, assumed };
    let (lowered, plan) = scheduled(&graph, &ranges, parts, weights, options)?;
    ombra_ir::verify::verify(&plan.module)?;
    Ok(Program { plan, lowered, graph, labels, rewrites })
}

/// What of a plan does not follow from its graph.
struct Parts {
    name: String,
    reveal: Vec<(usize, OutputKind)>,
    changes: Vec<String>,
    absent: bool,
    /// Ranges are assumed and not measured.
    assumed: bool,
}

/// The plan of a graph as it is lowered. Nothing is verified yet.
fn scheduled(
    graph: &Graph,
    ranges: &Ranges,
    Parts { name, reveal, changes, absent, assumed }: Parts,
    weights: Read,
    options: &Options,
) -> std::result::Result<(Lowered, Plan), Errors> {
    let has = |pass: Pass| options.passes.has(pass);
    let statics = Statics::new(graph, weights.0, weights.1);
    let lowered = lower(
        graph,
        lower::Options {
            setting: options.setting,
            name,
            f: options.fraction_bits(),
            ranges,
            statics: &statics,
            reveal,
            states: secret_states(graph),
            guard: !assumed,
            defer: has(Pass::Sums),
        },
    )?;
    let mut module = expand(&lowered.module).map_err(one)?;
    module = pack_first(module).map_err(one)?;
    module = delay_normalisation(module).map_err(one)?;
    module = if has(Pass::Widths) { narrow_rings(module) } else { widen(&module) }.map_err(one)?;
    module = assign_masks(module).map_err(one)?;
    assign_rotations(&mut module, if has(Pass::Rotations) { options.spread } else { Spread::Fixed });
    let plan = Plan {
        assumed: listed(graph, &lowered.assumed).map_err(one)?,
        bounds_of: options.bounds_of,
        client_model: None,
        public_weights: FileDigest { file: String::new(), sha256: String::new() },
        strict_dealer: options.strict_dealer,
        files: Vec::new(),
        client_states: client_states_of(graph).map_err(one)?,
        graph_inputs: graph_inputs(graph).map_err(one)?,
        batch: symbol(&module, "batch"),
        seq: symbol(&module, "seq"),
        past: symbol(&module, "past"),
        limits: limits(graph).map_err(one)?,
        fixed: graph.fixed.iter().map(|(name, value)| (name.clone(), *value)).collect(),
        changes,
        costs_only: absent || assumed,
        parts: partition(graph),
        savings: Vec::new(),
        drawings: Vec::new(),
        module,
    };
    Ok((lowered, plan))
}

fn one(d: Diagnostic) -> Errors {
    vec![d]
}

fn symbol(module: &Module, name: &str) -> Option<String> {
    module.dims.find(name).map(|_| name.to_string())
}

/// What inputs were taken to be without being told, in words.
pub(crate) fn taken(graph: &Graph, options: &Options) -> Vec<String> {
    let untold = graph.fixed.iter().filter(|(name, _)| !options.sizes.dims.contains_key(*name));
    untold.map(|(name, value)| format!("input `{name}` is taken to be {value}; --dim {name}=N sets it")).collect()
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
        inputs.push(GraphInput { name: name.clone(), role: *role, dtype: node.dtype, shape: node.shape.clone() });
    }
    Ok(inputs)
}

/// Raw little-endian `f32` values of a tensor.
pub fn f32_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    match tensor.data() {
        Data::F32(v) => Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Data::I64(_) | Data::Bool(_) => Err(Diagnostic::internal("E0544", "a weight is not a float tensor")),
    }
}
