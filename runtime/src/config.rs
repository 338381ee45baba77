//! The configuration of a party: who it is, where its peers are, and which certificates it trusts.
//!
//! ```toml
//! party = "server"
//! listen = "0.0.0.0:7001"          # all but the client
//! key = "key.pem"                  # relative to this file
//! certificate = "cert.pem"
//!
//! [peers.client]                   # one of these three lines
//! fingerprint = "…"                # 64 hexadecimal digits, as printed by `ombra-run keygen`
//! fingerprints = ["…", "…"]        # several clients
//! certificates = "clients"         # a folder with NAME.pem or NAME.fingerprint for every client, see `docs/serve.md`
//!
//! [peers.helper]                   # peers.dealer where the plan's setting has one
//! address = "helper.example:7002"  # needed for the peers this party connects to
//! fingerprint = "…"
//!
//! [limits]                         # may be left out
//! connect_s = 10                   # to connect, and for every step of setting up a session
//! receive_s = 120                  # how long a peer may be silent
//! idle_s = 900                     # time that a client has between two steps
//! setup_s = 1800                   # how long the first sharing of the weights may take
//! max_frame_bytes = 1073741824     # largest message
//! dealt_window_bytes = 67108864    # most that a dealer is ahead of the server, half of it at each of them
//! max_memory_bytes = 8589934592    # largest memory of a step, weights aside
//! max_traffic_bytes = 274877906944 # most payload bytes of a step, of all parties together
//! max_sessions = 32                # sessions that are served at once
//! max_sessions_of_client = 8       # those of one client; a quarter of them, or all where one client alone is admitted
//! total_memory_bytes = 8589934592  # memory of the steps of all sessions together, weights aside; half of the machine's
//!
//! [service]                        # all but the client; may be left out
//! renew_s = 86400                  # the server shares its weights anew this often; never by default
//! renew_grace_s = 900              # how long sessions with an old sharing may go on; limits.idle_s by default
//! control = "control.sock"         # the server's Unix socket for `ombra-run renew`; none by default
//! metrics = "127.0.0.1:9100"       # /healthz, /readyz and /metrics; none by default
//! metrics_hosts = []               # names of this machine that metrics may be asked by, beside localhost and numbers
//! allow_remote_metrics = false     # whether that may be another address than one of this machine alone
//! drain_s = 30                     # how long sessions may go on after SIGTERM
//! ```
//!
//! The client connects to the server and, where the setting has one, the third party, helper or dealer, and the server
//! connects to that party.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ombra_ir::module::Setting;
use ombra_ir::{Diagnostic, Result, files};
use serde::Deserialize;

use crate::hosts::is_name;
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
    /// How it serves.
    pub service: ServiceConfig,
}

/// How a party serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// How often the server shares its weights anew.
    pub renew: Option<Duration>,
    /// How long sessions may go on whose sharing was replaced; nothing for [`Limits::idle`].
    pub renew_grace: Option<Duration>,
    /// The server's Unix socket for commands.
    pub control: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Names that it may be asked by there, beside those of this machine.
    pub metrics_hosts: Vec<String>,
    /// How long sessions may go on once the process is asked to end.
    pub drain: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        let drain = Duration::from_secs(30);
        ServiceConfig { renew: None, renew_grace: None, control: None, metrics: None, metrics_hosts: Vec::new(), drain }
    }
}

/// A peer of a party.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it listens, as `host:port`; always there for a peer that the party connects to.
    pub address: Option<String>,
    /// What it may show: one fingerprint, or the certificates of all clients.
    pub certificates: Certificates,
}

/// The certificates that a peer may show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificates {
    /// Those with these fingerprints, one or more.
    Fingerprints(Vec<Fingerprint>),
    /// Those of the files in this folder, whatever it holds at the moment.
    Folder(PathBuf),
}

