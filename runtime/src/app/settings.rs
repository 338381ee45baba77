//! What a model's folder says about generating and chatting: its end tokens, and its chat template.
//!
//! The files are copies of those that exporters write, and count only with their digests in the plan. Of numbers for
//! sampling nothing is taken: greedy is the default, and what else is wanted the user says.

use std::collections::{BTreeMap, BTreeSet};

use ombra_ir::folder::{CHAT_TEMPLATE, GENERATION, SPECIAL_TOKENS, TOKENIZER_CONFIGURATION};
use ombra_ir::{Diagnostic, Result};
use serde_json::Value;

use super::folder::PlanFolder;
use super::text::Text;

/// Largest of these files, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Names of special tokens that templates use.
const SPECIAL: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];
/// Where end tokens are named by id, the first file that has them counts.
const WITH_IDS: [&str; 2] = [GENERATION, "config.json"];
/// Where special tokens are named by their text.
const WITH_TEXTS: [&str; 2] = [TOKENIZER_CONFIGURATION, SPECIAL_TOKENS];

/// What the files say.
#[derive(Debug, Default, PartialEq)]
pub struct Settings {
    /// Ids of tokens that end a text.
    pub end_tokens: BTreeSet<i64>,
    /// Texts of special tokens by their roles.
    pub special: BTreeMap<String, String>,
    /// The chat template, in Jinja.
    pub template: Option<String>,
}

impl Settings {
    /// Reads the files of `folder`.
    ///
    /// # Errors
    /// `E1001`, `E1002`, and `E1022` for a file of another form.
    pub fn read(folder: &PlanFolder) -> Result<Settings> {
        let mut settings = Settings::default();
        for name in WITH_IDS {
            if let Some(json) = json(folder, name)? {
                settings.end_tokens = end_tokens(name, json.get("eos_token_id"))?;
            }
            if !settings.end_tokens.is_empty() {
                break;
            }
        }
        for name in WITH_TEXTS {
            let Some(json) = json(folder, name)? else { continue };
            for role in SPECIAL {
                // An added token stands as text, or as an object with it.
                let value = json.get(role);
                let text = value.and_then(|value| value.as_str().or(value.get("content")?.as_str()));
                if let Some(text) = text {
                    settings.special.entry(role.to_owned()).or_insert(text.to_owned());
                }
            }
            if settings.template.is_none() {
                settings.template = template(json.get("chat_template"));
            }
        }
        if let Some(bytes) = read(folder, CHAT_TEMPLATE)? {
            let text = String::from_utf8(bytes).map_err(|_| wrong(CHAT_TEMPLATE, "it is no UTF-8 text"))?;
            settings.template = Some(text);
        } else if let Some(json) = json(folder, "chat_template.json")? {
            settings.template = template(json.get("chat_template")).or(settings.template);
        }
        Ok(settings)
    }

    /// The ids that end a text: those of the files, or that of the end token in `text`'s vocabulary.
    ///
    /// # Errors
    /// `E1022` when the tokenizer does not know that token; those of [`Text::token_id`].
    pub fn end_tokens(&self, text: Option<&Text>) -> Result<BTreeSet<i64>> {
        let (true, Some(text), Some(token)) = (self.end_tokens.is_empty(), text, self.special.get("eos_token")) else {
            return Ok(self.end_tokens.clone());
        };
        match text.token_id(token)? {
            Some(id) => Ok(BTreeSet::from([id])),
            None => Err(wrong(TOKENIZER_CONFIGURATION, "its eos_token is not in tokenizer.json")
                .note("help      correct the model's folder and compile it again")),
        }
    }
}

/// The default one of the templates, where there are several.
fn template(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"));
            default?.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

fn end_tokens(name: &str, value: Option<&Value>) -> Result<BTreeSet<i64>> {
    let single = |value: &Value| value.as_i64().filter(|id| *id >= 0);
    let ids = match value {
        None | Some(Value::Null) => Some(BTreeSet::new()),
        Some(Value::Array(ids)) => ids.iter().map(single).collect(),
        Some(id) => single(id).map(|id| BTreeSet::from([id])),
    };
    ids.ok_or_else(|| wrong(name, "eos_token_id is no token id, and no list of them"))
}

fn read(folder: &PlanFolder, name: &str) -> Result<Option<Vec<u8>>> {
    folder.file(name)?.map(|file| file.read(MAX_BYTES)).transpose()
}

fn json(folder: &PlanFolder, name: &str) -> Result<Option<Value>> {
    let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| wrong(name, &error.to_string()));
    read(folder, name)?.map(parse).transpose()
}

fn wrong(name: &str, what: &str) -> Diagnostic {
    Diagnostic::input("E1022", format!("what the model says about itself cannot be used: {what}")).at(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn end_tokens_are_one_id_or_several() {
        let of = |value: Value| end_tokens("file", Some(&value)).map(|ids| ids.into_iter().collect::<Vec<_>>());
        assert_eq!(of(json!(2)), Ok(vec![2]));
        assert_eq!(of(json!([7, 2])), Ok(vec![2, 7]));
        assert_eq!(of(Value::Null), Ok(vec![]));
        for wrong in [json!(-1), json!("2"), json!([2, null]), json!({ "id": 2 })] {
            assert_eq!(of(wrong).map_err(|error| error.code), Err("E1022"));
        }
    }

    #[test]
    fn a_template_is_text_or_the_default_one_of_several() {
        assert_eq!(template(Some(&json!("a"))).as_deref(), Some("a"));
        let several = json!([{ "name": "tool_use", "template": "t" }, { "name": "default", "template": "d" }]);
        assert_eq!(template(Some(&several)).as_deref(), Some("d"));
        assert_eq!(template(Some(&json!([{ "name": "default" }]))), None);
        assert_eq!(template(Some(&json!(3))), None);
    }
}
