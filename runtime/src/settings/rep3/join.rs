//! The and of shared bits, and groups of a carry joined to one.
//!
//! Source: terms of an and after Araki et al., 2016/768, §2; a join of more than two groups is a cross-term product of bits
//! (see [`cross`](super::cross)), since every shared bit is one that roles 0 and 1 know and one that role 2 knows.
//! Parties and adversary: three, one semi-honest corruption. Correlation and error: none. Rounds: 1 for an and, and for every
//! join; role 2 deals before. Bits per element: 3 for an and; of joins see `ombra_ir::settings::rep3::join_bits`.
//! Side channels: bit planes throughout; no branch or index on a secret.
//!
//! ```text
//!   (g1, p1) ∘ (g0, p0) = (g1 ⊕ p1 g0, p1 p0);  the lowest group of all has no p
//!   two at a time, by ands:  x ∧ y: role j has Z_j, its term of the product ⊕ F(k_j) ⊕ F(k_{j+1}); roles 0 and 1 exchange theirs,
//!     whose sum is component 1; role 2 deals Z_2 ⊕ F(k_0)' to role 1
//!   more at a time:  G = g_m ⊕ p_m (g_{m−1} ⊕ p_{m−1} (… ⊕ p_1 g_0)),  P = p_m ⋯ p_1 p_0
//!     with p_j = a_j ⊕ r_j, where role 2 knows r_j:  p_j X_S = a_j X_S ⊕ X_{S∪j} for products X_S = ∧_{j∈S} r_j and those with
//!     the r of g_i or p_0; so G ⊕ g_m and P are sums of products X, each times what roles 0 and 1 know
//!   dealt: X ⊕ F(k_0)_X to role 1 for every product but the empty one;  t2 = F(k_2)', t0 = F(k_0)'
//!   role 1 sends the sums over X ⊕ F(k_0)_X, role 0 those over F(k_0)_X without the empty one, ⊕ t2 and ⊕ t0: component 1 is both
//! ```
//!
//! What role 2 adds to the result of the last join is part of its term of the and, or of the product of all r_j and that of
//! g_0, which nothing is multiplied with.
//!
//! Simulator. Role 1 receives what is dealt under masks from `k_0`, which it does not know, one mask for each, and role 0's
//! messages under others from `k_0`: `t0`, or that of `Z_0`. Role 0 receives messages of role 1 alone, under `t2` or the mask
//! of `Z_1`, from `k_2`, which it does not know. Role 2 receives nothing.

use ombra_ir::Result;
use ombra_ir::settings::rep3::{LARGEST_JOIN, join_bits};

use super::planes::{Planes, two_planes};
use super::{Cx, Purpose};
use crate::backend::bits::words as plane_words;
use crate::settings::rep3::share::Bits;

/// Choices of the propagate bits of a join.
const CHOICES: usize = 1 << (LARGEST_JOIN - 1);

/// The and of `n` shared bits.
pub async fn and(cx: &Cx, x: &Bits, y: &Bits) -> Result<Bits> {
    let words = plane_words(x.n);
    let x_planes = Planes::new(x.a.to_vec(), x.b.to_vec(), 1, words);
    let y_planes = Planes::new(y.a.to_vec(), y.b.to_vec(), 1, words);
    let z = and_planes(cx, &x_planes, &y_planes, &[], x.n, 0).await?;
    Ok(Bits::new(x.n, z.a, z.b))
}

/// The carry out of the highest group of `crossed`, which holds generate and propagate bits of `n` sums, and in role 2's
/// term `highest` more. `joins` says how many neighbours are joined in every round.
pub(super) async fn joined(cx: &Cx, crossed: Planes, joins: &[u8], highest: &[u64], n: usize) -> Result<Planes> {
    let (mut g, mut p) = split(crossed);
    for (level, &join) in (0u8..).zip(joins) {
        let more = if usize::from(level) + 1 == joins.len() { highest } else { &[] };
        (g, p) = match join {
            2 => join_pairs(cx, &g, &p, more, n, level).await?,
            _ => join_many(cx, &g, &p, usize::from(join), more, n, level).await?,
        };
    }
    Ok(g)
}

