//! How a run's messages reach the peers.

use std::time::Instant;

use ombra_ir::Result;
use ombra_ir::module::Party;

use crate::transport::{Frame, Session};

/// Messages between the parties of a run. The sizes of all messages are known to both ends.
///
/// An epoch is a step of the run, or one of the set-up phases; a tick is a round of all ops under way.
pub trait Net {
    /// Sends `payload` to a party without waiting for it.
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()>;

    /// Waits until little is on its way to the peers, once all messages of a tick were sent: a party that receives nothing
    /// would run far ahead of the others and keep what it sends in memory. Nobody waits for a message of this party then
    /// but in a later tick, before which it has taken all earlier ones.
    fn wait_for_room(&mut self) {}

    /// The payload of exactly `len` bytes that a party sends in that tick.
    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>>;
}

/// Epoch of the agreement on keys.
pub(crate) const KEYS_EPOCH: u32 = u32::MAX;
/// Epoch of the sharing of weights.
pub(crate) const WEIGHTS_EPOCH: u32 = u32::MAX - 1;

/// Bytes of weights that wait to be sent, at most.
const WEIGHTS_QUEUED: u64 = 32 << 20;
/// Bytes of a step that wait to be sent to a peer when a party goes on to the next tick, at most.
const STEP_QUEUED: u64 = 32 << 20;
/// Bytes of a frame of what is dealt in a step, at most: the dealer waits for nobody, so that what it sends in a tick is cut
/// into frames of this length, and both ends hold few of them.
const DEALT_FRAME: usize = 1 << 20;

/// The links of a session. The frame's op is the epoch, its round the tick.
pub struct LinkNet<'a> {
    session: &'a Session,
    run: u64,
    /// When the third party has heard that the server is at work.
    said: Instant,
}

impl<'a> LinkNet<'a> {
    /// Messages of run `run` over the links of `session`.
    pub fn new(session: &'a Session, run: u64) -> Self {
        LinkNet { session, run, said: Instant::now() }
    }

    /// Has the third party hear from the server while it has nothing to receive from it: a dealer is ahead of it, and waits
    /// for what is next, or for room.
    fn say_at_work(&mut self) {
        let every = self.session.limits().receive / 4;
        if self.session.party() == Party::Server && self.said.elapsed() >= every {
            self.said = Instant::now();
            self.session.say_at_work();
        }
    }
}

/// Whether a message of a party is dealt: one of the dealer's in a step.
fn is_dealt(epoch: u32, from: Party) -> bool {
    from == Party::Dealer && epoch < WEIGHTS_EPOCH
}

impl Net for LinkNet<'_> {
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()> {
        let link = self.session.link(to)?;
        if is_dealt(epoch, self.session.party()) {
            let room = self.session.limits().dealt_window_bytes / 2;
            for piece in payload.chunks(DEALT_FRAME) {
                link.wait_for_room(room.saturating_sub(piece.len() as u64));
                link.send(Frame::new(self.run, epoch, tick, piece.to_vec()))?;
            }
            return Ok(());
        }
        link.send(Frame::new(self.run, epoch, tick, payload))?;
        if epoch == WEIGHTS_EPOCH {
            // Nothing is received between the weights, so all of them would be queued at once.
            link.wait_for_room(WEIGHTS_QUEUED);
        }
        Ok(())
    }

    fn wait_for_room(&mut self) {
        self.session.links().for_each(|link| link.wait_for_room(STEP_QUEUED));
    }

    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>> {
        self.say_at_work();
        let session = self.session;
        let link = session.link(from)?;
        if !is_dealt(epoch, from) || len <= DEALT_FRAME as u64 {
            return Ok(link.recv(self.run, epoch, tick, len)?.0);
        }
        let mut payload = Vec::new();
        let mut left = len;
        while left > 0 {
            self.say_at_work();
            let piece = left.min(DEALT_FRAME as u64);
            payload.extend_from_slice(&link.recv(self.run, epoch, tick, piece)?.0);
            left -= piece;
        }
        Ok(payload)
    }
}
