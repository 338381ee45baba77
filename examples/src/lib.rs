//! Small programs.

pub mod generate;
