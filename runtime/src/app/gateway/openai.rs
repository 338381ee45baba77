//! Requests and answers in the forms of OpenAI's API.
//!
//! A field that would change the answer and is not built is refused, unless it has the value that asks for nothing. So is a
//! field that is not known: nothing is ignored but what the lists here say.
//!
//! Source: the API reference of OpenAI for chat completions and completions.

use axum::http::StatusCode;
use ombra_ir::draw::{Choosing, Penalties, Sampling};
use serde_json::{Map, Value, json};

use super::pool::Answer;
use super::refusal::Refusal;
use crate::app::request::MAX_STEPS;
use crate::app::template::Message;

/// Most new tokens of a chat's answer where the request does not say.
const CHAT_TOKENS: u64 = 512;
/// Most new tokens of a completion where the request does not say, as in OpenAI's API.
const COMPLETION_TOKENS: u64 = 16;
/// Most strings that end an answer, and most bytes of each.
const MAX_STOPS: (usize, usize) = (16, 1024);

/// Fields that change no answer.
const IGNORED: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
];
/// Whether a value of a field asks for nothing.
type IsNeutral = fn(&Value) -> bool;
/// Fields that may only ask for nothing.
const NEUTRAL: &[(&str, IsNeutral)] = &[
    ("audio", |_| false),
    ("best_of", is_one),
    ("echo", is_false),
    ("function_call", |value| value == "none"),
    ("functions", is_empty),
    ("logit_bias", is_empty),
    ("logprobs", is_false),
    ("modalities", |value| *value == json!(["text"])),
    ("n", is_one),
    ("repetition_penalty", is_one),
    ("reasoning_effort", |value| value == "none"),
    ("response_format", |value| value.get("type").is_some_and(|kind| kind == "text")),
    ("store", is_false),
    ("suffix", |value| value == ""),
    ("tool_choice", |value| value == "none"),
    ("tools", is_empty),
    ("top_logprobs", is_zero),
    ("verbosity", |value| value == "medium"),
    ("web_search_options", |_| false),
];
/// Fields of a message that may only ask for nothing: what answers have beside their text, and clients send back.
const NEUTRAL_OF_MESSAGE: &[(&str, IsNeutral)] = &[
    ("annotations", is_empty),
    ("audio", is_empty),
    ("function_call", is_empty),
    ("refusal", |value| value == ""),
    ("tool_calls", is_empty),
];
/// Fields of a message that are read, or change no answer: a name is not shown to the model.
const OF_MESSAGE: &[&str] = &["content", "name", "role"];
/// Fields of a part of a message's content.
const OF_PART: &[&str] = &["text", "type"];
/// Fields that are read.
const READ: &[&str] = &[
    "frequency_penalty",
    "model",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
];

fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1)
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_false(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

/// Which of the two requests for text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// What an answer is to be given to.
#[derive(Clone)]
pub(super) enum Given {
    /// Turns of a chat.
    Chat(Vec<Message>),
    /// A text.
    Text(String),
    /// A text as tokens.
    Tokens(Vec<i64>),
}

/// A request for text.
pub(super) struct Ask {
    /// What an answer is to be given to.
    pub given: Given,
    /// The model's name.
    pub model: String,
    /// Most new tokens.
    pub count: u64,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub choosing: Choosing,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the last piece says what was used.
    pub include_usage: bool,
}

impl Form {
    /// The field that the text stands in.
    pub fn field(self) -> &'static str {
        match self {
            Form::Chat => "messages",
            Form::Completion => "prompt",
        }
    }

    fn object(self, stream: bool) -> &'static str {
        match (self, stream) {
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        }
    }

    /// The beginning of an answer's id.
    pub fn id(self) -> &'static str {
        match self {
            Form::Chat => "chatcmpl-",
            Form::Completion => "cmpl-",
        }
    }
}

/// Reads a request. `ignore_temperature`: whether nothing is drawn, whatever it says.
pub(super) fn parse(form: Form, body: &[u8], ignore_temperature: bool) -> Result<Ask, Refusal> {
    let wrong = |what: String| Refusal::request(StatusCode::BAD_REQUEST, "invalid_json", what);
    // Of an error only its place is told: the rest may quote the request.
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| wrong(format!("the body is no JSON: line {}, column {}", error.line(), error.column())))?;
    let Value::Object(mut fields) = body else {
        return Err(wrong("the body is no JSON object".to_owned()));
    };
    fields.retain(|_, value| !value.is_null());
    let own: &[&str] = match form {
        Form::Chat => &["messages", "max_tokens", "max_completion_tokens"],
        Form::Completion => &["prompt", "max_tokens"],
    };
    check_fields("", &fields, &[IGNORED, READ, own], NEUTRAL)?;
    let sampling = if ignore_temperature { None } else { sampling(&fields)? };
    let choosing = Choosing { sampling, penalties: penalties(&fields)? };
    let model = match fields.get("model") {
        Some(Value::String(model)) => model.clone(),
        Some(_) => return Err(Refusal::field("model", "`model` is no string")),
        None => return Err(missing("model")),
    };
    let stream = boolean(&fields, "stream")?;
    let include_usage = match fields.get("stream_options") {
        None => false,
        Some(Value::Object(options)) if stream => {
            if options.keys().any(|name| !["include_usage", "include_obfuscation"].contains(&name.as_str())) {
                return Err(Refusal::unsupported("stream_options", "only `include_usage` is supported"));
            }
            boolean(options, "include_usage")?
        }
        Some(_) => return Err(Refusal::field("stream_options", "expected an object, with `stream` only")),
    };
    let given = match form {
        Form::Chat => Given::Chat(messages(fields.get("messages").ok_or_else(|| missing("messages"))?)?),
        Form::Completion => prompt(fields.get("prompt").ok_or_else(|| missing("prompt"))?)?,
    };
    let (count, stop) = (count(form, &fields)?, stops(fields.get("stop"))?);
    Ok(Ask { given, model, count, stop, choosing, stream, include_usage })
}

