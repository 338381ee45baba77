//! The typed graph as text, one node a line, and read back: for `--emit`, and for graphs that tests are written as.
//!
//! ```text
//! graph {
//!   size seq 1..64
//!   limit seq <= 32
//!   fixed "use_cache" = 1
//!   %0 = input {name = "x", role = other} : f32[seq, 4] client
//!   %1 = weight {name = "w", transposed = true} : f32[4, 3] server
//!   %2 = matmul %0, %1 : f32[seq, 3] secret @ "/layers.2/fc" layer 2
//!   output %2 "y" : other
//! }
//! ```
//!
//! Values are numbered in topological order. Operators on tensors have the attributes that they have in `.mpcir` text. What
//! is printed is what is read, but for the elements of large constants, which are left out; of names, the ONNX node's is
//! kept, and the value's where there is no node.

use super::{Graph, InputRole, Node, Numerator, Op, Origin, Output, OutputRole, Owner, TensorOp, ValueId};
use ombra_ir::plain::Type;
use ombra_ir::text::{self, Attr, Attrs, Cursor};
use ombra_ir::{Diagnostic, Result};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Largest constant whose elements are printed.
const SHOWN_ELEMENTS: usize = 8;

/// The graph as text: sizes, nodes in topological order, outputs. The same graph gives the same text.
pub fn print(graph: &Graph) -> String {
    print_with(graph, &|_| None)
}

/// The same with a comment after every value that has one.
pub fn print_with(graph: &Graph, note: &dyn Fn(ValueId) -> Option<String>) -> String {
    let dims = &graph.dims;
    let mut out = String::from("graph {\n");
    text::print_sizes(&mut out, dims);
    for (dim, most) in &graph.limits {
        let _ = writeln!(out, "  limit {} <= {most}", dims.show(dim));
    }
    for (name, value) in &graph.fixed {
        let _ = writeln!(out, "  fixed {} = {value}", quoted(name));
    }
    let mut numbers: BTreeMap<ValueId, usize> = BTreeMap::new();
    for id in graph.topological() {
        let Ok(node) = graph.node(id) else { continue };
        let _ = write!(out, "  %{} = {}", numbers.len(), name(&node.op));
        for (i, operand) in graph.operands(id).iter().enumerate() {
            let number = numbers.get(operand).copied().unwrap_or_default();
            let _ = write!(out, "{}%{number}", if i == 0 { " " } else { ", " });
        }
        numbers.insert(id, numbers.len());
        text::print_attrs(&mut out, dims, &attributes(&node.op));
        let _ = write!(out, " : {}{} {}", node.dtype.name(), dims.show_shape(&node.shape), node.owner.name());
        let Origin { value, node, layer } = &node.origin;
        let place = if node.is_empty() { value } else { node };
        if !place.is_empty() || layer.is_some() {
            let _ = write!(out, " @ {}", quoted(place));
        }
        if let Some(layer) = layer {
            let _ = write!(out, " layer {layer}");
        }
        if let Some(note) = note(id) {
            let _ = write!(out, " ; {note}");
        }
        out.push('\n');
    }
    for Output { name, role, value } in &graph.outputs {
        let number = numbers.get(value).copied().unwrap_or_default();
        let _ = write!(out, "  output %{number} {} : {}", quoted(name), role.name());
        if let OutputRole::PresentKey { layer, past } | OutputRole::PresentValue { layer, past } = role {
            let _ = write!(out, " {layer}");
            if let Some(past) = past {
                let _ = write!(out, " of {}", quoted(past));
            }
        }
        out.push('\n');
    }
    out.push_str("}\n");
    out
}

fn quoted(name: &str) -> String {
    let mut out = String::new();
    text::quote(&mut out, name);
    out
}

fn name(op: &Op) -> &'static str {
    op.tensor().map_or(op.name(), TensorOp::name)
}

fn attributes(op: &Op) -> Vec<(&'static str, Attr<'_>)> {
    match op {
        Op::Input { name, role } => {
            let mut attributes = vec![("name", Attr::Text(name)), ("role", Attr::Word(role.name()))];
            if let InputRole::PastKey { layer } | InputRole::PastValue { layer } = role {
                attributes.push(("layer", Attr::Int((*layer).into())));
            }
            attributes
        }
        Op::Weight { name, transposed } => {
            vec![("name", Attr::Text(name)), ("transposed", text::flag(*transposed))]
        }
        Op::Pow(exponent) => vec![("exponent", Attr::Float(*exponent))],
        Op::Clamp { low, high } => vec![("low", Attr::Float(*low)), ("high", Attr::Float(*high))],
        Op::Gelu { tanh } => vec![("tanh", text::flag(*tanh))],
        Op::Softmax { axis } | Op::MaskedSoftmax { axis } => vec![("axis", Attr::Index(*axis))],
        Op::RatioSoftmax { axis, numerator, eps } => {
            let mut attributes = vec![("axis", Attr::Index(*axis)), ("eps", Attr::Float(*eps))];
            match numerator {
                Numerator::Relu => attributes.push(("numerator", Attr::Word("relu"))),
                Numerator::Square { shift } => {
                    attributes.extend([("numerator", Attr::Word("square")), ("shift", Attr::Float(*shift))]);
                }
            }
            attributes
        }
        Op::Quadratic { square, linear, constant } => {
            let [square, linear, constant] = [square, linear, constant].map(|x| Attr::Float(*x));
            vec![("square", square), ("linear", linear), ("constant", constant)]
        }
        Op::AffineNorm { centred } => vec![("centred", text::flag(*centred))],
        Op::RmsNorm { eps } | Op::LayerNorm { eps } => vec![("eps", Attr::Float(*eps))],
        Op::Tensor(TensorOp::Constant(t)) if t.len() > SHOWN_ELEMENTS => vec![("value", Attr::Word("…"))],
        Op::Tensor(op) => text::tensor_attrs(op),
        Op::Relu | Op::Silu | Op::Softplus => Vec::new(),
    }
}