/// Limits of time and size of a party.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// To connect, and for every step of setting up a session.
    pub connect: Duration,
    /// How long a peer may be silent.
    pub receive: Duration,
    /// Time that a client has between two steps: while somebody reads, and writes the next turn of a chat.
    pub idle: Duration,
    /// How long the first sharing of the weights may take.
    pub setup: Duration,
    /// Largest message, in bytes.
    pub max_frame_bytes: u64,
    /// Most bytes that a dealer is ahead of the server: half of them wait at the dealer, half at the server.
    pub dealt_window_bytes: u64,
    /// Largest memory of the values of a step, in bytes: a request for more is refused.
    pub max_memory_bytes: u64,
    /// Most payload bytes that all parties send in a step: a request for more is refused.
    pub max_traffic_bytes: u64,
    /// Most sessions that are served at once.
    pub max_sessions: u32,
    /// Most of them of one client.
    pub max_sessions_of_client: u32,
    /// Memory of the steps of all sessions together, in bytes; nothing for half of the machine's.
    pub total_memory_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(10),
            receive: Duration::from_secs(120),
            idle: Duration::from_secs(900),
            setup: Duration::from_secs(1800),
            max_frame_bytes: 1 << 30,
            dealt_window_bytes: 64 << 20,
            max_memory_bytes: 8 << 30,
            max_traffic_bytes: 256 << 30,
            max_sessions: 32,
            max_sessions_of_client: 8,
            total_memory_bytes: None,
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
    service: Option<RawService>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    address: Option<String>,
    fingerprint: Option<String>,
    fingerprints: Option<Vec<String>>,
    certificates: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    renew_s: Option<f64>,
    renew_grace_s: Option<f64>,
    control: Option<PathBuf>,
    metrics: Option<String>,
    #[serde(default)]
    metrics_hosts: Vec<String>,
    #[serde(default)]
    allow_remote_metrics: bool,
    drain_s: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connect_s: Option<f64>,
    receive_s: Option<f64>,
    idle_s: Option<f64>,
    setup_s: Option<f64>,
    max_frame_bytes: Option<u64>,
    dealt_window_bytes: Option<u64>,
    max_memory_bytes: Option<u64>,
    max_traffic_bytes: Option<u64>,
    max_sessions: Option<u32>,
    max_sessions_of_client: Option<u32>,
    total_memory_bytes: Option<u64>,
}

/// Most sessions that a configuration may allow at once: each has a handful of threads and four connections.
const MAX_SESSIONS: u32 = 4096;
/// Smallest window of what is dealt: two frames at each end.
const MIN_WINDOW: u64 = 4 << 20;
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
            (Party::Server | Party::Helper | Party::Dealer, None) => {
                return Err(Diagnostic::input(
                    "E0711",
                    format!("`listen` is missing, the {party} accepts connections"),
                )
                .note("help      add, for example, listen = \"0.0.0.0:7001\""));
            }
            _ => {}
        }
        let listen = raw.listen.map(|address| check_address("listen", address)).transpose()?;
        let peers = check_peers(party, raw.peers, folder)?;
        let clients = peers.get(&Party::Client).map(|peer| &peer.certificates);
        let one_client = matches!(clients, Some(Certificates::Fingerprints(list)) if list.len() == 1);
        Ok(PartyConfig {
            party,
            listen,
            key: folder.join(raw.key),
            certificate: folder.join(raw.certificate),
            peers,
            limits: check_limits(&raw.limits, one_client)?,
            service: check_service(party, raw.service, folder)?,
        })
    }
}

impl PartyConfig {
    /// Checks that a setting has this party and its peers.
    ///
    /// # Errors
    /// `E0711`.
    pub fn check_setting(&self, setting: Setting) -> Result<()> {
        setting.check_party(self.party)?;
        self.peers
            .keys()
            .try_for_each(|peer| setting.check_party(*peer).map_err(|error| error.at(format!("peers.{peer}"))))
    }
}

fn check_peers(party: Party, raw: BTreeMap<String, RawPeer>, folder: &Path) -> Result<BTreeMap<Party, Peer>> {
    let mut peers: BTreeMap<Party, Peer> = BTreeMap::new();
    let mut known: BTreeMap<Fingerprint, Party> = BTreeMap::new();
    for (name, raw) in raw {
        let peer: Party = name.parse()?;
        if peer == party {
            return Err(Diagnostic::input("E0711", format!("the {party} is listed as its own peer"))
                .note(format!("help      remove [peers.{peer}]")));
        }
        let third = [party].into_iter().chain(peers.keys().copied()).find(|other| other.is_third());
        if let Some(other) = third.filter(|_| peer.is_third()) {
            return Err(Diagnostic::input("E0711", format!("{other} and {peer} are parties of different settings"))
                .note(format!("help      remove [peers.{peer}], or call the party as the plan's setting does")));
        }
        let certificates = check_certificates(peer, &raw, folder)?;
        if let Certificates::Fingerprints(list) = &certificates {
            for fingerprint in list {
                let Some(other) = known.insert(*fingerprint, peer) else { continue };
                return Err(Diagnostic::input("E0711", format!("{other} and {peer} have the same fingerprint"))
                    .note(format!("found     {fingerprint}"))
                    .note("help      every party needs its own key and certificate, from `ombra-run keygen`"));
            }
        }
        let address = raw.address;
        if dials(party, peer) && address.is_none() {
            return Err(Diagnostic::input("E0711", format!("peers.{peer}.address is missing"))
                .note(format!("expected  host:port, as the {party} connects to the {peer}")));
        }
        let address = address.map(|address| check_address(&format!("peers.{peer}.address"), address)).transpose()?;
        peers.insert(peer, Peer { address, certificates });
    }
    if peers.is_empty() {
        return Err(Diagnostic::input("E0711", "no peers").note("help      add a section [peers.NAME] for every peer"));
    }
    Ok(peers)
}

