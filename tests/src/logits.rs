//! Logits beside reference logits: errors, maximum entries and their margins.

use ombra_ir::Result;
use ombra_ir::plain::Tensor;

/// The index of the maximum entry of a row and its distance to the second.
pub fn greatest(row: &[f32]) -> (usize, f64) {
    let mut best = (0, f32::NEG_INFINITY);
    let mut second = f32::NEG_INFINITY;
    for (index, &value) in row.iter().enumerate() {
        if value > best.1 {
            second = best.1;
            best = (index, value);
        } else {
            second = second.max(value);
        }
    }
    (best.0, f64::from(best.1) - f64::from(second))
}

/// The maximum difference between `got` and the logits `want` of shape `[batch, seq, vocabulary]`, over the positions
/// where `mask` of shape `[batch, past + seq]` is 1. Logits of shape `[batch, classes]` count all.
///
/// # Errors
/// Tensors of another type.
pub fn max_error(got: &[f64], want: &Tensor, mask: Option<&Tensor>) -> Result<f64> {
    let (batch, seq, width, mask) = match *want.shape() {
        [batch, seq, width] => (batch, seq, width, mask),
        [batch, width] => (batch, 1, width, None),
        _ => return Ok(f64::INFINITY),
    };
    let values = want.as_f32()?;
    if got.len() != values.len() {
        return Ok(f64::INFINITY);
    }
    let mask = mask.map(Tensor::as_i64).transpose()?;
    let counted = |row: usize| {
        mask.is_none_or(|mask| {
            let total = mask.len() / batch;
            mask[row / seq * total + total - seq + row % seq] == 1
        })
    };
    let differences = got.iter().zip(values).enumerate().filter(|(index, _)| counted(index / width));
    Ok(differences.map(|(_, (g, w))| (g - f64::from(*w)).abs()).fold(0.0, f64::max))
}

/// The maximum difference between rows of logits; infinite for another number of them.
pub fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    if a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.len() != b.len()) {
        return f64::INFINITY;
    }
    let values = a.iter().zip(b).flat_map(|(a, b)| a.iter().zip(b));
    values.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}
