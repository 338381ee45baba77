//! Local work of comparisons on bit planes: 64 elements a word, eight words of every plane at a time.
//!
//! All planes of a call have `stride` words and lie one after another. No branch and no index depends on an element; what
//! chooses from a one-hot vector is public, and it too is a plane. Loops in place of closures: a closure is compiled without
//! the vector level of its function.

use ombra_ir::settings::dealer::{Join, LARGEST_CHUNK, MOST_JOINED};
use ombra_kernels::each_isa;

/// Entries that eight words at a time are worked on with: of a chunk's one-hot vector, or products of a group's equalities.
const FEW: usize = 16;
/// Entries that a word at a time is worked on with: comparisons of few elements have large vectors, or many chunks.
const SOME: usize = 256;
/// Entries at most.
const MANY: usize = 1 << LARGEST_CHUNK;
const _: () = assert!(MANY >= 1 << MOST_JOINED);

/// `lanes::<L, E>(…, at)` for every word `at` of a plane, `L` words at a time, where `entries` are worked on.
macro_rules! for_words {
    ($stride:expr, $entries:expr, $lanes:ident($($arg:expr),* $(,)?)) => {
        if $entries <= FEW {
            let whole = $stride & !7;
            for at in (0..whole).step_by(8) {
                $lanes::<8, FEW>($($arg),*, at);
            }
            for at in whole..$stride {
                $lanes::<1, FEW>($($arg),*, at);
            }
        } else if $entries <= SOME {
            for at in 0..$stride {
                $lanes::<1, SOME>($($arg),*, at);
            }
        } else {
            for at in 0..$stride {
                $lanes::<1, MANY>($($arg),*, at);
            }
        }
    };
}

each_isa! {
    /// `x += y` modulo `2^w`, for `w` planes each, lowest first.
    pub(super) fn add(x: &mut [u64], y: &[u64], stride: usize) {
        let (whole, planes) = (stride & !7, x.len().checked_div(stride).unwrap_or(0));
        for at in (0..whole).step_by(8) {
            add_lanes::<8>(x, y, planes, stride, at);
        }
        for at in whole..stride {
            add_lanes::<1>(x, y, planes, stride, at);
        }
    }

    /// Adds to `out` the one-hot vector of the number in the planes `bits`: `2^k` planes of which the one with that number
    /// is 1.
    pub(super) fn add_one_hot(bits: &[u64], stride: usize, out: &mut [u64]) {
        let k = bits.len().checked_div(stride).unwrap_or(0);
        for_words!(stride, 1 << k, one_hot_lanes(bits, k, stride, out));
    }

    /// Of a shared one-hot vector and the number `v` in the planes `bits`: into `equal` its entry `v`, and into `greater` the
    /// sum of the entries after it.
    pub(super) fn choose(vector: &[u64], bits: &[u64], stride: usize, greater: &mut [u64], equal: &mut [u64]) {
        let k = bits.len().checked_div(stride).unwrap_or(0);
        for_words!(stride, 1 << k, choose_lanes(vector, bits, k, stride, greater, equal));
    }

    /// Adds to `out` the products of the masks of a group's opened bits, in the order in which [`join`] takes them.
    pub(super) fn add_products(group: Join, masks: &[u64], stride: usize, out: &mut [u64]) {
        for_words!(stride, 1 << group.equalities(), product_lanes(group, masks, stride, out));
    }

    /// Adds to `greater` what the lower chunks of a group make of it, and to `equal` whether all are equal, if that is asked:
    /// shares of polynomials in the opened bits, which all know, and in products of their masks. `one` is a share of 1.
    pub(super) fn join(group: Join, bits: &Opened<'_>, one: u64, stride: usize, greater: &mut [u64], equal: &mut [u64]) {
        for_words!(stride, 1 << group.equalities(), join_lanes(group, bits, one, stride, greater, equal));
    }
}

/// A group's bits that were opened: `chunks − 1` of order, lowest first, then those of equality.
pub(super) struct Opened<'a> {
    /// The bits under their masks.
    pub values: &'a [u64],
    /// Shares of the masks.
    pub masks: &'a [u64],
    /// Shares of their products.
    pub products: &'a [u64],
}

/// Some words of one plane.
type Lanes<const L: usize> = [u64; L];

#[inline(always)]
fn load<const L: usize>(planes: &[u64], plane: usize, stride: usize, at: usize) -> Lanes<L> {
    let mut lanes = [0; L];
    lanes.copy_from_slice(&planes[plane * stride + at..][..L]);
    lanes
}

#[inline(always)]
fn xor<const L: usize>(x: Lanes<L>, y: Lanes<L>) -> Lanes<L> {
    std::array::from_fn(|i| x[i] ^ y[i])
}

#[inline(always)]
fn and<const L: usize>(x: Lanes<L>, y: Lanes<L>) -> Lanes<L> {
    std::array::from_fn(|i| x[i] & y[i])
}

#[inline(always)]
fn add_to<const L: usize>(planes: &mut [u64], plane: usize, stride: usize, at: usize, x: Lanes<L>) {
    for (word, x) in planes[plane * stride + at..][..L].iter_mut().zip(x) {
        *word ^= x;
    }
}

