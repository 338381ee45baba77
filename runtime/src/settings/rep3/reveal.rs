//! A sharing opened to role 0.
//!
//! Source: Araki et al., 2016/768, §2. Parties and adversary: three, one semi-honest corruption.
//! Rounds: 1. Bits per element: `ℓ`. Correlation and error: none.
//!
//! Role 1 sends component 2. Simulator: the message is the output less the two components that role 0 holds.

use ombra_ir::Result;

use super::Cx;
use crate::settings::rep3::share::{Shared, ring_mask};

/// The `n` elements of a ring of `bits`, at role 0 only.
pub async fn reveal(cx: &Cx, x: &Shared, n: usize, bits: u8) -> Result<Option<Vec<u64>>> {
    if cx.role() == 1 {
        cx.send(0, &x.b.to_vec(n), bits);
    }
    cx.exchange().await;
    if cx.role() != 0 {
        return Ok(None);
    }
    let mut value = cx.take(1, n, bits)?;
    let mask = ring_mask(bits);
    value.iter_mut().zip(x.both(n)).for_each(|(v, own)| *v = v.wrapping_add(own) & mask);
    Ok(Some(value))
}
