//! What a client asks for: generation from a prompt, or one step on given inputs. Sizes and public inputs only.

use ombra_ir::bind::check_bytes;
use ombra_ir::draw::{Choice, Way};
use ombra_ir::plain::{Tensor, tensor::volume};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Bindings, Diagnostic, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::hexadecimal;

/// Most steps of one session.
pub const MAX_STEPS: u64 = 8192;
/// Most elements of a public input.
const MAX_PUBLIC: usize = 1 << 28;

/// What the client tells the other parties before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Texts side by side that grow, an [`Advance`] at a time. Every step reveals the next token of every text.
    Generate {
        /// Of every text, how many of its first positions hold no token: texts of a batch are padded to one length.
        padding: Vec<u64>,
        /// Most positions that a text will have, padding included.
        positions: u64,
        /// The ways in which steps may choose next tokens.
        ways: Vec<Way>,
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

/// What a step does to the texts of a session. Everybody knows it.
///
/// A conversation keeps what it has and adds the new turn; one that goes on from an earlier place keeps less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advance {
    /// Positions that are kept of those that were there.
    pub keep: u64,
    /// Tokens that every text gets after them; 0 in a request for one step on given inputs.
    pub new: u64,
    /// How the next tokens are chosen.
    pub choice: Choice,
}

/// How far the steps of a session have come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    taken: u64,
    positions: u64,
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

impl Course {
    /// How many more steps there may be.
    pub fn steps_left(&self) -> u64 {
        MAX_STEPS - self.taken
    }

    /// Takes the next step.
    ///
    /// # Errors
    /// `E1007` for a step that the request does not allow, `E0415`.
    pub fn take(&mut self, request: &Request, advance: Advance) -> Result<()> {
        let Advance { keep, new, choice } = advance;
        let end = keep.saturating_add(new);
        let allowed = match request {
            Request::Generate { positions, ways, .. } => {
                let is_asked_for = ways.contains(&choice.way());
                self.taken < MAX_STEPS && new > 0 && keep <= self.positions && end <= *positions && is_asked_for
            }
            Request::Infer { .. } => self.taken == 0 && advance == Advance::default(),
        };
        if !allowed {
            return Err(Diagnostic::input("E1007", "a step is not one of those that were asked for")
                .note(format!("expected  at most {MAX_STEPS} steps, and the positions and ways of the request"))
                .note(format!("found     step {}, which keeps {keep} positions and adds {new}", self.taken))
                .note(format!("found     next tokens by {}", choice.way().name())));
        }
        choice.check()?;
        self.taken += 1;
        self.positions = end;
        Ok(())
    }
}

impl Request {
    /// A single text of at most `positions` tokens, whose next tokens are the most probable ones.
    pub fn text(positions: u64) -> Request {
        Request::Generate { padding: vec![0], positions, ways: vec![Way::default()] }
    }

