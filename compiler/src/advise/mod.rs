//! What a model would cost in the forms that fine-tuning could give it, and which form to choose.
//!
//! One model is enough: every form is made of its graph, compiled as any model is, and counted by the formulas that a run
//! is measured against. Nothing is trained and nothing is estimated but times and, of a model without its weights, ranges.

mod adapters;
pub mod bottleneck;
mod heads;
mod recommend;
mod report;
mod variant;

use recommend::NONLINEAR;
pub use recommend::{Advice, Rule, recommend};
pub use variant::{Place, Variant, layers, places, vary};

use crate::import::load_weight;
use crate::inspect::{Report, inspect};
use crate::onnx::Model;
use crate::passes::approximate::{Activation, Approximations, Choice as Approximation, Softmax};
use crate::pipeline::{Analysed, Errors, Options, analyse, plan_of_analysed};
use crate::ranges::assume;
use ombra_ir::module::{Id, Node};
use ombra_ir::network::Network;
use ombra_ir::op::Op;
use ombra_ir::plain::Tensor;
use ombra_ir::plan::Plan;
use ombra_ir::profile::{self, Profile};
use ombra_ir::schedule::schedule;
use ombra_ir::{Result, bind};
use serde::Serialize;
use std::collections::BTreeMap;

/// What is asked of every form.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Cached tokens before a further token is made.
    pub cached: u64,
    /// Further tokens of an answer, for choosing a form.
    pub tokens: u64,
    /// Networks to predict times on, by name; the first decides.
    pub networks: Vec<(String, Network)>,
    /// The machine of every party; without it computing takes no time.
    pub machine: Option<Profile>,
}

/// What one step costs.
#[derive(Clone, Debug, Serialize)]
pub struct StepCost {
    /// Longest chain of messages.
    pub rounds: u32,
    /// Payload bytes of all parties.
    pub bytes: u64,
    /// Bytes of all parties by the composite op, or kind of op, that they belong to.
    pub kinds: BTreeMap<String, u64>,
    /// Bytes of these that products send.
    pub product_bytes: u64,
    /// Multiply-accumulates of two secret factors.
    pub secret_macs: u64,
    /// Seconds of multiplying matrices at one party; 0 where no machine is known.
    pub product_seconds: f64,
    /// Seconds of all that one party computes, and of what rounds cost it.
    pub computing_seconds: f64,
    /// Seconds by network: of messages, and of computing where a machine is known.
    pub seconds: BTreeMap<String, f64>,
}

/// What a form costs.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// The form, in words.
    pub name: String,
    /// Whether it computes other functions than the model.
    pub approximates: bool,
    /// How many techniques it needs.
    pub techniques: usize,
    /// The prompt.
    pub prefill: StepCost,
    /// One further token, where the model keeps a cache.
    pub decode: Option<StepCost>,
    /// Bytes that are sent once, to share private weights.
    pub setup_bytes: u64,
}

/// The plan of `model` in the form of `variant`, for costs alone. `analysed` is the model as imported.
///
/// # Errors
/// `E0595` for a form that the model cannot have; those of a compile.
pub fn plan_of_variant(
    model: &Model,
    analysed: &Analysed,
    variant: &Variant,
    options: &Options,
) -> std::result::Result<Plan, Errors> {
    let varied = vary(analysed, variant).map_err(|d| vec![d])?;
    let weights = |name: &str| -> Result<Tensor> {
        match varied.adapters.get(name) {
            Some(shape) => adapters::elements(shape),
            None => load_weight(model, name),
        }
    };
    // What never runs never fails.
    let mut options = options.clone();
    let Approximations { softmax, activation, .. } = &mut options.approximations;
    softmax.extend(variant.two_relu.then_some(Approximation { pattern: None, value: Softmax::TwoRelu }));
    activation.extend(variant.relu.then_some(Approximation { pattern: None, value: Activation::Relu }));
    let plan = plan_of_analysed(model, varied.analysed, &weights, &options)?;
    Ok(Plan { costs_only: true, ..plan })
}

/// What `plan` costs at the sizes of `request`.
///
/// # Errors
/// Sizes that the plan does not allow.
pub fn predict(plan: &Plan, variant: &Variant, request: &Request) -> Result<Prediction> {
    let sizes = |seq: u64, past: u64| {
        let seq = plan.seq.iter().map(move |name| (name.clone(), seq));
        seq.chain(plan.past.iter().map(move |name| (name.clone(), past))).collect::<BTreeMap<_, _>>()
    };
    let prompt = inspect(plan, &sizes(request.prompt, 0))?;
    let decode = match &plan.past {
        Some(_) => {
            let report = inspect(plan, &sizes(1, request.cached))?;
            Some(step_cost(plan, &report, request)?)
        }
        None => None,
    };
    Ok(Prediction {
        name: variant.name(),
        approximates: variant.approximates(),
        techniques: variant.techniques(),
        setup_bytes: prompt.setup_bytes,
        prefill: step_cost(plan, &prompt, request)?,
        decode,
    })
}

