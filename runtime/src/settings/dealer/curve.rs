//! Smooth functions by one lookup of a polynomial.
//!
//! Source: polynomials in a masked value whose powers of the mask are dealt. Parties and adversary, rounds, simulator and side
//! channels: those of a [`lookup`](super::lookup) of three products, `R_k` and the powers `t^k` of
//! [`parabola`](crate::settings::parabola). Bits per element, of `N` cells in a ring of `ℓ`: the window's in whole bytes each
//! way for the mask, `3ℓ` each way, `N + 4ℓ` dealt to the server. Error: that of the polynomial ([`ombra_ir::curve`]) and a
//! unit or less of its terms at `F/2` fraction bits, for `F` of the result.

use ombra_ir::Result;
use ombra_ir::curve::{Cells, Curve};

use super::Cx;
use super::lookup::{self, Sizes};
use super::products::Operand;
use super::share::Share;
use crate::settings::parabola::Parabola;
use crate::settings::tables::CurveTables;

/// `f(x)` of `n` elements in a ring of `bits`; `tables` are those that the run keeps.
pub async fn look_up(
    cx: &Cx,
    tables: &CurveTables,
    x: Operand<'_>,
    n: usize,
    curve: Curve,
    cells: Cells,
    bits: u8,
) -> Result<Share> {
    let parabola = Parabola::new(cells, bits)?;
    let factor = |lambda, part| parabola.power(lambda, part);
    let shares =
        |vectors: &[u64], m: &[u64], second| Ok(parabola.shares(&*tables.of(curve, cells)?, vectors, m, second));
    let sizes = Sizes { window: cells.window, one_hot: parabola.one_hot, bits };
    lookup::look_up(cx, x, n, sizes, factor, shares).await
}
