//! Link emulation: what a slower network would do, applied by the sender.
//!
//! Every direction of every link is a pipe of its own. Bytes enter it at `max(pipe free, enqueue time)`, take
//! `bytes / bandwidth` to pass, and are written to the socket half a round trip later.

use std::time::Instant;

pub use ombra_ir::network::Network;

/// The pipe of one direction.
pub(super) struct Pacer {
    network: Network,
    free: Instant,
}

impl Pacer {
    /// An empty pipe.
    pub(super) fn new(network: Network) -> Self {
        Pacer { network, free: Instant::now() }
    }

    /// Puts `bytes` that were ready at `enqueued` into the pipe and returns when they come out.
    pub(super) fn due(&mut self, enqueued: Instant, bytes: u64) -> Instant {
        self.free = self.free.max(enqueued) + self.network.transmission(bytes);
        self.free + self.network.rtt / 2
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pipe_serialises_bytes_and_adds_half_a_round_trip() {
        let network = Network { bandwidth_bits_per_s: 8_000, rtt: Duration::from_millis(100) };
        let mut pacer = Pacer::new(network);
        let start = pacer.free;
        assert_eq!(pacer.due(start, 1000), start + Duration::from_millis(1050));
        assert_eq!(pacer.due(start, 500), start + Duration::from_millis(1550));
        let later = start + Duration::from_secs(10);
        assert_eq!(pacer.due(later, 1000), later + Duration::from_millis(1050));
    }
}