    /// SHA-256 of the request, in hexadecimal: what server and helper compare. The sizes and public inputs of every step
    /// follow from the request, the step's [`Advance`] and the plan.
    ///
    /// # Errors
    /// `E1006` for a number that has no text.
    pub fn digest(&self) -> Result<String> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Diagnostic::input("E1006", format!("the request cannot be written: {error}")))?;
        Ok(hexadecimal(&Sha256::digest(&text)))
    }

    /// Steps of which one takes most memory: as much as possible at once, a half of the positions after the other, or one
    /// position at the end, each with every way to choose a token.
    pub fn largest(&self, plan: &Plan) -> Vec<Advance> {
        let Request::Generate { positions, ways, .. } = self else { return vec![Advance::default()] };
        let longest = if plan.past.is_some() { plan.max_of(&plan.seq) } else { None };
        let step = |keep: u64, way| {
            let new = positions.saturating_sub(keep).min(longest.unwrap_or(u64::MAX));
            Advance { keep, new, choice: Choice::mildest(way) }
        };
        let keeps = [0, positions / 2, positions.saturating_sub(1)];
        keeps.into_iter().flat_map(|keep| ways.iter().map(move |way| step(keep, *way))).collect()
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
            Request::Generate { padding, positions, ways } => {
                ways.iter().try_for_each(|way| plan.drawing(*way).map(drop))?;
                if ways.is_empty() || ways.iter().enumerate().any(|(at, way)| ways.iter().take(at).any(|w| w == way)) {
                    return Err(wrong("a request for generation is out of range".to_owned())
                        .note("expected  one way to choose tokens or more, none of them twice"));
                }
                if *positions == 0 || padding.is_empty() || padding.iter().any(|padding| padding >= positions) {
                    return Err(wrong("a request for generation is out of range".to_owned())
                        .note("expected  one text or more, and a position or more for tokens in each")
                        .note(format!("found     {} texts of {positions} positions", padding.len())));
                }
                if padding.len() > 1 && plan.batch.is_none() {
                    return Err(wrong("the model takes one text at a time".to_owned())
                        .note("help      export it with an axis for batches"));
                }
                if padding.iter().any(|padding| *padding > 0) && !takes_padding(plan) {
                    return Err(wrong("the model takes no texts of different lengths side by side".to_owned())
                        .note("expected  inputs for an attention mask and for positions")
                        .note("help      give texts of one length, or one after another"));
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
        let ends = match self {
            Request::Generate { positions, .. } => {
                let keep = positions.saturating_sub(1);
                [0, keep].map(|keep| Advance { keep, new: 1, ..Advance::default() })
            }
            Request::Infer { .. } => [Advance::default(); 2],
        };
        for advance in ends {
            // The last step is the longest: what it cannot hold is known before the first token.
            self.sizes(plan, advance)?;
        }
        Ok(())
    }

    /// Sizes of a step, checked against the plan.
    fn sizes(&self, plan: &Plan, advance: Advance) -> Result<(Vec<(String, u64)>, Bindings)> {
        let sizes = match self {
            Request::Generate { padding, .. } => {
                let Advance { keep, new, .. } = advance;
                let (seq, past) = if plan.past.is_some() { (new, keep) } else { (keep.saturating_add(new), 0) };
                let named = [(&plan.batch, padding.len() as u64), (&plan.seq, seq), (&plan.past, past)];
                named.into_iter().filter_map(|(name, size)| Some((name.clone()?, size))).collect()
            }
            Request::Infer { sizes, .. } => sizes.clone(),
        };
        let named: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let bindings = plan.module.dims.bind(&named).map_err(out_of_range)?;
        plan.check_limits(&bindings).map_err(out_of_range)?;
        Ok((sizes, bindings))
    }

    /// Sizes and public inputs of a step, the same at every party. The inputs may take `limit` bytes.
    ///
    /// # Errors
    /// `E1007` for a size out of range, `E1006` for a public input of another shape, `E0405` above the limit.
    pub fn step(&self, plan: &Plan, advance: Advance, limit: u64) -> Result<StepInputs> {
        let (mut sizes, bindings) = self.sizes(plan, advance)?;
        let defaults = plan.graph_inputs.iter().filter(|input| has_default(input.role));
        let bytes = defaults.map(|input| {
            input.shape.iter().try_fold(8u64, |bytes, dim| Ok(bytes.saturating_mul(dim.eval(&bindings)?)))
        });
        let bytes = bytes.collect::<Result<Vec<u64>>>()?;
        check_bytes(bytes.into_iter().fold(0, u64::saturating_add), limit)?;
        let (name, given, padding): (_, &[(String, Tensor)], &[u64]) = match self {
            Request::Generate { padding, .. } if advance.keep > 0 && advance.new == 1 && plan.past.is_some() => {
                ("decode", &[], padding)
            }
            Request::Generate { padding, .. } => ("prefill", &[], padding),
            Request::Infer { public, .. } => ("infer", public, &[]),
        };
        let mut public = public_inputs(plan, &bindings, given, padding)?;
        if let (Some(drawing), Some(sampling)) = (plan.drawing(advance.choice.way())?, advance.choice.sampling) {
            sizes.extend(sampling.sizes(drawing));
            public.extend(sampling.public_inputs(drawing)?);
        }
        Ok(StepInputs { name, sizes, public })
    }
}

/// Whether a text may begin with positions that hold no token: the model has inputs for a mask of every text's positions
/// and for the numbers of the new ones.
pub fn takes_padding(plan: &Plan) -> bool {
    let of = |role| plan.graph_inputs.iter().filter(move |input| input.role == role);
    let fits = |role| of(role).count() > 0 && of(role).all(|input| input.shape.len() == 2);
    fits(InputRole::AttentionMask) && fits(InputRole::PositionIds)
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

/// Masks, positions and other public inputs: the given ones, and defaults for masks and positions, of texts that begin
/// with `padding` positions without a token (none of them where the list is empty).
///
/// # Errors
/// `E1006` for an input of another shape or too large.
pub fn public_inputs(
    plan: &Plan,
    bindings: &Bindings,
    given: &[(String, Tensor)],
    padding: &[u64],
) -> Result<Vec<(String, Tensor)>> {
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
        let past = plan.sym(&plan.past).and_then(|past| bindings.get(past)).unwrap_or(0);
        let default = input.role.default_of(input.dtype, &shape, past, padding)?;
        let tensor = default.ok_or_else(|| Diagnostic::input("E1004", "the plan's positions are booleans"))?;
        all.push((input.name.clone(), tensor));
    }
    Ok(all)
}