/// What a peer may show: clients alone may be many.
fn check_certificates(peer: Party, raw: &RawPeer, folder: &Path) -> Result<Certificates> {
    let parse = |field: &str, text: &str| -> Result<Fingerprint> {
        text.parse().map_err(|error: Diagnostic| error.at(format!("peers.{peer}.{field}")))
    };
    let many = raw.fingerprints.is_some() || raw.certificates.is_some();
    let expected = if peer == Party::Client {
        "expected  one of fingerprint, fingerprints and certificates"
    } else {
        "expected  fingerprint = \"…\", as printed by `ombra-run keygen`"
    };
    match (&raw.fingerprint, &raw.fingerprints, &raw.certificates) {
        _ if many && peer != Party::Client => {
            Err(Diagnostic::input("E0711", format!("the {peer} is one party with one certificate")).note(expected))
        }
        (Some(one), None, None) => Ok(Certificates::Fingerprints(vec![parse("fingerprint", one)?])),
        (None, Some(list), None) if !list.is_empty() => {
            let list = list.iter().map(|text| parse("fingerprints", text));
            Ok(Certificates::Fingerprints(list.collect::<Result<_>>()?))
        }
        (None, None, Some(path)) => Ok(Certificates::Folder(folder.join(path))),
        _ => {
            Err(Diagnostic::input("E0711", format!("peers.{peer} does not say which certificate it shows"))
                .note(expected))
        }
    }
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

/// A time in seconds.
fn check_seconds(field: &str, value: f64, most: f64) -> Result<Duration> {
    if (0.001..=most).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(Diagnostic::input("E0711", format!("{field} is out of range"))
        .note(format!("expected  seconds from 0.001 to {most}"))
        .note(format!("found     {value}")))
}

fn check_service(party: Party, raw: Option<RawService>, folder: &Path) -> Result<ServiceConfig> {
    let default = ServiceConfig::default();
    let Some(raw) = raw else { return Ok(default) };
    let refuse = |what: &str, note: &str| Err(Diagnostic::input("E0711", what).note(note));
    if party == Party::Client {
        return refuse("the client serves nobody", "help      remove [service]");
    }
    if party != Party::Server && (raw.renew_s.is_some() || raw.control.is_some()) {
        return refuse(
            "the server alone renews the sharing of its weights",
            "help      remove service.renew_s and service.control here, and set them in the server's configuration",
        );
    }
    let address = |text: String| {
        text.parse::<SocketAddr>().map_err(|_| {
            Diagnostic::input("E0711", "service.metrics is no address")
                .note("expected  address:port, such as 127.0.0.1:9100")
                .note(format!("found     {}", text.escape_debug()))
        })
    };
    let metrics = raw.metrics.map(address).transpose()?;
    if metrics.is_some_and(|address| !address.ip().is_loopback()) && !raw.allow_remote_metrics {
        return refuse(
            "service.metrics is an address that others can reach",
            "help      use 127.0.0.1, or set service.allow_remote_metrics = true where a network policy keeps others out",
        );
    }
    if !raw.metrics_hosts.iter().all(|host| is_name(host)) {
        return refuse(
            "service.metrics_hosts has a name that cannot be used",
            "expected  names or addresses alone: no port, no scheme, no path",
        );
    }
    Ok(ServiceConfig {
        renew: raw.renew_s.map(|value| check_seconds("service.renew_s", value, 3.2e7)).transpose()?,
        renew_grace: raw.renew_grace_s.map(|value| check_seconds("service.renew_grace_s", value, 3.2e7)).transpose()?,
        control: raw.control.map(|path| folder.join(path)),
        metrics,
        metrics_hosts: raw.metrics_hosts,
        drain: raw.drain_s.map_or(Ok(default.drain), |value| check_seconds("service.drain_s", value, 86_400.0))?,
    })
}

/// The limits of a party that may have `one_client` alone: it takes no place away from another one.
fn check_limits(raw: &RawLimits, one_client: bool) -> Result<Limits> {
    let default = Limits::default();
    let seconds = |field: &str, value: Option<f64>, default: Duration| {
        value.map_or(Ok(default), |value| check_seconds(&format!("limits.{field}"), value, 86_400.0))
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
    let window = |value: u64| {
        if (MIN_WINDOW..=1 << 36).contains(&value) {
            return Ok(value);
        }
        Err(Diagnostic::input("E0711", "limits.dealt_window_bytes is out of range")
            .note(format!("expected  bytes from {MIN_WINDOW} to {}", 1u64 << 36))
            .note(format!("found     {value}")))
    };
    let count = |field: &str, value: u32, most: u32| {
        if (1..=most).contains(&value) {
            return Ok(value);
        }
        Err(Diagnostic::input("E0711", format!("limits.{field} is out of range"))
            .note(format!("expected  1 to {most}"))
            .note(format!("found     {value}")))
    };
    let max_sessions = count("max_sessions", raw.max_sessions.unwrap_or(default.max_sessions), MAX_SESSIONS)?;
    let of_client = if one_client { max_sessions } else { (max_sessions / 4).max(1) };
    let of_client = raw.max_sessions_of_client.unwrap_or(of_client);
    let total = raw.total_memory_bytes.map(|value| bytes("total_memory_bytes", Some(value), 0, 1 << 48));
    Ok(Limits {
        max_sessions,
        max_sessions_of_client: count("max_sessions_of_client", of_client, max_sessions)?,
        total_memory_bytes: total.transpose()?,
        connect: seconds("connect_s", raw.connect_s, default.connect)?,
        receive: seconds("receive_s", raw.receive_s, default.receive)?,
        idle: seconds("idle_s", raw.idle_s, default.idle)?,
        setup: seconds("setup_s", raw.setup_s, default.setup)?,
        max_frame_bytes: bytes("max_frame_bytes", raw.max_frame_bytes, default.max_frame_bytes, 1 << 36)?,
        dealt_window_bytes: window(raw.dealt_window_bytes.unwrap_or(default.dealt_window_bytes))?,
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
    fn one_of_many_clients_gets_a_quarter_of_the_places() {
        let one = server().replace("receive_s = 0.5", "max_sessions = 7");
        let (a, c) = ("a1".repeat(32), "c3".repeat(32));
        let many = one.replace(&format!("fingerprint = \"{a}\""), &format!("fingerprints = [\"{a}\", \"{c}\"]"));
        for (text, expected) in [
            (one, 7),
            (many.replace("= 7", "= 3"), 1),
            (many.replace("= 7", "= 20\nmax_sessions_of_client = 20"), 20),
            (many.replace("= 7", "= 32"), 8),
        ] {
            let limits = PartyConfig::parse(&text, Path::new("")).unwrap().limits;
            assert_eq!(limits.max_sessions_of_client, expected, "{text}");
        }
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
        let fingerprint = "b2".repeat(32).parse().unwrap();
        assert_eq!(helper.certificates, Certificates::Fingerprints(vec![fingerprint]));
        let limits = config.limits;
        assert_eq!((limits.connect, limits.receive), (Duration::from_secs(2), Duration::from_millis(500)));
        assert_eq!(limits.max_frame_bytes, Limits::default().max_frame_bytes);
    }

    #[test]
    fn parties_are_those_of_the_plans_setting() {
        let of = |text: &str| PartyConfig::parse(text, Path::new("")).unwrap();
        let (three, dealer) = (of(&server()), of(&server().replace("helper", "dealer")));
        assert_eq!(dealer.peers.keys().copied().collect::<Vec<_>>(), [Party::Client, Party::Dealer]);
        assert_eq!(three.check_setting(Setting::ThreeParty), Ok(()));
        assert_eq!(dealer.check_setting(Setting::Dealer), Ok(()));
        for (config, setting, name) in [(three, Setting::Dealer, "helper"), (dealer, Setting::ThreeParty, "dealer")] {
            let error = config.check_setting(setting).unwrap_err();
            assert_eq!(error.code, "E0711");
            assert!(error.message.contains(name) && error.to_string().contains("expected"), "{error}");
        }
    }

    #[test]
    fn clients_are_one_or_a_list_or_a_folder() {
        let of = |line: &str| {
            let text = server().replacen(&format!("fingerprint = \"{}\"", "a1".repeat(32)), line, 1);
            let config = PartyConfig::parse(&text, Path::new("/conf"))?;
            Ok::<_, Diagnostic>(config.peers[&Party::Client].certificates.clone())
        };
        let (a, b) = ("a1".repeat(32), "c3".repeat(32));
        let list = Certificates::Fingerprints([&a, &b].map(|text| text.parse().unwrap()).to_vec());
        assert_eq!(of(&format!("fingerprints = [\"{a}\", \"{b}\"]")).unwrap(), list);
        assert_eq!(of("certificates = \"clients\"").unwrap(), Certificates::Folder("/conf/clients".into()));
        assert!(of("fingerprints = []").unwrap_err().message.contains("does not say which certificate"));
        let twice = of(&format!("fingerprints = [\"{a}\", \"{}\"]", "b2".repeat(32))).unwrap_err();
        assert!(twice.message.contains("same fingerprint"), "a client with the helper's certificate: {twice}");
    }

    #[test]
    fn a_service_is_the_server_s_or_the_helper_s() {
        let service = "[service]\nrenew_s = 60\ncontrol = \"c\"\nmetrics = \"[::]:9100\"\nallow_remote_metrics = true\ndrain_s = 5\n";
        let config = PartyConfig::parse(&(server() + service), Path::new("/conf")).unwrap().service;
        assert_eq!((config.renew, config.drain), (Some(Duration::from_secs(60)), Duration::from_secs(5)));
        assert_eq!(config.control.as_deref(), Some(Path::new("/conf/c")));
        assert_eq!(config.metrics.map(|address| address.port()), Some(9100));
        let helper = server().replace("\"server\"", "\"helper\"").replace("peers.helper", "peers.server");
        for (text, reason) in [
            (helper + "[service]\nrenew_s = 60\n", "the server alone renews"),
            (
                server()
                    .replace("\"server\"\nlisten = \"0.0.0.0:7001\"", "\"client\"")
                    .replace("peers.client", "peers.server")
                    + "[service]\n",
                "the client serves nobody",
            ),
        ] {
            let text = text.replace("[peers.server]\nfingerprint", "[peers.server]\naddress = \"s:1\"\nfingerprint");
            let error = PartyConfig::parse(&text, Path::new("")).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }

    #[test]
    fn every_wrong_configuration_is_refused_with_its_reason() {
        for (from, to, reason) in [
            ("connect_s", "conect_s", "unknown field `conect_s`"),
            ("party = \"server\"", "party = \"provider\"", "unknown party `provider`"),
            ("party = \"server\"", "party = \"helper\"", "the helper is listed as its own peer"),
            ("party = \"server\"", "party = \"dealer\"", "dealer and helper are parties of different settings"),
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
            ("receive_s = 0.5", "dealt_window_bytes = 3", "limits.dealt_window_bytes is out of range"),
            ("receive_s = 0.5", "max_memory_bytes = 3", "limits.max_memory_bytes is out of range"),
            ("receive_s = 0.5", "max_traffic_bytes = 3", "limits.max_traffic_bytes is out of range"),
            ("receive_s = 0.5", "setup_s = -1", "limits.setup_s is out of range"),
            ("receive_s = 0.5", "max_sessions = 0", "limits.max_sessions is out of range"),
            ("receive_s = 0.5", "max_sessions_of_client = 33", "limits.max_sessions_of_client is out of range"),
            ("receive_s = 0.5", "total_memory_bytes = 3", "limits.total_memory_bytes is out of range"),
            ("[limits]", "[service]\ndrain_s = 0\n[limits]", "service.drain_s is out of range"),
            ("[limits]", "[service]\nrenew_s = -1\n[limits]", "service.renew_s is out of range"),
            ("[limits]", "[service]\nrenew_grace_s = 0\n[limits]", "service.renew_grace_s is out of range"),
            ("[limits]", "[service]\nmetrics = \"localhost\"\n[limits]", "service.metrics is no address"),
            ("[limits]", "[service]\nmetrics = \"0.0.0.0:9100\"\n[limits]", "that others can reach"),
            ("[limits]", "[service]\nmetrics_hosts = [\"a:1\"]\n[limits]", "metrics_hosts has a name"),
            ("[peers.client]", "[peers.client]\ncertificates = \"clients\"", "does not say which certificate"),
            ("[peers.client]\nfingerprint", "[peers.client]\n#", "does not say which certificate"),
            ("[peers.helper]", "[peers.helper]\ncertificates = \"clients\"", "one party with one certificate"),
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
