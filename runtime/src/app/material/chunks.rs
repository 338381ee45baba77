//! Files of checked chunks: a header with what the file is and the digest of every chunk, then the payload.
//!
//! A file is written under another name and gets its own when it is whole, so that what was cut off while it was written
//! is no such file. It is read in order, a chunk at a time, and no byte of a chunk is given away before the chunk has its
//! digest. Neither side ever has more than one chunk in memory beside what it was asked for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ombra_ir::files::open_regular;
use ombra_ir::{Diagnostic, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::super::folder::hexadecimal;

/// Bytes of a chunk; the last one may be shorter.
pub const CHUNK: usize = 1 << 20;
/// What a file begins with, before the version, the length of the header, and the header.
const MAGIC: &[u8; 8] = b"ombramat";
const VERSION: u32 = 1;
/// Bytes before the header.
const FRONT: u64 = 16;
/// Longest header: digests of 256 GiB.
const MAX_HEADER: u32 = 32 << 20;
/// What a digest is until it is known: as long as any.
const UNKNOWN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<T> {
    /// What the file is.
    content: T,
    /// Bytes of the payload.
    bytes: u64,
    /// SHA-256 of every chunk, in hexadecimal.
    chunks: Vec<String>,
}

/// A file that is being written.
pub struct Writer<T> {
    file: BufWriter<File>,
    path: PathBuf,
    part: PathBuf,
    header: Header<T>,
    chunk: Zeroizing<Vec<u8>>,
    complete: usize,
}

impl<T: Serialize> Writer<T> {
    /// Begins the file at `path`, which must not exist and which its owner alone may read, of a payload of `bytes` bytes.
    ///
    /// # Errors
    /// `E1054`.
    pub fn create(path: &Path, content: T, bytes: u64) -> Result<Self> {
        if path.exists() {
            return Err(unwritable(path, "it exists").note("help      choose another folder"));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = private_file(&part, true).map_err(|error| unwritable(&part, &error.to_string()))?;
        let count = usize::try_from(bytes.div_ceil(CHUNK as u64)).unwrap_or(usize::MAX);
        let header = Header { content, bytes, chunks: vec![UNKNOWN.to_owned(); count] };
        let (path, chunk) = (path.to_path_buf(), Zeroizing::new(Vec::with_capacity(CHUNK)));
        let mut writer = Writer { file: BufWriter::new(file), path, part, header, chunk, complete: 0 };
        writer.write_header()?;
        Ok(writer)
    }

    /// Adds to the payload.
    ///
    /// # Errors
    /// `E1054`; `E0805` for more than was declared.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = rest;
            if self.chunk.len() == CHUNK {
                self.end_chunk()?;
            }
        }
        Ok(())
    }

    /// Ends the file, which is on the disk then; the SHA-256 of its header in hexadecimal.
    ///
    /// # Errors
    /// `E1054`; `E0805` for less than was declared.
    pub fn finish(mut self) -> Result<String> {
        if !self.chunk.is_empty() {
            self.end_chunk()?;
        }
        let written = self.payload_bytes();
        if written != self.header.bytes {
            return Err(undeclared(self.header.bytes, written));
        }
        let digest = self.write_header()?;
        let ended = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        ended.and_then(|()| fs::rename(&self.part, &self.path)).map_err(|error| self.failed(&error))?;
        sync_folder(&self.path)?;
        Ok(digest)
    }

    fn payload_bytes(&self) -> u64 {
        // Chunks but the last are full; the last one is as long as the header says, or the file is not whole.
        (self.complete as u64).saturating_mul(CHUNK as u64).min(self.header.bytes)
    }

    fn end_chunk(&mut self) -> Result<()> {
        let done = self.complete as u64 * CHUNK as u64;
        let expected = self.header.bytes.saturating_sub(done).min(CHUNK as u64);
        if self.chunk.len() as u64 != expected {
            return Err(undeclared(self.header.bytes, done + self.chunk.len() as u64));
        }
        if let Some(digest) = self.header.chunks.get_mut(self.complete) {
            *digest = hexadecimal(&Sha256::digest(&*self.chunk));
        }
        self.file.write_all(&self.chunk).map_err(|error| unwritable(&self.part, &error.to_string()))?;
        self.complete += 1;
        self.chunk.clear();
        Ok(())
    }

    /// Writes the header at the beginning, as long as it was before.
    fn write_header(&mut self) -> Result<String> {
        let text = serde_json::to_vec(&self.header)
            .map_err(|error| Diagnostic::internal("E1054", format!("a header cannot be written: {error}")))?;
        let Some(length) = u32::try_from(text.len()).ok().filter(|length| *length <= MAX_HEADER) else {
            return Err(Diagnostic::unsupported("E1054", "a step deals more than a file can hold")
                .note(format!("found     {} bytes", self.header.bytes)));
        };
        let mut front = MAGIC.to_vec();
        front.extend_from_slice(&VERSION.to_le_bytes());
        front.extend_from_slice(&length.to_le_bytes());
        let written = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&front));
        written.and_then(|()| self.file.write_all(&text)).map_err(|error| self.failed(&error))?;
        Ok(hexadecimal(&Sha256::digest(&text)))
    }

    fn failed(&self, error: &io::Error) -> Diagnostic {
        unwritable(&self.part, &error.to_string())
    }
}

