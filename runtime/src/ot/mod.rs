//! Oblivious transfers between two parties: a few by public-key operations, any number by extension.
//!
//! One party *offers* two pads for every transfer, the other one *chooses* one of each two: the first does not learn which,
//! the second knows nothing of the other pad. All further protocols ([`pads`]) mask what they send with such pads.
//!
//! ```text
//!   base        128 transfers of random keys in each direction, by Diffie-Hellman in the group ristretto255     [base]
//!   trees       16 (or 32, …) punctured trees of seeds, the bits of Δ saying where their holes are              [tree]
//!   extension   from the leaves rows with  v_i = w_i ⊕ c_i·Δ:  w_i, Δ at who offers, v_i, c_i at who chooses     [softspoken]
//!   pads        a hash of the rows breaks their correlation; each pad is a value that its use consumes           [pads]
//! ```
//!
//! Sources: Masny and Rindal, "Endemic Oblivious Transfer" (2019/706), for the base; Roy, "SoftSpokenOT" (2022/192), for
//! trees and extension; Guo, Katz, Wang and Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block
//! Ciphers" (2019/074), for the hash.
//!
//! Adversary: one semi-honest party. Messages have one length each, given by public sizes; one of another length, or with
//! something that is no element of the group, is refused with `E0908`. What follows from a party that sends other rows
//! than it should is not detected, as everywhere in this setting.
//!
//! Assumptions, all of which hold for every session anew, since its id goes into every hash and every fixed key:
//! - computational Diffie-Hellman in ristretto255, with SHA-256 as a random oracle, for the base;
//! - AES-128 as a pseudorandom function of its key, for the streams of leaves;
//! - AES-128 under a known key as an ideal permutation, for trees and for the hash: `π(π(x) ⊕ t) ⊕ π(x)` is then a
//!   tweakable circular correlation-robust hash, as long as no tweak `t` is used twice for one `Δ`. A tweak is the label of
//!   a call with the direction of the transfer, and the number of a transfer within the call. A label is used once: in
//!   debug builds a second use panics.
//!
//! No branch and no index depends on a choice, a pad or `Δ`. Seeds, keys, rows and pads are wiped when they are dropped.

pub mod base;
pub mod pads;
pub mod softspoken;
#[cfg(test)]
pub(crate) mod tests;
pub mod tree;

use ombra_ir::{Diagnostic, Result};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::prg::{AesIsa, Cipher, Label};
use base::{BaseReceiver, BaseSender, FIRST_BYTES};
use pads::{Chosen, Offered};
use softspoken::{Choosing, Offering};
use tree::{SECOND_BYTES, Trees};

/// Purposes of calls are below: the highest bit of a purpose says who offers, those between tell tweaks apart.
const MOST_PURPOSES: u16 = 1 << 11;

/// Base transfers of a direction, bits of `Δ` and of a row.
pub const BASE_COUNT: usize = 128;

/// What tells a session from all others; both parties know it, and so may everybody.
#[derive(Clone)]
pub struct SessionId([u8; 32]);

impl SessionId {
    /// The id that follows from what parties drew for it.
    pub fn of(parts: &[&[u8]]) -> SessionId {
        let mut hash = Sha256::new_with_prefix(b"ombra oblivious transfer session");
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        SessionId(hash.finalize().into())
    }

    /// A hash that begins with the id and with what it is for.
    fn hash(&self, purpose: &[u8; 8]) -> Sha256 {
        Sha256::new_with_prefix(self.0).chain_update(purpose)
    }

    /// A permutation that everybody knows.
    fn permutation(&self, purpose: &[u8; 8]) -> Cipher {
        Cipher::new(AesIsa::best(), &key_of(self.hash(purpose)))
    }
}

/// The first half of a digest.
fn key_of(hash: Sha256) -> Zeroizing<[u8; 16]> {
    let digest: Zeroizing<[u8; 32]> = Zeroizing::new(hash.finalize().into());
    Zeroizing::new(std::array::from_fn(|i| digest[i]))
}

/// Who offers in a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The party that gave itself the number 0 offers.
    FromFirst,
    /// The other one offers.
    FromSecond,
}

impl Direction {
    /// The direction in which the party of this number offers.
    pub fn offered_by(party: u8) -> Direction {
        if party == 0 { Direction::FromFirst } else { Direction::FromSecond }
    }

    /// The label of a call in this direction.
    ///
    /// # Panics
    /// When the purpose takes the bit of the direction.
    fn label(self, label: Label) -> Label {
        assert!(label.purpose < MOST_PURPOSES, "the highest bits of a purpose are taken");
        Label { purpose: label.purpose | (self as u16) << 15, ..label }
    }
}

