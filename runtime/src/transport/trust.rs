//! Which certificates a party accepts, and whose they are.
//!
//! A peer is known by one fingerprint. Clients are known by a list, or by a folder in which every file is a client:
//! `NAME.pem` is its certificate, `NAME.fingerprint` the fingerprint of one; other files mean nothing. The folder is read
//! again at a handshake when an entry came or went, and once a second at most when a file was written in place. A file that
//! cannot be read admits nobody, and is complained about once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use ombra_ir::{Diagnostic, Result, files};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::frame::printable;
use super::party::Party;
use super::queue::lock;
use super::tls::Fingerprint;
use crate::config::Certificates;

/// Largest file of a certificate, and most files of a folder that are looked at.
const MAX_FILE_BYTES: u64 = 64 << 10;
const MAX_FILES: usize = 100_000;
/// How long the content of a folder's files counts as read.
const FRESH: Duration = Duration::from_secs(1);
/// Characters of a client's name.
const NAME_CHARS: usize = 64;
/// Digits of a fingerprint that stand for a client without a name.
const SHOWN_DIGITS: usize = 16;

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What it shows.
    pub fingerprint: Fingerprint,
    /// What this party calls it: the name of its file, or the first digits of its fingerprint. Fit to be printed.
    pub name: String,
}

/// The peers that connect to a party, and what they may show.
pub(super) struct Trusted {
    peers: Vec<(Party, Source)>,
}

enum Source {
    Fixed(Vec<Fingerprint>),
    Folder { path: PathBuf, content: Mutex<Content> },
}

/// What a folder held when it was read.
#[derive(Default)]
struct Content {
    read: Option<(Instant, Option<SystemTime>)>,
    names: BTreeMap<Fingerprint, String>,
    /// Complaints that nobody has heard yet, and all that were made of what the folder still holds.
    complaints: Vec<Diagnostic>,
    complained: BTreeSet<String>,
}

impl Trusted {
    /// Reads the folders among `peers` for the first time.
    ///
    /// # Errors
    /// `E0711` for a folder that cannot be read.
    pub(super) fn new<'a>(peers: impl Iterator<Item = (Party, &'a Certificates)>) -> Result<Trusted> {
        let mut all = Vec::new();
        for (party, certificates) in peers {
            all.push((
                party,
                match certificates {
                    Certificates::Fingerprints(list) => Source::Fixed(list.clone()),
                    Certificates::Folder(path) => {
                        let source = Source::Folder { path: path.clone(), content: Mutex::default() };
                        fs::read_dir(path).map_err(|error| unreadable(path, &error.to_string()))?;
                        source
                    }
                },
            ));
        }
        // A certificate that is in a list and in a folder is what the list says.
        all.sort_by_key(|(_, source)| matches!(source, Source::Folder { .. }));
        Ok(Trusted { peers: all })
    }

    /// The peers.
    pub(super) fn parties(&self) -> impl Iterator<Item = Party> {
        self.peers.iter().map(|(party, _)| *party)
    }

    /// Whose the certificate with this fingerprint is, as of now, and its name if it has one.
    pub(super) fn owner(&self, fingerprint: Fingerprint) -> Option<(Party, Option<String>)> {
        self.peers.iter().find_map(|(party, source)| match source {
            Source::Fixed(list) => list.contains(&fingerprint).then_some((*party, None)),
            Source::Folder { path, content } => {
                let mut content = lock(content);
                content.refresh(path);
                content.names.get(&fingerprint).map(|name| (*party, Some(name.clone())))
            }
        })
    }

    /// The client with this fingerprint, if it still is one.
    pub(super) fn client(&self, fingerprint: Fingerprint) -> Option<Client> {
        let (party, name) = self.owner(fingerprint)?;
        let short = || fingerprint.to_string().chars().take(SHOWN_DIGITS).collect();
        (party == Party::Client).then(|| Client { fingerprint, name: name.unwrap_or_else(short) })
    }

    /// What was found wrong since this was asked last.
    pub(super) fn complaints(&self) -> Vec<Diagnostic> {
        let folders = self.peers.iter().filter_map(|(_, source)| match source {
            Source::Folder { content, .. } => Some(std::mem::take(&mut lock(content).complaints)),
            Source::Fixed(_) => None,
        });
        folders.flatten().collect()
    }
}

