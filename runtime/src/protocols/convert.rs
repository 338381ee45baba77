//! Shared bits as shared ring elements 0 and 1.
//!
//! Source: `b = c + b2 − 2·c·b2` with `c = b0 ⊕ b1` in the hands of one party, after the conversions of ABY3,
//! 2018/403, §5.4, with the product done by the two parties that hold `b2`.
//! Parties and adversary: three, one semi-honest corruption. Rounds: 2. Bits per element: `3ℓ`.
//! Correlation and error: none. Side channels: no branch or index on a secret.
//!
//! ```text
//!   role 0: c = b0 ⊕ b1, c0 = F(k_0), sends c1 = c − c0 to role 1
//!   role 2: sends c0·b2 − e0 to role 1, e0 = F(k_0)';  role 1: sends c1·b2 − e1 to role 2, e1 = F(k_1)'
//!   m = sum of both;  result (c0 − 2e0, c1 − 2e1, b2 − 2m)
//! ```
//!
//! Simulator. Role 1 receives two messages under masks from `k_0`, role 2 one under a mask from `k_1`; neither knows
//! that key, so all are uniform. Role 0 receives nothing.

use ombra_ir::Result;

use super::cx::{Cx, Purpose};
use crate::share::{Bits, Shared};

/// The bits in a ring of `bits`, with scale 0.
pub async fn bit_to_ring(cx: &Cx, x: &Bits, bits: u8) -> Result<Shared> {
    let n = x.n;
    let minus_twice = |x: u64, y: u64| x.wrapping_sub(y << 1);
    match cx.role() {
        0 => {
            let c0 = cx.draw(0, Purpose::ConvertBit, 0, n)?;
            let c1: Vec<u64> = (0..n).map(|i| (bit(&x.a, i) ^ bit(&x.b, i)).wrapping_sub(c0[i])).collect();
            cx.send(1, &c1, bits);
            cx.round().await;
            let e0 = cx.draw(0, Purpose::ConvertProduct0, 0, n)?;
            let e1 = cx.draw(1, Purpose::ConvertProduct1, 0, n)?;
            cx.round().await;
            Ok(Shared::new(zip(&c0, &e0, minus_twice), zip(&c1, &e1, minus_twice)))
        }
        1 => {
            let e1 = cx.draw(1, Purpose::ConvertProduct1, 0, n)?;
            cx.round().await;
            let c1 = cx.take(0, n, bits)?;
            let third = product_third(cx, 2, &c1, &x.b, &e1, bits).await?;
            Ok(Shared::new(zip(&c1, &e1, minus_twice), third))
        }
        _ => {
            let c0 = cx.draw(0, Purpose::ConvertBit, 0, n)?;
            let e0 = cx.draw(0, Purpose::ConvertProduct0, 0, n)?;
            cx.round().await;
            let third = product_third(cx, 1, &c0, &x.a, &e0, bits).await?;
            Ok(Shared::new(third, zip(&c0, &e0, minus_twice)))
        }
    }
}

/// Component 2 of the result: `b2 − 2m`, where `m` is the sum of `c·b2 − e` here and at `peer`.
async fn product_third(cx: &Cx, peer: u8, c: &[u64], b2: &[u64], e: &[u64], bits: u8) -> Result<Vec<u64>> {
    let n = c.len();
    let own: Vec<u64> = (0..n).map(|i| (c[i] & bit(b2, i).wrapping_neg()).wrapping_sub(e[i])).collect();
    cx.send(peer, &own, bits);
    cx.round().await;
    let other = cx.take(peer, n, bits)?;
    Ok((0..n).map(|i| bit(b2, i).wrapping_sub(own[i].wrapping_add(other[i]) << 1)).collect())
}

fn zip(x: &[u64], y: &[u64], f: impl Fn(u64, u64) -> u64) -> Vec<u64> {
    x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect()
}

fn bit(plane: &[u64], i: usize) -> u64 {
    plane[i / 64] >> (i % 64) & 1
}
