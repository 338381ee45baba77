//! The set-up of a session of two parties: the key that they share, and their transfers.
//!
//! Parties and adversary: client and server, one semi-honest corruption. Rounds: 4. Bytes: [`SETUP_SENT`].
//!
//! ```text
//!   each    a nonce of 16 bytes, the server also the shared key        the session's id: plan, roles and both nonces
//!   each    the two messages of the transfers' set-up                  see [`crate::ot`]
//!   each    a digest of what it saw of it                              pads are of the id with that digest
//! ```
//!
//! So two parties with other plans, with one role, or with messages of another session have no pad in common, and learn it
//! before there is one. The digest of the plan is compared when they connect, too.

use ombra_ir::module::Party;
use ombra_ir::settings::two_party::{SETUP_SENT, TREE_LEVELS};
use ombra_ir::{Diagnostic, Result};

use super::Keys;
use crate::exec::net::{KEYS_EPOCH, Net};
use crate::ot::base::FIRST_BYTES;
use crate::ot::tree::SECOND_BYTES;
use crate::ot::{self, CONFIRM_BYTES, SETUP_BYTES, SessionId};
use crate::prg::Key;
use crate::wiped::Zeroizing;

/// Bytes of a nonce, and of a key.
const NONCE: usize = 16;

const _: () = assert!(SETUP_SENT[0] == (NONCE + SETUP_BYTES) as u64, "what is declared is what the client sends");
const _: () = assert!(SETUP_SENT[1] == (2 * NONCE + SETUP_BYTES) as u64, "what is declared is what the server sends");

/// The keys and transfers of a session in which the plan with the digest `plan` is run.
///
/// # Errors
/// `E0908` for a message that no party with this plan sends, `E0812` for a nonce of another length, no randomness, and
/// whatever ended the session.
pub fn agree(plan: &str, party: Party, net: &mut dyn Net) -> Result<Keys> {
    let (number, peer) = match party {
        Party::Client => (0, Party::Server),
        _ => (1, Party::Client),
    };
    let [nonce, shared, fresh, private] = [Key::random()?, Key::random()?, Key::random()?, Key::random()?];
    let mut message = nonce.bytes().to_vec();
    if number == 1 {
        message.extend(shared.bytes());
    }
    net.send(KEYS_EPOCH, 0, peer, message)?;
    let length = if number == 1 { NONCE } else { 2 * NONCE };
    let other = Zeroizing::new(net.recv(KEYS_EPOCH, 0, peer, length as u64)?);
    let Some((other, key)) = other.split_first_chunk::<NONCE>().filter(|(_, key)| NONCE + key.len() == length) else {
        return Err(Diagnostic::peer("E0812", format!("{peer} sent a nonce of another length")));
    };
    let nonces = if number == 0 { [nonce.bytes(), other] } else { [other, nonce.bytes()] };
    let roles = [Party::Client, Party::Server].map(Party::name).map(str::as_bytes);
    let session = SessionId::of(&[plan.as_bytes(), roles[0], nonces[0], roles[1], nonces[1]]);
    let (begun, message) = ot::begin(&session, number, TREE_LEVELS, &mut ot::os_random)?;
    net.send(KEYS_EPOCH, 1, peer, message)?;
    let (exchanged, message) =
        begun.exchange(&net.recv(KEYS_EPOCH, 1, peer, FIRST_BYTES as u64)?, &mut ot::os_random)?;
    net.send(KEYS_EPOCH, 2, peer, message)?;
    let (unconfirmed, message) = exchanged.finish(&net.recv(KEYS_EPOCH, 2, peer, SECOND_BYTES as u64)?)?;
    net.send(KEYS_EPOCH, 3, peer, message.to_vec())?;
    let transfers = unconfirmed.confirm(&net.recv(KEYS_EPOCH, 3, peer, CONFIRM_BYTES as u64)?)?;
    // Who has no third party to share a key with has one for itself.
    let keys = match <[u8; NONCE]>::try_from(key) {
        Ok(key) => Keys::new(&fresh, &Key::from_bytes(key), &private),
        Err(_) => Keys::new(&shared, &fresh, &private),
    };
    Ok(keys.with_transfers(transfers))
}