/// Refuses fields that are not known, and those that ask for what is not built. `place` stands before their names.
fn check_fields(
    place: &str,
    fields: &Map<String, Value>,
    known: &[&[&str]],
    neutral: &[(&str, IsNeutral)],
) -> Result<(), Refusal> {
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        if let Some((name, is_neutral)) = neutral.iter().find(|(neutral, _)| neutral == name) {
            if !is_neutral(value) {
                let what = format!("`{name}` with this value is not supported");
                return Err(Refusal::unsupported(&format!("{place}{name}"), what));
            }
        } else if !known.iter().any(|list| list.contains(&name.as_str())) {
            let refusal = Refusal::request(StatusCode::BAD_REQUEST, "unknown_parameter", "a field is not known");
            return Err(refusal.of(&format!("{place}{}", name.chars().take(64).collect::<String>())));
        }
    }
    Ok(())
}

fn missing(name: &str) -> Refusal {
    Refusal::request(StatusCode::BAD_REQUEST, "missing_required_parameter", format!("`{name}` is missing")).of(name)
}

/// How the next token is drawn; nothing for the most probable one, which temperature 0 asks for, and so does a request that
/// says nothing. `top_k` is no field of OpenAI's, and others have it.
fn sampling(fields: &Map<String, Value>) -> Result<Option<Sampling>, Refusal> {
    let (temperature, top_p) = (number(fields, "temperature")?, number(fields, "top_p")?.filter(|top_p| *top_p != 1.0));
    let top_k = match fields.get("top_k") {
        None => None,
        Some(value) => Some(value.as_u64().ok_or_else(|| Refusal::field("top_k", "expected a whole number"))?),
    };
    if temperature == Some(0.0) || (temperature.is_none() && top_p.is_none() && top_k.is_none()) {
        return Ok(None);
    }
    if fields.contains_key("seed") {
        let what = "the bits that tokens are drawn with come from keys of all parties: leave `seed` out, or set \
                    `temperature` to 0";
        return Err(Refusal::unsupported("seed", what));
    }
    let (temperature, top_p) = (temperature.unwrap_or(1.0) as f32, top_p.map(|top_p| top_p as f32));
    let sampling = Sampling { temperature, top_k, top_p };
    sampling.check().map(|()| Some(sampling)).map_err(|error| Refusal::of_run(&error))
}

/// What is taken off the logits of tokens that the answer has already.
fn penalties(fields: &Map<String, Value>) -> Result<Penalties, Refusal> {
    let penalty = |name| number(fields, name).map(|found| found.unwrap_or(0.0) as f32);
    let penalties = Penalties { presence: penalty("presence_penalty")?, frequency: penalty("frequency_penalty")? };
    penalties.check().map(|()| penalties).map_err(|error| Refusal::of_run(&error))
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<f64>, Refusal> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| Refusal::field(name, "expected a number")),
    }
}

fn boolean(fields: &Map<String, Value>, name: &str) -> Result<bool, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(Refusal::field(name, "expected true or false")),
    }
}

/// Most new tokens that a request asks for; more than there is room for is no error.
fn count(form: Form, fields: &Map<String, Value>) -> Result<u64, Refusal> {
    let given = ["max_completion_tokens", "max_tokens"].into_iter().find_map(|name| Some((name, fields.get(name)?)));
    let Some((name, value)) = given else {
        return Ok(if form == Form::Chat { CHAT_TOKENS } else { COMPLETION_TOKENS });
    };
    let count = value.as_u64().filter(|count| *count > 0);
    count.map(|count| count.min(MAX_STEPS)).ok_or_else(|| Refusal::field(name, "expected a whole number from 1 on"))
}

fn stops(value: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let (most, bytes) = MAX_STOPS;
    let single = |value: &Value| {
        let text = value.as_str().filter(|text| !text.is_empty() && text.len() <= bytes);
        text.map(str::to_owned)
    };
    let stops = match value {
        None => Some(Vec::new()),
        Some(Value::Array(stops)) if stops.len() <= most => stops.iter().map(single).collect(),
        Some(stop) => single(stop).map(|stop| vec![stop]),
    };
    let expected = format!("expected a string or at most {most}, each of 1 to {bytes} bytes");
    stops.ok_or_else(|| Refusal::field("stop", expected))
}

