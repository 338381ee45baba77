//! Files that are read while a party serves: opened once, and watched.
//!
//! Blocks are read into memory of their own, so a file that is cut is an error and no signal. The digest is taken when the
//! file is opened. When the file's length or its times are other ones after a block was read, all of it is read again: with
//! the same content it goes on, with another one every further read is an error.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use ombra_ir::files::open_regular;
use ombra_ir::{Diagnostic, Result};
use sha2::{Digest, Sha256};

use super::folder::hexadecimal;

/// Bytes that are read at once to take a digest.
const BLOCK: usize = 1 << 20;
/// Bytes that are read at once to be used.
const READ: usize = 128 << 10;

/// A file that is held open.
pub struct HeldFile {
    file: File,
    name: String,
    bytes: u64,
    sha256: String,
    /// What the system said of the file when its content was last known to be the one it was opened with.
    seen: Mutex<Stamp>,
}

/// What changes when somebody writes to a file or cuts it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
    /// Of the file's own record, which no program can set back.
    changed: (i64, i64),
}

impl HeldFile {
    /// Opens the regular file at `path` and takes its digest.
    ///
    /// # Errors
    /// `E1001`.
    pub fn open(path: &Path) -> Result<HeldFile> {
        let name = path.display().to_string();
        let unreadable =
            |error: io::Error| Diagnostic::input("E1001", format!("the file cannot be read: {error}")).at(name.clone());
        let file = open_regular(path).map_err(unreadable)?;
        let stamp = Stamp::of(&file.metadata().map_err(unreadable)?);
        let sha256 = digest(&file).map_err(unreadable)?;
        if Stamp::of(&file.metadata().map_err(unreadable)?) != stamp {
            return Err(unreadable(io::Error::other("it is being written")));
        }
        Ok(HeldFile { file, name, bytes: stamp.bytes, sha256, seen: Mutex::new(stamp) })
    }

    /// Its path, as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of its content, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// `len` bytes from `start` on, of the content that the file was opened with.
    ///
    /// # Errors
    /// `E1020` when the file has become another one, `E1001` when it cannot be read.
    pub fn read(&self, start: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.blocks(start, len, |block| bytes.extend_from_slice(block))?;
        Ok(bytes)
    }

    /// [`read`](Self::read) block by block: every block but the last has a multiple of 4 bytes, and what was taken is void
    /// when there is an error.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn blocks(&self, start: u64, len: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
        if start.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(Diagnostic::internal("E1001", "a place out of the file is read").at(self.name.clone()));
        }
        // Small enough to stay in a cache while it is converted.
        let mut buffer = vec![0; READ.min(len)];
        let mut done = 0;
        let mut outcome = Ok(());
        while done < len && outcome.is_ok() {
            let block = buffer.get_mut(..READ.min(len - done)).unwrap_or_default();
            outcome = read_at(&self.file, block, start + done as u64);
            done += block.len();
            take(block);
        }
        // A change that came before the end of the last read shows now.
        self.check()?;
        outcome.map_err(|error| self.unreadable(&error))
    }

    /// Checks that the file still is the one that was opened.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn check(&self) -> Result<()> {
        let stamp = || self.file.metadata().map(|found| Stamp::of(&found)).map_err(|error| self.unreadable(&error));
        let found = stamp()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == found {
            return Ok(());
        }
        let same = found.bytes == self.bytes
            && digest(&self.file).map_err(|error| self.unreadable(&error))? == self.sha256
            && stamp()? == found;
        if !same {
            return Err(Diagnostic::input("E1020", "a file was changed while it was in use")
                .note(format!("found     other content in {}", self.name))
                .note(
                    "help      put the file back and start this party again; write a new file beside it and rename it",
                ));
        }
        *seen = found;
        Ok(())
    }

    fn unreadable(&self, error: &io::Error) -> Diagnostic {
        Diagnostic::input("E1001", format!("the file cannot be read: {error}")).at(self.name.clone())
    }
}

impl Stamp {
    fn of(found: &Metadata) -> Stamp {
        #[cfg(unix)]
        let changed = {
            use std::os::unix::fs::MetadataExt;
            (found.ctime(), found.ctime_nsec())
        };
        #[cfg(not(unix))]
        let changed = (0, 0);
        Stamp { bytes: found.len(), modified: found.modified().ok(), changed }
    }
}

/// SHA-256 of a whole file in hexadecimal.
fn digest(file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BLOCK];
    let mut source = file;
    source.seek(SeekFrom::Start(0))?;
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// Fills `buffer` from `start` on. Threads may read at once.
#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, start)
}

/// Fills `buffer` from `start` on. Threads may read at once.
#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut start: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, start)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                buffer = buffer.get_mut(count..).unwrap_or_default();
                start += count as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Temporary(std::path::PathBuf);

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn held(name: &str) -> (Temporary, HeldFile) {
        let path = std::env::temp_dir().join(format!("ombra-held-{}-{name}", std::process::id()));
        fs::write(&path, b"0123456789").unwrap();
        let held = HeldFile::open(&path).unwrap();
        (Temporary(path), held)
    }

    #[test]
    fn a_file_that_is_cut_changed_or_grown_is_one_error() {
        for (name, content) in
            [("cut", &b"012"[..]), ("empty", b""), ("changed", b"0123456780"), ("grown", b"0123456789a")]
        {
            let (path, held) = held(name);
            assert_eq!(held.read(2, 3).unwrap(), b"234");
            // In place: the file that is held is the one that is written.
            fs::OpenOptions::new().write(true).truncate(true).open(&path.0).unwrap();
            fs::write(&path.0, content).unwrap();
            for _ in 0..2 {
                assert_eq!(held.read(0, 2).unwrap_err().code, "E1020", "{name}");
            }
        }
    }

    #[test]
    fn a_file_that_is_touched_replaced_or_removed_is_still_the_same() {
        let (path, held) = held("same");
        fs::write(&path.0, b"0123456789").unwrap();
        assert_eq!(held.read(0, 10).unwrap(), b"0123456789");
        let other = Temporary(path.0.with_extension("other"));
        fs::write(&other.0, b"another one").unwrap();
        fs::rename(&other.0, &path.0).unwrap();
        assert_eq!(held.read(5, 5).unwrap(), b"56789");
        fs::remove_file(&path.0).unwrap();
        assert_eq!(held.read(9, 1).unwrap(), b"9");
        assert_eq!(held.read(9, 2).unwrap_err().code, "E1001");
        assert_eq!(held.read(u64::MAX, 2).unwrap_err().code, "E1001");
        assert_eq!(held.sha256(), hexadecimal(&Sha256::digest(b"0123456789")));
    }
}
