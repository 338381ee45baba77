//! The configuration of a party: who it is, where its peers are, and which certificates it trusts.
//!
//! ```toml
//! party = "server"
//! listen = "0.0.0.0:7001"          # server and helper
//! key = "key.pem"                  # relative to this file
//! certificate = "cert.pem"
//!
//! [peers.client]
//! fingerprint = "…"                # 64 hexadecimal digits, as printed by `ombra-run keygen`
//!
//! [peers.helper]
//! address = "helper.example:7002"  # needed for the peers this party connects to
//! fingerprint = "…"
//!
//! [limits]                         # may be left out
//! connect_s = 10                   # to connect, and for every step of setting up a session
//! receive_s = 120                  # how long a peer may be silent
//! idle_s = 900                     # how long a client may be silent between two steps
//! setup_s = 1800                   # how long the first sharing of the weights may take
//! max_frame_bytes = 1073741824     # largest message
//! max_memory_bytes = 8589934592    # largest memory of a step, weights aside
//! max_traffic_bytes = 274877906944 # most payload bytes of a step, of all parties together
//! ```
//!
//! The client connects to the server and the helper, the server connects to the helper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ombra_ir::{Diagnostic, Result, files};
use serde::Deserialize;

use crate::transport::{Fingerprint, Party, dials};

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartyConfig {
    /// The party itself.
    pub party: Party,
    /// Where it listens, as `host:port`; `None` for the client.
    pub listen: Option<String>,
    /// Path of its private key in PEM.
    pub key: PathBuf,
    /// Path of its certificate in PEM.
    pub certificate: PathBuf,
    /// Its peers: at least one, never itself, no two with one fingerprint.
    pub peers: BTreeMap<Party, Peer>,
    /// Limits of time and size.
    pub limits: Limits,
}

/// A peer of a party.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it listens, as `host:port`; always there for a peer that the party connects to.
    pub address: Option<String>,
    /// The fingerprint of its certificate.
    pub fingerprint: Fingerprint,
}

/// Limits of time and size of a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// To connect, and for every step of setting up a session.
    pub connect: Duration,
    /// How long a peer may be silent.
    pub receive: Duration,
    /// How long a client may be silent between two steps: while somebody reads, and writes the next turn of a chat.
    pub idle: Duration,
    /// How long the first sharing of the weights may take.
    pub setup: Duration,
    /// Largest message, in bytes.
    pub max_frame_bytes: u64,
    /// Largest memory of the values of a step, in bytes: a request for more is refused.
    pub max_memory_bytes: u64,
    /// Most payload bytes that all parties send in a step: a request for more is refused.
    pub max_traffic_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(10),
            receive: Duration::from_secs(120),
            idle: Duration::from_secs(900),
            setup: Duration::from_secs(1800),
            max_frame_bytes: 1 << 30,
            max_memory_bytes: 8 << 30,
            max_traffic_bytes: 256 << 30,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    party: String,
    listen: Option<String>,
    key: PathBuf,
    certificate: PathBuf,
    #[serde(default)]
    peers: BTreeMap<String, RawPeer>,
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    address: Option<String>,
    fingerprint: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connect_s: Option<f64>,
    receive_s: Option<f64>,
    idle_s: Option<f64>,
    setup_s: Option<f64>,
    max_frame_bytes: Option<u64>,
    max_memory_bytes: Option<u64>,
    max_traffic_bytes: Option<u64>,
}

/// Configurations are short; anything longer is another file.
const MAX_CONFIG_BYTES: u64 = 64 << 10;