/// Generate and propagate bits from the results of a crossing: one plane for the lowest group, then two for each.
fn split(results: Planes) -> (Planes, Planes) {
    let (count, words) = (results.count(), results.words());
    let mut propagate = Planes::new(vec![0; words], vec![0; words], 1, words);
    propagate.append(results.pick((2..count).step_by(2)));
    let generate = results.pick((0..count.min(1)).chain((1..count).step_by(2)));
    (generate, propagate)
}

/// Neighbours joined by ands; an odd highest group moves up.
async fn join_pairs(cx: &Cx, g: &Planes, p: &Planes, more: &[u64], n: usize, level: u8) -> Result<(Planes, Planes)> {
    let (groups, pairs) = (g.count(), g.count() / 2);
    let high = (0..pairs).map(|q| 2 * q + 1);
    let mut x = p.pick(high.clone());
    x.append(p.pick(high.skip(1)));
    let mut y = g.pick((0..pairs).map(|q| 2 * q));
    y.append(p.pick((1..pairs).map(|q| 2 * q)));
    let mut products = and_planes(cx, &x, &y, more, n, level).await?;

    let mut next_p = Planes::new(vec![0; p.words()], vec![0; p.words()], 1, p.words());
    next_p.append(products.split_off(pairs));
    let mut next_g = g.pick((0..pairs).map(|q| 2 * q + 1));
    next_g.xor(&products);
    if groups % 2 == 1 {
        next_g.append(g.pick(std::iter::once(groups - 1)));
        next_p.append(p.pick(std::iter::once(groups - 1)));
    }
    Ok((next_g, next_p))
}

/// Neighbours of one join, of groups from `first` on; `count` of them.
struct Chunk {
    first: usize,
    count: usize,
}

impl Chunk {
    fn lowest(&self) -> bool {
        self.first == 0
    }

    /// The choices of its propagate bits but the lowest group's.
    fn choices(&self) -> usize {
        1 << (self.count - 1)
    }

    fn dealt(&self, join: usize) -> usize {
        join_bits(join as u8, self.count as u8, self.lowest()).dealt as usize
    }
}

/// `join` neighbours at a time joined by one crossing.
async fn join_many(
    cx: &Cx,
    g: &Planes,
    p: &Planes,
    join: usize,
    more: &[u64],
    n: usize,
    level: u8,
) -> Result<(Planes, Planes)> {
    let (words, role) = (g.words(), cx.role());
    let chunks: Vec<Chunk> =
        (0..g.count()).step_by(join).map(|first| Chunk { first, count: join.min(g.count() - first) }).collect();
    let crossing: Vec<&Chunk> = chunks.iter().filter(|chunk| chunk.count > 1).collect();
    let dealt: usize = crossing.iter().map(|chunk| chunk.dealt(join)).sum();
    let results: usize = crossing.iter().map(|chunk| 1 + usize::from(!chunk.lowest())).sum();
    let masks = || cx.draw(0, Purpose::JoinFactor, level, dealt * words);
    let out = |key: u8| cx.draw(key, Purpose::JoinOut, level, results * words);
    let own = [g, p].map(|planes| two_planes(cx, &planes.a, &planes.b));
    let crossed = if role == 2 {
        let mut products = masks()?;
        let mut at = 0;
        for chunk in &crossing {
            let end = at + chunk.dealt(join) * words;
            add_products(&own, chunk, words, if chunk.lowest() { more } else { &[] }, &mut products[at..end]);
            at = end;
        }
        cx.send_planes(1, &products, dealt, n);
        Planes::new(out(2)?, out(0)?, results, words)
    } else {
        let products = if role == 0 { masks()? } else { cx.take_planes(2, dealt, n)? };
        let empty = if role == 0 { 0 } else { u64::MAX };
        let own_out = out(2 * role)?;
        let mut joint = own_out.clone();
        let (mut at, mut result) = (0, 0);
        for chunk in &crossing {
            let end = at + chunk.dealt(join) * words;
            let until = result + words * (1 + usize::from(!chunk.lowest()));
            add_joined(&own, chunk, words, &products[at..end], empty, &mut joint[result..until]);
            (at, result) = (end, until);
        }
        cx.send_planes(1 - role, &joint, results, n);
        cx.exchange().await;
        joint.iter_mut().zip(cx.take_planes(1 - role, results, n)?).for_each(|(j, other)| *j ^= other);
        if role == 0 {
            Planes::new(own_out, joint, results, words)
        } else {
            Planes::new(joint, own_out, results, words)
        }
    };
    // A chunk's highest generate bit is added as it is; a group alone moves up.
    let (mut next_g, mut next_p) = (g.pick(0..0), p.pick(0..0));
    let mut result = 0;
    for chunk in &chunks {
        let mut top = g.pick(std::iter::once(chunk.first + chunk.count - 1));
        let propagate = if chunk.count == 1 {
            p.pick(std::iter::once(chunk.first))
        } else {
            top.xor(&crossed.pick(std::iter::once(result)));
            result += 1;
            if chunk.lowest() {
                Planes::new(vec![0; words], vec![0; words], 1, words)
            } else {
                result += 1;
                crossed.pick(std::iter::once(result - 1))
            }
        };
        next_g.append(top);
        next_p.append(propagate);
    }
    Ok((next_g, next_p))
}

