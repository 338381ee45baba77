//! What pads are used for. A batch of pads is a value, and each use takes it: no pad masks two things.
//!
//! | use | offerer sends, bits | what both have then |
//! |---|---|---|
//! | [`Settled::times`], of `p` planes of bits in a ring of `ℓ` | Σ `ℓ − i`, in whole bytes | shares of `a·b`, `a` the chooser's bits |
//! | [`Settled::times_rows`], of rows of `w` elements | `w` times as much | the same of every element of `b`'s row, summed |
//! | [`Settled::tables`], of `2^K` entries of 2 bits | `2·2^K`, in whole bytes | the offerer nothing, the chooser its entry |
//! | [`Settled::entries`], of `c` entries of `b` bytes | `8·c·b` | the same |
//! | [`Settled::triples`], of `C` bits | none | shares of `a·b_1 … a·b_C`, `a` the chooser's bit, `b` the offerer's, all random |
//!
//! Choices: pads come with random bits `r` of the chooser. It sends `r ⊕ c` for its choices `c`, and the offerer exchanges
//! pads where that is 1: the bits are uniform, and each is used once.
//!
//! ```text
//!   h_0, h_1  the pads of a transfer after that;  the chooser has h_c
//!   times     offerer sends  m = h_0 − h_1 + b·2^i mod 2^ℓ, keeps −h_0;   chooser  h_c + c·m = h_0 + c·b·2^i
//!   rows      the same for every element of a row, under hashes of one row each, tweaked by the element's place
//!   tables    K transfers choose one entry of 2^K: entry v goes under ⊕_j of the bits [2v, 2v + 2) of h_{j,v_j}
//!   entries   the same with longer ones, block by block: under ⊕_j of hashes of transfer j's row for v_j, tweaked by v
//!   triples   b = h_0 ⊕ h_1, shares h_0 and h_r of r·b, since h_r = h_0 ⊕ r·b
//! ```
//!
//! *Chooser's view*: each message is a value under a pad, or part of a pad, that it has not; an entry `v` that was not
//! chosen has a `j` with `v_j ≠ c_j`, and those bits of `h_{j,v_j}` mask no other entry. *Offerer's view*: `r ⊕ c`.
//!
//! Sources: Gilboa, "Two Party RSA Key Generation" (CRYPTO 1999), for products; Naor and Pinkas, "Oblivious Transfer and
//! Polynomial Evaluation" (STOC 1999), for tables; Asharov, Lindell, Schneider and Zohner (2013/552) for correlated and
//! random transfers. Side channels: tables are read and written whole, by masks.

use std::sync::Arc;

use ombra_ir::Result;

use super::{MOST_PURPOSES, SessionId, mask, refused, unserved};
use crate::backend::bits::{from_planes, to_planes, words};
use crate::backend::elementwise::{pack_ring, unpack_ring};
use crate::prg::{Cipher, Label};
use crate::wiped::Zeroizing;

/// Blocks that are hashed at once.
const BATCH: usize = 64;
/// Choice bits of [`Entries`] at most: a plane's number has its place in a tweak.
const MOST_PLANES: usize = 14;
/// Bytes of a block that is hashed.
const BLOCK: usize = 16;
/// Blocks that one label's tweaks tell apart.
const MOST_BLOCKS: usize = 1 << 32;

/// The hash of a session: `π(π(x) ⊕ t) ⊕ π(x)` for a tweak `t`.
pub struct Hash(Cipher);

impl Hash {
    /// The hash of a session.
    pub(super) fn new(session: &SessionId) -> Hash {
        Hash(session.permutation(b"pads    "))
    }

    /// Replaces transfer `first + i` of a label by its hash.
    pub(super) fn apply(&self, label: Label, first: usize, rows: &mut [u128]) {
        let mut inner = Zeroizing::new(vec![0u128; BATCH.min(rows.len())]);
        for (batch, rows) in rows.chunks_mut(BATCH).enumerate() {
            self.0.permute(rows);
            let tweak = label.first_block() + (first + batch * BATCH) as u128;
            let inner = &mut inner[..rows.len()];
            inner.iter_mut().zip(&*rows).zip(tweak..).for_each(|((inner, row), tweak)| *inner = row ^ tweak);
            self.0.permute(inner);
            rows.iter_mut().zip(inner).for_each(|(row, inner)| *row ^= *inner);
        }
    }
}

