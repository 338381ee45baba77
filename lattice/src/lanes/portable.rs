//! The operations on plain words: the meaning that the vector forms are compared with.

use super::{Lanes, MASK52};

/// Plain words.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(x: [u64; 8], y: [u64; 8], f: impl Fn(u64, u64) -> u64) -> [u64; 8] {
    std::array::from_fn(|i| f(x[i], y[i]))
}

#[inline(always)]
fn wide(x: u64, y: u64) -> u128 {
    u128::from(x & MASK52) * u128::from(y & MASK52)
}

/// The product of words below 2^52, divided by 2^52: the upper word of a product by a shifted one.
#[inline(always)]
fn high(x: u64, y: u64) -> u64 {
    ((u128::from(x << 12) * u128::from(y)) >> 64) as u64
}

/// All bits where `condition` holds.
#[inline(always)]
fn mask(condition: bool) -> u64 {
    u64::from(condition).wrapping_neg()
}

impl Lanes for Portable {
    type V = [u64; 8];
    type Modulus = u64;

    #[inline(always)]
    fn splat(self, x: u64) -> [u64; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn load(self, x: &[u64; 8]) -> [u64; 8] {
        *x
    }

    #[inline(always)]
    fn store(self, x: [u64; 8], out: &mut [u64; 8]) {
        *out = x;
    }

    #[inline(always)]
    fn add(self, x: [u64; 8], y: [u64; 8]) -> [u64; 8] {
        zip(x, y, u64::wrapping_add)
    }

    #[inline(always)]
    fn sub(self, x: [u64; 8], y: [u64; 8]) -> [u64; 8] {
        zip(x, y, u64::wrapping_sub)
    }

    #[inline(always)]
    fn and(self, x: [u64; 8], y: [u64; 8]) -> [u64; 8] {
        zip(x, y, |x, y| x & y)
    }

    #[inline(always)]
    fn shr(self, x: [u64; 8], by: u32) -> [u64; 8] {
        x.map(|x| x >> by)
    }

    #[inline(always)]
    fn shl(self, x: [u64; 8], by: u32) -> [u64; 8] {
        x.map(|x| x << by)
    }

    #[inline(always)]
    fn cut(self, x: [u64; 8], m: [u64; 8]) -> [u64; 8] {
        zip(x, m, |x, m| x.min(x.wrapping_sub(m)))
    }

    #[inline(always)]
    fn add_if_above(self, x: [u64; 8], bound: [u64; 8], a: [u64; 8]) -> [u64; 8] {
        std::array::from_fn(|i| x[i].wrapping_add(a[i] & mask(x[i] > bound[i])))
    }

    #[inline(always)]
    fn add_if_negative(self, x: [u64; 8], a: [u64; 8]) -> [u64; 8] {
        zip(x, a, |x, a| x.wrapping_add(a & mask(x >> 63 == 1)))
    }

    #[inline(always)]
    fn madd_low(self, acc: [u64; 8], x: [u64; 8], y: [u64; 8]) -> [u64; 8] {
        std::array::from_fn(|i| acc[i].wrapping_add(wide(x[i], y[i]) as u64 & MASK52))
    }

    #[inline(always)]
    fn madd_high(self, acc: [u64; 8], x: [u64; 8], y: [u64; 8]) -> [u64; 8] {
        std::array::from_fn(|i| acc[i].wrapping_add(high(x[i] & MASK52, y[i] & MASK52)))
    }

    #[inline(always)]
    fn modulus(self, p: u64) -> u64 {
        p
    }

    #[inline(always)]
    fn mul_shoup(self, x: [u64; 8], w: [u64; 8], ratio: [u64; 8], p: u64) -> [u64; 8] {
        std::array::from_fn(|i| {
            let quotient = high(x[i], ratio[i]);
            x[i].wrapping_mul(w[i]).wrapping_sub(quotient.wrapping_mul(p))
        })
    }

    #[inline(always)]
    fn zip4(self, x: [u64; 8], y: [u64; 8]) -> ([u64; 8], [u64; 8]) {
        ([x[0], x[1], x[2], x[3], y[0], y[1], y[2], y[3]], [x[4], x[5], x[6], x[7], y[4], y[5], y[6], y[7]])
    }

    #[inline(always)]
    fn zip2(self, x: [u64; 8], y: [u64; 8]) -> ([u64; 8], [u64; 8]) {
        ([x[0], x[1], y[0], y[1], x[4], x[5], y[4], y[5]], [x[2], x[3], y[2], y[3], x[6], x[7], y[6], y[7]])
    }

    #[inline(always)]
    fn zip1(self, x: [u64; 8], y: [u64; 8]) -> ([u64; 8], [u64; 8]) {
        ([x[0], y[0], x[2], y[2], x[4], y[4], x[6], y[6]], [x[1], y[1], x[3], y[3], x[5], y[5], x[7], y[7]])
    }

    #[inline(always)]
    fn load_bytes<const B: usize>(self, bytes: &[u8]) -> [u64; 8] {
        load_bytes::<B>(bytes)
    }
}

/// Eight little-endian words of `B` bytes.
#[inline(always)]
pub(super) fn load_bytes<const B: usize>(bytes: &[u8]) -> [u64; 8] {
    let bytes = &bytes[..8 * B];
    std::array::from_fn(|i| {
        let mut word = [0; 8];
        word[..B].copy_from_slice(&bytes[B * i..B * i + B]);
        u64::from_le_bytes(word)
    })
}
