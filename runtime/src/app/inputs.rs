//! What a client gives: tensors by name, checked against the plan's graph inputs.

use ombra_ir::plain::{DType, Data, Tensor};
use ombra_ir::plan::{GraphInput, InputRole, Plan};
use ombra_ir::{Diagnostic, Result};

use super::request::{Request, is_public, out_of_range};

/// A tensor by its name. The client's own are secret: no message shows elements.
pub type Named = (String, Tensor);

/// The tensor of a list with the name `name`.
pub fn find<'a>(list: &'a [Named], name: &str) -> Option<&'a Tensor> {
    list.iter().find(|(other, _)| other == name).map(|(_, tensor)| tensor)
}

/// `tensor` with elements of type `dtype`, where that loses nothing.
///
/// # Errors
/// `E1006`.
pub fn convert(name: &str, tensor: Tensor, dtype: DType) -> Result<Tensor> {
    if tensor.dtype() == dtype {
        return Ok(tensor);
    }
    let found = tensor.dtype();
    let wrong = || {
        Diagnostic::input("E1006", format!("`{}` has another element type than the model's", name.escape_debug()))
            .note(format!("expected  {}", dtype.name()))
            .note(format!("found     {}", found.name()))
    };
    let (shape, data) = tensor.into_parts();
    let truth = |value: &i64| match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(wrong()),
    };
    let data = match (data, dtype) {
        (Data::Bool(values), DType::I64) => Data::I64(values.into_iter().map(i64::from).collect()),
        (Data::Bool(values), DType::F32) => Data::F32(values.into_iter().map(|v| f32::from(u8::from(v))).collect()),
        (Data::I64(values), DType::Bool) => Data::Bool(values.iter().map(truth).collect::<Result<_>>()?),
        (Data::F32(values), DType::I64) => {
            let whole = |value: &f32| if value.fract() == 0.0 { Ok(*value as i64) } else { Err(wrong()) };
            Data::I64(values.iter().map(whole).collect::<Result<_>>()?)
        }
        (Data::I64(values), DType::F32) => {
            let exact = |value: &i64| if value.abs() <= 1 << 24 { Ok(*value as f32) } else { Err(wrong()) };
            Data::F32(values.iter().map(exact).collect::<Result<_>>()?)
        }
        _ => return Err(wrong()),
    };
    Tensor::new(shape, data)
}

/// Tokens of texts side by side, as many of each, as a tensor for the graph's token ids.
///
/// # Errors
/// `E1006` when the model has no token ids, or not of this form.
pub fn token_ids(plan: &Plan, rows: &[Vec<i64>]) -> Result<Named> {
    let mut inputs = plan.graph_inputs.iter().filter(|input| input.role == InputRole::TokenIds);
    let (Some(input), None) = (inputs.next(), inputs.next()) else {
        return Err(Diagnostic::input("E1006", "the model has no single input of token ids")
            .note("help      give its inputs with `--input NAME=FILE`"));
    };
    let length = rows.first().map_or(0, Vec::len);
    let shape = match (input.shape.len(), rows.len()) {
        (1, 1) => vec![length],
        (1, _) => return Err(Diagnostic::input("E1006", "the model takes one text at a time")),
        (2, count) => vec![count, length],
        (rank, _) => {
            return Err(Diagnostic::input("E1006", format!("token ids with {rank} axes are not supported yet")));
        }
    };
    Ok((input.name.clone(), Tensor::i64(&shape, rows.concat())?))
}

