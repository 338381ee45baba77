//! The sign bit of a shared value.
//!
//! Source: carry of a two-term sum by a tree of generate and propagate bits (Brent and Kung, 1982), whose first step is a
//! cross-term product of bits (see [`cross`](super::cross)): the terms are `x1` at roles 0 and 1 and `x0 + x2` at role 2. The
//! further ones are [`join`](super::join).
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none.
//! Rounds: 1, and 1 for every join; role 2 deals before, and is not waited for. `ombra_ir::settings::rep3::carry` chooses groups
//! and joins by the number of elements: few values take large ones and few rounds.
//! Bits per element: for `g` groups `Σ (2^k − 1)` over groups of `k` bits and `2 (2g − 1)`, those of the joins, and 1 where there
//! is none. Side channels: bit planes throughout; no branch or index on a secret.
//!
//! ```text
//!   A = x1 mod 2^w at roles 0 and 1, B = x0 + x2 mod 2^w at role 2
//!   of a group of bits, carry G and propagate P are sums over its choices S:  α_S(A)·B^S,  B^S = ∧_{i∈S} B_i:
//!     with a further bit i on top,  G' = A_i B_i ⊕ (A_i ⊕ B_i) G  and  P' = (A_i ⊕ B_i) P
//!   dealt: B^S ⊕ F(k_0)_S to role 1 for every S but the empty one;  t2 = F(k_2)', t0 = F(k_0)'
//!   role 1 sends α_∅ ⊕ ⊕ α_S (B^S ⊕ F(k_0)_S) ⊕ t2 to role 0, role 0 sends ⊕ α_S F(k_0)_S ⊕ t0 to role 1
//!   components 0 and 2 of G and P are t0 and t2, and component 1 is the sum of these two
//!   joined to one group:  msb = A_{w−1} ⊕ B_{w−1} ⊕ G, where role 2 adds B_{w−1} in the last join; without one it deals that bit
//! ```
//!
//! Simulator. Role 1 receives what is dealt under masks from `k_0`, which it does not know, one mask for each, and role 0's
//! message under others, `t0`. Role 0 receives a message under `t2`, from `k_2`, which it does not know. Role 2 receives
//! nothing. The joins have their own.

use ombra_ir::settings::rep3::{Carry, LARGEST_GROUP, carry, group_products};
use ombra_ir::{Diagnostic, Result};

use super::cross::two_terms;
use super::join::{deal_planes, joined};
use super::planes::Planes;
use super::{Cx, Purpose};
use crate::backend::bits::{planes_of, words as plane_words};
use crate::settings::rep3::share::{Bits, Shared};

/// The sign of `n` values that fit in `width` bits: 1 where negative. The lowest `drop` bits of both terms are left out,
/// with their carry: values in `[0, 2^drop)` may count as negative, depending on the shares.
pub async fn msb(cx: &Cx, x: &Shared, n: usize, width: u8, drop: u8) -> Result<Bits> {
    msb_of_terms(cx, &two_terms(cx, x, n), (width, drop)).await
}

/// [`msb`] of values of which this role has a term of two.
pub(super) async fn msb_of_terms(cx: &Cx, terms: &[u64], (width, drop): (u8, u8)) -> Result<Bits> {
    if width > 64 || drop >= width {
        return Err(Diagnostic::internal("E0803", format!("sign of a value of {width} bits")));
    }
    msb_by(cx, terms, (width, drop), &carry(terms.len() as u64, width - drop - 1)).await
}

/// [`msb_of_terms`] with the carry of the lower bits made so: its groups have 1 to [`LARGEST_GROUP`] bits each, `width − drop − 1`
/// together.
pub(super) async fn msb_by(cx: &Cx, terms: &[u64], (width, drop): (u8, u8), carry: &Carry) -> Result<Bits> {
    let (groups, n) = (&carry.groups, terms.len());
    debug_assert_eq!(groups.iter().sum::<u8>(), width - drop - 1, "groups hold every bit but the highest");
    let own = planes_of(terms, width, drop);
    let words = plane_words(n);
    let highest = own.get(own.len().saturating_sub(words)..).unwrap_or(&[]);
    let crossed = match cx.role() {
        2 => crossed_single(cx, &own, groups, n)?,
        _ => crossed_joint(cx, &own, groups, n).await?,
    };
    let mut sign = if carry.joins.is_empty() {
        let mut top = deal_planes(cx, highest, (Purpose::MsbTop, 0), 1, n)?;
        if !groups.is_empty() {
            top.xor(&crossed);
        }
        top
    } else {
        joined(cx, crossed, &carry.joins, highest, n).await?
    };
    sign.add_joint(cx, highest);
    Ok(Bits::new(n, sign.a, sign.b))
}

