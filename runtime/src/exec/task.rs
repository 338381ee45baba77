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
/// each peer, [`Task::poll`]. What role 2 deals comes by [`Task::deal`], when it is there; role 2 itself ends in the first
/// call, and [`Task::outgoing`] gives what it deals.
pub struct Task<T> {
    kernel: Pin<Box<dyn Future<Output = Result<T>>>>,
    port: Rc<Port>,
    /// `sizes[round][from][to]`, by party.
    sizes: Vec<[[usize; 3]; 3]>,
    round: usize,
    party: usize,
    /// The party that deals, and its bytes to every party.
    dealt: Option<(usize, [usize; 3])>,
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
        let party_of = |role: u8| usize::from((role % 3 + rot % 3) % 3);
        let out_of_range = || Diagnostic::internal("E0805", "a declared message is out of range");
        let size_of = |bytes: u64| usize::try_from(bytes).map_err(|_| out_of_range());
        let mut sizes = vec![[[0usize; 3]; 3]; traffic.rounds as usize];
        for msg in &traffic.msgs {
            let round = sizes.get_mut(msg.round as usize).ok_or_else(out_of_range)?;
            let size = &mut round[party_of(msg.from)][party_of(msg.to)];
            *size = size.saturating_add(size_of(msg.bytes)?);
        }
        let party = usize::from(party % 3);
        let mut dealt = None;
        if let Some(declared) = traffic.dealt {
            let mut bytes = [0; 3];
            for (to, size) in (0u8..).zip(declared.bytes) {
                bytes[party_of(to)] = size_of(size)?;
            }
            dealt = Some((party_of(2), bytes));
            if party == party_of(2) {
                sizes.clear();
            }
        }
        let task = Task { kernel: Box::pin(kernel), port, sizes, round: 0, party, dealt };
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
            Poll::Ready(Ok(_)) if !self.deals() && (0..3).any(|to| !self.port.drain(to).is_empty()) => {
                Err(self.undeclared("a message after its last round"))
            }
            Poll::Ready(Ok(_)) if (0..3).any(|from| self.port.untaken(from) > 0) => {
                Err(self.undeclared("a message that was not read"))
            }
            Poll::Ready(Ok(value)) => Ok(Some(value)),
        }
    }

    /// Whether this party deals, and so has no rounds.
    pub(crate) fn deals(&self) -> bool {
        self.dealt.is_some_and(|(dealer, _)| dealer == self.party)
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
        let dealer = self.dealt.map(|(dealer, _)| dealer);
        for (from, part) in messages.into_iter().enumerate().filter(|(from, _)| Some(*from) != dealer) {
            if self.port.untaken(from) > 0 {
                return Err(self.undeclared("a message that was not read"));
            }
            self.port.deliver(from, part);
        }
        self.round += 1;
        self.reserve();
        Ok(())
    }

    /// Puts what role 2 dealt to this party before the kernel.
    pub(crate) fn deal(&self, part: Part) {
        if let Some((dealer, _)) = self.dealt {
            self.port.deliver(dealer, part);
        }
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
        match self.dealt {
            Some((dealer, bytes)) if dealer == self.party && dealer == from => bytes[to],
            _ => self.sizes.get(self.round).map_or(0, |round| round[from][to]),
        }
    }

    fn undeclared(&self, what: &str) -> Diagnostic {
        Diagnostic::internal("E0805", format!("a kernel has {what}"))
    }
}
