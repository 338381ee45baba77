//! Protocols of the `3pc` setting: one kernel for each op of the MPC IR.
//!
//! Interactive kernels are `async fn`s over a [`Cx`]; they send exactly what `ombra_ir::settings::rep3` says. Local
//! kernels are in [`local`]. No kernel sees a socket, a clock or a thread.

pub mod compare;
pub mod convert;
mod cross;
pub mod cx;
mod divide_many;
pub mod embed;
pub mod exp;
pub mod input;
pub mod local;
mod planes;
pub mod random;
pub mod reshare;
pub mod reveal;
pub mod tree;
pub mod truncate;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

pub use cx::{Cx, Keys, Purpose};