impl PartyConfig {
    /// Reads and validates the file at `path`.
    pub fn read(path: &Path) -> Result<Self> {
        let unreadable = |what: String| {
            Diagnostic::input("E0711", format!("the configuration cannot be read: {what}"))
                .at(path.display().to_string())
        };
        let text = files::read_text(path, MAX_CONFIG_BYTES).map_err(|error| unreadable(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).map_err(|error| error.at(path.display().to_string()))
    }

    /// Validates a configuration's text; key and certificate paths are relative to `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let line =
                error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
            let diagnostic = Diagnostic::input("E0711", format!("wrong configuration: {}", error.message()));
            line.into_iter().fold(diagnostic, |diagnostic, line| diagnostic.note(format!("found     in line {line}")))
        })?;
        let party: Party = raw.party.parse()?;
        match (party, &raw.listen) {
            (Party::Client, Some(_)) => {
                return Err(
                    Diagnostic::input("E0711", "the client accepts no connections").note("help      remove `listen`")
                );
            }
            (Party::Server | Party::Helper, None) => {
                return Err(Diagnostic::input(
                    "E0711",
                    format!("`listen` is missing, the {party} accepts connections"),
                )
                .note("help      add, for example, listen = \"0.0.0.0:7001\""));
            }
            _ => {}
        }
        let listen = raw.listen.map(|address| check_address("listen", address)).transpose()?;
        Ok(PartyConfig {
            party,
            listen,
            key: folder.join(raw.key),
            certificate: folder.join(raw.certificate),
            peers: check_peers(party, raw.peers)?,
            limits: check_limits(&raw.limits)?,
        })
    }
}

fn check_peers(party: Party, raw: BTreeMap<String, RawPeer>) -> Result<BTreeMap<Party, Peer>> {
    let mut peers: BTreeMap<Party, Peer> = BTreeMap::new();
    for (name, RawPeer { address, fingerprint }) in raw {
        let peer: Party = name.parse()?;
        if peer == party {
            return Err(Diagnostic::input("E0711", format!("the {party} is listed as its own peer"))
                .note(format!("help      remove [peers.{peer}]")));
        }
        let fingerprint: Fingerprint =
            fingerprint.parse().map_err(|error: Diagnostic| error.at(format!("peers.{peer}.fingerprint")))?;
        if let Some((other, _)) = peers.iter().find(|(_, other)| other.fingerprint == fingerprint) {
            return Err(Diagnostic::input("E0711", format!("{other} and {peer} have the same fingerprint"))
                .note("help      every party needs its own key and certificate, from `ombra-run keygen`"));
        }
        if dials(party, peer) && address.is_none() {
            return Err(Diagnostic::input("E0711", format!("peers.{peer}.address is missing"))
                .note(format!("expected  host:port, as the {party} connects to the {peer}")));
        }
        let address = address.map(|address| check_address(&format!("peers.{peer}.address"), address)).transpose()?;
        peers.insert(peer, Peer { address, fingerprint });
    }
    if peers.is_empty() {
        return Err(Diagnostic::input("E0711", "no peers").note("help      add a section [peers.NAME] for every peer"));
    }
    Ok(peers)
}

fn check_address(field: &str, address: String) -> Result<String> {
    let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
    });
    if valid {
        return Ok(address);
    }
    Err(Diagnostic::input("E0711", format!("{field} is no address"))
        .note("expected  host:port, such as 0.0.0.0:7001 or [::1]:7001")
        .note(format!("found     {}", address.escape_debug())))
}