/// `64·words` transfers at the party that offers: random, until [`flipped`](Offered::flipped).
pub struct Offered {
    rows: Zeroizing<Vec<u128>>,
    delta: zeroize::Zeroizing<u128>,
    label: Label,
    hash: Arc<Hash>,
}

/// The same at the party that chooses.
pub struct Chosen {
    rows: Zeroizing<Vec<u128>>,
    bits: Zeroizing<Vec<u64>>,
    label: Label,
    hash: Arc<Hash>,
}

/// Transfers whose choices are those of the chooser, at the party that offers.
pub struct Settled(Offered);

/// The same at the party that chooses.
pub struct Decided(Chosen);

impl Offered {
    pub(super) fn new(rows: Zeroizing<Vec<u128>>, delta: u128, label: Label, hash: &Arc<Hash>) -> Offered {
        Offered { rows, delta: zeroize::Zeroizing::new(delta), label, hash: Arc::clone(hash) }
    }

    /// With the bits that the chooser sent.
    ///
    /// # Errors
    /// `E0908` for another number of words.
    pub fn flipped(mut self, flips: &[u64]) -> Result<Settled> {
        if 64 * flips.len() != self.rows.len() {
            return Err(refused("choices have another length"));
        }
        for (rows, flips) in self.rows.chunks_exact_mut(64).zip(flips) {
            rows.iter_mut().enumerate().for_each(|(i, row)| *row ^= *self.delta & mask(u128::from(flips >> i)));
        }
        Ok(Settled(self))
    }

    /// With the random choices that there are.
    pub fn random(self) -> Settled {
        Settled(self)
    }
}

impl Chosen {
    pub(super) fn new(rows: Zeroizing<Vec<u128>>, bits: Zeroizing<Vec<u64>>, label: Label, hash: &Arc<Hash>) -> Chosen {
        Chosen { rows, bits, label, hash: Arc::clone(hash) }
    }

    /// With choices of its own, as many as there are transfers; returns the bits that the offerer needs.
    ///
    /// # Errors
    /// `E0909` for another number of choices.
    pub fn with(mut self, choices: &[u64]) -> Result<(Decided, Vec<u64>)> {
        check(64 * choices.len(), self.rows.len())?;
        let flips = self.bits.iter().zip(choices).map(|(bits, choices)| bits ^ choices).collect();
        self.bits.iter_mut().zip(choices).for_each(|(bits, choices)| *bits = *choices);
        Ok((Decided(self), flips))
    }

    /// With the random choices that there are.
    pub fn random(self) -> Decided {
        Decided(self)
    }
}

/// Bytes that [`Settled::times`] sends.
pub fn times_bytes(planes: usize, n: usize, bits: u8) -> usize {
    (0..planes).fold(0, |sum: usize, i| sum.saturating_add(n.saturating_mul(ring_bytes(bits, i))))
}

/// The sizes of products of bits with rows: `count` elements, in a matrix with rows of `inner`, each times a row of `width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Planes of the chooser's elements.
    pub planes: usize,
    /// Its elements.
    pub count: usize,
    /// Of how many of them the products are summed.
    pub inner: usize,
    /// Elements of a row.
    pub width: usize,
}

impl Rows {
    /// Bytes that [`Settled::times_rows`] sends.
    pub fn message_bytes(self, bits: u8) -> usize {
        times_bytes(self.planes, self.count.saturating_mul(self.width), bits)
    }

    fn blocks(self) -> usize {
        self.width.div_ceil(2)
    }

    /// Elements of the result.
    fn results(self) -> usize {
        self.count / self.inner.max(1) * self.width
    }

