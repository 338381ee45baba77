//! stub
use super::{Cx, share::*};
use ombra_ir::Result;
pub async fn msb(_: &Cx, _: &Share, n: usize, _: u8, _: u8) -> Result<BitShare> {
    Ok(BitShare::nothing(n))
}
