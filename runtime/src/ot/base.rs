//! Base transfers: 128 pairs of random keys, of which the receiver knows one each.
//!
//! Source: Masny and Rindal, "Endemic Oblivious Transfer" (2019/706), from Diffie-Hellman key agreement: two messages,
//! neither of which waits for the other, so both directions of a session take one exchange.
//! Adversary: semi-honest. Rounds: 1. Bytes: 32 from the sender, 8192 from the receiver.
//!
//! ```text
//!   sender     a random, A = a·G                                                                     sends A
//!   receiver   for every choice c: b random, r_(1-c) a random element, r_c = b·G − H_c(r_(1-c))      sends r_0, r_1
//!              key_c = K(b·A)
//!   sender     key_j = K(a·(r_j + H_j(r_(1-j)))),  j = 0, 1
//! ```
//!
//! *Sender's view*: `r_(1-c)` is uniform, and so is `r_c`, since `b·G` is: pairs do not depend on the choice, and the
//! simulator draws two random elements. *Receiver's view*: A, and `key_(1-c)`, which hashes `a·(r_(1-c) + H_(1-c)(r_c))`:
//! the discrete logarithm of that sum is not known to the receiver, so the product is as hard to compute as a
//! Diffie-Hellman value, and its hash by a random oracle is random. H and K hash the session, the direction, the number of the
//! transfer and j, so that one A serves all 128 (theorem 5.1 there with one key agreement a transfer; the reuse of A is
//! McQuoid, Rosulek and Roy's "Batching Base Oblivious Transfers", 2021/682, with tagged hashes).
//!
//! Side channels: the arithmetic of the group takes constant time; pairs are put in order by masks.

use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use ombra_ir::Result;
use sha2::Digest;
use zeroize::{Zeroize, Zeroizing};

use super::{BASE_COUNT, Direction, Random, SessionId, key_of, refused};

/// Bytes of an element of the group.
const POINT: usize = 32;
/// Bytes of both messages of a party: as sender of one direction and receiver of the other.
pub const FIRST_BYTES: usize = POINT + 2 * POINT * BASE_COUNT;

/// The sender of 128 transfers. Wiped on drop.
pub struct BaseSender {
    secret: Scalar,
    public: [u8; POINT],
}

/// The receiver of 128 transfers. Wiped on drop.
pub struct BaseReceiver {
    secrets: Vec<Scalar>,
    choices: u128,
    points: Vec<u8>,
}

impl Drop for BaseSender {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl Drop for BaseReceiver {
    fn drop(&mut self) {
        self.secrets.zeroize();
        self.choices.zeroize();
    }
}

fn random_bytes(random: Random<'_>) -> Result<Zeroizing<[u8; 64]>> {
    let mut bytes = Zeroizing::new([0; 64]);
    random(&mut bytes[..])?;
    Ok(bytes)
}

fn random_scalar(random: Random<'_>) -> Result<Scalar> {
    Ok(Scalar::from_bytes_mod_order_wide(&*random_bytes(random)?))
}

/// `H_j` of the other element of transfer `index`.
fn to_group(session: &SessionId, direction: Direction, index: usize, j: u8, other: &[u8]) -> RistrettoPoint {
    let mut bytes = Zeroizing::new([0; 64]);
    for (half, out) in bytes.chunks_exact_mut(32).enumerate() {
        let hash = session.hash(b"to group").chain_update([half as u8, direction as u8, j]);
        out.copy_from_slice(&hash.chain_update((index as u32).to_le_bytes()).chain_update(other).finalize());
    }
    RistrettoPoint::from_uniform_bytes(&bytes)
}

/// `K` of what both know of transfer `index`.
fn key(
    session: &SessionId,
    (direction, index, j): (Direction, usize, u8),
    public: &[u8],
    pair: &[u8],
    point: &RistrettoPoint,
) -> u128 {
    let bytes = Zeroizing::new(point.compress().to_bytes());
    let hash = session.hash(b"base key").chain_update([direction as u8, j]).chain_update((index as u32).to_le_bytes());
    u128::from_le_bytes(*key_of(hash.chain_update(public).chain_update(pair).chain_update(*bytes)))
}

/// The element in 32 bytes. Refused when they are none, or the neutral one.
fn point(bytes: &[u8]) -> Result<RistrettoPoint> {
    let found = CompressedRistretto::from_slice(bytes).ok().and_then(|point| point.decompress());
    found.filter(|point| !point.is_identity()).ok_or_else(|| refused("an element of the group was expected"))
}

impl BaseSender {
    /// A sender; its message is added to `message`.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(random: Random<'_>, message: &mut Vec<u8>) -> Result<BaseSender> {
        let secret = random_scalar(random)?;
        let public = RistrettoPoint::mul_base(&secret).compress().to_bytes();
        message.extend(public);
        Ok(BaseSender { secret, public })
    }

