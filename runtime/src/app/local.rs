//! The serving parties as processes on this machine, for a run in which every party is here.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};

use super::access::MaterialPaths;
use super::isolation::Program;
use crate::backend::products::Choice;
use crate::config::PartyConfig;
use crate::keygen::{write_local_set, write_set};
use crate::transport::{Party, SessionId};

/// What a serving process writes on standard output once it accepts sessions.
pub const READY: &str = "ready";

/// The serving parties under way. Dropping it ends them and removes their keys.
pub struct LocalParties {
    /// The client's configuration.
    pub client: PartyConfig,
    running: Running,
}

/// How long a party lives on at most when its parent is done with it: an error that its peers were told stands in its own
/// output.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often is looked whether it has said it.
const POLL: Duration = Duration::from_millis(5);

/// Processes, and the folder that holds their keys.
struct Running {
    children: Vec<Child>,
    folder: PathBuf,
}

impl LocalParties {
    /// Makes keys and starts the server and the `third` party, where there is one, of the plan folder `plan` with `program`,
    /// and waits until they accept sessions. With material of a dealer, that need not be there. `network` is the link
    /// emulation as text; products run on `threads` threads, or where `backend` says.
    ///
    /// # Errors
    /// `E1011`, and those of [`write_set`].
    pub fn start(
        program: &Program,
        plan: &Path,
        third: Option<Party>,
        material: Option<&MaterialPaths>,
        network: &str,
        (threads, backend): (usize, Choice),
    ) -> Result<LocalParties> {
        let folder = env::temp_dir().join(format!("ombra-{}", SessionId::random()?));
        make_private(&folder)?;
        // From here on whatever ends this function removes the folder.
        let mut running = Running { children: Vec::new(), folder };
        let (client, server, other) = match third {
            Some(third) => {
                let [client, server, other] = write_local_set(&running.folder, third)?;
                (client, server, Some((third, other)))
            }
            None => {
                let [client, server] = write_set(&running.folder, [Party::Client, Party::Server])?;
                (client, server, None)
            }
        };
        let client = PartyConfig::read(&client)?;
        let parties = other.into_iter().chain([(Party::Server, server)]);
        for (party, config) in parties.filter(|(party, _)| material.is_none() || !party.is_third()) {
            let mut command = program.command();
            let child = command
                .arg("serve")
                .arg(plan)
                .args(["--party", party.name(), "--network", network, "--threads", &threads.to_string()])
                .args((backend != Choice::default()).then_some(["--backend", backend.name()]).into_iter().flatten())
                .arg("--config")
                .arg(config)
                .arg("--end-with-input")
                .args(material.iter().flat_map(|material| options(material)))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(|error| failed(party.name(), &error))?;
            running.wait_ready(child, party)?;
        }
        Ok(LocalParties { client, running })
    }

    /// Removes the files of keys and configurations, once every party has read its own.
    pub fn remove_keys(&self) {
        self.running.remove_keys();
    }
}

/// The server's options for material.
fn options(material: &MaterialPaths) -> [OsString; 4] {
    let MaterialPaths { folder, spent_of_server, .. } = material;
    ["--material".into(), folder.into(), "--spent".into(), spent_of_server.into()]
}

impl Running {
    /// The folder is this process's own, with a random name: what is left of it after an error here harms nobody.
    fn remove_keys(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// Takes a process over and waits for its first line.
    fn wait_ready(&mut self, mut child: Child, party: Party) -> Result<()> {
        let output = child.stdout.take();
        self.children.push(child);
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line).map_err(|error| failed(party.name(), &error))?;
        }
        if line.starts_with(READY) {
            return Ok(());
        }
        Err(Diagnostic::input("E1011", format!("the {party} ended before it accepted sessions"))
            .note("help      its own error stands above"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // They end with their input, once they have said what they say of a session that has just ended.
        for child in &mut self.children {
            drop(child.stdin.take());
        }
        let until = Instant::now() + 2 * LAST_WORDS;
        while Instant::now() < until && self.children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None))) {
            thread::sleep(POLL);
        }
        for child in &mut self.children {
            // Both fail only for a process that has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.remove_keys();
    }
}

/// Ends this process when its standard input does: a party that another process started dies with it. It ends at once where
/// it `is_idle`, else when it is, for a session that has just ended says why in its output.
///
/// # Errors
/// `E1011` when there is no thread to watch with.
pub fn end_with_input(is_idle: impl Fn() -> bool + Send + 'static) -> Result<()> {
    let watch = move || {
        let mut input = std::io::stdin().lock();
        let mut buffer = [0; 256];
        while input.read(&mut buffer).is_ok_and(|count| count > 0) {}
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until && !is_idle() {
            thread::sleep(POLL);
        }
        std::process::exit(0);
    };
    let thread = thread::Builder::new().name("parent".to_owned()).spawn(watch);
    thread.map(drop).map_err(|error| failed("the watch over standard input", &error))
}

fn failed(what: &str, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new(ombra_ir::Kind::Internal, "E1011", format!("{what} cannot be started: {error}"))
}

/// A folder that only its owner may enter.
pub(super) fn make_private(folder: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder
        .create(folder)
        .map_err(|error| Diagnostic::input("E1011", format!("{} cannot be made: {error}", folder.display())))
}
