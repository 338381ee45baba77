//! What the parties of a setting agree on before the first step: pair keys, and the sharing of the server's weights.
//!
//! Key `k_i` is drawn by party `i` and sent to party `i − 1`. A weight is the sum of two terms: client and server know the
//! first, server and third party the second. One of them follows from a key that the server draws and sends to who *derives*
//! its term, and the other party, which does not know the key, gets the rest. The client derives, or a dealer that is to
//! get nothing of the model; how a setting multiplies with the terms does not depend on it. Keys travel over links that are encrypted and authenticated. Messages that held a key or a component of a weight are wiped
//! when they are dropped, and what is made of them is never copied to grow.

use std::collections::BTreeMap;
use std::sync::Arc;

use ombra_ir::bind::{concrete, place};
use ombra_ir::module::{Id, Module, Node, Party, Setting};
use ombra_ir::norms::{Measure, Norms};
use ombra_ir::op::Op;
use ombra_ir::reference::encode_into;
use ombra_ir::{Bindings, Diagnostic, Result};

use super::cx::{Keys, Purpose};
use super::words::broadcast::volume;
use crate::backend::elementwise::{pack_ring, unpack_ring};
use crate::backend::gemm::{MatRef, gemm_acc};
use crate::backend::products::{Operands, Places, Products, SMALL};
use crate::exec::net::{KEYS_EPOCH, Net, WEIGHTS_EPOCH};
use crate::exec::source::{TensorSource, short};
use crate::prg::{Key, Label, Prg};
use crate::wiped::Zeroizing;

/// Elements of a weight in one message.
const CHUNK: usize = 1 << 20;
/// Elements of a weight that are made at once: they stay in the second cache.
const BLOCK: usize = 1 << 17;

/// Fresh pair keys of three parties, by one message from every party to the one before it.
pub fn agree_keys(setting: Setting, party: Party, net: &mut dyn Net) -> Result<Keys> {
    let own = Key::random()?;
    let [before, after] = neighbours(setting, party)?;
    net.send(KEYS_EPOCH, 0, before, own.bytes().to_vec())?;
    let next = receive_key(after, 0, net)?;
    Ok(Keys::new(&own, &next, &Key::random()?))
}

/// The keys of client or server where the dealer gave each of them `dealt`, the key that it shares with the dealer: the
/// server draws the other one and sends it to the client.
pub fn agree_keys_of_two(party: Party, dealt: &Key, net: &mut dyn Net) -> Result<Keys> {
    let private = Key::random()?;
    if party == Party::Client {
        let next = receive_key(Party::Server, 0, net)?;
        return Ok(Keys::new(dealt, &next, &private));
    }
    let own = Key::random()?;
    net.send(KEYS_EPOCH, 0, Party::Client, own.bytes().to_vec())?;
    Ok(Keys::new(&own, dealt, &private))
}

/// A fresh key of the weights, drawn by the server, which it and the party that `derives` its term know and nobody else.
///
/// A key is for one sharing: under the same key, who gets the rest would learn the difference of two.
pub fn agree_weight_key(derives: Party, party: Party, net: &mut dyn Net) -> Result<Option<Key>> {
    match party {
        Party::Server => {
            let key = Key::random()?;
            net.send(KEYS_EPOCH, 1, derives, key.bytes().to_vec())?;
            Ok(Some(key))
        }
        _ if party == derives => receive_key(Party::Server, 1, net).map(Some),
        _ => Ok(None),
    }
}

fn receive_key(from: Party, tick: u32, net: &mut dyn Net) -> Result<Key> {
    let bytes = Zeroizing::new(net.recv(KEYS_EPOCH, tick, from, 16)?);
    let bytes = <[u8; 16]>::try_from(bytes.as_slice())
        .map_err(|_| Diagnostic::peer("E0812", format!("{} sent a key of another length", from.name())))?;
    Ok(Key::from_bytes(bytes))
}

/// The parties before and after this one.
fn neighbours(setting: Setting, party: Party) -> Result<[Party; 2]> {
    let parties = [Party::Client, Party::Server, setting.third()?];
    Ok([2, 1].map(|step| parties[(party.index() + step) % 3]))
}

/// The weights of a module at one party, by op. They serve any number of sessions: with the same key, a new client
/// makes its part alone, without a message.
///
/// Only what cannot be made again is stored: terms that were received, in the bytes that came, and small weights. Derived terms
/// come from the key and the server's from the key and its file whenever an op needs them, so that memory holds the words of
/// one weight at a time.
pub struct Weights {
    party: Party,
    /// Whose term follows from the key.
    derives: Party,
    /// Whether the server has its weights alone: they are its share, and the client has nothing of them.
    alone: bool,
    held: BTreeMap<Id, Held>,
    prg: Option<Prg>,
    public: Arc<dyn TensorSource>,
    own: Option<Arc<dyn TensorSource>>,
}

