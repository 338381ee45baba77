//! Products of secrets, element by element.
//!
//! Source: Gilboa, "Two Party RSA Key Generation" (CRYPTO 1999): one party's bits choose multiples of the other's number. It is
//! exact in every ring up to 64 bits. Parties and adversary: client and server, one semi-honest corruption. Rounds: 2. Error:
//! none. Bits: `16ℓ` from who chooses for each element, `Σ_{i<ℓ} (ℓ − i)` in whole bytes from the other. Of a shared value
//! with a private weight, and of a square, the client alone chooses; of two shared values both do.
//!
//! ```text
//!   x y = x^0 y^0 + x^1 y^1 + x^0 y^1 + x^1 y^0, the last two each by transfers, of which the owner of x chooses
//!   x w = x^1 w + x^0 w, the first at the server alone;   x x = x^0 x^0 + x^1 x^1 + 2 x^0 x^1
//! ```
//!
//! Simulator. Choices are uniform, answers are under pads.

use ombra_ir::Result;
use ombra_ir::settings::two_party::Right;

use super::Purpose;
use super::pair::Pair;
use crate::backend::bits::{to_planes, words};
use crate::ot::pads::{Decided, times_bytes};
use crate::settings::dealer::share::Share;
use crate::wiped::Zeroizing;

/// Chooses with all bits of `x`, where this party does.
pub(super) fn choose(pair: &Pair, right: Right, x: &[u64], bits: u8) -> Result<Option<Decided>> {
    if right != Right::Shared && !pair.is_client() {
        return Ok(None);
    }
    let mut planes = Zeroizing::new(vec![0; usize::from(bits) * words(x.len())]);
    to_planes(x, bits.into(), &mut planes);
    pair.choose(Purpose::Product, 0, &planes).map(Some)
}

/// This party's own product and its shares of the two others.
pub(super) fn sum(parts: [Option<Zeroizing<Vec<u64>>>; 2], mut own: Zeroizing<Vec<u64>>) -> Share {
    for part in parts.into_iter().flatten() {
        own.iter_mut().zip(part.iter()).for_each(|(own, part)| *own = own.wrapping_add(*part));
    }
    Share::of(std::mem::take(&mut *own))
}

/// `x·y` of as many elements each in a ring of `bits`; `y` is the server's own, or `x`, where `right` says so.
pub async fn multiply(pair: &Pair, x: &[u64], y: &[u64], right: Right, bits: u8) -> Result<Share> {
    let n = x.len();
    let own = Zeroizing::new(x.iter().zip(y).map(|(x, y)| x.wrapping_mul(*y)).collect::<Vec<_>>());
    // Twice a number less than half of the ring is as good as twice that number.
    let (twice, bits) = if right == Right::Same { (1, bits - 1) } else { (0, bits) };
    let planes = usize::from(bits);
    let decided = choose(pair, right, x, bits)?;
    pair.round().await;
    let mut offered = None;
    if right == Right::Shared || !pair.is_client() {
        let mut message = Vec::new();
        offered = Some(pair.offer(Purpose::Product, 0, planes, n)?.times(planes, y, bits, &mut message)?);
        pair.answer(&message);
    }
    pair.round().await;
    let taken = |decided: Decided| {
        pair.answered(times_bytes(planes, n, bits), |message| decided.times(planes, n, bits, message))
    };
    let mut parts = [offered, decided.map(taken).transpose()?];
    parts.iter_mut().flatten().for_each(|part| part.iter_mut().for_each(|word| *word <<= twice));
    Ok(sum(parts, own))
}
