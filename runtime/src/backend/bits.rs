//! Bit planes: secret booleans, 64 to a word.
//!
//! A boolean tensor of n elements and w planes is `w * words(n)` words, plane by plane: bit i % 64 of word i / 64 of
//! plane b is bit b of element i. The unused bits of the last word of a plane are zero.

use ombra_ir::{Diagnostic, Result};

use ombra_kernels::each_isa;

/// Words of a plane of `n` elements.
pub fn words(n: usize) -> usize {
    n.div_ceil(64)
}

/// The used bits of the last word of a plane of `n` elements.
fn last_word_mask(n: usize) -> u64 {
    match n % 64 {
        0 => u64::MAX,
        used => (1 << used) - 1,
    }
}

/// Writes the lowest `w` bits of the elements `x` as planes; `out` has `w * words(x.len())` words.
///
/// # Panics
/// When `w` is above 64 or `out` has another length.
pub fn to_planes(x: &[u64], w: u32, out: &mut [u64]) {
    assert!(w <= 64, "an element has 64 bits");
    assert_eq!(Some(out.len()), words(x.len()).checked_mul(w as usize), "one word per plane and 64 elements");
    split_planes(x, w as usize, out);
}

/// Bits `drop .. width ≤ 64` of every element, plane by plane.
pub fn planes_of(x: &[u64], width: u8, drop: u8) -> Vec<u64> {
    let mut planes = vec![0; usize::from(width) * words(x.len())];
    to_planes(x, u32::from(width), &mut planes);
    planes.drain(..usize::from(drop) * words(x.len()));
    planes
}

/// Writes the bits of one plane as elements 0 and 1.
///
/// # Panics
/// When `plane` does not have `words(out.len())` words.
pub fn from_planes(plane: &[u64], out: &mut [u64]) {
    assert_eq!(plane.len(), words(out.len()), "one word per 64 elements");
    join_plane(plane, out);
}

/// Bytes of `w` planes of `n` elements on the wire, or `None` when no memory could hold them.
pub fn planes_bytes(n: usize, w: u32) -> Option<usize> {
    n.div_ceil(8).checked_mul(usize::try_from(w).ok()?)
}

