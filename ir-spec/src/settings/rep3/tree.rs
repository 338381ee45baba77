//! How the maximum of rows is found: a binary tree, of which some levels are compared at once.
//!
//! All pairs of `2^q` neighbours are compared in the rounds of one comparison; then `q` rounds select, level by level, the
//! greater of every pair and, from the comparisons, that of the pairs of the next level. So a step of `q` levels takes the
//! rounds of one comparison and `q` more, where levels one by one take those of `q` comparisons.

use super::carry::carry;
use super::{LINKS, ROUND_BITS};
use crate::settings::RowLens;

/// Levels that are compared at once, at most.
const MOST_LEVELS: u8 = 3;
/// Products of role 2's bits that select one comparison of four by two other ones.
pub const MUX_PRODUCTS: u64 = 11;

/// Levels of the tree over `rows` that are compared at once, step by step, where the differences of entries have `width` bits.
/// Those steps are taken whose rounds and bits cost least at [`ROUND_BITS`]; rows alone decide.
pub fn tree_steps(rows: &RowLens<'_>, width: u8) -> Vec<u8> {
    let levels = rows.pairs_by_level().len() as u8;
    // The cheapest steps from every level on, and their price.
    let mut best: Vec<(u64, Vec<u8>)> = vec![(0, Vec::new())];
    for level in (0..levels).rev() {
        let step = |step: u8| {
            let signs = rows.comparisons(level, 1 << step);
            let made = carry(signs, width - 1);
            let muxes: u64 = (1..step).map(|i| rows.comparisons(level + i, 1 << (step - i))).sum();
            let bits = signs.saturating_mul(made.total()).saturating_add((MUX_PRODUCTS + 2).saturating_mul(muxes));
            let rounds = (1 + made.joins.len() as u64) * LINKS * ROUND_BITS;
            let (after, steps) = &best[usize::from(step) - 1];
            (bits.saturating_add(rounds).saturating_add(*after), [&[step], &steps[..]].concat())
        };
        let found = (1..=MOST_LEVELS.min(levels - level)).map(step).min_by_key(|(price, _)| *price);
        best.insert(0, found.unwrap_or_default());
    }
    best.swap_remove(0).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_compared_at_once_and_many_one_by_one() {
        let steps = |count, len| tree_steps(&RowLens::Equal { count, len }, 17);
        assert_eq!(steps(1, 1), Vec::<u8>::new());
        assert_eq!(steps(1, 2), vec![1]);
        assert_eq!(steps(12, 65), vec![2, 2, 3]);
        assert_eq!(steps(1 << 40, 65), vec![1; 7]);
        for len in 0..70 {
            let all: u8 = steps(1, len).iter().sum();
            assert_eq!(u32::from(all), crate::settings::rep3::tree_levels(len));
        }
    }
}
