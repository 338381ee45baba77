//! Bandwidth and round-trip time of the client's links, by messages of fixed sizes.

use std::time::Instant;

use ombra_ir::Result;
use ombra_ir::profile::LinkRate;

use crate::transport::{Frame, Link, Party, Session};

/// Messages of one byte that are sent and answered.
const PINGS: u32 = 20;
/// Messages of a burst.
const BURST: u32 = 4;
/// Bytes of a message of a burst.
pub const BURST_BYTES: usize = 2 << 20;
/// Number of the run.
const RUN: u64 = 1;

/// Measures the client's links, one after another.
///
/// # Errors
/// A peer that fails or says something else.
pub fn measure(session: &Session) -> Result<Vec<LinkRate>> {
    session.links().map(measure_one).collect()
}

fn measure_one(link: &Link) -> Result<LinkRate> {
    let mut rtt = f64::INFINITY;
    for round in 0..PINGS {
        let start = Instant::now();
        link.send(Frame::new(RUN, 0, round, vec![0]))?;
        link.recv(RUN, 0, round, 1)?;
        rtt = rtt.min(start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    send_burst(link, 1)?;
    link.recv(RUN, 1, BURST, 1)?;
    let there = start.elapsed().as_secs_f64();
    let start = Instant::now();
    link.send(Frame::new(RUN, 2, BURST, vec![0]))?;
    recv_burst(link, 2)?;
    let back = start.elapsed().as_secs_f64();
    let bits = f64::from(BURST) * BURST_BYTES as f64 * 8.0;
    let seconds = (there.max(back) - rtt).max(1e-6);
    Ok(LinkRate { peer: link.peer().name().to_string(), bandwidth_bits_per_s: bits / seconds, rtt_s: rtt })
}

/// The peer's side of [`measure`].
///
/// # Errors
/// A client that fails or says something else.
pub fn answer(session: &Session) -> Result<()> {
    let link = session.link(Party::Client)?;
    for round in 0..PINGS {
        link.recv(RUN, 0, round, 1)?;
        link.send(Frame::new(RUN, 0, round, vec![0]))?;
    }
    recv_burst(link, 1)?;
    link.send(Frame::new(RUN, 1, BURST, vec![0]))?;
    link.recv(RUN, 2, BURST, 1)?;
    send_burst(link, 2)
}

fn send_burst(link: &Link, op: u32) -> Result<()> {
    (0..BURST).try_for_each(|round| link.send(Frame::new(RUN, op, round, vec![0; BURST_BYTES])))
}

fn recv_burst(link: &Link, op: u32) -> Result<()> {
    (0..BURST).try_for_each(|round| link.recv(RUN, op, round, BURST_BYTES as u64).map(drop))
}
