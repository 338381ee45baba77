//! Small programs.

pub mod generate;
pub mod quickstart;
pub mod real;
