//! The passes that lower a program's cost, in the order in which they are counted.
//!
//! The compiler without any of them is correct and naive: nothing is public but structure, everything is computed for
//! every position, masked scores are computed and then pushed far down, every product is divided at once, and every
//! comparison and function takes the whole ring.

use std::collections::BTreeSet;

/// A pass that may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pass {
    /// Weights are public where their content occurs in the base model, and what follows from public values and the
    /// client's alone leaves MPC.
    Owners,
    /// Only the last position goes through what the next token alone needs.
    Demand,
    /// Scores that the mask removes are packed away before the softmax.
    Packing,
    /// Sums of products are divided once, not every product.
    Sums,
    /// Values are computed in the way that is cheapest among equal ones.
    Rewrites,
    /// Scales and shifts of norms are folded into the weights that follow.
    Norms,
    /// Comparisons are as wide and rings as large as bounds demand.
    Widths,
    /// Parties take turns in the roles of protocols.
    Rotations,
}

impl Pass {
    /// All passes, in order.
    pub const ALL: [Pass; 8] = [
        Pass::Owners,
        Pass::Demand,
        Pass::Packing,
        Pass::Sums,
        Pass::Rewrites,
        Pass::Norms,
        Pass::Widths,
        Pass::Rotations,
    ];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Pass::Owners => "owners by content",
            Pass::Demand => "demand narrowed",
            Pass::Packing => "causal packing",
            Pass::Sums => "one truncation a sum",
            Pass::Rewrites => "algebra rewritten",
            Pass::Norms => "norms folded",
            Pass::Widths => "narrow rings and comparisons",
            Pass::Rotations => "rotated roles",
        }
    }
}

/// Name of the program that no pass has touched, in reports.
pub const NAIVE: &str = "naive, all private";

/// The passes that a compilation applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passes(BTreeSet<Pass>);

impl Passes {
    /// The first `count` passes of [`Pass::ALL`].
    pub fn first(count: usize) -> Passes {
        Passes(Pass::ALL.into_iter().take(count).collect())
    }

    /// Whether a pass is applied.
    pub fn has(&self, pass: Pass) -> bool {
        self.0.contains(&pass)
    }
}

impl Default for Passes {
    fn default() -> Self {
        Passes::first(Pass::ALL.len())
    }
}
