//! What a client asks for: generation from a prompt, or one step on given inputs. Sizes and public inputs only.

use ombra_ir::bind::check_bytes;
use ombra_ir::plain::{DType, Data, Tensor, tensor::volume};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Bindings, Diagnostic, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::hexadecimal;

/// Most steps of one request.
pub const MAX_STEPS: u64 = 8192;
/// Most elements of a public input.
const MAX_PUBLIC: usize = 1 << 28;

/// What the client tells the other parties before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Tokens after a prompt, one step for each.
    Generate {
        /// Tokens of the prompt.
        prompt: u64,
        /// Prompts side by side.
        batch: u64,
        /// Most tokens to generate.
        steps: u64,
    },
    /// One step on given inputs.
    Infer {
        /// Sizes by name.
        sizes: Vec<(String, u64)>,
        /// Public inputs that differ from their defaults.
        public: Vec<(String, Tensor)>,
        /// Whether the client gives the cache.
        states: bool,
    },
}

/// Sizes and public inputs of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepInputs {
    /// `prefill`, `decode` or `infer`.
    pub name: &'static str,
    /// Sizes by name.
    pub sizes: Vec<(String, u64)>,
    /// Masks, positions and other public inputs, by name.
    pub public: Vec<(String, Tensor)>,
}

impl Request {
    /// SHA-256 of the request, in hexadecimal: what server and helper compare. The sizes and public inputs of every step
    /// follow from the request and the plan.
    ///
    /// # Errors
    /// `E1006` for a number that has no text.
    pub fn digest(&self) -> Result<String> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Diagnostic::input("E1006", format!("the request cannot be written: {error}")))?;
        Ok(hexadecimal(&Sha256::digest(&text)))
    }

    /// Number of steps, at most.
    pub fn steps(&self) -> u64 {
        match self {
            Request::Generate { steps, .. } => *steps,
            Request::Infer { .. } => 1,
        }
    }

    /// Whether the client gives the cache.
    pub fn gives_states(&self) -> bool {
        matches!(self, Request::Infer { states: true, .. })
    }

    /// Checks the request against the plan's sizes and inputs.
    ///
    /// # Errors
    /// `E1007`.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let wrong = |what: String| Diagnostic::input("E1007", what);
        match self {
            Request::Generate { prompt, batch, steps } => {
                if *prompt == 0 || *batch == 0 || !(1..=MAX_STEPS).contains(steps) {
                    return Err(wrong("a request for generation is out of range".to_owned())
                        .note(format!("expected  a prompt of one token or more, and 1 to {MAX_STEPS} new tokens"))
                        .note(format!("found     {prompt} tokens, {steps} new ones, batch {batch}")));
                }
            }
            Request::Infer { sizes, public, .. } => {
                if sizes.len() > plan.module.dims.syms.len() {
                    return Err(wrong("a request gives more sizes than the plan has".to_owned()));
                }
                for (index, (name, _)) in sizes.iter().enumerate() {
                    let defined = plan
                        .module
                        .counts
                        .iter()
                        .any(|count| plan.module.dims.info(count.sym).is_some_and(|info| info.name == *name));
                    if defined || sizes.iter().take(index).any(|(other, _)| other == name) {
                        return Err(wrong(format!("the size `{}` cannot be given", name.escape_debug())));
                    }
                }
                for (index, (name, _)) in public.iter().enumerate() {
                    if !is_public(plan, name) || public.iter().take(index).any(|(other, _)| other == name) {
                        return Err(wrong(format!("`{}` is no public input of the plan", name.escape_debug())));
                    }
                }
            }
        }
        for step in [0, self.steps().saturating_sub(1)] {
            let sizes = self.sizes(plan, step);
            let named: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
            // The last step is the longest: what it cannot hold is known before the first token.
            let bindings = plan.module.dims.bind(&named).map_err(out_of_range)?;
            plan.check_limits(&bindings).map_err(out_of_range)?;
        }
        Ok(())
    }

    /// Sizes of step `step`.
    fn sizes(&self, plan: &Plan, step: u64) -> Vec<(String, u64)> {
        match self {
            Request::Generate { prompt, batch, .. } => {
                let grown = prompt.saturating_add(step);
                let (seq, past) = match (&plan.past, step) {
                    (Some(_), 1..) => (1, grown.saturating_sub(1)),
                    _ => (grown, 0),
                };
                let named = [(&plan.batch, *batch), (&plan.seq, seq), (&plan.past, past)];
                named.into_iter().filter_map(|(name, size)| Some((name.clone()?, size))).collect()
            }
            Request::Infer { sizes, .. } => sizes.clone(),
        }
    }

    /// Sizes and public inputs of step `step`, the same at every party. The inputs may take `limit` bytes.
    ///
    /// # Errors
    /// `E1007` for a size out of range, `E1006` for a public input of another shape, `E0405` above the limit.
    pub fn step(&self, plan: &Plan, step: u64, limit: u64) -> Result<StepInputs> {
        let sizes = self.sizes(plan, step);
        let named: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let bindings = plan.module.dims.bind(&named).map_err(out_of_range)?;
        plan.check_limits(&bindings).map_err(out_of_range)?;
        let defaults = plan.graph_inputs.iter().filter(|input| has_default(input.role));
        let bytes = defaults.map(|input| {
            input.shape.iter().try_fold(8u64, |bytes, dim| Ok(bytes.saturating_mul(dim.eval(&bindings)?)))
        });
        let bytes = bytes.collect::<Result<Vec<u64>>>()?;
        check_bytes(bytes.into_iter().fold(0, u64::saturating_add), limit)?;
        let (name, given): (_, &[(String, Tensor)]) = match self {
            Request::Generate { .. } if step > 0 && plan.past.is_some() => ("decode", &[]),
            Request::Generate { .. } => ("prefill", &[]),
            Request::Infer { public, .. } => ("infer", public),
        };
        Ok(StepInputs { name, public: public_inputs(plan, &bindings, given)?, sizes })
    }
}

