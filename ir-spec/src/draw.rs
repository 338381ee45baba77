//! How next tokens are chosen and drawn: what is said of it before a step, and the programs that do it.
//!
//! A plan's module reveals the most probable token. Beside it the plan keeps, for every other way to choose one, what
//! differs: a [`Drawing`] holds the ops after those that both programs begin with. A step runs one of the programs, so that
//! it reveals one token, and every program is a module that the verifier passes by itself. The temperature and the other
//! parameters are public inputs of the program, and the number of candidates is one of its sizes. What penalties take off
//! the logits is an input of the client's: the others learn that there are some.

use crate::diag::{Diagnostic, Result};
use crate::dim::SymInfo;
use crate::module::{Count, InputSlot, Module, Node};
use crate::op::Op;
use crate::plain::{self, DType, Tensor};
use serde::{Deserialize, Serialize};

/// Name of the public input that holds one over the temperature, of shape `[1, 1]`.
pub const INVERSE_TEMPERATURE: &str = "%inverse_temperature";
/// Name of the public input that holds the share of the mass to draw from, of shape `[1, 1]`.
pub const TOP_P: &str = "%top_p";
/// Name of the client's input that is added to the logits, of their shape with one leading axis.
pub const PENALTIES: &str = "%penalties";
/// Its elements are less than two to this, and more than minus that.
pub const PENALTY_BITS: u8 = 6;
/// How large either penalty may be.
pub const HIGHEST_PENALTY: f32 = 2.0;
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

/// What a token is drawn from. Parties see it, and the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// From the most probable one alone.
    #[default]
    Best,
    /// From all tokens.
    None,
    /// From the most probable ones, by number.
    TopK,
    /// From the fewest of those that hold a share of their mass.
    TopP,
}

impl Filter {
    /// All of them.
    pub const ALL: [Filter; 4] = [Filter::Best, Filter::None, Filter::TopK, Filter::TopP];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Filter::Best => "most probable",
            Filter::None => "temperature",
            Filter::TopK => "top-k",
            Filter::TopP => "top-p",
        }
    }
}

/// Which of a plan's programs chooses a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Way {
    /// What it is drawn from.
    pub filter: Filter,
    /// Whether the client takes penalties off the logits before.
    pub penalized: bool,
}

impl Way {
    /// In words.
    pub fn name(self) -> String {
        let penalties = if self.penalized { " with penalties" } else { "" };
        format!("{}{penalties}", self.filter.name())
    }
}

/// How the next token of a step is chosen: the most probable one, if nothing else is said. Every party learns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// How it is drawn, if it is.
    pub sampling: Option<Sampling>,
    /// Whether the client takes penalties off the logits before.
    pub penalized: bool,
}

impl Choice {
    /// The program that it takes.
    pub fn way(&self) -> Way {
        let filter = self.sampling.map_or(Filter::Best, |sampling| sampling.filter());
        Way { filter, penalized: self.penalized }
    }

    /// Checks that the parameters are in their ranges.
    ///
    /// # Errors
    /// `E0415`.
    pub fn check(&self) -> Result<()> {
        self.sampling.map_or(Ok(()), |sampling| sampling.check())
    }

    /// The mildest choice of a way: it keeps most candidates.
    pub fn mildest(way: Way) -> Choice {
        let few = matches!(way.filter, Filter::TopK | Filter::TopP);
        let sampling = Sampling {
            temperature: 1.0,
            top_k: few.then_some(MOST_CANDIDATES),
            top_p: (way.filter == Filter::TopP).then_some(0.5),
        };
        Choice { sampling: (way.filter != Filter::Best).then_some(sampling), penalized: way.penalized }
    }
}

/// What the client takes off the logits of tokens that an answer has already. Nobody else learns it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Penalties {
    /// For every token that occurs.
    pub presence: f32,
    /// For every occurrence.
    pub frequency: f32,
}

impl Penalties {
    /// Whether nothing is taken off.
    pub fn is_none(&self) -> bool {
        self.presence == 0.0 && self.frequency == 0.0
    }

