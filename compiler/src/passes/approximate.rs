//! Cheaper functions in place of softmax, activations and norms, where the user asks for them.
//!
//! They change the model: a model has to be fine-tuned with exactly these formulas and constants, which are stated here
//! and nowhere else, and which every plan and every report repeats.
//!
//! - **2ReLU** (SecureML, 2017/396): `max(x, 0) / (Σ max(x, 0) + ε)`. Without `ε` a row with no positive score divides by
//!   zero. `ε = 2^−6`: a power of two that every fixed point holds exactly, so that training and secure computation agree,
//!   where 1e-6 is 0 at 16 fraction bits and 1e-3 is off by a percent; and large enough that the divisor's range, which
//!   costs a comparison a row for every power of two, stays small.
//! - **2Quad** (MPCFormer, arXiv 2211.01452): `(x + 5)² / Σ (x + 5)²`.
//! - **L2Quad** (SAL-ViT, ICCV 2023): `(a x + b)² / Σ (a x + b)²` with learned `a` and `b`. A factor of the whole cancels,
//!   so it is 2Quad with the shift `b / a`.
//! - **ReLU** in place of GELU and SiLU.
//! - **Quad** (MPCFormer's training code): `x²/8 + x/4 + 1/2` in place of GELU and SiLU.
//! - **Affine norms** (Liu and Liu, arXiv 2305.18396): `γ ∘ (x − mean(x)) + β` in place of a layer norm, `γ ∘ x` in place
//!   of an RMS norm.
//!
//! Entries that a mask removes are 0 under every form, and are neither compared nor summed.
//!
//! Only what runs under MPC changes: the client's own layers cost no message, and they are public ones, which nobody has
//! trained with the approximation. A pattern limits a choice further, by the name of the ONNX node or by
//! `layers.N.OP`, where `OP` is what `ombra explain` calls it; of several choices for one node the last one holds.

use crate::graph::{Graph, Numerator, Op, Owner, ValueId};
use globset::{GlobBuilder, GlobMatcher};
use ombra_ir::{Diagnostic, Result};
use std::collections::BTreeMap;
use std::str::FromStr;

/// ε of 2ReLU, `2^−6`.
pub const TWO_RELU_EPS: f32 = 0.015_625;
/// What 2Quad adds to every score.
pub const TWO_QUAD_SHIFT: f32 = 5.0;
/// Factor of `x²` in Quad.
pub const QUAD_SQUARE: f32 = 0.125;
/// Factor of `x` in Quad.
pub const QUAD_LINEAR: f32 = 0.25;
/// What Quad adds.
pub const QUAD_CONSTANT: f32 = 0.5;

/// What softmax becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Softmax {
    /// It stays.
    Exact,
    /// 2ReLU.
    TwoRelu,
    /// 2Quad.
    TwoQuad,
    /// L2Quad with the constants of a model.
    LearnedTwoQuad {
        /// Factor of the scores, not 0.
        scale: f32,
        /// What is added to them.
        shift: f32,
    },
}

/// What GELU and SiLU become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// They stay.
    Exact,
    /// ReLU.
    Relu,
    /// Quad.
    Quad,
}

/// What norms become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// They stay.
    Exact,
    /// Norms without division.
    Affine,
}

/// A choice for the nodes that a pattern names, or for all.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<T> {
    /// Which nodes; all without it.
    pub pattern: Option<String>,
    /// What they become.
    pub value: T,
}

/// What the user asks for. Of several choices for one node the last one holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Approximations {
    /// For softmax.
    pub softmax: Vec<Choice<Softmax>>,
    /// For GELU and SiLU.
    pub activation: Vec<Choice<Activation>>,
    /// For layer norms and RMS norms.
    pub norm: Vec<Choice<Norm>>,
}

impl FromStr for Softmax {
    type Err = Diagnostic;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "expected exact, 2relu, 2quad or l2quad:A,B";
        match text {
            "exact" => Ok(Softmax::Exact),
            "2relu" => Ok(Softmax::TwoRelu),
            "2quad" => Ok(Softmax::TwoQuad),
            "l2quad" => Err(unknown("softmax", text, expected)
                .note("l2quad has learned constants: give A and B of (A x + B)² as the model was trained")
                .note("constants that stand in the model are found there without this option")),
            _ => {
                let constants = text.strip_prefix("l2quad:").and_then(|c| c.split_once(','));
                let number = |c: &str| c.trim().parse::<f32>().ok().filter(|c| c.is_finite());
                let learned = constants.and_then(|(a, b)| Some((number(a)?, number(b)?)));
                match learned.filter(|(scale, shift)| *scale != 0.0 && (shift / scale).is_finite()) {
                    Some((scale, shift)) => Ok(Softmax::LearnedTwoQuad { scale, shift }),
                    None => Err(unknown("softmax", text, expected)),
                }
            }
        }
    }
}

