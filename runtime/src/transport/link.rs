//! A link to one peer: two simplex connections with a thread each, or two queues in memory.

use std::cell::Cell;
use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ombra_ir::{Diagnostic, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::{Frame, HEADER_BYTES, Kind, MAX_CONTROL_BYTES, Message, aborted, describe, gone, read_message};
use super::meter::Meter;
use super::network::{Network, Pacer};
use super::party::Party;
use super::queue::{Inbox, Outbox, Patience};
use super::tls::{Channel, Reader, Writer, is_timeout};
use super::watch::Watch;

/// Payload handed to TLS, and to the emulated pipe, in one piece.
const CHUNK_BYTES: usize = 64 << 10;
/// Frames that have arrived and are not asked for hold at most this much memory, or one frame.
const INBOX_BYTES: u64 = 256 << 20;
/// A dropped link keeps sending what is queued for as long as the peer takes something this often.
const LINGER: Duration = Duration::from_secs(2);
/// After a failed write, time for the reader to learn why.
const REASON: Duration = Duration::from_millis(500);
/// Time for the cause of an end to arrive over another link.
const SAME_CAUSE: Duration = Duration::from_millis(100);
/// The slowest that a frame may arrive, in bytes a second, once the limit of silence is over.
const SLOWEST: u64 = 64 << 10;
/// Limits of links in memory.
const MEMORY_RECEIVE: Duration = Duration::from_secs(60);
const MEMORY_FRAME_BYTES: u64 = 1 << 30;

/// What a link needs besides its connections.
pub(super) struct Options {
    pub peer: Party,
    pub meter: Arc<Meter>,
    pub watch: Arc<Watch>,
    /// Whether the session waits to be served.
    pub waiting: bool,
    pub receive: Duration,
    pub max_frame_bytes: u64,
    pub network: Option<Network>,
}

/// A link to one peer. Dropping it sends what is queued, closes the connections and ends its threads.
pub struct Link {
    peer: Party,
    meter: Arc<Meter>,
    receive: Duration,
    max_frame_bytes: u64,
    inbox: Arc<Inbox>,
    watch: Arc<Watch>,
    output: Output,
}

enum Output {
    Memory { own: Party, inbox: Arc<Inbox> },
    Tls { outbox: Arc<Outbox>, sockets: [TcpStream; 2], threads: Vec<JoinHandle<()>> },
}

impl Link {
    /// Two links joined in memory: the first is the end of the first party. Frames are not limited in time but in the wait
    /// for them, 60 s.
    pub fn memory_pair(first: (Party, &Arc<Meter>), second: (Party, &Arc<Meter>)) -> (Link, Link) {
        Link::watched_pair((first.0, first.1, &Arc::default()), (second.0, second.1, &Arc::default()))
    }

    /// [`memory_pair`](Self::memory_pair) of links that each share a watch with others.
    pub(super) fn watched_pair(
        first: (Party, &Arc<Meter>, &Arc<Watch>),
        second: (Party, &Arc<Meter>, &Arc<Watch>),
    ) -> (Link, Link) {
        let inbox = |watch: &Arc<Watch>, peer: Party| {
            let inbox = Arc::new(Inbox::new(u64::MAX, false, Arc::clone(watch)));
            watch.add(peer, &inbox, None);
            inbox
        };
        let inboxes = [inbox(first.2, second.0), inbox(second.2, first.0)];
        let end = |own: (Party, &Arc<Meter>, &Arc<Watch>), peer: Party, inbox: &Arc<Inbox>, far: &Arc<Inbox>| Link {
            peer,
            meter: Arc::clone(own.1),
            receive: MEMORY_RECEIVE,
            max_frame_bytes: MEMORY_FRAME_BYTES,
            inbox: Arc::clone(inbox),
            watch: Arc::clone(own.2),
            output: Output::Memory { own: own.0, inbox: Arc::clone(far) },
        };
        let [a, b] = &inboxes;
        (end(first, second.0, a, b), end(second, first.0, b, a))
    }

    /// A link over the connection `from` the peer and the connection `to` it.
    pub(super) fn over(from: Channel, to: Channel, options: Options) -> Result<Link> {
        let Options { peer, meter, watch, waiting, receive, max_frame_bytes, network } = options;
        let refused = |error: std::io::Error| {
            Diagnostic::new(ombra_ir::Kind::Input, "E0714", format!("the link to {peer} cannot be set up: {error}"))
        };
        let (reader, reading) = from.into_reader().map_err(refused)?;
        let (writer, writing) = to.into_writer(receive).map_err(refused)?;
        let inbox = Arc::new(Inbox::new(INBOX_BYTES.max(max_frame_bytes), waiting, Arc::clone(&watch)));
        let outbox = Arc::new(Outbox::new(Arc::clone(&watch)));
        watch.add(peer, &inbox, Some(&outbox));
        let mut link = Link {
            peer,
            meter,
            receive,
            max_frame_bytes,
            inbox: Arc::clone(&inbox),
            watch,
            output: Output::Tls { outbox: Arc::clone(&outbox), sockets: [reading, writing], threads: Vec::new() },
        };
        let heard = Arc::clone(&inbox);
        let read = thread::Builder::new()
            .name(format!("from {peer}"))
            .spawn(move || read_loop(reader, &inbox, peer, (receive, max_frame_bytes)))
            .map_err(refused)?;
        let write = thread::Builder::new().name(format!("to {peer}")).spawn(move || {
            let outcome = write_loop(writer, &outbox, network.map(Pacer::new), || heard.has_heard(receive));
            outbox.finish(outcome.err().map(|error| write_error(peer, receive, &error)));
        });
        if let Output::Tls { threads, outbox, .. } = &mut link.output {
            threads.push(read);
            match write {
                Ok(write) => threads.push(write),
                Err(error) => {
                    outbox.finish(None);
                    return Err(refused(error));
                }
            }
        }
        Ok(link)
    }

    /// The party at the other end.
    pub fn peer(&self) -> Party {
        self.peer
    }

    /// The meter this link counts in.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Queues `frame` for the peer and returns at once. The depth it carries is the meter's plus one.
    ///
    /// Fails when the peer is known to be gone, and on a payload above the size limit.
    pub fn send(&self, mut frame: Frame) -> Result<()> {
        let bytes = frame.payload.len();
        if bytes as u64 > self.max_frame_bytes {
            let Frame { run, op, round, .. } = frame;
            return Err(Diagnostic::unsupported("E0709", format!("a frame to {} is too long", self.peer))
                .note(format!("expected  at most {} bytes", self.max_frame_bytes))
                .note(format!("found     {}", describe(run, op, round, bytes as u64)))
                .note("help      raise limits.max_frame_bytes on every party, or run with a shorter prompt"));
        }
        frame.depth = self.meter.count_sent(self.peer, bytes);
        self.push(Message { kind: Kind::Data, frame })
    }

    /// The payload and depth of the peer's next frame, which must have exactly this run, op, round and length in bytes.
    ///
    /// Waits for it at most the limit in which no byte arrives. Every error is final for the run.
    pub fn recv(&self, run: u64, op: u32, round: u32, expected_len: u64) -> Result<(Vec<u8>, u32)> {
        let mut message = self.inbox.pop(self.peer, Patience::Silence(self.receive))?;
        let Frame { run: found_run, op: found_op, round: found_round, depth, ref payload } = message.frame;
        let found_len = payload.len() as u64;
        if message.kind != Kind::Data || (found_run, found_op, found_round, found_len) != (run, op, round, expected_len)
        {
            return Err(Diagnostic::peer("E0703", format!("unexpected frame from {}", self.peer))
                .note(format!("expected  {}", describe(run, op, round, expected_len)))
                .note(format!("found     {}", message.describe())));
        }
        self.meter.count_received(self.peer, payload.len(), depth);
        Ok((std::mem::take(&mut message.frame.payload), depth))
    }

    /// Queues `value` as a control message of at most [`MAX_CONTROL_BYTES`] of JSON.
    pub fn send_control<T: Serialize>(&self, value: &T) -> Result<()> {
        self.push(Message::control(value)?)
    }

    /// The peer's next message, which must be a control message of at most `limit` bytes that holds a `T`.
    pub fn recv_control<T: DeserializeOwned>(&self, limit: u64) -> Result<T> {
        let message = self.inbox.pop(self.peer, Patience::Silence(self.receive))?;
        message.parse_control(self.peer, limit.min(MAX_CONTROL_BYTES))
    }

    /// [`recv_control`](Self::recv_control) of a message that must be here in `time`, whatever else the peer sends.
    pub fn recv_control_soon<T: DeserializeOwned>(&self, limit: u64, time: Duration) -> Result<T> {
        let message = self.inbox.pop(self.peer, Patience::Time(time))?;
        message.parse_control(self.peer, limit.min(MAX_CONTROL_BYTES))
    }

    /// [`recv_control`](Self::recv_control) from a peer that may be silent for `time`, if that is longer than usual.
    pub fn recv_control_within<T: DeserializeOwned>(&self, limit: u64, time: Duration) -> Result<T> {
        let message = self.inbox.pop(self.peer, Patience::Silence(self.receive.max(time)))?;
        message.parse_control(self.peer, limit.min(MAX_CONTROL_BYTES))
    }

    /// Waits until at most `bytes` are queued for the peer, for whoever sends much without receiving. The peer must not
    /// wait for this party meanwhile.
    pub fn wait_for_room(&self, bytes: u64) {
        if let Output::Tls { outbox, .. } = &self.output {
            outbox.wait_for_room(bytes);
        }
    }

    /// Tells the peer that this party has done its part: that the link ends then is no failure.
    pub(super) fn finish(&self) {
        match &self.output {
            Output::Memory { own, inbox } => {
                inbox.finish(gone(*own));
            }
            // A peer that has gone already needs no word.
            Output::Tls { outbox, .. } => drop(outbox.push(self.peer, Message::number(Kind::Finished, 0))),
        }
    }

    /// Tells the peer what is no more than a number. In memory nobody needs to know.
    pub(super) fn say(&self, kind: Kind, number: u32) {
        if let Output::Tls { outbox, .. } = &self.output {
            // A peer that has gone is noticed where its session is looked at.
            let _ = outbox.push(self.peer, Message::number(kind, number));
        }
    }

    /// Waits until the peer serves this session; `told` hears how many it serves before. In memory there is no queue.
    pub(super) fn wait_for_turn(&self, told: &mut dyn FnMut(u32)) -> Result<()> {
        match &self.output {
            Output::Memory { .. } => Ok(()),
            Output::Tls { .. } => self.inbox.wait_for_turn(self.peer, self.receive, told),
        }
    }

    /// How the link has ended, or ends at once: a peer whose end is the cause of what another one says may be told of last.
    pub(crate) fn end_reason(&self) -> Option<Diagnostic> {
        self.inbox.end_reason(SAME_CAUSE)
    }

    /// The queue of what has arrived.
    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Tells the peer that the run failed: the code and place of `cause`, nothing else. What was queued is not sent, and
    /// nothing can be sent after it.
    pub fn abort(&self, cause: &Diagnostic) {
        let message = Message::abort(cause);
        match &self.output {
            Output::Memory { own, inbox } => inbox.end(aborted(*own, &message)),
            Output::Tls { outbox, .. } => outbox.replace_by(message),
        }
    }

    fn push(&self, message: Message) -> Result<()> {
        // The peer's own words, if it left any, say more than a failed write.
        if let Some(reason) = self.inbox.end_reason(Duration::ZERO).or_else(|| self.watch.failure().cloned()) {
            return Err(reason);
        }
        match &self.output {
            Output::Memory { inbox, .. } => {
                if inbox.push(message) {
                    Ok(())
                } else {
                    Err(gone(self.peer))
                }
            }
            Output::Tls { outbox, .. } => {
                outbox.push(self.peer, message).map_err(|error| self.inbox.end_reason(REASON).unwrap_or(error))
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        match &mut self.output {
            Output::Memory { own, inbox } => {
                inbox.end(gone(*own));
                self.inbox.abandon();
            }
            Output::Tls { outbox, sockets, threads } => {
                outbox.close();
                if !outbox.wait_done(LINGER) {
                    outbox.kill();
                }
                self.inbox.abandon();
                for socket in sockets.iter() {
                    // Fails only when the connection is gone already.
                    let _ = socket.shutdown(Shutdown::Both);
                }
                for thread in threads.drain(..) {
                    let _ = thread.join();
                }
            }
        }
    }
}

/// The bytes of a connection, which tell the inbox that the peer is not silent: those of payloads, while what a header
/// counts for is known once it is whole. A frame that begins and then arrives
/// byte by byte is an error: otherwise such a peer would keep a party waiting for ever.
struct Noted<'a, R> {
    reader: R,
    inbox: &'a Inbox,
    limit: Duration,
    /// When the first bytes of this frame came.
    since: Option<Instant>,
    bytes: u64,
    /// For how long this party had no room for it.
    waited: &'a Cell<Duration>,
}

impl<R: Read> Read for Noted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let since = *self.since.get_or_insert_with(Instant::now);
        self.bytes = self.bytes.saturating_add(count as u64);
        if self.bytes > HEADER_BYTES as u64 {
            self.inbox.note_activity();
        }
        let slowest = Duration::from_micros(self.bytes.saturating_mul(1_000_000) / SLOWEST);
        let allowed = self.limit.saturating_add(slowest).saturating_add(self.waited.get());
        if since.elapsed() > allowed { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(count) }
    }
}

