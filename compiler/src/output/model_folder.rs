//! A folder as exporters write it: the model, its tokenizer, and what it says about itself.
//!
//! Names are those of Optimum and of the libraries that read its folders. Nothing else is looked for.

use std::path::{Path, PathBuf};

use ombra_ir::{Diagnostic, Result, files};
use serde_json::Value;

use crate::output::Beside;
use ombra_ir::folder::{CONFIGURATION, TOKENIZER};

/// Names of the model, the best first: with a cache before without one.
const MODELS: [&str; 5] = [
    "model.onnx",
    "onnx/model.onnx",
    "decoder_model_merged.onnx",
    "decoder_model.onnx",
    "onnx/decoder_model_merged.onnx",
];
/// Names of the half of a model that reads what its decoder answers.
const ENCODERS: [&str; 2] = ["encoder_model.onnx", "onnx/encoder_model.onnx"];
/// What the model says about itself.
const CONFIG: &str = "config.json";
/// Fields of it that say how many positions the model has, by architecture.
const POSITIONS: [&str; 6] =
    ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"];
/// Largest configuration that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// What a path leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The ONNX file.
    pub model: PathBuf,
    /// Files for the public folder: tokenizer, generation and chat configuration. None when the path is a file.
    pub beside: Vec<Beside>,
    /// Tokens that the model has positions for, by its configuration.
    pub positions: Option<u64>,
}

/// What `path` leads to: an ONNX file, or a folder with one.
///
/// # Errors
/// `E0160` when a folder has no model, or an encoder beside it; `E0161` when the configuration cannot be read.
pub fn find(path: &Path) -> Result<Found> {
    if !path.is_dir() {
        let folder = path.parent().unwrap_or(Path::new(""));
        return Ok(Found { model: path.to_owned(), beside: Vec::new(), positions: positions(folder)? });
    }
    let there = |name: &&str| path.join(name).is_file();
    let refused = |message: String| Diagnostic::input("E0160", message).at(path.display().to_string());
    if let Some(encoder) = ENCODERS.into_iter().find(there) {
        return Err(refused(format!("the folder holds an encoder, {encoder}, beside a decoder"))
            .note("expected one model that goes from tokens to its outputs")
            .note("name one of the ONNX files to compile it alone"));
    }
    let model = MODELS.into_iter().find(there).ok_or_else(|| {
        refused("the folder holds no model".into())
            .note(format!("expected one of {}", MODELS.join(", ")))
            .note("name the ONNX file if it is called otherwise")
    })?;
    let names = std::iter::once(TOKENIZER).chain(CONFIGURATION).filter(there);
    let beside = names.map(|name| (name, path.join(name))).collect();
    Ok(Found { model: path.join(model), beside, positions: positions(path)? })
}

/// Tokens that the model in `folder` has positions for, if it says so.
fn positions(folder: &Path) -> Result<Option<u64>> {
    let path = folder.join(CONFIG);
    let wrong = |what: String| Diagnostic::input("E0161", what).at(path.display().to_string());
    if std::fs::metadata(&path).is_err() {
        return Ok(None);
    }
    let text =
        files::read_bounded(&path, MAX_BYTES).map_err(|e| wrong(format!("the configuration cannot be read: {e}")))?;
    let json: Value = serde_json::from_slice(&text)
        .map_err(|e| wrong(format!("the configuration is no JSON: {e}")).note("move it away if it is another file"))?;
    // Models that also see have the language model's numbers one step further in.
    let places = [Some(&json), json.get("text_config")];
    let found =
        places.into_iter().flatten().find_map(|json| POSITIONS.iter().find_map(|name| json.get(name)?.as_u64()));
    Ok(found.filter(|n| *n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_model_and_what_goes_with_it() {
        let folder = std::env::temp_dir().join(format!("ombra-model-folder-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let code = || find(&folder).err().map(|e| e.code);
        assert_eq!(code(), Some("E0160"));
        write("decoder_model.onnx", "");
        assert_eq!(find(&folder).unwrap(), Found { model: folder.join("decoder_model.onnx"), ..Found::default() });
        write("model.onnx", "");
        write("tokenizer.json", "{}");
        write("generation_config.json", "{}");
        write("config.json", r#"{"text_config": {"n_ctx": 128}}"#);
        let found = find(&folder).unwrap();
        assert_eq!((found.model, found.positions), (folder.join("model.onnx"), Some(128)));
        assert_eq!(
            found.beside.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            ["tokenizer.json", "generation_config.json"]
        );
        let alone = find(&folder.join("decoder_model.onnx")).unwrap();
        assert_eq!((alone.beside.len(), alone.positions), (0, Some(128)));
        write("config.json", "{");
        assert_eq!(code(), Some("E0161"));
        write("config.json", r#"{"n_positions": -3, "n_ctx": "many"}"#);
        assert_eq!(find(&folder).unwrap().positions, None);
        write("encoder_model.onnx", "");
        assert_eq!(code(), Some("E0160"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
