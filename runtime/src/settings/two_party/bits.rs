//! The and of shared bits, shared bits as ring elements, and a ring element where a bit is 1.
//!
//! Sources: products of masked bits (Beaver, 1991) with products of random bits from oblivious transfers, two of which serve
//! any number of products with a common factor; correlated transfers (2013/552) for ring elements.
//! Parties and adversary: client and server, one semi-honest corruption. Correlations: random transfers, made in the first
//! round. Error: none. Rounds: 2. Bits per element, beside 15 for every transfer, from who chooses:
//!
//! | | transfers | client to server | server to client |
//! |---|---|---|---|
//! | and | 1 each way | 2 | 2 |
//! | bit to ring of `ℓ` | 1, the client chooses | 1 | `ℓ` |
//! | select | 1 each way | 1 + `ℓ` | 1 + `ℓ` |
//!
//! ```text
//!   triple  a = a^0 ⊕ a^1 the choices of both directions, b_j = b_j^0 ⊕ b_j^1 the differences of their pads:
//!           a·b_j = a^0 b_j^0 ⊕ a^1 b_j^1 ⊕ a^0 b_j^1 ⊕ a^1 b_j^0, and the last two are shared by the transfers
//!   and     d = x ⊕ a, e_j = y_j ⊕ b_j opened;  x y_j = d e_j ⊕ d b_j ⊕ e_j a ⊕ a b_j
//!   ring    b = b^0 + b^1 − 2 b^0 b^1
//!   select  b·x^0 = b^0 x^0 + b^1 (1 − 2b^0) x^0, the product at a transfer that the server chooses with b^1;  b·x^1 alike
//! ```
//!
//! Simulator. What a chooser sends is uniform; answers are under pads that their receiver has not; `d` and `e` are under
//! random bits of the peer. Side channels: no branch or index on a secret.

use ombra_ir::Result;

use super::pair::Pair;
use super::{Purpose, mismatch};
use crate::backend::bits::{and_xor_assign, from_planes, words, xor_assign};
use crate::ot::pads::{Decided, times_bytes};
use crate::settings::dealer::share::{BitShare, Share};
use crate::wiped::Zeroizing;

/// Planes of bits, wiped when they are dropped.
pub(super) type Planes = Zeroizing<Vec<u64>>;

/// Random products `a·b_1 … a·b_C` of `64·count` bits each, at one party.
pub(super) struct Triples<const C: usize> {
    count: usize,
    a: Planes,
    b: Planes,
    product: Planes,
}

/// [`Triples`] before their round.
pub(super) struct Begun {
    decided: Decided,
    count: usize,
}

/// Begins `64·count` triples: sends what the peer needs.
pub(super) fn begin_triples(pair: &Pair, count: usize) -> Result<Begun> {
    Ok(Begun { decided: pair.choose_any(Purpose::Triples, 0, count)?, count })
}

impl Begun {
    /// The triples, after the round.
    pub(super) fn end<const C: usize>(self, pair: &Pair) -> Result<Triples<C>> {
        let Begun { decided, count } = self;
        let [b, of_peer] = pair.offer_any(Purpose::Triples, 0, count)?.triples::<C>(64 * count)?;
        let [a, mut product] = decided.triples::<C>(64 * count)?;
        xor_assign(&mut product, &of_peer);
        for (product, b) in product.chunks_exact_mut(count.max(1)).zip(b.chunks_exact(count.max(1))) {
            and_xor_assign(product, &a, b);
        }
        Ok(Triples { count, a, b, product })
    }
}

impl<const C: usize> Triples<C> {
    /// What this party opens of factors `x` and `y_1 …` of as many words from `at` on, a plane each.
    pub(super) fn masked(&self, at: usize, x: &[u64], ys: &[&[u64]]) -> Vec<Vec<u64>> {
        let under = |plane: &[u64], mask: &[u64]| plane.iter().zip(&mask[at..]).map(|(x, m)| x ^ m).collect();
        let b = self.b.chunks_exact(self.count.max(1));
        std::iter::once(under(x, &self.a)).chain(ys.iter().zip(b).map(|(y, b)| under(y, b))).collect()
    }

    /// Shares of the products, from what was opened.
    pub(super) fn products(&self, at: usize, opened: &[Vec<u64>], is_client: bool) -> Vec<Planes> {
        let Some((d, es)) = opened.split_first() else { return Vec::new() };
        let (end, count) = (at + d.len(), self.count.max(1));
        let parts = self.b.chunks_exact(count).zip(self.product.chunks_exact(count));
        let product = |(e, (b, product)): (&Vec<u64>, (&[u64], &[u64]))| {
            let mut z = Zeroizing::new(product[at..end].to_vec());
            and_xor_assign(&mut z, d, &b[at..end]);
            and_xor_assign(&mut z, e, &self.a[at..end]);
            if is_client {
                and_xor_assign(&mut z, d, e);
            }
            z
        };
        es.iter().zip(parts).map(product).collect()
    }
}

/// The and of shared bits.
pub async fn and(pair: &Pair, x: &BitShare, y: &BitShare) -> Result<BitShare> {
    let (n, stride) = (x.n, words(x.n));
    let (x, y) = (plane(x, n)?, plane(y, n)?);
    let begun = begin_triples(pair, stride)?;
    pair.round().await;
    let triples = begun.end::<1>(pair)?;
    let mut opened = triples.masked(0, x, &[y]);
    opened.iter().for_each(|plane| pair.cx().send_planes(pair.peer(), plane, 1, n));
    pair.round().await;
    for plane in &mut opened {
        xor_assign(plane, &pair.cx().take_planes(pair.peer(), 1, n)?);
    }
    let products = triples.products(0, &opened, pair.is_client());
    Ok(BitShare::of(n, products.first().map_or_else(Vec::new, |product| product.to_vec())))
}