    /// Checks that the penalties are in their ranges.
    ///
    /// # Errors
    /// `E0415`.
    pub fn check(&self) -> Result<()> {
        let known = [("the presence penalty", self.presence), ("the frequency penalty", self.frequency)];
        match known.into_iter().find(|(_, penalty)| !(-HIGHEST_PENALTY..=HIGHEST_PENALTY).contains(penalty)) {
            Some((what, found)) => wrong(what, format!("-{HIGHEST_PENALTY} to {HIGHEST_PENALTY}"), found.to_string()),
            None => Ok(()),
        }
    }

    /// What is added to the logits of a text whose answer so far is `answer`, one element for every token of the
    /// vocabulary. All that is added to one ends at its input's range, where a token is all but excluded.
    pub fn of(&self, answer: &[i64], vocabulary: usize) -> Vec<f32> {
        let most = f32::from(PENALTY_BITS).exp2() - 1.0;
        let mut counts = vec![0.0f32; vocabulary];
        for token in answer {
            if let Some(count) = usize::try_from(*token).ok().and_then(|token| counts.get_mut(token)) {
                *count += 1.0;
            }
        }
        let added = |count: &f32| match count {
            0.0 => 0.0,
            count => (-self.presence - self.frequency * count).clamp(-most, most),
        };
        counts.iter().map(added).collect()
    }
}

/// How the client has next tokens chosen: what the others learn of it, and what they do not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choosing {
    /// How they are drawn, if they are.
    pub sampling: Option<Sampling>,
    /// What is taken off the logits before.
    pub penalties: Penalties,
}

impl Choosing {
    /// What the others learn.
    pub fn choice(&self) -> Choice {
        Choice { sampling: self.sampling, penalized: !self.penalties.is_none() }
    }

    /// Checks that all parameters are in their ranges.
    ///
    /// # Errors
    /// `E0415`.
    pub fn check(&self) -> Result<()> {
        self.choice().check()?;
        self.penalties.check()
    }
}

impl From<Sampling> for Choosing {
    fn from(sampling: Sampling) -> Choosing {
        Choosing { sampling: Some(sampling), penalties: Penalties::default() }
    }
}

fn wrong(what: &str, expected: String, found: String) -> Result<()> {
    Err(Diagnostic::input("E0415", format!("{what} is out of range"))
        .note(format!("expected  {expected}"))
        .note(format!("found     {found}")))
}

/// How a token is drawn. Every party learns it.
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
    /// How the program chooses a token.
    pub way: Way,
    /// Further sizes.
    pub syms: Vec<SymInfo>,
    /// The client's penalties, where it has any.
    pub inputs: Vec<InputSlot>,
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
    pub fn between(way: Way, module: &Module, drawn: &Module) -> Result<Drawing> {
        let kept = module.ops.iter().zip(&drawn.ops).take_while(|(a, b)| a == b).count();
        let rest = |len: usize| Diagnostic::internal("E0416", format!("a program has fewer than {len} entries"));
        fn after<T: Clone>(all: &[T], first: usize) -> Option<Vec<T>> {
            all.get(first..).map(<[T]>::to_vec)
        }
        let (p, q) = (&module.public, &drawn.public);
        let drawing = Drawing {
            way,
            inputs: after(&drawn.inputs, module.inputs.len()).ok_or_else(|| rest(module.inputs.len()))?,
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
    /// inputs other than its parameters and penalties.
    pub fn module(&self, module: &Module) -> Result<Module> {
        let wrong = |what: &str| {
            Diagnostic::input("E0416", format!("the plan's program for choosing a token ({}) {what}", self.way.name()))
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
        let is_known = |input: &InputSlot| input.name == PENALTIES && input.dtype == DType::F32;
        if self.inputs.len() != usize::from(self.way.penalized) || !self.inputs.iter().all(is_known) {
            return Err(wrong("has inputs of the client's that are no penalties"));
        }
        let mut drawn = Module { ops: kept.to_vec(), ..module.without_ops() };
        drawn.ops.extend(self.ops.iter().cloned());
        drawn.inputs.extend(self.inputs.iter().cloned());
        drawn.dims.syms.extend(self.syms.iter().cloned());
        drawn.counts.extend(self.counts.iter().cloned());
        drawn.public.inputs.extend(self.public.inputs.iter().cloned());
        drawn.public.nodes.extend(self.public.nodes.iter().cloned());
        drawn.public.outputs.extend(self.public.outputs.iter().cloned());
        Ok(drawn)
    }
}
