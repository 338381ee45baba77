//! Prompts as text: a tokenizer, and the text of tokens as they come.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ombra_ir::{Diagnostic, Result};
use tokenizers::Tokenizer;

use super::folder::{CheckedFile, PlanFolder, TOKENIZER_FILE};
use super::isolation::{Isolation, Worker};

/// Largest tokenizer, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// A loaded tokenizer. Its library's panics, on a file of another form than it expects, become errors here; its messages
/// may quote the prompt, and are not passed on.
pub(super) struct Vocabulary(Tokenizer);

impl Vocabulary {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// `E1001`, `E1002`, and `E1009` when it cannot be used.
    pub(super) fn read(file: &CheckedFile) -> Result<Vocabulary> {
        let bytes = file.read(MAX_BYTES)?;
        let unusable = |what: String| Diagnostic::input("E1009", format!("the tokenizer cannot be used: {what}"));
        match guarded(|| Tokenizer::from_bytes(&bytes)) {
            Some(Ok(tokenizer)) => Ok(Vocabulary(tokenizer)),
            Some(Err(error)) => Err(unusable(error.to_string())),
            None => Err(unusable("it is of a form that its library does not take".to_owned())),
        }
    }

    /// Token ids of a text, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// `E1009`.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.0.encode(text, true)).and_then(std::result::Result::ok);
        let encoding = encoding.map(|encoding| encoding.get_ids().to_vec());
        encoding.ok_or_else(|| Diagnostic::input("E1009", "the tokenizer cannot encode the prompt"))
    }

    /// Text of token ids, without special tokens.
    ///
    /// # Errors
    /// `E1009`.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = guarded(|| self.0.decode(ids, true)).and_then(std::result::Result::ok);
        text.ok_or_else(|| Diagnostic::input("E1009", "the tokenizer cannot decode the tokens"))
    }
}

/// The result of `work`, or nothing when it panicked.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The tokenizer of a plan folder.
pub struct Text {
    place: Place,
}

/// Where the tokenizer runs.
enum Place {
    Here(Box<Vocabulary>),
    Isolated(RefCell<Worker>),
}

/// Text of a growing list of tokens.
pub struct TextStream<'a> {
    text: &'a Text,
    ids: Vec<u32>,
    shown: usize,
}

impl Text {
    /// The tokenizer of `folder`, in a process of its own where `isolation` says how.
    ///
    /// # Errors
    /// `E1009` when the plan has none, or it cannot be used; `E1001`, `E1002`, `E0725`.
    pub fn open(folder: &PlanFolder, isolation: Option<&Isolation>) -> Result<Text> {
        let file = folder.file(TOKENIZER_FILE)?.ok_or_else(|| {
            Diagnostic::input("E1009", "the plan has no tokenizer.json")
                .note("found     a file of that name in the folder counts only with its digest in the plan")
                .note("help      give --tokens, or compile with --tokenizer")
        })?;
        let place = match isolation {
            None => Place::Here(Box::new(Vocabulary::read(&file)?)),
            Some(isolation) => {
                let mut worker = Worker::start(isolation)?;
                worker.load_vocabulary(file)?;
                Place::Isolated(RefCell::new(worker))
            }
        };
        Ok(Text { place })
    }

    /// The tokens of a prompt, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// `E1009`, `E0725`.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<i64>> {
        let ids = match &self.place {
            Place::Here(vocabulary) => vocabulary.encode(prompt)?,
            Place::Isolated(worker) => worker.borrow_mut().encode(prompt)?,
        };
        Ok(ids.into_iter().map(i64::from).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.place {
            Place::Here(vocabulary) => vocabulary.decode(ids),
            Place::Isolated(worker) => worker.borrow_mut().decode(ids),
        }
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
    /// `E1009`, `E0725`.
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
    /// `E1009`, `E0725`.
    pub fn whole(&self) -> Result<String> {
        self.text.decode(&self.ids)
    }
}
