//! Prompts as text: a tokenizer, and the text of tokens as they come.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use ombra_ir::folder::TOKENIZER;
use ombra_ir::{Diagnostic, Result};
use tokenizers::Tokenizer;

use super::folder::{CheckedFile, PlanFolder};
use super::isolation::{BROKEN, Isolation, Worker};
use super::settings::Settings;
use super::template::{Chat, Message, render};

/// Largest tokenizer, in bytes.
const MAX_BYTES: u64 = 256 << 20;
/// Most tokens that a stream of text decodes at once. A character has four bytes, of which each is a token at most: so many
/// tokens that are no whole character will never become one.
const MOST_IDS: usize = 32;

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

    /// Token ids of a text, with the special tokens that the tokenizer adds where `special` says so.
    ///
    /// # Errors
    /// `E1009`.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.0.encode(text, special)).and_then(std::result::Result::ok);
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

    /// The id of a token, if there is one.
    pub(super) fn token_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
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
    Isolated(Apart),
}

/// A process with the tokenizer. One that a text was too much for is replaced, so that the next text finds another.
struct Apart {
    isolation: Isolation,
    file: CheckedFile,
    worker: Mutex<Option<Worker>>,
}

impl Apart {
    fn start(isolation: &Isolation, file: &CheckedFile) -> Result<Worker> {
        let mut worker = Worker::start(isolation)?;
        worker.load_vocabulary(file.clone())?;
        Ok(worker)
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut Worker) -> Result<T>) -> Result<T> {
        let mut place = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let mut worker = match place.take() {
            Some(worker) => worker,
            None => Apart::start(&self.isolation, &self.file)?,
        };
        let answer = ask(&mut worker);
        // One that failed may answer later: nobody is to take that for the answer to another question.
        if !answer.as_ref().is_err_and(|error| error.code == BROKEN) {
            *place = Some(worker);
        }
        answer
    }
}

/// Text of a growing list of tokens. Of these only the last few are decoded again with each new one.
pub struct TextStream<'a> {
    text: &'a Text,
    /// The last tokens: some whose text is whole, and those after them.
    ids: Vec<u32>,
    /// How many of them are those whose text is whole.
    stable: usize,
    /// How many characters of their text were taken already.
    known: usize,
    /// What was taken and not shown, since it may become one of the strings in `stop`.
    held: String,
    stop: Vec<String>,
    has_stopped: bool,
}

impl Text {
    /// The tokenizer of `folder`, in a process of its own where `isolation` says how.
    ///
    /// # Errors
    /// `E1009` when the plan has none, or it cannot be used; `E1001`, `E1002`, `E0725`.
    pub fn open(folder: &PlanFolder, isolation: Option<&Isolation>) -> Result<Text> {
        let file = folder.file(TOKENIZER)?.ok_or_else(|| {
            Diagnostic::input("E1009", "the plan has no tokenizer.json")
                .note("found     a file of that name in the folder counts only with its digest in the plan")
                .note("help      give --tokens, or compile with --tokenizer")
        })?;
        let place = match isolation {
            None => Place::Here(Box::new(Vocabulary::read(&file)?)),
            Some(isolation) => {
                let worker = Mutex::new(Some(Apart::start(isolation, &file)?));
                Place::Isolated(Apart { isolation: isolation.clone(), file, worker })
            }
        };
        Ok(Text { place })
    }

