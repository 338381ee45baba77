//! Frames and their bytes on the wire.
//!
//! A frame is a header of 32 bytes, little endian, and a payload:
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | `Om` |
//! | 2 | version of this format and of the messages that the protocols send, 3 |
//! | 3 | kind: 0 data, 1 control, 2 abort, 3 finished, 4 turn, 5 waiting |
//! | 4..8 | op |
//! | 8..12 | round |
//! | 12..16 | depth |
//! | 16..24 | run |
//! | 24..32 | length of the payload |
//!
//! Data is what the protocols exchange. Control and abort carry JSON, bounded by [`MAX_CONTROL_BYTES`] and
//! [`MAX_ABORT_BYTES`]; their other header fields are zero. The rest has no payload: a party has finished its part of the
//! session and will close the link; how many sessions are served before this one, in the field of the round; a party waits
//! for another one, whose number stands in the field of the round.

use std::io::{self, Read};

use ombra_ir::{Diagnostic, Result};
use serde::{Deserialize, Serialize};

use super::party::Party;
use super::tls::{late, tls_error};
use crate::wiped::{Wipe, Zeroizing};

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 32;
/// Largest control message.
pub const MAX_CONTROL_BYTES: u64 = 1 << 20;
/// Largest abort message.
pub(super) const MAX_ABORT_BYTES: u64 = 4 << 10;

const MAGIC: [u8; 2] = *b"Om";
/// Grows with every change of what kernels send or of the labels of their randomness.
const VERSION: u8 = 4;
/// Memory is taken for at most this much payload, or as much again as has arrived, ahead of the data.
const READ_AHEAD: u64 = 1 << 20;

/// One protocol message. It carries shares and keys, hence no `Debug`, and what is left of it is wiped when it is dropped.
pub struct Frame {
    /// Which run of the plan.
    pub run: u64,
    /// Which op of the plan.
    pub op: u32,
    /// Which round of the op.
    pub round: u32,
    /// Causal depth, written by [`super::Link::send`]; see [`super::Meter`].
    pub depth: u32,
    /// The bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame to send.
    pub fn new(run: u64, op: u32, round: u32, payload: Vec<u8>) -> Self {
        Frame { run, op, round, depth: 0, payload }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.payload.wipe();
    }
}

/// What a message is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Control,
    Abort,
    Finished,
    Turn,
    Waiting,
}

impl Kind {
    /// Every kind, at the number that stands for it.
    const ALL: [Kind; 6] = [Kind::Data, Kind::Control, Kind::Abort, Kind::Finished, Kind::Turn, Kind::Waiting];
}

/// A frame and what it is for.
pub(super) struct Message {
    pub kind: Kind,
    pub frame: Frame,
}

/// Why a party ended the run, as its peers are told: no text that could hold a secret.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Abort {
    pub code: String,
    pub place: Option<String>,
    /// Who aborted first, where this party only passes on that somebody did: whose word comes first at a third one is chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Party>,
}

impl Message {
    /// A control message holding `value` as JSON.
    pub(super) fn control<T: Serialize>(value: &T) -> Result<Self> {
        let payload = serde_json::to_vec(value)
            .map_err(|error| Diagnostic::internal("E0709", format!("a control message is no JSON: {error}")))?;
        if payload.len() as u64 > MAX_CONTROL_BYTES {
            return Err(Diagnostic::internal(
                "E0709",
                format!("a control message of {} bytes exceeds the limit of {MAX_CONTROL_BYTES}", payload.len()),
            ));
        }
        Ok(Message { kind: Kind::Control, frame: Frame::new(0, 0, 0, payload) })
    }

    /// A message of `kind` that is no more than a number.
    pub(super) fn number(kind: Kind, number: u32) -> Self {
        Message { kind, frame: Frame::new(0, 0, number, Vec::new()) }
    }

    /// The abort message for `cause`: its code and place, nothing else.
    pub(super) fn abort(cause: &Diagnostic) -> Self {
        let first = aborted_by(cause);
        let place = cause.place.as_ref().filter(|_| first.is_none());
        let place = place.map(|place| place.chars().take(400).collect());
        let code = abort_code(cause).filter(|_| first.is_some()).unwrap_or(cause.code);
        let abort = Abort { code: code.to_owned(), place, first };
        let payload = serde_json::to_vec(&abort).unwrap_or_default();
        Message { kind: Kind::Abort, frame: Frame::new(0, 0, 0, payload) }
    }