/// Appends the wire form of `w` planes of `n` elements: each plane in `n.div_ceil(8)` bytes, lowest bits first.
///
/// # Panics
/// When `planes` does not have `w * words(n)` words.
pub fn planes_to_bytes(planes: &[u64], n: usize, w: u32, out: &mut Vec<u8>) {
    assert_eq!(Some(planes.len()), words(n).checked_mul(w as usize), "one word per plane and 64 elements");
    let bytes = n.div_ceil(8);
    for plane in planes.chunks_exact(words(n).max(1)) {
        let end = out.len() + bytes;
        for word in plane {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.truncate(end);
    }
}

/// Reads the wire form of `w` planes of `n` elements; unused bits are cleared. E0904 when `bytes` has another length.
///
/// # Panics
/// When `out` does not have `w * words(n)` words.
pub fn planes_from_bytes(bytes: &[u8], n: usize, w: u32, out: &mut [u64]) -> Result<()> {
    assert_eq!(Some(out.len()), words(n).checked_mul(w as usize), "one word per plane and 64 elements");
    let expected = planes_bytes(n, w);
    if Some(bytes.len()) != expected {
        return Err(Diagnostic::peer("E0904", "message of bit planes has a wrong length").note(format!(
            "expected {} bytes for {w} planes of {n} bits, found {}",
            expected.unwrap_or(usize::MAX),
            bytes.len()
        )));
    }
    let step = n.div_ceil(8).max(1);
    for (plane, bytes) in out.chunks_exact_mut(words(n).max(1)).zip(bytes.chunks_exact(step)) {
        for (word, bytes) in plane.iter_mut().zip(bytes.chunks(8)) {
            let mut le = [0; 8];
            le[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(le);
        }
        if let Some(last) = plane.last_mut() {
            *last &= last_word_mask(n);
        }
    }
    Ok(())
}

/// Flips every bit of planes of `n` elements.
///
/// # Panics
/// When `planes` is not a whole number of planes.
pub fn not_assign(planes: &mut [u64], n: usize) {
    let step = words(n).max(1);
    assert_eq!(planes.len() % step, 0, "whole planes");
    for plane in planes.chunks_exact_mut(step) {
        plane.iter_mut().for_each(|word| *word = !*word);
        if let Some(last) = plane.last_mut() {
            *last &= last_word_mask(n);
        }
    }
}

each_isa! {
    /// `x ^= y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn xor_assign(x: &mut [u64], y: &[u64]) {
        assert_eq!(x.len(), y.len(), "planes of one shape");
        x.iter_mut().zip(y).for_each(|(x, y)| *x ^= y);
    }

    /// `x &= y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn and_assign(x: &mut [u64], y: &[u64]) {
        assert_eq!(x.len(), y.len(), "planes of one shape");
        x.iter_mut().zip(y).for_each(|(x, y)| *x &= y);
    }

    /// `z ^= x & y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn and_xor_assign(z: &mut [u64], x: &[u64], y: &[u64]) {
        assert!(z.len() == x.len() && z.len() == y.len(), "planes of one shape");
        z.iter_mut().zip(x).zip(y).for_each(|((z, x), y)| *z ^= x & y);
    }

    /// `out = x ^ y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn xor(x: &[u64], y: &[u64], out: &mut [u64]) {
        assert!(out.len() == x.len() && out.len() == y.len(), "planes of one shape");
        out.iter_mut().zip(x).zip(y).for_each(|((out, x), y)| *out = x ^ y);
    }

    /// `out = x & y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn and(x: &[u64], y: &[u64], out: &mut [u64]) {
        assert!(out.len() == x.len() && out.len() == y.len(), "planes of one shape");
        out.iter_mut().zip(x).zip(y).for_each(|((out, x), y)| *out = x & y);
    }

    fn split_planes(x: &[u64], w: usize, out: &mut [u64]) {
        let stride = words(x.len());
        let (many, rest) = x.as_chunks::<512>();
        for (i, x) in many.iter().enumerate() {
            squares::<8>(x, w, stride, 8 * i, out);
        }
        for (i, x) in rest.chunks(64).enumerate() {
            squares::<1>(x, w, stride, 8 * many.len() + i, out);
        }
    }

    fn join_plane(plane: &[u64], out: &mut [u64]) {
        for (out, word) in out.chunks_mut(64).zip(plane) {
            for (i, out) in out.iter_mut().enumerate() {
                *out = word >> i & 1;
            }
        }
    }
}

/// Writes word `at` and the following of each plane from at most 64 `L` elements. Each 64 elements are a square of
/// 64 x 64 bits to be transposed, bit j of word i to bit i of word j. Six rounds exchange off-diagonal squares (Warren,
/// "Hacker's Delight", section 7-3): three rounds between groups of eight words, then, with `L` squares side by side,
/// three rounds between words.
#[inline(always)]
fn squares<const L: usize>(x: &[u64], w: usize, stride: usize, at: usize, out: &mut [u64]) {
    let mut squares = [[[0u64; 8]; 8]; L];
    for (square, x) in squares.iter_mut().zip(x.chunks(64)) {
        square.as_flattened_mut()[..x.len()].copy_from_slice(x);
        exchange::<8, 4, 32>(square, w.div_ceil(8), 0x0000_0000_ffff_ffff);
        exchange::<8, 2, 16>(square, w.div_ceil(8), 0x0000_ffff_0000_ffff);
        exchange::<8, 1, 8>(square, w.div_ceil(8), 0x00ff_00ff_00ff_00ff);
    }
    for first in (0..w).step_by(8) {
        let mut rows: [[u64; L]; 8] = std::array::from_fn(|i| std::array::from_fn(|lane| squares[lane][first / 8][i]));
        exchange::<L, 4, 4>(&mut rows, 8, 0x0f0f_0f0f_0f0f_0f0f);
        exchange::<L, 2, 2>(&mut rows, 8, 0x3333_3333_3333_3333);
        exchange::<L, 1, 1>(&mut rows, 8, 0x5555_5555_5555_5555);
        for (plane, row) in (first..w).zip(&rows) {
            out[plane * stride + at..][..L].copy_from_slice(row);
        }
    }
}

