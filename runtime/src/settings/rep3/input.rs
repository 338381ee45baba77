//! A value that one party knows, turned into a sharing.
//!
//! Source: Araki et al., 2016/768, §2. Parties and adversary: three, one semi-honest corruption.
//! Rounds: 1. Bits per element: `ℓ`. Correlation and error: none.
//!
//! An input `x` of role 0 is `(F(k_0), x − F(k_0), 0)`: role 0 sends component 1 to role 1. Simulator: role 1 does not
//! know `k_0`, so the message is uniform; role 2 receives nothing.
//!
//! A weight `w` of the server (party 1) is `(0, F(k_1), w − F(k_1))`: the server sends component 2 to the helper (party
//! 2), which does not know `k_1`. The client needs no message. This happens once for many runs, outside of any op.

use ombra_ir::{Diagnostic, Result};

use super::{Cx, Purpose};
use crate::settings::rep3::share::{Component, Shared};

/// Shares `n` elements of a ring of `bits` that role 0 gives as `value`; the other roles give `None`.
pub async fn input(cx: &Cx, value: Option<Vec<u64>>, n: usize, bits: u8) -> Result<Shared> {
    match (cx.role(), value) {
        (0, Some(mut x)) if x.len() == n => {
            let x0 = cx.draw(0, Purpose::Input, 0, n)?;
            x.iter_mut().zip(&x0).for_each(|(x, r)| *x = x.wrapping_sub(*r));
            cx.send(1, &x, bits);
            cx.round().await;
            Ok(Shared::new(x0, x))
        }
        (1, None) => {
            cx.round().await;
            Ok(Shared { a: cx.take(0, n, bits)?.into(), b: Component::Zero })
        }
        (2, None) => Ok(Shared { a: Component::Zero, b: cx.draw(0, Purpose::Input, 0, n)?.into() }),
        _ => Err(Diagnostic::internal("E0804", "an input is given by role 0 alone, with the size of its type")
            .note(format!("expected  {n} elements"))),
    }
}
