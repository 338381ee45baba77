//! What a kernel sees of the world: its role, the pair keys, and one outbox and inbox for each peer.
//!
//! A kernel is an `async fn` that sends, awaits [`Cx::round`], and takes what arrived in the round that just ended. All
//! parties await the same number of rounds, but a role that deals awaits none: the others take what it sent when they need
//! it, in the order in which it did. Roles are logical: role `j` of an op with rotation `r` is party
//! `(j + r) mod 3`, and key and component `j` follow it. Key `k_j` is known to roles `j` and `j − 1`.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use ombra_ir::{Diagnostic, Result};

use crate::backend::bits;
use crate::backend::elementwise::{pack_ring, unpack_ring};
use crate::exec::port::Port;
use crate::prg::{Key, Label, Prg, UsedLabels};
use crate::settings::two_party::Correlations;

/// The keys of one party for one session. A label is used once per key: in debug builds a second use panics.
pub struct Keys {
    /// `k_i`, shared with the party before.
    own: Stream,
    /// `k_{i+1}`, shared with the party after.
    next: Stream,
    /// Known to this party alone.
    private: Stream,
    /// What two parties have beside, in a setting of two.
    pair: Option<Correlations>,
}

struct Stream {
    prg: Prg,
    used: RefCell<UsedLabels>,
}

impl Keys {
    /// The generators of `k_i`, shared with the party before, of `k_{i+1}`, shared with the party after, and of a key
    /// that no other party knows.
    pub fn new(own: &Key, next: &Key, private: &Key) -> Self {
        let stream = |key| Stream { prg: Prg::new(key), used: RefCell::default() };
        Keys { own: stream(own), next: stream(next), private: stream(private), pair: None }
    }

    /// The keys with what was set up beside them.
    pub(crate) fn with_pair(self, pair: Correlations) -> Self {
        Keys { pair: Some(pair), ..self }
    }

    /// What was set up beside the keys, for its one user.
    pub(crate) fn take_pair(&mut self) -> Option<Correlations> {
        self.pair.take()
    }
}

impl Stream {
    /// The generator, for one use of `label`.
    fn at(&self, label: Label) -> &Prg {
        self.used.borrow_mut().claim(label);
        &self.prg
    }
}

/// What a stretch of randomness is for: one value for each use in a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Purpose {
    /// Component 0 of an input.
    Input = 1,
    /// Component 0 of the quotient of role 2's term.
    DivideQuotient,
    /// What masks role 2's term where three are divided.
    DivideTerm,
    /// Mask of role 0's wrap bit there.
    DivideWrap0,
    /// Mask of role 1's wrap bit there.
    DivideWrap1,
    /// Role 0's share of the product of the two masks.
    DivideProduct,
    /// Components 0 and 2 of what three terms are divided into.
    DivideOut,
    /// Zero sharing that masks resharing.
    Reshare,
    /// Component 0 of what role 2 deals.
    Deal,
    /// Masks of role 2's factors of a crossing.
    CrossFactor,
    /// Masks of what takes those masks off, which are components 0 and 2 of a crossing.
    CrossOut,
    /// Masks of products of role 2's bits.
    MsbFactor,
    /// Masks of what takes those masks off, which are components 0 and 2 of generate and propagate bits.
    MsbOut,
    /// Component 0 of role 2's highest bit.
    MsbTop,
    /// Masks of products of role 2's bits in a join of a carry's groups.
    JoinFactor,
    /// Components 0 and 2 of what is joined.
    JoinOut,
    /// Masks of products of role 2's bits where one of four bits is chosen.
    ChoiceFactor,
    /// Components 0 and 2 of the bit that is chosen.
    ChoiceOut,
    /// Zero sharing that masks an `and`.
    And,
    /// Component 0 of role 2's term of an `and`.
    AndDeal,
    /// Masks of role 2's factors of an exponential.
    ExpFactor,
    /// Components 0 and 2 of an exponential.
    ExpOut,
    /// Root seeds of point function keys, from the client's private key.
    EmbedSeed,
    /// Component 1 of a weight.
    Weight,
    /// Components of fresh bits.
    Random,
    /// `2pc-dealer`: the mask of a value.
    Mask,
    /// The client's share of what the dealer deals.
    Dealt,
    /// The client's share of a second thing that is dealt.
    DealtOther,
    /// Masks of private bits.
    BitMask,
    /// One-hot vectors of a comparison's chunks.
    Chunks,
    /// Masks of the bits that a merge of chunks opens.
    Merge,
    /// Products of such masks.
    MergeProducts,
    /// A one-hot vector of a lookup.
    OneHot,
    /// Mask of what a lookup gives.
    LookupMask,
    /// `2pc`: transfers of products of random bits.
    Triples,
    /// Transfers of a comparison's leaves, and the server's random bits in them.
    Leaf,
    /// Transfers of one bit's product with a ring element.
    Convert,
    /// Transfers of selections.
    Select,
    /// Transfers of products of ring elements.
    Product,
    /// Public polynomials of a product of matrices.
    TilesPublic,
    /// Secret randomness of a product of matrices.
    Tiles,
    /// Transfers of entries of a table, and the server's masks of them.
    Entries,
}

/// The context of one instance of an op at one party. Clones are the same instance.
#[derive(Clone)]
pub struct Cx {
    keys: Rc<Keys>,
    port: Rc<Port>,
    party: u8,
    rot: u8,
    op: u32,
    step: u32,
    level: u8,
}