/// Moves messages of `peer` into `inbox` until the stream ends or the link is dropped.
fn read_loop(reader: Reader, inbox: &Inbox, peer: Party, (limit, max_frame_bytes): (Duration, u64)) {
    let waited = Cell::default();
    let mut source = Noted { reader, inbox, limit, since: None, bytes: 0, waited: &waited };
    let room = |length| {
        let begin = Instant::now();
        let has_room = inbox.wait_for_room(length);
        waited.set(begin.elapsed());
        has_room
    };
    let end = loop {
        (source.since, source.bytes) = (None, 0);
        waited.set(Duration::ZERO);
        match read_message(&mut source, peer, max_frame_bytes, room) {
            Ok(Some(message)) => match message.kind {
                Kind::Abort => break aborted(peer, &message),
                Kind::Finished => {
                    inbox.finish(gone(peer));
                    return;
                }
                Kind::Turn if peer == Party::Client => break misplaced(peer),
                Kind::Turn => inbox.set_turn(message.frame.round),
                Kind::Waiting => inbox.set_awaited(peer, party(message.frame.round)),
                Kind::Data | Kind::Control => {
                    if !inbox.push(message) {
                        return;
                    }
                }
            },
            Ok(None) => break gone(peer),
            Err(error) if error.code == "E0702" => break dripping(peer, limit),
            Err(error) => break error,
        }
    };
    inbox.end(end);
}