    /// Checks that there are its transfers, and tweaks enough: rows of one element or more, and of its elements whole rows.
    fn check(self, found: usize) -> Result<()> {
        let transfers = transfers(self.planes, self.count);
        let blocks = transfers.and_then(|transfers| transfers.checked_mul(self.blocks()));
        let whole = self.inner > 0 && self.count.is_multiple_of(self.inner);
        match (transfers, blocks) {
            (Some(transfers), Some(0..=MOST_BLOCKS)) if self.width > 0 && whole => check(found, transfers),
            _ => Err(unserved("rows have other sizes than pads serve")),
        }
    }
}

/// Transfers for so many planes of `n` bits each, which are whole words.
fn transfers(planes: usize, n: usize) -> Option<usize> {
    words(n).checked_mul(64)?.checked_mul(planes)
}

/// Elements of a ring of `bits` without what is above it. That would tell a choice: who offers knows both pads.
fn within(mut share: Zeroizing<Vec<u64>>, bits: u8) -> Zeroizing<Vec<u64>> {
    let ring = u64::MAX.checked_shr(64 - u32::from(bits.min(64))).unwrap_or(0);
    share.iter_mut().for_each(|word| *word &= ring);
    share
}

/// Bytes of an element mod `2^(bits − i)`.
fn ring_bytes(bits: u8, i: usize) -> usize {
    usize::from(bits).saturating_sub(i).div_ceil(8).max(1)
}

/// Bytes of a table of `2^k` entries of 2 bits.
pub const fn table_bytes(k: usize) -> usize {
    if k < 2 { 1 } else { (2 << k) / 8 }
}

/// The bits of such a table.
const fn table_mask(k: usize) -> u64 {
    (1 << (2 << k)) - 1
}

/// Tables from which an entry is chosen: `n` of them, of `count` entries of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Tables.
    pub n: usize,
    /// Entries of each.
    pub count: usize,
    /// Bytes of an entry.
    pub bytes: usize,
}

impl Entries {
    /// Bits of a choice: of each there is a plane of `n` elements.
    pub fn planes(self) -> usize {
        (self.count.max(2) - 1).ilog2() as usize + 1
    }

    /// Bytes that [`Settled::entries`] sends.
    pub fn message_bytes(self) -> usize {
        self.n.saturating_mul(self.count).saturating_mul(self.bytes)
    }

    fn blocks(self) -> usize {
        self.bytes.div_ceil(BLOCK)
    }

    /// Checks that there are its transfers, and tweaks enough: entries of one byte or more, one of them or more.
    fn check(self, found: usize) -> Result<()> {
        let blocks = self.n.checked_mul(self.count).and_then(|all| all.checked_mul(self.blocks()));
        match (transfers(self.planes(), self.n), blocks) {
            (Some(transfers), Some(0..=MOST_BLOCKS))
                if self.planes() <= MOST_PLANES && self.count > 0 && self.bytes > 0 =>
            {
                check(found, transfers)
            }
            _ => Err(unserved("tables have other sizes than pads serve")),
        }
    }
}

/// For 2-bit entries of a table of 16: all entries whose number has bit `j`.
const WITH_BIT: [u32; 4] = [0xcccc_cccc, 0xf0f0_f0f0, 0xff00_ff00, 0xffff_0000];

impl Settled {
    /// Transfers.
    fn len(&self) -> usize {
        self.0.rows.len()
    }

    /// The pads of transfers `range`.
    fn pads(&self, range: std::ops::Range<usize>) -> [Zeroizing<Vec<u128>>; 2] {
        let (start, rows) = (range.start, &self.0.rows[range]);
        [0, *self.0.delta].map(|delta| {
            let mut pads = Zeroizing::new(rows.iter().map(|row| row ^ delta).collect::<Vec<_>>());
            self.0.hash.apply(self.0.label, start, &mut pads);
            pads
        })
    }

