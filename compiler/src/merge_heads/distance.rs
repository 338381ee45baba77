//! How alike the heads of a layer are: Jensen–Shannon distances of their attention distributions.
//!
//! The distance of two distributions is the root of their Jensen–Shannon divergence to base 2, between 0 and 1. The
//! distance of two heads is its mean over the rows of all calibration inputs. Rows that are masked out whole do not
//! count.

use std::collections::BTreeMap;

use ombra_ir::Result;
use ombra_ir::plain::Tensor;

use crate::attention::Attention;
use crate::graph::eval::{Weights, visit};
use crate::graph::{Graph, ValueId};
use crate::ranges::calibrate::Inputs;

/// What calibration says about the heads of one attention.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Mean distance of every two heads.
    pub distance: Vec<Vec<f64>>,
    /// Rows that were seen.
    pub rows: usize,
    /// Query heads by the key and value head that they share, in order. Heads share one when keys and values are equal
    /// in every element of every calibration input.
    pub sharing: Vec<Vec<usize>>,
}

/// Sums over what was seen so far.
struct Seen {
    distance: Vec<Vec<f64>>,
    rows: usize,
    same: Vec<Vec<bool>>,
}

/// What a value is to an attention.
#[derive(Clone, Copy)]
enum Part {
    Distributions,
    Shared,
}

