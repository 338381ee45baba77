//! The file of encrypted weights, which the server makes once and every client downloads.
//!
//! ```text
//! magic "OMBRAENC", version u16, parameter set u16, matrices u32, bytes of the body u64        little-endian
//! rows u32 and cols u32 of every matrix
//! public key
//! SHA-256 of every chunk of the body, 1 MiB each, the last one shorter
//! SHA-256 of all that stands above: the digest of the file
//! body: the matrices' blocks, in order, in the layout of the products
//! ```
//!
//! All but the body is the header. With it a client knows which chunks of a file that was cut off are right, and asks
//! for the others. A header says nothing that its length does not bear out, so that a hostile one is refused before
//! anything of its claimed size is taken.

use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::{PublicKey, ServerKey, Shape, encrypt_block};
use crate::error::{Error, Result};
use crate::params::WeightSet;

const MAGIC: &[u8; 8] = b"OMBRAENC";
const VERSION: u16 = 1;
/// Bytes before the shapes.
const FIXED: usize = 24;
/// Bytes of a chunk.
pub const CHUNK: usize = 1 << 20;
/// Most matrices of a file.
const MAX_MATRICES: usize = 1 << 16;
/// Most rows or columns of a matrix.
const MAX_SIDE: usize = 1 << 24;

/// What a file of encrypted weights says of itself.
pub struct Header {
    key: PublicKey,
    shapes: Vec<Shape>,
    chunks: Vec<[u8; 32]>,
    body: u64,
    digest: [u8; 32],
}

/// Blocks that matrices of these shapes need.
pub fn blocks(set: &WeightSet, shapes: &[Shape]) -> usize {
    shapes.iter().map(|shape| shape.blocks(set)).max().unwrap_or_default()
}

/// Bytes of the file of matrices of these shapes, header included. Nothing when a shape is empty or beyond the limits.
pub fn file_bytes(set: &WeightSet, shapes: &[Shape]) -> Option<u64> {
    let body = body_bytes(set, shapes)?;
    Some(header_bytes(set, shapes, body)? + body)
}

fn body_bytes(set: &WeightSet, shapes: &[Shape]) -> Option<u64> {
    let sides = |shape: &Shape| [shape.rows, shape.cols].iter().all(|side| (1..=MAX_SIDE).contains(side));
    if shapes.len() > MAX_MATRICES || !shapes.iter().all(sides) {
        return None;
    }
    // Below 2^48 words of 16 bytes each, and 2^16 of them.
    shapes.iter().try_fold(0u64, |sum, shape| sum.checked_add(shape.bytes(set) as u64))
}

fn header_bytes(set: &WeightSet, shapes: &[Shape], body: u64) -> Option<u64> {
    let known = FIXED + 8 * shapes.len() + PublicKey::bytes(set, blocks(set, shapes)) + 32;
    body.div_ceil(CHUNK as u64).checked_mul(32)?.checked_add(known as u64)
}

/// Encrypts matrices of `shapes`, numbered from 0, into `out`, and returns the file's digest. `weights` fills its last
/// argument with the elements, row by row, of a block of columns of a matrix: those of the range it is given. Errors of
/// `weights` and of writing end it.
pub fn write_file(
    out: &mut (impl Write + Seek),
    key: &ServerKey,
    shapes: &[(usize, usize)],
    mut weights: impl FnMut(usize, Range<usize>, &mut Vec<u64>) -> Result<()>,
) -> Result<[u8; 32]> {
    let set = key.set;
    let shapes: Vec<Shape> =
        shapes.iter().zip(0..).map(|((rows, cols), index)| Shape { index, rows: *rows, cols: *cols }).collect();
    let body = body_bytes(set, &shapes).filter(|_| blocks(set, &shapes) == key.secrets.len());
    let (Some(body), Some(header)) = (body, body.and_then(|body| header_bytes(set, &shapes, body))) else {
        return Err(Error::new("expected matrices within a file's limits, with as many blocks as the key"));
    };
    seek(out, header)?;
    let mut digests = Digests::default();
    let mut elements = Vec::new();
    for (matrix, shape) in shapes.iter().enumerate() {
        for block in 0..shape.blocks(set) {
            elements.clear();
            weights(matrix, block * set.n..shape.cols.min((block + 1) * set.n), &mut elements)?;
            let bytes = encrypt_block(key, *shape, block, &elements)?;
            digests.add(&bytes);
            out.write_all(&bytes).map_err(|e| io("written", &e))?;
        }
    }
    let mut head = Vec::new();
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend(set.id.to_le_bytes());
    head.extend((shapes.len() as u32).to_le_bytes());
    head.extend(body.to_le_bytes());
    for shape in &shapes {
        head.extend((shape.rows as u32).to_le_bytes());
        head.extend((shape.cols as u32).to_le_bytes());
    }
    key.public().write(&mut head);
    digests.finish().iter().for_each(|digest| head.extend(digest));
    let digest: [u8; 32] = Sha256::digest(&head).into();
    head.extend(digest);
    seek(out, 0)?;
    out.write_all(&head).map_err(|e| io("written", &e))?;
    out.flush().map_err(|e| io("written", &e))?;
    Ok(digest)
}

