//! TLS 1.3 in which both sides show a certificate, and each side accepts only certificates with the fingerprints it was
//! configured with.
//!
//! The signature over the handshake is verified as usual, so a peer proves that it holds the key of its certificate.
//! Sessions are never resumed: every connection checks the pin anew.

use std::fmt;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use ombra_ir::{Diagnostic, Result};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, ServerConfig, ServerConnection, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::party::Party;
use super::trust::Trusted;

/// SHA-256 of a certificate in DER, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the certificate with the bytes `der`.
    pub fn of(der: &[u8]) -> Self {
        Fingerprint(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = Diagnostic;

    fn from_str(text: &str) -> Result<Self> {
        parse_hex(text).map(Fingerprint).ok_or_else(|| {
            Diagnostic::input("E0711", format!("`{}` is no certificate fingerprint", text.escape_debug()))
                .note("expected  64 hexadecimal digits, as printed by `ombra-run keygen`")
        })
    }
}

/// The `N` bytes written as `2 N` hexadecimal digits.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut digits = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    let mut bytes = [0; N];
    for byte in &mut bytes {
        let (high, low) = (digits.next()??, digits.next()??);
        *byte = high << 4 | low;
    }
    digits.next().is_none().then_some(bytes)
}

/// A party's own certificate and key.
pub(super) struct Identity {
    /// The certificate shown to peers.
    pub certificate: CertificateDer<'static>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

/// Accepts the certificates that are configured, and no others.
struct Pins {
    accepted: Accepted,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Which certificates are accepted.
enum Accepted {
    /// That of the one peer that is connected to.
    One(Fingerprint),
    /// Those of the peers that connect, as they are configured at the moment.
    Peers(Arc<Trusted>),
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pins").finish_non_exhaustive()
    }
}

/// Why a certificate was refused, inside the TLS library's error.
#[derive(Debug)]
struct WrongPin {
    /// The only one that would do, if there is only one.
    expected: Option<Fingerprint>,
    found: Fingerprint,
}

impl fmt::Display for WrongPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate fingerprint {} is not configured", self.found)
    }
}

impl std::error::Error for WrongPin {}

impl Pins {
    fn check(&self, certificate: &CertificateDer<'_>) -> std::result::Result<(), Error> {
        let found = Fingerprint::of(certificate);
        let (accepted, expected) = match &self.accepted {
            Accepted::One(pin) => (*pin == found, Some(*pin)),
            Accepted::Peers(trusted) => (trusted.owner(found).is_some(), None),
        };
        if accepted {
            return Ok(());
        }
        let cause = WrongPin { expected, found };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(cause)))))
    }
}

fn no_tls12() -> std::result::Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
}

