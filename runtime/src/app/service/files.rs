//! Files for those who run a server or a helper: systemd units and Kubernetes manifests, hardened as far as the program
//! allows.

use std::fs;
use std::path::Path;

use ombra_ir::{Diagnostic, Result};

use crate::transport::Party;

const UNIT: &str = include_str!("files/unit.service");
const MANIFEST: &str = include_str!("files/party.yaml");
/// What the server connects to: names are looked up, and the helper.
const SERVER_EGRESS: &str = "  egress:
    - ports:
        - protocol: UDP
          port: 53
        - protocol: TCP
          port: 53
    - ports:
        - protocol: TCP
          port: 7002";
/// The helper connects to nobody.
const HELPER_EGRESS: &str = "  egress: []";

/// The files for server and helper, by their paths in the folder that they are written to.
pub fn contents() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (party, port, egress, control) in [
        (Party::Server, "7001", SERVER_EGRESS, ", control = \"/run/ombra/server.sock\""),
        (Party::Helper, "7002", HELPER_EGRESS, ""),
    ] {
        let fill = |text: &str| {
            text.replace("CONTROL", control)
                .replace("PARTY", party.name())
                .replace("PORT", port)
                .replace("EGRESS", egress)
                .replace("VERSION", env!("CARGO_PKG_VERSION"))
        };
        all.push((format!("systemd/ombra-{party}.service"), fill(UNIT)));
        all.push((format!("kubernetes/ombra-{party}.yaml"), fill(MANIFEST)));
    }
    all
}

/// Writes the files for server and helper into `folder`. Files that are there are not replaced.
///
/// # Errors
/// `E1033`.
pub fn write(folder: &Path) -> Result<Vec<String>> {
    let all = contents();
    for (name, _) in &all {
        if folder.join(name).exists() {
            return Err(
                failed(&folder.join(name), "it exists").note("help      choose another folder, or remove the file")
            );
        }
    }
    for (name, text) in &all {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .map_err(|error| failed(&path, &error.to_string()))?;
    }
    Ok(all.into_iter().map(|(name, _)| name).collect())
}

fn failed(path: &Path, why: &str) -> Diagnostic {
    Diagnostic::input("E1033", format!("{} cannot be written: {why}", path.display()))
}
