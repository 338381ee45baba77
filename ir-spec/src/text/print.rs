//! The canonical printer.

use super::attr::{print_attrs, quote};
use super::public::tensor_attrs;
use crate::dim::Dims;
use crate::module::{Module, Node, Origin, OutputKind};
use crate::plain::{Program, ValueRef};

/// A module as text. What the verifier accepts is read back as the same module by [`super::parse`].
pub fn print(module: &Module) -> String {
    let dims = &module.dims;
    let mut out = String::from("module ");
    quote(&mut out, &module.name);
    out += &format!(" stage({}) setting({}) {{\n", module.stage.name(), module.setting.name());
    print_sizes(&mut out, dims);
    program(&mut out, dims, &module.public);
    for count in &module.counts {
        let name = dims.info(count.sym).map_or("?", |i| i.name.as_str());
        out += &format!("  count {name} = true of {} in {}\n", count.mask, dims.show_shape(&count.shape));
    }
    for input in &module.inputs {
        out += "  input ";
        quote(&mut out, &input.name);
        out += &format!(" : {}{}", input.dtype.name(), dims.show_shape(&input.shape));
        out.push('\n');
    }
    for state in &module.states {
        out += "  state ";
        quote(&mut out, &state.input);
        out += " -> ";
        quote(&mut out, &state.output);
        out += &format!(" : {}\n", dims.show_shape(&state.shape));
    }
    for output in &module.outputs {
        out += "  output ";
        quote(&mut out, &output.name);
        out += &format!(" : {} to {}\n", kind_name(output.kind), output.to.name());
    }
    for (id, node) in module.ops.iter().enumerate() {
        op(&mut out, dims, id, node);
    }
    out += "}\n";
    out
}

/// Appends every symbol with its range, one a line.
pub fn print_sizes(out: &mut String, dims: &Dims) {
    for info in &dims.syms {
        let max = info.max.map_or("*".into(), |m| m.to_string());
        *out += &format!("  size {} {}..{max}\n", info.name, info.min);
    }
}

/// The word that stands for a kind of output.
pub(super) fn kind_name(kind: OutputKind) -> &'static str {
    match kind {
        OutputKind::NextToken => "next_token",
        OutputKind::Tensor => "tensor",
        OutputKind::Index => "index",
        OutputKind::Guard => "guard",
    }
}

fn op(out: &mut String, dims: &Dims, id: usize, node: &Node) {
    *out += &format!("  %{id} = {}", node.op.name());
    for (i, arg) in node.args.iter().enumerate() {
        *out += &format!("{} %{}", if i == 0 { "" } else { "," }, arg.0);
    }
    print_attrs(out, dims, &node.op.attributes());
    *out += " : ";
    *out += &node.ty.show(dims);
    origin(out, &node.origin);
    if node.rot != 0 {
        *out += &format!(" rot {}", node.rot);
    }
    out.push('\n');
}

fn origin(out: &mut String, origin: &Origin) {
    if *origin == Origin::default() {
        return;
    }
    *out += " @ ";
    quote(out, &origin.node);
    if let Some(layer) = origin.layer {
        *out += &format!(" layer {layer}");
    }
    if !origin.kind.is_empty() {
        *out += " as ";
        quote(out, &origin.kind);
    }
}

fn program(out: &mut String, dims: &Dims, program: &Program) {
    if *program == Program::default() {
        return;
    }
    *out += "  public {\n";
    for (i, input) in program.inputs.iter().enumerate() {
        *out += &format!("    $i{i} = input ");
        quote(out, &input.name);
        *out += &format!(" : {}{}\n", input.dtype.name(), dims.show_shape(&input.shape));
    }
    for (i, node) in program.nodes.iter().enumerate() {
        *out += &format!("    ${i} = {}", node.op.name());
        values(out, &node.inputs);
        print_attrs(out, dims, &tensor_attrs(&node.op));
        *out += &format!(" : {}{}\n", node.dtype.name(), dims.show_shape(&node.shape));
    }
    if !program.outputs.is_empty() {
        *out += "    return";
        values(out, &program.outputs);
        out.push('\n');
    }
    *out += "  }\n";
}

fn values(out: &mut String, values: &[ValueRef]) {
    for (i, value) in values.iter().enumerate() {
        *out += if i == 0 { " " } else { ", " };
        match value {
            ValueRef::Input(n) => *out += &format!("$i{n}"),
            ValueRef::Node(n) => *out += &format!("${n}"),
        }
    }
}
