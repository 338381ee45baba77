//! The server's keys, and the encryption of its weights.

use ombra_kernels::aes::FILL;
use rayon::prelude::*;

use super::words::{PANEL, read_row, row_bytes, write_row};
use super::{PublicKey, Shape, first_part, stream_of};
use crate::error::{Error, Result, check_length};
use crate::exact::{Exact, Ternary, draw_ternary};
use crate::lanes::bytes_of;
use crate::params::WeightSet;
use crate::random::{Secret, Stream};

/// The server's secrets, one for every block of columns, and what they are made from. It has no `Debug`.
pub struct ServerKey {
    pub(super) set: &'static WeightSet,
    /// Products of words of answers.
    pub(super) answers: Exact,
    pub(super) secrets: Vec<Ternary>,
    /// Products of words of ciphertexts, and the secrets for them.
    wide: Exact,
    wide_secrets: Vec<Ternary>,
    seed: zeroize::Zeroizing<[u8; 16]>,
    public: PublicKey,
}

/// Purposes of the secret seed's streams: the public seed, secrets, errors of the public key; then errors of weights.
const PUBLIC_SEED: u64 = 0;
const SECRETS: u64 = 1;
const KEY_ERRORS: u64 = 2;
const WEIGHT_ERRORS: u64 = 1 << 32;

impl ServerKey {
    /// The keys of `blocks` blocks of columns, all of them from `seed`, which is as secret as they are. The same seed
    /// gives the same keys and the same encryptions: one seed belongs to one model.
    pub fn new(set: &'static WeightSet, blocks: usize, seed: &[u8; 16]) -> ServerKey {
        let mut public_seed = [0; 2];
        Stream::new(seed, PUBLIC_SEED).words(&mut public_seed);
        let public_seed = (u128::from(public_seed[0]) | u128::from(public_seed[1]) << 64).to_le_bytes();
        let answers = Exact::new(set.n, set.log_key);
        let wide = Exact::new(set.n, set.log_q);
        let (mut stream, mut errors) = (Stream::new(seed, SECRETS), Stream::new(seed, KEY_ERRORS));
        let (mut secrets, mut wide_secrets, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let first = answers.transform(&first_part(set, &public_seed), set.log_key);
        let mask = u128::MAX >> (128 - set.log_key);
        for _ in 0..blocks {
            let small = draw_ternary(&mut stream, set.n);
            let secret = answers.ternary(&small);
            let mut part = vec![0; set.n];
            answers.product(&first, &secret, &mut part);
            let mut error = Secret::zeros(set.n);
            errors.errors(&mut error);
            part.iter_mut().zip(error.iter()).for_each(|(p, e)| *p = p.wrapping_add(widen(*e)) & mask);
            parts.push(part);
            secrets.push(secret);
            wide_secrets.push(wide.ternary(&small));
        }
        let public = PublicKey { set, seed: public_seed, parts };
        ServerKey { set, answers, secrets, wide, wide_secrets, seed: zeroize::Zeroizing::new(*seed), public }
    }

    /// What the client gets.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }
}

/// A small number in two's complement as a wide word.
pub(super) fn widen(small: u64) -> u128 {
    i128::from(small.cast_signed()).cast_unsigned()
}

/// Encrypts one block of a matrix's columns: `weights` holds its `shape.rows` × (at most n) elements mod 2^ring, row by
/// row. The blocks of a matrix one after another are the matrix's bytes. Errors when the block is not the matrix's, or
/// `weights` has another length.
pub fn encrypt_block(key: &ServerKey, shape: Shape, block: usize, weights: &[u64]) -> Result<Vec<u8>> {
    let set = key.set;
    let cols = shape.block_cols(set, block);
    if cols == 0 || block >= key.secrets.len() {
        return Err(Error::new(format!("expected a block below {}, found {block}", key.secrets.len())));
    }
    if shape.index >= 1 << 31 {
        return Err(Error::new(format!("expected fewer than 2^31 matrices, found number {}", shape.index)));
    }
    check_length("weights", weights.len(), shape.rows * cols)?;
    let (panels, row) = (cols.div_ceil(PANEL), row_bytes(set));
    let mut out = vec![0; shape.block_bytes(set, block)];
    let cipher = key.public.cipher();
    let delta = set.log_q - set.ring;
    let mask = u128::MAX >> (128 - set.log_q);
    // One row of all panels, as it stands in them.
    let encrypt = |k: usize| -> Vec<u8> {
        let mut a = vec![0; set.n];
        let mut raw = vec![0; row / 8];
        for (panel, a) in a.chunks_exact_mut(PANEL).enumerate() {
            let first = stream_of(shape.index) + ((panel * shape.rows + k) * set.word_bytes()) as u128;
            cipher.keystream::<FILL>(first, &mut raw);
            read_row(bytes_of(&raw), set.word_bytes(), a);
        }
        let mut words = vec![0; set.n];
        key.wide.product(&key.wide.transform(&a, set.log_q), &key.wide_secrets[block], &mut words);
        let mut error = Secret::zeros(set.n);
        let purpose = WEIGHT_ERRORS * (u64::from(shape.index) + 1) + k as u64;
        let mut stream = Stream::new(&key.seed, purpose);
        stream.seek((block * set.n / 2) as u64);
        stream.errors(&mut error);
        for (word, error) in words.iter_mut().zip(error.iter()) {
            *word = word.wrapping_add(widen(*error));
        }
        for (word, weight) in words.iter_mut().zip(&weights[k * cols..][..cols]) {
            *word = word.wrapping_add(u128::from(*weight) << delta);
        }
        words.iter_mut().for_each(|word| *word &= mask);
        words[cols..].fill(0);
        let mut bytes = vec![0; panels * row];
        for (words, bytes) in words.chunks_exact(PANEL).zip(bytes.chunks_exact_mut(row)) {
            write_row(words, set.word_bytes(), bytes);
        }
        bytes
    };
    // Some rows at a time, so that they are not all held twice.
    for first in (0..shape.rows).step_by(64) {
        let rows: Vec<Vec<u8>> = (first..shape.rows.min(first + 64)).into_par_iter().map(encrypt).collect();
        for (k, bytes) in rows.iter().enumerate() {
            for (panel, bytes) in bytes.chunks_exact(row).enumerate() {
                out[(panel * shape.rows + first + k) * row..][..row].copy_from_slice(bytes);
            }
        }
    }
    Ok(out)
}
