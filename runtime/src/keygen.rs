//! Keys and certificates: one self-signed pair for a party, or a whole set of configurations on one machine.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use ombra_ir::{Diagnostic, Result};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use crate::transport::{Fingerprint, Party, dials};

/// File name of a private key.
pub const KEY_FILE: &str = "key.pem";
/// File name of a certificate.
pub const CERTIFICATE_FILE: &str = "cert.pem";

/// Makes an ECDSA P-256 key and a self-signed certificate for `party` as `key.pem`, readable by its owner alone, and
/// `cert.pem` in `folder`, which is made if need be. Existing files are never replaced. Returns the fingerprint that the
/// peers' configurations need.
pub fn generate(party: Party, folder: &Path) -> Result<Fingerprint> {
    let failed = |error: rcgen::Error| {
        Diagnostic::internal("E0712", format!("a key and certificate for {party} cannot be made: {error}"))
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, format!("ombra {party}"));
    let certificate = params.self_signed(&key).map_err(failed)?;

    let (key_path, certificate_path) = (folder.join(KEY_FILE), folder.join(CERTIFICATE_FILE));
    for path in [&key_path, &certificate_path] {
        if path.exists() {
            return Err(unwritable(path, "it exists").note("help      choose another folder, or remove the old pair"));
        }
    }
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error.to_string()))?;
    write_new(&key_path, Zeroizing::new(key.serialize_pem()).as_bytes(), Readers::Owner)?;
    write_new(&certificate_path, certificate.pem().as_bytes(), Readers::All)?;
    Ok(Fingerprint::of(certificate.der()))
}

/// [`write_set`] for client, server and `third`.
pub fn write_local_set(folder: &Path, third: Party) -> Result<[PathBuf; 3]> {
    write_set(folder, [Party::Client, Party::Server, third])
}

/// Makes keys, certificates and configurations for the parties of a run on this machine: `folder/NAME/party.toml` with
/// `key.pem` and `cert.pem` beside it. Returns the configurations' paths in the order of the parties.
///
/// The listeners' ports are free loopback ports at the time of the call; nothing keeps them reserved.
pub fn write_set<const N: usize>(folder: &Path, parties: [Party; N]) -> Result<[PathBuf; N]> {
    let no_port =
        |error: std::io::Error| Diagnostic::input("E0713", format!("no free port on the loopback interface: {error}"));
    // All listeners live until every port is chosen, so no two parties get the same one.
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    let mut fingerprints = Vec::new();
    for party in parties {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(no_port)?;
        addresses.push((party, listener.local_addr().map_err(no_port)?.to_string()));
        listeners.push(listener);
        fingerprints.push((party, generate(party, &folder.join(party.name()))?));
    }
    for (party, own_address) in &addresses {
        let mut text = format!("party = \"{party}\"\n");
        if parties.into_iter().any(|peer| dials(peer, *party)) {
            text.push_str(&format!("listen = \"{own_address}\"\n"));
        }
        text.push_str(&format!("key = \"{KEY_FILE}\"\ncertificate = \"{CERTIFICATE_FILE}\"\n"));
        for ((peer, address), (_, fingerprint)) in addresses.iter().zip(&fingerprints) {
            if peer == party {
                continue;
            }
            text.push_str(&format!("\n[peers.{peer}]\n"));
            if dials(*party, *peer) {
                text.push_str(&format!("address = \"{address}\"\n"));
            }
            text.push_str(&format!("fingerprint = \"{fingerprint}\"\n"));
        }
        write_new(&config_path(folder, *party), text.as_bytes(), Readers::All)?;
    }
    Ok(parties.map(|party| config_path(folder, party)))
}

fn config_path(folder: &Path, party: Party) -> PathBuf {
    folder.join(party.name()).join("party.toml")
}

/// Who may read a file.
#[derive(Clone, Copy)]
enum Readers {
    Owner,
    All,
}

fn write_new(path: &Path, bytes: &[u8], readers: Readers) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(match readers {
            Readers::Owner => 0o600,
            Readers::All => 0o644,
        });
    }
    #[cfg(not(unix))]
    let _ = readers;
    options.open(path).and_then(|mut file| file.write_all(bytes)).map_err(|error| unwritable(path, &error.to_string()))
}

fn unwritable(path: &Path, why: &str) -> Diagnostic {
    Diagnostic::input("E0712", format!("{} cannot be written: {why}", path.display()))
}
