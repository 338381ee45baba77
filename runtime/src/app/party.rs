//! The server's side of one session, and the third party's.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use ombra_ir::{Diagnostic, Result};

use super::folder::PlanFolder;
use super::material::{Begun, ServerMaterial};
use super::measure::{BURST_BYTES, answer};
use super::program;
use super::request::{Advance, Course, Request};
use super::session::{CONTROL, Engine, Measured, Next, Phases, Stats, guarded, keys, senseless};
pub use super::sharing::Keep;
use crate::backend::products::Products;
use crate::transport::{Link, Party, Purpose, Session, abort_code};

/// What a client may have queued that nobody has asked for: a request, and a word or two ahead. In a step it is more by the
/// longest frame that the client sends in it.
pub(super) const QUEUE: u64 = 2 << 20;

/// What a session is served with.
pub struct Serving<'a> {
    /// The plan.
    pub folder: &'a PlanFolder,
    /// What is kept between sessions.
    pub keep: &'a Keep,
    /// What a dealer made ahead of time, at the server.
    pub material: Option<&'a ServerMaterial>,
    /// How products are made.
    pub products: Products,
    /// Most memory that a step may take, in bytes.
    pub memory: u64,
    /// Is told how much of it the session could need at most, once that is known, and says whether it may have it.
    pub take: &'a mut dyn FnMut(u64) -> bool,
    /// Is told what every phase measured, the set-up first.
    pub measured: &'a dyn Fn(usize, Measured),
}

/// Serves one session to its end, with `threads` threads for products and the memory that the party's limits allow. When it
/// fails, the peers are told; a panic is a failure of this session alone.
///
/// # Errors
/// Whatever ended the session, `E1014` for a panic.
pub fn serve_session(folder: &PlanFolder, session: &Session, keep: &Keep, threads: usize) -> Result<()> {
    let limit = session.limits().max_memory_bytes;
    let (material, products) = (None, Products::cpu(threads));
    Serving { folder, keep, material, products, memory: limit, take: &mut |_| true, measured: &|_, _| {} }
        .serve(session)
}

impl Serving<'_> {
    /// Serves one session to its end. When it fails, the peers are told; a panic is a failure of this session alone.
    ///
    /// # Errors
    /// Whatever ended the session, `E1014` for a panic.
    pub fn serve(self, session: &Session) -> Result<()> {
        guarded(session, || {
            // What is kept is replaced as a whole, so that a panic leaves the old or the new.
            let served = panic::catch_unwind(AssertUnwindSafe(|| match (session.purpose(), self.keep) {
                (Purpose::Measure, _) => {
                    session.limit_queue(Party::Client, QUEUE + BURST_BYTES as u64);
                    answer(session)
                }
                (Purpose::Share, Keep::Helper(side)) => side.take(self.folder, session),
                (Purpose::Share, Keep::Server(_) | Keep::Alone(_)) => {
                    Err(senseless(Party::Client, "a sharing to the server"))
                }
                (Purpose::Run | Purpose::Prepared, _) => self.steps(session),
            }));
            served.unwrap_or_else(|_| {
                Err(Diagnostic::internal("E1014", "a fault of this program ended the session")
                    .note("help      report this, with the lines above; other sessions are not affected"))
            })
        })
        .inspect(|()| session.finish())
    }

    fn steps(self, session: &Session) -> Result<()> {
        let Serving { folder, keep, material, products, memory: limit, take, measured } = self;
        let client = session.link(Party::Client)?;
        let limits = session.limits();
        let plan = &folder.plan;
        session.limit_queue(Party::Client, QUEUE);
        let mut prepared = match session.purpose() {
            Purpose::Prepared => Some(begin_prepared(folder, keep, material, session)?),
            _ => None,
        };
        let (keys, agreeing) = keys(session, folder, prepared.as_ref().map(|prepared| &prepared.key))?;
        // Until it is here, the session holds the memory that the largest one could take.
        let request: Request = client.recv_control_soon(CONTROL, limits.connect.min(limits.receive))?;
        request.check(plan)?;
        let mut phases = Phases::new(session, plan.module.setting);
        let (weights, cost) = match &prepared {
            Some(prepared) => {
                let Keep::Server(side) = keep else { return Err(no_material()) };
                let cost = side.give(folder, session, (&prepared.sharing, &prepared.weights_key), false)?;
                (Arc::clone(&prepared.weights), cost.unwrap_or_default())
            }
            None => keep.weights(folder, session, &request.digest()?)?,
        };
        phases.push(cost);
        phases.add(agreeing);
        measured(0, phases.last());
        let mut engine = Engine::new(session, folder, &request, keys, weights, products.clone())?;
        let most = program::most_bytes(folder, &request, limit);
        if !take(most) {
            return Err(Diagnostic::peer("E1034", "other sessions have the memory that this one could need")
                .note(format!("expected  room for {most} bytes"))
                .note("help      try again later, or ask for fewer texts at once"));
        }
        // More than was said is not taken later.
        let limit = limit.min(most);
        let mut course = Course::default();
        // Also after the last step: a party that had nothing to wait for in it learns here whether it failed.
        let mut take = |advance| course.take(&request, advance);
        let third = plan.module.setting.beside();
        while let Next::Step(advance) = next(session, third, &mut take)? {
            let module = engine.module(advance)?;
            let inputs = request.step(plan, advance, limit)?;
            let step = program::prepare(&module, &inputs.sizes, &inputs.public, limit)?;
            program::check_traffic(&step, &limits)?;
            let mut dealt =
                prepared.as_mut().map(|prepared| prepared.step(&request, &inputs, advance.choice.way())).transpose()?;
            session.set_stepping(true);
            let longest = step.longest[Party::Client.index()][session.party().index()];
            session.limit_queue(Party::Client, QUEUE.saturating_add(longest));
            phases.run(|| engine.step(advance, &step, &[], dealt.as_mut()))?;
            session.limit_queue(Party::Client, QUEUE);
            session.set_stepping(false);
            measured(1, phases.last());
        }
        client.send_control(&phases.end(&products))
    }
}