impl FromStr for Activation {
    type Err = Diagnostic;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "exact" => Ok(Activation::Exact),
            "relu" => Ok(Activation::Relu),
            "quad" => Ok(Activation::Quad),
            _ => Err(unknown("activation", text, "expected exact, relu or quad")),
        }
    }
}

impl FromStr for Norm {
    type Err = Diagnostic;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "exact" => Ok(Norm::Exact),
            "affine" => Ok(Norm::Affine),
            _ => Err(unknown("norm", text, "expected exact or affine")),
        }
    }
}

fn unknown(option: &str, text: &str, expected: &str) -> Diagnostic {
    Diagnostic::input("E0580", format!("--{option} has no form `{}`", text.escape_debug()))
        .note(format!("{expected}, or PATTERN=FORM"))
}

impl<T: FromStr<Err = Diagnostic>> FromStr for Choice<T> {
    type Err = Diagnostic;

    /// Reads `FORM` or `PATTERN=FORM`.
    ///
    /// Errors: `E0580` for an unknown form.
    fn from_str(text: &str) -> Result<Self> {
        let (pattern, value) = match text.rsplit_once('=') {
            Some((pattern, value)) => (Some(pattern.to_owned()), value),
            None => (None, text),
        };
        Ok(Choice { pattern, value: value.parse()? })
    }
}

/// A function that was changed: its formula and the nodes in which it stands.
struct Change {
    what: String,
    nodes: Vec<String>,
}

/// Replaces what `wanted` names among the values under MPC. Returns what was changed, a sentence for every formula.
///
/// # Errors
/// `E0581` for a pattern that is none or that names no such node.
pub fn approximate(graph: &mut Graph, wanted: &Approximations) -> Result<Vec<String>> {
    let softmax = Rules::new("softmax", &wanted.softmax)?;
    let activation = Rules::new("activation", &wanted.activation)?;
    let norm = Rules::new("norm", &wanted.norm)?;
    let mut changes: BTreeMap<String, Change> = BTreeMap::new();
    let mut seen = [vec![], vec![], vec![]];
    for id in graph.topological() {
        let node = graph.node(id)?;
        if node.owner != Owner::Secret {
            continue;
        }
        let names = names_of(node);
        let (group, new) = match &node.op {
            Op::Softmax { axis } | Op::MaskedSoftmax { axis } => (0, ratio(softmax.choice(&names), *axis)),
            Op::Gelu { .. } | Op::Silu => (1, activation_op(activation.choice(&names))),
            Op::LayerNorm { .. } => (2, affine(norm.choice(&names), true)),
            Op::RmsNorm { .. } => (2, affine(norm.choice(&names), false)),
            _ => continue,
        };
        let shown = names.first().cloned().unwrap_or_default();
        seen[group].push(names);
        let Some(new) = new else { continue };
        let what = format!("{} becomes {}", node.op.name(), formula(&new));
        let origin = node.origin.clone();
        replace(graph, id, new, origin)?;
        changes.entry(what.clone()).or_insert(Change { what, nodes: Vec::new() }).nodes.push(shown);
    }
    let [softmaxes, activations, norms] = &seen;
    softmax.check(softmaxes)?;
    activation.check(activations)?;
    norm.check(norms)?;
    graph.remove_dead();
    Ok(changes.into_values().map(sentence).collect())
}

fn replace(graph: &mut Graph, id: ValueId, new: Op, origin: crate::graph::Origin) -> Result<()> {
    let operands = graph.operands(id);
    let new = graph.add(new, &operands, origin)?;
    graph.replace_all_uses(id, new)
}

fn sentence(change: Change) -> String {
    let n = change.nodes.len();
    let nodes = if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") };
    format!(
        "{}; this changes the model, which must be fine-tuned with exactly this formula ({nodes}: {})",
        change.what,
        change.nodes.join(", ")
    )
}

