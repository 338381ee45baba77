//! The list of sessions whose material was used: a line each, on the disk before the first message of the session.
//!
//! Two inputs under one mask reveal their difference. So a session is in the list before anything of it is sent, and one
//! that is in the list never begins again, whatever became of it. Processes that share a list take turns.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ombra_ir::files::open_regular;
use ombra_ir::{Diagnostic, Result};

use super::chunks::{private_file, sync_folder, unwritable};
use crate::transport::{SessionId, parse_session};

/// The name of the list where none is given.
pub const SPENT_FILE: &str = "spent-sessions";

/// Digits of a session's name.
const ID_DIGITS: usize = 32;
/// Bytes of a line that are looked at.
const LONGEST_LINE: u64 = 256;

/// A list of sessions on the disk.
#[derive(Clone, Debug)]
pub struct Spent {
    path: PathBuf,
}

impl Spent {
    /// The list at `path`, which is made when it is first written to.
    pub fn at(path: &Path) -> Spent {
        Spent { path: path.to_path_buf() }
    }

    /// Whether the session is in the list.
    ///
    /// # Errors
    /// `E1054` for a list that cannot be read.
    pub fn has(&self, id: SessionId) -> Result<bool> {
        self.open()?.map_or(Ok(false), |file| self.find(&file, id))
    }

    fn open(&self) -> Result<Option<File>> {
        match open_regular(&self.path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unwritable(&self.path, &error.to_string())),
        }
    }

    /// All sessions of the list: one reading of it, for whoever asks about many.
    ///
    /// # Errors
    /// `E1054` for a list that cannot be read.
    pub(super) fn all(&self) -> Result<BTreeSet<SessionId>> {
        let mut all = BTreeSet::new();
        if let Some(file) = self.open()? {
            self.read(&file, |id| {
                all.insert(id);
                ControlFlow::Continue(())
            })?;
        }
        Ok(all)
    }

    /// Adds the session. It is on the disk when this returns.
    ///
    /// # Errors
    /// `E1052` for one that is in the list, `E1054` for a list that cannot be written.
    pub fn add(&self, id: SessionId) -> Result<()> {
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error.to_string()))?;
        }
        let failed = |error: std::io::Error| unwritable(&self.path, &error.to_string());
        let mut file = private_file(&self.path, false).map_err(failed)?;
        // Until the file is closed.
        file.lock().map_err(failed)?;
        if self.find(&file, id)? {
            return Err(used(id).at(self.path.display().to_string()));
        }
        let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let mut line = format!("{id}\n");
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(failed)?;
            if last != *b"\n" {
                // A line that was cut off: its session has sent nothing.
                line.insert(0, '\n');
            }
        }
        file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(line.as_bytes())).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        sync_folder(&self.path)
    }

    fn find(&self, file: &File, id: SessionId) -> Result<bool> {
        let mut has = false;
        self.read(file, |found| {
            has = found == id;
            if has { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(has)
    }

    /// Reads the list from its beginning, until `each` has enough.
    fn read(&self, mut file: &File, mut each: impl FnMut(SessionId) -> ControlFlow<()>) -> Result<()> {
        let failed = |error: std::io::Error| unwritable(&self.path, &error.to_string());
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (mut reader, mut line) = (BufReader::new(file), Vec::new());
        loop {
            line.clear();
            if reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(failed)? == 0 {
                return Ok(());
            }
            let text = line.trim_ascii();
            // What a crash leaves of a line: its session has sent nothing.
            let is_cut = text.len() < ID_DIGITS && text.iter().all(|c| c.is_ascii_hexdigit() || *c == 0);
            match std::str::from_utf8(text).ok().and_then(parse_session) {
                Some(found) => {
                    if each(found).is_break() {
                        return Ok(());
                    }
                }
                None if is_cut => {}
                // It may have been a session, so none of this list's is known to be unused.
                None => return Err(unwritable(&self.path, "a line that is no session")),
            }
        }
    }
}

/// The error of a session that was used before.
pub(super) fn used(id: SessionId) -> Diagnostic {
    Diagnostic::input("E1052", "the material of this session was used before")
        .note("expected  a session that never began, even if the last one ended early")
        .note(format!("found     {id} in the list of those that did, or its key under another name"))
        .note("help      take another session of the material, or deal anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_spent_once_whatever_the_file_looks_like() {
        let folder = std::env::temp_dir().join(format!("ombra-spent-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let list = Spent::at(&folder.join("deep").join(SPENT_FILE));
        let ids: Vec<SessionId> = (0..4).map(|_| SessionId::random().unwrap()).collect();
        assert!(!list.has(ids[0]).unwrap());
        list.add(ids[0]).unwrap();
        assert!(list.has(ids[0]).unwrap() && !list.has(ids[1]).unwrap());
        assert!(list.all().unwrap() == BTreeSet::from([ids[0]]));
        assert_eq!(list.add(ids[0]).map_err(|error| error.code), Err("E1052"));
        // A crash in the middle of a line loses that line alone.
        let half = ids[1].to_string();
        let mut text = fs::read(&list.path).unwrap();
        text.extend_from_slice(&half.as_bytes()[..11]);
        fs::write(&list.path, text).unwrap();
        assert!(!list.has(ids[1]).unwrap());
        list.add(ids[2]).unwrap();
        list.add(ids[1]).unwrap();
        for spent in &ids[..3] {
            assert!(list.has(*spent).unwrap());
            assert_eq!(Spent::at(&list.path).add(*spent).map_err(|error| error.code), Err("E1052"));
        }
        assert!(!list.has(ids[3]).unwrap());
        // Threads that add one session at the same time: one of them has it.
        let added = std::thread::scope(|scope| {
            let add: Vec<_> = (0..8).map(|_| scope.spawn(|| list.add(ids[3]).is_ok())).collect();
            add.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count()
        });
        assert_eq!(added, 1);
        assert!(list.all().unwrap() == ids.iter().copied().collect());
        // Lines that an editor ended otherwise are the same sessions; what is none is an error, for all sessions.
        let text = fs::read_to_string(&list.path).unwrap();
        fs::write(&list.path, text.replace('\n', " \r\n")).unwrap();
        assert!(list.has(ids[0]).unwrap() && list.has(ids[3]).unwrap());
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        fs::write(&list.path, wide).unwrap();
        assert_eq!(list.has(ids[0]).map_err(|error| error.code), Err("E1054"));
        assert_eq!(list.add(ids[0]).map_err(|error| error.code), Err("E1054"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
