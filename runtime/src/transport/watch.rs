//! What the links of one session share: how it failed, and how its waits are ended.
//!
//! A party waits on one link at a time, while another one may be what has ended. So the end of any link that comes before
//! its peer has finished is the end of the session, and wakes whatever waits in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use ombra_ir::Diagnostic;

use super::frame::{Kind, Message};
use super::party::Party;
use super::queue::{Inbox, Outbox, lock};

/// The state that the links of a session share.
#[derive(Default)]
pub(super) struct Watch {
    failure: OnceLock<Diagnostic>,
    /// A step is under way.
    stepping: AtomicBool,
    links: Mutex<Vec<Queues>>,
}

/// The queues of the link to one peer.
struct Queues {
    peer: Party,
    inbox: Weak<Inbox>,
    outbox: Weak<Outbox>,
}

impl Watch {
    /// Adds the queues of a link; a link in memory has no outbox.
    pub(super) fn add(&self, peer: Party, inbox: &Arc<Inbox>, outbox: Option<&Arc<Outbox>>) {
        let outbox = outbox.map(Arc::downgrade).unwrap_or_default();
        lock(&self.links).push(Queues { peer, inbox: Arc::downgrade(inbox), outbox });
    }

    /// Why the session has failed, if it has: the first reason stays.
    pub(super) fn failure(&self) -> Option<&Diagnostic> {
        self.failure.get()
    }

    /// Notes that the session has failed and wakes every wait in it.
    pub(super) fn fail(&self, reason: &Diagnostic) {
        // Whoever came first has told its reason, and wakes the others.
        if self.failure.set(reason.clone()).is_err() {
            return;
        }
        let links = lock(&self.links);
        links.iter().filter_map(|link| link.inbox.upgrade()).for_each(|inbox| inbox.wake());
        links.iter().filter_map(|link| link.outbox.upgrade()).for_each(|outbox| outbox.wake());
    }

    /// Notes whether a step is under way.
    pub(super) fn set_stepping(&self, stepping: bool) {
        self.stepping.store(stepping, Ordering::Relaxed);
    }

    /// Whether a step is under way.
    pub(super) fn is_stepping(&self) -> bool {
        self.stepping.load(Ordering::Relaxed)
    }

    /// Tells every other peer that this party waits for `awaited`, so that nobody takes this one for silent.
    pub(super) fn tell_waiting(&self, awaited: Party) {
        let place = Party::ALL.iter().position(|party| *party == awaited);
        let number = place.and_then(|place| u32::try_from(place).ok()).unwrap_or(u32::MAX);
        let others = lock(&self.links);
        for other in others.iter().filter(|other| other.peer != awaited) {
            if let Some(outbox) = other.outbox.upgrade() {
                // A peer that is gone needs no word.
                let _ = outbox.push(other.peer, Message::number(Kind::Waiting, number));
            }
        }
    }
}