/// Exchanges, between rows `J` apart, the upper and lower halves of blocks of `2 S` bits, in the blocks that hold the
/// first `needed` rows.
#[inline(always)]
fn exchange<const L: usize, const J: usize, const S: u32>(rows: &mut [[u64; L]; 8], needed: usize, mask: u64) {
    for block in rows[..needed.next_multiple_of(2 * J)].chunks_exact_mut(2 * J) {
        let (low, high) = block.split_at_mut(J);
        for (low, high) in low.iter_mut().zip(high) {
            for (low, high) in low.iter_mut().zip(high) {
                let t = (*low >> S ^ *high) & mask;
                *low ^= t << S;
                *high ^= t;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 11] = [0, 1, 5, 8, 63, 64, 65, 128, 200, 512, 1100];

    fn numbers(n: usize) -> Vec<u64> {
        (1..=n as u64).map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i as u32 % 64) ^ i << 7).collect()
    }

    #[test]
    fn planes_hold_the_bits_and_unused_bits_are_zero() {
        for n in SIZES {
            let x = numbers(n);
            for w in [0, 1, 2, 7, 16, 28, 33, 64] {
                let mut planes = vec![u64::MAX; w as usize * words(n)];
                to_planes(&x, w, &mut planes);
                for b in 0..w as usize {
                    for i in 0..words(n) * 64 {
                        let bit = planes[b * words(n) + i / 64] >> (i % 64) & 1;
                        assert_eq!(bit, x.get(i).map_or(0, |x| x >> b & 1), "n {n} w {w} plane {b} element {i}");
                    }
                }
            }
            let mut plane = vec![0; words(n)];
            to_planes(&x, 1, &mut plane);
            let mut bits = vec![7; n];
            from_planes(&plane, &mut bits);
            assert!(bits.iter().zip(&x).all(|(bit, x)| *bit == x & 1));
        }
    }

    #[test]
    fn the_wire_form_is_exact_and_checked() {
        for n in SIZES {
            for w in [0, 1, 3, 28] {
                let mut planes = vec![0; w as usize * words(n)];
                to_planes(&numbers(n), w, &mut planes);
                let mut bytes = vec![9];
                planes_to_bytes(&planes, n, w, &mut bytes);
                assert_eq!(Some(bytes.len() - 1), planes_bytes(n, w));
                let mut back = vec![u64::MAX; planes.len()];
                planes_from_bytes(&bytes[1..], n, w, &mut back).expect("has the right length");
                assert!(back == planes);
                let error = planes_from_bytes(&bytes, n, w, &mut back).err().map(|e| e.code);
                assert_eq!(error, Some("E0904"));
            }
        }
        let mut out = [0; 2];
        planes_from_bytes(&[0xff; 4], 11, 2, &mut out).expect("has the right length");
        assert_eq!(out, [0x7ff; 2]);
    }

    #[test]
    fn logic_on_words() {
        let (x, y) = (numbers(77), numbers(78)[1..].to_vec());
        let mut out = vec![0; 77];
        xor(&x, &y, &mut out);
        assert!((0..77).all(|i| out[i] == x[i] ^ y[i]));
        and_xor_assign(&mut out, &x, &y);
        assert!((0..77).all(|i| out[i] == x[i] | y[i]));
        and(&x, &y, &mut out);
        assert!((0..77).all(|i| out[i] == x[i] & y[i]));
        xor_assign(&mut out, &x);
        assert!((0..77).all(|i| out[i] == x[i] & !y[i]));
        and_assign(&mut out, &y);
        assert!(out.iter().all(|word| *word == 0));
        let mut planes = [1, 0, u64::MAX, 0x3f];
        not_assign(&mut planes, 70);
        assert_eq!(planes, [u64::MAX - 1, 0x3f, 0, 0]);
    }
}
