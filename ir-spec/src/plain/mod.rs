//! Public tensors and programs on them: what every party computes for itself, from lengths and masks alone.
//!
//! Operators have ONNX's names and meaning. Results are the same to the bit on every machine:
//! transcendental functions come from `libm` and sums run in index order.

pub mod infer;
pub mod op;
pub mod tensor;

pub use infer::{Type, infer};
pub use op::{Binary, Op, Reduce, Unary};
pub use tensor::{DType, Data, Tensor};
