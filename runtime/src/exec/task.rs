//! One interactive op under way at one party.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ombra_ir::settings::Traffic;
use ombra_ir::{Diagnostic, Result};

use super::port::{Part, Port};

/// A kernel that runs from round to round, held to its declared messages.
///
/// The order of calls is [`Task::poll`], then for every round [`Task::outgoing`] for each peer, [`Task::deliver`] for
/// each peer, [`Task::poll`].
pub struct Task<T> {
    kernel: Pin<Box<dyn Future<Output = Result<T>>>>,
    port: Rc<Port>,
    /// `sizes[round][from][to]`, by party.
    sizes: Vec<[[usize; 3]; 3]>,
    round: usize,
    party: usize,
}

impl<T> Task<T> {
    /// The kernel `kernel`, whose messages pass `port`, of an op with rotation `rot` at party `party`, that sends
    /// `traffic`. E0805 when a message's size exceeds the address space.
    pub(crate) fn new(
        port: Rc<Port>,
        party: u8,
        rot: u8,
        traffic: &Traffic,
        kernel: impl Future<Output = Result<T>> + 'static,
    ) -> Result<Self> {
        let mut sizes = vec![[[0usize; 3]; 3]; traffic.rounds as usize];
        for msg in &traffic.msgs {
            let party_of = |role: u8| usize::from((role % 3 + rot % 3) % 3);
            let size = sizes
                .get_mut(msg.round as usize)
                .map(|round| &mut round[party_of(msg.from)][party_of(msg.to)])
                .zip(usize::try_from(msg.bytes).ok());
            match size {
                Some((size, bytes)) => *size = size.saturating_add(bytes),
                None => return Err(Diagnostic::internal("E0805", "a declared message is out of range")),
            }
        }
        let task = Task { kernel: Box::pin(kernel), port, sizes, round: 0, party: usize::from(party % 3) };
        task.reserve();
        Ok(task)
    }

    /// Runs to the end of the present round, or to the result.
    pub fn poll(&mut self) -> Result<Option<T>> {
        match self.kernel.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending if self.round < self.sizes.len() => Ok(None),
            Poll::Pending => Err(self.undeclared("more rounds than declared")),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(_)) if self.round < self.sizes.len() => Err(self.undeclared("fewer rounds than declared")),
            Poll::Ready(Ok(_)) if (0..3).any(|to| !self.port.drain(to).is_empty()) || self.port.untaken() > 0 => {
                Err(self.undeclared("a message after its last round, or one that was not read"))
            }
            Poll::Ready(Ok(value)) => Ok(Some(value)),
        }
    }

    /// What goes to party `to` in this round.
    pub fn outgoing(&mut self, to: usize) -> Result<Vec<u8>> {
        let bytes = self.port.drain(to);
        if bytes.len() != self.size(self.party, to) {
            return Err(self.undeclared("a message of another size than declared").note(format!(
                "expected  {} bytes to party {to} in round {}, found {}",
                self.size(self.party, to),
                self.round,
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Bytes that come from party `from` in this round.
    pub fn expected(&self, from: usize) -> usize {
        self.size(from, self.party)
    }

    /// Puts what the peers sent in this round, in order of parties, before the kernel, and ends the round.
    pub(crate) fn deliver(&mut self, messages: [Part; 3]) -> Result<()> {
        if self.port.untaken() > 0 {
            return Err(self.undeclared("a message that was not read"));
        }
        for (from, part) in messages.into_iter().enumerate() {
            self.port.deliver(from, part);
        }
        self.round += 1;
        self.reserve();
        Ok(())
    }

    /// Bytes that go to party `to` in this round.
    pub fn sends(&self, to: usize) -> usize {
        self.size(self.party, to)
    }

    /// Makes room for this round's messages, so that they do not grow part by part.
    fn reserve(&self) {
        (0..3).for_each(|to| self.port.reserve(to, self.sends(to)));
    }

    fn size(&self, from: usize, to: usize) -> usize {
        self.sizes.get(self.round).map_or(0, |round| round[from][to])
    }

    fn undeclared(&self, what: &str) -> Diagnostic {
        Diagnostic::internal("E0805", format!("a kernel has {what}"))
    }
}