/// Adds a chunk's products of role 2's bits to `out`, which has a plane for each: those of its propagate bits but the lowest
/// group's, of every choice but the empty one; then every lower generate bit with every choice of the propagate bits above
/// it; then, but in the lowest chunk, the lowest propagate bit with every choice. `more` is added to the product of all bits
/// of the lowest generate bit.
fn add_products(own: &[Vec<u64>; 2], chunk: &Chunk, words: usize, more: &[u64], out: &mut [u64]) {
    let [g, p] = own;
    let (m, choices) = (chunk.count, chunk.choices());
    let mut of = [0u64; CHOICES];
    for j in 0..words {
        let bit = |planes: &[u64], i: usize| planes[(chunk.first + i) * words + j];
        of[0] = u64::MAX;
        for i in 1..m {
            let half = 1 << (i - 1);
            for s in 0..half {
                of[half + s] = of[s] & bit(p, i);
            }
        }
        let mut at = 0;
        let mut put = |word: u64| {
            out[at * words + j] ^= word;
            at += 1;
        };
        of[1..choices].iter().for_each(|x| put(*x));
        for i in 0..m - 1 {
            for s in 0..choices >> i {
                let last = i == 0 && s == choices - 1;
                put(of[s << i] & bit(g, i) ^ if last { more.get(j).copied().unwrap_or(0) } else { 0 });
            }
        }
        if !chunk.lowest() {
            of[..choices].iter().for_each(|x| put(*x & bit(p, 0)));
        }
    }
}

/// Adds a chunk's generate bit without its highest one's, and but in the lowest chunk its propagate bit, to `out`: from the
/// bits `own` of roles 0 and 1 and from `products`, in which the empty one is `empty`. From the lowest bit up, what is
/// multiplied with choices without a propagate bit and with it is folded onto the choices of those above.
fn add_joined(own: &[Vec<u64>; 2], chunk: &Chunk, words: usize, products: &[u64], empty: u64, out: &mut [u64]) {
    let [g, p] = own;
    let (m, choices) = (chunk.count, chunk.choices());
    let (mut of, mut z) = ([0u64; CHOICES], [0u64; CHOICES]);
    for j in 0..words {
        let bit = |planes: &[u64], i: usize| planes[(chunk.first + i) * words + j];
        let product = |at: usize| products[at * words + j];
        of[0] = empty;
        (1..choices).for_each(|s| of[s] = product(s - 1));
        let mut at = choices - 1;
        z.fill(0);
        for i in 0..m {
            if i > 0 {
                fold(&mut z, bit(p, i), choices >> i);
            }
            if i + 1 < m {
                for s in 0..choices >> i {
                    z[s] ^= of[s << i] & bit(g, i) ^ product(at + s);
                }
                at += choices >> i;
            }
        }
        out[j] ^= z[0];
        if !chunk.lowest() {
            for s in 0..choices {
                z[s] = of[s] & bit(p, 0) ^ product(at + s);
            }
            (1..m).for_each(|i| fold(&mut z, bit(p, i), choices >> i));
            out[words + j] ^= z[0];
        }
    }
}