#[inline(always)]
fn add_lanes<const L: usize>(x: &mut [u64], y: &[u64], planes: usize, stride: usize, at: usize) {
    let mut carry = [0; L];
    for plane in 0..planes {
        let (a, b): (Lanes<L>, Lanes<L>) = (load(x, plane, stride, at), load(y, plane, stride, at));
        let half = xor(a, b);
        add_to(x, plane, stride, at, xor(b, carry));
        carry = xor(and(a, b), and(half, carry));
    }
}

#[inline(always)]
fn one_hot_lanes<const L: usize, const E: usize>(bits: &[u64], k: usize, stride: usize, out: &mut [u64], at: usize) {
    let mut entries = [[u64::MAX; L]; E];
    for i in 0..k {
        let bit = load(bits, i, stride, at);
        for s in 0..1 << i {
            let with = and(entries[s], bit);
            entries[s + (1 << i)] = with;
            entries[s] = xor(entries[s], with);
        }
    }
    for (s, entry) in entries.iter().take(1 << k).enumerate() {
        add_to(out, s, stride, at, *entry);
    }
}

#[inline(always)]
fn choose_lanes<const L: usize, const E: usize>(
    vector: &[u64],
    bits: &[u64],
    k: usize,
    stride: usize,
    greater: &mut [u64],
    equal: &mut [u64],
    at: usize,
) {
    let (mut entries, mut after) = ([[0; L]; E], [[0; L]; E]);
    let mut sum = [0; L];
    for s in (0..1 << k).rev() {
        entries[s] = load(vector, s, stride, at);
        after[s] = sum;
        sum = xor(sum, entries[s]);
    }
    for i in (0..k).rev() {
        let bit = load(bits, i, stride, at);
        for s in 0..1 << i {
            let high = s + (1 << i);
            entries[s] = xor(entries[s], and(bit, xor(entries[s], entries[high])));
            after[s] = xor(after[s], and(bit, xor(after[s], after[high])));
        }
    }
    equal[at..at + L].copy_from_slice(&entries[0]);
    greater[at..at + L].copy_from_slice(&after[0]);
}

/// Equality `i` counted from the highest chunk's: its place among the bits that are opened.
#[inline(always)]
fn equality(group: Join, i: usize) -> usize {
    group.opened() - 1 - i
}

#[inline(always)]
fn product_lanes<const L: usize, const E: usize>(
    group: Join,
    masks: &[u64],
    stride: usize,
    out: &mut [u64],
    at: usize,
) {
    let mut next = 0;
    // Entry `S` is the product of the equalities in `S`, of which bit 0 is the highest chunk's.
    let mut equal = [[u64::MAX; L]; E];
    for i in 0..group.equalities() {
        let mask = load(masks, equality(group, i), stride, at);
        equal[1 << i] = mask;
        for s in 1..1 << i {
            equal[s + (1 << i)] = and(equal[s], mask);
            add_to(out, next, stride, at, equal[s + (1 << i)]);
            next += 1;
        }
    }
    for chunk in 0..group.chunks - 1 {
        let mask = load(masks, chunk, stride, at);
        for entry in &equal[1..1 << (group.chunks - 1 - chunk)] {
            add_to(out, next, stride, at, and(*entry, mask));
            next += 1;
        }
    }
}

#[inline(always)]
fn join_lanes<const L: usize, const E: usize>(
    group: Join,
    bits: &Opened<'_>,
    one: u64,
    stride: usize,
    greater: &mut [u64],
    equal: &mut [u64],
    at: usize,
) {
    let mut next = 0;
    let mut products = [[one; L]; E];
    for i in 0..group.equalities() {
        products[1 << i] = load(bits.masks, equality(group, i), stride, at);
        for s in 1..1 << i {
            products[s + (1 << i)] = load(bits.products, next, stride, at);
            next += 1;
        }
    }
    // From the lowest chunk up: entry `S` is a share of what the chunks so far make, times the masks in `S` of the equalities
    // above them. One more equality is `value ⊕ mask`, and so folds the entries with its mask onto those without it.
    let mut sum = [[0; L]; E];
    for chunk in 0..group.chunks - 1 {
        let above = group.chunks - 1 - chunk;
        let value = load(bits.values, chunk, stride, at);
        sum[0] = xor(sum[0], xor(and(value, products[0]), load(bits.masks, chunk, stride, at)));
        for s in 1..1 << above {
            sum[s] = xor(sum[s], xor(and(value, products[s]), load(bits.products, next, stride, at)));
            next += 1;
        }
        let half = 1 << (above - 1);
        let value = load(bits.values, equality(group, above - 1), stride, at);
        for s in 0..half {
            sum[s] = xor(and(value, sum[s]), sum[s + half]);
        }
    }
    add_to(greater, 0, stride, at, sum[0]);
    if group.equal {
        for i in (0..group.equalities()).rev() {
            let value = load(bits.values, equality(group, i), stride, at);
            for s in 0..1 << i {
                products[s] = xor(and(value, products[s]), products[s + (1 << i)]);
            }
        }
        add_to(equal, 0, stride, at, products[0]);
    }
}
