//! Small programs.

pub mod generate;
pub mod quickstart;