/// Evaluates `graph` on every set and compares the heads of every one of `attentions`.
///
/// # Errors
/// Inputs that the model cannot take.
pub fn compare_heads(
    graph: &Graph,
    weights: &Weights,
    sets: &[Inputs],
    attentions: &[&Attention],
) -> Result<Vec<Heads>> {
    let mut seen: Vec<Seen> = attentions
        .iter()
        .map(|a| Seen {
            distance: vec![vec![0.0; a.heads]; a.heads],
            rows: 0,
            same: vec![vec![true; a.heads]; a.heads],
        })
        .collect();
    let mut wanted: BTreeMap<ValueId, Vec<(usize, Part)>> = BTreeMap::new();
    for (index, a) in attentions.iter().enumerate() {
        for (id, part) in [(a.softmax, Part::Distributions), (a.keys, Part::Shared), (a.values, Part::Shared)] {
            wanted.entry(id).or_default().push((index, part));
        }
    }
    for inputs in sets {
        let mut failure = None;
        visit(graph, weights, inputs, &mut |id, tensor| {
            for &(index, part) in wanted.get(&id).into_iter().flatten() {
                let Some(seen) = seen.get_mut(index) else { continue };
                let result = match part {
                    Part::Distributions => add_distances(seen, tensor),
                    Part::Shared => compare_shared(seen, tensor),
                };
                failure = failure.take().or(result.err());
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
    }
    Ok(seen.into_iter().map(finish).collect())
}

fn finish(seen: Seen) -> Heads {
    let rows = seen.rows.max(1) as f64;
    let distance = seen.distance.into_iter().map(|row| row.into_iter().map(|d| d / rows).collect()).collect();
    let mut sharing: Vec<Vec<usize>> = Vec::new();
    for (head, same) in seen.same.iter().enumerate() {
        let first = |class: &Vec<usize>| class.first().copied();
        let class = sharing.iter_mut().find(|c| first(c).and_then(|f| same.get(f)).copied().unwrap_or(false));
        match class {
            Some(class) => class.push(head),
            None => sharing.push(vec![head]),
        }
    }
    // Classes of different sizes are no grouped queries: every head stands for itself.
    let size = sharing.first().map_or(1, Vec::len);
    if sharing.iter().any(|class| class.len() != size) {
        sharing = (0..seen.same.len()).map(|head| vec![head]).collect();
    }
    Heads { distance, rows: seen.rows, sharing }
}

/// Adds the distances of all heads over the rows of `[batch, heads, new, all]`.
fn add_distances(seen: &mut Seen, tensor: &Tensor) -> Result<()> {
    let &[batch, heads, rows, size] = tensor.shape() else { return Ok(()) };
    let values = tensor.as_f32()?;
    if size == 0 || heads != seen.distance.len() {
        return Ok(());
    }
    for b in 0..batch {
        for r in 0..rows {
            let row = |head: usize| {
                let start = ((b * heads + head) * rows + r) * size;
                values.get(start..start + size).unwrap_or_default()
            };
            let whole = (0..heads).all(|h| (row(h).iter().map(|&p| f64::from(p)).sum::<f64>() - 1.0).abs() < 0.01);
            if !whole {
                continue;
            }
            seen.rows += 1;
            let entropies: Vec<f64> = (0..heads).map(|h| entropy(row(h).iter().map(|&p| f64::from(p)))).collect();
            for (i, (line, entropy_i)) in seen.distance.iter_mut().zip(&entropies).enumerate() {
                for (j, (sum, entropy_j)) in line.iter_mut().zip(&entropies).enumerate() {
                    if i == j {
                        continue;
                    }
                    let mixed = row(i).iter().zip(row(j)).map(|(&p, &q)| (f64::from(p) + f64::from(q)) / 2.0);
                    let divergence = entropy(mixed) - (entropy_i + entropy_j) / 2.0;
                    *sum += libm::sqrt(divergence.clamp(0.0, 1.0));
                }
            }
        }
    }
    Ok(())
}

/// Entropy in bits.
fn entropy(p: impl Iterator<Item = f64>) -> f64 {
    p.filter(|&p| p > 0.0).map(|p| -p * libm::log2(p)).sum()
}

/// Marks heads as different whose parts of `[batch, heads or 1, …, …]` differ.
fn compare_shared(seen: &mut Seen, tensor: &Tensor) -> Result<()> {
    let &[batch, heads, rows, size] = tensor.shape() else { return Ok(()) };
    if heads != seen.same.len() {
        return Ok(());
    }
    let values = tensor.as_f32()?;
    let part = |b: usize, head: usize| {
        let start = (b * heads + head) * rows * size;
        values.get(start..start + rows * size).unwrap_or_default()
    };
    for (i, line) in seen.same.iter_mut().enumerate() {
        for (j, same) in line.iter_mut().enumerate() {
            *same &= (0..batch).all(|b| part(b, i) == part(b, j));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(heads: usize) -> Seen {
        Seen { distance: vec![vec![0.0; heads]; heads], rows: 0, same: vec![vec![true; heads]; heads] }
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        // Three heads, two rows; the second row is masked out whole and does not count.
        let rows = [[0.5, 0.5, 0.0], [0.0; 3], [0.0, 0.5, 0.5], [0.0; 3], [0.5, 0.5, 0.0], [0.0; 3]];
        let tensor = Tensor::f32(&[1, 3, 2, 3], rows.concat()).unwrap();
        let mut seen = seen(3);
        add_distances(&mut seen, &tensor).unwrap();
        let heads = finish(seen);
        // Sum of p log2(p/m) and q log2(q/m), halved: m is (1/4, 1/2, 1/4), so the divergence is 1/2.
        assert_eq!(heads.rows, 1);
        assert!((heads.distance[0][1] - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(heads.distance[0][1], heads.distance[1][0]);
        assert!(heads.distance[0][2].abs() < 1e-12);
    }

    #[test]
    fn heads_with_equal_keys_and_values_share_them() {
        let tensor = |v: [f32; 4]| Tensor::f32(&[1, 4, 1, 1], v.to_vec()).unwrap();
        let classes = |sets: &[[f32; 4]]| {
            let mut seen = seen(4);
            sets.iter().for_each(|s| compare_shared(&mut seen, &tensor(*s)).unwrap());
            finish(seen).sharing
        };
        assert_eq!(classes(&[[1.0, 1.0, 2.0, 2.0]]), [[0, 1], [2, 3]]);
        assert_eq!(classes(&[[1.0, 1.0, 2.0, 2.0], [1.0, 3.0, 2.0, 2.0]]), [[0], [1], [2], [3]], "unequal classes");
        assert_eq!(classes(&[[1.0, 1.0, 1.0, 1.0]]), [[0, 1, 2, 3]]);
    }
}