fn step_cost(plan: &Plan, report: &Report, request: &Request) -> Result<StepCost> {
    let pairs: Vec<(&str, u64)> = report.dims.iter().map(|(n, &v)| (n.as_str(), v)).collect();
    let bound = bind::bind_lengths(&plan.module, &pairs, &crate::inspect::default_public_inputs(plan, &pairs)?)?;
    let schedule = schedule(&plan.module, &bound)?;
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for op in report.ops.iter().filter(|op| op.total_bytes() > 0) {
        *kinds.entry(op.kind().to_string()).or_default() += op.total_bytes();
    }
    let (mut seconds, mut computing_seconds) = (BTreeMap::new(), 0.0);
    for (name, network) in &request.networks {
        let time = profile::predict(&plan.module, &bound, &schedule, Some(network), request.machine.as_ref())?;
        seconds.insert(name.clone(), time.total());
        computing_seconds = time.work + time.rounds;
    }
    let mut product_seconds = 0.0;
    if let Some(machine) = &request.machine {
        for (id, node) in (0u32..).map(Id).zip(&plan.module.ops) {
            if is_product(node) {
                product_seconds += machine.seconds(&profile::work_of(&plan.module, &bound, id)?);
            }
        }
    }
    let of_products = plan.module.ops.iter().zip(&schedule.traffic).filter(|(node, _)| is_product(node));
    Ok(StepCost {
        rounds: report.rounds,
        bytes: report.total_bytes(),
        kinds,
        product_bytes: of_products.map(|(_, traffic)| traffic.bytes()).sum(),
        secret_macs: report.macs.secret,
        product_seconds,
        computing_seconds,
        seconds,
    })
}

/// Whether an op is a product of the model's own, and no part of a nonlinear function.
fn is_product(node: &Node) -> bool {
    matches!(node.op, Op::Mul | Op::MatMul { .. }) && !NONLINEAR.contains(&node.origin.kind.as_str())
}

/// The forms that are worth comparing for a model of `layers` layers: each technique alone and their combinations.
/// `chosen` says how many layers stay private, the rank of adapters and how many heads are merged.
pub fn variants(chosen: Chosen) -> Vec<Variant> {
    let Chosen { private_layers, rank, merged } = chosen;
    let full = Variant::default();
    let frozen = Variant { private_layers: Some(private_layers), ..full.clone() };
    let with = |from: &Variant, lora: bool, heads: u32, relu: bool, two_relu: bool| Variant {
        rank: lora.then_some(rank),
        merged: heads,
        two_relu,
        relu,
        ..from.clone()
    };
    let mut list = vec![full.clone(), with(&full, true, 1, false, false), frozen.clone()];
    for from in [&full, &frozen] {
        list.push(with(from, false, 2, false, false));
        if merged != 2 {
            list.push(with(from, false, merged, false, false));
        }
    }
    list.push(with(&full, true, merged, false, false));
    list.push(with(&frozen, true, 1, false, false));
    list.push(with(&frozen, true, merged, false, false));
    list.push(with(&full, false, 1, true, false));
    list.push(with(&full, false, 1, false, true));
    list.push(with(&full, false, merged, false, true));
    list.push(with(&frozen, false, 1, false, true));
    list.push(with(&frozen, false, merged, false, true));
    list.push(with(&frozen, false, merged, true, true));
    list
}

/// Numbers that techniques are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// Layers that are tuned where others are frozen.
    pub private_layers: u32,
    /// Rank of adapters.
    pub rank: u32,
    /// Heads that share a softmax.
    pub merged: u32,
}

/// What a model would cost in the forms that are worth comparing, and which to choose. With a base, the model as it is comes
/// last.
///
/// # Errors
/// The model cannot be compiled with all its weights private, or its sizes do not allow the request.
pub fn advise(
    model: &Model,
    base: Option<&Model>,
    options: &Options,
    request: &Request,
    chosen: Choice,
) -> std::result::Result<Advice, Errors> {
    let one = |d| vec![d];
    let analysed = analyse(model, base, options)?;
    let count = layers(&places(&analysed.graph).map_err(one)?);
    let mut forms: Vec<Prediction> = Vec::new();
    let mut impossible = BTreeMap::new();
    for variant in variants(chosen.complete(count)) {
        match plan_of_variant(model, &analysed, &variant, options) {
            Ok(plan) => {
                let form = predict(&plan, &variant, request).map_err(one)?;
                if forms.iter().all(|f| f.name != form.name) {
                    forms.push(form);
                }
            }
            Err(errors) if !forms.is_empty() => {
                let why = errors.first().map_or(String::new(), |e| e.message.clone());
                impossible.insert(variant.name(), why);
            }
            Err(errors) => return Err(errors),
        }
    }
    let (rules, recommended, recommended_with_approximations) = recommend(&forms, request, count);
    if base.is_some() {
        let plan = plan_of_analysed(model, analysed, &|name| load_weight(model, name), options)?;
        let as_it_is = predict(&plan, &Variant::default(), request).map_err(one)?;
        forms.push(Prediction { name: "as it is".into(), ..as_it_is });
    }
    let sizes = BTreeMap::from([("prompt", request.prompt), ("cached", request.cached), ("tokens", request.tokens)]);
    Ok(Advice {
        computing: request.machine.is_some(),
        model: model.path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned()),
        setting: options.setting.name(),
        layers: count,
        sizes,
        assumed: (options.assume || !model.absent().is_empty()).then(assume::in_words),
        forms,
        impossible,
        rules,
        recommended,
        recommended_with_approximations,
    })
}

/// Numbers that the user chooses; the rest follows from the model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice {
    /// Layers that are tuned where others are frozen; half of them if not said.
    pub private_layers: Option<u32>,
    /// Rank of adapters; 64.
    pub rank: Option<u32>,
    /// Heads that share a softmax; 4.
    pub merged: Option<u32>,
}

impl Choice {
    fn complete(self, layers: u32) -> Chosen {
        Chosen {
            private_layers: self.private_layers.unwrap_or((layers / 2).max(1)),
            rank: self.rank.unwrap_or(64),
            merged: self.merged.unwrap_or(4),
        }
    }
}
