//! Chat templates, which models bring along: the turns of a chat as one text.
//!
//! A template is a program in Jinja of whoever made the plan. It gets steps and recursion in bounded amounts, sees nothing
//! but the turns and the model's special tokens, and runs where a tokenizer does, in a process with bounded memory.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::io::{self, Write};

use minijinja::{Environment, ErrorKind};
use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

/// Most steps of a template: those of a long chat are in the hundred thousands.
const FUEL: u64 = 50_000_000;
/// Longest text of a chat, in bytes.
const MAX_TEXT: usize = 16 << 20;

/// One turn of a chat.
#[derive(Clone, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// A chat to be written as one text that ends where the model's answer begins.
#[derive(Serialize, Deserialize)]
pub(super) struct Chat {
    /// The template.
    pub template: String,
    /// Special tokens by the names that templates have for them.
    pub special: BTreeMap<String, String>,
    /// The turns.
    pub messages: Vec<Message>,
}

/// The text of a chat.
///
/// # Errors
/// `E1022` for a template that fails; what it says itself is passed on only where it refuses the turns, since other
/// messages may quote them.
pub(super) fn render(chat: &Chat) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |text: String| -> std::result::Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(text)))
    });
    let failed = |what: String| {
        Diagnostic::input("E1022", format!("the model's chat template fails: {what}"))
            .note("help      give a prompt as text with `generate`, or compile with another template")
    };
    let template = environment
        .template_from_str(&chat.template)
        .map_err(|error| failed(format!("{} in line {}", error.kind(), error.line().unwrap_or(0))))?;
    let mut context: BTreeMap<&str, minijinja::Value> = BTreeMap::new();
    for (name, text) in &chat.special {
        context.insert(name, text.as_str().into());
    }
    context.insert("messages", minijinja::Value::from_serialize(&chat.messages));
    context.insert("add_generation_prompt", true.into());
    let mut text = Bounded(Vec::new());
    let written = template.render_captured_to(context, &mut text);
    written.map_err(|error| match error.source().and_then(|source| source.downcast_ref()) {
        Some(Raised(text)) => failed(text.clone()),
        None => failed(format!("{} in line {}", error.kind(), error.line().unwrap_or(0))),
    })?;
    String::from_utf8(text.0).map_err(|_| failed("it writes no UTF-8 text".to_owned()))
}

/// What a template says itself when it refuses the turns.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Raised {}

/// Text of bounded length.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > MAX_TEXT {
            return Err(io::Error::other("the text of a chat is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(template: &str, turns: &[(&str, &str)]) -> Chat {
        let message = |(role, content): &(&str, &str)| Message { role: (*role).into(), content: (*content).into() };
        Chat {
            template: template.to_owned(),
            special: BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]),
            messages: turns.iter().map(message).collect(),
        }
    }

    /// The forms that exporters' templates use: loops with conditions, methods of Python's strings, namespaces, slices.
    #[test]
    fn templates_of_models_are_rendered() {
        let chatml = "{% for message in messages %}\n  {% if loop.first and message['role'] != 'system' %}{{ \
                      '<|im_start|>system\\nBe brief<|im_end|>\\n' }}{% endif %}\n{{ '<|im_start|>' + message['role'] + \
                      '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}{% endfor %}\n{% if \
                      add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";
        let text = render(&chat(chatml, &[("user", " Hello ")])).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        );
        let llama = "{{ bos_token }}{% set ns = namespace(last='') %}{% for m in messages[1:] %}{% set ns.last = \
                     m.content.split(' ')[-1] | trim %}{% endfor %}{{ ns.last }}{{ messages | length }}";
        let text = render(&chat(llama, &[("system", "a"), ("user", "one two")])).unwrap();
        assert_eq!(text, "<s>two2");
    }

    #[test]
    fn a_template_that_fails_is_an_error() {
        let refused = render(&chat("{{ raise_exception('roles must alternate') }}", &[])).unwrap_err();
        assert!(refused.message.ends_with("roles must alternate"), "{refused}");
        for wrong in ["{% for %}", "{{ messages[0].content.nonsense() }}", "{% include 'file' %}"] {
            let error = render(&chat(wrong, &[("user", "a secret")])).unwrap_err();
            assert_eq!(error.code, "E1022");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        let long = "{% for a in range(2000) %}{{ 'x' * 10000 }}{% endfor %}";
        assert_eq!(render(&chat(long, &[])).unwrap_err().code, "E1022");
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{{ a }}\
                       {% endfor %}{% endfor %}{% endfor %}";
        assert_eq!(render(&chat(endless, &[])).unwrap_err().code, "E1022");
    }
}
