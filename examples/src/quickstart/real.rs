//! A trained model of 135 million parameters answers a question: fetched, compiled, run between three parties.

use std::time::Instant;

use ombra_compiler::onnx::Model;
use ombra_compiler::output;
use ombra_compiler::pipeline::{Options, compile};
use ombra_ir::folder;
use ombra_runtime::app::PlanFolder;
use ombra_runtime::app::text::Text;

use super::show::{Errors, Run, check, one, prediction, run, where_it_runs};
use super::table::{Column, table};
use super::{plaintext, root, say};
use crate::real;

/// The question where the user gives none.
pub const QUESTION: &str = "What is the capital of France?";
/// Most tokens of the answer.
const COUNT: u64 = 48;

/// Lets the model answer `question`, and shows the answer as it comes, then what it cost. Only the client learns either.
///
/// # Errors
/// The first failure, or a token or a cost that is not the expected one.
pub fn show(question: &str) -> Result<(), Errors> {
    let root = root();
    say("SmolLM2-135M-Instruct answers a question that only the client knows, with weights that only the server");
    say("knows: nothing of the model is public but its shape. A helper holds shares of both and learns neither.");
    let model_folder = real::smollm2(&root.join("target/real")).map_err(one)?;
    let path = model_folder.join(real::convert::MODEL);

    say(format_args!("\ncompiling {}", path.display()));
    let start = Instant::now();
    let model = Model::read(&path).map_err(one)?;
    let mut compiled = compile(&model, None, &Options::default())?;
    let folder = root.join("out/quickstart/real");
    let tokenizer = model_folder.join(real::convert::TOKENIZER);
    output::write(&mut compiled, &model, &[(folder::TOKENIZER, tokenizer.clone())], &folder).map_err(one)?;
    say(format_args!("compiled in {:.1} s", start.elapsed().as_secs_f64()));
    say(where_it_runs(&compiled));
    let text = real::chat(question);
    let opened = PlanFolder::open(&folder).map_err(one)?;
    let prompt = Text::open(&opened, None).and_then(|tokenizer| tokenizer.tokens(&text)).map_err(one)?;
    say(prediction(&compiled, prompt.len() as u64).map_err(one)?);
    // What the compiler holds is not needed beside three parties.
    drop((compiled, model));

    say(format_args!("\nquestion: {question}\nanswer, as it arrives:"));
    let report = run(&Run { folder: &folder, prompt: &text, count: COUNT, stop: &[real::END_OF_TURN] }).map_err(one)?;
    let count = report.tokens.as_ref().map_or(0, Vec::len);
    let expected = plaintext::generate(&path, &opened.plan, &prompt, count).map_err(one)?;
    let column = Column { name: "SmolLM2-135M-Instruct", expected, report };
    say(format_args!("\n{}", table(std::slice::from_ref(&column))));
    say("Bytes are those of all parties; rounds are the longest chain of messages that wait for one another.");
    say(format_args!("The plan is in {}: `ombra inspect` shows where the costs are.", folder.display()));
    check(&[column])
}
