//! Reading of text: words, strings, lists and their places.

use crate::diag::{Diagnostic, Result};

/// A place in a text.
pub struct Cursor<'a> {
    text: &'a str,
    pos: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Cursor { text, pos: 0 }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.pos..).unwrap_or("")
    }

    /// Skips blanks, line ends and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.pos += rest.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                return;
            }
            self.pos += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    /// The byte offset of the next word.
    pub fn pos(&mut self) -> usize {
        self.skip();
        self.pos
    }

    /// Line (from 1) of a byte offset.
    pub fn line_of(&self, pos: usize) -> usize {
        1 + self.text.get(..pos).unwrap_or("").matches('\n').count()
    }

    /// The place of a byte offset, in lines and columns from 1.
    pub fn place(&self, pos: usize) -> String {
        let before = self.text.get(..pos).unwrap_or("");
        let column = 1 + before.rsplit('\n').next().unwrap_or("").chars().count();
        format!("line {} column {column}", self.line_of(pos))
    }

    /// An error in the form of the text.
    pub fn error_at(&self, pos: usize, what: impl Into<String>) -> Diagnostic {
        Diagnostic::input("E0370", what).at(self.place(pos))
    }

    /// The next character that is no blank and in no comment.
    pub fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    fn found(&mut self) -> String {
        match self.peek() {
            Some(_) => {
                let word: String = self.rest().chars().take_while(|c| !c.is_whitespace()).take(40).collect();
                format!("`{}`", word.escape_debug())
            }
            None => "the end".into(),
        }
    }

    /// Takes a punctuation mark if it is next.
    pub fn eat(&mut self, mark: char) -> bool {
        let there = self.peek() == Some(mark);
        if there {
            self.pos += mark.len_utf8();
        }
        there
    }

    /// Takes a punctuation mark.
    ///
    /// # Errors
    /// `E0370` where something else is next.
    pub fn expect(&mut self, mark: char) -> Result<()> {
        if self.eat(mark) {
            return Ok(());
        }
        let found = self.found();
        let pos = self.pos();
        Err(self.error_at(pos, format!("expected `{mark}`, found {found}")))
    }

    /// Takes a keyword if it is next.
    pub fn eat_word(&mut self, word: &str) -> bool {
        self.skip();
        let there = self.rest().strip_prefix(word).is_some_and(|tail| !tail.starts_with(is_word));
        if there {
            self.pos += word.len();
        }
        there
    }

    /// Takes a keyword.
    ///
    /// # Errors
    /// `E0370` where something else is next.
    pub fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.eat_word(word) {
            return Ok(());
        }
        let found = self.found();
        let pos = self.pos();
        Err(self.error_at(pos, format!("expected `{word}`, found {found}")))
    }

    /// A word of letters, digits, `_` and `.`.
    ///
    /// # Errors
    /// `E0370` where something else is next.
    pub fn word(&mut self) -> Result<String> {
        self.skip();
        let rest = self.rest();
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end == 0 {
            let found = self.found();
            return Err(self.error_at(self.pos, format!("expected a word, found {found}")));
        }
        self.pos += end;
        Ok(rest.get(..end).unwrap_or("").into())
    }

    /// A number without sign.
    ///
    /// # Errors
    /// `E0370` where something else is next.
    pub fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let pos = self.pos();
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest.get(..end).unwrap_or("");
        let value = digits.parse().map_err(|_| {
            let found = self.found();
            self.error_at(pos, format!("expected a number in range, found {found}"))
        })?;
        self.pos += end;
        Ok(value)
    }

    /// A string in quotes.
    ///
    /// # Errors
    /// `E0370` where something else is next.
    pub fn quoted(&mut self) -> Result<String> {
        self.expect('"')?;
        let start = self.pos;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.pos = start + i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => out.push(c),
                    Some((at, 'u')) => {
                        let tail = self.text.get(start + at + 1..).and_then(|t| t.strip_prefix('{')).unwrap_or("");
                        let end = tail.bytes().take(6).take_while(u8::is_ascii_hexdigit).count();
                        let code = tail.get(..end).filter(|_| tail.as_bytes().get(end) == Some(&b'}'));
                        let c = code.and_then(|t| u32::from_str_radix(t, 16).ok()).and_then(char::from_u32);
                        let Some(c) = c else {
                            return Err(self.error_at(start + i, "expected a character's number such as \\u{a}"));
                        };
                        out.push(c);
                        // The braces and the digits are one byte each.
                        for _ in 0..end + 2 {
                            chars.next();
                        }
                    }
                    _ => return Err(self.error_at(start + i, "expected \\\", \\\\ or \\u{…} in a string")),
                },
                c if c.is_control() => return Err(self.error_at(start + i, "a control character in a string")),
                c => out.push(c),
            }
        }
        Err(self.error_at(start, "a string without end"))
    }

    /// Text up to one of `marks` or the end of the line, without blanks around it.
    pub fn until(&mut self, marks: &[char]) -> String {
        self.skip();
        let rest = self.rest();
        let end = rest.find(|c| marks.contains(&c) || c == '\n' || c == ';').unwrap_or(rest.len());
        self.pos += end;
        rest.get(..end).unwrap_or("").trim_end().into()
    }

    /// A list with commas, its items as text.
    ///
    /// # Errors
    /// `E0370` where something else is next.
    pub fn list(&mut self, open: char, close: char) -> Result<Vec<String>> {
        self.expect(open)?;
        let mut out = Vec::new();
        if self.eat(close) {
            return Ok(out);
        }
        loop {
            out.push(self.until(&[',', close]));
            if self.eat(close) {
                return Ok(out);
            }
            self.expect(',')?;
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}
