//! What the client learns, and which outputs stay for it.

use crate::graph::{Graph, Output, OutputRole};
use crate::pipeline::Errors;
use crate::ranges::calibrate::vocabulary;
use ombra_ir::Diagnostic;
use ombra_ir::module::OutputKind;
use ombra_ir::plain::DType;

/// What the client learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reveal {
    /// The id of the next token.
    NextToken,
    /// The output of this name.
    Output(String),
}

/// Outputs to reveal, by index. The default is the next token for a causal language model, else every output
/// but hidden states and caches.
pub fn reveals(graph: &Graph, wanted: &[Reveal]) -> std::result::Result<Vec<(usize, OutputKind)>, Errors> {
    let names: Vec<String> = graph.outputs.iter().map(|o| o.name.clone()).collect();
    let logits = graph.outputs.iter().position(|o| o.role == OutputRole::Logits);
    let causal = logits.filter(|&i| graph.shape(graph.outputs[i].value).len() == 3);
    // Labels of tokens are called logits too, but there are few of them.
    let causal = causal.filter(|&i| match (graph.shape(graph.outputs[i].value).last(), vocabulary(graph)) {
        (Some(width), Ok(rows)) => width.as_constant().and_then(|w| u64::try_from(w).ok()).is_none_or(|w| w > rows / 2),
        _ => true,
    });
    if wanted.is_empty() {
        return Ok(match causal {
            Some(i) => vec![(i, OutputKind::NextToken)],
            None => {
                let results = (0..graph.outputs.len()).filter(|&i| is_result(&graph.outputs[i]));
                let results: Vec<_> = results.map(|i| (i, kind_of(graph, i))).collect();
                if results.is_empty() {
                    return Err(vec![
                        Diagnostic::input("E0551", "the model has no output that is revealed by default")
                            .note("hidden states and caches are revealed only when they are asked for")
                            .note(format!("name one with --reveal; the model's outputs are {}", names.join(", "))),
                    ]);
                }
                results
            }
        });
    }
    let mut errors = Vec::new();
    let mut out: Vec<(usize, OutputKind)> = Vec::new();
    for reveal in wanted {
        match reveal {
            Reveal::NextToken => match causal {
                Some(i) => out.push((i, OutputKind::NextToken)),
                None => errors.push(
                    Diagnostic::input("E0540", "the model has no next token to reveal")
                        .note("expected an output `logits` of shape [batch, seq, vocabulary]")
                        .note(format!("the model's outputs are {}", names.join(", "))),
                ),
            },
            Reveal::Output(name) => match names.iter().position(|n| n == name) {
                Some(i) => out.push((i, kind_of(graph, i))),
                None => errors.push(
                    Diagnostic::input("E0541", format!("the model has no output `{name}` to reveal"))
                        .note(format!("the model's outputs are {}", names.join(", "))),
                ),
            },
        }
    }
    // The name of an output says what it is where a plan runs.
    for (place, (i, kind)) in out.iter().enumerate() {
        let Some((_, other)) = out[..place].iter().find(|before| before.0 == *i) else { continue };
        let name = &names[*i];
        let forms = if other == kind { "twice" } else { "as it is and as the next token, which follows from it" };
        errors.push(
            Diagnostic::input("E0541", format!("the output `{name}` is to be revealed {forms}"))
                .note("help      give --reveal once for each output"),
        );
    }
    if errors.is_empty() { Ok(out) } else { Err(errors) }
}

/// How the output of index `i` is revealed as it is.
fn kind_of(graph: &Graph, i: usize) -> OutputKind {
    let value = graph.outputs.get(i).and_then(|o| graph.node(o.value).ok());
    if value.is_some_and(|n| n.dtype == DType::I64) { OutputKind::Index } else { OutputKind::Tensor }
}

/// Whether an output is a result of the model: neither a cache nor a hidden state.
fn is_result(output: &Output) -> bool {
    output.role == OutputRole::Logits
        || output.role == OutputRole::Other && !output.name.to_ascii_lowercase().contains("hidden_state")
}

