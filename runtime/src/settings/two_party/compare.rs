//! Signs of shared values.
//!
//! Source: comparison of two private numbers by leaves and a tree (Garay, Schoenmakers and Villegas, 2007), with leaves of 4
//! bits by 1-of-16 transfers, as in CrypTFlow2 (2020/1002). Parties and adversary: client and server, one semi-honest
//! corruption. Correlations: transfers, made in the first round. Error: none; where `drop` low bits are left out, values in
//! `[0, 2^drop)` may count as negative.
//! Rounds: 2, and one a level of the tree. Bits per element of width `w`, with `c = ⌈(w − 1)/4⌉` leaves: `16(w − 1)` from the
//! client for choices, 32 for each leaf of 4 bits from the server; `15(c − 1)` each way for triples, and 3 for each pair of a
//! level but 1 less at every level.
//!
//! ```text
//!   x = x^0 + x^1 mod 2^w: the sign is msb(x^0) ⊕ msb(x^1) ⊕ carry, the carry of the low w − 1 bits
//!   carry = 1{a > y}, a the low bits of x^0, y = 2^(w−1) − 1 − (low bits of x^1), which is their complement
//!   leaf    the client chooses with 4 bits a_i of a the entry (1{a_i > y_i}, 1{a_i = y_i}) under random bits of the server
//!   tree    (g, e) above (g', e'):  g ⊕ e·g', e·e';  both products have the factor e
//! ```
//!
//! Simulator. The client's choices and all that is opened is uniform; entries are under random bits of the server.

use ombra_ir::settings::two_party::{joined, leaves, opened};
use ombra_ir::{Diagnostic, Result};

use super::Purpose;
use super::bits::{Planes, begin_triples};
use super::pair::Pair;
use crate::backend::bits::{from_planes, planes_of, to_planes, words, xor_assign};
use crate::ot::pads::{Decided, Settled, table_bytes};
use crate::settings::dealer::share::BitShare;
use crate::wiped::Zeroizing;

/// Whether what lies in a group of bits is greater, and whether it is equal.
struct Group {
    greater: Planes,
    equal: Planes,
}

/// 1 where a value of `n` shares `x` is negative: the sign of its lowest `width` bits, of which `drop` are not looked at.
pub async fn msb(pair: &Pair, x: &[u64], n: usize, (width, drop): (u8, u8)) -> Result<BitShare> {
    if width <= drop || width > 64 {
        return Err(Diagnostic::internal("E0803", "a comparison's width is out of range"));
    }
    let stride = words(n);
    let mut planes = Zeroizing::new(planes_of(x, width, drop));
    let mut sign = Zeroizing::new(planes.split_off(stride * usize::from(width - drop - 1)));
    let leaves = leaves(width - drop - 1);
    if leaves.is_empty() {
        return Ok(BitShare::of(n, std::mem::take(&mut *sign)));
    }
    // Each leaf's planes.
    let mut parts = Vec::new();
    let mut rest = &planes[..];
    for bits in &leaves {
        let (own, after) = rest.split_at(stride * usize::from(*bits));
        parts.push(own);
        rest = after;
    }
    let mut decided = Vec::new();
    if pair.is_client() {
        for (part, planes) in (0u8..).zip(&parts) {
            decided.push(pair.choose(Purpose::Leaf, part, planes)?);
        }
    }
    let begun = begin_triples(pair, (leaves.len() - 1) * stride)?;
    pair.round().await;
    let mut groups = Vec::new();
    if !pair.is_client() {
        for (part, (bits, planes)) in (0u8..).zip(leaves.iter().zip(&parts)) {
            let settled = pair.offer(Purpose::Leaf, part, usize::from(*bits), n)?;
            groups.push(offer_leaf(pair, part, settled, (*bits, n), planes)?);
        }
    }
    let triples = begun.end::<2>(pair)?;
    pair.round().await;
    for (bits, decided) in leaves.iter().zip(decided) {
        groups.push(take_leaf(pair, decided, (*bits, n))?);
    }
    let mut at = 0;
    for pairs in joined(leaves.len()) {
        let begin = at;
        let mut sent = Vec::with_capacity(opened(pairs));
        for (i, two) in groups.chunks_exact(2).enumerate() {
            let [low, high] = two else { continue };
            // Nobody asks whether the lowest group is equal.
            let factors = [&low.greater[..], &low.equal[..]];
            sent.push(triples.masked(at, &high.equal, &factors[..if i == 0 { 1 } else { 2 }]));
            at += stride;
        }
        sent.iter().flatten().for_each(|plane| pair.cx().send_planes(pair.peer(), plane, 1, n));
        pair.round().await;
        for plane in sent.iter_mut().flatten() {
            xor_assign(plane, &pair.cx().take_planes(pair.peer(), 1, n)?);
        }
        let mut next = Vec::with_capacity(groups.len().div_ceil(2));
        let mut left = std::mem::take(&mut groups).into_iter();
        for (i, opened) in sent.iter().enumerate() {
            let (Some(_), Some(high)) = (left.next(), left.next()) else { break };
            let mut products = triples.products(begin + i * stride, opened, pair.is_client()).into_iter();
            let mut greater = high.greater;
            if let Some(product) = products.next() {
                xor_assign(&mut greater, &product);
            }
            next.push(Group { greater, equal: products.next().unwrap_or_default() });
        }
        next.extend(left);
        groups = next;
    }
    if let Some(carry) = groups.first() {
        xor_assign(&mut sign, &carry.greater);
    }
    Ok(BitShare::of(n, std::mem::take(&mut *sign)))
}