    /// The header that precedes the payload.
    pub(super) fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let kind = Kind::ALL.iter().position(|kind| *kind == self.kind).unwrap_or_default();
        header[..4].copy_from_slice(&[MAGIC[0], MAGIC[1], VERSION, kind as u8]);
        header[4..8].copy_from_slice(&self.frame.op.to_le_bytes());
        header[8..12].copy_from_slice(&self.frame.round.to_le_bytes());
        header[12..16].copy_from_slice(&self.frame.depth.to_le_bytes());
        header[16..24].copy_from_slice(&self.frame.run.to_le_bytes());
        header[24..].copy_from_slice(&(self.frame.payload.len() as u64).to_le_bytes());
        header
    }

    /// The value of this control message from `peer`, of at most `limit` bytes.
    pub(super) fn parse_control<T: for<'a> Deserialize<'a>>(&self, peer: Party, limit: u64) -> Result<T> {
        let found = self.frame.payload.len() as u64;
        if self.kind != Kind::Control {
            return Err(Diagnostic::peer("E0703", format!("unexpected frame from {peer}"))
                .note("expected  a control message")
                .note(format!("found     {}", self.describe())));
        }
        if found > limit {
            return Err(Diagnostic::peer("E0703", format!("control message from {peer} is too long"))
                .note(format!("expected  at most {limit} bytes"))
                .note(format!("found     {found} bytes")));
        }
        serde_json::from_slice(&self.frame.payload).map_err(|error| {
            // The error's text may quote the message, so only its position is told.
            Diagnostic::peer("E0703", format!("control message from {peer} cannot be read"))
                .note(format!("found     an error at line {} column {}", error.line(), error.column()))
                .note("help      both parties must run the same version of ombra-run")
        })
    }

    /// The message in words, without its payload.
    pub(super) fn describe(&self) -> String {
        let Frame { run, op, round, payload, .. } = &self.frame;
        match self.kind {
            Kind::Data => describe(*run, *op, *round, payload.len() as u64),
            Kind::Control => format!("a control message of {} bytes", payload.len()),
            Kind::Abort => "an abort".to_owned(),
            Kind::Finished => "the end of its part".to_owned(),
            Kind::Turn | Kind::Waiting => "a note about waiting".to_owned(),
        }
    }
}

/// A data frame in words.
pub(super) fn describe(run: u64, op: u32, round: u32, bytes: u64) -> String {
    format!("run {run:016x} op {op} round {round} of {bytes} bytes")
}

/// Text from a peer, made fit to print: at most `limit` characters.
pub(super) fn printable(text: &str, limit: usize) -> String {
    let text: String = text.chars().take(limit).collect();
    ombra_ir::diag::printable(&text)
}

/// Reads one message of `peer`, or `None` at the end of the stream between two frames.
///
/// A payload longer than `max_frame_bytes` is refused before any memory is taken for it, and memory grows only as data
/// arrives.
///
/// `room` is told the length before the payload is read, and may wait until there is room for it. When it says that nobody
/// will read the message, the stream ends.
pub(super) fn read_message(
    source: &mut impl Read,
    peer: Party,
    max_frame_bytes: u64,
    room: impl FnOnce(u64) -> bool,
) -> Result<Option<Message>> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match source.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(cut(peer)),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if filled == 0 && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(read_error(peer, &error)),
        }
    }
    let (kind, mut frame, length) = parse_header(&header, peer)?;
    let limit = match kind {
        Kind::Data => max_frame_bytes,
        Kind::Control => MAX_CONTROL_BYTES,
        Kind::Abort => MAX_ABORT_BYTES,
        Kind::Finished | Kind::Turn | Kind::Waiting => 0,
    };
    if length > limit {
        return Err(Diagnostic::peer("E0704", format!("frame from {peer} is too long"))
            .note(format!("expected  at most {limit} bytes"))
            .note(format!("found     {length} bytes"))
            .note("help      raise limits.max_frame_bytes in this party's configuration if the plan needs it"));
    }
    if !room(length) {
        return Ok(None);
    }
    frame.payload = read_payload(source, peer, length)?;
    Ok(Some(Message { kind, frame }))
}