/// The error of sizes that the plan was not made for.
pub(super) fn out_of_range(error: Diagnostic) -> Diagnostic {
    Diagnostic { code: "E1007", ..error }
        .note("help      use a shorter prompt or fewer new tokens, or compile with a larger `--max`")
}

/// Whether an input is public by its nature, and has a default.
pub(super) fn has_default(role: InputRole) -> bool {
    matches!(role, InputRole::AttentionMask | InputRole::PositionIds)
}

/// Whether `name` is an input that every party knows.
pub fn is_public(plan: &Plan, name: &str) -> bool {
    plan.module.public.inputs.iter().any(|input| input.name == name)
}

/// Masks, positions and other public inputs: the given ones, and defaults for masks and positions.
///
/// # Errors
/// `E1006` for an input of another shape or too large.
pub fn public_inputs(plan: &Plan, bindings: &Bindings, given: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
    let mut all = given.to_vec();
    for input in &plan.graph_inputs {
        if given.iter().any(|(name, _)| *name == input.name) {
            continue;
        }
        if !has_default(input.role) {
            continue;
        }
        let shape: Vec<usize> = input.shape.iter().map(|dim| dim.eval_usize(bindings)).collect::<Result<_>>()?;
        let elements = volume(&shape)?;
        if elements > MAX_PUBLIC {
            return Err(Diagnostic::input("E1006", format!("the input `{}` is too large", input.name.escape_debug())));
        }
        let data = if input.role == InputRole::AttentionMask {
            match input.dtype {
                DType::F32 => Data::F32(vec![1.0; elements]),
                DType::I64 => Data::I64(vec![1; elements]),
                DType::Bool => Data::Bool(vec![true; elements]),
            }
        } else {
            let past = plan.past.as_ref().and_then(|name| bindings.get(plan.module.dims.find(name)?)).unwrap_or(0);
            let length = shape.last().copied().unwrap_or(1).max(1) as u64;
            let positions = (0..elements as u64).map(|index| past.saturating_add(index % length));
            match input.dtype {
                DType::I64 => Data::I64(positions.map(|position| position as i64).collect()),
                DType::F32 => Data::F32(positions.map(|position| position as f32).collect()),
                DType::Bool => return Err(Diagnostic::input("E1004", "the plan's positions are truth values")),
            }
        };
        all.push((input.name.clone(), Tensor::new(shape, data)?));
    }
    Ok(all)
}