/// What the client says is next, once `take` allows it. The third party compares it with what the client says to the server:
/// parties that ran different steps would fail somewhere in them.
///
/// The third party hears the server first, which may be in the last step yet: a dealer has done its part of that long
/// before. So it has no time of its own for what the client says; the server has, and speaks now and then until it knows.
fn next(session: &Session, third: Option<Party>, take: &mut dyn FnMut(Advance) -> Result<()>) -> Result<Next> {
    let limits = session.limits();
    let soon = limits.idle.max(limits.receive);
    let of_server: Option<Next> = match session.party().is_third() {
        true => {
            let heard = session.link(Party::Server)?.recv_control_within(CONTROL, soon);
            Some(heard.map_err(|error| cause(session, error))?)
        }
        false => None,
    };
    let next: Next = session.link(Party::Client)?.recv_control_soon(CONTROL, soon)?;
    if let Next::Step(advance) = next {
        take(advance)?;
    }
    match (of_server, third) {
        (None, None) => {}
        (None, Some(_)) if session.purpose() == Purpose::Prepared => {}
        (None, Some(third)) => session.link(third)?.send_control(&next)?,
        (Some(other), _) if other == next => {}
        (Some(_), _) => {
            let third = session.party();
            return Err(senseless(Party::Client, &format!("different steps to server and {third}")));
        }
    }
    Ok(next)
}

/// What ended a session of which the server says `error`: the client, if it has ended and the server tells of a peer's end.
fn cause(session: &Session, error: Diagnostic) -> Diagnostic {
    let of_peer = abort_code(&error).is_some_and(|code| ["E0701", "E0705"].contains(&code));
    let of_client = || session.link(Party::Client).ok().and_then(Link::end_reason);
    of_peer.then(of_client).flatten().unwrap_or(error)
}

/// Begins a session with material, before anything is sent in it.
fn begin_prepared(
    folder: &PlanFolder,
    keep: &Keep,
    material: Option<&ServerMaterial>,
    session: &Session,
) -> Result<Begun> {
    let (Some(material), Keep::Server(side)) = (material, keep) else { return Err(no_material()) };
    material.begin(folder, session.id(), side.file()?)
}

fn no_material() -> Diagnostic {
    Diagnostic::peer("E1051", "this server has no material of a dealer")
        .note("help      start it with --material, or open a session without")
}

/// What the others measured, once they have ended.
pub(super) fn peer_stats(session: &Session, peers: &[Party], phases: usize) -> Result<Vec<Stats>> {
    let mut all = Vec::with_capacity(peers.len());
    for peer in peers {
        let stats: Stats = session.link(*peer)?.recv_control(CONTROL)?;
        if stats.phases.len() != phases {
            return Err(senseless(*peer, "measurements of another number of phases"));
        }
        all.push(stats);
    }
    Ok(all)
}
