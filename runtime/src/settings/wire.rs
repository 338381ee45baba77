//! Ring elements as bytes: `bits / 8` bytes an element, little endian.

/// Appends the low `width` bytes of every word.
pub(crate) fn put_words(out: &mut Vec<u8>, words: impl ExactSizeIterator<Item = u64>, width: usize) {
    out.reserve(words.len() * width);
    if width == 8 {
        words.for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
    } else {
        words.for_each(|w| out.extend_from_slice(&w.to_le_bytes()[..width]));
    }
}

/// Reads words of `width` bytes, 1 to 8.
pub(crate) fn get_words(bytes: &[u8], width: usize) -> Vec<u64> {
    words(bytes, width).collect()
}

/// The words of `width` bytes, 1 to 8, one after the other.
pub(crate) fn words(bytes: &[u8], width: usize) -> impl ExactSizeIterator<Item = u64> {
    bytes.chunks_exact(width).map(move |chunk| {
        let mut word = [0; 8];
        word[..width].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    })
}
