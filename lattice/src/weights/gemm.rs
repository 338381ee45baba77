//! Rows of shares times ciphertext words, mod 2^128, by 52-bit multiply-adds.
//!
//! A share `x` of `ring` bits is taken as `x + 2^(ring-1)`, without a sign, in one digit of 48 bits or two; a word is cut
//! at 48 and 96 bits. The low and high halves of a digit's product with a limb are summed apart, by the power of two
//! that they belong to; sums of 2048 rows stay below 2^64. The surplus of 2^(ring-1) times a column's sum is the
//! caller's to take off. A panel of sixteen columns is opened 128 rows at a time and meets four rows of shares, or two,
//! at once.

use ombra_kernels::aes::{Cipher, FILL};

use super::words::PANEL;
use crate::lanes::{Isa, Lanes, bytes_of, each_lanes};

/// Weight rows that are opened at once.
const OPENED: usize = 128;
/// Weight rows whose products are summed before they are folded into the result.
const SUMMED: usize = 2048;
/// Bits of a digit of a share and of a limb of a word.
const LIMB: u32 = 48;
/// Most sums of a result.
const SUMS: usize = 5;
/// What the sums are multiplied by: low and high halves of the first limb, low halves of the second, its high halves,
/// and low halves of the third.
const WEIGHTS: [u32; SUMS] = [0, 52, 48, 100, 96];