fn seek(file: &mut impl Seek, at: u64) -> Result<()> {
    file.seek(SeekFrom::Start(at)).map(|_| ()).map_err(|e| io("read", &e))
}

fn io(what: &str, error: &std::io::Error) -> Error {
    Error::new(format!("the encrypted weights cannot be {what}: {error}"))
}

/// Digests of chunks of what is added piece by piece.
#[derive(Default)]
struct Digests {
    done: Vec<[u8; 32]>,
    open: Sha256,
    filled: usize,
}

impl Digests {
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.filled));
            self.open.update(now);
            self.filled += now.len();
            if self.filled == CHUNK {
                self.close();
            }
            bytes = rest;
        }
    }

    fn close(&mut self) {
        self.done.push(self.open.finalize_reset().into());
        self.filled = 0;
    }

    fn finish(mut self) -> Vec<[u8; 32]> {
        if self.filled > 0 {
            self.close();
        }
        self.done
    }
}

impl Header {
    /// Reads a header, and nothing behind it. Refused is what is no such file, is of another version or an unknown
    /// parameter set, would be larger than `most` bytes, or has another digest than it says.
    pub fn read(input: &mut impl Read, most: u64) -> Result<Header> {
        let mut head = take(input, FIXED as u64)?;
        let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        if head.get(..8) != Some(MAGIC) {
            return Err(Error::new("expected a file of encrypted weights, found something else"));
        }
        if word(8) != VERSION {
            return Err(Error::new(format!("expected encrypted weights of version {VERSION}, found {}", word(8))));
        }
        let Some(set) = WeightSet::by_id(word(10)) else {
            return Err(Error::new(format!("expected a known parameter set, found number {}", word(10))));
        };
        let matrices = (u32::from(word(12)) | u32::from(word(14)) << 16) as usize;
        let body = (16..24).rev().fold(0u64, |sum, i| sum << 8 | u64::from(head[i]));
        if matrices > MAX_MATRICES {
            return Err(Error::new(format!("expected at most {MAX_MATRICES} matrices, found {matrices}")));
        }
        let sides = take(input, 8 * matrices as u64)?;
        let side = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, b| sum << 8 | usize::from(*b));
        let shape = |(bytes, index): (&[u8], u32)| Shape { index, rows: side(&bytes[..4]), cols: side(&bytes[4..]) };
        let shapes: Vec<Shape> = sides.chunks_exact(8).zip(0..).map(shape).collect();
        let right = body_bytes(set, &shapes).filter(|found| *found == body);
        let Some(all) = right.and_then(|body| header_bytes(set, &shapes, body)) else {
            return Err(Error::new("expected matrices that make up the file, found other sizes"));
        };
        if all.checked_add(body).is_none_or(|bytes| bytes > most) {
            return Err(Error::new(format!(
                "expected encrypted weights of at most {most} bytes, found {body} and more"
            )));
        }
        let blocks = blocks(set, &shapes);
        let key = take(input, PublicKey::bytes(set, blocks) as u64)?;
        let digests = take(input, 32 * body.div_ceil(CHUNK as u64))?;
        let stated = take(input, 32)?;
        for part in [&sides, &key, &digests] {
            head.extend(part);
        }
        let digest: [u8; 32] = Sha256::digest(&head).into();
        if stated != digest {
            return Err(Error::new("the header of the encrypted weights was changed: its digest is another"));
        }
        let key = PublicKey::read(set, blocks, &key)?;
        Ok(Header { key, shapes, chunks: digests.as_chunks().0.to_vec(), body, digest })
    }

    /// The digest of the file: of the header, which holds those of the body.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// Number and sizes of the matrices.
    pub fn shapes(&self) -> &[Shape] {
        &self.shapes
    }

    /// Where the body begins in the file.
    pub fn body_start(&self) -> u64 {
        header_bytes(self.key.set(), &self.shapes, self.body).unwrap_or_default()
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> u64 {
        self.body
    }

    /// Where a matrix stands in the body.
    ///
    /// # Panics
    /// When there is no matrix of this number.
    pub fn matrix(&self, index: usize) -> Range<u64> {
        let bytes = |shapes: &[Shape]| shapes.iter().map(|s| s.bytes(self.key.set()) as u64).sum::<u64>();
        let start = bytes(&self.shapes[..index]);
        start..start + bytes(&self.shapes[index..=index])
    }

    /// Number of chunks of the body.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Where a chunk stands in the body.
    pub fn chunk(&self, index: usize) -> Range<u64> {
        let start = index as u64 * CHUNK as u64;
        start..self.body.min(start + CHUNK as u64)
    }

    /// Whether `bytes` are chunk `index`.
    pub fn is_chunk(&self, index: usize, bytes: &[u8]) -> bool {
        self.chunks.get(index).is_some_and(|digest| Sha256::digest(bytes)[..] == digest[..])
    }

    /// The chunks that `file`, header included, lacks or holds otherwise: what a download still has to bring. It reads
    /// all of the body.
    pub fn missing(&self, file: &mut (impl Read + Seek)) -> Result<Vec<usize>> {
        seek(file, self.body_start())?;
        let mut missing = Vec::new();
        for index in 0..self.chunks() {
            let range = self.chunk(index);
            let mut bytes = Vec::new();
            file.take(range.end - range.start).read_to_end(&mut bytes).map_err(|e| io("read", &e))?;
            if !self.is_chunk(index, &bytes) {
                missing.push(index);
            }
        }
        Ok(missing)
    }
}

