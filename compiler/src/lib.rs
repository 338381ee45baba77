//! ONNX in, plan out.

pub mod advise;
pub mod assign_rotations;
pub mod assume;
pub mod bounds;
pub mod calibrate;
pub mod client_region;
pub mod egraph;
pub mod expand;
pub mod graph;
pub mod import;
pub mod inspect;
pub mod labels;
pub mod leak;
pub mod lower;
pub mod merge_heads;
pub mod npz;
pub mod onnx;
pub mod output;
pub mod partition;
pub mod passes;
pub mod pipeline;
pub mod profile;
pub mod published;
pub mod reveal;
pub mod savings;
pub mod stand_in;