/// The party whose place among all is `number`.
fn party(number: u32) -> Option<Party> {
    usize::try_from(number).ok().and_then(|place| Party::ALL.get(place)).copied()
}

/// Sends the messages of `outbox`, at the pace of the emulated network if there is one. A peer that takes nothing for the
/// limit may have a reason, such as the client that it waits for, as long as it `is_alive`.
fn write_loop(
    mut writer: Writer,
    outbox: &Outbox,
    mut pacer: Option<Pacer>,
    is_alive: impl Fn() -> bool,
) -> std::io::Result<()> {
    while let Some((enqueued, message)) = outbox.pop() {
        let header = message.header();
        let mut head: &[u8] = &header;
        let mut rest: &[u8] = &message.frame.payload;
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(CHUNK_BYTES));
            let bytes = (head.len() + chunk.len()) as u64;
            if let Some(pacer) = &mut pacer
                && !outbox.sleep_until(pacer.due(enqueued, bytes))
            {
                return Ok(());
            }
            writer.write([head, chunk], &is_alive)?;
            outbox.note_written(bytes);
            (head, rest) = (&[], after);
            if rest.is_empty() {
                break;
            }
        }
    }
    writer.close()
}

fn misplaced(peer: Party) -> Diagnostic {
    Diagnostic::peer("E0704", format!("{peer} sent a frame that it never sends"))
        .note("expected  a frame of a client")
        .note("found     how many sessions are served before this one, which the server says")
}

