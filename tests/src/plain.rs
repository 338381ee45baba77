//! A compiled model in the clear, in one process, with everything a run is given.

pub use ombra_compiler::self_test::clear::{bind_step, sizes, step};