fn ratio(choice: Option<Softmax>, axis: usize) -> Option<Op> {
    let (numerator, eps) = match choice? {
        Softmax::Exact => return None,
        Softmax::TwoRelu => (Numerator::Relu, TWO_RELU_EPS),
        Softmax::TwoQuad => (Numerator::Square { shift: TWO_QUAD_SHIFT }, 0.0),
        Softmax::LearnedTwoQuad { scale, shift } => (Numerator::Square { shift: shift / scale }, 0.0),
    };
    Some(Op::RatioSoftmax { axis, numerator, eps })
}

fn activation_op(choice: Option<Activation>) -> Option<Op> {
    match choice? {
        Activation::Exact => None,
        Activation::Relu => Some(Op::Relu),
        Activation::Quad => Some(Op::Quadratic { square: QUAD_SQUARE, linear: QUAD_LINEAR, constant: QUAD_CONSTANT }),
    }
}

fn affine(choice: Option<Norm>, centred: bool) -> Option<Op> {
    match choice? {
        Norm::Exact => None,
        Norm::Affine => Some(Op::AffineNorm { centred }),
    }
}

/// The formula of an operator that this pass makes, with its constants.
pub fn formula(op: &Op) -> String {
    match op {
        Op::RatioSoftmax { numerator, eps, .. } => {
            let g = match numerator {
                Numerator::Relu => "max(x, 0)".to_owned(),
                Numerator::Square { shift } if *shift < 0.0 => format!("(x - {})^2", -shift),
                Numerator::Square { shift } => format!("(x + {shift})^2"),
            };
            let eps = if *eps == 0.0 { String::new() } else { format!(" + {eps}") };
            format!("{g} / (sum of {g}{eps}) and 0 where masked")
        }
        Op::Quadratic { square, linear, constant } => format!("{square} x^2 + {linear} x + {constant}"),
        Op::Relu => "max(x, 0)".to_owned(),
        Op::AffineNorm { centred: true } => "weight * (x - mean(x)) + bias".to_owned(),
        Op::AffineNorm { centred: false } => "weight * x".to_owned(),
        other => other.name().to_owned(),
    }
}

/// The names by which patterns know a node.
fn names_of(node: &crate::graph::Node) -> Vec<String> {
    let layer = node.origin.layer.map(|layer| format!("layers.{layer}.{}", node.op.name()));
    let named = Some(node.origin.node.clone()).filter(|name| !name.is_empty());
    let names: Vec<String> = named.into_iter().chain(layer).collect();
    if names.is_empty() { vec![node.op.name().to_owned()] } else { names }
}

/// Choices in their order, with their patterns.
struct Rules<T> {
    option: &'static str,
    rules: Vec<(Option<GlobMatcher>, T)>,
}

impl<T: Copy> Rules<T> {
    fn new(option: &'static str, choices: &[Choice<T>]) -> Result<Self> {
        let mut rules = Vec::with_capacity(choices.len());
        for choice in choices {
            let matcher = match &choice.pattern {
                None => None,
                Some(pattern) => {
                    let glob = GlobBuilder::new(pattern).literal_separator(false).build().map_err(|e| {
                        let message = format!("--{option} '{}' is no pattern: {}", pattern.escape_debug(), e.kind());
                        Diagnostic::input("E0581", message)
                            .note("'*' stands for any characters, '?' for one, '[ab]' for one of some")
                    })?;
                    Some(glob.compile_matcher())
                }
            };
            rules.push((matcher, choice.value));
        }
        Ok(Rules { option, rules })
    }

    /// What a node of these names becomes.
    fn choice(&self, names: &[String]) -> Option<T> {
        self.rules.iter().rev().find(|(matcher, _)| fits(matcher, names)).map(|(_, value)| *value)
    }

    /// Refuses patterns that name none of these nodes.
    fn check(&self, nodes: &[Vec<String>]) -> Result<()> {
        for (matcher, _) in &self.rules {
            let Some(pattern) = matcher else { continue };
            if !nodes.iter().any(|names| fits(matcher, names)) {
                let known: Vec<String> = nodes.iter().take(8).map(|names| names.join(" or ")).collect();
                let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
                let message = format!("--{} '{}' names no node under MPC", self.option, pattern.glob());
                return Err(Diagnostic::input("E0581", message).note(format!("expected one of these: {known}")));
            }
        }
        Ok(())
    }
}

fn fits(matcher: &Option<GlobMatcher>, names: &[String]) -> bool {
    matcher.as_ref().is_none_or(|m| names.iter().any(|name| m.is_match(name)))
}
