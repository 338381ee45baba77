//! What is wrong with what another party sent, a file holds, or a caller asked for.

use std::fmt;

/// One sentence: what was expected and what was found. It holds sizes, never values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A value, or what is wrong.
pub type Result<T> = std::result::Result<T, Error>;

/// Refuses what has another length than `expected`.
pub(crate) fn check_length(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::new(format!("expected {expected} {what}, found {found}")))
}