fn parse_header(header: &[u8; HEADER_BYTES], peer: Party) -> Result<(Kind, Frame, u64)> {
    let field = |start: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&header[start..start + 4]);
        u32::from_le_bytes(bytes)
    };
    let wide = |start: usize| u64::from(field(start)) | u64::from(field(start + 4)) << 32;
    let [first, second, version, kind, ..] = *header;
    if [first, second] != MAGIC {
        return Err(Diagnostic::peer("E0704", format!("{peer} sent something that is no frame"))
            .note("expected  a header starting with `Om`")
            .note(format!("found     bytes {first:#04x} {second:#04x}")));
    }
    if version != VERSION {
        return Err(Diagnostic::peer("E0704", format!("{peer} speaks another version of the frame format"))
            .note(format!("expected  version {VERSION}"))
            .note(format!("found     version {version}"))
            .note("help      run the same version of ombra-run on every party"));
    }
    let kind = *Kind::ALL.get(usize::from(kind)).ok_or_else(|| {
        Diagnostic::peer("E0704", format!("{peer} sent a frame of an unknown kind"))
            .note(format!("expected  a kind below {}", Kind::ALL.len()))
            .note(format!("found     kind {kind}"))
    })?;
    let frame = Frame { run: wide(16), op: field(4), round: field(8), depth: field(12), payload: Vec::new() };
    Ok((kind, frame, wide(24)))
}

fn read_payload(source: &mut impl Read, peer: Party, length: u64) -> Result<Vec<u8>> {
    let too_large = || {
        Diagnostic::peer("E0704", format!("no memory for a frame of {length} bytes from {peer}"))
            .note("help      lower limits.max_frame_bytes, or run with a shorter prompt")
    };
    let length = usize::try_from(length).map_err(|_| too_large())?;
    let mut payload = Zeroizing::new(Vec::new());
    while payload.len() < length {
        let filled = payload.len();
        let step = (length - filled).min(filled.max(READ_AHEAD as usize));
        // A vector that grows by itself leaves what it held in freed memory.
        let mut longer = Zeroizing::new(Vec::new());
        longer.try_reserve_exact(filled + step).map_err(|_| too_large())?;
        longer.extend_from_slice(&payload);
        longer.resize(filled + step, 0);
        payload = longer;
        source.read_exact(&mut payload[filled..]).map_err(|error| read_error(peer, &error))?;
    }
    Ok(std::mem::take(&mut *payload))
}

fn cut(peer: Party) -> Diagnostic {
    Diagnostic::peer("E0701", format!("{peer} went away in the middle of a frame"))
        .note(format!("help      see the output of {peer}"))
}

fn read_error(peer: Party, error: &io::Error) -> Diagnostic {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut(peer),
        io::ErrorKind::InvalidData => tls_error(Some(peer), error),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(peer.name()),
        _ => gone(peer).note(format!("found     {error}")),
    }
}

/// The error of a peer whose connection ended.
pub(super) fn gone(peer: Party) -> Diagnostic {
    Diagnostic::peer("E0701", format!("{peer} went away before the run was over"))
        .note(format!("help      see the output of {peer}"))
}

/// What stands between a peer and the code with which it aborted a run.
const ABORTED: &str = " aborted the run with ";

/// The code with which a peer aborted the run, where the error is that it did.
pub fn abort_code(error: &Diagnostic) -> Option<&str> {
    error.message.split_once(ABORTED).map(|(_, code)| code).filter(|_| error.code == "E0705")
}

/// The peer that aborted a run with a code, where the error is that it did.
fn aborted_by(error: &Diagnostic) -> Option<Party> {
    abort_code(error)?;
    let (peer, _) = error.message.split_once(ABORTED)?;
    Party::ALL.into_iter().find(|party| party.name() == peer)
}

