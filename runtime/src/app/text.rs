//! Prompts as text: a tokenizer, and the text of tokens as they come.

use ombra_ir::{Diagnostic, Result};
use tokenizers::Tokenizer;

use super::folder::PlanFolder;

/// The tokenizer of a plan folder.
pub struct Text {
    tokenizer: Tokenizer,
}

/// Text of a growing list of tokens.
pub struct TextStream<'a> {
    text: &'a Text,
    ids: Vec<u32>,
    shown: usize,
}

impl Text {
    /// The tokenizer of `folder`.
    ///
    /// # Errors
    /// `E1009` when there is none, or it cannot be used.
    pub fn open(folder: &PlanFolder) -> Result<Text> {
        let bytes = folder.tokenizer()?.ok_or_else(|| {
            Diagnostic::input("E1009", "the plan folder has no tokenizer.json")
                .note("help      give --tokens, or compile with --tokenizer")
        })?;
        let tokenizer = Tokenizer::from_bytes(bytes)
            .map_err(|error| Diagnostic::input("E1009", format!("the tokenizer cannot be used: {error}")))?;
        Ok(Text { tokenizer })
    }

    /// The tokens of a prompt, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// `E1009`.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<i64>> {
        // The library's own message may quote the prompt.
        let encoding = self
            .tokenizer
            .encode(prompt, true)
            .map_err(|_| Diagnostic::input("E1009", "the tokenizer cannot encode the prompt"))?;
        Ok(encoding.get_ids().iter().copied().map(i64::from).collect())
    }

    /// Text of tokens that come one by one.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { text: self, ids: Vec::new(), shown: 0 }
    }
}

impl TextStream<'_> {
    /// Adds a token and returns the text that is certain now: a character whose bytes are not all there is held back.
    ///
    /// # Errors
    /// `E1009`.
    pub fn push(&mut self, token: i64) -> Result<String> {
        let id = u32::try_from(token).map_err(|_| Diagnostic::input("E1009", "a token is out of the vocabulary"))?;
        self.ids.push(id);
        let whole = self.whole()?;
        if whole.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        let new = whole.get(self.shown..).unwrap_or_default().to_owned();
        self.shown = whole.len();
        Ok(new)
    }

    /// All text so far.
    ///
    /// # Errors
    /// `E1009`.
    pub fn whole(&self) -> Result<String> {
        self.text
            .tokenizer
            .decode(&self.ids, true)
            .map_err(|_| Diagnostic::input("E1009", "the tokenizer cannot decode the tokens"))
    }
}