fn check_limits(raw: &RawLimits) -> Result<Limits> {
    let default = Limits::default();
    let seconds = |field: &str, value: Option<f64>, default: Duration| match value {
        None => Ok(default),
        Some(value) if (0.001..=86_400.0).contains(&value) => Ok(Duration::from_secs_f64(value)),
        Some(value) => Err(Diagnostic::input("E0711", format!("limits.{field} is out of range"))
            .note("expected  seconds from 0.001 to 86400")
            .note(format!("found     {value}"))),
    };
    let bytes = |field: &str, value: Option<u64>, default: u64, most: u64| {
        let value = value.unwrap_or(default);
        if (1 << 10..=most).contains(&value) {
            return Ok(value);
        }
        Err(Diagnostic::input("E0711", format!("limits.{field} is out of range"))
            .note(format!("expected  bytes from {} to {most}", 1u64 << 10))
            .note(format!("found     {value}")))
    };
    Ok(Limits {
        connect: seconds("connect_s", raw.connect_s, default.connect)?,
        receive: seconds("receive_s", raw.receive_s, default.receive)?,
        idle: seconds("idle_s", raw.idle_s, default.idle)?,
        setup: seconds("setup_s", raw.setup_s, default.setup)?,
        max_frame_bytes: bytes("max_frame_bytes", raw.max_frame_bytes, default.max_frame_bytes, 1 << 36)?,
        max_memory_bytes: bytes("max_memory_bytes", raw.max_memory_bytes, default.max_memory_bytes, 1 << 48)?,
        max_traffic_bytes: bytes("max_traffic_bytes", raw.max_traffic_bytes, default.max_traffic_bytes, 1 << 60)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> String {
        let (a, b) = ("a1".repeat(32), "B2".repeat(32));
        format!(
            "party = \"server\"\nlisten = \"0.0.0.0:7001\"\nkey = \"key.pem\"\ncertificate = \"/etc/cert.pem\"\n\
             [peers.client]\nfingerprint = \"{a}\"\n[peers.helper]\naddress = \"[::1]:7002\"\nfingerprint = \"{b}\"\n\
             [limits]\nconnect_s = 2\nreceive_s = 0.5\n"
        )
    }

    #[test]
    fn a_whole_configuration_is_read() {
        let config = PartyConfig::parse(&server(), Path::new("/conf")).unwrap();
        assert_eq!(config.party, Party::Server);
        assert_eq!(config.listen.as_deref(), Some("0.0.0.0:7001"));
        assert_eq!(config.key, Path::new("/conf/key.pem"));
        assert_eq!(config.certificate, Path::new("/etc/cert.pem"));
        assert_eq!(config.peers.keys().copied().collect::<Vec<_>>(), [Party::Client, Party::Helper]);
        let helper = &config.peers[&Party::Helper];
        assert_eq!(helper.address.as_deref(), Some("[::1]:7002"));
        assert_eq!(helper.fingerprint.to_string(), "b2".repeat(32));
        let limits = config.limits;
        assert_eq!((limits.connect, limits.receive), (Duration::from_secs(2), Duration::from_millis(500)));
        assert_eq!(limits.max_frame_bytes, Limits::default().max_frame_bytes);
    }

    #[test]
    fn every_wrong_configuration_is_refused_with_its_reason() {
        for (from, to, reason) in [
            ("connect_s", "conect_s", "unknown field `conect_s`"),
            ("party = \"server\"", "party = \"provider\"", "unknown party `provider`"),
            ("party = \"server\"", "party = \"dealer\"", "not supported yet"),
            ("party = \"server\"", "party = \"client\"", "accepts no connections"),
            ("party = \"server\"", "party = \"helper\"", "its own peer"),
            ("listen = \"0.0.0.0:7001\"\n", "", "`listen` is missing"),
            ("0.0.0.0:7001", "7001", "listen is no address"),
            ("[::1]:7002", "helper:70000", "peers.helper.address is no address"),
            ("address = \"[::1]:7002\"\n", "", "peers.helper.address is missing"),
            ("B2B2", "b2b", "no certificate fingerprint"),
            ("a1a1", "a1g1", "no certificate fingerprint"),
            ("key = \"key.pem\"\n", "", "missing field `key`"),
            ("connect_s = 2", "connect_s = 0", "limits.connect_s is out of range"),
            ("receive_s = 0.5", "receive_s = nan", "limits.receive_s is out of range"),
            ("receive_s = 0.5", "max_frame_bytes = 3", "limits.max_frame_bytes is out of range"),
            ("receive_s = 0.5", "max_memory_bytes = 3", "limits.max_memory_bytes is out of range"),
            ("receive_s = 0.5", "max_traffic_bytes = 3", "limits.max_traffic_bytes is out of range"),
            ("receive_s = 0.5", "setup_s = -1", "limits.setup_s is out of range"),
            ("receive_s = 0.5", "max_frame_bytes = -3", "invalid value"),
            ("[limits]", "[limits", "wrong configuration"),
        ] {
            let text = server().replacen(from, to, 1);
            assert_ne!(text, server(), "{from}");
            let error = PartyConfig::parse(&text, Path::new("")).unwrap_err();
            assert_eq!(error.code, "E0711");
            assert!(error.message.contains(reason), "{from} -> {to}: {error}");
        }
        let same = server().replace("B2", "a1");
        assert!(PartyConfig::parse(&same, Path::new("")).unwrap_err().message.contains("same fingerprint"));
        let error = PartyConfig::parse(&server().replace("connect_s", "conect_s"), Path::new("")).unwrap_err();
        assert!(error.notes.iter().any(|note| note.contains("line 11")), "{error}");
    }
}
