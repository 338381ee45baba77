//! A first look: what compiling against a public base model saves, and what a run between three parties gives.

pub mod plaintext;
pub mod real;
pub mod serve;
pub mod show;
pub mod table;
