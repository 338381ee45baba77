//! Named arrays from NumPy's `.npz` files: a zip archive with one `.npy` file an array.
//!
//! The files may be hostile: sizes are checked before anything is allocated, and what is unpacked is bounded.

use half::f16;
use ombra_ir::plain::{Data, Tensor};
use ombra_ir::{Diagnostic, Result, files};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Most arrays of a file.
const MAX_ARRAYS: usize = 4096;
/// Most bytes of all arrays of a file, unpacked.
const MAX_BYTES: u64 = 1 << 30;
/// First bytes of a `.npy` file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// The arrays of the file at `path`, by name: `f32` (`<f4`, `<f2`), integers (`<i8`, `<i4`) and booleans (`|b1`) in C order.
///
/// # Errors
/// `E0570` when the file cannot be read, is no such archive, or holds other arrays or too many.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let within = |what: String| wrong(what).at(path.display().to_string());
    let file = files::open_regular(path).map_err(|e| within(format!("the file cannot be read: {e}")))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|e| within(format!("this is no npz file: {e}")))?;
    if archive.len() > MAX_ARRAYS {
        return Err(
            within(format!("{} arrays are too many", archive.len())).note(format!("expected at most {MAX_ARRAYS}"))
        );
    }
    let mut left = MAX_BYTES;
    let mut arrays = BTreeMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index(i).map_err(|e| within(format!("array {i} cannot be unpacked: {e}")))?;
        let file = entry.name().map_err(|e| within(format!("array {i} has no name: {e}")))?.into_owned();
        let Some(name) = file.strip_suffix(".npy").map(str::to_owned) else {
            let file = file.escape_debug().to_string();
            return Err(within(format!("`{file}` is no array")).note("expected names that end in .npy"));
        };
        let shown = name.escape_debug().to_string();
        // One byte more than allowed shows that there is more.
        let mut bytes = Vec::new();
        let count = entry.take(left.saturating_add(1)).read_to_end(&mut bytes);
        let count = count.map_err(|e| within(format!("array `{shown}` cannot be unpacked: {e}")))? as u64;
        left = left.checked_sub(count).ok_or_else(|| {
            within("the arrays are too large".into()).note(format!("expected at most {MAX_BYTES} bytes"))
        })?;
        let tensor = array(&bytes).map_err(|e| e.at(format!("{}: array `{shown}`", path.display())))?;
        if arrays.insert(name, tensor).is_some() {
            return Err(within(format!("array `{shown}` is there twice")));
        }
    }
    Ok(arrays)
}

fn wrong(what: impl Into<String>) -> Diagnostic {
    Diagnostic::input("E0570", what)
}

/// The array of a `.npy` file.
fn array(bytes: &[u8]) -> Result<Tensor> {
    let cut = || wrong("the header is cut short");
    let version = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("its first bytes are not those of a npy file"))?;
    let (length, rest) = match version {
        [1, _, a, b, rest @ ..] => (usize::from(u16::from_le_bytes([*a, *b])), rest),
        [2 | 3, _, a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest),
        [1..=3, ..] | [] => return Err(cut()),
        [other, ..] => return Err(wrong(format!("npy version {other} is not supported")).note("expected 1, 2 or 3")),
    };
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| wrong("the header is no text"))?;
    let Header { descr, fortran, shape } = parse(header).ok_or_else(|| {
        wrong("the header is not understood").note("expected descr, fortran_order and shape, as NumPy writes them")
    })?;
    if fortran && shape.len() > 1 {
        return Err(wrong("the array is in Fortran order").note("save it with np.ascontiguousarray"));
    }
    let width = match descr.as_str() {
        "<f2" => 2,
        "<f4" | "<i4" => 4,
        "<i8" => 8,
        "|b1" => 1,
        other => {
            return Err(wrong(format!("elements of type {} are not supported", other.escape_debug()))
                .note("expected float16, float32, int64, int32 or bool; convert with astype"));
        }
    };
    let size = shape.iter().try_fold(width, |n: usize, d| n.checked_mul(*d));
    if size != Some(data.len()) {
        return Err(wrong(format!("{} bytes do not fit {shape:?} elements of {width} bytes", data.len())));
    }
    let data = match descr.as_str() {
        "<f2" => Data::F32(data.as_chunks().0.iter().map(|e| f16::from_le_bytes(*e).to_f32()).collect()),
        "<f4" => Data::F32(data.as_chunks().0.iter().map(|e| f32::from_le_bytes(*e)).collect()),
        "<i4" => Data::I64(data.as_chunks().0.iter().map(|e| i64::from(i32::from_le_bytes(*e))).collect()),
        "<i8" => Data::I64(data.as_chunks().0.iter().map(|e| i64::from_le_bytes(*e)).collect()),
        _ if data.iter().any(|b| *b > 1) => return Err(wrong("a boolean is neither 0 nor 1")),
        _ => Data::Bool(data.iter().map(|b| *b == 1).collect()),
    };
    Tensor::new(shape, data)
}