/// Drops outputs that are neither revealed nor state.
///
/// Returns what is revealed by the indices that the outputs have afterwards.
pub fn keep_outputs(graph: &mut Graph, reveal: &[(usize, OutputKind)]) -> Vec<(usize, OutputKind)> {
    let state = |o: &Output| {
        matches!(o.role, OutputRole::PresentKey { past: Some(_), .. } | OutputRole::PresentValue { past: Some(_), .. })
    };
    let kept: Vec<usize> = (0..graph.outputs.len())
        .filter(|i| state(&graph.outputs[*i]) || reveal.iter().any(|(revealed, _)| revealed == i))
        .collect();
    graph.outputs = kept.iter().map(|&i| graph.outputs[i].clone()).collect();
    graph.remove_dead();
    reveal.iter().filter_map(|&(i, kind)| kept.iter().position(|&k| k == i).map(|at| (at, kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{InputRole, Op, Origin, TensorOp};
    use ombra_ir::Dim;
    use ombra_ir::plain::Type;

    /// `logits [2, width]` of tokens of a vocabulary of 100.
    fn with_logits(width: i64) -> Graph {
        let mut g = Graph::new();
        let sizes = |dims: &[i64]| dims.iter().map(|d| Dim::constant(*d)).collect::<Vec<_>>();
        let ids = Type::new(DType::I64, sizes(&[1, 2]));
        let ids = g.add_input("input_ids", InputRole::TokenIds, ids, Origin::default());
        let flat =
            g.add(Op::Tensor(TensorOp::Reshape { shape: sizes(&[2]) }), &[ids], Origin::default()).expect("it fits");
        let table = g.add_weight("table", false, sizes(&[100, width]), Origin::default());
        let rows = g.add(Op::Tensor(TensorOp::Gather { axis: 0 }), &[table, flat], Origin::default()).expect("it fits");
        let value = g
            .add(Op::Tensor(TensorOp::Reshape { shape: sizes(&[1, 2, width]) }), &[rows], Origin::default())
            .expect("it fits");
        g.outputs.push(Output { name: "logits".into(), role: OutputRole::Logits, value });
        g
    }

    #[test]
    fn an_output_is_revealed_once() {
        let g = with_logits(100);
        let logits = || Reveal::Output("logits".into());
        assert_eq!(reveals(&g, &[logits()]), Ok(vec![(0, OutputKind::Tensor)]));
        for twice in [[logits(), logits()], [logits(), Reveal::NextToken], [Reveal::NextToken, Reveal::NextToken]] {
            assert_eq!(reveals(&g, &twice).unwrap_err()[0].code, "E0541", "{twice:?}");
        }
    }

    #[test]
    fn scores_of_few_labels_are_no_next_token() {
        let default_of = |width| reveals(&with_logits(width), &[]).expect("there is a default")[0].1;
        assert_eq!(default_of(100), OutputKind::NextToken);
        assert_eq!(default_of(128), OutputKind::NextToken, "padded");
        assert_eq!(default_of(9), OutputKind::Tensor);
    }

    /// An output that is dropped must not stay in use: what it needs whole could not be narrowed.
    #[test]
    fn dropped_outputs_are_gone_and_revealed_ones_are_found_again() {
        let mut g = Graph::new();
        let ty = Type::new(DType::F32, vec![Dim::constant(4)]);
        let x = g.add_input("x", InputRole::Other, ty, Origin::default());
        for name in ["hidden", "result"] {
            let value = g.add(Op::Relu, &[x], Origin::default()).expect("it fits");
            g.outputs.push(Output { name: name.into(), role: OutputRole::Other, value });
        }
        let reveal = keep_outputs(&mut g, &[(1, OutputKind::Tensor)]);
        assert_eq!(reveal, [(0, OutputKind::Tensor)]);
        assert_eq!(g.outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["result"]);
        assert_eq!(g.len(), 2, "the input and what is revealed");
    }
}
