//! Elementwise loops on ring elements, wrapping modulo 2^64: single operations, fused chains, and the wire form.

use ombra_ir::{Diagnostic, Result};

use ombra_kernels::each_isa;

/// Elements of a tile of a fused chain: 8 KiB, so that a tile and its inputs stay in the first cache.
const TILE: usize = 1024;

each_isa! {
    /// `x += y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add_assign(x: &mut [u64], y: &[u64]) {
        assert_eq!(x.len(), y.len(), "operands of one shape");
        x.iter_mut().zip(y).for_each(|(x, y)| *x = x.wrapping_add(*y));
    }

    /// `x -= y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn sub_assign(x: &mut [u64], y: &[u64]) {
        assert_eq!(x.len(), y.len(), "operands of one shape");
        x.iter_mut().zip(y).for_each(|(x, y)| *x = x.wrapping_sub(*y));
    }

    /// `x = y - x`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rsub_assign(x: &mut [u64], y: &[u64]) {
        assert_eq!(x.len(), y.len(), "operands of one shape");
        x.iter_mut().zip(y).for_each(|(x, y)| *x = y.wrapping_sub(*x));
    }

    /// `x *= y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn mul_assign(x: &mut [u64], y: &[u64]) {
        assert_eq!(x.len(), y.len(), "operands of one shape");
        x.iter_mut().zip(y).for_each(|(x, y)| *x = x.wrapping_mul(*y));
    }

    /// `x += c`.
    pub fn add_const_assign(x: &mut [u64], c: u64) {
        x.iter_mut().for_each(|x| *x = x.wrapping_add(c));
    }

    /// `x *= c`.
    pub fn mul_const_assign(x: &mut [u64], c: u64) {
        x.iter_mut().for_each(|x| *x = x.wrapping_mul(c));
    }

    /// `x = x 2^s`; zero from 64 bits on.
    pub fn shl_assign(x: &mut [u64], s: u32) {
        if s >= 64 {
            return x.fill(0);
        }
        x.iter_mut().for_each(|x| *x <<= s);
    }
}

/// One step of a fused chain on the running value `v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `v + inputs[i]`.
    AddInput(usize),
    /// `v - inputs[i]`.
    SubInput(usize),
    /// `inputs[i] - v`.
    RsubInput(usize),
    /// `v inputs[i]`.
    MulInput(usize),
    /// `v + c`.
    AddConst(u64),
    /// `v c`.
    MulConst(u64),
    /// `v 2^s`; zero from 64 bits on.
    Shl(u32),
}

/// Sets `out` to `first` taken through `steps`, tile by tile, so that memory is read and written once.
///
/// # Panics
/// When the lengths of `first`, an input and `out` differ, or a step names an input that is not there.
pub fn run_chain(first: &[u64], inputs: &[&[u64]], steps: &[Step], out: &mut [u64]) {
    assert_eq!(first.len(), out.len(), "operands of one shape");
    assert!(inputs.iter().all(|x| x.len() == out.len()), "operands of one shape");
    for (tile, out) in out.chunks_mut(TILE).enumerate() {
        let range = tile * TILE..tile * TILE + out.len();
        out.copy_from_slice(&first[range.clone()]);
        for step in steps {
            match *step {
                Step::AddInput(i) => add_assign(out, &inputs[i][range.clone()]),
                Step::SubInput(i) => sub_assign(out, &inputs[i][range.clone()]),
                Step::RsubInput(i) => rsub_assign(out, &inputs[i][range.clone()]),
                Step::MulInput(i) => mul_assign(out, &inputs[i][range.clone()]),
                Step::AddConst(c) => add_const_assign(out, c),
                Step::MulConst(c) => mul_const_assign(out, c),
                Step::Shl(s) => shl_assign(out, s),
            }
        }
    }
}

/// Appends the lowest `bits` bits of each element, lowest byte first.
///
/// # Panics
/// When `bits` is not a multiple of 8 from 8 to 64.
pub fn pack_ring(x: &[u64], bits: u32, out: &mut Vec<u8>) {
    let width = ring_bytes(bits);
    out.reserve(x.len() * width);
    // What a tile grows by is still in the first cache when it is written.
    for x in x.chunks(TILE) {
        let start = out.len();
        out.resize(start + x.len() * width, 0);
        let out = &mut out[start..];
        match width {
            1 => pack::<1>(x, out),
            2 => pack::<2>(x, out),
            3 => pack_whole::<3>(x, out),
            4 => pack::<4>(x, out),
            5 => pack_whole::<5>(x, out),
            6 => pack_whole::<6>(x, out),
            7 => pack_whole::<7>(x, out),
            _ => pack::<8>(x, out),
        }
    }
}

/// Reads elements of `bits` bits as numbers from 0 to 2^bits - 1. E0903 when `bytes` has another length than `out`
/// needs.
///
/// # Panics
/// When `bits` is not a multiple of 8 from 8 to 64.
pub fn unpack_ring(bytes: &[u8], bits: u32, out: &mut [u64]) -> Result<()> {
    let width = ring_bytes(bits);
    if Some(bytes.len()) != out.len().checked_mul(width) {
        return Err(Diagnostic::peer("E0903", "message of ring elements has a wrong length").note(format!(
            "expected {} elements of {width} bytes, found {} bytes",
            out.len(),
            bytes.len()
        )));
    }
    match width {
        1 => unpack::<1>(bytes, out),
        2 => unpack::<2>(bytes, out),
        3 => unpack_whole::<3>(bytes, out),
        4 => unpack::<4>(bytes, out),
        5 => unpack_whole::<5>(bytes, out),
        6 => unpack_whole::<6>(bytes, out),
        7 => unpack_whole::<7>(bytes, out),
        _ => unpack::<8>(bytes, out),
    }
    Ok(())
}

