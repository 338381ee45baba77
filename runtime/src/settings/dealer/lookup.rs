//! The exponential by one lookup.
//!
//! Source: one-hot lookups from a dealer with a hidden sign, after function-secret-shared look-up tables. Parties and
//! adversary: client, server and dealer, one semi-honest corruption. Rounds: 2. Bits per element, of `N` cells in a ring of
//! `ℓ` ([`exp_table`]): the window's, `W = window + scale` in whole bytes, and `ℓ` each way; `N + 2ℓ` dealt to the server.
//! Error: 4e-6 at most from `−2^(window − 1)` to 1/2. Side channels: every cell of the table is read.
//!
//! ```text
//!   x = m − λ modulo 2^W: m known to client and server; cells of 2^s units, s = cell + scale
//!   i = (m ≫ s) − (λ ≫ s) modulo N, l = (m mod 2^s) − (λ mod 2^s): x = 2^s·i + l modulo 2^W, exactly and without a carry;
//!     i is the cell of x or the next one, and |l| < 2^s
//!   e^x = E[i]·e^(m mod 2^s)·e^(−(λ mod 2^s)); E and e^(m mod 2^s) are known
//!   one-hot e of λ ≫ s: b^0 = F(k_0), b^1 = b^0 ⊕ e dealt; σ = b^0 − b^1 at λ ≫ s, which is 1 or −1 and the dealer's alone
//!   z^0 = e^(m mod 2^s)·Σ_j b^0_j E[μ − j] at the client, z^1 the same of −b^1 at the server: z = σ·E[i]·e^(m mod 2^s), of
//!     which each party drops the low bits of its own
//!   v = z + τ opened to both, τ^0 = F(k_0), τ^1 = F(k_2); D = σ·e^(−(λ mod 2^s)) and D·τ dealt
//!   e^x = D·v − D·τ, divided to 29 fraction bits in a ring of 32 without a message
//! ```
//!
//! Cells above 1, which operands up to 1/2 never meet, count as zero. Neither party may learn σ: with its own bits it would
//! tell half of the candidates for λ.
//!
//! Simulator. `m` is under λ^0 and λ^1 from `k_0` and `k_2`, `v` under τ, the vector and both dealt elements under streams
//! of `k_0`.

use ombra_ir::settings::dealer::{exp_shift, exp_table};
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::entries::{Tables, sums_of_entries};
use ombra_kernels::isa::Isa;

use super::divide::local;
use super::products::{Operand, end, plus};
use super::share::Share;
use super::{Cx, Purpose};

/// Fraction bits of the table, whose largest entries' sum is below `2^12`.
const TABLE_SCALE: u8 = 44;
/// Fraction bits of what an entry is multiplied with, which is below `2^12`.
const REST_SCALE: u8 = 40;

/// `e^x` of `n` elements at `scale`, in a ring of [`EXP_RING`](ombra_ir::op::EXP_RING) bits with
/// [`EXP_SCALE`](ombra_ir::op::EXP_SCALE) fraction bits.
pub async fn exp_digits(cx: &Cx, x: Operand<'_>, n: usize, scale: u8, (window, tail): (u8, bool)) -> Result<Share> {
    let table = exp_table(window, tail);
    let (ring, cell) = (table.ring, table.cell + scale);
    if window + scale > 62 {
        return Err(Diagnostic::internal("E0803", "an exponential's window is out of range"));
    }
    let width = 8 * (window + scale).div_ceil(8);
    let begun = x.begin(cx, n, width, 0)?;
    let (per, vector_bits) = (table.count.div_ceil(64), table.count.min(64) as u8);
    let tau = |key: u8| cx.draw(key, Purpose::LookupMask, 0, n);
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, n);
    let vectors = || cx.draw(0, Purpose::OneHot, 0, per * n);
    let index = |x: u64| (x >> cell) as usize & (table.count - 1);
    let rest = |x: u64| (x & ((1 << cell) - 1)) as f64 * libm::exp2(-f64::from(scale));
    let factor_scale = ring - 3 - table.entry_scale;
    if cx.role() == 2 {
        let (lambda, tau) = (begun.lambda()?, plus(tau(0)?, &tau(2)?));
        let mut vector = vectors()?;
        let mut signs = Vec::with_capacity(n);
        for (vector, lambda) in vector.chunks_exact_mut(per).zip(&lambda) {
            let at = index(*lambda);
            // σ is 1 where the client's bit is set, −1 elsewhere.
            signs.push((vector[at / 64] >> (at % 64) & 1).wrapping_mul(2).wrapping_sub(1));
            vector[at / 64] ^= 1 << (at % 64);
        }
        cx.send(1, &vector, vector_bits);
        cx.round().await;
        let (mut factors, mut products) = (dealt(0)?, dealt(1)?);
        for (i, lambda) in lambda.iter().enumerate() {
            let factor = signs[i].wrapping_mul(scaled_exp(-rest(*lambda), factor_scale));
            factors[i] = factor.wrapping_sub(factors[i]);
            products[i] = factor.wrapping_mul(tau[i]).wrapping_sub(products[i]);
        }
        cx.send(1, &factors, ring);
        cx.send(1, &products, ring);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    cx.round().await;
    let ended = end(cx, begun, n, width)?;
    let m = ended.words()?;
    let vector = if role == 0 { vectors()? } else { cx.take(2, per * n, vector_bits)? };
    let at: Vec<usize> = m.iter().map(|m| index(*m)).collect();
    let sums = sums_of_entries(Isa::best(), &vector, &at, &Tables::new(&[entries(table.cell, table.count)]));
    let shift = u32::from(TABLE_SCALE + REST_SCALE - table.entry_scale);
    let own = m.iter().zip(sums).map(|(m, [sum])| {
        let entry = ((u128::from(sum) * u128::from(scaled_exp(rest(*m), REST_SCALE))) >> shift) as u64;
        if role == 0 { entry } else { entry.wrapping_neg() }
    });
    let own = plus(own.collect(), &tau(2 * role)?);
    cx.send(peer, &own, ring);
    cx.round().await;
    let v = plus(own, &cx.take(peer, n, ring)?);
    let (factors, products) =
        if role == 0 { (dealt(0)?, dealt(1)?) } else { (cx.take(2, n, ring)?, cx.take(2, n, ring)?) };
    let value = v.iter().zip(factors.iter().zip(&products)).map(|(v, (d, p))| v.wrapping_mul(*d).wrapping_sub(*p));
    let share = Share::of(value.collect());
    Ok(local(role, &share, ring, exp_shift(table)))
}

/// `e^x` with so many fraction bits for `|x| ≤ 8`, to 1e-10 of it and without a branch: a Taylor polynomial of a 64th, to the
/// 64th power. Sums and products of doubles are the same on every machine.
fn scaled_exp(x: f64, scale: u8) -> u64 {
    let y = x / 64.0;
    let p = 1.0
        + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0 * (1.0 + y / 6.0 * (1.0 + y / 7.0))))));
    let power = (0..6).fold(p, |p, _| p * p);
    (power * libm::exp2(f64::from(scale)) + 0.5) as u64
}

/// `e^(2^cell·i)` of every cell `i`, of which the last three quarters are below zero; cells from 2 on are zero.
fn entries(cell: u8, count: usize) -> Vec<i64> {
    let of = |i: usize| {
        let below = i as i64 - if i >= count / 4 { count as i64 } else { 0 };
        let exp = libm::exp(below as f64 * libm::exp2(f64::from(cell)));
        if below > 1 { 0 } else { libm::round(exp * libm::exp2(TABLE_SCALE.into())) as i64 }
    };
    (0..count).map(of).collect()
}