/// The server's leaf: tables for `n` elements of `bits` bits, and its random bits.
fn offer_leaf(pair: &Pair, part: u8, settled: Settled, (bits, n): (u8, usize), planes: &[u64]) -> Result<Group> {
    let stride = words(n);
    let mut own = Zeroizing::new(pair.cx().draw_private(Purpose::Leaf, part, 2 * stride));
    let equal = Zeroizing::new(own.split_off(stride));
    let group = Group { greater: own, equal };
    let mut tables = Zeroizing::new(vec![0u64; n]);
    let mut bit = Zeroizing::new(vec![0u64; n]);
    for (place, plane) in planes.chunks_exact(stride.max(1)).enumerate() {
        from_planes(plane, &mut bit);
        // The number whose complement is the share's.
        tables.iter_mut().zip(bit.iter()).for_each(|(y, bit)| *y |= (bit ^ 1) << place);
    }
    for table in tables.iter_mut() {
        let y = *table;
        *table = (LOW << (2 * y + 2) | 1 << (2 * y + 1)) & u64::from(u32::MAX);
    }
    for (plane, place) in [(&group.greater, 0), (&group.equal, 1)] {
        from_planes(plane, &mut bit);
        tables.iter_mut().zip(bit.iter()).for_each(|(table, bit)| *table ^= (bit.wrapping_neg() & LOW) << place);
    }
    let tables: Zeroizing<Vec<u64>> = tables;
    let mut message = Vec::new();
    match bits {
        1 => settled.tables::<1>(&tables, &mut message),
        2 => settled.tables::<2>(&tables, &mut message),
        3 => settled.tables::<3>(&tables, &mut message),
        _ => settled.tables::<4>(&tables, &mut message),
    }?;
    pair.answer(&message);
    Ok(group)
}

/// The lower bit of all 16 entries of a leaf.
const LOW: u64 = 0x5555_5555;

/// The client's leaf.
fn take_leaf(pair: &Pair, decided: Decided, (bits, n): (u8, usize)) -> Result<Group> {
    let entries = pair.answered(n * table_bytes(bits.into()), |message| match bits {
        1 => decided.tables::<1>(n, message),
        2 => decided.tables::<2>(n, message),
        3 => decided.tables::<3>(n, message),
        _ => decided.tables::<4>(n, message),
    })?;
    let mut planes = Zeroizing::new(vec![0; 2 * words(n)]);
    to_planes(&entries, 2, &mut planes);
    let equal = Zeroizing::new(planes.split_off(words(n)));
    Ok(Group { greater: planes, equal })
}
