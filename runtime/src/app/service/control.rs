//! Commands to a running server over a Unix socket that its owner alone may open.
//!
//! One connection is one command: a line that names it, answered by a line of JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

use super::Service;
use crate::config::PartyConfig;

/// The only command.
const RENEW: &str = "renew";
/// Longest command and longest answer.
const MAX_BYTES: u64 = 4 << 10;

/// Time for an answer beside what the command takes.
const SLACK: Duration = Duration::from_secs(60);

/// The answer to a command: what took how long, or what went wrong.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Renewed(f64),
    Failed(String),
}

/// Has the server whose configuration is at `config` share its weights anew, and waits for the end of it. Gives the
/// seconds that it took.
///
/// # Errors
/// `E1031`, and those of the configuration.
pub fn renew(config: &Path) -> Result<f64> {
    let config = PartyConfig::read(config)?;
    let Some(path) = &config.service.control else {
        return Err(Diagnostic::input("E1031", "the configuration names no socket for commands")
            .note("help      add control = \"control.sock\" to [service] of the server, and start it anew"));
    };
    // One may be under way.
    let limit = config.limits.setup.saturating_mul(2).saturating_add(SLACK);
    match ask(path, RENEW, limit)? {
        Answer::Renewed(seconds) => Ok(seconds),
        Answer::Failed(why) => {
            Err(Diagnostic::peer("E1031", format!("the server did not renew: {}", ombra_ir::diag::printable(&why))))
        }
    }
}

fn answer(service: &Service, command: &str) -> Answer {
    let start = Instant::now();
    if command.trim_end() != RENEW {
        return Answer::Failed("there is no such command".to_owned());
    }
    match service.server().map(super::ServerSide::renew) {
        Some(Ok(())) => Answer::Renewed(start.elapsed().as_secs_f64()),
        Some(Err(error)) => Answer::Failed(error.message),
        None => Answer::Failed("it has no weights to share".to_owned()),
    }
}

fn failed(path: &Path, what: &str) -> Diagnostic {
    Diagnostic::input("E1031", format!("the socket for commands fails: {what}")).at(path.display().to_string())
}

#[cfg(unix)]
mod unix {
    use std::fs::{self, DirBuilder, Permissions};
    use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
    use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::super::{TICK, spawn};
    use super::*;

    /// Time for a command to arrive.
    const COMMAND: Duration = Duration::from_secs(5);

    /// Listens for commands at `path` from a thread of its own. What a process that has ended left there is removed.
    ///
    /// # Errors
    /// `E1031`.
    pub fn listen(path: &Path, service: Arc<Service>) -> Result<()> {
        let wrong = |error: std::io::Error| failed(path, &error.to_string());
        if UnixStream::connect(path).is_ok() {
            return Err(
                failed(path, "another process listens there").note("help      stop it, or change service.control")
            );
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(failed(path, "something else is there")),
            _ => {}
        }
        let listener = bind(path).map_err(wrong)?;
        spawn("control", move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    // Such as too many open files, which may be over at the next one.
                    thread::sleep(TICK);
                    continue;
                };
                // Whoever may open the socket may stop the server: one command after another is good enough.
                let mut line = String::new();
                let read = stream
                    .set_read_timeout(Some(COMMAND))
                    .and_then(|()| stream.set_write_timeout(Some(COMMAND)))
                    .and_then(|()| BufReader::new(Read::take(&stream, MAX_BYTES)).read_line(&mut line));
                if read.is_ok() {
                    let text = serde_json::to_string(&answer(&service, &line)).unwrap_or_default();
                    let _ = (&stream).write_all(text.as_bytes());
                }
            }
        })
    }

    /// A listener at `path`. A socket has the mode that it is made with until that is changed, so it is made in a folder that
    /// nobody else may enter, and takes the place of what is at `path` when it is its owner's alone.
    fn bind(path: &Path) -> std::io::Result<UnixListener> {
        let folder = path.with_file_name(format!(".{}", std::process::id()));
        let made = folder.join("s");
        // A process that had this number may have ended right here.
        let _ = fs::remove_file(&made).and_then(|()| fs::remove_dir(&folder));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let bound = UnixListener::bind(&made).and_then(|listener| {
            fs::set_permissions(&made, Permissions::from_mode(0o600))?;
            fs::rename(&made, path)?;
            Ok(listener)
        });
        let _ = fs::remove_dir(&folder);
        bound
    }

    /// The answer of the process that listens at `path`, within `limit`.
    pub(super) fn ask(path: &Path, command: &str, limit: Duration) -> Result<Answer> {
        let wrong = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                failed(path, &format!("no answer in {} s", limit.as_secs())).note("help      see the server's log")
            }
            _ => failed(path, &error.to_string()).note("help      start the server, as the user that asks"),
        };
        let mut stream = UnixStream::connect(path).map_err(wrong)?;
        stream.set_write_timeout(Some(limit)).and_then(|()| stream.set_read_timeout(Some(limit))).map_err(wrong)?;
        stream.write_all(format!("{command}\n").as_bytes()).map_err(wrong)?;
        let mut text = String::new();
        stream.take(MAX_BYTES).read_to_string(&mut text).map_err(wrong)?;
        serde_json::from_str(&text).map_err(|_| failed(path, "the answer makes no sense, the server may have ended"))
    }
}

#[cfg(unix)]
use unix::ask;
#[cfg(unix)]
pub(super) use unix::listen;

#[cfg(not(unix))]
fn ask(path: &Path, _: &str, _: Duration) -> Result<Answer> {
    Err(failed(path, "this system has no such sockets"))
}

/// Refuses: this system has no such sockets.
#[cfg(not(unix))]
pub(super) fn listen(path: &Path, _: Arc<Service>) -> Result<()> {
    Err(failed(path, "this system has no such sockets"))
}
