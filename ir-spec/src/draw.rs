//! Next tokens that are drawn instead of chosen: what a request says of it, and the programs that do it.
//!
//! A plan's module reveals the most probable token. Beside it the plan keeps, for every way to draw one, what differs: a
//! [`Drawing`] holds the ops after those that both programs begin with. A session runs one of the programs, so that it
//! reveals one token a step, and every program is a module that the verifier passes by itself. The temperature and the
//! other parameters are public inputs of the program, and the number of candidates is one of its sizes.

use crate::diag::{Diagnostic, Result};
use crate::dim::SymInfo;
use crate::module::{Count, Module, Node};
use crate::op::Op;
use crate::plain::{self, Tensor};
use serde::{Deserialize, Serialize};

/// Name of the public input that holds one over the temperature, of shape `[1, 1]`.
pub const INVERSE_TEMPERATURE: &str = "%inverse_temperature";
/// Name of the public input that holds the share of the mass to draw from, of shape `[1, 1]`.
pub const TOP_P: &str = "%top_p";
/// Name of the size that is the number of candidates.
pub const TOP_K: &str = "top_k";
/// Lowest temperature.
pub const LOWEST_TEMPERATURE: f32 = 1.0 / 16.0;
/// Highest temperature.
pub const HIGHEST_TEMPERATURE: f32 = 16.0;
/// Candidates at most.
pub const MOST_CANDIDATES: u64 = 256;
/// Candidates where a request gives a share of the mass and no number of them.
pub const USUAL_CANDIDATES: u64 = 128;

/// Tokens of less than `e^-KEPT` times the mass of the most probable one may be left out.
pub const KEPT: u8 = 22;

/// How a token is drawn. Parties see it, and the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// From all tokens.
    None,
    /// From the most probable ones, by number.
    TopK,
    /// From the fewest of those that hold a share of their mass.
    TopP,
}

impl Filter {
    /// All of them.
    pub const ALL: [Filter; 3] = [Filter::None, Filter::TopK, Filter::TopP];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Filter::None => "temperature",
            Filter::TopK => "top-k",
            Filter::TopP => "top-p",
        }
    }
}

/// What a request says of drawing. Every party learns it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Logits are divided by it.
    pub temperature: f32,
    /// Candidates: the most probable tokens.
    pub top_k: Option<u64>,
    /// The fewest of the candidates are drawn from that hold this share of their mass.
    pub top_p: Option<f32>,
}

impl Sampling {
    /// The program that it takes.
    pub fn filter(&self) -> Filter {
        match (self.top_k, self.share()) {
            (_, Some(_)) => Filter::TopP,
            (Some(_), None) => Filter::TopK,
            (None, None) => Filter::None,
        }
    }

    /// The share of the mass that is drawn from, where it is not all of it.
    pub fn share(&self) -> Option<f32> {
        self.top_p.filter(|p| *p < 1.0)
    }

    /// How many of the most probable tokens are drawn from; from all of them without a number.
    pub fn candidates(&self) -> Option<u64> {
        self.top_k.or(self.share().map(|_| USUAL_CANDIDATES))
    }

    /// Checks that the parameters are in their ranges.
    ///
    /// # Errors
    /// `E0415`.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, expected: String, found: String| {
            Err(Diagnostic::input("E0415", format!("{what} is out of range"))
                .note(format!("expected  {expected}"))
                .note(format!("found     {found}")))
        };
        let Sampling { temperature, top_k, top_p } = *self;
        if !(LOWEST_TEMPERATURE..=HIGHEST_TEMPERATURE).contains(&temperature) {
            let expected = format!("{LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}, or 0 for the most probable token");
            return wrong("the temperature", expected, temperature.to_string());
        }
        if let Some(k) = top_k.filter(|k| !(1..=MOST_CANDIDATES).contains(k)) {
            return wrong("top-k", format!("1 to {MOST_CANDIDATES} tokens"), k.to_string());
        }
        if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return wrong("top-p", "more than 0 and at most 1".to_owned(), p.to_string());
        }
        Ok(())
    }

    /// Sizes that its program has beside those of the step: the number of candidates, which is at most that of tokens.
    pub fn sizes(&self, drawing: &Drawing) -> Vec<(String, u64)> {
        let most = drawing.syms.iter().find(|info| info.name == TOP_K).and_then(|info| info.max);
        let wanted = self.candidates().unwrap_or(USUAL_CANDIDATES);
        most.map(|most| (TOP_K.to_owned(), wanted.min(most))).into_iter().collect()
    }

    /// The public inputs that its program has beside those of the step.
    ///
    /// # Errors
    /// None for parameters in their ranges.
    pub fn public_inputs(&self, drawing: &Drawing) -> Result<Vec<(String, Tensor)>> {
        let known = [(INVERSE_TEMPERATURE, 1.0 / self.temperature), (TOP_P, self.top_p.unwrap_or(1.0))];
        let wanted =
            known.into_iter().filter(|(name, _)| drawing.public.inputs.iter().any(|input| input.name == *name));
        wanted.map(|(name, value)| Ok((name.to_owned(), Tensor::f32(&[1, 1], vec![value])?))).collect()
    }
}