/// What tells weights apart: name, whether it is secret, ring bits and scale, and what is checked of it.
type Source<'a> = (&'a str, bool, Option<(u8, u8)>, u8, Norms);

/// Words of a weight, which sessions share. They are wiped with the last of them.
pub type Words = Arc<Zeroizing<Vec<u64>>>;

/// What one party has of a weight. It has no `Debug`.
#[derive(Clone)]
pub enum Weight {
    /// Known to every party.
    Public(Vec<u64>),
    /// Private to the server.
    Private(Terms),
}

/// What one party knows of a private weight `W = first + second`.
#[derive(Clone, Default)]
pub struct Terms {
    /// The term of client and server.
    pub first: Option<Words>,
    /// The term of server and third party.
    pub second: Option<Words>,
}

impl Terms {
    /// The terms with `f` applied to each: a linear map.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map(&self, f: impl Fn(&[u64]) -> Result<Vec<u64>>) -> Result<Terms> {
        let of = |term: &Option<Words>| term.as_ref().map(|t| f(t).map(words)).transpose();
        Ok(Terms { first: of(&self.first)?, second: of(&self.second)? })
    }
}

fn words(words: Vec<u64>) -> Words {
    Arc::new(Zeroizing::new(words))
}

/// Which part of a private weight.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The term of client and server.
    First,
    /// The term of server and third party.
    Second,
    /// The weight as it is, at the server.
    Whole,
}

/// A weight as an op gets it.
pub enum Found {
    /// All of it.
    Whole(Arc<Weight>),
    /// A matrix that is made block by block.
    Matrix(Matrix),
}

/// How one weight is held.
#[derive(Clone)]
enum Held {
    Stored(Arc<Weight>),
    Made(Recipe),
}

/// What a weight is made from.
#[derive(Clone)]
struct Recipe {
    name: String,
    secret: bool,
    shape: Vec<usize>,
    n: usize,
    bits: u8,
    scale: u8,
    bound: u8,
    norms: Norms,
    label: Label,
    /// The term that does not follow from the key, where it came from the server.
    received: Option<Arc<Zeroizing<Vec<u8>>>>,
    /// Where its parts lie on a device.
    places: Places,
}

impl Weights {
    /// Shares the server's weights, `w = F(k) + (w − F(k))`: the first is the term of the party that `derives` it, the client
    /// or the third party, and the server sends the other one to the other. `own` is the server's file, `key` the key of the
    /// server and the party that derives, which neither sends nor receives.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape than the plan says, or beyond its bound; a peer that fails.
    pub fn share(
        module: &Module,
        (derives, party): (Party, Party),
        key: Option<&Key>,
        public: Arc<dyn TensorSource>,
        own: Option<Arc<dyn TensorSource>>,
        net: &mut dyn Net,
    ) -> Result<Weights> {
        Weights::make_all(module, (derives, party), key, public, own, Some(net))
    }

    /// The part of the server, or of the party that derives its own, of weights that were shared with `key` before, by
    /// whatever way.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape than the plan says, or beyond its bound.
    pub fn of_key(
        module: &Module,
        (derives, party): (Party, Party),
        key: &Key,
        public: Arc<dyn TensorSource>,
        own: Option<Arc<dyn TensorSource>>,
    ) -> Result<Weights> {
        Weights::make_all(module, (derives, party), Some(key), public, own, None)
    }

    /// The weights of a party where nobody shares them: the server's are its own.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape than the plan says, or beyond its bound.
    pub fn unshared(
        module: &Module,
        party: Party,
        public: Arc<dyn TensorSource>,
        own: Option<Arc<dyn TensorSource>>,
    ) -> Result<Weights> {
        let (held, derives) = (BTreeMap::new(), Party::Client);
        let weights = Weights { party, derives, alone: true, held, prg: None, public, own };
        weights.with_all(module, Party::Client, None)
    }

