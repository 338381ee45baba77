//! What the parties agree on before the first step: pair keys, and the sharing of the server's weights.
//!
//! Key `k_i` is drawn by party `i` and sent to party `i − 1`. The key of the weights is drawn by the server and sent to
//! the client: the client's part of every weight follows from it, and the helper, which does not know it, gets the rest.
//! Keys travel over links that are encrypted and authenticated.

use std::collections::BTreeMap;
use std::sync::Arc;

use ombra_ir::bind::{concrete, place};
use ombra_ir::module::{Id, Module, Party};
use ombra_ir::op::Op;
use ombra_ir::reference::encode;
use ombra_ir::{Bindings, Diagnostic, Result};

use super::net::{KEYS_EPOCH, Net, WEIGHTS_EPOCH};
use super::value::Value;
use crate::prg::{Key, Label, Prg};
use crate::protocols::local::broadcast::volume;
use crate::protocols::local::linear::Ring;
use crate::protocols::wire;
use crate::protocols::{Keys, Purpose};
use crate::share::{Component, Shared};

/// Elements of a weight in one message.
const CHUNK: usize = 1 << 20;

/// Where tensors come from: the public weights file, or the server's own.
pub trait TensorSource {
    /// Shape and elements of the tensor with this name. An error when there is none, or it holds no floats.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)>;
}

/// Fresh pair keys, by one message from every party to the one before it.
pub fn agree_keys(party: Party, net: &mut dyn Net) -> Result<Keys> {
    let own = Key::random()?;
    net.send(KEYS_EPOCH, 0, before(party), own.bytes().to_vec())?;
    let next = receive_key(after(party), 0, net)?;
    Ok(Keys::new(&own, &next, &Key::random()?))
}

/// The key of the weights, which client and server know and the helper does not. The server gives the key that its
/// weights are shared under already, or `None` for a fresh one; the others give `None`.
///
/// A key is for one plan and one weights file: under the same key, the helper would learn the difference of two.
pub fn agree_weight_key(party: Party, kept: Option<Key>, net: &mut dyn Net) -> Result<Option<Key>> {
    match party {
        Party::Client => receive_key(Party::Server, 1, net).map(Some),
        Party::Server => {
            let key = kept.map_or_else(Key::random, Ok)?;
            net.send(KEYS_EPOCH, 1, Party::Client, key.bytes().to_vec())?;
            Ok(Some(key))
        }
        Party::Helper => Ok(None),
    }
}

fn receive_key(from: Party, tick: u32, net: &mut dyn Net) -> Result<Key> {
    let bytes = net.recv(KEYS_EPOCH, tick, from, 16)?;
    let bytes = <[u8; 16]>::try_from(bytes)
        .map_err(|_| Diagnostic::peer("E0812", format!("{} sent a key of another length", from.name())))?;
    Ok(Key::from_bytes(bytes))
}

fn before(party: Party) -> Party {
    Party::ALL[(party.index() + 2) % 3]
}

fn after(party: Party) -> Party {
    Party::ALL[(party.index() + 1) % 3]
}

/// The weights of a module at one party, by op. They serve any number of sessions: with the same key, a new client
/// makes its part alone, without a message.
#[derive(Default)]
pub struct Weights {
    values: BTreeMap<Id, Arc<Value>>,
}

impl Weights {
    /// Loads the public weights and shares the server's, `w = 0 + F(k) + (w − F(k))`: the server sends the last term to
    /// the helper; the client neither sends nor receives. `own` is the server's file, `key` the key of client and server.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape than the plan says, or beyond its bound; a peer that fails.
    pub fn share(
        module: &Module,
        party: Party,
        key: Option<&Key>,
        public: &dyn TensorSource,
        own: Option<&dyn TensorSource>,
        net: &mut dyn Net,
    ) -> Result<Weights> {
        let prg = key.map(Prg::new);
        let mut weights = Weights::default();
        let mut known = BTreeMap::new();
        let mut tick = 0;
        for (i, node) in module.ops.iter().enumerate() {
            let id = Id(i as u32);
            let (name, secret) = match &node.op {
                Op::PublicWeight { name } => (name, false),
                Op::Weight { name } => (name, true),
                _ => continue,
            };
            let mut load = || -> Result<Value> {
                let (bits, scale) = node.ty.as_ring().ok_or_else(not_a_ring)?;
                let shape = concrete(&node.ty.shape, &Bindings::default())?;
                let read = |source: &dyn TensorSource| -> Result<Vec<u64>> {
                    let (found, elements) = source.tensor(name)?;
                    if found != shape || elements.len() != volume(&shape)? {
                        return Err(Diagnostic::input("E0813", format!("tensor `{name}` has another shape"))
                            .note(format!("expected  {shape:?}"))
                            .note(format!("found     {found:?} and {} elements", elements.len()))
                            .note("use the weights file that belongs to the plan"));
                    }
                    encode(&elements, bits, scale, node.ty.bound)
                };
                if !secret {
                    return Ok(Value::Ring(Ring::Public(read(public)?)));
                }
                let n = volume(&shape)?;
                let label = Label { op: id.0, step: 0, purpose: Purpose::Weight as u16, part: 0 };
                let shared = match (party, &prg, own) {
                    (Party::Client, Some(prg), _) => {
                        let mut w1 = vec![0; n];
                        prg.fill_u64(label, &mut w1);
                        Shared { a: Component::Zero, b: w1.into() }
                    }
                    (Party::Server, Some(prg), Some(own)) => {
                        let mut w2 = read(own)?;
                        let mut w1 = vec![0; n];
                        prg.fill_u64(label, &mut w1);
                        w2.iter_mut().zip(&w1).for_each(|(w, r)| *w = w.wrapping_sub(*r));
                        for chunk in w2.chunks(CHUNK) {
                            let mut payload = Vec::new();
                            wire::put_words(&mut payload, chunk.iter().copied(), usize::from(bits / 8));
                            net.send(WEIGHTS_EPOCH, tick, Party::Helper, payload)?;
                            tick += 1;
                        }
                        Shared::new(w1, w2)
                    }
                    (Party::Helper, None, _) => {
                        let mut w2 = Vec::new();
                        while w2.len() < n {
                            let width = usize::from(bits / 8);
                            let bytes = CHUNK.min(n - w2.len()) * width;
                            let payload = net.recv(WEIGHTS_EPOCH, tick, Party::Server, bytes as u64)?;
                            w2.extend(wire::get_words(&payload, width));
                            tick += 1;
                        }
                        Shared { a: w2.into(), b: Component::Zero }
                    }
                    _ => {
                        return Err(Diagnostic::internal(
                            "E0814",
                            "client and server share weights with a key, the server with its own weights file",
                        ));
                    }
                };
                Ok(Value::Ring(Ring::Shared(shared)))
            };
            let value = match known.get(&(name, secret, node.ty.as_ring())) {
                Some(value) => Arc::clone(value),
                None => Arc::new(load().map_err(|error| error.at(place(module, id)))?),
            };
            known.insert((name, secret, node.ty.as_ring()), Arc::clone(&value));
            weights.values.insert(id, value);
        }
        Ok(weights)
    }

    /// The value of a weight op. E0814 when it was not loaded.
    pub(super) fn get(&self, id: Id) -> Result<Arc<Value>> {
        self.values
            .get(&id)
            .cloned()
            .ok_or_else(|| Diagnostic::internal("E0814", "a weight was not loaded before the run"))
    }
}

fn not_a_ring() -> Diagnostic {
    Diagnostic::internal("E0811", "a weight is not of ring elements")
}