/// The plane of `n` bits.
pub(super) fn plane(x: &BitShare, n: usize) -> Result<&[u64]> {
    let plane = x.own()?;
    if plane.len() == words(n) { Ok(plane) } else { Err(mismatch("bits of two sizes")) }
}

/// The bits in a ring of `bits`, with scale 0.
pub async fn bit_to_ring(pair: &Pair, x: &BitShare, bits: u8) -> Result<Share> {
    let begun = begin_conversion(pair, x)?;
    pair.round().await;
    let half = answer_conversion(pair, begun, x, bits)?;
    pair.round().await;
    end_conversion(pair, half, x, bits)
}

/// The first message of a conversion: the client's choices.
pub(super) fn begin_conversion(pair: &Pair, x: &BitShare) -> Result<Option<Decided>> {
    pair.is_client().then(|| pair.choose(Purpose::Convert, 0, plane(x, x.n)?)).transpose()
}

/// A conversion between its rounds.
pub(super) enum Half {
    /// The client awaits the answer.
    Chosen(Decided),
    /// The server has its share of the product.
    Share(Zeroizing<Vec<u64>>),
}

/// The second message: the server's answer.
pub(super) fn answer_conversion(pair: &Pair, begun: Option<Decided>, x: &BitShare, bits: u8) -> Result<Half> {
    if let Some(decided) = begun {
        return Ok(Half::Chosen(decided));
    }
    let settled = pair.offer(Purpose::Convert, 0, 1, x.n)?;
    let mut message = Vec::new();
    let share = settled.times(1, &elements(plane(x, x.n)?, x.n), bits, &mut message)?;
    pair.answer(&message);
    Ok(Half::Share(share))
}

/// The share of the bits.
pub(super) fn end_conversion(pair: &Pair, half: Half, x: &BitShare, bits: u8) -> Result<Share> {
    let n = x.n;
    let product = match half {
        Half::Share(share) => share,
        Half::Chosen(decided) => pair.answered(times_bytes(1, n, bits), |m| decided.times(1, n, bits, m))?,
    };
    let bit = elements(plane(x, n)?, n);
    Ok(Share::of(bit.iter().zip(product.iter()).map(|(b, p)| b.wrapping_sub(p << 1)).collect()))
}

/// A selection before its round.
pub(super) struct Selection<'a> {
    decided: Decided,
    b: &'a BitShare,
    x: &'a [u64],
    part: u8,
}

/// Begins the selection of elements `x`, shares, whose bit is 1: both parties choose. `part` tells those of an op apart.
pub(super) fn begin_select<'a>(pair: &Pair, b: &'a BitShare, x: &'a [u64], part: u8) -> Result<Selection<'a>> {
    if x.len() != b.n {
        return Err(mismatch("a selection of another size than its bits"));
    }
    Ok(Selection { decided: pair.choose(Purpose::Select, part, plane(b, b.n)?)?, b, x, part })
}

/// A selection between its rounds.
pub(super) struct Selecting {
    decided: Decided,
    share: Zeroizing<Vec<u64>>,
}

impl Selection<'_> {
    /// Answers the peer's choices.
    pub(super) fn answer(self, pair: &Pair, bits: u8) -> Result<Selecting> {
        let (bit, n) = (elements(plane(self.b, self.b.n)?, self.b.n), self.b.n);
        let settled = pair.offer(Purpose::Select, self.part, 1, n)?;
        // Where the own bit is 1 the peer's takes the element away.
        let offered = bit.iter().zip(self.x).map(|(b, x)| x.wrapping_sub((b * x) << 1));
        let offered = Zeroizing::new(offered.collect::<Vec<_>>());
        let mut message = Vec::new();
        let mut share = settled.times(1, &offered, bits, &mut message)?;
        pair.answer(&message);
        share.iter_mut().zip(bit.iter().zip(self.x)).for_each(|(z, (b, x))| *z = z.wrapping_add(b * x));
        Ok(Selecting { decided: self.decided, share })
    }
}

impl Selecting {
    /// The share of what was selected.
    pub(super) fn end(self, pair: &Pair, bits: u8) -> Result<Share> {
        let Selecting { decided, share } = self;
        let n = share.len();
        let other = pair.answered(times_bytes(1, n, bits), |message| decided.times(1, n, bits, message))?;
        Ok(Share::of(share.iter().zip(other.iter()).map(|(x, y)| x.wrapping_add(*y)).collect()))
    }
}

/// The elements of `x`, shares in a ring of `bits`, whose bit is 1, and 0 in place of the others.
pub async fn select(pair: &Pair, b: &BitShare, x: &[u64], bits: u8) -> Result<Share> {
    let begun = begin_select(pair, b, x, 0)?;
    pair.round().await;
    let selecting = begun.answer(pair, bits)?;
    pair.round().await;
    selecting.end(pair, bits)
}

/// Bits of a plane as 0 and 1.
fn elements(plane: &[u64], n: usize) -> Zeroizing<Vec<u64>> {
    let mut words = Zeroizing::new(vec![0; n]);
    from_planes(plane, &mut words);
    words
}
