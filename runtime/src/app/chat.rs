//! A chat at the terminal: turns in the model's own template, over one session whose cache is kept between them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal};
use std::ops::ControlFlow;

use ombra_ir::draw::Choosing;
use ombra_ir::{Diagnostic, Result};

use super::access::Access;
use super::client::tokens_left;
use super::command::{Progress, print};
use super::talk::{self, Event, Job};
use super::template::Message;
use super::text::TextStream;
use crate::transport::Purpose;

/// Longest line of a chat, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A chat of the client.
pub struct Chat {
    /// The plan and the other parties.
    pub access: Access,
    /// What the model is told before the first turn.
    pub system: Option<String>,
    /// Most tokens of an answer.
    pub count: u64,
    /// Tokens that end an answer, beside those that the model names.
    pub stop_tokens: Vec<i64>,
    /// Strings that end an answer and do not belong to it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub choosing: Choosing,
}

/// Reads turns from standard input, one a line, and writes the answers to standard output, until the input ends. `/new`
/// begins another chat.
///
/// # Errors
/// What keeps it from beginning; errors of single turns go to standard error, and the last of them is given at the end.
pub fn run(chat: &Chat) -> Result<()> {
    let opened = chat.access.open()?;
    let model = opened.model(true, &chat.stop_tokens)?;
    let (folder, text, settings, stop) = (&opened.folder, model.text()?, &model.settings, &model.end_tokens);
    let first = match &chat.system {
        Some(system) => vec![Message { role: "system".to_owned(), content: system.clone() }],
        None => Vec::new(),
    };
    // What the template lacks is better known before the parties are connected to.
    text.chat_tokens(settings, &[&first[..], &[user("Hello")]].concat())?;
    let connection = opened.connect()?;

    let turns = Turns { messages: RefCell::new(first.clone()), failed: RefCell::new(None) };
    let mut next = || loop {
        let line = match read_line() {
            Ok(Some(line)) => line,
            Ok(None) => return None,
            Err(error) => {
                turns.fail(error);
                return None;
            }
        };
        match line.trim() {
            "" => continue,
            "/new" => turns.messages.borrow_mut().clone_from(&first),
            _ => {
                turns.messages.borrow_mut().push(user(&line));
                let job = text.chat_tokens(settings, &turns.messages.borrow()).and_then(|tokens| {
                    let count = chat.count.min(tokens_left(&folder.plan, tokens.len())?);
                    let listen = Box::new(listener(&turns, text.stream(&chat.stop), stop.clone()));
                    Ok(Job { tokens, count, stop: stop.clone(), choosing: chat.choosing, listen })
                });
                match job {
                    Ok(job) => return Some(job),
                    Err(error) => turns.fail(error),
                }
            }
        }
    };
    let options = opened.talk_options(vec![chat.choosing.choice().way()]);
    talk::run(folder, &mut || connection.endpoint.open(Purpose::Run), &mut next, &options);
    turns.failed.into_inner().map_or(Ok(()), Err)
}

/// The turns so far, and the last error.
struct Turns {
    messages: RefCell<Vec<Message>>,
    failed: RefCell<Option<Diagnostic>>,
}

impl Turns {
    /// Takes a turn back that got no answer.
    fn fail(&self, error: Diagnostic) {
        eprintln!("{error}");
        let mut messages = self.messages.borrow_mut();
        if messages.last().is_some_and(|message| message.role == "user") {
            messages.pop();
        }
        *self.failed.borrow_mut() = Some(error);
    }
}

/// Writes an answer as it comes, and adds it to the turns when it is whole.
fn listener<'a>(
    turns: &'a Turns,
    mut stream: TextStream<'a>,
    end_tokens: BTreeSet<i64>,
) -> impl FnMut(Event<'_>) -> Result<ControlFlow<()>> + 'a {
    let progress = Progress::new();
    let mut answer = String::new();
    let mut count = 0;
    move |event| {
        match event {
            Event::Waiting(before) => progress.waiting(before),
            Event::Open(_) | Event::Begin(_) | Event::Step(..) => {}
            Event::Token(token) => {
                count += 1;
                progress.token(count);
                // An end token is no part of the answer.
                let new = if end_tokens.contains(&token) { String::new() } else { stream.push(token)? };
                answer.push_str(&new);
                progress.aside(|| print(&new))?;
                if stream.has_stopped() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Event::End(Ok(_)) => {
                progress.end();
                let rest = stream.finish()?;
                answer.push_str(&rest);
                print(&format!("{rest}\n"))?;
                turns.messages.borrow_mut().push(Message { role: "assistant".to_owned(), content: answer.clone() });
            }
            Event::End(Err(error)) => {
                progress.end();
                turns.fail(error.clone());
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn user(text: &str) -> Message {
    Message { role: "user".to_owned(), content: text.to_owned() }
}

/// The next line of standard input; nothing at its end.
fn read_line() -> Result<Option<String>> {
    let wrong = |what: &str| Diagnostic::input("E1006", format!("the chat cannot be read: {what}"));
    if std::io::stdin().is_terminal() {
        eprint!("> ");
    }
    let mut line = Vec::new();
    let mut input = std::io::Read::take(std::io::stdin().lock(), MAX_LINE);
    input.read_until(b'\n', &mut line).map_err(|error| wrong(&error.to_string()))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 == MAX_LINE {
        return Err(wrong(&format!("a line has {MAX_LINE} bytes or more")));
    }
    let line = String::from_utf8(line).map_err(|_| wrong("it is no UTF-8 text"))?;
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
}
