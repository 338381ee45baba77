//! What the inputs and outputs of a model are, and the symbols of the inputs' sizes.
//!
//! Sizes are named by role: `batch`, `seq` (new tokens), `past` (tokens in the cache). The length of the attention mask
//! is `past + seq` whatever the file calls it. Textual sizes of outputs are not read: they follow from the inputs.

use std::collections::BTreeMap;

use ombra_ir::plain::{DType, Tensor, Type};
use ombra_ir::{Diagnostic, Dim, Result};
use onnx_protobuf::{GraphProto, ValueInfoProto, tensor_shape_proto::dimension, type_proto};

use super::{Context, Options, Value, dtype_of};
use crate::graph::{Graph, InputRole, Op, Origin, OutputRole, TensorOp, ValueId};

/// A declared size of an input.
enum Declared {
    Fixed(i64),
    Named(String),
    Unknown,
}

/// Declares the inputs of `file` and returns what its textual sizes became.
///
/// Errors: an input that is no tensor of numbers, a negative size, an unknown name in `options`.
pub fn declare_inputs(cx: &mut Context, file: &GraphProto, options: &Options) -> Result<BTreeMap<String, Dim>> {
    let mut inputs = Vec::new();
    for info in &file.input {
        if cx.model.initializer(&info.name).is_none() {
            let (dtype, sizes) = declared(info)?;
            let role = input_role(&info.name, dtype, sizes.len());
            let role = if options.public_inputs.contains(&info.name) {
                declared_public(&info.name, dtype, role)?
            } else {
                role
            };
            inputs.push((info.name.as_str(), role, dtype, sizes));
        }
    }
    if let Some(unknown) = options.public_inputs.iter().find(|name| inputs.iter().all(|(known, ..)| known != name)) {
        let known: Vec<&str> = inputs.iter().map(|(name, ..)| *name).collect();
        return Err(Diagnostic::input("E0255", format!("the model has no input `{unknown}` to be public"))
            .note(format!("its inputs are {}", known.join(", "))));
    }
    let cached = inputs.iter().any(|(_, role, ..)| is_past(*role));
    let mut names: BTreeMap<String, Dim> = BTreeMap::new();
    // Roles that name sizes come first, so that the same text elsewhere means the same.
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by_key(|i| inputs.get(*i).map_or(9, |(_, role, ..)| rank(*role)));
    let mut types: BTreeMap<usize, Type> = BTreeMap::new();
    for i in order {
        let Some((name, role, dtype, sizes)) = inputs.get(i) else { continue };
        let mut shape = Vec::with_capacity(sizes.len());
        for (axis, size) in sizes.iter().enumerate() {
            let text = match size {
                Declared::Fixed(n) => {
                    shape.push(Dim::constant(*n));
                    continue;
                }
                Declared::Named(text) => text.clone(),
                Declared::Unknown => format!("{name}[{axis}]"),
            };
            if let Some(known) = names.get(&text) {
                shape.push(known.clone());
                continue;
            }
            let dim = name_size(cx, options, *role, axis, sizes.len(), &text, cached)?;
            names.insert(text, dim.clone());
            shape.push(dim);
        }
        types.insert(i, Type::new(*dtype, shape));
    }
    let sizes =
        inputs.iter().enumerate().filter(|(i, (_, role, ..))| types.get(i).is_some_and(|ty| is_size(*role, ty)));
    check_names(cx, options, &names, &sizes.map(|(_, (name, ..))| *name).collect::<Vec<_>>())?;
    for (i, (name, role, ..)) in inputs.iter().enumerate() {
        let Some(ty) = types.remove(&i) else { continue };
        if let Some(tensor) = options.constants.get(*name) {
            cx.define(name, Value::constant(known_input(name, tensor, &ty)?));
            continue;
        }
        if let Some(value) = known_size(name, *role, &ty, options)? {
            let shape = vec![1; ty.shape.len()];
            let tensor = match ty.dtype {
                DType::Bool => Tensor::bool(&shape, vec![value != 0])?,
                DType::I64 | DType::F32 => Tensor::i64(&shape, vec![value])?,
            };
            cx.graph.fixed.insert((*name).into(), value);
            cx.define(name, Value::constant(tensor));
            continue;
        }
        let layer = match role {
            InputRole::PastKey { layer } | InputRole::PastValue { layer } => Some(*layer),
            _ => None,
        };
        let origin = Origin { value: (*name).into(), node: String::new(), layer };
        let id = cx.graph.add_input(name, *role, ty, origin);
        cx.define(name, Value::Node(id));
    }
    Ok(names)
}

