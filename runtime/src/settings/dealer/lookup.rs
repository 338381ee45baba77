//! The exponential by one lookup in a table of 32 cells.
//!
//! Source: one-hot lookups from a dealer with a hidden sign, after function-secret-shared look-up tables. Parties and
//! adversary: client, server and dealer, one semi-honest corruption. Rounds: 2. Bits per element: the window's, `6 + scale`
//! in whole bytes, and 64 each way; 32 + 128 dealt to the server. Error: 4e-6 at most, for −32 ≤ x ≤ 1/2.
//! Side channels: every cell of the table is read.
//!
//! ```text
//!   x = m − λ modulo 2^W, W = 6 + scale: m known to client and server; cells of 2^s units, s = scale + 1
//!   i = (m ≫ s) − (λ ≫ s) modulo 32, l = (m mod 2^s) − (λ mod 2^s): x = 2^s·i + l modulo 2^W, exactly and without a carry;
//!     i is the cell of x or the next one, and |l| < 2^s
//!   e^x = E[i]·e^(m mod 2^s)·e^(−(λ mod 2^s)); T[i] = E[i]·e^(m mod 2^s) is known for every i
//!   one-hot e of λ ≫ s: b^0 = F(k_0), b^1 = b^0 ⊕ e dealt; σ = b^0 − b^1 at λ ≫ s, which is 1 or −1 and the dealer's alone
//!   z^0 = Σ_j b^0_j T[μ − j] at the client, z^1 = −Σ_j b^1_j T[μ − j] at the server: z = σ·T[i]
//!   v = z + τ opened to both, τ^0 = F(k_0), τ^1 = F(k_2); D = σ·e^(−(λ mod 2^s)) and D·τ dealt
//!   e^x = D·v − D·τ, of 54 fraction bits in a ring of 64, divided to 29 in a ring of 32 without a message
//! ```
//!
//! Cells above 2, which operands up to 1/2 never meet, count as zero. Neither party may learn σ: with its own bits it would
//! tell half of the candidates for λ.
//!
//! Simulator. `m` is under λ^0 and λ^1 from `k_0` and `k_2`, `v` under τ, the vector and both dealt elements under streams
//! of `k_0`.

use ombra_ir::op::{EXP_SCALE, EXP_WINDOW};
use ombra_ir::{Diagnostic, Result};

use super::divide::local;
use super::products::{Operand, end, plus};
use super::share::Share;
use super::{Cx, Purpose};

/// Cells of the window.
const CELLS: u32 = 1 << (EXP_WINDOW - 1);
/// Fraction bits of the table.
const TABLE_SCALE: u8 = 30;
/// Fraction bits of what the dealer's factor has.
const FACTOR_SCALE: u8 = 24;
/// Ring of the sums.
const RING: u8 = 64;

