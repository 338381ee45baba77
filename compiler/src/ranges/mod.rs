//! How large values are: proven from the weights, measured on inputs where nothing is proven, or assumed.

pub mod assume;
pub mod bounds;
pub mod calibrate;
pub mod npz;
pub mod stand_in;
pub mod token_text;