    /// Shares of `a·b` mod `2^bits` for every element of `b`, where the chooser's `a` has a plane of bits for each of
    /// `planes`, lowest first, at `64·words(n)` transfers each. What is sent is added to `message`.
    ///
    /// # Errors
    /// `E0909` for another number of transfers.
    pub fn times(self, planes: usize, b: &[u64], bits: u8, message: &mut Vec<u8>) -> Result<Zeroizing<Vec<u64>>> {
        let n = b.len();
        let stride = check_planes(self.len(), planes, n)?;
        let mut share = Zeroizing::new(vec![0u64; n]);
        let mut masked = vec![0; n];
        for plane in 0..planes {
            let [zero, one] = self.pads(plane * stride..plane * stride + n);
            for (((masked, b), share), (zero, one)) in
                masked.iter_mut().zip(b).zip(share.iter_mut()).zip(zero.iter().zip(one.iter()))
            {
                *masked = (*zero as u64).wrapping_sub(*one as u64).wrapping_add(*b);
                *share = share.wrapping_sub((*zero as u64) << plane);
            }
            pack_ring(&masked, 8 * ring_bytes(bits, plane) as u32, message);
        }
        Ok(within(share, bits))
    }

    /// Shares of the sums over `inner` elements of `a·b`, where `b` is a row of `width` elements that begins at `row_at` the
    /// number of the element of `a`. What is sent is added to `message`.
    ///
    /// # Errors
    /// `E0909` for another number of transfers, rows that are not in `b`, sizes that pads do not serve.
    pub fn times_rows(
        self,
        sizes: Rows,
        (b, row_at): (&[u64], &dyn Fn(usize) -> usize),
        bits: u8,
        message: &mut Vec<u8>,
    ) -> Result<Zeroizing<Vec<u64>>> {
        sizes.check(self.len())?;
        let Rows { planes, count, inner, width } = sizes;
        let (stride, blocks) = (64 * words(count), sizes.blocks());
        let mut share = Zeroizing::new(vec![0u64; sizes.results()]);
        let mut pads = [Zeroizing::new(vec![0u128; blocks]), Zeroizing::new(vec![0u128; blocks])];
        let mut masked = vec![0; width];
        message.reserve(sizes.message_bytes(bits));
        let label = of_entries(self.0.label, MOST_PLANES);
        for plane in 0..planes {
            for i in 0..count {
                let at = plane * stride + i;
                for (pads, delta) in pads.iter_mut().zip([0, *self.0.delta]) {
                    pads.fill(self.0.rows[at] ^ delta);
                    self.0.hash.apply(label, at * blocks, pads);
                }
                let begin = row_at(i);
                let row =
                    b.get(begin..begin.saturating_add(width)).ok_or_else(|| unserved("a row is not in its matrix"))?;
                let Some(share) = share.chunks_exact_mut(width).nth(i / inner) else { break };
                let [zero, one] = &pads;
                let pads = halves(zero).zip(halves(one));
                for (((masked, b), share), (zero, one)) in masked.iter_mut().zip(row).zip(share).zip(pads) {
                    *masked = zero.wrapping_sub(one).wrapping_add(*b);
                    *share = share.wrapping_sub(zero << plane);
                }
                pack_ring(&masked, 8 * ring_bytes(bits, plane) as u32, message);
            }
        }
        Ok(within(share, bits))
    }

    /// Tables of `2^K` entries of 2 bits, in the low bits of a word for each of `n` elements, whose choices have a plane for each of `K` bits, at
    /// `64·words(n)` transfers each.
    ///
    /// # Errors
    /// `E0909` for another number of transfers.
    pub fn tables<const K: usize>(self, tables: &[u64], message: &mut Vec<u8>) -> Result<()> {
        const { assert!(K >= 1 && K <= WITH_BIT.len(), "the entries of a table lie in one word of a pad") };
        let n = tables.len();
        let stride = check_planes(self.len(), K, n)?;
        let mut masked = Zeroizing::new(tables.to_vec());
        for (plane, with_bit) in WITH_BIT.iter().enumerate().take(K) {
            let [zero, one] = self.pads(plane * stride..plane * stride + n);
            for (masked, (zero, one)) in masked.iter_mut().zip(zero.iter().zip(one.iter())) {
                let (zero, one) = (*zero as u32, *one as u32);
                *masked ^= u64::from((zero & !with_bit) | (one & with_bit));
            }
        }
        // A table of two entries is half a byte. What else is in the word would go under pads that the chooser has.
        masked.iter_mut().for_each(|masked| *masked &= table_mask(K));
        pack_ring(&masked, 8 * table_bytes(K) as u32, message);
        Ok(())
    }

