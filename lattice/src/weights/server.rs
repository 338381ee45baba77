//! The server's half: decryption of the client's products.

use rayon::prelude::*;

use super::{BELOW_A, BELOW_B, ServerKey, check_ring, message_bytes};
use crate::bits::{Unpacker, packed_bytes};
use crate::error::{Error, Result, check_length};

/// The server's shares of the products of `rows` rows with a matrix of `cols` columns, mod 2^bits, from the client's
/// message. Errors when `bits` is not of the key's ring, the matrix has more blocks than the key, or the message has
/// another length.
pub fn server_finish(key: &ServerKey, bits: u32, cols: usize, rows: usize, message: &[u8]) -> Result<Vec<u64>> {
    let set = key.set;
    check_ring(set, bits)?;
    if cols.div_ceil(set.n) > key.secrets.len() {
        return Err(Error::new(format!("the key has {} blocks, too few for {cols} columns", key.secrets.len())));
    }
    check_length("bytes of encrypted products", message.len(), message_bytes(set, bits, cols, rows))?;
    let mut out = vec![0; rows * cols];
    if rows == 0 || cols == 0 {
        return Ok(out);
    }
    let a_bytes = packed_bytes(set.n, bits + BELOW_A);
    let finish = |message: &[u8], out: &mut [u64]| {
        let (a, b) = message.split_at(a_bytes);
        let a = key.answers.transform_packed(a, bits + BELOW_A, set.n);
        let mut unpacker = Unpacker::new(b);
        let mut product = vec![0u128; set.n];
        for (out, secret) in out.chunks_mut(set.n).zip(&key.secrets) {
            key.answers.product(&a, secret, &mut product);
            for (out, product) in out.iter_mut().zip(&product) {
                let b = unpacker.pull(bits + BELOW_B) << (BELOW_A - BELOW_B);
                let noisy = b.wrapping_sub(*product).wrapping_add(1 << (BELOW_A - 1));
                *out = (noisy >> BELOW_A) as u64 & u64::MAX >> (64 - bits);
            }
        }
        crate::random::wipe_wide(&mut product);
    };
    let row_bytes = message_bytes(set, bits, cols, 1);
    let each = out.par_chunks_mut(cols).zip(message.par_chunks(row_bytes));
    each.for_each(|(out, message)| finish(message, out));
    Ok(out)
}
