//! The set-up of a session of two parties: the key that they share, and their transfers.
//!
//! Parties and adversary: client and server, one semi-honest corruption. Rounds: 4. Bytes: [`SETUP_SENT`], and of the client
//! 16 and a public key for every parameter set of ciphertexts that the module takes.
//!
//! ```text
//!   each    a nonce of 16 bytes, the server also the shared key        the session's id: plan, roles and both nonces
//!   each    the two messages of the transfers' set-up                  see [`crate::ot`]
//!   each    a digest of what it saw of it                              pads are of the id with that digest
//!   client  beside that, of every set a seed and a public key          see [`ombra_lattice::tiles`]
//! ```
//!
//! So two parties with other plans, with one role, or with messages of another session have no pad in common, and learn it
//! before there is one. The digest of the plan is compared when they connect, too.

use ombra_ir::module::{Module, Party};
use ombra_ir::settings::two_party::{SETUP_SENT, TILE_SEED, TREE_LEVELS, tile_sets};
use ombra_ir::{Diagnostic, Result};
use ombra_lattice::params::TileSet;
use ombra_lattice::random::Seed;
use ombra_lattice::tiles::{TileClient, TileServer, public_key_bytes, tile_client, tile_server};

use super::matrices::{TileKeys, refused};
use super::{Correlations, Keys};
use crate::exec::net::{KEYS_EPOCH, Net};
use crate::ot::base::FIRST_BYTES;
use crate::ot::tree::SECOND_BYTES;
use crate::ot::{self, CONFIRM_BYTES, SETUP_BYTES, SessionId};
use crate::prg::Key;
use crate::wiped::Zeroizing;

/// Bytes of a nonce, and of a key.
const NONCE: usize = 16;
/// Bytes of a frame of a public key at most: before a session has its memory, little may be on its way to it.
const KEY_FRAME: usize = 1 << 20;

const _: () = assert!(SETUP_SENT[0] == (NONCE + SETUP_BYTES) as u64, "what is declared is what the client sends");
const _: () = assert!(SETUP_SENT[1] == (2 * NONCE + SETUP_BYTES) as u64, "what is declared is what the server sends");

/// The keys, transfers and keys of ciphertexts of a session in which `module` is run, of the plan with the digest `plan`.
///
/// # Errors
/// `E0908` and `E0910` for a message that no party with this plan sends, `E0812` for a nonce of another length, no
/// randomness, and whatever ended the session.
pub fn agree(plan: &str, module: &Module, party: Party, net: &mut dyn Net) -> Result<Keys> {
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
    let sets = tile_sets(module);
    let mut tiles = if number == 0 { TileKeys::Client(Vec::new()) } else { TileKeys::Server(Vec::new()) };
    if let TileKeys::Client(keys) = &mut tiles {
        for set in &sets {
            let mut message = Vec::new();
            keys.push(client_key(set, &mut message)?);
            for piece in message.chunks(KEY_FRAME) {
                net.send(KEYS_EPOCH, 4, peer, piece.to_vec())?;
            }
        }
    }
    let transfers = unconfirmed.confirm(&net.recv(KEYS_EPOCH, 3, peer, CONFIRM_BYTES as u64)?)?;
    if let TileKeys::Server(keys) = &mut tiles {
        for set in &sets {
            let (mut message, whole) = (Vec::new(), TILE_SEED + public_key_bytes(set));
            while message.len() < whole {
                let piece = KEY_FRAME.min(whole - message.len()) as u64;
                message.extend(net.recv(KEYS_EPOCH, 4, peer, piece)?);
            }
            keys.push(server_key(set, &message)?);
        }
    }
    // Who has no third party to share a key with has one for itself.
    let keys = match <[u8; NONCE]>::try_from(key) {
        Ok(key) => Keys::new(&fresh, &Key::from_bytes(key), &private),
        Err(_) => Keys::new(&shared, &fresh, &private),
    };
    Ok(keys.with_pair(Correlations { transfers, tiles }))
}

/// A fresh key of the client for a parameter set; adds the seed of its public polynomials and the public key to a message.
pub(super) fn client_key(set: &'static TileSet, message: &mut Vec<u8>) -> Result<(u16, Box<dyn TileClient + Send>)> {
    let [public, secret, errors] = [Key::random()?, Key::random()?, Key::random()?];
    let client = tile_client(set, Seed::new(*secret.bytes())).map_err(refused)?;
    message.extend(public.bytes());
    message.extend(client.public_key(public.bytes(), Seed::new(*errors.bytes())));
    Ok((set.id, client))
}

/// What the server reads of it.
pub(super) fn server_key(set: &'static TileSet, message: &[u8]) -> Result<(u16, Box<dyn TileServer + Send>)> {
    let (seed, key) = message.split_first_chunk::<TILE_SEED>().unwrap_or((&[0; TILE_SEED], &[]));
    Ok((set.id, tile_server(set, seed, key).map_err(refused)?))
}