    /// The entries of all tables, one after another; a choice has a plane for each of its bits, at `64·words(n)` transfers
    /// each.
    ///
    /// # Errors
    /// `E0909` for another number of transfers, sizes that pads do not serve.
    pub fn entries(self, sizes: Entries, entries: &[u8], message: &mut Vec<u8>) -> Result<()> {
        sizes.check(self.len())?;
        check(entries.len(), sizes.message_bytes())?;
        let (stride, blocks) = (64 * words(sizes.n), sizes.blocks());
        let mut keys = Zeroizing::new(vec![0u128; sizes.count * blocks]);
        let mut pads = Zeroizing::new(vec![0u128; sizes.count * blocks]);
        for (i, entries) in entries.chunks_exact((sizes.count * sizes.bytes).max(1)).enumerate().take(sizes.n) {
            pads.fill(0);
            for plane in 0..sizes.planes() {
                let row = self.0.rows[plane * stride + i];
                for (v, keys) in keys.chunks_exact_mut(blocks).enumerate() {
                    keys.fill(row ^ if v >> plane & 1 == 0 { 0 } else { *self.0.delta });
                }
                self.0.hash.apply(of_entries(self.0.label, plane), i * sizes.count * blocks, &mut keys);
                pads.iter_mut().zip(keys.iter()).for_each(|(pad, key)| *pad ^= key);
            }
            for (entry, pads) in entries.chunks_exact(sizes.bytes).zip(pads.chunks_exact(blocks)) {
                let pads = pads.iter().flat_map(|pad| pad.to_le_bytes());
                message.extend(entry.iter().zip(pads).map(|(entry, pad)| entry ^ pad));
            }
        }
        Ok(())
    }

    /// For each of `n` transfers `C` random bits `b`, and shares of their products with the chooser's bit: planes of each.
    ///
    /// # Errors
    /// `E0909` for another number of transfers.
    pub fn triples<const C: usize>(self, n: usize) -> Result<[Zeroizing<Vec<u64>>; 2]> {
        const { assert!(C >= 1 && C <= 64, "the bits of a triple lie in one word of a pad") };
        check_planes(self.len(), 1, n)?;
        let [zero, one] = self.pads(0..n);
        let shares = planes::<C>(zero.iter().map(|zero| *zero as u64).collect());
        let bits = planes::<C>(zero.iter().zip(one.iter()).map(|(zero, one)| (zero ^ one) as u64).collect());
        Ok([bits, shares])
    }
}

/// The label of the tweaks of a table's entries: no call has it, since its purpose is below [`MOST_PURPOSES`].
pub(super) fn of_entries(label: Label, plane: usize) -> Label {
    Label { purpose: label.purpose | ((plane as u16 + 1) * MOST_PURPOSES), ..label }
}

impl Decided {
    fn len(&self) -> usize {
        self.0.rows.len()
    }

    fn pads(&self, range: std::ops::Range<usize>) -> Zeroizing<Vec<u128>> {
        let mut pads = Zeroizing::new(self.0.rows[range.clone()].to_vec());
        self.0.hash.apply(self.0.label, range.start, &mut pads);
        pads
    }

    /// The choices of a plane of `n` elements, each 0 or 1.
    fn choices(&self, plane: usize, n: usize) -> Zeroizing<Vec<u64>> {
        let mut choices = Zeroizing::new(vec![0; n]);
        let stride = words(n);
        from_planes(&self.0.bits[plane * stride..(plane + 1) * stride], &mut choices);
        choices
    }