fn known_input(name: &str, tensor: &Tensor, ty: &Type) -> Result<Tensor> {
    let fits = |(dim, size): (&Dim, &usize)| dim.as_constant().is_none_or(|d| usize::try_from(d) == Ok(*size));
    let same = tensor.dtype() == ty.dtype && tensor.rank() == ty.shape.len();
    if !same || !ty.shape.iter().zip(tensor.shape()).all(fits) {
        return Err(Diagnostic::input(
            "E0255",
            format!("the value given for input `{name}` has another type or shape"),
        ));
    }
    Ok(tensor.clone())
}

/// Names of inputs that say for how many of the last positions logits are computed; 0 is for all of them.
const KEPT: [&str; 2] = ["num_logits_to_keep", "logits_to_keep"];
/// What those are where nobody says: for the next token the last position is enough.
const DEFAULT_KEPT: u64 = 1;

/// Whether an input is one integer or boolean and no mask or token, so that it may decide sizes.
fn is_size(role: InputRole, ty: &Type) -> bool {
    let single = ty.shape.len() <= 1 && ty.shape.iter().all(|d| d.is(1));
    single && ty.dtype != DType::F32 && matches!(role, InputRole::Other | InputRole::Public)
}

/// The value of an input that is a size, when it is known.
fn known_size(name: &str, role: InputRole, ty: &Type, options: &Options) -> Result<Option<i64>> {
    if !is_size(role, ty) {
        return Ok(None);
    }
    let default = || KEPT.contains(&name).then_some(DEFAULT_KEPT);
    let too_large = |_| Diagnostic::input("E0255", format!("input `{name}` is beyond 63 bits"));
    options.dims.get(name).copied().or_else(default).map(i64::try_from).transpose().map_err(too_large)
}

fn declared(info: &ValueInfoProto) -> Result<(DType, Vec<Declared>)> {
    let wrong = |what: &str| Diagnostic::unsupported("E0255", format!("input `{}` {what}", info.name));
    let Some(type_proto::Value::TensorType(tensor)) = info.type_.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err(wrong("is no tensor"));
    };
    let dtype = dtype_of(tensor.elem_type).ok_or_else(|| wrong("has elements that are no numbers"))?;
    let shape = tensor.shape.as_ref().ok_or_else(|| wrong("has no shape"))?;
    let mut sizes = Vec::with_capacity(shape.dim.len());
    for dim in &shape.dim {
        sizes.push(match &dim.value {
            Some(dimension::Value::DimValue(n)) if *n < 0 => return Err(wrong("has a negative size")),
            Some(dimension::Value::DimValue(n)) => Declared::Fixed(*n),
            Some(dimension::Value::DimParam(text)) if !text.is_empty() => Declared::Named(text.clone()),
            _ => Declared::Unknown,
        });
    }
    Ok((dtype, sizes))
}

fn rank(role: InputRole) -> u8 {
    match role {
        InputRole::PastKey { .. } | InputRole::PastValue { .. } => 0,
        InputRole::TokenIds => 1,
        InputRole::Embeddings => 2,
        InputRole::PositionIds => 3,
        InputRole::AttentionMask => 4,
        InputRole::Public | InputRole::Other => 5,
    }
}

fn is_past(role: InputRole) -> bool {
    matches!(role, InputRole::PastKey { .. } | InputRole::PastValue { .. })
}

/// The size called `text` in the file, at `axis` of an input of `role`.
fn name_size(
    cx: &mut Context,
    options: &Options,
    role: InputRole,
    axis: usize,
    axes: usize,
    text: &str,
    cached: bool,
) -> Result<Dim> {
    let by_role = match (role, axis) {
        (InputRole::Public | InputRole::Other, _) => None,
        (InputRole::AttentionMask, 1) if axes == 2 => {
            let seq = symbol(cx, options, "seq", text)?;
            return if cached { symbol(cx, options, "past", text)?.add(&seq) } else { Ok(seq) };
        }
        (InputRole::AttentionMask, a) if axes != 2 && a > 0 => None,
        (_, 0) => Some("batch"),
        (InputRole::TokenIds | InputRole::Embeddings | InputRole::PositionIds, 1) => Some("seq"),
        (InputRole::PastKey { .. } | InputRole::PastValue { .. }, 2) if axes == 4 => Some("past"),
        _ => None,
    };
    let name = by_role.map_or_else(|| sanitise(text), str::to_owned);
    symbol(cx, options, &name, text)
}

