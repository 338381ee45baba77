//! The verifier: what must hold before a module is written to a plan, and again before it is run.
//!
//! It takes a module from anywhere: whatever a plan file decodes to is checked without panic and in bounded time.
//! All errors are collected, up to [`MAX_FINDINGS`]. Order of the checks, with their codes:
//!
//! 1. Ids and definitions ([`ids`]). A module that fails here is checked no further.
//!    - `E0301` numbers of ops, operands, axes, slots and counts, and lengths of names, are within limits.
//!    - `E0302` operands are earlier results.
//!    - `E0303` every op has its number of operands.
//!    - `E0304` slots and values of the public program that ops name are declared.
//!    - `E0305` sizes use declared symbols with maxima, and are never negative or too large.
//!    - `E0306` counts define a symbol each, by a public mask that broadcasts to their shape.
//!    - `E0307` slots have different names and consistent declarations.
//!    - `E0343` no name stands for two of an input of the client, a state and an input of the public program.
//!    - `E0308` the public program is well-typed, and no size in it waits for a count.
//! 2. Types and shapes ([`types`]): every op is typed again by [`crate::infer::infer`], with the constraint's label.
//!    - `E0310` elements, `E0311` ring bits and scales, `E0312` shapes, `E0313` attributes, `E0315` sharing forms.
//!    - `E0314` the declared type is the one that follows.
//! 3. Scales and bounds ([`types`]).
//!    - `E0320` a bound below the proven one is marked calibrated or guarded.
//!    - `E0321` truncations, comparisons and narrowings have room for their operand's bound.
//!    - `E0323` the ring holds the bound.
//!    - `E0324` what a state slot is set to has the type and the bound that it is read with.
//! 4. Secrecy flow ([`secrecy`]).
//!    - `E0330` only shared ring tensors are revealed: never a sum of products, never a bit.
//!    - `E0331` only declared outputs are revealed.
//!    - `E0332` what depends on a secret is not declared public, and what the client knows is not declared shared.
//!    - `E0333` outputs go to the client.
//!    - `E0334` every output is revealed at most once.
//!    - `E0335` a next token comes from `arg_max`, or is drawn: `random` has a part in it, and its ring is small.
//!    - `E0344` there is one next token at most, of one index for every row that the client gives.
//!    - `E0342` a guard is one bit, from `bit_to_ring`.
//!    - `E0336` only public values are encoded.
//!    - `E0337` integers of the client go into `embed` alone.
//!    - `E0338` masks and indices are public.
//!    - `E0339` states are shared, or masked.
//!    - `E0346` only settings that have masks mask values.
//! 5. Legality for setting and stage ([`stage`]).
//!    - `E0340` every declared output is revealed.
//!    - `E0341` every state slot is set at most once.
//!    - `E0350` no composite op after expansion.
//! 6. Schedule ([`stage`]).
//!    - `E0351` rotations are below the number of parties, and zero before scheduling.
//!    - `E0352` an op that takes a sum has the rotation of the op that made it.
//!    - `E0353` ops that the client takes part in by name have rotation zero.
//!
//! Not checked: that calibrated and guarded bounds hold, that weights exist in their files with their shapes, that
//! indices of a `gather` are in range, that a public program ends in time, and that a plan's costs are right.

mod ids;
mod public;
mod secrecy;
mod stage;
mod types;

use crate::diag::Diagnostic;
use crate::infer::Violation;
use crate::module::{Id, Module};

/// Most errors that are collected.
pub const MAX_FINDINGS: usize = 100;
/// Most ops of a module.
pub const MAX_OPS: usize = 1 << 20;
/// Most operands of an op.
pub const MAX_OPERANDS: usize = 1 << 12;
/// Most axes of a value.
pub const MAX_RANK: usize = 8;
/// Most inputs, states, outputs or counts.
pub const MAX_SLOTS: usize = 1 << 12;
/// Longest name in bytes.
pub const MAX_NAME: usize = 1 << 12;
/// Most elements of a value.
pub const MAX_ELEMENTS: i128 = 1 << 40;

/// An error of the verifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The op it is at; `None` for the module's declarations.
    pub op: Option<Id>,
    /// The constraint of a type rule that does not hold, such as `add_c2`.
    pub label: Option<String>,
    /// What is wrong.
    pub diagnostic: Diagnostic,
}

/// Checks a module.
///
/// Errors: all that was found, at least one and at most [`MAX_FINDINGS`].
pub fn verify(module: &Module) -> Result<(), Vec<Diagnostic>> {
    let found: Vec<_> = findings(module).into_iter().map(|f| f.diagnostic).collect();
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// The errors of a module, with their ops and labels; empty when it is well-formed.
pub fn findings(module: &Module) -> Vec<Finding> {
    let mut report = Report { module, found: Vec::new() };
    ids::check(&mut report);
    if report.found.is_empty() {
        types::check(&mut report);
        secrecy::check(&mut report);
        stage::check(&mut report);
    }
    report.found
}

struct Report<'a> {
    module: &'a Module,
    found: Vec<Finding>,
}

impl Report<'_> {
    fn is_full(&self) -> bool {
        self.found.len() >= MAX_FINDINGS
    }

    /// An error in the declarations of the module.
    fn declared(&mut self, diagnostic: Diagnostic) {
        if !self.is_full() {
            self.found.push(Finding { op: None, label: None, diagnostic });
        }
    }

    /// An error at an op, once: an attribute and the type that follows from it fail together.
    fn at(&mut self, id: Id, label: Option<String>, diagnostic: Diagnostic) {
        let here = self.found.iter().rev().take_while(|f| f.op == Some(id));
        let is_same = |f: &Finding| {
            (&f.label, f.diagnostic.code, &f.diagnostic.message) == (&label, diagnostic.code, &diagnostic.message)
        };
        if !self.is_full() && !here.into_iter().any(is_same) {
            let diagnostic = diagnostic.at(place(self.module, id));
            self.found.push(Finding { op: Some(id), label, diagnostic });
        }
    }

    fn violation(&mut self, id: Id, violation: &Violation) {
        self.at(id, Some(violation.label.clone()), violation.diagnostic());
    }
}

/// The op and the ONNX node it comes from.
fn place(module: &Module, id: Id) -> String {
    match module.ops.get(id.index()) {
        Some(n) if n.origin.node.is_empty() => format!("op %{} {}", id.0, n.op.name()),
        Some(n) => format!("op %{} {} of node \"{}\"", id.0, n.op.name(), n.origin.node.escape_debug()),
        None => format!("op %{}", id.0),
    }
}

/// The ops with their ids. A module of more ops than ids has been refused before.
fn nodes(module: &Module) -> impl Iterator<Item = (Id, &crate::module::Node)> {
    (0u32..).map(Id).zip(&module.ops)
}