/// The error of a run that `peer` aborted with the payload of `message`, or of which it says who did.
pub(super) fn aborted(peer: Party, message: &Message) -> Diagnostic {
    let Ok(abort) = serde_json::from_slice::<Abort>(&message.frame.payload) else {
        return Diagnostic::peer("E0705", format!("{peer} aborted the run without a readable reason"));
    };
    let peer = abort.first.unwrap_or(peer);
    let error = Diagnostic::peer("E0705", format!("{peer}{ABORTED}{}", printable(&abort.code, 16)))
        .note(format!("help      the whole message is in the output of {peer}"));
    match abort.place {
        Some(place) => error.at(format!("{peer}: {}", printable(&place, 400))),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever is told of an abort by one that did not begin it hears who did, and why.
    #[test]
    fn aborts_are_passed_on_with_their_first_cause() {
        let cause = Diagnostic::input("E0405", "too much").at("/here");
        let first = aborted(Party::Server, &Message::abort(&cause));
        assert_eq!(first.message, "server aborted the run with E0405");
        assert_eq!(first.place.as_deref(), Some("server: /here"));
        let second = aborted(Party::Helper, &Message::abort(&first));
        assert_eq!((second.code, abort_code(&second)), ("E0705", Some("E0405")));
        assert_eq!(second.message, first.message);
    }

    fn bytes_of(message: &Message) -> Vec<u8> {
        let mut bytes = message.header().to_vec();
        bytes.extend_from_slice(&message.frame.payload);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Option<Message>> {
        read_message(&mut &bytes[..], Party::Server, 1 << 16, |_| true)
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let frame = Frame { run: u64::MAX - 5, op: 7, round: 9, depth: 11, payload: vec![1, 2, 3] };
        let message = read(&bytes_of(&Message { kind: Kind::Data, frame })).unwrap().unwrap();
        assert!(message.kind == Kind::Data);
        let Frame { run, op, round, depth, ref payload } = message.frame;
        assert_eq!((run, op, round, depth, payload), (u64::MAX - 5, 7, 9, 11, &vec![1, 2, 3]));
        assert!(read(&[]).unwrap().is_none());
    }

    #[test]
    fn a_payload_longer_than_the_read_ahead_survives() {
        let payload: Vec<u8> = (0..5_000_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        let bytes = bytes_of(&Message { kind: Kind::Data, frame: Frame::new(1, 2, 3, payload.clone()) });
        let message = read_message(&mut &bytes[..], Party::Server, 1 << 30, |_| true).unwrap().unwrap();
        assert!(message.frame.payload == payload);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = bytes_of(&Message { kind: Kind::Data, frame: Frame::new(1, 2, 3, vec![5; 40]) });
        for length in 1..bytes.len() {
            let error = read(&bytes[..length]).err().expect("a cut frame");
            assert_eq!((error.code, error.kind), ("E0701", ombra_ir::Kind::Peer), "{length}");
        }
    }

    #[test]
    fn every_flipped_header_byte_is_an_error_or_another_frame() {
        let bytes = bytes_of(&Message { kind: Kind::Data, frame: Frame::new(1, 2, 3, vec![5; 40]) });
        for index in 0..HEADER_BYTES {
            let mut bytes = bytes.clone();
            bytes[index] ^= 0x80;
            let outcome = read(&bytes);
            match index {
                0..4 => assert_eq!(outcome.err().expect("a wrong header").code, "E0704"),
                4..24 => assert!(outcome.is_ok()),
                24..26 => assert_eq!(outcome.err().expect("a longer frame").code, "E0701"),
                _ => assert_eq!(outcome.err().expect("an oversized frame").code, "E0704"),
            }
        }
    }

    #[test]
    fn a_hostile_length_takes_no_memory_ahead_of_data() {
        let mut header = Message { kind: Kind::Data, frame: Frame::new(0, 0, 0, Vec::new()) }.header();
        header[24..].copy_from_slice(&(1u64 << 62).to_le_bytes());
        let outcome = read_message(&mut &header[..], Party::Server, u64::MAX, |_| true);
        assert_eq!(outcome.err().expect("a frame without data").code, "E0701");
    }

    #[test]
    fn an_abort_tells_code_and_place_only() {
        let cause = Diagnostic::internal("E0999", "the secret is 42").at("node \"/layer.0\"\n").note("also 43");
        let error = aborted(Party::Helper, &Message::abort(&cause));
        assert_eq!(error.message, "helper aborted the run with E0999");
        assert_eq!(error.place.as_deref(), Some("helper: node \"/layer.0\"\\u000a"));
        assert!(!error.to_string().contains("42") && !error.to_string().contains("43"));
    }
}