/// The size `name`: as known from another input, the number that `options` gives it under that name or under `text`,
/// or a new symbol.
fn symbol(cx: &mut Context, options: &Options, name: &str, text: &str) -> Result<Dim> {
    if let Some(known) = cx.role_sizes.get(name) {
        return Ok(known.clone());
    }
    let dim = fresh(cx, options, name, text)?;
    cx.role_sizes.insert(name.into(), dim.clone());
    Ok(dim)
}

fn fresh(cx: &mut Context, options: &Options, name: &str, text: &str) -> Result<Dim> {
    let too_large = || Diagnostic::input("E0255", format!("size `{name}` is beyond 63 bits"));
    if let Some(value) = options.dims.get(name).or_else(|| options.dims.get(text)) {
        return i64::try_from(*value).map(Dim::constant).map_err(|_| too_large());
    }
    let sym = cx.graph.dims.symbol(name)?;
    let max = options.max.get(name).or_else(|| options.max.get(text)).copied();
    if let Some(info) = cx.graph.dims.info_mut(sym) {
        info.min = u64::from(matches!(name, "batch" | "seq"));
        info.max = info.max.or(max);
    }
    Ok(sym.into())
}

/// `text` as the name of a symbol.
fn sanitise(text: &str) -> String {
    let clean: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).take(64).collect();
    if clean.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') { clean } else { format!("d_{clean}") }
}

/// Checks that every name in `options` is one of a size, or, with a value, one of the inputs that are `sizes`.
fn check_names(cx: &Context, options: &Options, names: &BTreeMap<String, Dim>, sizes: &[&str]) -> Result<()> {
    let values = options.dims.keys().map(|name| (name, sizes));
    for (name, sizes) in values.chain(options.max.keys().map(|name| (name, &[][..]))) {
        let canonical = ["batch", "seq", "past"].contains(&name.as_str()) || sizes.contains(&name.as_str());
        if !canonical && !names.contains_key(name) && !cx.role_sizes.contains_key(name) {
            let known: Vec<_> = names.keys().map(String::as_str).chain(sizes.iter().copied()).collect();
            return Err(Diagnostic::input("E0255", format!("no input has a size called `{name}`"))
                .note(format!("known sizes: {}", known.join(", "))));
        }
    }
    Ok(())
}

/// The role of the input `name`.
pub fn input_role(name: &str, dtype: DType, axes: usize) -> InputRole {
    let lower = name.to_ascii_lowercase();
    if let Some((layer, key)) = cache_part(&lower)
        && dtype == DType::F32
        && axes == 4
    {
        return if key { InputRole::PastKey { layer } } else { InputRole::PastValue { layer } };
    }
    if lower.contains("inputs_embeds") {
        InputRole::Embeddings
    } else if dtype == DType::I64 && (lower.contains("input_ids") || lower == "tokens" || lower == "token_ids") {
        InputRole::TokenIds
    } else if (dtype != DType::F32 || axes == 2) && is_named(&lower, "attention_mask") {
        InputRole::AttentionMask
    } else if dtype == DType::I64 && is_named(&lower, "position_ids") {
        InputRole::PositionIds
    } else {
        InputRole::Other
    }
}

/// Whether `name` is `word`, with other words joined to it by `_` or `.` at most.
fn is_named(name: &str, word: &str) -> bool {
    let joins = |c: char| matches!(c, '_' | '.');
    name.split_once(word).is_some_and(|(before, after)| {
        (before.is_empty() || before.ends_with(joins)) && (after.is_empty() || after.starts_with(joins))
    })
}

