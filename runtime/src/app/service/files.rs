//! Files for those who run a server, a helper or a dealer: systemd units and Kubernetes manifests, hardened as far as the
//! program allows. Nothing can be written but by a server in a setting with a dealer, which keeps the list of the material
//! that it has used, and renames the files of it.

use std::fs;
use std::path::Path;

use ombra_ir::settings::Setting;
use ombra_ir::{Diagnostic, Result};

use super::super::material::SPENT_FILE;
use crate::transport::Party;

const UNIT: &str = include_str!("files/unit.service");
const MANIFEST: &str = include_str!("files/party.yaml");
/// What the server connects to: names are looked up, and the third party.
const SERVER_EGRESS: &str = "  egress:
    - ports:
        - protocol: UDP
          port: 53
        - protocol: TCP
          port: 53
    - ports:
        - protocol: TCP
          port: 7002";
/// Helper and dealer connect to nobody, nor does a server without them.
const NO_EGRESS: &str = "  egress: []";
/// Where the server keeps a dealer's material, and the list of what it used of it.
const STATE: &str = "/var/lib/ombra-server";

/// What a server has in a setting with a dealer: arguments, the lines of a unit, and those of a manifest.
struct State {
    written: String,
    arguments: String,
    unit: &'static str,
    needed: &'static str,
    more_arguments: String,
    mount: String,
    volume: &'static str,
}

impl State {
    fn of_server() -> State {
        let spent = format!("{STATE}/{SPENT_FILE}");
        State {
            written: format!(", and in {STATE} what was used of a dealer's material,\n# which is put there"),
            arguments: format!(" --material {STATE} --spent {spent}"),
            unit: "StateDirectory=ombra-server\nStateDirectoryMode=0700\n",
            needed: ", the claim\n# `ombra-state-server` for a dealer's material and the list of what was used of it",
            more_arguments: ["--material", STATE, "--spent", &spent]
                .map(|argument| format!("            - {argument}\n"))
                .concat(),
            mount: format!("            - name: state\n              mountPath: {STATE}\n"),
            volume: "        - name: state\n          persistentVolumeClaim:\n            claimName: ombra-state-server\n",
        }
    }

    fn none() -> State {
        let (written, arguments, more_arguments, mount) = Default::default();
        State { written, arguments, unit: "", needed: "", more_arguments, mount, volume: "" }
    }
}

/// The files for server and third party, where there is one, of a setting, by their paths in the folder that they are written to.
///
/// # Errors
/// `E0421` for a setting of one party.
pub fn contents(setting: Setting) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    let dealer = setting.protocol().dealer;
    let state = if dealer.is_some() { State::of_server() } else { State::none() };
    let third = match setting.beside() {
        None if setting.protocol().parties.len() == 1 => Some(setting.third()?),
        third => third,
    };
    // Renewing is sharing anew, with a third party.
    let (egress, control) = match third {
        Some(_) => (SERVER_EGRESS, ", control = \"/run/ombra/server.sock\""),
        None => (NO_EGRESS, ""),
    };
    let server = (Party::Server, "7001", egress, control, state);
    let third = third.map(|third| (third, "7002", NO_EGRESS, "", State::none()));
    for (party, port, egress, control, state) in [server].into_iter().chain(third) {
        let fill = |text: &str| {
            text.replace("WRITTEN", &state.written)
                .replace("#ARGUMENTS\n", &state.more_arguments)
                .replace("ARGUMENTS", &state.arguments)
                .replace("#STATE\n", state.unit)
                .replace("NEEDED", state.needed)
                .replace("#MOUNT\n", &state.mount)
                .replace("#VOLUME\n", state.volume)
                .replace("CONTROL", control)
                .replace("PARTY", party.name())
                .replace("PORT", port)
                .replace("EGRESS", egress)
                .replace("VERSION", env!("CARGO_PKG_VERSION"))
        };
        all.push((format!("systemd/ombra-{party}.service"), fill(UNIT)));
        all.push((format!("kubernetes/ombra-{party}.yaml"), fill(MANIFEST)));
    }
    Ok(all)
}

/// Writes the files for server and third party of a setting into `folder`. Files that are there are not replaced.
///
/// # Errors
/// `E0421`, `E1033`.
pub fn write(folder: &Path, setting: Setting) -> Result<Vec<String>> {
    let all = contents(setting)?;
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
