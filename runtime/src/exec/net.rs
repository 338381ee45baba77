//! How a run's messages reach the peers.

use ombra_ir::Result;
use ombra_ir::module::Party;

use crate::transport::{Frame, Session};

/// Messages between the parties of a run. The sizes of all messages are known to both ends.
///
/// An epoch is a step of the run, or one of the set-up phases; a tick is a round of all ops under way.
pub trait Net {
    /// Sends `payload` to a party without waiting for it.
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()>;

    /// The payload of exactly `len` bytes that a party sends in that tick.
    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>>;
}

/// Epoch of the agreement on keys.
pub(crate) const KEYS_EPOCH: u32 = u32::MAX;
/// Epoch of the sharing of weights.
pub(crate) const WEIGHTS_EPOCH: u32 = u32::MAX - 1;

/// Bytes of weights that wait to be sent, at most.
const WEIGHTS_QUEUED: u64 = 32 << 20;

/// The links of a session. The frame's op is the epoch, its round the tick.
pub struct LinkNet<'a> {
    session: &'a Session,
    run: u64,
}

impl<'a> LinkNet<'a> {
    /// Messages of run `run` over the links of `session`.
    pub fn new(session: &'a Session, run: u64) -> Self {
        LinkNet { session, run }
    }
}

impl Net for LinkNet<'_> {
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()> {
        let link = self.session.link(to)?;
        link.send(Frame::new(self.run, epoch, tick, payload))?;
        if epoch == WEIGHTS_EPOCH {
            // Nothing is received between the weights, so all of them would be queued at once.
            link.wait_for_room(WEIGHTS_QUEUED);
        }
        Ok(())
    }

    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>> {
        let (payload, _) = self.session.link(from)?.recv(self.run, epoch, tick, len)?;
        Ok(payload)
    }
}