fn product_count(groups: &[u8]) -> usize {
    groups.iter().map(|&bits| group_products(bits) as usize).sum()
}

/// Generate and propagate bits that come of a crossing; the lowest group's propagate bit is not made.
fn result_count(groups: &[u8]) -> usize {
    (2 * groups.len()).saturating_sub(1)
}

/// Role 2 of the crossing: `own` is the planes of B.
fn crossed_single(cx: &Cx, own: &[u64], groups: &[u8], n: usize) -> Result<Planes> {
    let (words, count, results) = (plane_words(n), product_count(groups), result_count(groups));
    let mut products = Vec::with_capacity(count * words);
    let mut bit = 0;
    for &bits in groups {
        let first = products.len();
        for i in 0..usize::from(bits) {
            let plane = own.get((bit + i) * words..(bit + i + 1) * words).unwrap_or(&[]);
            // Choices whose highest bit is `i`: that bit alone, and every choice before it.
            let before = products.len();
            products.extend_from_slice(plane);
            for at in (first..before).step_by(words.max(1)) {
                for (j, b) in plane.iter().enumerate() {
                    products.push(products[at + j] & b);
                }
            }
        }
        bit += usize::from(bits);
    }
    let masks = cx.draw(0, Purpose::MsbFactor, 0, count * words)?;
    products.iter_mut().zip(&masks).for_each(|(p, m)| *p ^= m);
    cx.send_planes(1, &products, count, n);
    let out = |key: u8| cx.draw(key, Purpose::MsbOut, 0, results * words);
    Ok(Planes::new(out(2)?, out(0)?, results, words))
}

/// Roles 0 and 1 of the crossing: `own` is the planes of A.
async fn crossed_joint(cx: &Cx, own: &[u64], groups: &[u8], n: usize) -> Result<Planes> {
    let (role, words, count, results) = (cx.role(), plane_words(n), product_count(groups), result_count(groups));
    let out = cx.draw(2 * role, Purpose::MsbOut, 0, results * words)?;
    let mut joint = out.clone();
    if role == 0 {
        let masks = cx.draw(0, Purpose::MsbFactor, 0, count * words)?;
        add_combined(own, groups, &masks, 0, words, &mut joint);
    } else {
        add_combined(own, groups, &cx.take_planes(2, count, n)?, u64::MAX, words, &mut joint);
    }
    if results == 0 {
        return Ok(Planes::new(joint, out, results, words));
    }
    cx.send_planes(1 - role, &joint, results, n);
    cx.exchange().await;
    joint.iter_mut().zip(cx.take_planes(1 - role, results, n)?).for_each(|(j, other)| *j ^= other);
    Ok(if role == 0 { Planes::new(out, joint, results, words) } else { Planes::new(joint, out, results, words) })
}

/// Adds the groups' `⊕ α_S(A)·X_S` to their generate and propagate bits in `out`, where `X_∅` is `empty` and the others
/// are in `products` in order of `S`. In word `j`, the choices without and with a group's highest bit are folded onto
/// those without it, from the highest bit down: that is the recursion for `G` and `P`.
fn add_combined(own: &[u64], groups: &[u8], products: &[u64], empty: u64, words: usize, out: &mut [u64]) {
    let (mut bit, mut first, mut result) = (0, 0, 0);
    let mut x = [0u64; 1 << LARGEST_GROUP];
    for (g, &bits) in groups.iter().enumerate() {
        let (bits, choices) = (usize::from(bits), 1usize << bits);
        for j in 0..words {
            x[0] = empty;
            for (s, x) in x[1..choices].iter_mut().enumerate() {
                *x = products[(first + s) * words + j];
            }
            let mut generate = 0;
            for i in (0..bits).rev() {
                let (half, a) = (1 << i, own[(bit + i) * words + j]);
                generate ^= a & x[half];
                for s in 0..half {
                    x[s] = a & x[s] ^ x[s + half];
                }
            }
            out[result * words + j] ^= generate;
            if g > 0 {
                out[(result + 1) * words + j] ^= x[0];
            }
        }
        bit += bits;
        first += choices - 1;
        result += if g > 0 { 2 } else { 1 };
    }
}
