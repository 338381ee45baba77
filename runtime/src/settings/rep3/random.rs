//! Fresh bits that no party knows.
//!
//! Source: correlated randomness from pair keys, Araki et al., 2016/768, §2. Parties and adversary: three, one semi-honest
//! corruption. Rounds: 0. Bits per element: 0. Correlation and error: none.
//!
//! ```text
//!   x = F(k_0) ⊕ F(k_1) ⊕ F(k_2); role j holds components j and j + 1, whose keys it has
//! ```
//!
//! Simulator. Nothing is sent. Role `j` lacks `k_{j+2}`: given all that it holds, the third component is uniform, and so
//! is `x`. A party that draws its own key as it likes, and knows a second one, sets two components before the third
//! party's key has a part in the sum: that one is drawn without it and never shown to it, so `x` stays uniform. Two parties
//! together could set `x`, and could open every secret as well.

use ombra_ir::Result;

use super::{Cx, Purpose};
use crate::backend::bits::words;
use crate::settings::rep3::share::Bits;

/// A sharing of `n` uniform bits.
pub fn random(cx: &Cx, n: usize) -> Result<Bits> {
    let role = cx.role();
    let component = |key: u8| cx.draw(key % 3, Purpose::Random, 0, words(n));
    Ok(Bits::new(n, component(role)?, component(role + 1)?))
}
