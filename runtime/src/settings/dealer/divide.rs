//! Division by a power of two, and a larger ring: one bit each way.
//!
//! Source: local shifts of both shares, whose wrap is a product of one private bit of each party, since the operand is far
//! from the ends of its ring. Parties and adversary: client, server and dealer, one semi-honest corruption.
//! Rounds: 1. Bits per element: 1 from the client, 1 from the server, and as many dealt to the server as the result has
//! bits more than the local shift leaves, in whole bytes. Error: the floor of the quotient or one more, with the chance
//! that the remainder has where shares are uniform; none without division. Operand: `abs x < 2^(ℓ − 2)`.
//!
//! ```text
//!   m = x^0 + 2^(ℓ−2) at the client, r = −x^1 at the server, modulo 2^ℓ;  n = 1 − msb(m), h = msb(r)
//!   wrap = n·h: m − r = x + 2^(ℓ−2) lies in [0, 2^(ℓ−1)), so m < r just when r is in the upper half and m is not
//!   client: (m ≫ f) − 2^(ℓ−2−f) + 2^(ℓ−f)·p0;  server: −(r ≫ f) + 2^(ℓ−f)·p1;  p0 + p1 = n·h modulo 2^w
//!   bits r_a = F(k_0), r_b = F(k_2); s0 = F(k_0), dealt s1 = r_a·r_b − s0
//!   exchanged d_a = n ⊕ r_a, d_b = h ⊕ r_b
//!   p0 = d_a·d_b + d_b(1 − 2d_a)·r_a + (1 − 2d_a)(1 − 2d_b)·s0;  p1 = d_a(1 − 2d_b)·r_b + (1 − 2d_a)(1 − 2d_b)·s1
//! ```
//!
//! Simulator. `d_a` is under a bit of `k_0`, `d_b` under one of `k_2`, and what is dealt under `s0` of `k_0`.

use ombra_ir::Result;
use ombra_ir::settings::wrap_bytes;

use super::share::Share;
use super::{Cx, Purpose};
use crate::backend::bits::words;
use crate::settings::rep3::share::ring_mask;

/// The quotient of `n` elements of a ring of `from` bits by `2^by`, in a ring of `to` bits.
pub async fn divide(cx: &Cx, x: &Share, n: usize, (from, to): (u8, u8), by: u8) -> Result<Share> {
    let width = wrap_bytes(from, to, by);
    if width == 0 {
        return Ok(local(cx.role(), x, from, by));
    }
    let bit = |plane: &[u64], i: usize| plane[i / 64] >> (i % 64) & 1;
    let mask = |key: u8| cx.draw(key, Purpose::BitMask, 0, words(n));
    if cx.role() == 2 {
        let (ra, rb, s0) = (mask(0)?, mask(2)?, cx.draw(0, Purpose::Dealt, 0, n)?);
        let dealt: Vec<u64> =
            s0.iter().enumerate().map(|(i, s)| (bit(&ra, i) & bit(&rb, i)).wrapping_sub(*s)).collect();
        cx.send(1, &dealt, 8 * width);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    let words_mod = shifted(role, x.own()?, from);
    let own_mask = mask(2 * role)?;
    let mut own = own_mask.clone();
    for (i, word) in words_mod.iter().enumerate() {
        // n = 1 − msb(m) at the client, h = msb(r) at the server.
        let private = (word >> (from - 1) & 1) ^ u64::from(role == 0);
        own[i / 64] ^= private << (i % 64);
    }
    cx.send_planes(peer, &own, 1, n);
    cx.round().await;
    let other = cx.take_planes(peer, 1, n)?;
    let third = if role == 0 { cx.draw(0, Purpose::Dealt, 0, n)? } else { cx.take(2, n, 8 * width)? };
    let sign = |d: u64| 1u64.wrapping_sub(d << 1);
    let quotient = |(i, word): (usize, &u64)| {
        let (own, other, r) = (bit(&own, i), bit(&other, i), bit(&own_mask, i));
        let both = if role == 0 { own } else { 0 };
        let wrap = other.wrapping_mul(sign(own).wrapping_mul(r).wrapping_add(both));
        let wrap = wrap.wrapping_add(sign(own).wrapping_mul(sign(other)).wrapping_mul(third[i]));
        unshifted(role, *word, from, by).wrapping_add(shl(wrap, from - by))
    };
    Ok(Share::of(words_mod.iter().enumerate().map(quotient).collect()))
}

/// The quotient in a ring that the shift leaves: each party shifts its own share.
pub fn local(role: u8, x: &Share, from: u8, by: u8) -> Share {
    x.map(|words| shifted(role, words, from).iter().map(|word| unshifted(role, *word, from, by)).collect())
}

/// `x^0 + 2^(ℓ−2)` at the client, `−x^1` at the server, modulo `2^ℓ`.
pub(in crate::settings) fn shifted(role: u8, x: &[u64], bits: u8) -> Vec<u64> {
    let mask = ring_mask(bits);
    match role {
        0 => x.iter().map(|x| x.wrapping_add(1 << (bits - 2)) & mask).collect(),
        _ => x.iter().map(|x| x.wrapping_neg() & mask).collect(),
    }
}

pub(in crate::settings) fn unshifted(role: u8, word: u64, bits: u8, by: u8) -> u64 {
    let quotient = word >> by.min(63);
    if role == 0 { quotient.wrapping_sub(shl(1, bits - 2 - by)) } else { quotient.wrapping_neg() }
}

/// `x · 2^by` modulo `2^64`.
pub(in crate::settings) fn shl(x: u64, by: u8) -> u64 {
    x.checked_shl(by.into()).unwrap_or(0)
}