/// `e^x` of `n` elements at `scale`, in a ring of [`EXP_RING`](ombra_ir::op::EXP_RING) bits with [`EXP_SCALE`] fraction bits.
pub async fn exp_digits(cx: &Cx, x: Operand<'_>, n: usize, scale: u8) -> Result<Share> {
    let (window, cell) = (EXP_WINDOW + scale, scale + 1);
    if window > 62 {
        return Err(Diagnostic::internal("E0803", "an exponential's window is out of range"));
    }
    let width = 8 * window.div_ceil(8);
    let begun = x.begin(cx, n, width, 0)?;
    let tau = |key: u8| cx.draw(key, Purpose::LookupMask, 0, n);
    let dealt = |part: u8| cx.draw(0, Purpose::Dealt, part, n);
    let vectors = || cx.draw(0, Purpose::OneHot, 0, n);
    let low = (1u64 << window) - 1;
    if cx.role() == 2 {
        let (lambda, tau) = (begun.lambda()?, plus(tau(0)?, &tau(2)?));
        let first = vectors()?;
        let at = |lambda: u64| ((lambda & low) >> cell) as u32;
        let second: Vec<u64> = first.iter().zip(&lambda).map(|(b, l)| b ^ 1 << at(*l)).collect();
        cx.send(1, &second, CELLS as u8);
        cx.round().await;
        let (mut factors, mut products) = (dealt(0)?, dealt(1)?);
        for (i, lambda) in lambda.iter().enumerate() {
            let rest = (lambda & ((1 << cell) - 1)) as f64 * unit(scale);
            // σ is 1 where the client's bit is set, −1 elsewhere.
            let sign = (first[i] >> at(*lambda) & 1).wrapping_mul(2).wrapping_sub(1);
            let factor = sign.wrapping_mul(scaled_exp(-rest));
            factors[i] = factor.wrapping_sub(factors[i]);
            products[i] = factor.wrapping_mul(tau[i]).wrapping_sub(products[i]);
        }
        cx.send(1, &factors, RING);
        cx.send(1, &products, RING);
        cx.round().await;
        return Ok(Share::nothing());
    }
    let (role, peer) = (cx.role(), 1 - cx.role());
    cx.round().await;
    let ended = end(cx, begun, n, width)?;
    let m = ended.words()?;
    let vector = if role == 0 { vectors()? } else { cx.take(2, n, CELLS as u8)? };
    let table = table();
    let sums = m.iter().zip(&vector).map(|(m, vector)| {
        let m = m & low;
        let rest = (m & ((1 << cell) - 1)) as f64 * unit(scale);
        let factor = scaled_exp(rest);
        let at = (m >> cell) as u32;
        let sum = (0..CELLS).fold(0u64, |sum, j| {
            let entry = table[(at.wrapping_sub(j) % CELLS) as usize];
            sum.wrapping_add((vector >> j & 1).wrapping_neg() & rounded(entry * factor))
        });
        if role == 0 { sum } else { sum.wrapping_neg() }
    });
    let own = plus(sums.collect(), &tau(2 * role)?);
    cx.send(peer, &own, RING);
    cx.round().await;
    let v = plus(own, &cx.take(peer, n, RING)?);
    let (factors, products) =
        if role == 0 { (dealt(0)?, dealt(1)?) } else { (cx.take(2, n, RING)?, cx.take(2, n, RING)?) };
    let value = v.iter().zip(factors.iter().zip(&products)).map(|(v, (d, p))| v.wrapping_mul(*d).wrapping_sub(*p));
    let share = Share::of(value.collect());
    Ok(local(role, &share, RING, TABLE_SCALE + FACTOR_SCALE - EXP_SCALE))
}

/// `e^x` at the factor's scale for `|x| ≤ 2`, to 1e-11 of it and without a branch: a Taylor polynomial of a sixteenth, to
/// the sixteenth power. Sums and products of doubles are the same on every machine.
fn scaled_exp(x: f64) -> u64 {
    let y = x / 16.0;
    let p = 1.0
        + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0 * (1.0 + y / 6.0 * (1.0 + y / 7.0))))));
    let (p2, unit) = (p * p, (1u64 << FACTOR_SCALE) as f64);
    let (p4, half) = (p2 * p2, 0.5);
    let p8 = p4 * p4;
    (p8 * p8 * unit + half) as u64
}

fn unit(scale: u8) -> f64 {
    libm::exp2(-f64::from(scale))
}

/// A product of a table's entry and a factor at the table's scale, rounded to the nearest.
fn rounded(product: u64) -> u64 {
    (product + (1 << (FACTOR_SCALE - 1))) >> FACTOR_SCALE
}

/// `e^(2i)` of every cell `i`, of which the last 24 are below zero; cells from 2 on are zero.
fn table() -> [u64; CELLS as usize] {
    std::array::from_fn(|i| {
        let below = i as i32 - if i >= 8 { CELLS as i32 } else { 0 };
        if below > 1 { 0 } else { libm::round(libm::exp(f64::from(2 * below)) * libm::exp2(TABLE_SCALE.into())) as u64 }
    })
}