/// A file that is read from its beginning to its end.
pub struct Reader<T> {
    file: File,
    name: String,
    header: Header<T>,
    digest: String,
    /// Chunks that were read.
    read: usize,
    chunk: Zeroizing<Vec<u8>>,
    /// Bytes of the last of them that were given away.
    taken: usize,
}

impl<T: DeserializeOwned> Reader<T> {
    /// Opens the file at `path` and checks its header and its length.
    ///
    /// # Errors
    /// `E1050`.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let unreadable =
            |error: io::Error| damaged(&name, &format!("it cannot be read: {error}"), "a file of the dealer's");
        let mut file = open_regular(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut front = [0; FRONT as usize];
        if length < FRONT {
            return Err(cut(&name, FRONT, length));
        }
        file.read_exact(&mut front).map_err(unreadable)?;
        let (magic, numbers) = front.split_at(MAGIC.len());
        let number =
            |at: usize| numbers.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        if magic != MAGIC {
            return Err(damaged(&name, "it is another kind of file", "a file that `ombra-run deal` wrote"));
        }
        match number(0) {
            Some(VERSION) => {}
            found => {
                let found = found.unwrap_or_default();
                return Err(damaged(&name, &format!("it has version {found}"), &format!("version {VERSION}")));
            }
        }
        let header_bytes = number(4).unwrap_or(u32::MAX);
        if header_bytes > MAX_HEADER {
            return Err(damaged(&name, "its header is longer than any", &format!("at most {MAX_HEADER} bytes")));
        }
        if length < FRONT + u64::from(header_bytes) {
            return Err(cut(&name, FRONT + u64::from(header_bytes), length));
        }
        let mut text = vec![0; header_bytes as usize];
        file.read_exact(&mut text).map_err(unreadable)?;
        let header: Header<T> = serde_json::from_slice(&text)
            .map_err(|_| damaged(&name, "its header makes no sense", "what `ombra-run deal` writes"))?;
        if header.chunks.len() as u64 != header.bytes.div_ceil(CHUNK as u64) {
            return Err(damaged(
                &name,
                "its header has another number of chunks than its length needs",
                "one digest a MiB",
            ));
        }
        let expected = (FRONT + u64::from(header_bytes)).saturating_add(header.bytes);
        if length != expected {
            return Err(cut(&name, expected, length));
        }
        let digest = hexadecimal(&Sha256::digest(&text));
        Ok(Reader { file, name, header, digest, read: 0, chunk: Zeroizing::default(), taken: 0 })
    }
}

impl<T> Reader<T> {
    /// What the file is.
    pub fn content(&self) -> &T {
        &self.header.content
    }

    /// SHA-256 of the header, which has the digests of all chunks, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Bytes of the payload that were not read.
    pub fn rest(&self) -> u64 {
        let read = (self.read as u64).saturating_mul(CHUNK as u64).min(self.header.bytes);
        self.header.bytes - read + (self.chunk.len() - self.taken) as u64
    }