    /// The tokens of a prompt, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// `E1009`, `E0725`.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<i64>> {
        self.encode(prompt, true)
    }

    /// The tokens of a chat up to the answer that is to come, as the model's template in `settings` writes it.
    ///
    /// # Errors
    /// `E1022` without a template, or when it fails; `E1009`, `E0725`.
    pub fn chat_tokens(&self, settings: &Settings, messages: &[Message]) -> Result<Vec<i64>> {
        let template = settings.template.clone().ok_or_else(|| {
            Diagnostic::input("E1022", "the plan has no chat template")
                .note("expected  chat_template.jinja, or one in tokenizer_config.json, in the model's folder")
                .note("help      compile the model's folder, or use `generate` with a prompt")
        })?;
        let chat = Chat { template, special: settings.special.clone(), messages: messages.to_vec() };
        let text = match &self.place {
            Place::Here(_) => render(&chat)?,
            Place::Isolated(apart) => apart.ask(|worker| worker.render(chat))?,
        };
        // The template writes the special tokens itself.
        self.encode(&text, false)
    }

    /// The id of a token that is named by its text, if there is one.
    ///
    /// # Errors
    /// `E0725`.
    pub fn token_id(&self, token: &str) -> Result<Option<i64>> {
        let id = match &self.place {
            Place::Here(vocabulary) => vocabulary.token_id(token),
            Place::Isolated(apart) => apart.ask(|worker| worker.token_id(token))?,
        };
        Ok(id.map(i64::from))
    }

    fn encode(&self, text: &str, special: bool) -> Result<Vec<i64>> {
        let ids = match &self.place {
            Place::Here(vocabulary) => vocabulary.encode(text, special)?,
            Place::Isolated(apart) => apart.ask(|worker| worker.encode(text, special))?,
        };
        Ok(ids.into_iter().map(i64::from).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.place {
            Place::Here(vocabulary) => vocabulary.decode(ids),
            Place::Isolated(apart) => apart.ask(|worker| worker.decode(ids)),
        }
    }

    /// Text of tokens that come one by one, up to the first of the strings in `stop`.
    pub fn stream(&self, stop: &[String]) -> TextStream<'_> {
        let stop = stop.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        TextStream { text: self, ids: Vec::new(), stable: 0, known: 0, held: String::new(), stop, has_stopped: false }
    }
}