fn dripping(peer: Party, limit: Duration) -> Diagnostic {
    Diagnostic::peer("E0702", format!("a frame from {peer} arrives too slowly"))
        .note(format!("expected  {SLOWEST} bytes a second, {} s aside", limit.as_secs_f64()))
        .note("help      raise limits.receive_s in this party's configuration if the network is slow")
}

fn write_error(peer: Party, limit: Duration, error: &std::io::Error) -> Diagnostic {
    if !is_timeout(error) {
        return gone(peer).note(format!("found     {error}"));
    }
    Diagnostic::peer("E0702", format!("{peer} took no data for {} s, and said nothing", limit.as_secs_f64()))
        .note("help      raise limits.receive_s in this party's configuration if the network is slow")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time, and rests before each.
    struct Drip<'a>(&'a [u8], Duration);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            thread::sleep(self.1);
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    #[test]
    fn a_frame_that_drips_is_an_error_however_long_it_is() {
        let message = Message { kind: Kind::Data, frame: Frame::new(1, 2, 3, vec![7; 200]) };
        let bytes = [&message.header()[..], &message.frame.payload].concat();
        let inbox = Inbox::new(u64::MAX, false, Arc::default());
        let code = |rest: Duration, limit: Duration| {
            let reader = Drip(&bytes, rest);
            let mut source = Noted { reader, inbox: &inbox, limit, since: None, bytes: 0, waited: &Cell::default() };
            read_message(&mut source, Party::Client, 1 << 20, |_| true).err().map(|error| error.code)
        };
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(600));
        assert_eq!(code(short, 5 * short), Some("E0702"));
        assert_eq!(code(Duration::ZERO, long), None);
    }
}