/// Where the words of a matrix are, in the layout of [`super::words`].
pub(crate) enum Source<'a> {
    /// In memory.
    Memory(&'a [u8]),
    /// In a stream of AES, from this block on.
    Stream(&'a Cipher, u128),
}

/// Rows of shares as the kernels want them.
pub(crate) struct Shares {
    /// Groups of rows, and in a group its rows' digits for one weight row after another.
    digits: Vec<u64>,
    rows: usize,
    k: usize,
    group: usize,
    two: bool,
}

/// Room for one panel after another.
pub(crate) struct Room {
    opened: Vec<[u64; 8]>,
    raw: Vec<u64>,
    sum: Vec<[u64; 8]>,
}

impl Room {
    pub(crate) fn new() -> Room {
        Room { opened: vec![[0; 8]; OPENED * 6], raw: Vec::new(), sum: Vec::new() }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        crate::random::wipe(self.sum.as_flattened_mut());
    }
}

impl Drop for Shares {
    fn drop(&mut self) {
        crate::random::wipe(&mut self.digits);
    }
}

impl Shares {
    /// `rows` × `k` shares mod 2^ring for words of `word_bytes` bytes; `ring` is 0 for small numbers to be taken as they
    /// are.
    pub(crate) fn new(shares: &[u64], rows: usize, k: usize, ring: u32, word_bytes: usize) -> Shares {
        let two = ring > LIMB;
        // As many as leave room for the words in 32 vectors; one alone where there is but one.
        let group = if rows == 1 {
            1
        } else if word_bytes > 12 {
            2
        } else {
            4
        };
        let per = if two { 2 } else { 1 };
        let mut digits = vec![0; rows.div_ceil(group) * group * k * per];
        let (offset, mask) = if ring == 0 { (0, u64::MAX) } else { (1 << (ring - 1), u64::MAX >> (64 - ring)) };
        for (r, row) in shares.chunks_exact(k).enumerate() {
            for (i, x) in row.iter().enumerate() {
                let x = x.wrapping_add(offset) & mask;
                let at = (((r / group) * k + i) * group + r % group) * per;
                digits[at] = if two { x & ((1 << LIMB) - 1) } else { x };
                if two {
                    digits[at + 1] = x >> LIMB;
                }
            }
        }
        Shares { digits, rows, k, group, two }
    }
}

/// Sets `out`, one row of sixteen words for each row of shares, to the products with panel `panel` of `source`, mod
/// 2^128.
pub(crate) fn multiply_panel(
    isa: Isa,
    x: &Shares,
    word_bytes: usize,
    source: &Source,
    panel: usize,
    room: &mut Room,
    out: &mut [u128],
) {
    out.fill(0);
    let run = match (word_bytes > 12, x.two, x.group) {
        (false, false, 1) => one_short,
        (false, false, _) => four_short,
        (true, false, 1) => one_long,
        (true, false, _) => two_long,
        (true, true, 1) => one_wide,
        (true, true, _) => two_wide,
        (false, true, _) => unreachable_width,
    };
    run(isa, x, word_bytes, source, panel, room, out);
}

/// A share of two digits has words above 96 bits.
fn unreachable_width(_: Isa, _: &Shares, _: usize, _: &Source, _: usize, _: &mut Room, _: &mut [u128]) {
    unreachable!("a share above 48 bits has words above 12 bytes")
}

each_lanes! {
    fn one_short(isa, l; x: &Shares, w: usize, source: &Source, panel: usize, room: &mut Room, out: &mut [u128]) {
        multiply::<L, 1, 2, 1>(l, x, w, source, panel, room, out);
    }
    fn four_short(isa, l; x: &Shares, w: usize, source: &Source, panel: usize, room: &mut Room, out: &mut [u128]) {
        multiply::<L, 4, 2, 1>(l, x, w, source, panel, room, out);
    }
    fn one_long(isa, l; x: &Shares, w: usize, source: &Source, panel: usize, room: &mut Room, out: &mut [u128]) {
        multiply::<L, 1, 3, 1>(l, x, w, source, panel, room, out);
    }
    fn two_long(isa, l; x: &Shares, w: usize, source: &Source, panel: usize, room: &mut Room, out: &mut [u128]) {
        multiply::<L, 2, 3, 1>(l, x, w, source, panel, room, out);
    }
    fn one_wide(isa, l; x: &Shares, w: usize, source: &Source, panel: usize, room: &mut Room, out: &mut [u128]) {
        multiply::<L, 1, 3, 2>(l, x, w, source, panel, room, out);
    }
    fn two_wide(isa, l; x: &Shares, w: usize, source: &Source, panel: usize, room: &mut Room, out: &mut [u128]) {
        multiply::<L, 2, 3, 2>(l, x, w, source, panel, room, out);
    }
}

#[inline(always)]
fn multiply<L: Lanes, const ROWS: usize, const LIMBS: usize, const DIGITS: usize>(
    l: L,
    x: &Shares,
    word_bytes: usize,
    source: &Source,
    panel: usize,
    room: &mut Room,
    out: &mut [u128],
) {
    let sums = if LIMBS == 2 { 3 } else { SUMS };
    let row_bytes = PANEL * word_bytes;
    let group_sums = ROWS * 2 * sums;
    let Room { opened, raw, sum } = room;
    // It is zero again after every panel.
    sum.resize(x.rows.div_ceil(ROWS) * group_sums, [0; 8]);
    let mut k0 = 0;
    while k0 < x.k {
        let rows = OPENED.min(x.k - k0);
        let bytes = match source {
            Source::Memory(bytes) => &bytes[(panel * x.k + k0) * row_bytes..][..rows * row_bytes],
            Source::Stream(cipher, first) => {
                raw.resize(rows * row_bytes / 8, 0);
                cipher.keystream::<FILL>(first + ((panel * x.k + k0) * word_bytes) as u128, raw);
                bytes_of(raw)
            }
        };
        open::<L, LIMBS>(l, bytes, word_bytes, opened);
        for (g, sum) in sum.chunks_exact_mut(group_sums).enumerate() {
            let digits = &x.digits[(g * x.k + k0) * ROWS * DIGITS..][..rows * ROWS * DIGITS];
            tile::<L, ROWS, LIMBS, DIGITS>(l, digits, opened, sum);
        }
        k0 += rows;
        if k0 % SUMMED == 0 || k0 == x.k {
            for (r, out) in out.chunks_exact_mut(PANEL).enumerate() {
                let sum = &mut sum[r * 2 * sums..][..2 * sums];
                for (c, out) in out.iter_mut().enumerate() {
                    for (s, weight) in sum[c / 8 * sums..][..sums].iter().zip(WEIGHTS) {
                        *out = out.wrapping_add(u128::from(s[c % 8]) << weight);
                    }
                }
                sum.fill([0; 8]);
            }
        }
    }
}

/// Opens rows of a panel: for every row and half the limbs, eight words each.
#[inline(always)]
fn open<L: Lanes, const LIMBS: usize>(l: L, bytes: &[u8], word_bytes: usize, opened: &mut [[u64; 8]]) {
    let halves = bytes.chunks_exact(8 * word_bytes).zip(opened.chunks_exact_mut(LIMBS));
    match word_bytes {
        11 => {
            for (half, out) in halves {
                l.store(l.load_bytes::<6>(half), &mut out[0]);
                l.store(l.load_bytes::<5>(&half[48..]), &mut out[1]);
            }
        }
        12 => {
            for (half, out) in halves {
                l.store(l.load_bytes::<6>(half), &mut out[0]);
                l.store(l.load_bytes::<6>(&half[48..]), &mut out[1]);
            }
        }
        _ => {
            for (half, out) in halves {
                l.store(l.load_bytes::<6>(half), &mut out[0]);
                l.store(l.load_bytes::<6>(&half[48..]), &mut out[1]);
                let rest = &half[96..];
                let third = match word_bytes {
                    13 => l.load_bytes::<1>(rest),
                    14 => l.load_bytes::<2>(rest),
                    15 => l.load_bytes::<3>(rest),
                    _ => l.load_bytes::<4>(rest),
                };
                l.store(third, &mut out[LIMBS - 1]);
            }
        }
    }
}

/// Adds the products of `ROWS` rows of shares with opened rows of sixteen words to their sums.
#[inline(always)]
fn tile<L: Lanes, const ROWS: usize, const LIMBS: usize, const DIGITS: usize>(
    l: L,
    digits: &[u64],
    opened: &[[u64; 8]],
    sum: &mut [[u64; 8]],
) {
    let sums = if LIMBS == 2 { 3 } else { SUMS };
    let mut c = [[[l.splat(0); SUMS]; 2]; ROWS];
    for r in 0..ROWS {
        for half in 0..2 {
            for s in 0..sums {
                c[r][half][s] = l.load(&sum[(r * 2 + half) * sums + s]);
            }
        }
    }
    for (x, words) in digits.chunks_exact(ROWS * DIGITS).zip(opened.chunks_exact(2 * LIMBS)) {
        for half in 0..2 {
            let w0 = l.load(&words[half * LIMBS]);
            let w1 = l.load(&words[half * LIMBS + 1]);
            let w2 = l.load(&words[half * LIMBS + LIMBS - 1]);
            for r in 0..ROWS {
                let c = &mut c[r][half];
                let d0 = l.splat(x[r * DIGITS]);
                c[0] = l.madd_low(c[0], d0, w0);
                c[1] = l.madd_high(c[1], d0, w0);
                c[2] = l.madd_low(c[2], d0, w1);
                if LIMBS == 3 {
                    c[3] = l.madd_high(c[3], d0, w1);
                    c[4] = l.madd_low(c[4], d0, w2);
                }
                if DIGITS == 2 {
                    let d1 = l.splat(x[r * DIGITS + 1]);
                    c[2] = l.madd_low(c[2], d1, w0);
                    c[3] = l.madd_high(c[3], d1, w0);
                    c[4] = l.madd_low(c[4], d1, w1);
                }
            }
        }
    }
    for r in 0..ROWS {
        for half in 0..2 {
            for s in 0..sums {
                l.store(c[r][half][s], &mut sum[(r * 2 + half) * sums + s]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ombra_kernels::aes::AesIsa;

    use super::*;
    use crate::random::Stream;
    use crate::weights::words::read_row;

    #[test]
    fn products_are_those_of_integers_on_every_instruction_set() {
        let cipher = Cipher::new(AesIsa::best(), &[3; 16]);
        let mut stream = Stream::new(&[4; 16], 0);
        for (word_bytes, ring) in
            [(11, 40), (11, 7), (12, 44), (12, 48), (13, 48), (14, 52), (15, 56), (16, 60), (16, 0)]
        {
            for (rows, k) in [(1, 300), (5, 131), (2, 1), (3, 2100), (8, 4097)] {
                let mut x = vec![0; rows * k];
                stream.words(&mut x);
                let small = if ring == 0 { 7 } else { u64::MAX >> (64 - ring) };
                x.iter_mut().for_each(|x| *x &= small);
                // The largest sums: every digit and every word full.
                if k == 4097 {
                    x[..k].fill(small);
                }
                let shares = Shares::new(&x, rows, k, ring, word_bytes);
                let panel = 1;
                let mut bytes = vec![0; 2 * k * PANEL * word_bytes];
                let mut raw = vec![0; bytes.len() / 8];
                cipher.keystream::<FILL>(77, &mut raw);
                bytes.copy_from_slice(bytes_of(&raw));
                if k == 4097 {
                    bytes.fill(255);
                }
                let offset = if ring == 0 { 0 } else { 1u64 << (ring - 1) };
                let mut want = vec![0u128; rows * PANEL];
                let mut row = [0; PANEL];
                for i in 0..k {
                    read_row(
                        &bytes[(panel * k + i) * PANEL * word_bytes..][..PANEL * word_bytes],
                        word_bytes,
                        &mut row,
                    );
                    for r in 0..rows {
                        let factor =
                            u128::from(x[r * k + i].wrapping_add(offset) & (if ring == 0 { u64::MAX } else { small }));
                        for c in 0..PANEL {
                            want[r * PANEL + c] = want[r * PANEL + c].wrapping_add(factor.wrapping_mul(row[c]));
                        }
                    }
                }
                let mask = u128::MAX >> (128 - 8 * word_bytes);
                for isa in Isa::available() {
                    let mut room = Room::new();
                    let mut out = vec![5; rows * PANEL];
                    multiply_panel(isa, &shares, word_bytes, &Source::Memory(&bytes), panel, &mut room, &mut out);
                    let equal = out.iter().zip(&want).all(|(found, want)| found & mask == want & mask);
                    assert!(equal, "{} {word_bytes} {ring} {rows} {k}", isa.name());
                    if k != 4097 {
                        let mut again = vec![5; rows * PANEL];
                        multiply_panel(
                            isa,
                            &shares,
                            word_bytes,
                            &Source::Stream(&cipher, 77),
                            panel,
                            &mut room,
                            &mut again,
                        );
                        assert!(again == out, "stream {} {word_bytes} {ring} {rows} {k}", isa.name());
                    }
                }
            }
        }
    }
}