    /// The other share of [`Settled::times`], from its message.
    ///
    /// # Errors
    /// `E0908` for a message of another length.
    pub fn times(self, planes: usize, n: usize, bits: u8, message: &[u8]) -> Result<Zeroizing<Vec<u64>>> {
        let stride = check_planes(self.len(), planes, n)?;
        if message.len() != times_bytes(planes, n, bits) {
            return Err(refused("a product's message has another length"));
        }
        let mut share = Zeroizing::new(vec![0u64; n]);
        let (mut masked, mut rest) = (vec![0; n], message);
        for plane in 0..planes {
            let bytes = ring_bytes(bits, plane);
            let (own, after) = rest.split_at(bytes * n);
            rest = after;
            unpack_ring(own, 8 * bytes as u32, &mut masked)?;
            let (pads, choices) = (self.pads(plane * stride..plane * stride + n), self.choices(plane, n));
            for (((share, pad), choice), masked) in share.iter_mut().zip(pads.iter()).zip(choices.iter()).zip(&masked) {
                let product = (*pad as u64).wrapping_add(choice.wrapping_neg() & masked);
                *share = share.wrapping_add(product << plane);
            }
        }
        Ok(within(share, bits))
    }

    /// The other share of [`Settled::times_rows`], from its message.
    ///
    /// # Errors
    /// `E0908` for a message of another length, and the errors of the other side.
    pub fn times_rows(self, sizes: Rows, bits: u8, message: &[u8]) -> Result<Zeroizing<Vec<u64>>> {
        sizes.check(self.len())?;
        if message.len() != sizes.message_bytes(bits) {
            return Err(refused("a product's message has another length"));
        }
        let Rows { planes, count, inner, width } = sizes;
        let (stride, blocks) = (64 * words(count), sizes.blocks());
        let mut share = Zeroizing::new(vec![0u64; sizes.results()]);
        let mut pads = Zeroizing::new(vec![0u128; blocks]);
        let (mut masked, mut rest) = (vec![0; width], message);
        let label = of_entries(self.0.label, MOST_PLANES);
        for plane in 0..planes {
            let (choices, bytes) = (self.choices(plane, count), ring_bytes(bits, plane));
            for (i, choice) in choices.iter().enumerate() {
                let at = plane * stride + i;
                pads.fill(self.0.rows[at]);
                self.0.hash.apply(label, at * blocks, &mut pads);
                let (own, after) = rest.split_at(bytes * width);
                rest = after;
                unpack_ring(own, 8 * bytes as u32, &mut masked)?;
                let Some(share) = share.chunks_exact_mut(width).nth(i / inner) else { break };
                for ((share, pad), masked) in share.iter_mut().zip(halves(&pads)).zip(&masked) {
                    let product = pad.wrapping_add(choice.wrapping_neg() & masked);
                    *share = share.wrapping_add(product << plane);
                }
            }
        }
        Ok(within(share, bits))
    }

    /// The chosen entries of [`Settled::tables`], from its message.
    ///
    /// # Errors
    /// `E0908` for a message of another length.
    pub fn tables<const K: usize>(self, n: usize, message: &[u8]) -> Result<Zeroizing<Vec<u64>>> {
        const { assert!(K >= 1 && K <= WITH_BIT.len(), "the entries of a table lie in one word of a pad") };
        let stride = check_planes(self.len(), K, n)?;
        if message.len() != n * table_bytes(K) {
            return Err(refused("a table's message has another length"));
        }
        let mut entries = Zeroizing::new(vec![0; n]);
        unpack_ring(message, 8 * table_bytes(K) as u32, &mut entries)?;
        let mut places = Zeroizing::new(vec![0; n]);
        for plane in 0..K {
            let (pads, choices) = (self.pads(plane * stride..plane * stride + n), self.choices(plane, n));
            entries.iter_mut().zip(pads.iter()).for_each(|(entry, pad)| *entry ^= *pad as u64);
            places.iter_mut().zip(choices.iter()).for_each(|(place, choice)| *place |= choice << plane);
        }
        entries.iter_mut().zip(places.iter()).for_each(|(entry, place)| *entry = *entry >> (2 * place) & 3);
        Ok(entries)
    }

