//! Who may know what: owners of weights, what a plan puts in the clear, and a search of written files for private pieces.

pub mod labels;
pub mod leak;
pub mod published;
