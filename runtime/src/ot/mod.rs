//! Oblivious transfers between two parties: a few by public-key operations, any number by extension.
//!
//! One party *offers* two pads for every transfer, the other one *chooses* one of each two: the first does not learn which,
//! the second knows nothing of the other pad. All further protocols ([`pads`]) mask what they send with such pads.
//!
//! ```text
//!   base        128 transfers of random keys in each direction, by Diffie-Hellman in the group ristretto255     [base]
//!   trees       16 (or 32, …) punctured trees of seeds, the bits of Δ saying where their holes are              [tree]
//!   confirmed   both send a digest of what they saw of all this, and go on with a session id that it is part of
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
//! than it should is not detected, as everywhere in this setting. Messages of the set-up that were changed on their way, or
//! that belong to another session, another plan or the other role, are: the parties' digests differ.
//!
//! Assumptions, all of which hold for every session anew, since its id goes into every hash and every fixed key:
//! - computational Diffie-Hellman in ristretto255, with SHA-256 as a random oracle, for the base;
//! - AES-128 as a pseudorandom function of its key, for the streams of leaves;
//! - AES-128 under a known key as an ideal permutation, for trees and for the hash: `π(π(x) ⊕ t) ⊕ π(x)` is then a
//!   tweakable circular correlation-robust hash, as long as no tweak `t` is used twice for one `Δ`. A tweak is the label of
//!   a call with the direction of the transfer, and the number of a transfer within the call. A label is used once: a second
//!   use is refused.
//!
//! No branch and no index depends on a choice, a pad or `Δ`. Seeds, keys, rows and pads are wiped when they are dropped; what
//! the library of hashes keeps of its input until its memory is used again is not.

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
    /// `E0908` for a message of another length, `E0909` for a label that was used, or of a step that is over.
    fn offer(&self, label: Label, words: usize, message: &[u8]) -> Result<Offered>;
}

/// The party that chooses, in one direction of a session.
pub trait Choose {
    /// `64·words` transfers under `label`; what the other party needs for them is added to `message`.
    ///
    /// # Errors
    /// `E0909` for more transfers than a label has, and for a label that was used, or of a step that is over.
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

/// What both parties saw of a set-up: a hash of the messages of each.
struct Transcript([Sha256; 2]);

impl Transcript {
    fn add(&mut self, sender: u8, message: &[u8]) {
        let hash = &mut self.0[usize::from(sender & 1)];
        hash.update((message.len() as u64).to_le_bytes());
        hash.update(message);
    }

    /// The id of the session that began like this.
    fn end(self, session: &SessionId) -> SessionId {
        let [first, second] = self.0.map(|hash| hash.finalize());
        SessionId::of(&[&session.0, &first, &second])
    }
}

/// The set-up at one party: three messages each way, the first of [`FIRST_BYTES`], the second of [`SECOND_BYTES`] and the
/// last of [`CONFIRM_BYTES`], each of which is sent before the peer's is awaited.
pub struct Begun {
    session: SessionId,
    party: u8,
    depth: u8,
    sender: BaseSender,
    receiver: BaseReceiver,
    transcript: Transcript,
}

/// The set-up after its first messages.
pub struct Exchanged {
    session: SessionId,
    party: u8,
    depth: u8,
    grown: Trees,
    holes: Zeroizing<u128>,
    keys: Zeroizing<Vec<u128>>,
    transcript: Transcript,
}

/// The set-up before the peer has confirmed what it saw: there are no pads yet.
pub struct Unconfirmed {
    session: SessionId,
    party: u8,
    grown: Trees,
    holes: Zeroizing<u128>,
    received: Trees,
}

/// Bytes of a party's confirmation.
pub const CONFIRM_BYTES: usize = 32;

/// Bytes that each party sends in the set-up.
pub const SETUP_BYTES: usize = FIRST_BYTES + SECOND_BYTES + CONFIRM_BYTES;

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
    let mut transcript = Transcript(Default::default());
    transcript.add(party, &message);
    Ok((Begun { session: session.clone(), party, depth, sender, receiver, transcript }, message))
}

impl Begun {
    /// Takes the peer's first message and returns the second one.
    ///
    /// # Errors
    /// `E0908` for a message of another length, or with what is no element of the group.
    pub fn exchange(self, message: &[u8], random: Random<'_>) -> Result<(Exchanged, Vec<u8>)> {
        let Begun { session, party, depth, sender, receiver, mut transcript } = self;
        transcript.add(1 - party, message);
        let Some((public, points)) = message.split_first_chunk().filter(|_| message.len() == FIRST_BYTES) else {
            return Err(refused("the first message of the set-up has another length"));
        };
        let other = Direction::offered_by(1 - party);
        let pairs = sender.keys(&session, other, points)?;
        let (holes, keys) = receiver.keys(&session, Direction::offered_by(party), public)?;
        let mut grown = Trees::grow(&session, depth, random)?;
        let mut message = Vec::with_capacity(SECOND_BYTES);
        grown.send(&pairs, &mut message);
        transcript.add(party, &message);
        Ok((Exchanged { session, party, depth, grown, holes, keys, transcript }, message))
    }
}

impl Exchanged {
    /// Takes the peer's second message and returns the confirmation.
    ///
    /// # Errors
    /// `E0908` for a message of another length.
    pub fn finish(self, message: &[u8]) -> Result<(Unconfirmed, [u8; CONFIRM_BYTES])> {
        let Exchanged { session, party, depth, grown, holes, keys, mut transcript } = self;
        let received = Trees::receive(&session, depth, *holes, &keys, message)?;
        transcript.add(1 - party, message);
        let session = transcript.end(&session);
        let own = confirmation(&session, party);
        Ok((Unconfirmed { session, party, grown, holes, received }, own))
    }
}

impl Unconfirmed {
    /// Takes the peer's confirmation: both directions are ready.
    ///
    /// # Errors
    /// `E0908` where the peer saw another set-up than this party.
    pub fn confirm(self, message: &[u8]) -> Result<Transfers> {
        let Unconfirmed { session, party, grown, holes, received } = self;
        if message != confirmation(&session, 1 - party) {
            return Err(refused("the peer saw other messages of the set-up than were sent")
                .note("help      run the same plan and the same version at client and server"));
        }
        let offering = Offering::new(&session, Direction::offered_by(party), *holes, received);
        let choosing = Choosing::new(&session, Direction::offered_by(1 - party), grown);
        Ok(Transfers { offering: Box::new(offering), choosing: Box::new(choosing) })
    }
}

/// What a party says of a session's id, which no other one says.
fn confirmation(session: &SessionId, party: u8) -> [u8; CONFIRM_BYTES] {
    session.hash(b"confirm ").chain_update([party]).finalize().into()
}

/// A use of transfers that a program asks for and that there is none of.
fn unserved(what: &str) -> Diagnostic {
    Diagnostic::internal("E0909", "a use of oblivious transfers is refused").note(what)
}

/// A message that no party that follows the protocol sends.
fn refused(what: &str) -> Diagnostic {
    Diagnostic::peer("E0908", "a message of an oblivious transfer is refused").note(what)
}

/// All ones where the lowest bit is 1, zero where it is 0.
fn mask(bit: u128) -> u128 {
    0u128.wrapping_sub(bit & 1)
}