    /// The weights of a party, which sends or receives over `net` where there is one.
    fn make_all(
        module: &Module,
        (derives, party): (Party, Party),
        key: Option<&Key>,
        public: Arc<dyn TensorSource>,
        own: Option<Arc<dyn TensorSource>>,
        net: Option<&mut dyn Net>,
    ) -> Result<Weights> {
        let is_server = party == Party::Server;
        if key.is_some() != (is_server || party == derives) || own.is_some() != is_server {
            return Err(Diagnostic::internal(
                "E0814",
                "the server and who derives its term share weights with a key, the server with its own weights file",
            ));
        }
        let receives = if derives == Party::Client { module.setting.third()? } else { Party::Client };
        let (held, prg) = (BTreeMap::new(), key.map(Prg::new));
        let weights = Weights { party, derives, alone: false, held, prg, public, own };
        weights.with_all(module, receives, net)
    }

    /// With what is held of every weight of the module.
    fn with_all(mut self, module: &Module, receives: Party, mut net: Option<&mut dyn Net>) -> Result<Weights> {
        let mut known: BTreeMap<Source<'_>, Held> = BTreeMap::new();
        let mut tick = 0;
        for (i, node) in module.ops.iter().enumerate() {
            let id = Id(i as u32);
            let (name, secret) = match &node.op {
                Op::PublicWeight { name } => (name, false),
                Op::Weight { name } => (name, true),
                _ => continue,
            };
            let of = (name.as_str(), secret, node.ty.as_ring(), node.ty.bound, node.ty.norms);
            let held = match known.get(&of) {
                Some(held) => held.clone(),
                None => {
                    let recipe = recipe(node, id, name, secret)?;
                    self.check(&recipe).map_err(|error| error.at(place(module, id)))?;
                    // As long as this call and no longer.
                    let link = net.as_mut().map(|net| &mut **net as &mut dyn Net);
                    let held = self.hold(receives, recipe, &mut tick, link);
                    held.map_err(|error| error.at(place(module, id)))?
                }
            };
            known.insert(of, held.clone());
            self.held.insert(id, held);
        }
        Ok(self)
    }

    /// Checks the shape of a tensor that this party has a file for, and the norms of its rows and columns.
    fn check(&self, recipe: &Recipe) -> Result<()> {
        let source = match (recipe.secret, &self.own) {
            (false, _) => &self.public,
            (true, Some(own)) => own,
            (true, None) => return Ok(()),
        };
        let found = source.shape(&recipe.name)?;
        if found != recipe.shape {
            return Err(Diagnostic::input("E0813", format!("tensor `{}` has another shape", recipe.name))
                .note(format!("expected  {:?}, found {found:?}", recipe.shape))
                .note("use the weights file that belongs to the plan"));
        }
        if recipe.norms.is_none() {
            return Ok(());
        }
        let mut measure = Measure::new(&recipe.shape, Some(recipe.scale))?;
        for start in (0..recipe.n).step_by(CHUNK) {
            measure.take(&source.elements(&recipe.name, start, CHUNK.min(recipe.n - start))?);
        }
        measure.check(&recipe.norms)
    }

    /// Sends or receives what a weight needs, and stores it where it must be.
    fn hold(&self, receives: Party, mut recipe: Recipe, tick: &mut u32, mut net: Option<&mut dyn Net>) -> Result<Held> {
        let width = usize::from(recipe.bits / 8);
        if let (true, true, Some(net)) = (self.party == receives, recipe.secret, net.as_deref_mut()) {
            let mut rest = Zeroizing::new(Vec::new());
            // It is touched as data arrives.
            let bytes = recipe.n.saturating_mul(width);
            rest.try_reserve_exact(bytes).map_err(|_| no_memory(&recipe, bytes))?;
            while rest.len() < bytes {
                let payload = (bytes - rest.len()).min(CHUNK * width);
                rest.extend_from_slice(&Zeroizing::new(net.recv(
                    WEIGHTS_EPOCH,
                    *tick,
                    Party::Server,
                    payload as u64,
                )?));
                *tick += 1;
            }
            recipe.received = Some(Arc::new(rest));
            return self.held(recipe);
        }
        if let (true, true, Some(net)) = (self.own.is_some(), recipe.secret, net) {
            let rest = self.rest();
            let mut chunk = Zeroizing::new(vec![0; CHUNK.min(recipe.n)]);
            for start in (0..recipe.n).step_by(CHUNK) {
                let words = &mut chunk[..CHUNK.min(recipe.n - start)];
                self.fill(&recipe, rest, start, words)?;
                let mut payload = Vec::new();
                pack_ring(words, recipe.bits.into(), &mut payload);
                net.send(WEIGHTS_EPOCH, *tick, receives, payload)?;
                *tick += 1;
            }
        }
        self.held(recipe)
    }