/// What a header says.
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, keys in any order.
fn parse(text: &str) -> Option<Header> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = rest.strip_prefix('\'')?.split_once('\'')?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        rest = match key {
            "descr" if descr.is_none() => {
                let (text, after) = value.strip_prefix('\'')?.split_once('\'')?;
                descr = Some(text.to_owned());
                after
            }
            "fortran_order" if fortran.is_none() => {
                let (word, is) = if value.starts_with("True") { ("True", true) } else { ("False", false) };
                fortran = Some(is);
                value.strip_prefix(word)?
            }
            "shape" if shape.is_none() => {
                let (sizes, after) = value.strip_prefix('(')?.split_once(')')?;
                let sizes = sizes.split(',').map(str::trim).filter(|s| !s.is_empty());
                shape = Some(sizes.map(|s| s.parse().ok()).collect::<Option<Vec<usize>>>()?);
                after
            }
            _ => return None,
        };
        rest = rest.trim_start();
        rest = if rest.is_empty() { rest } else { rest.strip_prefix(',')?.trim_start() };
    }
    Some(Header { descr: descr?, fortran: fortran?, shape: shape? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    fn header(descr: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}     \n")
    }

    #[test]
    fn arrays_of_the_five_types_are_read() {
        let halves: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let read = array(&npy(&header("<f2", "(2,)"), &halves)).unwrap();
        assert_eq!(read, Tensor::f32(&[2], vec![1.5, -2.0]).unwrap());
        let f32s: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            array(&npy(&header("<f4", "(1, 2)"), &f32s)).unwrap(),
            Tensor::f32(&[1, 2], vec![1.5, -2.0]).unwrap()
        );
        let i32s = [(-3i32).to_le_bytes(), 4i32.to_le_bytes()].concat();
        assert_eq!(array(&npy(&header("<i4", "(2,)"), &i32s)).unwrap(), Tensor::i64(&[2], vec![-3, 4]).unwrap());
        let i64s = 7i64.to_le_bytes();
        assert_eq!(array(&npy(&header("<i8", "()"), &i64s)).unwrap(), Tensor::i64(&[], vec![7]).unwrap());
        assert_eq!(
            array(&npy(&header("|b1", "(2,)"), &[0, 1])).unwrap(),
            Tensor::bool(&[2], vec![false, true]).unwrap()
        );
        assert_eq!(array(&npy(&header("<i8", "(0, 4)"), &[])).unwrap().shape(), [0, 4]);
    }

    #[test]
    fn hostile_arrays_are_errors() {
        let good = header("<i8", "(1,)");
        let eight = [0; 8];
        let cases: Vec<Vec<u8>> = vec![
            vec![],
            b"\x93NUMPY".to_vec(),
            b"\x93NUMPY\x01\x00\xff".to_vec(),
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}".to_vec(),
            b"\x93NUMPY\x09\x00\x00\x00".to_vec(),
            npy(&good, &[0; 7]),
            npy(&good, &[0; 9]),
            npy(&header("<i8", "(18446744073709551615, 18446744073709551615)"), &eight),
            npy(&header("<i8", "(99999999999999999999,)"), &eight),
            npy(&header("<i8", "(-1,)"), &eight),
            npy(&header("<i8", "(1"), &eight),
            npy(&header("<c16", "(1,)"), &[0; 16]),
            npy(&header("O", "(1,)"), &eight),
            npy(&header("|b1", "(1,)"), &[2]),
            npy("{'descr': '<i8'}", &eight),
            npy("{'descr': '<i8', 'descr': '<i8', 'fortran_order': False, 'shape': (1,)}", &eight),
            npy("{'descr': '<i8', 'fortran_order': True, 'shape': (1, 1)}", &eight),
            npy("{'descr': '<i8', 'fortran_order': Maybe, 'shape': (1,)}", &eight),
            npy("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,)}", &eight),
            npy("}{", &eight),
        ];
        for case in &cases {
            assert_eq!(array(case).unwrap_err().code, "E0570", "{case:?}");
        }
        let mut some = npy(&good, &eight);
        assert!(array(&some).is_ok());
        some.truncate(20);
        assert!(array(&some).is_err());
    }
}
