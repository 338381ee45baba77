//! How the carry of a comparison is made, and what that sends.
//!
//! A carry out of the sum of what roles 0 and 1 know and what role 2 knows: groups of bits in one round, then rounds that
//! join groups. Large groups and joins take fewer rounds and more bytes.

use super::{LINKS, ROUND_BITS};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Bits of a group of a carry at most.
pub const LARGEST_GROUP: u8 = 4;

/// Products of the bits of a group that one role knows: of every choice of them.
pub fn group_products(bits: u8) -> u64 {
    (1u64 << bits.min(LARGEST_GROUP)) - 1
}

/// How a carry is made: of groups of bits, all in one round, which are then joined to one, neighbours at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// Bits of every group, lowest first.
    pub groups: Vec<u8>,
    /// Neighbours that are joined in every further round; what is left over at the top is joined too.
    pub joins: Vec<u8>,
}

/// Bits an element of a step of a carry: from role 2 to role 1, and from each of roles 0 and 1 to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarryBits {
    /// What is dealt.
    pub dealt: u64,
    /// What is exchanged.
    pub exchanged: u64,
}

/// Groups that are joined by one crossing at most.
pub const LARGEST_JOIN: u8 = 4;

/// What one join of `neighbours` takes in a round that joins `join` at a time; the lowest of all has no propagate bit, because
/// nothing is carried into it. Two at a time are joined by ands. More at a time are a crossing of the products of propagate
/// bits with each other and with every other bit of lower groups.
pub fn join_bits(join: u8, neighbours: u8, lowest: bool) -> CarryBits {
    let exchanged = 1 + u64::from(!lowest);
    if neighbours < 2 {
        return CarryBits::default();
    }
    if join == 2 {
        return CarryBits { dealt: exchanged, exchanged };
    }
    let choices = 1u64 << (neighbours - 1);
    CarryBits { dealt: choices - 1 + 2 * (choices - 1) + if lowest { 0 } else { choices }, exchanged }
}

impl Carry {
    /// What every round takes, the groups' first.
    pub fn bits(&self) -> Vec<CarryBits> {
        let mut groups = self.groups.len() as u8;
        if groups == 0 {
            return Vec::new();
        }
        let dealt = self.groups.iter().map(|&bits| group_products(bits)).sum();
        let mut rounds = vec![CarryBits { dealt, exchanged: 2 * u64::from(groups) - 1 }];
        for &join in &self.joins {
            let mut sum = CarryBits::default();
            for at in (0..groups).step_by(usize::from(join)) {
                let bits = join_bits(join, join.min(groups - at), at == 0);
                sum.dealt += bits.dealt;
                sum.exchanged += bits.exchanged;
            }
            rounds.push(sum);
            groups = groups.div_ceil(join);
        }
        rounds
    }

    /// Bits an element of all messages.
    pub(super) fn total(&self) -> u64 {
        self.bits().iter().map(|bits| bits.dealt + 2 * bits.exchanged).sum()
    }
}

/// All ways to join so many groups to one.
fn all_joins(groups: u8) -> Vec<Vec<u8>> {
    if groups < 2 {
        return vec![Vec::new()];
    }
    let first = (2..=LARGEST_JOIN).filter(|&join| join == 2 || join <= groups);
    first
        .flat_map(|join| all_joins(groups.div_ceil(join)).into_iter().map(move |rest| [&[join], &rest[..]].concat()))
        .collect()
}

/// The carries of so many bits that send the fewest for their number of rounds, by the number of bits.
static CARRIES: LazyLock<Vec<Vec<Carry>>> = LazyLock::new(|| {
    let joins: Vec<Vec<Vec<u8>>> = (0..64).map(all_joins).collect();
    let carries = |bits: u8| {
        let mut best = BTreeMap::<usize, Carry>::new();
        for count in bits.div_ceil(LARGEST_GROUP)..=bits {
            let groups: Vec<u8> = (0..count).map(|i| bits / count + u8::from(i < bits % count)).collect();
            for joins in &joins[usize::from(count)] {
                let carry = Carry { groups: groups.clone(), joins: joins.clone() };
                let found = best.get(&joins.len());
                if found.is_none_or(|found| carry.total() < found.total()) {
                    best.insert(joins.len(), carry);
                }
            }
        }
        best.into_values().collect()
    };
    (0..64).map(carries).collect()
});

/// How the carry of `n` sums of `bits` bits, 63 at most, is made. Large groups and joins take fewer rounds and more bytes:
/// that is taken whose rounds and bits cost least at [`ROUND_BITS`]. Sizes alone decide, so all parties agree.
pub fn carry(n: u64, bits: u8) -> Carry {
    let price = |carry: &&Carry| {
        let rounds = (carry.joins.len() as u64).saturating_mul(LINKS * ROUND_BITS);
        n.saturating_mul(carry.total()).saturating_add(rounds)
    };
    let best = CARRIES.get(usize::from(bits)).and_then(|carries| carries.iter().min_by_key(price));
    best.cloned().unwrap_or(Carry { groups: Vec::new(), joins: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_are_made_by_their_number() {
        let made = |n, bits| {
            let Carry { groups, joins } = carry(n, bits);
            (groups, joins)
        };
        assert_eq!(made(1, 0), (vec![], vec![]));
        assert_eq!(made(1, 3), (vec![3], vec![]));
        assert_eq!(made(1, 15), (vec![4, 4, 4, 3], vec![4]));
        assert_eq!(made(1 << 40, 15), (vec![3; 5], vec![2, 2, 2]));
        for n in [0, 1, 800, 80_000, 1 << 40, u64::MAX] {
            for bits in 0..=63 {
                let Carry { groups, joins } = carry(n, bits);
                assert_eq!(groups.iter().sum::<u8>(), bits);
                assert!(groups.iter().all(|bits| (1..=LARGEST_GROUP).contains(bits)));
                let left = joins.iter().fold(groups.len() as u8, |groups, &join| groups.div_ceil(join));
                assert_eq!(left, u8::from(bits > 0));
            }
        }
    }

    /// Bits of a join are those of the tree of ands, or of its products.
    #[test]
    fn bits_of_joins() {
        let bits = |join, neighbours, lowest| {
            let CarryBits { dealt, exchanged } = join_bits(join, neighbours, lowest);
            dealt + 2 * exchanged
        };
        assert_eq!([1, 2].map(|neighbours| bits(2, neighbours, true)), [0, 3]);
        assert_eq!([1, 2].map(|neighbours| bits(2, neighbours, false)), [0, 6]);
        assert_eq!([1, 2, 3, 4].map(|neighbours| bits(4, neighbours, true)), [0, 5, 11, 23]);
        assert_eq!([1, 2, 3, 4].map(|neighbours| bits(4, neighbours, false)), [0, 9, 17, 33]);
    }
}