    /// A weight that is small as words, another as what those are made from.
    fn held(&self, recipe: Recipe) -> Result<Held> {
        if recipe.n > SMALL {
            return Ok(Held::Made(recipe));
        }
        self.block(&recipe, 0, recipe.n).map(|weight| Held::Stored(Arc::new(weight)))
    }

    /// Elements `start..start + len` of a weight.
    fn block(&self, recipe: &Recipe, start: usize, len: usize) -> Result<Weight> {
        let part = |part: Part| -> Result<Words> {
            let mut made = Zeroizing::new(vec![0; len]);
            self.fill(recipe, part, start, &mut made)?;
            Ok(Arc::new(made))
        };
        if !recipe.secret {
            let mut made = vec![0; len];
            self.fill(recipe, Part::Whole, start, &mut made)?;
            return Ok(Weight::Public(made));
        }
        if self.alone {
            let second = self.own.is_some().then(|| part(Part::Whole)).transpose()?;
            return Ok(Weight::Private(Terms { first: None, second }));
        }
        let has = |term: Part| match recipe.received {
            Some(_) => term == self.rest(),
            None => self.own.is_some() || term == self.derived(),
        };
        let term = |term: Part| has(term).then(|| part(term)).transpose();
        Ok(Weight::Private(Terms { first: term(Part::First)?, second: term(Part::Second)? }))
    }

    /// The term that follows from the key.
    fn derived(&self) -> Part {
        if self.derives == Party::Client { Part::First } else { Part::Second }
    }

    /// The other one.
    fn rest(&self) -> Part {
        if self.derives == Party::Client { Part::Second } else { Part::First }
    }

    /// Sets `words` to a part of a weight from element `start` on. Of a weight that everybody knows there is the whole.
    fn fill(&self, recipe: &Recipe, part: Part, start: usize, words: &mut [u64]) -> Result<()> {
        if let Some(bytes) = recipe.received.as_ref().filter(|_| part == self.rest()) {
            let width = usize::from(recipe.bits / 8);
            let bytes = bytes.get(start * width..(start + words.len()) * width);
            let bytes = bytes.ok_or_else(|| Diagnostic::internal("E0814", "a weight's term is short"))?;
            return unpack_ring(bytes, recipe.bits.into(), words);
        }
        let key = || self.prg.as_ref().ok_or_else(|| Diagnostic::internal("E0814", "a weight has no key"));
        if recipe.secret && !self.alone && part == self.derived() {
            key()?.fill_u64_at(recipe.label, start as u64, words);
            return Ok(());
        }
        let own = if recipe.secret { self.own.as_ref() } else { Some(&self.public) };
        let own = own.ok_or_else(|| Diagnostic::internal("E0814", "a party has no weights file"))?;
        read(own, recipe, start, words)?;
        if recipe.secret && !self.alone && part != Part::Whole {
            key()?.sub_assign_u64_at(recipe.label, start as u64, words);
        }
        Ok(())
    }

    /// The weight of an op; a matrix that is not stored stays to be made in blocks if `in_blocks` says that the op that
    /// takes it can do with that. E0814 when it was not shared.
    pub(crate) fn get(self: &Arc<Self>, id: Id, in_blocks: bool) -> Result<Found> {
        match self.held.get(&id) {
            Some(Held::Stored(weight)) => Ok(Found::Whole(Arc::clone(weight))),
            Some(Held::Made(recipe)) => match (in_blocks, recipe.shape.as_slice()) {
                (true, &[rows, columns]) => {
                    let (weights, recipe) = (Arc::clone(self), recipe.clone());
                    Ok(Found::Matrix(Matrix { weights, recipe, rows, columns }))
                }
                _ => self.block(recipe, 0, recipe.n).map(|weight| Found::Whole(Arc::new(weight))),
            },
            None => Err(Diagnostic::internal("E0814", "a weight was not shared before the run")),
        }
    }

    /// The party that has them.
    pub(crate) fn party(&self) -> Party {
        self.party
    }
}

/// A weight matrix that is made block by block.
pub struct Matrix {
    weights: Arc<Weights>,
    recipe: Recipe,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
}

impl Matrix {
    /// The party that makes it.
    pub fn party(&self) -> Party {
        self.weights.party
    }

    /// Whether the weight is private.
    pub fn is_secret(&self) -> bool {
        self.recipe.secret
    }

    /// Rows that one block should have.
    pub fn block_rows(&self) -> usize {
        (BLOCK / self.columns.max(1)).max(1)
    }

