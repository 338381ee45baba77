//! Files that are given by name: a pipe would be waited for, and a device read for ever.

use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::path::Path;

/// Opens the regular file at `path` to read it; links to one are followed.
///
/// # Errors
/// The system's, and an error for whatever is no regular file.
pub fn open_regular(path: &Path) -> Result<File> {
    // Opening a pipe waits for its writer, so the kind is asked first, and again of what was opened.
    let regular =
        |found: fs::Metadata| if found.is_file() { Ok(()) } else { Err(Error::other("it is no regular file")) };
    regular(fs::metadata(path)?)?;
    let file = File::open(path)?;
    regular(file.metadata()?)?;
    Ok(file)
}

/// The whole regular file at `path`, of at most `limit` bytes.
///
/// # Errors
/// Those of [`open_regular`], and an error for a longer file.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let too_long = || Error::other(format!("it is too large, at most {limit} bytes are expected"));
    let length = file.metadata()?.len();
    if length > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    // At once: no part of a key is left behind in memory as the list grows.
    bytes.try_reserve_exact(usize::try_from(length + 1).map_err(|_| too_long())?).map_err(|_| too_long())?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(too_long()) } else { Ok(bytes) }
}

/// The whole regular file at `path` as text, of at most `limit` bytes.
///
/// # Errors
/// Those of [`read_bounded`], and an error for bytes that are no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|_| Error::other("it is no UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let path = std::env::temp_dir().join(format!("ombra-ir-files-{}", std::process::id()));
        fs::write(&path, "text").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "text");
        assert!(read_bounded(&path, 3).unwrap_err().to_string().contains("too large"));
        fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path, 4).is_err());
        fs::remove_file(&path).unwrap();
        assert!(read_bounded(&path, 4).is_err());
        assert!(read_bounded(&std::env::temp_dir(), 4).unwrap_err().to_string().contains("no regular file"));
        #[cfg(unix)]
        assert!(read_bounded(Path::new("/dev/zero"), 4).unwrap_err().to_string().contains("no regular file"));
    }
}