    /// The chosen entries of [`Settled::entries`], one after another, from its message.
    ///
    /// # Errors
    /// `E0908` for a message of another length, and the errors of the other side.
    pub fn entries(self, sizes: Entries, message: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        sizes.check(self.len())?;
        let (stride, blocks, Entries { n, count, bytes }) = (64 * words(sizes.n), sizes.blocks(), sizes);
        if message.len() != sizes.message_bytes() {
            return Err(refused("a table's message has another length"));
        }
        let mut places = Zeroizing::new(vec![0u64; n]);
        for plane in 0..sizes.planes() {
            let choices = self.choices(plane, n);
            places.iter_mut().zip(choices.iter()).for_each(|(place, choice)| *place |= choice << plane);
        }
        let mut chosen = Zeroizing::new(vec![0u8; n * bytes]);
        let mut keys = Zeroizing::new(vec![0u128; blocks]);
        let mut pads = Zeroizing::new(vec![0u128; blocks]);
        let tables = message.chunks_exact((count * bytes).max(1)).zip(chosen.chunks_exact_mut(bytes.max(1)));
        for (i, ((table, chosen), place)) in tables.zip(places.iter()).enumerate() {
            pads.fill(0);
            for plane in 0..sizes.planes() {
                keys.fill(self.0.rows[plane * stride + i]);
                let first = (i * count).wrapping_add(*place as usize).wrapping_mul(blocks);
                self.0.hash.apply(of_entries(self.0.label, plane), first, &mut keys);
                pads.iter_mut().zip(keys.iter()).for_each(|(pad, key)| *pad ^= key);
            }
            chosen.iter_mut().zip(pads.iter().flat_map(|pad| pad.to_le_bytes())).for_each(|(out, pad)| *out = pad);
            for (v, entry) in table.chunks_exact(bytes).enumerate() {
                let taken = equal(v as u64, *place);
                chosen.iter_mut().zip(entry).for_each(|(out, byte)| *out ^= byte & taken);
            }
        }
        Ok(chosen)
    }

    /// For each of `n` transfers the random choice, and the other shares of its products with `C` bits: planes of each.
    ///
    /// # Errors
    /// `E0909` for another number of transfers.
    pub fn triples<const C: usize>(self, n: usize) -> Result<[Zeroizing<Vec<u64>>; 2]> {
        const { assert!(C >= 1 && C <= 64, "the bits of a triple lie in one word of a pad") };
        check_planes(self.len(), 1, n)?;
        let shares = planes::<C>(self.pads(0..n).iter().map(|pad| *pad as u64).collect());
        let mut bits = Zeroizing::new(self.0.bits[..words(n)].to_vec());
        if let Some(last) = bits.last_mut() {
            // Choices of which there is no product.
            *last &= u64::MAX >> (64 * words(n) - n);
        }
        Ok([bits, shares])
    }
}

/// Blocks as words.
fn halves(blocks: &[u128]) -> impl Iterator<Item = u64> {
    blocks.iter().flat_map(|block| [*block as u64, (*block >> 64) as u64])
}

/// All ones where two small numbers are equal.
fn equal(x: u64, y: u64) -> u8 {
    (((x ^ y).wrapping_sub(1) >> 63) as u8).wrapping_neg()
}

/// The lowest `C` bits of every word as planes.
fn planes<const C: usize>(words: Vec<u64>) -> Zeroizing<Vec<u64>> {
    let words = Zeroizing::new(words);
    let mut planes = Zeroizing::new(vec![0; C * crate::backend::bits::words(words.len())]);
    to_planes(&words, C as u32, &mut planes);
    planes
}

/// Checks that a use has the transfers that it needs, and no others.
fn check(found: usize, needed: usize) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(unserved("a use has another number of transfers").note(format!("expected  {needed}, found {found}")))
}

/// Checks that a use of so many planes of `n` bits has their transfers. Returns those of a plane.
fn check_planes(found: usize, planes: usize, n: usize) -> Result<usize> {
    let too_many = || unserved("a use has more transfers than there are numbers");
    check(found, transfers(planes, n).ok_or_else(too_many)?)?;
    transfers(1, n).ok_or_else(too_many)
}
