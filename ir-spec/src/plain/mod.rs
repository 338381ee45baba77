//! Public tensors.