impl ServerCertVerifier for Pins {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Pins {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// AES-128-GCM first: on processors with AES instructions it is the fastest, and 128 bits are the protocols' own level.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn unusable(error: &Error) -> Diagnostic {
    Diagnostic::input("E0712", format!("this party's key and certificate cannot be used: {error}"))
        .note("help      make a new pair with `ombra-run keygen`")
}

/// TLS as the side that opens connections to a peer with the fingerprint `pin`.
pub(super) fn client_config(identity: &Identity, pin: Fingerprint) -> Result<Arc<ClientConfig>> {
    let provider = provider();
    let pins = Pins { accepted: Accepted::One(pin), algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pins))
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .map_err(|error| unusable(&error))?;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// TLS as the side that accepts connections from the peers that are `trusted`.
pub(super) fn server_config(identity: &Identity, trusted: Arc<Trusted>) -> Result<Arc<ServerConfig>> {
    let provider = provider();
    let pins = Pins { accepted: Accepted::Peers(trusted), algorithms: provider.signature_verification_algorithms };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(Arc::new(pins))
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .map_err(|error| unusable(&error))?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A socket whose reads and writes all end at one deadline.
struct Timed<'a> {
    socket: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn remaining(&self) -> io::Result<std::time::Duration> {
        let time = self.deadline.saturating_duration_since(Instant::now());
        if time.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(time) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.remaining()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.remaining()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// One TLS connection while the two sides still talk in turns.
pub(super) struct Channel {
    tls: Connection,
    socket: TcpStream,
    deadline: Instant,
}

impl Channel {
    /// Handshake as the side that opened `socket`, done before `deadline`.
    pub(super) fn open(socket: TcpStream, config: Arc<ClientConfig>, deadline: Instant) -> io::Result<Self> {
        let name = ServerName::try_from("ombra").map_err(io::Error::other)?;
        let tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Self::shake_hands(Connection::Client(tls), socket, deadline)
    }

    /// Handshake as the side that accepted `socket`, done before `deadline`.
    pub(super) fn accept(socket: TcpStream, config: Arc<ServerConfig>, deadline: Instant) -> io::Result<Self> {
        let tls = ServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake_hands(Connection::Server(tls), socket, deadline)
    }

    fn shake_hands(mut tls: Connection, socket: TcpStream, deadline: Instant) -> io::Result<Self> {
        let outcome = tls.complete_io(&mut Timed { socket: &socket, deadline });
        let channel = Channel { tls, socket, deadline };
        match outcome {
            Ok(_) => Ok(channel),
            Err(error) => {
                channel.close_gently();
                Err(error)
            }
        }
    }

    /// The fingerprint of the peer's certificate.
    pub(super) fn peer_fingerprint(&self) -> Option<Fingerprint> {
        self.tls.peer_certificates()?.first().map(|certificate| Fingerprint::of(certificate))
    }

    /// Whether the peer has closed the connection, and nothing that it sent is left.
    pub(super) fn is_closed(&self) -> bool {
        if self.socket.set_nonblocking(true).is_err() {
            return true;
        }
        let seen = self.socket.peek(&mut [0]);
        let open = match seen {
            Ok(count) => count > 0,
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        !open || self.socket.set_nonblocking(false).is_err()
    }

    /// Closes the connection so that the peer can still read what was sent last: a socket closed with unread input
    /// would reset the connection and take the last words with it.
    pub(super) fn close_gently(mut self) {
        self.tls.send_close_notify();
        let mut timed = Timed { socket: &self.socket, deadline: self.deadline };
        let flushed = flush(&mut self.tls, &mut timed);
        if flushed.is_err() || self.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut bin = [0; 4096];
        for _ in 0..64 {
            if !matches!(timed.read(&mut bin), Ok(1..)) {
                break;
            }
        }
    }

    /// The reading half of a simplex connection, and a handle to shut it down.
    pub(super) fn into_reader(self) -> io::Result<(Reader, TcpStream)> {
        self.socket.set_read_timeout(None)?;
        let handle = self.socket.try_clone()?;
        let socket = BufReader::with_capacity(128 << 10, self.socket.try_clone()?);
        Ok((Reader { tls: self.tls, socket, handle: self.socket }, handle))
    }

    /// The writing half of a simplex connection, and a handle to shut it down. A write that makes no progress for
    /// `limit` fails.
    pub(super) fn into_writer(mut self, limit: std::time::Duration) -> io::Result<(Writer, TcpStream)> {
        self.socket.set_write_timeout(Some(limit))?;
        self.tls.set_buffer_limit(None);
        let handle = self.socket.try_clone()?;
        Ok((Writer { tls: self.tls, socket: self.socket }, handle))
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut source = Timed { socket: &self.socket, deadline: self.deadline };
        let mut sink = Timed { socket: &self.socket, deadline: self.deadline };
        read_plain(&mut self.tls, &mut source, &mut sink, buffer)
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tls.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        flush(&mut self.tls, &mut Timed { socket: &self.socket, deadline: self.deadline })
    }
}

/// Reads decrypted bytes. What TLS itself has to say, such as an answer to a key update, goes to `sink`.
fn read_plain(
    tls: &mut Connection,
    source: &mut impl Read,
    sink: &mut impl Write,
    buffer: &mut [u8],
) -> io::Result<usize> {
    loop {
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
        flush(tls, sink)?;
        tls.read_tls(source)?;
        tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
}

fn flush(tls: &mut Connection, sink: &mut impl Write) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(sink)?;
    }
    Ok(())
}

/// The reading half of a simplex connection.
pub(super) struct Reader {
    tls: Connection,
    socket: BufReader<TcpStream>,
    handle: TcpStream,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read_plain(&mut self.tls, &mut self.socket, &mut self.handle, buffer)
    }
}

/// The writing half of a simplex connection.
pub(super) struct Writer {
    tls: Connection,
    socket: TcpStream,
}

impl Writer {
    /// Sends `parts` as one piece. When nothing was taken of it for the limit, `goes_on` says whether it is tried again.
    pub(super) fn write(&mut self, parts: [&[u8]; 2], goes_on: impl Fn() -> bool) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let accepted = self.tls.writer().write_vectored(&parts.map(IoSlice::new))?;
        if accepted != total {
            return Err(io::ErrorKind::WriteZero.into());
        }
        loop {
            match flush(&mut self.tls, &mut self.socket) {
                Err(error) if is_timeout(&error) && goes_on() => {}
                outcome => return outcome,
            }
        }
    }

    /// Tells the peer that nothing follows.
    pub(super) fn close(mut self) -> io::Result<()> {
        self.tls.send_close_notify();
        flush(&mut self.tls, &mut self.socket)?;
        self.socket.shutdown(Shutdown::Write)
    }
}

/// The error of a failed TLS connection with `peer`, or with a peer that is not known yet.
pub(super) fn tls_error(peer: Option<Party>, error: &io::Error) -> Diagnostic {
    let name = peer.map_or("the connecting peer", Party::name);
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => {
            let diagnostic = Diagnostic::peer("E0706", format!("{name} shows another certificate than the pinned one"));
            match other.0.downcast_ref::<WrongPin>() {
                Some(WrongPin { expected, found }) => {
                    let listed = || "a certificate that this party's configuration lists".to_owned();
                    diagnostic
                        .note(format!("expected  {}", expected.map_or_else(listed, |pin| pin.to_string())))
                        .note(format!("found     {found}"))
                        .note("help      compare with the fingerprint that `ombra-run keygen` printed on the peer")
                }
                None => diagnostic,
            }
        }
        Some(Error::AlertReceived(alert)) => {
            Diagnostic::peer("E0706", format!("{name} refused the TLS connection with the alert {alert:?}"))
                .note("help      the peer's configuration must list the fingerprint of this party's certificate")
        }
        Some(cause) => Diagnostic::peer("E0706", format!("TLS with {name} failed: {cause}")),
        None if is_timeout(error) => late(name),
        None => Diagnostic::peer("E0706", format!("TLS with {name} failed: {error}")),
    }
}

/// Whether a socket did nothing for as long as it may.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// The error of a peer that is too slow while the connection is set up.
pub(super) fn late(name: &str) -> Diagnostic {
    Diagnostic::peer("E0702", format!("{name} did not answer in time while the connection was set up"))
        .note("help      raise limits.connect_s in this party's configuration if the network is slow")
}