/// Folds `2 · half` choices onto those without the lowest bit, of which roles 0 and 1 know `a`.
fn fold(z: &mut [u64; CHOICES], a: u64, half: usize) {
    for s in 0..half {
        z[s] = a & z[2 * s] ^ z[2 * s + 1];
    }
}

/// Plane by plane `x ∧ y`, and in the first planes `more` of role 2; `part` tells the calls of one op level apart.
async fn and_planes(cx: &Cx, x: &Planes, y: &Planes, more: &[u64], n: usize, part: u8) -> Result<Planes> {
    let and = And::begin(cx, x, y, more, n, part)?;
    if cx.role() != 2 {
        cx.exchange().await;
    }
    and.end(cx)
}

/// An and of planes whose messages are sent: after the exchange, [`And::end`] gives the result.
pub(super) struct And {
    /// This role's term.
    term: Vec<u64>,
    count: usize,
    n: usize,
    part: u8,
}

impl And {
    /// Sends the messages of `x ∧ y`, planes of `n` bits.
    pub(super) fn begin(cx: &Cx, x: &Planes, y: &Planes, more: &[u64], n: usize, part: u8) -> Result<And> {
        let terms = x.a.iter().zip(&x.b).zip(y.a.iter().zip(&y.b));
        let mut term: Vec<u64> = terms.map(|((xa, xb), (ya, yb))| xa & (ya ^ yb) ^ xb & ya).collect();
        cx.xor_zero_share(Purpose::And, part, &mut term);
        match cx.role() {
            2 => term.iter_mut().zip(more).for_each(|(z, more)| *z ^= more),
            role => cx.send_planes(1 - role, &term, x.count(), n),
        }
        Ok(And { term, count: x.count(), n, part })
    }

    /// The result, after the exchange.
    pub(super) fn end(self, cx: &Cx) -> Result<Planes> {
        let And { mut term, count, n, part } = self;
        if cx.role() == 2 {
            return deal_planes(cx, &term, (Purpose::AndDeal, part), count, n);
        }
        term.iter_mut().zip(cx.take_planes(1 - cx.role(), count, n)?).for_each(|(z, other)| *z ^= other);
        let mut known = deal_planes(cx, &[], (Purpose::AndDeal, part), count, n)?;
        known.add_joint(cx, &term);
        Ok(known)
    }
}

/// Deals `count` planes of `n` bits that role 2 knows, in components 0 and 2, of which the first is for a purpose and part.
pub(super) fn deal_planes(
    cx: &Cx,
    value: &[u64],
    (purpose, part): (Purpose, u8),
    count: usize,
    n: usize,
) -> Result<Planes> {
    let words = plane_words(n);
    let zeroth = || cx.draw(0, purpose, part, count * words);
    let none = vec![0; count * words];
    let (a, b) = match cx.role() {
        0 => (zeroth()?, none),
        1 => (none, cx.take_planes(2, count, n)?),
        _ => {
            let zeroth = zeroth()?;
            let second: Vec<u64> = value.iter().zip(&zeroth).map(|(v, z)| v ^ z).collect();
            cx.send_planes(1, &second, count, n);
            (second, zeroth)
        }
    };
    Ok(Planes::new(a, b, count, words))
}
