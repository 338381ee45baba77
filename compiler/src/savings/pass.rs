//! Which of the passes that lower a program's cost a compilation applies.
//!
//! The compiler without any of them is correct and naive: nothing is public but structure, everything is computed for
//! every position, masked scores are computed and then pushed far down, every product is divided at once, and every
//! comparison and function takes the whole ring.

use crate::pipeline::Pass;
use std::collections::BTreeSet;

/// Name of the program that no pass has touched, in reports.
pub const NAIVE: &str = "naive, all private";

/// The passes that a compilation applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passes(BTreeSet<Pass>);

impl Passes {
    /// The first `count` passes of [`Pass::ALL`].
    pub fn first(count: usize) -> Passes {
        Passes(Pass::ALL.iter().copied().take(count).collect())
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
