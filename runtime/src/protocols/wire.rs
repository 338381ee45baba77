//! Ring elements and bit planes as bytes: `bits / 8` bytes an element, `⌈n / 8⌉` bytes a plane, little endian.

use crate::share::plane_words;

/// Appends the low `width` bytes of every word.
pub(super) fn put_words(out: &mut Vec<u8>, words: impl ExactSizeIterator<Item = u64>, width: usize) {
    out.reserve(words.len() * width);
    if width == 8 {
        words.for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
    } else {
        words.for_each(|w| out.extend_from_slice(&w.to_le_bytes()[..width]));
    }
}

/// Reads words of `width` bytes, 1 to 8.
pub(super) fn get_words(bytes: &[u8], width: usize) -> Vec<u64> {
    bytes
        .chunks_exact(width)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..width].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
        .collect()
}

/// Bytes of a plane of `n` bits.
pub(super) fn plane_bytes(n: usize) -> usize {
    n.div_ceil(8)
}

/// Appends planes of `n` bits, each from whole words to whole bytes.
pub(super) fn put_planes(out: &mut Vec<u8>, planes: &[u64], n: usize) {
    if n == 0 {
        return;
    }
    for plane in planes.chunks_exact(plane_words(n)) {
        let end = out.len() + plane_bytes(n);
        plane.iter().for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
        out.truncate(end);
    }
}

/// Reads planes of `n` bits into whole words.
pub(super) fn get_planes(bytes: &[u8], n: usize) -> Vec<u64> {
    if n == 0 {
        return Vec::new();
    }
    let mut planes = Vec::with_capacity(bytes.len() / plane_bytes(n) * plane_words(n));
    for plane in bytes.chunks_exact(plane_bytes(n)) {
        for chunk in plane.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            planes.push(u64::from_le_bytes(word));
        }
    }
    planes
}
