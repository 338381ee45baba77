//! Runs plans: interactive ops of one step side by side, one frame to each peer a tick.
//!
//! | code | meaning |
//! |---|---|
//! | E0801 | a kernel asked for a key that its role does not know |
//! | E0802 | a message of an op is too short |
//! | E0803 | a width or divisor is out of range |
//! | E0804 | tensors do not fit together |
//! | E0805 | a kernel does not send what its cost declares |
//! | E0806 | an index is out of range |
//! | E0807 | a key of a point function is malformed |
//! | E0808 | the session has ended |
//! | E0811 | an op has operands of another kind |
//! | E0812 | a peer sent a key of another length |
//! | E0813 | a weight has another shape |
//! | E0814 | weights were not loaded |
//! | E0815 | an op has no kernel |
//! | E0816 | the schedule does not fit the module |
//! | E0817 | the client's inputs do not fit the plan |
//! | E0818 | a state slot has another shape |

#[cfg(test)]
pub(crate) mod lockstep;
pub mod net;
pub(crate) mod port;
pub mod run;
pub mod side;
pub mod source;
pub mod task;
#[cfg(test)]
mod tests;

pub use net::{LinkNet, Net};
pub use run::{Opened, Run, StepResult, Steps};
pub use source::TensorSource;
pub use task::Task;
