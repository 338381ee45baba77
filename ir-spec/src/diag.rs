//! Diagnostics: the one error type of the libraries.
//!
//! A diagnostic says what was expected, what was found and what to do. Libraries return them, binaries print them.

use std::fmt;

/// Whose fault a diagnostic is, which decides the exit status and whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model, plan, configuration or command line is wrong.
    Input,
    /// The input is legal but asks for something that is not built.
    Unsupported,
    /// A peer sent something wrong, is silent, or went away.
    Peer,
    /// An invariant of this program does not hold.
    Internal,
}

/// One error with a stable code, a message and notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Stable code such as `E0311`; the list is in `SPEC.md`.
    pub code: &'static str,
    /// Whose fault it is.
    pub kind: Kind,
    /// What is wrong: lower-case start, no full stop at the end.
    pub message: String,
    /// Where: an ONNX node, a line of a text file, an op of a plan, a peer.
    pub place: Option<String>,
    /// What was expected, found, and what to do.
    pub notes: Vec<String>,
}

/// Result of a library call that fails with one diagnostic.
pub type Result<T> = std::result::Result<T, Diagnostic>;

impl Diagnostic {
    /// A diagnostic of `kind` with `code` and `message`.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic { code, kind, message: message.into(), place: None, notes: Vec::new() }
    }

    /// An error in something the user gave.
    pub fn input(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Input, code, message)
    }

    /// Something legal that is not built.
    pub fn unsupported(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, code, message)
    }

    /// An error caused by a peer or the link to it.
    pub fn peer(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Peer, code, message)
    }

    /// A broken invariant of this program.
    pub fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, code, message)
    }

    /// The same diagnostic at `place`, unless it has one already.
    pub fn at(mut self, place: impl Into<String>) -> Self {
        if self.place.is_none() {
            self.place = Some(place.into());
        }
        self
    }

    /// The same diagnostic with one more note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(place) = &self.place {
            write!(f, "\n  --> {place}")?;
        }
        for note in &self.notes {
            write!(f, "\n   = {note}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

impl From<ombra_kernels::Error> for Diagnostic {
    fn from(error: ombra_kernels::Error) -> Self {
        match error {
            ombra_kernels::Error::Outside { rows, cols, row_stride, col_stride, len } => {
                Diagnostic::internal("E0901", "matrix view reaches outside its buffer").note(format!(
                    "{rows} x {cols} with strides {row_stride} and {col_stride} does not fit {len} elements"
                ))
            }
            ombra_kernels::Error::NoMemory { rows, cols } => {
                Diagnostic::input("E0902", format!("no memory for a packed {rows} x {cols} matrix"))
                    .note("give the process more memory, or fewer or smaller private weights")
            }
        }
    }
}