fn messages(value: &Value) -> Result<Vec<Message>, Refusal> {
    match value.as_array() {
        Some(turns) if !turns.is_empty() => turns.iter().enumerate().map(|(at, turn)| message(at, turn)).collect(),
        _ => Err(Refusal::field("messages", "expected a list of one message or more")),
    }
}

fn message(at: usize, value: &Value) -> Result<Message, Refusal> {
    let place = |name: &str| format!("messages[{at}].{name}");
    let Value::Object(value) = value else {
        return Err(Refusal::field("messages", "a message is no object"));
    };
    let role = match value.get("role").and_then(Value::as_str) {
        Some(role @ ("system" | "user" | "assistant")) => role,
        Some("developer") => "system",
        Some("tool" | "function") => return Err(Refusal::unsupported(&place("role"), "tools are not supported")),
        _ => return Err(Refusal::field(&place("role"), "expected system, developer, user or assistant")),
    };
    check_fields(&place(""), value, &[OF_MESSAGE], NEUTRAL_OF_MESSAGE)?;
    let content = match value.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| text_part(part, &place("content"))).collect::<Result<_, _>>()?
        }
        _ => return Err(Refusal::field(&place("content"), "expected a string or a list of parts of type text")),
    };
    Ok(Message { role: role.to_owned(), content })
}

fn text_part<'a>(part: &'a Value, place: &str) -> Result<&'a str, Refusal> {
    let text = part.get("text").and_then(Value::as_str);
    match (part.get("type").and_then(Value::as_str), text) {
        (Some("text"), Some(text)) => {
            let fields =
                part.as_object().map_or(Ok(()), |part| check_fields(&format!("{place}."), part, &[OF_PART], &[]));
            fields.map(|()| text)
        }
        (Some("text") | None, _) => Err(Refusal::field(place, "a part has no type or no text")),
        (Some(_), _) => Err(Refusal::unsupported(place, "only parts of type text are supported")),
    }
}

/// The one prompt of a completion: a text or tokens, alone or in a list.
fn prompt(value: &Value) -> Result<Given, Refusal> {
    let several = || Refusal::unsupported("prompt", "several prompts in one request are not supported");
    let tokens = |items: &[Value]| {
        let tokens = items.iter().map(Value::as_i64).collect::<Option<Vec<_>>>();
        tokens.map(Given::Tokens).ok_or_else(|| Refusal::field("prompt", "expected a string or token ids"))
    };
    match value {
        Value::String(text) => Ok(Given::Text(text.clone())),
        Value::Array(items) => match items.as_slice() {
            [Value::String(text)] => Ok(Given::Text(text.clone())),
            [Value::Array(items)] => tokens(items),
            [Value::String(_) | Value::Array(_), ..] => Err(several()),
            items => tokens(items),
        },
        _ => Err(Refusal::field("prompt", "expected a string or token ids")),
    }
}

/// What all parts of one answer share.
pub(super) struct Head {
    /// Which request it answers.
    pub form: Form,
    /// Its id.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// Of the plan.
    pub fingerprint: String,
    /// Tokens of the text that was given.
    pub prompt_tokens: u64,
}

impl Head {
    fn object(&self, stream: bool, choices: Value) -> Value {
        json!({
            "id": self.id, "object": self.form.object(stream), "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }

    /// The whole answer.
    pub fn whole(&self, text: &str, answer: &Answer) -> Value {
        let choice = match self.form {
            Form::Chat => json!({
                "index": 0, "message": { "role": "assistant", "content": text, "refusal": null },
                "logprobs": null, "finish_reason": finish_reason(answer),
            }),
            Form::Completion => {
                json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason(answer) })
            }
        };
        let mut whole = self.object(false, json!([choice]));
        whole["usage"] = self.usage(answer);
        whole
    }

    /// A piece of the answer: text, or its beginning without any, or its end.
    pub fn piece(&self, text: Option<&str>, end: Option<&Answer>) -> Value {
        let finish = end.map(finish_reason);
        let choice = match (self.form, text) {
            (Form::Chat, Some("")) => json!({ "role": "assistant", "content": "" }),
            (Form::Chat, Some(text)) => json!({ "content": text }),
            (Form::Chat, None) => json!({}),
            (Form::Completion, _) => {
                let choice =
                    json!([{ "index": 0, "text": text.unwrap_or(""), "logprobs": null, "finish_reason": finish }]);
                return self.object(true, choice);
            }
        };
        self.object(true, json!([{ "index": 0, "delta": choice, "logprobs": null, "finish_reason": finish }]))
    }

    /// The piece that says what was used.
    pub fn usage_piece(&self, answer: &Answer) -> Value {
        let mut piece = self.object(true, json!([]));
        piece["usage"] = self.usage(answer);
        piece
    }

    fn usage(&self, answer: &Answer) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens, "completion_tokens": answer.tokens,
            "total_tokens": self.prompt_tokens.saturating_add(answer.tokens),
            "prompt_tokens_details": { "cached_tokens": answer.cached },
        })
    }
}

fn finish_reason(answer: &Answer) -> &'static str {
    if answer.stopped { "stop" } else { "length" }
}
