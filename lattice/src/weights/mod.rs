//! Products with private weights: the server encrypts them once, the client multiplies ciphertexts by its shares.
//!
//! Source: the client's integer product with encrypted weights is Nimbus' (arXiv 2411.15707), several secrets for one
//! public polynomial are Bae, Cheon, Hanrot, Park and Stehlé's (CRYPTO 2024). In `R = Z[X]/(X^n + 1)`, with ternary
//! secrets `s_1 … s_B` of the server, one for a block of `n` columns, and Δ = 2^(log q - ring):
//!
//! ```text
//! once, server   a_k from a public seed, for every weight row k;  b_(k,j) = a_k s_j + e + Δ W[k, block j]   mod 2^log q
//!                p_0 from the seed;  p_j = p_0 s_j + e                                                    mod 2^log key
//! a row, client  A = Σ x_k a_k + (p_0 u + e') 2^(log q - log key),   B_j = Σ x_k b_(k,j) + p_j u 2^(…) + R_j
//!                u ternary, R_j uniform;  it sends A rounded to ring + 12 bits, B to ring + 4,  and keeps -⌊R/Δ⌉
//!        server  ⌊(B_j - A s_j)/Δ⌉
//! ```
//!
//! The two sum to `x W`, up to the error that [`noise`] bounds. Half a round trip; bits as [`message_bytes`] says.
//! Products are mod 2^bits for any `bits` up to the set's ring: the same with all moduli divided by 2^(ring - bits).
//!
//! *Client's view*: RLWE samples with `B` secrets. *Server's view*: B is uniform, since R is; given that, the bits of A
//! that are sent are above the RLWE sample `(p_0, p_0 u + e')` of the client's fresh secret `u`, which is pseudorandom to
//! whoever knows all `a_k` and `s_j`. So both are simulated from sizes, and the server's part is determined by the
//! client's and the product, up to the noise's rounding.

mod client;
mod encrypt;
pub mod file;
mod gemm;
pub mod noise;
mod server;
#[cfg(test)]
mod tests;
mod words;

use ombra_kernels::aes::{AesIsa, Cipher};

pub use self::client::{ClientKey, Sums, client_product};
pub use self::encrypt::{ServerKey, encrypt_block};
pub use self::server::server_finish;
use crate::bits::packed_bytes;
use crate::error::{Error, Result, check_length};
use crate::params::WeightSet;

/// Bits of A below a unit of the product that are sent.
const BELOW_A: u32 = 12;
/// Bits of B below a unit of the product that are sent.
const BELOW_B: u32 = 4;

/// What a matrix of private weights is called in its file, and its sizes: `rows` inputs, `cols` outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of the matrix under its key. No two matrices have one number.
    pub index: u32,
    /// Inputs of a product.
    pub rows: usize,
    /// Outputs of a product.
    pub cols: usize,
}

impl Shape {
    /// Blocks of columns, each with a secret of its own.
    pub fn blocks(&self, set: &WeightSet) -> usize {
        self.cols.div_ceil(set.n)
    }

    /// Bytes of the encrypted matrix.
    pub fn bytes(&self, set: &WeightSet) -> usize {
        words::matrix_bytes(set, self.rows, self.cols)
    }

    /// Bytes of one block of it; blocks follow one another.
    pub fn block_bytes(&self, set: &WeightSet, block: usize) -> usize {
        words::matrix_bytes(set, self.rows, self.block_cols(set, block))
    }

    fn block_cols(&self, set: &WeightSet, block: usize) -> usize {
        self.cols.saturating_sub(block * set.n).min(set.n)
    }
}

/// What the client needs besides the encrypted weights: seeds and the public key that randomises answers.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    set: &'static WeightSet,
    seed: [u8; 16],
    /// For every block `p_j`, mod 2^log key.
    parts: Vec<Vec<u128>>,
}

/// Purposes of the public seed's streams: `p_0`, and from here on the matrices.
const FIRST_MATRIX: u64 = 1;

