//! Rows of entries one after another, which a binary tree halves level by level.
//!
//! A level joins neighbours of a row, the first with the second; an odd last entry moves up. What the entries are is the
//! settings' business: these functions move words of one component.

/// Pairs of a level in all rows together.
pub(super) fn pair_count(lens: &[usize]) -> usize {
    lens.iter().map(|len| len / 2).sum()
}

/// Lengths of the rows of the next level.
pub(super) fn halved(lens: &[usize]) -> Vec<usize> {
    lens.iter().map(|len| len.div_ceil(2)).collect()
}

/// The first and the second entries of all pairs.
pub(super) fn pairs(lens: &[usize], words: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let count = pair_count(lens);
    let (mut first, mut second) = (Vec::with_capacity(count), Vec::with_capacity(count));
    let mut rest = words;
    for len in lens {
        let (row, after) = rest.split_at(*len);
        for pair in row.chunks_exact(2) {
            first.push(pair[0]);
            second.push(pair[1]);
        }
        rest = after;
    }
    (first, second)
}

/// The entries of the next level: of every pair its one of `joined`, then the odd last entry of `words`.
pub(super) fn next(lens: &[usize], words: &[u64], joined: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let mut joined = joined.into_iter();
    let mut next = Vec::with_capacity(halved(lens).iter().sum());
    let mut rest = words;
    for len in lens {
        let (row, after) = rest.split_at(*len);
        next.extend(joined.by_ref().take(len / 2));
        next.extend(row.chunks_exact(2).remainder());
        rest = after;
    }
    next
}

/// The entries of the first level's successor where entries are their own indices: of pair `q` of a row `2q` plus its one of
/// `second`, and of an odd last entry its own. A sharing has `public` indices in one component, and 0 in the others.
pub(super) fn next_indices(lens: &[usize], second: impl IntoIterator<Item = u64>, public: bool) -> Vec<u64> {
    let mut second = second.into_iter();
    let index = |q: usize| if public { 2 * q as u64 } else { 0 };
    let mut next = Vec::new();
    for len in lens {
        next.extend(second.by_ref().take(len / 2).enumerate().map(|(q, bit)| bit.wrapping_add(index(q))));
        next.extend((len % 2 == 1).then_some(index(len / 2)));
    }
    next
}

/// One entry a row, when every row has one at most: 0 for an empty row.
pub(super) fn column(lens: &[usize], words: &[u64]) -> Vec<u64> {
    let mut words = words.iter();
    lens.iter().map(|&len| if len == 0 { 0 } else { *words.next().unwrap_or(&0) }).collect()
}
