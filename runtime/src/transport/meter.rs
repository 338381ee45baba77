//! Counts of one party's payload bytes, frames and causal depth.
//!
//! The depth of a party is the largest depth among the frames it has received; a frame it sends carries that plus one.
//! The measured rounds of a phase are the largest depth over all parties: the longest chain of frames in which each was
//! sent after the one before it had been received. Control frames are counted nowhere.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::party::Party;

#[derive(Default)]
struct Counters {
    sent_bytes: AtomicU64,
    sent_frames: AtomicU64,
    received_bytes: AtomicU64,
    received_frames: AtomicU64,
}

/// Counters of one party, shared by its links. A phase starts with [`Meter::reset`] on every party.
#[derive(Default)]
pub struct Meter {
    depth: AtomicU32,
    peers: [Counters; 3],
}

/// Payload traffic with one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Payload bytes sent.
    pub sent_bytes: u64,
    /// Frames sent.
    pub sent_frames: u64,
    /// Payload bytes received.
    pub received_bytes: u64,
    /// Frames received.
    pub received_frames: u64,
}

/// All counters of a meter at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Largest depth of a frame received.
    pub depth: u32,
    /// Traffic by peer, at [`Party::index`].
    pub peers: [Traffic; 3],
}

impl Snapshot {
    /// Payload bytes sent to all peers.
    pub fn sent_bytes(&self) -> u64 {
        self.peers.iter().map(|peer| peer.sent_bytes).sum()
    }

    /// Payload bytes received from all peers.
    pub fn received_bytes(&self) -> u64 {
        self.peers.iter().map(|peer| peer.received_bytes).sum()
    }
}

impl Meter {
    /// A meter with all counters at zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets every counter to zero. Frames that the protocol has not asked for yet count after the reset.
    pub fn reset(&self) {
        self.depth.store(0, Ordering::Relaxed);
        for peer in &self.peers {
            for counter in [&peer.sent_bytes, &peer.sent_frames, &peer.received_bytes, &peer.received_frames] {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Largest depth of a frame received since the last reset.
    pub fn depth(&self) -> u32 {
        self.depth.load(Ordering::Relaxed)
    }

    /// All counters.
    pub fn snapshot(&self) -> Snapshot {
        let peers = std::array::from_fn(|index| {
            let peer = &self.peers[index];
            Traffic {
                sent_bytes: peer.sent_bytes.load(Ordering::Relaxed),
                sent_frames: peer.sent_frames.load(Ordering::Relaxed),
                received_bytes: peer.received_bytes.load(Ordering::Relaxed),
                received_frames: peer.received_frames.load(Ordering::Relaxed),
            }
        });
        Snapshot { depth: self.depth(), peers }
    }

    /// Counts a frame sent to `peer` and returns the depth it carries.
    pub(super) fn count_sent(&self, peer: Party, bytes: usize) -> u32 {
        let counters = &self.peers[peer.index()];
        counters.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        counters.sent_frames.fetch_add(1, Ordering::Relaxed);
        self.depth().saturating_add(1)
    }

    /// Counts a frame of `depth` received from `peer`.
    pub(crate) fn count_received(&self, peer: Party, bytes: usize, depth: u32) {
        let counters = &self.peers[peer.index()];
        counters.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        counters.received_frames.fetch_add(1, Ordering::Relaxed);
        self.depth.fetch_max(depth, Ordering::Relaxed);
    }
}