impl TextStream<'_> {
    /// Adds a token and returns the text that is certain now: a character whose bytes are not all there is held back, and
    /// so is what may become a string that ends the text.
    ///
    /// # Errors
    /// `E1009`, `E0725`.
    pub fn push(&mut self, token: i64) -> Result<String> {
        let id = u32::try_from(token).map_err(|_| Diagnostic::input("E1009", "a token is out of the vocabulary"))?;
        if self.has_stopped {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.text.decode(&self.ids)?;
        let is_full = self.ids.len() >= MOST_IDS;
        let whole = if is_full { &text[..] } else { text.trim_end_matches('\u{fffd}') };
        let new = beyond(&text, whole.len(), self.known);
        self.known = self.known.max(whole.chars().count());
        // What comes later may depend on the tokens before it, as spaces between words do, so that those stay which the
        // last piece came from.
        if is_full || (whole.len() == text.len() && !new.is_empty()) {
            let last = self.ids.split_off(self.stable);
            self.known = self.text.decode(&last)?.chars().count();
            (self.stable, self.ids) = (last.len(), last);
        }
        self.held.push_str(&new);
        Ok(self.certain())
    }

    /// What was held back, when no more tokens come.
    ///
    /// # Errors
    /// `E1009`, `E0725`.
    pub fn finish(&mut self) -> Result<String> {
        if self.has_stopped || self.ids.is_empty() {
            return Ok(String::new());
        }
        let text = self.text.decode(&self.ids)?;
        self.held.push_str(&beyond(&text, text.len(), self.known));
        self.known = text.chars().count();
        let certain = self.certain();
        Ok(if self.has_stopped { certain } else { certain + &std::mem::take(&mut self.held) })
    }

    /// Whether the text has come to a string that ends it.
    pub fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// Takes from what is held what cannot become a string that ends the text any more.
    fn certain(&mut self) -> String {
        if let Some(at) = first_stop(&self.held, &self.stop) {
            self.has_stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stop.iter().map(|stop| held_back(&self.held, stop)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, kept)
    }
}

/// The first `end` bytes of `text` without its first `known` characters.
fn beyond(text: &str, end: usize, known: usize) -> String {
    text.get(..end).unwrap_or_default().chars().skip(known).collect()
}

/// Where the first of the strings in `stop` begins in `text`.
fn first_stop(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// How many bytes at the end of `text` are a beginning of `stop`.
fn held_back(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
    beginnings.filter(|&length| stop.get(..length).is_some_and(|start| text.ends_with(start))).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_stop_is_held_back() {
        assert_eq!(held_back("one\n", "\n\nUser"), 1);
        assert_eq!(held_back("one\n\nUs", "\n\nUser"), 4);
        assert_eq!(held_back("one", "\n\nUser"), 0);
        assert_eq!(held_back("aé", "éa"), 2);
        let stops = ["b".to_owned(), "ab".to_owned()];
        assert_eq!((first_stop("xxab", &stops), first_stop("xx", &stops)), (Some(2), None));
    }

    /// A tokenizer whose tokens are bytes and pieces of text, as GPT-2's are.
    const BYTES: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
        {"id": 8, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
         "special": true}],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "ByteLevel",
        "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "merges": [],
        "vocab": {"â": 0, "Ĥ": 1, "¬": 2, "a": 3, "Ġb": 4, "âĤ": 5, "¬a": 6, "ÿ": 7}}}"#;

    /// One that writes in bytes what it has no token for, and begins words with a mark, as LLaMA's does.
    const FALLBACK: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "merges": [],
        "vocab": {"<unk>": 0, "<0xE2>": 1, "<0x82>": 2, "<0xAC>": 3, "▁a": 4, "b": 5, "<0xFF>": 6}}}"#;

    fn open(tokenizer: &str) -> Text {
        let tokenizer = Tokenizer::from_bytes(tokenizer).unwrap();
        Text { place: Place::Here(Box::new(Vocabulary(tokenizer))) }
    }

    /// The text as it came, token by token, and what followed at the end.
    fn streamed(text: &Text, tokens: &[u32], stop: &[&str]) -> Vec<String> {
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = text.stream(&stop);
        let mut pieces = Vec::new();
        for token in tokens {
            pieces.push(stream.push(i64::from(*token)).unwrap());
            assert!(stream.ids.len() <= MOST_IDS, "so many are decoded with every token");
        }
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn characters_of_many_tokens_come_when_they_are_whole() {
        let text = open(BYTES);
        assert_eq!(streamed(&text, &[3, 0, 1, 2, 4], &[]), ["a", "", "", "€", " b", ""]);
        assert_eq!(streamed(&text, &[5, 6, 8, 8, 3], &[]), ["", "€a", "", "", "a", ""]);
        assert_eq!(streamed(&text, &[3, 0], &[]), ["a", "", "\u{fffd}"]);
        assert_eq!(streamed(&text, &[3, 7, 3], &[]), ["a", "", "\u{fffd}a", ""]);
        let text = open(FALLBACK);
        assert_eq!(streamed(&text, &[4, 1, 2, 3, 4, 5], &[]), ["a", "", "", "€", " a", "b", ""]);
        assert_eq!(streamed(&text, &[1, 2, 3, 1, 2, 3, 5], &[]), ["", "", "€", "", "", "€", "b", ""]);
        // Bytes after a whole character that are none: the library takes that back, the stream does not.
        assert_eq!(streamed(&text, &[1, 2, 3, 6, 5], &[]).concat(), "€\u{fffd}\u{fffd}\u{fffd}b");
    }

    #[test]
    fn a_stream_gives_the_text_of_all_its_tokens() {
        for tokenizer in [BYTES, FALLBACK] {
            let text = open(tokenizer);
            // Words and whole characters in an order that is drawn once, with more tokens than are ever decoded at once.
            let parts: [&[u32]; 4] =
                if tokenizer == BYTES { [&[3], &[4], &[0, 1, 2], &[5, 6]] } else { [&[4], &[5], &[1, 2, 3], &[5, 4]] };
            let mut state = 1u32;
            let mut tokens = Vec::new();
            for _ in 0..2000 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                tokens.extend_from_slice(parts[(state >> 24) as usize % 4]);
            }
            assert_eq!(streamed(&text, &tokens, &[]).concat(), text.decode(&tokens).unwrap());
        }
    }

    #[test]
    fn bytes_without_end_do_not_pile_up() {
        for (tokenizer, byte) in [(BYTES, 7), (FALLBACK, 6)] {
            let text = open(tokenizer);
            let mut stream = text.stream(&[]);
            let mut shown = String::new();
            for _ in 0..1000 {
                shown += &stream.push(byte).unwrap();
                assert!(stream.ids.len() <= MOST_IDS);
            }
            shown += &stream.finish().unwrap();
            assert_eq!(shown, "\u{fffd}".repeat(1000));
        }
    }

    #[test]
    fn a_string_that_ends_the_text_may_lie_over_tokens() {
        let text = open(BYTES);
        assert_eq!(streamed(&text, &[3, 3, 0, 1, 2, 4, 3], &["€ b"]), ["a", "a", "", "", "", "", "", ""]);
        assert_eq!(streamed(&text, &[3, 5, 6, 3], &["€ b", "aa"]), ["", "", "a€", "", ""]);
        assert_eq!(streamed(&text, &[3, 4], &["a c"]), ["", "a b", ""]);
        assert_eq!(streamed(&text, &[3, 3], &["a b"]), ["", "a", "a"]);
    }
}
