//! ONNX in, plan out.

pub mod advise;
pub mod attention;
pub mod cli;
pub mod client_region;
pub mod egraph;
pub mod expand;
pub mod graph;
pub mod import;
pub mod inspect;
pub mod lower;
pub mod merge_heads;
pub mod onnx;
pub mod output;
pub mod passes;
pub mod pipeline;
pub mod ranges;
pub mod sampling;
pub mod savings;
pub mod secrecy;
pub mod self_test;
pub mod weights;