impl Content {
    fn refresh(&mut self, path: &Path) {
        let stamp = fs::metadata(path).and_then(|found| found.modified()).ok();
        if self.read.is_some_and(|(at, seen)| seen == stamp && stamp.is_some() && at.elapsed() < FRESH) {
            return;
        }
        self.read = Some((Instant::now(), stamp));
        let (names, wrong) = read_folder(path);
        self.names = names;
        let texts: BTreeSet<String> = wrong.iter().map(Diagnostic::to_string).collect();
        self.complaints.extend(wrong.into_iter().filter(|error| !self.complained.contains(&error.to_string())));
        self.complained = texts;
    }
}

/// The clients of a folder, and what is wrong with the others.
fn read_folder(path: &Path) -> (BTreeMap<Fingerprint, String>, Vec<Diagnostic>) {
    let (mut names, mut wrong) = (BTreeMap::new(), Vec::new());
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return (names, vec![unreadable(path, &error.to_string())]),
    };
    for entry in entries.flatten().take(MAX_FILES) {
        let file = entry.path();
        let Some(stem) = file.file_stem().map(|stem| printable(&stem.to_string_lossy(), NAME_CHARS)) else { continue };
        let found = match file.extension().and_then(|end| end.to_str()) {
            Some("pem") => fingerprint_of_certificate(&file),
            Some("fingerprint") => fingerprint_in(&file),
            _ => continue,
        };
        match found {
            Ok(fingerprint) => drop(names.insert(fingerprint, stem)),
            Err(why) => wrong.push(
                Diagnostic::input("E0711", format!("a client is not admitted: {why}"))
                    .at(file.display().to_string())
                    .note("expected  NAME.pem with a certificate, or NAME.fingerprint with 64 hexadecimal digits"),
            ),
        }
    }
    (names, wrong)
}

fn fingerprint_of_certificate(file: &Path) -> std::result::Result<Fingerprint, String> {
    let bytes = files::read_bounded(file, MAX_FILE_BYTES).map_err(|error| error.to_string())?;
    let certificate = CertificateDer::from_pem_slice(&bytes).map_err(|_| "the file holds no certificate".to_owned())?;
    Ok(Fingerprint::of(&certificate))
}

fn fingerprint_in(file: &Path) -> std::result::Result<Fingerprint, String> {
    let text = files::read_text(file, MAX_FILE_BYTES).map_err(|error| error.to_string())?;
    text.trim().parse().map_err(|_| "the file holds no fingerprint".to_owned())
}

fn unreadable(path: &Path, why: &str) -> Diagnostic {
    Diagnostic::input("E0711", format!("the folder of client certificates cannot be read: {why}"))
        .at(path.display().to_string())
        .note("help      make the folder, or correct peers.client.certificates")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_and_go_with_their_files() {
        let path = std::env::temp_dir().join(format!("ombra-trust-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let certificates = Certificates::Folder(path.clone());
        let trusted = || Trusted::new([(Party::Client, &certificates)].into_iter());
        assert_eq!(trusted().err().map(|error| error.code), Some("E0711"), "there is no folder");
        fs::create_dir(&path).unwrap();
        let trusted = trusted().unwrap();
        let key = |digit: &str| digit.repeat(64).parse::<Fingerprint>().unwrap();
        assert_eq!(trusted.owner(key("a")), None);
        fs::write(path.join("alice.fingerprint"), "a".repeat(64) + "\n").unwrap();
        fs::write(path.join("b\u{1b}ob.fingerprint"), "b".repeat(64)).unwrap();
        fs::write(path.join("notes.txt"), "c".repeat(64)).unwrap();
        fs::write(path.join("carol.fingerprint"), "c".repeat(63)).unwrap();
        fs::write(path.join("dave.pem"), "-----BEGIN NOTHING-----").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(trusted.client(key("a")).unwrap().name, "alice");
        assert_eq!(trusted.client(key("b")).unwrap().name, "b\\u001bob");
        assert_eq!(trusted.client(key("c")), None);
        let complaints = trusted.complaints();
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints.iter().all(|error| error.message.contains("not admitted")));
        fs::remove_file(path.join("alice.fingerprint")).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(trusted.client(key("a")), None);
        assert!(trusted.client(key("b")).is_some());
        fs::remove_dir_all(&path).unwrap();
        std::thread::sleep(FRESH);
        assert_eq!(trusted.client(key("b")), None);
        assert_eq!(trusted.complaints().len(), 1, "what was said is not said again");
    }
}