    /// `count` rows from `start` on.
    ///
    /// # Errors
    /// The weights file has become unreadable.
    pub fn block(&self, start: usize, count: usize) -> Result<Weight> {
        self.weights.block(&self.recipe, start * self.columns, count * self.columns)
    }

    /// The product of a part with `x`, whose last axis meets the weight's rows, or its columns where `trans_b` says that it is
    /// given with its axes exchanged; row-major. On the processor blocks of the weight are made, multiplied and overwritten
    /// one after another; a device keeps what it has room for.
    ///
    /// # Errors
    /// The weights file has become unreadable; E0814 at a party that does not know the part, E0804 for an `x` of no whole
    /// rows, E0819 where a device fails.
    pub fn product(&self, part: Part, x: &[u64], trans_b: bool, products: &Products) -> Result<Vec<u64>> {
        let (rows, columns) = (self.rows, self.columns);
        let (inner, width) = if trans_b { (columns, rows) } else { (rows, columns) };
        let m = x.len().checked_div(inner).unwrap_or(0);
        if m * inner != x.len() {
            return Err(Diagnostic::internal("E0804", "a product with a weight of other sizes"));
        }
        let len = volume(&[m, width])?;
        let operands = Operands { sizes: [rows, columns], x, trans_b, len };
        let mut make = |start: usize, words: &mut [u64]| self.weights.fill(&self.recipe, part, start, words);
        if let Some(out) = products.on_placed(&self.recipe.places, part as usize, &operands, &mut make)? {
            return Ok(out);
        }
        let threads = products.threads();
        let mut out = vec![0; len];
        let step = self.block_rows().min(rows);
        let mut made = Zeroizing::new(vec![0; step * columns]);
        let mut sums = vec![0; if trans_b && m > 1 { m * step } else { 0 }];
        for start in (0..rows).step_by(step.max(1)) {
            let count = step.min(rows - start);
            let block = &mut made[..count * columns];
            self.weights.fill(&self.recipe, part, start * columns, block)?;
            let block = MatRef::row_major(block, count, columns)?;
            if !trans_b {
                let left = MatRef::new(x.get(start..).unwrap_or(&[]), m, count, inner, 1)?;
                gemm_acc(left, block, &mut out, threads);
                continue;
            }
            let left = MatRef::row_major(x, m, inner)?;
            if m == 1 {
                gemm_acc(left, block.transposed(), &mut out[start..start + count], threads);
                continue;
            }
            let sums = &mut sums[..m * count];
            sums.fill(0);
            gemm_acc(left, block.transposed(), sums, threads);
            for (out, row) in out.chunks_exact_mut(rows).zip(sums.chunks_exact(count)) {
                out[start..start + count].copy_from_slice(row);
            }
        }
        Ok(out)
    }
}

/// Sets `words` to the elements of a weight in a file from `start` on.
fn read(source: &Arc<dyn TensorSource>, recipe: &Recipe, start: usize, words: &mut [u64]) -> Result<()> {
    let (mut done, mut outcome) = (0, Ok(()));
    source.parts(&recipe.name, start, words.len(), &mut |part| {
        let Some(words) = words.get_mut(done..done + part.len()) else {
            outcome = Err(short(&recipe.name));
            return;
        };
        done += part.len();
        if let Err(error) = encode_into(part, (recipe.bits, recipe.scale, recipe.bound), words) {
            outcome = Err(error);
        }
    })?;
    outcome?;
    if done == words.len() { Ok(()) } else { Err(short(&recipe.name)) }
}

fn recipe(node: &Node, id: Id, name: &str, secret: bool) -> Result<Recipe> {
    let (bits, scale) = node.ty.as_ring().ok_or_else(not_a_ring)?;
    let shape = concrete(&node.ty.shape, &Bindings::default())?;
    let n = volume(&shape)?;
    let label = Label { op: id.0, step: 0, purpose: Purpose::Weight as u16, part: 0 };
    let (bound, norms) = (node.ty.bound, node.ty.norms);
    Ok(Recipe {
        name: name.to_string(),
        secret,
        shape,
        n,
        bits,
        scale,
        bound,
        norms,
        label,
        received: None,
        places: Places::default(),
    })
}

fn no_memory(recipe: &Recipe, bytes: usize) -> Diagnostic {
    Diagnostic::input("E0814", format!("no memory for the shares of tensor `{}`", recipe.name))
        .note(format!("expected  room for {bytes} bytes"))
        .note("help      run on a machine with more memory, or use a smaller model")
}

fn not_a_ring() -> Diagnostic {
    Diagnostic::internal("E0811", "a weight is not of ring elements")
}
