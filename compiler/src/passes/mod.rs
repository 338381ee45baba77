//! Passes over the typed graph, and over core ops (`narrow_rings`, `assign_masks`, `assign_rotations`), one a file.
//! `pipeline.rs` knows their order.

pub mod approximate;
pub mod assign_masks;
pub mod assign_owners;
pub mod assign_rotations;
pub mod decompose;
pub mod fold_norms;
pub mod lift_reshapes;
pub mod narrow_demand;
pub mod narrow_rings;
