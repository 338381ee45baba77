//! The sign bit of a shared value, and the and of shared bits.
//!
//! Source: and after Araki et al., 2016/768, §2; carry of a two-term sum by a tree of generate and propagate bits
//! (Brent and Kung, 1982), whose first step is a cross-term product of bits (see [`cross`](super::cross)): the terms are `x1` at
//! roles 0 and 1 and `x0 + x2` at role 2.
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none.
//! Rounds: `⌈log2 g⌉ + 1` for `g` groups of the `w − 1` lower bits, 1 for `and`. `ombra_ir::settings::rep3::carry_groups` chooses
//! the groups by their number: few values take large groups and few rounds.
//! Bits per element: `4g − 1 + 2 Σ (2^k − 1)` over groups of `k` bits, and 3 for each and of the tree; 3 for `and`.
//! Side channels: bit planes throughout; no branch or index on a secret.
//!
//! ```text
//!   A = x1 mod 2^w at roles 0 and 1, B = x0 + x2 mod 2^w at role 2
//!   of a group of bits, carry G and propagate P are sums over its choices S:  α_S(A)·B^S,  B^S = ∧_{i∈S} B_i:
//!     with a further bit i on top,  G' = A_i B_i ⊕ (A_i ⊕ B_i) G  and  P' = (A_i ⊕ B_i) P
//!   role 2 sends B^S ⊕ F(k_2)_S to role 0, B^S ⊕ F(k_0)_S to role 1 for every S but the empty one
//!   roles 1 and 0 send each other ⊕ α_S F(k_2)_S ⊕ t2 and ⊕ α_S F(k_0)_S ⊕ t0, with t2 = F(k_2)', t0 = F(k_0)'
//!   components 0 and 2 of G and P are t0 and t2; the rest, component 1, is known to roles 0 and 1 as in every cross-term product
//!   (g1, p1) ∘ (g0, p0) = (g1 ⊕ p1 g0, p1 p0) over the groups;  msb = A_{w−1} ⊕ B_{w−1} ⊕ G, where role 2 deals B_{w−1}
//! ```
//!
//! Simulator. Role 0 receives messages under masks from `k_2`, which it does not know, one mask for each: all are
//! uniform. Role 1 likewise with `k_0`, and what is dealt under `F(k_0)''`. Role 2 receives nothing. An and's message
//! from role `j` to role `j − 1` is under a mask from `k_{j+1}`, which the receiver does not know.

use ombra_ir::settings::rep3::{LARGEST_GROUP, carry_groups, group_products};
use ombra_ir::{Diagnostic, Result};

use super::cross::two_terms;
use super::planes::Planes;
use super::{Cx, Purpose};
use crate::backend::bits::{planes_of, words as plane_words};
use crate::settings::rep3::share::{Bits, Shared};

/// The sign of `n` values that fit in `width` bits: 1 where negative. The lowest `drop` bits of both terms are left out,
/// with their carry: values in `[0, 2^drop)` may count as negative, depending on the shares.
pub async fn msb(cx: &Cx, x: &Shared, n: usize, width: u8, drop: u8) -> Result<Bits> {
    if width > 64 || drop >= width {
        return Err(Diagnostic::internal("E0803", format!("sign of a value of {width} bits")));
    }
    msb_of_groups(cx, x, n, (width, drop), &carry_groups(n as u64, width - drop - 1)).await
}

/// [`msb`] with the carry of the lower bits by the given groups, lowest first: of 1 to [`LARGEST_GROUP`] bits each,
/// `width − drop − 1` together.
pub(super) async fn msb_of_groups(
    cx: &Cx,
    x: &Shared,
    n: usize,
    (width, drop): (u8, u8),
    groups: &[u8],
) -> Result<Bits> {
    debug_assert_eq!(groups.iter().sum::<u8>(), width - drop - 1, "groups hold every bit but the highest");
    let own = planes_of(&two_terms(cx, x, n), width, drop);
    let (mut top, generate, propagate) = match cx.role() {
        2 => crossed_single(cx, &own, groups, n)?,
        _ => crossed_joint(cx, &own, groups, n).await?,
    };
    if cx.role() == 2 {
        cx.round().await;
    }
    if !groups.is_empty() {
        top.xor(&carry(cx, generate, propagate, n).await?);
    }
    Ok(Bits::new(n, top.a, top.b))
}

/// The and of `n` shared bits.
pub async fn and(cx: &Cx, x: &Bits, y: &Bits) -> Result<Bits> {
    let words = plane_words(x.n);
    let x_planes = Planes::new(x.a.to_vec(), x.b.to_vec(), 1, words);
    let y_planes = Planes::new(y.a.to_vec(), y.b.to_vec(), 1, words);
    let z = and_planes(cx, &x_planes, &y_planes, x.n, 0).await?;
    Ok(Bits::new(x.n, z.a, z.b))
}

/// Sharings of the highest bit of A ⊕ B, and of the groups' generate and propagate bits; the lowest group's propagate
/// bit is not made.
type Crossed = (Planes, Planes, Planes);

/// Masks of `count` products, and of `2g − 1` results.
fn masks(cx: &Cx, key: u8, count: usize, groups: &[u8], words: usize) -> Result<(Vec<u64>, Vec<u64>)> {
    let results = (2 * groups.len()).saturating_sub(1);
    Ok((cx.draw(key, Purpose::MsbFactor, 0, count * words)?, cx.draw(key, Purpose::MsbOut, 0, results * words)?))
}

