//! Matrix products on Z_2^64 on a graphics processor, with right operands that stay in its memory.
//!
//! A device gives the same bits as `ombra_kernels::gemm`, or an error: known products are compared before it is used, see
//! [`open`]. Whatever fails on it is an [`Error`] and never a panic, and a device that failed once refuses all later work.
//! Buffers that held an operand or a result are cleared before they are used for anything else or given back, on the device
//! and where messages to it are staged; sizes are all that its programs branch on.

mod device;
mod place;
mod product;
mod text;
mod trial;

use std::fmt;

pub use device::{Gpu, Options, open};
pub use place::{Placed, Placing};
pub use trial::{Trial, compare};

/// How a device computes with integers of 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// With its own.
    Wide,
    /// With two limbs of 32 bits.
    Limbs,
}

impl Form {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Form::Wide => "64-bit integers",
            Form::Limbs => "two 32-bit limbs",
        }
    }
}

/// What can be wrong with a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// There is none that may be used: what there is, each with the reason why not.
    None(Vec<String>),
    /// It can be opened, and must not be used: why.
    Unfit(String),
    /// It failed, or was lost: what it said.
    Failed(String),
    /// Operands that have no product, or none on this device.
    Sizes(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::None(found) if found.is_empty() => f.write_str("no graphics processor was found"),
            Error::None(found) => write!(f, "no graphics processor that can be used: {}", found.join("; ")),
            Error::Unfit(why) => write!(f, "the graphics processor cannot be used: {why}"),
            Error::Failed(what) => write!(f, "the graphics processor failed: {what}"),
            Error::Sizes(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

/// The result of work on a device.
pub type Result<T> = std::result::Result<T, Error>;
