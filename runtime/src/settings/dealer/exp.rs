//! The exponential by one lookup.
//!
//! Source, parties and adversary, rounds, simulator and side channels: those of a [`lookup`](super::lookup) of one product.
//! Bits per element, of `N` cells in a ring of `ℓ` ([`exp_table`]): the window's, `W = window + scale` in whole bytes, and `ℓ`
//! each way; `N + 2ℓ` dealt to the server. Error: 4e-6 at most from `−2^(window − 1)` to 1/2.
//!
//! ```text
//!   cells of 2^s units, s = cell + scale: i = (m ≫ s) − (λ ≫ s) modulo N, l = (m mod 2^s) − (λ mod 2^s)
//!     x = 2^s·i + l modulo 2^W, exactly and without a carry: i is the cell of x or the next one, and |l| < 2^s
//!   e^x = E[i]·e^(m mod 2^s)·e^(−(λ mod 2^s)): the first two are P_0, of whose shares each party drops the low bits of its
//!     own, the third is w_0; divided to 29 fraction bits in a ring of 32 without a message
//! ```
//!
//! Cells above 1, which operands up to 1/2 never meet, count as zero.

use ombra_ir::settings::dealer::{ExpTable, exp_shift, exp_table};
use ombra_ir::{Diagnostic, Result};
use ombra_kernels::entries::{Tables, sums_of_entries};
use ombra_kernels::isa::Isa;

use super::Cx;
use super::divide::local;
use super::lookup::{Sizes, look_up};
use super::products::Operand;
use super::share::Share;
use crate::settings::one_hot::OneHot;

/// Fraction bits of the table, whose largest entries' sum is below `2^12`.
const TABLE_SCALE: u8 = 44;
/// Fraction bits of what an entry is multiplied with, which is below `2^12`.
const REST_SCALE: u8 = 40;

/// `e^x` of `n` elements at `scale`, in a ring of [`EXP_RING`](ombra_ir::op::EXP_RING) bits with
/// [`EXP_SCALE`](ombra_ir::op::EXP_SCALE) fraction bits.
pub async fn exp_digits(cx: &Cx, x: Operand<'_>, n: usize, scale: u8, (window, tail): (u8, bool)) -> Result<Share> {
    let table = exp_table(window, tail);
    if window + scale > 62 {
        return Err(Diagnostic::internal("E0803", "an exponential's window is out of range"));
    }
    let one_hot = OneHot { cell: table.cell + scale, count: table.count };
    let rest = |x: u64| one_hot.low(x) as f64 * libm::exp2(-f64::from(scale));
    let factor = |lambda, _| scaled_exp(-rest(lambda), table.ring - 3 - table.entry_scale);
    let entries = ExpEntries::new(table);
    let shares = |vectors: &[u64], m: &[u64], second: bool| {
        let at: Vec<usize> = m.iter().map(|m| one_hot.index(*m)).collect();
        let sums = sums_of_entries(Isa::best(), vectors, &at, &Tables::new(std::array::from_ref(&entries.cells)));
        let own = m.iter().zip(sums).map(|(m, [sum])| {
            let entry = entries.scaled(sum, rest(*m));
            if second { entry.wrapping_neg() } else { entry }
        });
        Ok([own.collect()])
    };
    let sizes = Sizes { window: window + scale, one_hot, bits: table.ring };
    let share = look_up(cx, x, n, sizes, factor, shares).await?;
    Ok(local(cx.role(), &share, table.ring, exp_shift(table)))
}

/// The entries of a table, `e^(2^cell·i)` of every cell.
pub(in crate::settings) struct ExpEntries {
    cells: Vec<i64>,
    shift: u32,
}

impl ExpEntries {
    /// Those of `table`.
    pub(in crate::settings) fn new(table: ExpTable) -> Self {
        let shift = u32::from(TABLE_SCALE + REST_SCALE - table.entry_scale);
        ExpEntries { cells: entries(table.cell, table.count), shift }
    }

    /// `sum·e^rest` with an entry's fraction bits.
    fn scaled(&self, sum: u64, rest: f64) -> u64 {
        self.times(sum, scaled_exp(rest, REST_SCALE))
    }

    fn times(&self, entry: u64, factor: u64) -> u64 {
        ((u128::from(entry) * u128::from(factor)) >> self.shift) as u64
    }

    /// The entry of a cell times `e^rest`.
    pub(in crate::settings) fn at(&self, rest: f64) -> impl Fn(usize) -> u64 {
        let factor = scaled_exp(rest, REST_SCALE);
        move |cell| self.times(self.cells.get(cell).map_or(0, |entry| *entry as u64), factor)
    }
}

/// `e^x` with so many fraction bits for `|x| ≤ 8`, to 1e-10 of it and without a branch: a Taylor polynomial of a 64th, to the
/// 64th power. Sums and products of doubles are the same on every machine.
pub(in crate::settings) fn scaled_exp(x: f64, scale: u8) -> u64 {
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
