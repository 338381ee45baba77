//! Rows of a secret table at positions that the client alone knows.
//!
//! Source: two-server private reading by point functions, Boyle, Gilboa and Ishai, 2018/707; resharing after Araki et
//! al., 2016/768. Parties and adversary: three, one semi-honest corruption; the client is role 0 and, like the others,
//! follows the protocol. Rounds: 2. Bits: two keys for each token, and `3ℓ` for each element of the result.
//! Correlation and error: none.
//! Side channels: roles 1 and 2 expand keys and multiply whole tables; role 0 reads its own component at its own ids.
//!
//! ```text
//!   W = 0 + w1 + w2: w1 known to roles 0 and 1, w2 to roles 1 and 2
//!   role 0 picks w1[id], sends a key of the point function e_id to each of the others
//!   roles 1 and 2 expand them, e_id = e1 + e2, and multiply: e1·w2 and e2·w2
//!   the sum of the three terms is W[id]; it is reshared
//! ```
//!
//! Simulator. One key of a pair is pseudorandom and does not depend on the position; the resharing has its own.

use ombra_ir::{Diagnostic, Result};
use zeroize::Zeroize;

use super::reshare::reshare_three;
use super::{Cx, Purpose};
use crate::backend::gemm::{MatRef, gemm_acc};
use crate::dpf::{self, DpfKey};
use crate::exec::side::row_index;
use crate::settings::rep3::share::Shared;
use crate::settings::words::broadcast::volume;

/// Keys that are expanded at once, a row of the left operand each.
const BATCH: usize = 32;

/// Sizes of a lookup.
#[derive(Clone, Copy)]
pub struct Table {
    /// Rows of the table.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Ids looked up.
    pub tokens: usize,
    /// Ring bits.
    pub bits: u8,
}

impl Table {
    /// Those of a lookup of ids in a table of a ring of `bits`. E0804 for more elements than can be counted.
    pub fn new(ids: &[usize], table: &[usize], bits: u8) -> Result<Self> {
        let (rows, columns) = table.split_first().map_or((0, &[][..]), |(rows, rest)| (*rows, rest));
        Ok(Table { rows, columns: volume(columns)?, tokens: volume(ids)?, bits })
    }
}

/// A table that is made block by block, or stored.
pub struct Rows<'a> {
    /// All of it, where this party has it stored: nothing is copied then.
    pub stored: Option<&'a Shared>,
    /// The sharing of `count` rows from `start` on.
    pub block: &'a dyn Fn(usize, usize) -> Result<Shared>,
    /// Rows that one block should have.
    pub at_once: usize,
}

/// The rows of `table` at `ids`, which role 0 alone gives; a negative id counts from the end.
///
/// # Errors
/// E0806 when an id is out of range, E0807 when a peer's key is none.
pub async fn embed(cx: &Cx, ids: Option<&[i64]>, table: &Rows<'_>, sizes: Table, threads: usize) -> Result<Shared> {
    let Table { rows, columns, tokens, bits } = sizes;
    let mut term = vec![0u64; volume(&[tokens, columns])?];
    match (cx.role(), ids) {
        (0, Some(ids)) if ids.len() == tokens => {
            send_keys(cx, ids, rows)?;
            for (&id, out) in ids.iter().zip(term.chunks_exact_mut(columns.max(1))) {
                let row = (table.block)(row_index(id, rows)?, 1)?;
                match (row.a.data(), row.b.data()) {
                    (None, Some(words)) if words.len() == out.len() => out.copy_from_slice(words),
                    _ => return Err(not_a_table(sizes)),
                }
            }
            cx.round().await;
        }
        (1 | 2, None) => {
            cx.round().await;
            let keys = take_keys(cx, tokens, rows)?;
            multiply(cx.role(), &keys, table, sizes, &mut term, threads)?;
        }
        _ => return Err(not_a_table(sizes)),
    }
    let shared = reshare_three(cx, term, bits).await?;
    if cx.role() == 2 {
        cx.round().await;
    }
    Ok(shared)
}

/// Sends a key of every id's point function to roles 1 and 2.
fn send_keys(cx: &Cx, ids: &[i64], rows: usize) -> Result<()> {
    let mut seeds = cx.draw_private(Purpose::EmbedSeed, 0, 4 * ids.len());
    for (&id, seed) in ids.iter().zip(seeds.chunks_exact(4)) {
        let mut bytes = seed.iter().flat_map(|word| word.to_le_bytes());
        let mut fill = |out: &mut [u8]| out.iter_mut().zip(&mut bytes).for_each(|(out, byte)| *out = byte);
        let (first, second) = dpf::generate(row_index(id, rows)?, rows, &mut fill)?;
        cx.send_bytes(1, &first.to_bytes());
        cx.send_bytes(2, &second.to_bytes());
    }
    seeds.zeroize();
    Ok(())
}

fn take_keys(cx: &Cx, tokens: usize, rows: usize) -> Result<Vec<DpfKey>> {
    let party = cx.role() - 1;
    (0..tokens)
        .map(|_| {
            let key = cx.take_with(0, dpf::key_len(rows), |bytes| DpfKey::from_bytes(bytes, rows))?;
            key.ok().filter(|key| key.party() == party).ok_or_else(|| {
                Diagnostic::peer("E0807", "a key of a point function is malformed")
                    .note("the client must run the same version of ombra-run")
            })
        })
        .collect()
}

/// Adds the product of the expanded keys and this role's component of the table to `out`.
fn multiply(role: u8, keys: &[DpfKey], table: &Rows<'_>, sizes: Table, out: &mut [u64], threads: usize) -> Result<()> {
    let Table { rows, columns, .. } = sizes;
    if columns == 0 {
        return Ok(());
    }
    let mut units = vec![0u64; volume(&[keys.len().min(BATCH), rows])?];
    for (keys, out) in keys.chunks(BATCH).zip(out.chunks_mut(BATCH * columns)) {
        for (key, unit) in keys.iter().zip(units.chunks_exact_mut(rows.max(1))) {
            dpf::eval_full(key, rows, unit)?;
        }
        for start in (0..rows).step_by(table.at_once) {
            let count = table.at_once.min(rows - start);
            let made;
            let (block, from) = match table.stored {
                Some(all) => (all, start * columns),
                None => {
                    made = (table.block)(start, count)?;
                    (&made, 0)
                }
            };
            let component = if role == 1 { &block.b } else { &block.a };
            let words = component.data().and_then(|words| words.get(from..from + count * columns));
            let words = words.ok_or_else(|| not_a_table(sizes))?;
            let left = MatRef::new(units.get(start..).unwrap_or(&[]), keys.len(), count, rows, 1)?;
            gemm_acc(left, MatRef::row_major(words, count, columns)?, out, threads);
        }
    }
    units.zeroize();
    Ok(())
}

fn not_a_table(sizes: Table) -> Diagnostic {
    Diagnostic::internal("E0804", "a lookup takes ids of role 0 and a weight as its table")
        .note(format!("expected  {} ids and a table of {} rows of {}", sizes.tokens, sizes.rows, sizes.columns))
}