/// The role of an input that would have `role` and that the user calls public. The meaning of a mask or of positions is
/// taken from names that would not make them public by themselves.
fn declared_public(name: &str, dtype: DType, role: InputRole) -> Result<InputRole> {
    let lower = name.to_ascii_lowercase();
    match role {
        InputRole::AttentionMask | InputRole::PositionIds => Ok(role),
        InputRole::Other if dtype != DType::F32 && (lower == "mask" || lower.contains("attention_mask")) => {
            Ok(InputRole::AttentionMask)
        }
        InputRole::Other if dtype == DType::I64 && (lower == "positions" || lower.contains("position_ids")) => {
            Ok(InputRole::PositionIds)
        }
        InputRole::Other | InputRole::Public => Ok(InputRole::Public),
        InputRole::TokenIds | InputRole::Embeddings | InputRole::PastKey { .. } | InputRole::PastValue { .. } => Err(
            Diagnostic::input("E0255", format!("input `{name}` cannot be public: it is the client's {}", role.name()))
                .note("expected a mask, positions or another input that says nothing about the prompt's text"),
        ),
    }
}

/// Layer, and whether keys rather than values, of a name such as `past_key_values.3.key` or `present_3_value`.
fn cache_part(name: &str) -> Option<(u32, bool)> {
    let rest = name
        .strip_prefix("past_key_values")
        .or_else(|| name.strip_prefix("past"))
        .or_else(|| name.strip_prefix("present"))?;
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let layer = digits.parse().ok()?;
    if rest.contains("key") {
        Some((layer, true))
    } else if rest.contains("value") {
        Some((layer, false))
    } else {
        None
    }
}

/// The role of the output `name`, which is `value`.
pub fn output_role(graph: &Graph, name: &str, value: ValueId) -> OutputRole {
    let lower = name.to_ascii_lowercase();
    if lower == "logits" || lower == "lm_logits" {
        return OutputRole::Logits;
    }
    let Some((layer, key)) = cache_part(&lower) else { return OutputRole::Other };
    let continues = |role: InputRole| match role {
        InputRole::PastKey { layer: l } => key && l == layer,
        InputRole::PastValue { layer: l } => !key && l == layer,
        _ => false,
    };
    let past = match (graph.op(value), graph.operand(value, 0).and_then(|o| graph.op(o))) {
        (Some(Op::Tensor(TensorOp::Concat { .. })), Some(Op::Input { name, role })) if continues(*role) => {
            Some(name.clone())
        }
        _ => None,
    };
    if key { OutputRole::PresentKey { layer, past } } else { OutputRole::PresentValue { layer, past } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name_and_type() {
        let float = |name| input_role(name, DType::F32, 4);
        assert_eq!(float("past_key_values.3.key"), InputRole::PastKey { layer: 3 });
        assert_eq!(float("past_value_11"), InputRole::PastValue { layer: 11 });
        assert_eq!(input_role("input_ids", DType::I64, 2), InputRole::TokenIds);
        assert_eq!(input_role("input_ids", DType::F32, 2), InputRole::Other);
        assert_eq!(input_role("attention_mask", DType::I64, 2), InputRole::AttentionMask);
        assert_eq!(input_role("position_ids", DType::I64, 2), InputRole::PositionIds);
        assert_eq!(input_role("pixel_values", DType::F32, 4), InputRole::Other);
        assert_eq!(input_role("decoder.attention_mask", DType::Bool, 2), InputRole::AttentionMask);
        assert_eq!(input_role("attention_mask_1", DType::I64, 2), InputRole::AttentionMask);
        for name in ["mask", "positions", "noattention_masked", "attention_masks", "myposition_ids"] {
            assert_eq!(input_role(name, DType::I64, 2), InputRole::Other, "{name}");
        }
        // Numbers of two axes say which positions count; those of more axes are added to scores.
        assert_eq!(input_role("attention_mask", DType::F32, 2), InputRole::AttentionMask);
        assert_eq!(input_role("attention_mask", DType::F32, 4), InputRole::Other);
        assert_eq!(input_role("position_ids", DType::F32, 2), InputRole::Other);
    }

    #[test]
    fn any_text_becomes_a_name() {
        let mut dims = ombra_ir::Dims::default();
        for text in ["((batch*Min(64, sequence))//sequence)", "1x", "ü", "a b"] {
            assert!(dims.symbol(&sanitise(text)).is_ok(), "{text}");
        }
    }
}
