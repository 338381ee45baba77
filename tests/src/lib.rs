//! The test harness: models of the corpus, compiled and run in the clear or between parties, beside what ONNX Runtime
//! computed.

pub mod built;
pub mod case;
pub mod conformance;
pub mod corpus;
pub mod logits;
pub mod parties;
pub mod plain;
pub mod real;
pub mod reference;