    /// Both keys of every transfer, from the receiver's message.
    ///
    /// # Errors
    /// `E0908` for what are no pairs of elements.
    pub fn keys(self, session: &SessionId, direction: Direction, points: &[u8]) -> Result<Zeroizing<Vec<u128>>> {
        if points.len() != 2 * POINT * BASE_COUNT {
            return Err(refused("pairs of the base have another length"));
        }
        let mut keys = Zeroizing::new(Vec::with_capacity(2 * BASE_COUNT));
        for (index, pair) in points.chunks_exact(2 * POINT).enumerate() {
            let (first, second) = pair.split_at(POINT);
            for (j, own, other) in [(0, first, second), (1, second, first)] {
                let sum = point(own)? + to_group(session, direction, index, j, other);
                let shared = Zeroizing::new(sum * self.secret);
                keys.push(key(session, (direction, index, j), &self.public, pair, &shared));
            }
        }
        Ok(keys)
    }
}

impl BaseReceiver {
    /// A receiver with random choices; its message is added to `message`.
    ///
    /// # Errors
    /// No randomness.
    pub fn new(
        session: &SessionId,
        direction: Direction,
        random: Random<'_>,
        message: &mut Vec<u8>,
    ) -> Result<BaseReceiver> {
        let mut choices = Zeroizing::new([0; 16]);
        random(&mut choices[..])?;
        let choices = u128::from_le_bytes(*choices);
        let mut receiver = BaseReceiver { secrets: Vec::with_capacity(BASE_COUNT), choices, points: Vec::new() };
        receiver.points.reserve_exact(2 * POINT * BASE_COUNT);
        for index in 0..BASE_COUNT {
            let choice = (choices >> index & 1) as u8;
            let secret = random_scalar(random)?;
            let other = RistrettoPoint::from_uniform_bytes(&*random_bytes(random)?).compress().to_bytes();
            let own = RistrettoPoint::mul_base(&secret) - to_group(session, direction, index, choice, &other);
            let (own, swap) = (own.compress().to_bytes(), choice.wrapping_neg());
            for (one, two) in [(own, other), (other, own)] {
                receiver.points.extend(one.iter().zip(two).map(|(one, two)| one ^ (swap & (one ^ two))));
            }
            receiver.secrets.push(secret);
        }
        message.extend(&receiver.points);
        Ok(receiver)
    }

    /// The choices, bit by bit, and the chosen key of every transfer, from the sender's message.
    ///
    /// # Errors
    /// `E0908` for what is no element.
    pub fn keys(
        self,
        session: &SessionId,
        direction: Direction,
        public: &[u8; POINT],
    ) -> Result<(Zeroizing<u128>, Zeroizing<Vec<u128>>)> {
        let sender = point(public)?;
        let mut keys = Zeroizing::new(Vec::with_capacity(BASE_COUNT));
        for (index, (secret, pair)) in self.secrets.iter().zip(self.points.chunks_exact(2 * POINT)).enumerate() {
            let choice = (self.choices >> index & 1) as u8;
            let shared = Zeroizing::new(sender * secret);
            keys.push(key(session, (direction, index, choice), public, pair, &shared));
        }
        Ok((Zeroizing::new(self.choices), keys))
    }
}
