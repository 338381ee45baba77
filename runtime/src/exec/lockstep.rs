//! Three parties in one thread, round by round: the messages of one op without any link.

use std::future::Future;
use std::rc::Rc;

use ombra_ir::Result;
use ombra_ir::settings::Traffic;

use super::port::Part;
use super::task::Task;
use crate::prg::Key;
use crate::settings::rep3::{Cx, Keys};

/// One message, between logical roles.
pub(crate) struct Sent {
    /// Its round; `None` of what is dealt.
    pub round: Option<u32>,
    pub from: u8,
    pub to: u8,
    pub bytes: Vec<u8>,
}

/// The parties' keys made from a seed.
pub(crate) fn keys(seed: u64) -> [Rc<Keys>; 3] {
    keys_of([seed; 6])
}

/// The parties' keys, each made from its own seed: the pair keys `k_0`, `k_1`, `k_2`, then the private ones.
pub(crate) fn keys_of(seeds: [u64; 6]) -> [Rc<Keys>; 3] {
    let key = |i: usize| Key::from_bytes((u128::from(seeds[i]) << 64 | i as u128).to_le_bytes());
    [0, 1, 2].map(|party| Rc::new(Keys::new(&key(party), &key((party + 1) % 3), &key(3 + party))))
}

/// Runs `kernel` at every role of an op with rotation `rot`, with keys made from `seed`. Results and messages are by
/// role.
pub(crate) fn run<T, F, K>(seed: u64, rot: u8, traffic: &Traffic, kernel: K) -> Result<([T; 3], Vec<Sent>)>
where
    F: Future<Output = Result<T>> + 'static,
    K: Fn(Cx) -> F,
{
    run_with_keys(keys(seed), rot, traffic, kernel)
}

/// [`run`] with the given keys.
pub(crate) fn run_with_keys<T, F, K>(
    keys: [Rc<Keys>; 3],
    rot: u8,
    traffic: &Traffic,
    kernel: K,
) -> Result<([T; 3], Vec<Sent>)>
where
    F: Future<Output = Result<T>> + 'static,
    K: Fn(Cx) -> F,
{
    let mut tasks = Vec::new();
    for (party, keys) in (0u8..).zip(keys) {
        let cx = Cx::new(keys, party, rot, 7, 3);
        tasks.push(Task::new(cx.port(), party, rot, traffic, kernel(cx.clone()))?);
    }
    let (mut sent, mut results): (Vec<Sent>, [Option<T>; 3]) = (Vec::new(), [None, None, None]);
    let role = |party: usize| (party as u8 + 3 - rot) % 3;
    // Who deals is done before the others begin. They get it then, or with what comes in their first round.
    let dealer = tasks.iter().position(Task::deals);
    let mut dealt: [Option<Part>; 3] = Default::default();
    if let Some(dealer) = dealer {
        results[dealer] = tasks[dealer].poll()?;
        assert!(results[dealer].is_some(), "who deals waits for nobody");
        for to in (0..3).filter(|to| *to != dealer) {
            let bytes = tasks[dealer].outgoing(to)?;
            if !bytes.is_empty() {
                sent.push(Sent { round: None, from: 2, to: role(to), bytes: bytes.clone() });
            }
            dealt[to] = Some(Part::from(bytes));
        }
    }
    let lead = traffic.dealt.map_or(0, |dealt| dealt.lead);
    for round in 0.. {
        if round == 1 - lead {
            tasks
                .iter()
                .zip(&mut dealt)
                .for_each(|(task, dealt)| dealt.take().into_iter().for_each(|part| task.deal(part)));
        }
        let others: Vec<usize> = (0..3).filter(|party| Some(*party) != dealer).collect();
        for &party in &others {
            results[party] = tasks[party].poll()?;
        }
        let done = others.iter().filter(|party| results[**party].is_some()).count();
        if done == others.len() {
            let mut results: Vec<T> = results.into_iter().flatten().collect();
            results.rotate_left(usize::from(rot));
            return Ok((<[T; 3]>::try_from(results).ok().expect("there are three results"), sent));
        }
        assert_eq!(done, 0, "all parties end in the same round");
        let mut inboxes: [[Vec<u8>; 3]; 3] = Default::default();
        for &from in &others {
            for (to, inbox) in inboxes.iter_mut().enumerate() {
                let bytes = tasks[from].outgoing(to)?;
                if !bytes.is_empty() {
                    sent.push(Sent { round: Some(round), from: role(from), to: role(to), bytes: bytes.clone() });
                }
                inbox[from] = bytes;
            }
        }
        for (party, inbox) in inboxes.into_iter().enumerate().filter(|(party, _)| Some(*party) != dealer) {
            tasks[party].deliver(inbox.map(Part::from))?;
        }
    }
    unreachable!("the loop ends with the tasks")
}