    /// The next `len` bytes of the payload.
    ///
    /// # Errors
    /// `E1050` for a chunk that is not the one that was written, `E1053` when there are fewer bytes.
    pub fn read(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > self.rest() {
            return Err(Diagnostic::input("E1053", "a step needs more than was dealt for it")
                .at(self.name.clone())
                .note(format!("expected  {len} bytes"))
                .note(format!("found     {}", self.rest()))
                .note("help      deal for this plan and these sizes"));
        }
        // Wiped where an error ends it.
        let mut bytes = Zeroizing::new(Vec::with_capacity(len as usize));
        while (bytes.len() as u64) < len {
            if self.taken == self.chunk.len() {
                self.next_chunk()?;
            }
            let wanted = (len as usize - bytes.len()).min(self.chunk.len() - self.taken);
            bytes.extend_from_slice(&self.chunk[self.taken..self.taken + wanted]);
            self.taken += wanted;
        }
        Ok(std::mem::take(&mut *bytes))
    }

    fn next_chunk(&mut self) -> Result<()> {
        let left = self.header.bytes.saturating_sub(self.read as u64 * CHUNK as u64);
        self.chunk.resize(left.min(CHUNK as u64) as usize, 0);
        self.taken = 0;
        // After an error nothing of it is there to be given away.
        self.check_chunk().inspect_err(|_| {
            self.chunk.zeroize();
        })?;
        self.read += 1;
        Ok(())
    }

    fn check_chunk(&mut self) -> Result<()> {
        self.file
            .read_exact(&mut self.chunk)
            .map_err(|error| damaged(&self.name, &format!("it cannot be read: {error}"), "all of its chunks"))?;
        let found = hexadecimal(&Sha256::digest(&*self.chunk));
        let expected = self.header.chunks.get(self.read).map_or(UNKNOWN, String::as_str);
        if found != expected {
            let what = format!("its part {} was changed: it has SHA-256 {found}", self.read);
            return Err(damaged(&self.name, &what, &format!("SHA-256 {}", expected.escape_debug())));
        }
        Ok(())
    }
}

/// A file of a folder that its owner alone may read.
pub(super) fn private_file(path: &Path, new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).create_new(new);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

/// Brings to the disk what the folder of `path` says of its names.
///
/// # Errors
/// `E1054`.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| unwritable(folder, &error.to_string()))
}

fn damaged(name: &str, what: &str, expected: &str) -> Diagnostic {
    Diagnostic::input("E1050", "the dealer's file cannot be used")
        .at(name.to_owned())
        .note(format!("expected  {expected}"))
        .note(format!("found     {what}"))
        .note("help      copy the file again, or deal anew")
}

fn cut(name: &str, expected: u64, found: u64) -> Diagnostic {
    damaged(name, &format!("{found} bytes: it was cut, or something was added"), &format!("{expected} bytes"))
}

pub(super) fn unwritable(path: &Path, why: &str) -> Diagnostic {
    Diagnostic::input("E1054", format!("{} cannot be written: {why}", path.display()))
}

fn undeclared(expected: u64, found: u64) -> Diagnostic {
    Diagnostic::internal("E0805", "the dealer's side of a step deals another number of bytes than declared")
        .note(format!("expected  {expected}"))
        .note(format!("found     {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_changed_chunk_is_given_away_whoever_asks_again() {
        let path = std::env::temp_dir().join(format!("ombra-chunks-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let payload: Vec<u8> = (0..CHUNK + 100).map(|at| at as u8).collect();
        let mut file = Writer::create(&path, (), payload.len() as u64).unwrap();
        file.write(&payload).unwrap();
        file.finish().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let mut file = Reader::<()>::open(&path).unwrap();
        assert!(file.read(CHUNK as u64).unwrap() == payload[..CHUNK]);
        for _ in 0..2 {
            assert_eq!(file.read(10).map_err(|error| error.code), Err("E1050"));
            assert_eq!(file.rest(), 100, "none of it was given away");
        }
        fs::remove_file(&path).unwrap();
    }
}