impl Cx {
    /// The context of op `op` with rotation `rot` in step `step` at party `party`.
    pub fn new(keys: Rc<Keys>, party: u8, rot: u8, op: u32, step: u32) -> Self {
        Cx { keys, port: Rc::default(), party: party % 3, rot: rot % 3, op, step, level: 0 }
    }

    pub(crate) fn port(&self) -> Rc<Port> {
        Rc::clone(&self.port)
    }

    /// The logical role of this party.
    pub fn role(&self) -> u8 {
        (self.party + 3 - self.rot) % 3
    }

    /// The same instance at a level of a tree: its randomness differs from that of other levels.
    pub(super) fn at_level(&self, level: u8) -> Cx {
        Cx { level, ..self.clone() }
    }

    fn party_of(&self, role: u8) -> usize {
        usize::from((role + self.rot) % 3)
    }

    /// Level and part have a byte each, so that no two of them share a label.
    pub(super) fn label(&self, purpose: Purpose, part: u8) -> Label {
        let part = u16::from_be_bytes([self.level, part]);
        Label { op: self.op, step: self.step, purpose: purpose as u16, part }
    }

    /// `F(k_key, purpose, part)` in `n` words. An error where this role does not know the key.
    pub(super) fn draw(&self, key: u8, purpose: Purpose, part: u8, n: usize) -> Result<Vec<u64>> {
        let mut words = vec![0; n];
        let label = self.label(purpose, part);
        self.key(key)?.at(label).fill_u64(label, &mut words);
        Ok(words)
    }

    /// Words from this party's private key.
    pub(super) fn draw_private(&self, purpose: Purpose, part: u8, n: usize) -> Vec<u64> {
        let mut words = vec![0; n];
        let label = self.label(purpose, part);
        self.keys.private.at(label).fill_u64(label, &mut words);
        words
    }

    /// Adds this role's term of a sharing of zero, `F(k_j) − F(k_{j+1})`.
    pub(super) fn add_zero_share(&self, purpose: Purpose, words: &mut [u64]) {
        let label = self.label(purpose, 0);
        self.keys.own.at(label).add_assign_u64(label, words);
        self.keys.next.at(label).sub_assign_u64(label, words);
    }

    /// Adds this role's term of a sharing of zero bits, `F(k_j) ⊕ F(k_{j+1})`.
    pub(super) fn xor_zero_share(&self, purpose: Purpose, part: u8, words: &mut [u64]) {
        let label = self.label(purpose, part);
        self.keys.own.at(label).xor_assign_u64(label, words);
        self.keys.next.at(label).xor_assign_u64(label, words);
    }

    fn key(&self, key: u8) -> Result<&Stream> {
        match (key + 3 - self.role()) % 3 {
            0 => Ok(&self.keys.own),
            1 => Ok(&self.keys.next),
            _ => Err(Diagnostic::internal("E0801", "a kernel asked for a key that its role does not know")),
        }
    }

    /// Sends the low `bits` of every word to a role.
    pub(super) fn send(&self, to: u8, words: &[u64], bits: u8) {
        pack_ring(words, width(bits), &mut self.port.outbox(self.party_of(to)));
    }

    /// Sends `count` planes of `n` bits to a role.
    pub(super) fn send_planes(&self, to: u8, planes: &[u64], count: usize, n: usize) {
        bits::planes_to_bytes(planes, n, count as u32, &mut self.port.outbox(self.party_of(to)));
    }

    /// Sends bytes to a role.
    pub(super) fn send_bytes(&self, to: u8, bytes: &[u8]) {
        self.port.outbox(self.party_of(to)).extend_from_slice(bytes);
    }

    /// Ends a round: returns when everything that was sent in it has arrived everywhere.
    pub(super) async fn round(&self) {
        let mut asked = false;
        poll_fn(|_| if std::mem::replace(&mut asked, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Ends a round of roles 0 and 1 in a kernel in which role 2 deals: that does not wait.
    pub(super) async fn exchange(&self) {
        if self.role() != 2 {
            self.round().await;
        }
    }

    /// The next `n` words of `bits` that a role sent in the round that just ended, or dealt. E0802 when there are fewer.
    pub(super) fn take(&self, from: u8, n: usize, bits: u8) -> Result<Vec<u64>> {
        let (width, mut words) = (width(bits), vec![0; n]);
        self.take_with(from, n * (width / 8) as usize, |bytes| unpack_ring(bytes, width, &mut words))??;
        Ok(words)
    }

    /// The next `count` planes of `n` bits that a role sent. E0802 when there are fewer.
    pub(super) fn take_planes(&self, from: u8, count: usize, n: usize) -> Result<Vec<u64>> {
        let mut planes = vec![0; count * bits::words(n)];
        self.take_with(from, count * n.div_ceil(8), |bytes| {
            bits::planes_from_bytes(bytes, n, count as u32, &mut planes)
        })??;
        Ok(planes)
    }

    /// The next `len` bytes that a role sent, read by `read`. E0802 when there are fewer.
    pub(super) fn take_with<T>(&self, from: u8, len: usize, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.port.take_with(self.party_of(from), len, read)
    }
}

/// Bits of an element of `bits` on the wire: whole bytes, one at least.
fn width(bits: u8) -> u32 {
    (u32::from(bits) / 8).max(1) * 8
}