/// Exactly `n` bytes. The buffer grows with what is there, not with what is claimed.
fn take(input: &mut impl Read, n: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(n).read_to_end(&mut bytes).map_err(|e| io("read", &e))?;
    if bytes.len() as u64 != n {
        return Err(Error::new("the header of the encrypted weights is cut off"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::random::Seed;
    use crate::weights::{ClientKey, EncryptedMatrix, client_product, server_finish};

    /// A file of two matrices, of which the second has 1.4 MB.
    fn file() -> (ServerKey, Vec<u8>, [u8; 32]) {
        let set = WeightSet::by_id(1).expect("the set exists");
        let key = ServerKey::new(set, 2, &[7; 16]);
        let mut out = Cursor::new(Vec::new());
        let weights = |matrix: usize, cols: Range<usize>, out: &mut Vec<u64>| {
            let rows = if matrix == 0 { 3 } else { 30 };
            out.extend((0..rows).flat_map(|r| cols.clone().map(move |c| (100 * matrix + 10 * r + c % 7) as u64)));
            Ok(())
        };
        let digest = write_file(&mut out, &key, &[(3, 5), (30, 4200)], weights).expect("the file is written");
        (key, out.into_inner(), digest)
    }

    #[test]
    fn a_file_gives_products() {
        let (key, bytes, digest) = file();
        let header = Header::read(&mut &bytes[..], 1 << 30).expect("the header is right");
        assert_eq!(header.digest(), &digest);
        assert_eq!(header.body_start() + header.body_bytes(), bytes.len() as u64);
        let (set, client_key) = (header.key().set(), ClientKey::new(header.key().clone()));
        assert_eq!(file_bytes(set, header.shapes()), Some(bytes.len() as u64));
        assert!(header.missing(&mut Cursor::new(&bytes)).expect("can be read").is_empty());
        let body = &bytes[header.body_start() as usize..];
        for (index, columns) in [(0, 5), (1, 4200)] {
            let shape = header.shapes()[index];
            let range = header.matrix(index);
            let matrix = EncryptedMatrix::new(set, shape, &body[range.start as usize..range.end as usize]);
            let matrix = matrix.expect("the bytes are the matrix's");
            let x: Vec<u64> = (1..=shape.rows as u64).collect();
            let mut message = Vec::new();
            let sums = matrix.sums(&client_key);
            let client = client_product(&client_key, &matrix, &sums, 40, &x, Seed::new([1; 16]), &mut message);
            let client = client.expect("sizes are right");
            let server = server_finish(&key, 40, columns, 1, &message).expect("sizes are right");
            for c in 0..columns {
                let want: u64 = (0..shape.rows).map(|r| x[r] * (100 * index + 10 * r + c % 7) as u64).sum();
                let error = client[c].wrapping_add(server[c]).wrapping_sub(want) & ((1 << 40) - 1);
                assert!([0, 1, (1 << 40) - 1].contains(&error), "matrix {index} column {c}");
            }
        }
    }

    #[test]
    fn a_download_goes_on_where_it_ended() {
        let (_, bytes, _) = file();
        let header = Header::read(&mut &bytes[..], 1 << 30).expect("the header is right");
        assert_eq!(header.chunks(), 2);
        let start = header.body_start() as usize;
        let mut cut = Cursor::new(bytes[..start + CHUNK + 5].to_vec());
        assert_eq!(header.missing(&mut cut).expect("can be read"), [1]);
        let mut damaged = bytes.clone();
        damaged[start + 17] ^= 1;
        assert_eq!(header.missing(&mut Cursor::new(damaged)).expect("can be read"), [0]);
        assert_eq!(header.missing(&mut Cursor::new(&bytes[..start])).expect("can be read"), [0, 1]);
        let range = header.chunk(1);
        let body = &bytes[start..];
        assert!(header.is_chunk(1, &body[range.start as usize..range.end as usize]));
        assert!(!header.is_chunk(0, &body[range.start as usize..range.end as usize]) && !header.is_chunk(2, &[]));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let (_, bytes, _) = file();
        let refused = |bytes: &[u8], text: &str| {
            let error = Header::read(&mut &bytes[..], 1 << 30).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(text), "expected {text}, found {error}");
        };
        let with = |at: usize, value: &[u8]| {
            let mut changed = bytes.clone();
            changed[at..at + value.len()].copy_from_slice(value);
            changed
        };
        refused(&[], "cut off");
        refused(&bytes[..30], "cut off");
        refused(&bytes[..200], "cut off");
        refused(&with(0, b"X"), "something else");
        refused(&with(8, &[2]), "version 1, found 2");
        refused(&with(10, &[99]), "number 99");
        refused(&with(12, &[0xff; 4]), "matrices");
        refused(&with(16, &[0xff; 8]), "other sizes");
        refused(&with(24, &[0; 4]), "other sizes");
        refused(&with(24, &[0xff; 8]), "other sizes");
        refused(&with(100, &[9]), "digest");
        let start = Header::read(&mut &bytes[..], 1 << 30).expect("the header is right").body_start() as usize;
        refused(&with(start - 40, &[1, 2, 3]), "digest");
        let small = Header::read(&mut &bytes[..], bytes.len() as u64 - 1).err();
        assert!(small.is_some_and(|e| e.to_string().contains("at most")));
        // A claim of 2^52 bytes that would be consistent is refused by its size, before its digests are taken.
        let mut large = bytes[..FIXED].to_vec();
        let set = WeightSet::by_id(1).expect("the set exists");
        let shape = Shape { index: 0, rows: MAX_SIDE, cols: MAX_SIDE };
        large[12..16].copy_from_slice(&1u32.to_le_bytes());
        large[16..24].copy_from_slice(&(shape.bytes(set) as u64).to_le_bytes());
        large.extend([(MAX_SIDE as u32).to_le_bytes(); 2].concat());
        refused(&large, "at most");
        assert_eq!(file_bytes(set, &[Shape { rows: MAX_SIDE + 1, ..shape }]), None);
    }

    #[test]
    fn a_key_of_other_blocks_writes_no_file() {
        let key = ServerKey::new(WeightSet::by_id(1).expect("the set exists"), 1, &[7; 16]);
        let mut out = Cursor::new(Vec::new());
        assert!(write_file(&mut out, &key, &[(3, 4097)], |_, _, _| Ok(())).is_err());
        assert!(write_file(&mut out, &key, &[(0, 3)], |_, _, _| Ok(())).is_err());
        let failing = |_: usize, _: Range<usize>, _: &mut Vec<u64>| Err(Error::new("no weights"));
        assert!(write_file(&mut out, &key, &[(1, 3)], failing).is_err_and(|e| e.to_string() == "no weights"));
    }
}