/// The operator of a name, with its attributes.
fn make(name: &str, a: &mut Attrs) -> Result<Op> {
    Ok(match name {
        "input" => Op::Input { name: a.text("name")?, role: input_role(a)? },
        "weight" => Op::Weight { name: a.text("name")?, transposed: a.flag("transposed")? },
        "pow" if a.has("exponent") => Op::Pow(a.float("exponent")?),
        "relu" => Op::Relu,
        "clamp" => Op::Clamp { low: a.float("low")?, high: a.float("high")? },
        "gelu" => Op::Gelu { tanh: a.flag("tanh")? },
        "silu" => Op::Silu,
        "softplus" => Op::Softplus,
        "softmax" => Op::Softmax { axis: a.int("axis")? },
        "masked_softmax" => Op::MaskedSoftmax { axis: a.int("axis")? },
        "ratio_softmax" => {
            let square = a.word("numerator", &[false, true], |square| if square { "square" } else { "relu" })?;
            let numerator = if square { Numerator::Square { shift: a.float("shift")? } } else { Numerator::Relu };
            Op::RatioSoftmax { axis: a.int("axis")?, numerator, eps: a.float("eps")? }
        }
        "quadratic" => {
            Op::Quadratic { square: a.float("square")?, linear: a.float("linear")?, constant: a.float("constant")? }
        }
        "affine_norm" => Op::AffineNorm { centred: a.flag("centred")? },
        "rms_norm" => Op::RmsNorm { eps: a.float("eps")? },
        "layer_norm" => Op::LayerNorm { eps: a.float("eps")? },
        _ => Op::Tensor(text::tensor_op(name, a)?),
    })
}

fn input_role(a: &mut Attrs) -> Result<InputRole> {
    Ok(match a.word("role", &InputRole::ALL, InputRole::name)? {
        InputRole::PastKey { .. } => InputRole::PastKey { layer: a.int("layer")? },
        InputRole::PastValue { .. } => InputRole::PastValue { layer: a.int("layer")? },
        other => other,
    })
}

/// Reads a graph, and the line (from 1) of every value, by its number.
///
/// # Errors
/// `E0370` and `E0371` with line and column; those of adding a node; a declared type that is not the operator's.
pub fn parse(text: &str) -> Result<(Graph, Vec<(ValueId, usize)>)> {
    let c = &mut Cursor::new(text);
    let mut graph = Graph::new();
    c.expect_word("graph")?;
    c.expect('{')?;
    while c.eat_word("size") {
        text::parse_size(c, &mut graph.dims)?;
    }
    while c.eat_word("limit") {
        let pos = c.pos();
        let dim = graph.dims.parse(&c.until(&['<'])).map_err(|d| c.error_at(pos, d.message))?;
        c.expect('<')?;
        c.expect('=')?;
        graph.limit(dim, c.number()?);
    }
    while c.eat_word("fixed") {
        let name = c.quoted()?;
        c.expect('=')?;
        graph.fixed.insert(name, c.number()?);
    }
    let mut values: Vec<(ValueId, usize)> = Vec::new();
    while c.peek() == Some('%') {
        let pos = c.pos();
        let value = node(c, &mut graph, &values)?;
        values.push((value, c.line_of(pos)));
    }
    while c.eat_word("output") {
        let value = value(c, &values)?;
        let name = c.quoted()?;
        c.expect(':')?;
        let role = output_role(c)?;
        graph.outputs.push(Output { name, role, value });
    }
    c.expect('}')?;
    let pos = c.pos();
    if c.peek().is_some() {
        return Err(c.error_at(pos, "text after the end of the graph"));
    }
    Ok((graph, values))
}

/// `%i`, the number of a value that is there.
fn value(c: &mut Cursor, values: &[(ValueId, usize)]) -> Result<ValueId> {
    c.expect('%')?;
    let pos = c.pos();
    let number: usize = c.number()?;
    let found = values.get(number).map(|(id, _)| *id);
    found.ok_or_else(|| c.error_at(pos, format!("there is no value %{number} yet")))
}