/// Checks given inputs, converts their elements, finds the sizes, and says which of them the other parties see.
///
/// # Errors
/// `E1006`, and `E1007` for a size out of range.
pub fn infer_request(plan: &Plan, given: Vec<Named>) -> Result<(Request, Vec<Named>)> {
    let mut typed: Vec<Named> = Vec::with_capacity(given.len());
    for (name, tensor) in given {
        if let Some((_, value)) = plan.fixed.iter().find(|(fixed, _)| *fixed == name) {
            check_fixed(&name, &tensor, *value)?;
            continue;
        }
        let input = graph_input(plan, &name)?;
        if find(&typed, &name).is_some() {
            return Err(Diagnostic::input("E1006", format!("the input `{}` is given twice", name.escape_debug())));
        }
        typed.push((name.clone(), convert(&name, tensor, input.dtype)?));
    }
    let sizes = sizes_of(plan, &typed)?;
    let states = plan.module.states.iter().filter(|state| find(&typed, &state.input).is_some()).count();
    if states != 0 && states != plan.module.states.len() {
        return Err(Diagnostic::input("E1006", "a part of the cache is missing")
            .note(format!("expected  {} tensors", plan.module.states.len()))
            .note(format!("found     {states}")));
    }
    let public: Vec<Named> = typed.iter().filter(|(name, _)| is_public(plan, name)).cloned().collect();
    for (name, tensor) in &public {
        if let Data::F32(values) = tensor.data()
            && !values.iter().all(|value| value.is_finite())
        {
            return Err(Diagnostic::input(
                "E1006",
                format!("the public input `{}` is not finite", name.escape_debug()),
            )
            .note("help      give a large negative number, such as -1e9, instead of minus infinity"));
        }
    }
    for (name, tensor) in &typed {
        let is_bit = match tensor.data() {
            Data::F32(values) => values.iter().all(|value| *value == 0.0 || *value == 1.0),
            Data::I64(values) => values.iter().all(|value| *value == 0 || *value == 1),
            Data::Bool(_) => true,
        };
        if !is_bit && graph_input(plan, name)?.role == InputRole::AttentionMask {
            let text = format!("the attention mask `{}` holds other numbers than 0 and 1", name.escape_debug());
            return Err(Diagnostic::input("E1006", text).note("expected  1 where a position counts, else 0"));
        }
    }
    // A cache without elements is what a run starts with anyway.
    let filled = plan.module.states.iter().any(|state| find(&typed, &state.input).is_some_and(|x| !x.is_empty()));
    Ok((Request::Infer { sizes, public, states: filled }, typed))
}

/// Checks an input that the plan takes to be one number.
fn check_fixed(name: &str, tensor: &Tensor, value: i64) -> Result<()> {
    let same = match tensor.data() {
        Data::I64(found) => found.iter().all(|found| *found == value),
        Data::Bool(found) => found.iter().all(|found| i64::from(*found) == value),
        Data::F32(_) => false,
    };
    if same {
        return Ok(());
    }
    Err(Diagnostic::input("E1006", format!("the plan was made for another value of `{}`", name.escape_debug()))
        .note(format!("expected  {value}"))
        .note("help      compile with --dim and that value"))
}

fn graph_input<'a>(plan: &'a Plan, name: &str) -> Result<&'a GraphInput> {
    plan.graph_inputs.iter().find(|input| input.name == name).ok_or_else(|| {
        let known: Vec<&str> = plan.graph_inputs.iter().map(|input| input.name.as_str()).collect();
        Diagnostic::input("E1006", format!("the model has no input `{}`", name.escape_debug()))
            .note(format!("expected  one of {}", known.join(", ")))
    })
}

/// Sizes that the shapes of `given` determine; without a cache its length is 0, without a batch there is one.
fn sizes_of(plan: &Plan, given: &[Named]) -> Result<Vec<(String, u64)>> {
    let dims = &plan.module.dims;
    let mut sizes: Vec<(String, u64)> = Vec::new();
    for (name, tensor) in given {
        let input = graph_input(plan, name)?;
        if input.shape.len() != tensor.rank() {
            return Err(Diagnostic::input("E1006", format!("`{}` has another number of axes", name.escape_debug()))
                .note(format!("expected  {}", dims.show_shape(&input.shape)))
                .note(format!("found     {:?}", tensor.shape())));
        }
        for (dim, &size) in input.shape.iter().zip(tensor.shape()) {
            if let Some(info) = dim.as_symbol().and_then(|sym| dims.info(sym))
                && !sizes.iter().any(|(other, _)| *other == info.name)
            {
                sizes.push((info.name.clone(), size as u64));
            }
        }
    }
    for (name, default) in [(&plan.past, 0), (&plan.batch, 1)] {
        if let Some(name) = name
            && !sizes.iter().any(|(other, _)| other == name)
        {
            sizes.push((name.clone(), default));
        }
    }
    let named: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let bindings = dims.bind(&named).map_err(out_of_range)?;
    for (name, tensor) in given {
        let input = graph_input(plan, name)?;
        let expected: Vec<usize> = input.shape.iter().map(|dim| dim.eval_usize(&bindings)).collect::<Result<_>>()?;
        if tensor.shape() != expected {
            return Err(Diagnostic::input("E1006", format!("`{}` has another shape", name.escape_debug()))
                .note(format!("expected  {} = {expected:?}", dims.show_shape(&input.shape)))
                .note(format!("found     {:?}", tensor.shape())));
        }
    }
    Ok(sizes)
}
