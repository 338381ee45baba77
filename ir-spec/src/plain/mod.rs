//! Public tensors and programs on them: what every party computes for itself, from lengths and masks alone.
//!
//! Operators have ONNX's names and meaning. Results are the same to the bit on every machine:
//! transcendental functions come from `libm` and sums run in index order.

pub mod eval;
pub mod infer;
pub mod op;
pub mod program;
pub mod tensor;

mod elementwise;
mod index;
mod movement;
mod reduce;

pub use eval::{DEFAULT_LIMIT, eval};
pub use infer::{Type, infer};
pub use op::{Binary, Op, Reduce, Unary};
pub use program::{Input, Node, Program, ValueRef};
pub use tensor::{DType, Data, Tensor};
