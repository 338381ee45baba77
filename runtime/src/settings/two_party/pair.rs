//! What a kernel of two parties sees: the context of its op, and transfers in both directions.
//!
//! A batch of transfers is for one call: its label is the op's with a purpose, a level and a part, and who offers. Who
//! chooses sends in one round, who offers takes it in the next.

use std::rc::Rc;

use ombra_ir::Result;

use super::{Cx, Purpose};
use crate::backend::bits::words;
use crate::ot::Transfers;
use crate::ot::pads::{Decided, Settled};

/// One party in one instance of an op. Clones are the same instance.
#[derive(Clone)]
pub struct Pair {
    cx: Cx,
    transfers: Rc<Transfers>,
}

impl Pair {
    /// The pair's context at this party.
    pub fn new(cx: Cx, transfers: Rc<Transfers>) -> Pair {
        Pair { cx, transfers }
    }

    /// The context of the op.
    pub fn cx(&self) -> &Cx {
        &self.cx
    }

    /// Whether this is the client.
    pub fn is_client(&self) -> bool {
        self.cx.role() == 0
    }

    /// The other party's role.
    pub fn peer(&self) -> u8 {
        1 - self.cx.role()
    }

    /// The same at a level of a tree.
    pub fn at_level(&self, level: u8) -> Pair {
        Pair { cx: self.cx.at_level(level), transfers: Rc::clone(&self.transfers) }
    }

    /// Ends a round.
    pub async fn round(&self) {
        self.cx.round().await;
    }

    /// Transfers with these choices, planes of whole words; sends what the peer needs for them.
    pub fn choose(&self, purpose: Purpose, part: u8, choices: &[u64]) -> Result<Decided> {
        let chosen = self.chosen(purpose, part, choices.len())?;
        let (decided, flips) = chosen.with(choices)?;
        self.cx.send(self.peer(), &flips, 64);
        Ok(decided)
    }

    /// `64·count` transfers with random choices; sends what the peer needs for them.
    pub fn choose_any(&self, purpose: Purpose, part: u8, count: usize) -> Result<Decided> {
        Ok(self.chosen(purpose, part, count)?.random())
    }

    fn chosen(&self, purpose: Purpose, part: u8, count: usize) -> Result<crate::ot::pads::Chosen> {
        let mut message = Vec::new();
        let chosen = self.transfers.choosing.choose(self.cx.label(purpose, part), count, &mut message)?;
        self.cx.send_bytes(self.peer(), &message);
        Ok(chosen)
    }

    /// After the round: the transfers of `planes` bits of `n` elements that the peer chose.
    pub fn offer(&self, purpose: Purpose, part: u8, planes: usize, n: usize) -> Result<Settled> {
        let count = planes * words(n);
        let offered = self.offered(purpose, part, count)?;
        offered.flipped(&self.cx.take(self.peer(), count, 64)?)
    }

    /// The same with random choices.
    pub fn offer_any(&self, purpose: Purpose, part: u8, count: usize) -> Result<Settled> {
        Ok(self.offered(purpose, part, count)?.random())
    }

    fn offered(&self, purpose: Purpose, part: u8, count: usize) -> Result<crate::ot::pads::Offered> {
        let (offering, label) = (&self.transfers.offering, self.cx.label(purpose, part));
        self.cx
            .take_with(self.peer(), offering.message_bytes(count), |message| offering.offer(label, count, message))?
    }

    /// Sends an answer to the peer.
    pub fn answer(&self, message: &[u8]) {
        self.cx.send_bytes(self.peer(), message);
    }

    /// The peer's answer of so many bytes, read by `read`.
    pub fn answered<T>(&self, bytes: usize, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        self.cx.take_with(self.peer(), bytes, read)?
    }
}