/// The party that offers, in one direction of a session.
pub trait Offer {
    /// Bytes of the message that comes for `64·words` transfers.
    fn message_bytes(&self, words: usize) -> usize;

    /// `64·words` transfers under `label`, from the message that the other party wrote for them.
    ///
    /// # Errors
    /// `E0908` for a message of another length.
    fn offer(&self, label: Label, words: usize, message: &[u8]) -> Result<Offered>;
}

/// The party that chooses, in one direction of a session.
pub trait Choose {
    /// `64·words` transfers under `label`; what the other party needs for them is added to `message`.
    ///
    /// # Errors
    /// More transfers than a label has.
    fn choose(&self, label: Label, words: usize, message: &mut Vec<u8>) -> Result<Chosen>;
}

/// Both directions of a session at one party.
pub struct Transfers {
    /// Where this party offers.
    pub offering: Box<dyn Offer + Send>,
    /// Where it chooses.
    pub choosing: Box<dyn Choose + Send>,
}

/// What fills a buffer with secret random bytes.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<()>;

/// Random bytes of the operating system. E0907 when it has none.
pub fn os_random(out: &mut [u8]) -> Result<()> {
    getrandom::fill(out).map_err(|e| {
        Diagnostic::internal("E0907", "the operating system gave no randomness for a transfer").note(e.to_string())
    })
}

/// The set-up at one party: two messages each way, the first of [`FIRST_BYTES`] and the second of [`SECOND_BYTES`], each
/// of which is sent before the peer's is awaited.
pub struct Begun {
    session: SessionId,
    party: u8,
    depth: u8,
    sender: BaseSender,
    receiver: BaseReceiver,
}

/// The set-up after its first messages.
pub struct Exchanged {
    session: SessionId,
    party: u8,
    depth: u8,
    choosing: Choosing,
    holes: Zeroizing<u128>,
    keys: Zeroizing<Vec<u128>>,
}

/// Begins the set-up at a party, 0 or 1, with trees of a `depth` that [`Trees`] allows. Returns its first message.
///
/// # Errors
/// Another depth, or no randomness.
pub fn begin(session: &SessionId, party: u8, depth: u8, random: Random<'_>) -> Result<(Begun, Vec<u8>)> {
    Trees::check(depth)?;
    let own = Direction::offered_by(party);
    let mut message = Vec::with_capacity(FIRST_BYTES);
    // Who chooses in the extension sends the keys of its trees, so it offers in the base, and the other way round.
    let sender = BaseSender::new(random, &mut message)?;
    let receiver = BaseReceiver::new(session, own, random, &mut message)?;
    Ok((Begun { session: session.clone(), party, depth, sender, receiver }, message))
}

impl Begun {
    /// Takes the peer's first message and returns the second one.
    ///
    /// # Errors
    /// `E0908` for a message of another length, or with what is no element of the group.
    pub fn exchange(self, message: &[u8], random: Random<'_>) -> Result<(Exchanged, Vec<u8>)> {
        let Begun { session, party, depth, sender, receiver } = self;
        let Some((public, points)) = message.split_first_chunk().filter(|_| message.len() == FIRST_BYTES) else {
            return Err(refused("the first message of the set-up has another length"));
        };
        let other = Direction::offered_by(1 - party);
        let pairs = sender.keys(&session, other, points)?;
        let (holes, keys) = receiver.keys(&session, Direction::offered_by(party), public)?;
        let trees = Trees::grow(&session, depth, random)?;
        let mut message = Vec::with_capacity(SECOND_BYTES);
        trees.send(&pairs, &mut message);
        let choosing = Choosing::new(&session, other, trees);
        Ok((Exchanged { session, party, depth, choosing, holes, keys }, message))
    }
}

impl Exchanged {
    /// Takes the peer's second message: both directions are ready.
    ///
    /// # Errors
    /// `E0908` for a message of another length.
    pub fn finish(self, message: &[u8]) -> Result<Transfers> {
        let Exchanged { session, party, depth, choosing, holes, keys } = self;
        let trees = Trees::receive(&session, depth, *holes, &keys, message)?;
        let offering = Offering::new(&session, Direction::offered_by(party), *holes, trees);
        Ok(Transfers { offering: Box::new(offering), choosing: Box::new(choosing) })
    }
}

/// A message that no party that follows the protocol sends.
fn refused(what: &str) -> Diagnostic {
    Diagnostic::peer("E0908", "a message of an oblivious transfer is refused").note(what)
}

/// All ones where the lowest bit is 1, zero where it is 0.
fn mask(bit: u128) -> u128 {
    0u128.wrapping_sub(bit & 1)
}
