//! Passes over the typed graph, one a file. `pipeline.rs` knows their order.

pub mod approximate;
pub mod assign_owners;
pub mod decompose;
pub mod fold_norms;
pub mod lift_reshapes;
pub mod narrow_demand;