impl PublicKey {
    /// The parameter set.
    pub fn set(&self) -> &'static WeightSet {
        self.set
    }

    /// Blocks that it serves.
    pub fn blocks(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of the key of `blocks` blocks.
    pub fn bytes(set: &WeightSet, blocks: usize) -> usize {
        16 + blocks * set.n * set.log_key as usize / 8
    }

    /// The key as bytes, as [`PublicKey::read`] takes them.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.seed);
        for part in &self.parts {
            for word in part {
                out.extend(&word.to_le_bytes()[..self.set.log_key as usize / 8]);
            }
        }
    }

    /// The key in `bytes`. Refused when the number of bytes is another.
    pub fn read(set: &'static WeightSet, blocks: usize, bytes: &[u8]) -> Result<PublicKey> {
        let word_bytes = set.log_key as usize / 8;
        let expected = blocks.checked_mul(set.n * word_bytes).and_then(|n| n.checked_add(16));
        let Some((seed, words)) = bytes.split_first_chunk().filter(|_| expected == Some(bytes.len())) else {
            return Err(Error::new(format!("the public key of {blocks} blocks does not have {} bytes", bytes.len())));
        };
        let word = |bytes: &[u8]| {
            let mut word = [0; 16];
            word[..word_bytes].copy_from_slice(bytes);
            u128::from_le_bytes(word)
        };
        let parts =
            words.chunks_exact(set.n * word_bytes).map(|part| part.chunks_exact(word_bytes).map(word).collect());
        Ok(PublicKey { set, seed: *seed, parts: parts.collect() })
    }

    fn cipher(&self) -> Cipher {
        Cipher::new(AesIsa::best(), &self.seed)
    }

    /// `p_0`, mod 2^log key.
    fn first_part(&self) -> Vec<u128> {
        first_part(self.set, &self.seed)
    }
}

fn first_part(set: &WeightSet, seed: &[u8; 16]) -> Vec<u128> {
    let mut words = vec![0; 2 * set.n];
    crate::random::Stream::new(seed, 0).words(&mut words);
    let mask = u128::MAX >> (128 - set.log_key);
    words.chunks_exact(2).map(|w| (u128::from(w[0]) | u128::from(w[1]) << 64) & mask).collect()
}

/// First block of the stream of a matrix's `a_k`.
fn stream_of(index: u32) -> u128 {
    u128::from(FIRST_MATRIX + u64::from(index)) << 64
}

/// A matrix of encrypted weights where it is: bytes of a file's body.
#[derive(Clone, Copy)]
pub struct EncryptedMatrix<'a> {
    shape: Shape,
    bytes: &'a [u8],
}

impl<'a> EncryptedMatrix<'a> {
    /// The matrix of `shape` in `bytes`. Refused when the number of bytes is another, or the matrix is empty.
    pub fn new(set: &WeightSet, shape: Shape, bytes: &'a [u8]) -> Result<EncryptedMatrix<'a>> {
        if shape.rows == 0 || shape.cols == 0 {
            return Err(Error::new("expected a matrix of weights, found an empty one"));
        }
        check_length("bytes of encrypted weights", bytes.len(), shape.bytes(set))?;
        Ok(EncryptedMatrix { shape, bytes })
    }

    /// Its number and sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }
}

/// Bytes of the client's message for `rows` rows of a product with `cols` columns, mod 2^bits.
pub fn message_bytes(set: &WeightSet, bits: u32, cols: usize, rows: usize) -> usize {
    rows * (packed_bytes(set.n, bits + BELOW_A) + packed_bytes(cols, bits + BELOW_B))
}

/// Refuses a ring that the set does not have.
fn check_ring(set: &WeightSet, bits: u32) -> Result<()> {
    if (1..=set.ring).contains(&bits) {
        return Ok(());
    }
    Err(Error::new(format!("expected a product mod 2^1 to 2^{}, found 2^{bits}", set.ring)))
}
