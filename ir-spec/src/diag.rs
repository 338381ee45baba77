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

/// `text` as it may reach a terminal: what is no visible character is written as `\uXXXX`. Names come from models, plans and
/// peers, and a terminal would obey what they hold. Characters that turn the direction of writing count too.
pub fn printable(text: &str) -> String {
    escaped(text, |_| false)
}

/// [`printable`] for whole pages: ends of lines and tabs stay. JSON stays the JSON that it was.
pub fn printable_lines(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() || turns) && !keeps(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
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
        write!(f, "error[{}]: {}", self.code, printable(&self.message))?;
        if let Some(place) = &self.place {
            write!(f, "\n  --> {}", printable(place))?;
        }
        for note in &self.notes {
            write!(f, "\n   = {}", printable(note))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

impl From<ombra_kernels::Error> for Diagnostic {
    fn from(error: ombra_kernels::Error) -> Self {
        let ombra_kernels::Error::Outside { rows, cols, row_stride, col_stride, len } = error;
        Diagnostic::internal("E0901", "matrix view reaches outside its buffer")
            .note(format!("{rows} x {cols} with strides {row_stride} and {col_stride} does not fit {len} elements"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let hostile = "a\x1b]0;title\x07\u{9b}2J\u{202e}\r\x7f\0é漢\u{1f600}";
        let shown = printable(hostile);
        assert_eq!(shown, "a\\u001b]0;title\\u0007\\u009b2J\\u202e\\u000d\\u007f\\u0000é漢\u{1f600}");
        let error = Diagnostic::input("E0000", hostile).at("b\x1b[2J\nc").note("d\x1b[2J\ne");
        let text = error.to_string();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert_eq!(text.lines().count(), 3, "{text:?}");
        assert_eq!(printable_lines("a\tb\n\x1bc"), "a\tb\n\\u001bc");
    }
}
