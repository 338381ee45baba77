//! Division by a power of two, and a larger ring: one transfer an element.
//!
//! Source: local shifts of both shares, whose wrap is a product of one private bit of each party, as with a
//! [dealer](crate::settings::dealer::divide); here the product is one correlated transfer. Parties and adversary: client and
//! server, one semi-honest corruption. Rounds: 2; none where the result's ring has no bits beyond what the shift leaves. Bits
//! per element: 16 from the client, and what the result's ring has more, in whole bytes, from the server. Error: the floor of
//! the quotient or one more; none without division. Operand: `abs x < 2^(ℓ − 2)`.
//!
//! ```text
//!   m = x^0 + 2^(ℓ−2) at the client, r = −x^1 at the server, modulo 2^ℓ;  n = 1 − msb(m), h = msb(r);  the wrap is n·h
//!   client: (m ≫ f) − 2^(ℓ−2−f) + 2^(ℓ−f)·p0;  server: −(r ≫ f) + 2^(ℓ−f)·p1;  p0 + p1 = n·h: the client chooses with n
//! ```
//!
//! Simulator. The client's choices are uniform, the server's answer is under a pad.

use ombra_ir::Result;
use ombra_ir::settings::wrap_bytes;

use super::Purpose;
use super::pair::Pair;
use crate::backend::bits::to_planes;
use crate::backend::bits::words;
use crate::ot::pads::times_bytes;
use crate::settings::dealer::divide::{local, shifted, shl, unshifted};
use crate::settings::dealer::share::Share;
use crate::wiped::Zeroizing;

/// The quotient of `n` elements of a ring of `from` bits by `2^by`, in a ring of `to` bits.
pub async fn divide(pair: &Pair, x: &Share, n: usize, (from, to): (u8, u8), by: u8) -> Result<Share> {
    let (width, role) = (wrap_bytes(from, to, by), pair.cx().role());
    if width == 0 {
        return Ok(local(role, x, from, by));
    }
    let shares = Zeroizing::new(shifted(role, x.own()?, from));
    let private = shares.iter().map(|word| (word >> (from - 1) & 1) ^ u64::from(role == 0));
    let private = Zeroizing::new(private.collect::<Vec<_>>());
    let bits = 8 * width;
    let wrap = if role == 0 {
        let mut choices = Zeroizing::new(vec![0; words(n)]);
        to_planes(&private, 1, &mut choices);
        let decided = pair.choose(Purpose::Convert, 0, &choices)?;
        pair.round().await;
        pair.round().await;
        pair.answered(times_bytes(1, n, bits), |message| decided.times(1, n, bits, message))?
    } else {
        pair.round().await;
        let mut message = Vec::new();
        let share = pair.offer(Purpose::Convert, 0, 1, n)?.times(1, &private, bits, &mut message)?;
        pair.answer(&message);
        pair.round().await;
        share
    };
    let quotient = |(word, wrap): (&u64, &u64)| unshifted(role, *word, from, by).wrapping_add(shl(*wrap, from - by));
    Ok(Share::of(shares.iter().zip(wrap.iter()).map(quotient).collect()))
}
