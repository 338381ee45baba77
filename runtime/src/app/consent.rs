//! What the client shows to the other parties: contents that are no secret by their nature, and what the user allows.
//!
//! A plan says of every input what it is, and a plan is not to be trusted with that: token ids declared as positions
//! would leave in the clear. So contents prove the role. A mask holds 0 and 1 alone. Positions are the consecutive
//! numbers that the lengths and a mask imply, and say nothing that these do not. Whatever else a plan makes public is
//! shown only when the user names it.

use ombra_ir::plain::{Data, Tensor};
use ombra_ir::plan::{InputRole, Plan};
use ombra_ir::{Bindings, Diagnostic, Result};

use super::inputs::{Named, find};
use super::request::{Request, out_of_range};

/// Checks the plan's public inputs, and what `request` shows of them, against their roles; `allowed` names inputs that
/// the user shows in any case.
///
/// # Errors
/// `E1016`; `E1007` for sizes that the plan was not made for.
pub fn check_shown(plan: &Plan, request: &Request, allowed: &[String]) -> Result<()> {
    check_roles(plan, allowed)?;
    let Request::Infer { sizes, public, .. } = request else { return Ok(()) };
    let named: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    let bindings = plan.module.dims.bind(&named).map_err(out_of_range)?;
    for (name, tensor) in public.iter().filter(|(name, _)| !allowed.contains(name)) {
        let proven = match role(plan, name) {
            Some(InputRole::AttentionMask) => bits(tensor).is_some(),
            Some(InputRole::PositionIds) => are_positions(plan, &bindings, tensor, public),
            _ => false,
        };
        if !proven {
            return Err(Diagnostic::input(
                "E1016",
                format!("`{}` is not what the plan takes it for", name.escape_debug()),
            )
            .note("expected  of a mask 0 and 1 alone, of positions the numbers that lengths and masks imply")
            .note(help(name)));
        }
    }
    Ok(())
}

/// Checks that the plan takes no input of the client's as a public one, which every party would see: masks and positions
/// are public, and what the user names in `allowed`.
fn check_roles(plan: &Plan, allowed: &[String]) -> Result<()> {
    for input in &plan.module.public.inputs {
        let public = matches!(role(plan, &input.name), Some(InputRole::AttentionMask | InputRole::PositionIds));
        if public || allowed.contains(&input.name) {
            continue;
        }
        let name = input.name.escape_debug();
        return Err(Diagnostic::input("E1016", format!("the plan makes the input `{name}` public"))
            .note("expected  no public inputs but attention masks and positions")
            .note(help(&input.name)));
    }
    Ok(())
}

fn help(name: &str) -> String {
    format!("help      if server and helper may see it, give `--allow-public {}`", name.escape_debug())
}

/// The role of an input, if the plan names one by that name alone.
fn role(plan: &Plan, name: &str) -> Option<InputRole> {
    let mut roles = plan.graph_inputs.iter().filter(|input| input.name == name).map(|input| input.role);
    let role = roles.next();
    if roles.next().is_none() { role } else { None }
}

/// The elements of a mask, if there are no others than 0 and 1.
fn bits(tensor: &Tensor) -> Option<Vec<bool>> {
    match tensor.data() {
        Data::Bool(values) => Some(values.clone()),
        Data::I64(values) => {
            values.iter().map(|&value| [false, true].into_iter().find(|&b| value == i64::from(b))).collect()
        }
        Data::F32(values) => {
            let bit = |value: f32| [0.0f32, 1.0].iter().position(|b| b.to_bits() == value.to_bits()).map(|b| b == 1);
            values.iter().map(|&value| bit(value)).collect()
        }
    }
}

/// Whether every row, along the last axis, is one that the length of the cache, or a mask of as many rows, implies.
fn are_positions(plan: &Plan, bindings: &Bindings, tensor: &Tensor, public: &[Named]) -> bool {
    let Some(values) = integers(tensor) else { return false };
    let past = plan.sym(&plan.past).and_then(|past| bindings.get(past)).unwrap_or(0);
    let Ok(past) = i64::try_from(past) else { return false };
    let length = tensor.shape().last().copied().unwrap_or(1).max(1);
    let masks = plan.graph_inputs.iter().filter(|input| input.role == InputRole::AttentionMask);
    let masks: Vec<(usize, Vec<bool>)> = masks
        .filter_map(|input| find(public, &input.name))
        .filter_map(|mask| Some((mask.shape().last().copied()?, bits(mask)?)))
        .collect();
    // One rule holds for all rows: a choice between rules, row by row, would say something.
    let consecutive =
        values.chunks(length).all(|row| row.iter().zip(past..).all(|(&found, expected)| found == expected));
    let rows = values.len().div_ceil(length);
    let counted = |(width, mask): &(usize, Vec<bool>), at_padding: fn(i64) -> i64| {
        *width >= length
            && rows * width == mask.len()
            && values.chunks(length).zip(mask.chunks(*width)).all(|(row, mask)| {
                let counts = mask.iter().scan(0, |count, &kept| {
                    *count += i64::from(kept);
                    Some(if kept { *count - 1 } else { at_padding(*count) })
                });
                counts.skip(width - length).eq(row.iter().copied())
            })
    };
    // What exporters put where a mask has a 0: nothing of its own, or a number.
    let paddings: [fn(i64) -> i64; 4] = [|count| count - 1, |count| (count - 1).max(0), |_| 0, |_| 1];
    consecutive || masks.iter().any(|mask| paddings.iter().any(|&at_padding| counted(mask, at_padding)))
}

/// Elements that are whole numbers.
fn integers(tensor: &Tensor) -> Option<Vec<i64>> {
    match tensor.data() {
        Data::I64(values) => Some(values.clone()),
        Data::F32(values) => {
            // Larger ones are no positions, and a zero with a sign is not the number itself.
            let whole = |value: &f32| {
                let number = *value as i64;
                (number.abs() <= 1 << 24 && (number as f32).to_bits() == value.to_bits()).then_some(number)
            };
            values.iter().map(whole).collect()
        }
        Data::Bool(_) => None,
    }
}