/// `%i = name %a, %b {…} : type owner @ "place" layer n`
fn node(c: &mut Cursor, graph: &mut Graph, values: &[(ValueId, usize)]) -> Result<ValueId> {
    c.expect('%')?;
    let pos = c.pos();
    if c.number::<usize>()? != values.len() {
        return Err(c.error_at(pos, format!("expected the definition of %{}", values.len())));
    }
    c.expect('=')?;
    let pos = c.pos();
    let name = c.word()?;
    let mut operands = Vec::new();
    while c.peek() == Some('%') || (!operands.is_empty() && c.eat(',')) {
        operands.push(value(c, values)?);
    }
    let dims = graph.dims.clone();
    let mut attrs = Attrs::read(c, &name, &dims)?;
    let made = make(&name, &mut attrs).and_then(|op| attrs.end().map(|()| op));
    let op = made.map_err(|d| d.at(c.place(pos)))?;
    let (dtype, shape) = text::parse_type(c, &dims)?;
    let ty = Type::new(dtype, shape);
    let owner_at = c.pos();
    let word = c.word()?;
    let owner = [Owner::Public, Owner::Client, Owner::Server, Owner::Secret].into_iter().find(|o| o.name() == word);
    let owner = owner.ok_or_else(|| c.error_at(owner_at, format!("expected an owner, found `{word}`")))?;
    let mut origin = Origin::default();
    if c.eat('@') {
        origin.node = c.quoted()?;
        if c.eat_word("layer") {
            origin.layer = Some(c.number()?);
        }
    }
    let id = match op {
        Op::Input { name, role } => graph.add_input(&name, role, ty.clone(), named(origin)),
        Op::Weight { name, transposed } => graph.add_weight(&name, transposed, ty.shape.clone(), named(origin)),
        op => graph.add(op, &operands, origin).map_err(|d| d.at(c.place(pos)))?,
    };
    let node = graph.node_mut(id)?;
    node.owner = owner;
    if node.ty() != ty {
        let found = Node::ty(node);
        let show = |ty: &Type| format!("{}{}", ty.dtype.name(), dims.show_shape(&ty.shape));
        return Err(
            Diagnostic::input("E0370", format!("{name} gives {}, not {}", show(&found), show(&ty))).at(c.place(pos))
        );
    }
    Ok(id)
}

/// What no node makes has the name of its value.
fn named(origin: Origin) -> Origin {
    Origin { value: origin.node, node: String::new(), ..origin }
}

fn output_role(c: &mut Cursor) -> Result<OutputRole> {
    let pos = c.pos();
    let word = c.word()?;
    let mut present = || -> Result<(u32, Option<String>)> {
        let layer = c.number()?;
        Ok((layer, if c.eat_word("of") { Some(c.quoted()?) } else { None }))
    };
    match word.as_str() {
        "logits" => Ok(OutputRole::Logits),
        "other" => Ok(OutputRole::Other),
        "present_key" => present().map(|(layer, past)| OutputRole::PresentKey { layer, past }),
        "present_value" => present().map(|(layer, past)| OutputRole::PresentValue { layer, past }),
        _ => Err(c.error_at(pos, format!("expected the role of an output, found `{word}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"graph {
  size batch 1..8
  size seq 1..64
  limit seq <= 32
  fixed "use_cache" = 1
  %0 = input {name = "x", role = other} : f32[batch, seq, 4] client @ "x"
  %1 = input {name = "past", role = past_key, layer = 2} : f32[batch, seq, 4] secret @ "past"
  %2 = weight {name = "w", transposed = true} : f32[4, 4] server
  %3 = matmul %0, %2 : f32[batch, seq, 4] secret @ "/model/layers.2/fc" layer 2
  %4 = constant {value = f32[2](0.5, -1e-6)} : f32[2] public
  %5 = slice %3 {axis = 2, start = 0, len = 2, step = 1} : f32[batch, seq, 2] secret
  %6 = mul %5, %4 : f32[batch, seq, 2] secret
  %7 = clamp %6 {low = -1.0, high = inf} : f32[batch, seq, 2] secret
  %8 = ratio_softmax %7 {axis = 2, eps = 0.0, numerator = square, shift = 5.0} : f32[batch, seq, 2] secret
  %9 = pow %8 {exponent = 2.0} : f32[batch, seq, 2] secret
  %10 = pow %9, %4 : f32[batch, seq, 2] secret
  output %3 "present" : present_key 2 of "past"
  output %10 "y" : other
}
"#;

    #[test]
    fn text_survives_reading_and_printing() {
        let (graph, lines) = parse(TEXT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(print(&graph), TEXT);
        assert_eq!(lines.first().map(|l| l.1), Some(6));
    }

    #[test]
    fn what_is_wrong_has_its_place() {
        for (from, to, place) in [
            ("%3 = matmul %0", "%3 = matmul %9", "line 9 column 16"),
            ("f32[batch, seq, 2] secret\n  %6", "f32[batch, seq, 3] secret\n  %6", "line 11 column 8"),
            ("%7 = clamp", "%7 = clasp", "line 13 column 8"),
            ("server", "nobody", "line 8 column 59"),
        ] {
            let error = parse(&TEXT.replacen(from, to, 1)).expect_err(from);
            assert!(format!("{error}").contains(place), "{error}");
        }
    }
}
