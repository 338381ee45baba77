//! Element-wise products of shared values mod a prime, in the slots of ciphertexts.
//!
//! The client encrypts its shares, the server multiplies by its own, randomises and floods (Brakerski, Fan and
//! Vercauteren's scheme with plaintexts mod a prime; the exchange is BumbleBee's, eprint 2023/1678, without its
//! rotations). With N slots, q of three primes and p the modulus of values:
//!
//! ```text
//! client   Enc(x^0), Enc(y^0): (b, a) with b + a s = ⌊q m/p⌉ + e, m the polynomial whose slots are the values
//! server   c_0 = b_x ∘ y^1 + b_y ∘ x^1 + pk_0 u + f - ⌊q ρ/p⌉,   c_1 = a_x ∘ y^1 + a_y ∘ x^1 + pk_1 u + e'
//!          f uniform in ±2^105, ρ uniform mod p; both change to modulus p 2^11
//! client   ⌊(c_0 + c_1 s)/2^11⌉ = x^0 y^1 + y^0 x^1 - ρ   exactly; the server keeps ρ
//! ```
//!
//! One exchange: 150 bits up for an operand and slot, none for one that the server has already, 108 down. A square is one
//! term with twice the share.
//!
//! *Few values*: 1024, 2048 or 4096 of them stand in the slots of a polynomial in X^(N/width). Then only its coefficients
//! of `b` go up and of `c_0` down: 150 bits a value up, 54 (N + width) down. The security is that of the same ring.
//!
//! *Server's view*: RLWE ciphertexts under the client's key. *Client's view*: it knows `s`. `c_1` is masked by
//! `pk_1 u + e'`, an RLWE sample for the server's fresh `u`, pseudorandom whoever knows `s`. Given it, `c_0` is what the
//! decryption and the noise say; ρ makes the decryption uniform, and the noise of the product, at most 2^53, hides under
//! `f` up to a statistical distance of [`noise::distance`]. Changing moduli is computed from that. Uniform masks mod q
//! would not do: an error of one unit in one coefficient spoils all slots.

mod client;
pub mod noise;
#[cfg(test)]
mod oracle;
mod server;
#[cfg(test)]
mod tests;

pub use self::client::{SlotKey, decrypt_slots, encrypt_slots, slot_public_key};
pub use self::server::{SlotCiphertext, SlotPublicKey, multiply_slots, read_slot_ciphertext, read_slot_public_key};
use crate::bits::{pack, packed_bytes, unpack};
use crate::error::{Error, Result, check_length};
use crate::exact::Exact;
use crate::ntt::Ntt;
use crate::params::SlotSet;
use crate::random::Secret;
use crate::rns::{Encoding, Modulus, Poly, Ring};

/// Bits of a residue that is sent.
const RESIDUE: u32 = 50;
/// Bits of a coefficient of an answer: a prime of 43 bits times 2^11.
const ANSWER: u32 = 54;
/// Bits below a unit in an answer.
const BELOW: u32 = 11;
/// The flooding is uniform in ±2^105.
const FLOOD: u32 = 105;
/// How many values a ciphertext can hold.
pub const WIDTHS: [usize; 4] = [1024, 2048, 4096, 8192];

/// What both parties compute once for a set.
pub struct Slots {
    set: &'static SlotSet,
    ring: Ring<3>,
    encoding: Encoding<3>,
    /// Transforms mod p, by the number of values.
    values: Vec<Ntt>,
    exact: Exact,
}

impl Slots {
    /// Tables of a set.
    pub fn new(set: &'static SlotSet) -> Slots {
        let ring = Ring::new(set.n, set.primes);
        let encoding = ring.encoding(Modulus::Odd(set.prime));
        let values = WIDTHS.iter().map(|width| Ntt::new(*width, set.prime)).collect();
        Slots { set, ring, encoding, values, exact: Exact::new(set.n, ANSWER + 1) }
    }

    /// The modulus of values.
    pub fn prime(&self) -> u64 {
        self.set.prime
    }

    /// The smallest number of slots that holds `count` values.
    pub fn width(&self, count: usize) -> usize {
        WIDTHS.into_iter().find(|width| *width >= count).unwrap_or(self.set.n)
    }

    /// Bytes of an encrypted operand of `width` values.
    pub fn operand_bytes(&self, width: usize) -> usize {
        packed_bytes(3 * width, RESIDUE)
    }

    /// Bytes of an answer of `width` values.
    pub fn answer_bytes(&self, width: usize) -> usize {
        packed_bytes(self.set.n, ANSWER) + packed_bytes(width, ANSWER)
    }

    /// Bytes of the public key.
    pub fn public_key_bytes(&self) -> usize {
        self.operand_bytes(self.set.n)
    }

    fn transform(&self, width: usize) -> Result<&Ntt> {
        let found = self.values.iter().find(|t| t.len() == width);
        found.ok_or_else(|| Error::new(format!("expected 1024, 2048, 4096 or 8192 slots, found {width}")))
    }

    /// Coefficients of the polynomial whose slots are `values`, in X^(N/width). Refuses values that are not below p.
    fn polynomial(&self, width: usize, values: &[u64]) -> Result<Secret> {
        let transform = self.transform(width)?;
        check_length("values in slots", values.len(), width)?;
        if values.iter().fold(false, |above, x| above | (*x >= self.set.prime)) {
            return Err(Error::new(format!("expected values below {}", self.set.prime)));
        }
        let mut few = Secret(values.to_vec());
        transform.inverse(&mut few);
        Ok(self.spread(width, few))
    }

    /// A polynomial in X^(N/width) from its coefficients.
    fn spread(&self, width: usize, few: Secret) -> Secret {
        if width == self.set.n {
            return few;
        }
        let mut all = Secret::zeros(self.set.n);
        few.iter().zip(all.chunks_exact_mut(self.set.n / width)).for_each(|(x, out)| out[0] = *x);
        all
    }
}

/// Every `step`-th word.
fn pick(words: &[u64], step: usize) -> Secret {
    if step == 1 {
        return Secret(words.to_vec());
    }
    Secret(words.iter().step_by(step).copied().collect())
}

/// Residues of every `step`-th coefficient, or value, prime by prime.
fn write_residues(poly: &Poly<3>, step: usize) -> Vec<u8> {
    let each = packed_bytes(poly[0].len() / step, RESIDUE);
    let mut out = vec![0; 3 * each];
    for (residues, out) in poly.iter().zip(out.chunks_exact_mut(each)) {
        pack(&pick(residues, step), RESIDUE, out);
    }
    out
}

/// The same read again; between them are zeros. Refuses another length, and what is no residue.
fn read_residues(ring: &Ring<3>, step: usize, bytes: &[u8]) -> Result<Poly<3>> {
    let count = ring.len() / step;
    check_length("bytes of a ciphertext", bytes.len(), packed_bytes(3 * count, RESIDUE))?;
    let mut poly = ring.zero();
    let mut few = vec![0; count];
    for (k, (residues, bytes)) in poly.iter_mut().zip(bytes.chunks_exact(bytes.len() / 3)).enumerate() {
        unpack(bytes, RESIDUE, &mut few);
        let p = ring.prime(k);
        if few.iter().fold(false, |above, x| above | (*x >= p)) {
            return Err(Error::new("a ciphertext holds a number above its modulus"));
        }
        residues.iter_mut().step_by(step).zip(&few).for_each(|(out, x)| *out = *x);
    }
    Ok(poly)
}