/// Bytes of an element of `bits` bits on the wire.
fn ring_bytes(bits: u32) -> usize {
    assert!(bits.is_multiple_of(8) && (8..=64).contains(&bits), "a wire width is 8, 16, ... or 64 bits");
    (bits / 8) as usize
}

fn pack<const B: usize>(x: &[u64], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut::<B>().0.iter_mut().zip(x) {
        out.copy_from_slice(&x.to_le_bytes()[..B]);
    }
}

/// [`pack`] by stores of whole words, each of which covers what the one before wrote too much; the last ones by bytes.
fn pack_whole<const B: usize>(x: &[u64], out: &mut [u8]) {
    let whole = x.len().saturating_sub(8);
    for (i, x) in x[..whole].iter().enumerate() {
        out[i * B..i * B + 8].copy_from_slice(&x.to_le_bytes());
    }
    pack::<B>(&x[whole..], &mut out[whole * B..]);
}

/// [`unpack`] by loads of whole words; the last ones by bytes.
fn unpack_whole<const B: usize>(bytes: &[u8], out: &mut [u64]) {
    let whole = out.len().saturating_sub(8);
    for (i, out) in out[..whole].iter_mut().enumerate() {
        let mut le = [0; 8];
        le.copy_from_slice(&bytes[i * B..i * B + 8]);
        *out = u64::from_le_bytes(le) & (u64::MAX >> (64 - 8 * B));
    }
    unpack::<B>(&bytes[whole * B..], &mut out[whole..]);
}

fn unpack<const B: usize>(bytes: &[u8], out: &mut [u64]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<B>().0) {
        let mut le = [0; 8];
        le[..B].copy_from_slice(bytes);
        *out = u64::from_le_bytes(le);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<u64> {
        (1..=n as u64).map(|i| (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(i as u32 % 64)).collect()
    }

    #[test]
    fn operations_equal_their_definitions() {
        for n in [0, 1, 7, 8, 100] {
            let (x, y) = (numbers(n, 1), numbers(n, 2));
            let check = |name: &str, got: &[u64], f: &dyn Fn(u64, u64) -> u64| {
                let expected: Vec<u64> = x.iter().zip(&y).map(|(x, y)| f(*x, *y)).collect();
                assert!(got == expected, "{name} {n}");
            };
            let on = |f: &dyn Fn(&mut [u64])| {
                let mut z = x.clone();
                f(&mut z);
                z
            };
            check("add_assign", &on(&|z| add_assign(z, &y)), &u64::wrapping_add);
            check("sub_assign", &on(&|z| sub_assign(z, &y)), &u64::wrapping_sub);
            check("rsub_assign", &on(&|z| rsub_assign(z, &y)), &|x, y| y.wrapping_sub(x));
            check("mul_assign", &on(&|z| mul_assign(z, &y)), &u64::wrapping_mul);
            check("add_const", &on(&|z| add_const_assign(z, u64::MAX - 3)), &|x, _| x.wrapping_sub(4));
            check("mul_const", &on(&|z| mul_const_assign(z, u64::MAX)), &|x, _| x.wrapping_neg());
            for s in [0, 1, 16, 63, 64, 200] {
                check("shl", &on(&|z| shl_assign(z, s)), &|x, _| x.checked_shl(s).unwrap_or(0));
            }
        }
    }

    #[test]
    fn chains_equal_one_step_at_a_time() {
        for n in [0, 1, TILE - 1, TILE, 2 * TILE + 5] {
            let (x, y, z) = (numbers(n, 1), numbers(n, 2), numbers(n, 3));
            let steps = [
                Step::AddInput(0),
                Step::MulInput(1),
                Step::SubInput(0),
                Step::AddConst(u64::MAX / 3),
                Step::RsubInput(1),
                Step::MulConst(12_345),
                Step::Shl(5),
            ];
            let mut out = vec![0; n];
            run_chain(&x, &[&y, &z], &steps, &mut out);
            for i in 0..n {
                let v = x[i].wrapping_add(y[i]).wrapping_mul(z[i]).wrapping_sub(y[i]).wrapping_add(u64::MAX / 3);
                assert_eq!(out[i], z[i].wrapping_sub(v).wrapping_mul(12_345) << 5);
            }
        }
    }

    #[test]
    fn the_wire_form_keeps_the_low_bits_and_checks_the_length() {
        let x = numbers(33, 9);
        for bits in (8..=64).step_by(8) {
            let mut bytes = vec![1, 2];
            pack_ring(&x, bits, &mut bytes);
            assert_eq!(bytes.len(), 2 + 33 * bits as usize / 8);
            assert_eq!(bytes[2], x[0] as u8);
            let mut back = vec![u64::MAX; 33];
            unpack_ring(&bytes[2..], bits, &mut back).expect("has the right length");
            assert!(back.iter().zip(&x).all(|(b, x)| *b == x & u64::MAX >> (64 - bits)));
            let error = unpack_ring(&bytes[1..], bits, &mut back).err().map(|e| e.code);
            assert_eq!(error, Some("E0903"));
        }
    }
}
