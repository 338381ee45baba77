//! Runs plans: interactive ops of one step side by side, one frame to each peer a tick.

#[cfg(test)]
pub(crate) mod lockstep;
pub mod task;

pub use task::Task;
