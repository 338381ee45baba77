//! What a network is, and how long the messages of a step take on it.
//!
//! Every direction of every link is a pipe of its own. Bytes enter it when they are ready and it is free, take
//! `bytes / bandwidth` to pass, and arrive half a round trip later. The runtime emulates networks by the same rule.

use crate::module::Module;
use crate::schedule::Schedule;
use crate::{Diagnostic, Result};
use core::time::Duration;
use std::fmt;

/// Bandwidth of one direction of a link, and the time of a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Bits per second, at least 1000.
    pub bandwidth_bits_per_s: u64,
    /// Time from sending a byte to having its answer, without transmission time.
    pub rtt: Duration,
}

const UNITS: [(&str, u64); 3] = [("Gbps", 1_000_000_000), ("Mbps", 1_000_000), ("kbps", 1_000)];
const MAX_BANDWIDTH: u64 = 1_000_000_000_000;
const MAX_RTT_MS: f64 = 10_000.0;

impl Network {
    /// A local network: 3 Gbit/s, 0.8 ms.
    pub const LAN: Network = Network { bandwidth_bits_per_s: 3_000_000_000, rtt: Duration::from_micros(800) };
    /// A wide area network: 200 Mbit/s, 40 ms.
    pub const WAN: Network = Network { bandwidth_bits_per_s: 200_000_000, rtt: Duration::from_millis(40) };

    /// Reads `none`, `lan`, `wan` or `BANDWIDTH,RTT` such as `1Gbps,2ms`; `None` is no emulation.
    pub fn parse(text: &str) -> Result<Option<Network>> {
        match text {
            "none" => return Ok(None),
            "lan" => return Ok(Some(Self::LAN)),
            "wan" => return Ok(Some(Self::WAN)),
            _ => {}
        }
        let wrong = |what: &str| {
            Diagnostic::input("E0710", format!("{what} in network `{}`", text.escape_debug()))
                .note("expected none, lan, wan or BANDWIDTH,RTT such as 1Gbps,2ms or 200Mbps,0.5ms")
        };
        let (bandwidth, rtt) = text.split_once(',').ok_or_else(|| wrong("no comma"))?;
        let bandwidth = UNITS
            .iter()
            .find_map(|&(unit, factor)| {
                let count: f64 = bandwidth.trim().strip_suffix(unit)?.trim().parse().ok()?;
                Some(count * factor as f64)
            })
            .filter(|bits| (1e3..=MAX_BANDWIDTH as f64).contains(bits))
            .ok_or_else(|| wrong("no bandwidth from 1kbps to 1000Gbps"))?;
        let rtt = rtt.trim();
        let (count, milliseconds) = match (rtt.strip_suffix("ms"), rtt.strip_suffix("us"), rtt.strip_suffix('s')) {
            (Some(count), _, _) => (count, 1.0),
            (_, Some(count), _) => (count, 1e-3),
            (_, _, Some(count)) => (count, 1e3),
            _ => return Err(wrong("no round-trip time in us, ms or s")),
        };
        let milliseconds = count
            .trim()
            .parse::<f64>()
            .ok()
            .map(|count| count * milliseconds)
            .filter(|time| (0.0..=MAX_RTT_MS).contains(time))
            .ok_or_else(|| wrong("no round-trip time from 0ms to 10s"))?;
        Ok(Some(Network {
            bandwidth_bits_per_s: bandwidth.round() as u64,
            rtt: Duration::from_secs_f64(milliseconds / 1e3),
        }))
    }

    /// Bytes that one direction of a link carries in a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.bandwidth_bits_per_s as f64 / 8.0
    }

    /// Seconds from sending to receiving.
    pub fn latency_s(&self) -> f64 {
        self.rtt.as_secs_f64() / 2.0
    }

    /// Time for `bytes` to pass at the bandwidth.
    pub fn transmission(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / self.bandwidth_bits_per_s as f64)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bandwidth_bits_per_s;
        let (unit, factor) = UNITS.into_iter().find(|&(_, factor)| bits >= factor).unwrap_or(("kbps", 1_000));
        write!(f, "{}{unit},{}ms", bits as f64 / factor as f64, self.rtt.as_secs_f64() * 1e3)
    }
}

/// Seconds until every party has what was sent to it in a step, where computing takes no time: a party sends its frames
/// of a tick once it has those of the tick before.
pub fn step_seconds(module: &Module, schedule: &Schedule, network: &Network) -> f64 {
    let (half, bandwidth) = (network.rtt.as_secs_f64() / 2.0, network.bandwidth_bits_per_s as f64);
    let mut clock = [0f64; 3];
    let mut free = [[0f64; 3]; 3];
    for frame in schedule.frames(module) {
        let mut ready = clock;
        for from in 0..3 {
            for to in (0..3).filter(|&to| frame[from][to] > 0) {
                let passed = free[from][to].max(clock[from]) + frame[from][to] as f64 * 8.0 / bandwidth;
                free[from][to] = passed;
                ready[to] = ready[to].max(passed + half);
            }
        }
        clock = ready;
    }
    clock.into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_parsed_and_printed() {
        assert_eq!(Network::parse("none").unwrap(), None);
        assert_eq!(Network::parse("lan").unwrap(), Some(Network::LAN));
        for (text, bits, micros) in [
            ("1Gbps,2ms", 1_000_000_000, 2_000),
            ("200Mbps,40ms", 200_000_000, 40_000),
            ("2.5Gbps,0.1ms", 2_500_000_000, 100),
            ("64kbps,1s", 64_000, 1_000_000),
        ] {
            let network = Network::parse(text).unwrap().unwrap();
            assert_eq!((network.bandwidth_bits_per_s, network.rtt), (bits, Duration::from_micros(micros)), "{text}");
            assert_eq!(Network::parse(&network.to_string()).unwrap(), Some(network));
        }
        assert_eq!(Network::LAN.to_string(), "3Gbps,0.8ms");
    }

    #[test]
    fn wrong_descriptions_are_refused() {
        for text in
            ["", "fast", "1Gbps", "1Gbps,", "Gbps,2ms", "0Gbps,2ms", "-1Gbps,2ms", "NaNGbps,2ms", "1e99Gbps,2ms"]
                .into_iter()
                .chain(["1Gbps,-2ms", "1Gbps,2", "1Gbps,infms", "1Gbps,NaNms", "1Gbps,2h", "1Gbps,11s"])
        {
            let error = Network::parse(text).unwrap_err();
            assert_eq!(error.code, "E0710", "{text}");
        }
    }
}