/// How a program that draws tokens differs from the plan's module: what follows the beginning that both have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drawing {
    /// What is drawn from.
    pub filter: Filter,
    /// Further sizes.
    pub syms: Vec<SymInfo>,
    /// Further counts.
    pub counts: Vec<Count>,
    /// Further inputs, nodes and outputs of the public program.
    pub public: plain::Program,
    /// Ops of the module that the program begins with.
    pub kept: u32,
    /// Its other ops.
    pub ops: Vec<Node>,
}

impl Drawing {
    /// What `drawn` has beyond the beginning that it shares with `module`.
    ///
    /// # Errors
    /// `E0416` where the two differ in more than that.
    pub fn between(filter: Filter, module: &Module, drawn: &Module) -> Result<Drawing> {
        let kept = module.ops.iter().zip(&drawn.ops).take_while(|(a, b)| a == b).count();
        let rest = |len: usize| Diagnostic::internal("E0416", format!("a program has fewer than {len} entries"));
        fn after<T: Clone>(all: &[T], first: usize) -> Option<Vec<T>> {
            all.get(first..).map(<[T]>::to_vec)
        }
        let (p, q) = (&module.public, &drawn.public);
        let drawing = Drawing {
            filter,
            syms: after(&drawn.dims.syms, module.dims.syms.len()).ok_or_else(|| rest(module.dims.syms.len()))?,
            counts: after(&drawn.counts, module.counts.len()).ok_or_else(|| rest(module.counts.len()))?,
            public: plain::Program {
                inputs: after(&q.inputs, p.inputs.len()).ok_or_else(|| rest(p.inputs.len()))?,
                nodes: after(&q.nodes, p.nodes.len()).ok_or_else(|| rest(p.nodes.len()))?,
                outputs: after(&q.outputs, p.outputs.len()).ok_or_else(|| rest(p.outputs.len()))?,
            },
            kept: u32::try_from(kept).map_err(|_| rest(kept))?,
            ops: after(&drawn.ops, kept).unwrap_or_default(),
        };
        if drawing.module(module)? == *drawn {
            return Ok(drawing);
        }
        Err(Diagnostic::internal("E0416", "a program that draws tokens differs from the plan's in more than its end"))
    }

    /// The program: the plan's module with its end replaced. The verifier has to pass it.
    ///
    /// # Errors
    /// `E0416` where the drawing keeps ops that the module does not have, or brings weights of its own, which nobody shares, or
    /// public inputs other than its parameters.
    pub fn module(&self, module: &Module) -> Result<Module> {
        let wrong = |what: &str| {
            Diagnostic::input("E0416", format!("the plan's program for drawing by {} {what}", self.filter.name()))
                .note("compile the model again with this version")
        };
        let kept = usize::try_from(self.kept).ok().and_then(|kept| module.ops.get(..kept));
        let kept = kept.ok_or_else(|| wrong("keeps more ops than there are"))?;
        if self.ops.iter().any(|node| matches!(node.op, Op::Weight { .. } | Op::PublicWeight { .. })) {
            return Err(wrong("has weights of its own"));
        }
        if self.public.inputs.iter().any(|input| ![INVERSE_TEMPERATURE, TOP_P].contains(&input.name.as_str())) {
            return Err(wrong("has public inputs that are no parameters of drawing"));
        }
        let mut drawn = Module { ops: kept.to_vec(), ..module.without_ops() };
        drawn.ops.extend(self.ops.iter().cloned());
        drawn.dims.syms.extend(self.syms.iter().cloned());
        drawn.counts.extend(self.counts.iter().cloned());
        drawn.public.inputs.extend(self.public.inputs.iter().cloned());
        drawn.public.nodes.extend(self.public.nodes.iter().cloned());
        drawn.public.outputs.extend(self.public.outputs.iter().cloned());
        Ok(drawn)
    }
}