fn product_count(groups: &[u8]) -> usize {
    groups.iter().map(|&bits| group_products(bits) as usize).sum()
}

/// Role 2: `own` is the planes of B.
fn crossed_single(cx: &Cx, own: &[u64], groups: &[u8], n: usize) -> Result<Crossed> {
    let (words, count) = (plane_words(n), product_count(groups));
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
    let (masks_2, out_2) = masks(cx, 2, count, groups, words)?;
    let (masks_0, out_0) = masks(cx, 0, count, groups, words)?;
    let masked = |masks: Vec<u64>| -> Vec<u64> { masks.iter().zip(&products).map(|(m, p)| m ^ p).collect() };
    cx.send_planes(0, &masked(masks_2), count, n);
    cx.send_planes(1, &masked(masks_0), count, n);
    let zeroth = cx.draw(0, Purpose::MsbTop, 0, words)?;
    let top: Vec<u64> = own.iter().skip(bit * words).zip(&zeroth).map(|(b, z)| b ^ z).collect();
    cx.send_planes(1, &top, 1, n);
    let (generate, propagate) = split(Planes::new(out_2, out_0, (2 * groups.len()).saturating_sub(1), words));
    Ok((Planes::new(top, zeroth, 1, words), generate, propagate))
}

/// Roles 0 and 1: `own` is the planes of A.
async fn crossed_joint(cx: &Cx, own: &[u64], groups: &[u8], n: usize) -> Result<Crossed> {
    let (role, words, count) = (cx.role(), plane_words(n), product_count(groups));
    let results = (2 * groups.len()).saturating_sub(1);
    let (peer, key) = (1 - role, 2 * role);
    let (masks, out) = masks(cx, key, count, groups, words)?;
    let mut correction = out.clone();
    add_combined(own, groups, &masks, 0, words, &mut correction);
    cx.send_planes(peer, &correction, results, n);
    cx.round().await;

    let products = cx.take_planes(2, count, n)?;
    let mut joint = cx.take_planes(peer, results, n)?;
    add_combined(own, groups, &products, u64::MAX, words, &mut joint);
    joint.iter_mut().zip(&out).for_each(|(j, t)| *j ^= t);
    let highest = own.get(own.len().saturating_sub(words)..).unwrap_or(&[]).to_vec();
    let (crossed, top) = if role == 0 {
        let zeroth = cx.draw(0, Purpose::MsbTop, 0, words)?;
        (Planes::new(out, joint, results, words), Planes::new(zeroth, highest, 1, words))
    } else {
        let second = cx.take_planes(2, 1, n)?;
        (Planes::new(joint, out, results, words), Planes::new(highest, second, 1, words))
    };
    let (generate, propagate) = split(crossed);
    Ok((top, generate, propagate))
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

/// Generate and propagate bits from the results of a crossing: one plane for the lowest group, then two for each.
fn split(results: Planes) -> (Planes, Planes) {
    let (count, words) = (results.count(), results.words());
    let mut propagate = Planes::new(vec![0; words], vec![0; words], 1, words);
    propagate.append(results.pick((2..count).step_by(2)));
    let generate = results.pick((0..count.min(1)).chain((1..count).step_by(2)));
    (generate, propagate)
}

/// The carry out of the highest plane: a tree that joins neighbours; an odd highest group moves up. The lowest group
/// of a level needs no propagate bit, because nothing is carried into it.
async fn carry(cx: &Cx, mut g: Planes, mut p: Planes, n: usize) -> Result<Planes> {
    let mut level = 0;
    while g.count() > 1 {
        let groups = g.count();
        let pairs = groups / 2;
        let high = (0..pairs).map(|q| 2 * q + 1);
        let mut x = p.pick(high.clone());
        x.append(p.pick(high.skip(1)));
        let mut y = g.pick((0..pairs).map(|q| 2 * q));
        y.append(p.pick((1..pairs).map(|q| 2 * q)));
        let mut products = and_planes(cx, &x, &y, n, level).await?;

        let mut next_p = Planes::new(vec![0; p.words()], vec![0; p.words()], 1, p.words());
        next_p.append(products.split_off(pairs));
        let mut next_g = g.pick((0..pairs).map(|q| 2 * q + 1));
        next_g.xor(&products);
        if groups % 2 == 1 {
            next_g.append(g.pick(std::iter::once(groups - 1)));
            next_p.append(p.pick(std::iter::once(groups - 1)));
        }
        (g, p) = (next_g, next_p);
        level += 1;
    }
    Ok(g)
}

/// Plane by plane `x ∧ y`; `part` tells the calls of one op level apart.
async fn and_planes(cx: &Cx, x: &Planes, y: &Planes, n: usize, part: u8) -> Result<Planes> {
    let terms = x.a.iter().zip(&x.b).zip(y.a.iter().zip(&y.b));
    let mut z: Vec<u64> = terms.map(|((xa, xb), (ya, yb))| xa & (ya ^ yb) ^ xb & ya).collect();
    cx.xor_zero_share(Purpose::And, part, &mut z);
    let role = cx.role();
    cx.send_planes((role + 2) % 3, &z, x.count(), n);
    cx.round().await;
    let next = cx.take_planes((role + 1) % 3, x.count(), n)?;
    Ok(Planes::new(z, next, x.count(), x.words()))
}
