//! Whole modules between three threads over links in memory, against the reference meaning and the declared cost.

use std::collections::BTreeMap;
use std::sync::Arc;

use ombra_ir::bind::bind;
use ombra_ir::infer::{Operand, TypeCx, infer};
use ombra_ir::module::*;
use ombra_ir::norms::{Measure, Norms};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::schedule::{Cost, schedule};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};
use ombra_ir::{Diagnostic, Dim, Dims, Result, plain};

use super::*;
use crate::backend::products::Products;
use crate::settings;
use crate::settings::plain::Plain;
use crate::settings::weights::{Weights, agree_weight_key};
use crate::transport::{self, Session};

#[cfg(feature = "gpu")]
mod backends;

/// A module under construction; types are inferred.
struct Build(Module);

impl Build {
    fn new(setting: Setting, sizes: &[(&str, u64)]) -> (Build, Vec<Dim>) {
        let mut dims = Dims::default();
        let symbols = sizes
            .iter()
            .map(|(name, max)| {
                let sym = dims.symbol(name).unwrap();
                let info = dims.info_mut(sym).unwrap();
                (info.min, info.max) = (0, Some(*max));
                Dim::from(sym)
            })
            .collect();
        let module = Module::empty("test".into(), setting, Stage::Scheduled, dims);
        (Build(module), symbols)
    }

    fn input(&mut self, dtype: DType, shape: &[Dim]) -> u32 {
        let name = format!("in{}", self.0.inputs.len());
        self.0.inputs.push(InputSlot { name, dtype, shape: shape.to_vec() });
        self.0.inputs.len() as u32 - 1
    }

    /// A public input and the op that names it.
    fn public(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> Id {
        let index = self.0.public.inputs.len() as u32;
        self.0.public.inputs.push(plain::Input { name: name.into(), dtype, shape: shape.to_vec() });
        self.0.public.outputs.push(plain::ValueRef::Input(index));
        self.op(Op::Public { value: index }, &[])
    }

    fn output(&mut self, kind: OutputKind) -> u32 {
        let name = format!("out{}", self.0.outputs.len());
        self.0.outputs.push(OutputSlot { name, kind, to: Party::Client });
        self.0.outputs.len() as u32 - 1
    }

    fn op(&mut self, op: Op, args: &[Id]) -> Id {
        self.declared(op, args, None, 0)
    }

    fn rotated(&mut self, rot: u8, op: Op, args: &[Id]) -> Id {
        self.declared(op, args, None, rot)
    }

    fn ring(&mut self, op: Op, (bits, scale): (u8, u8), sharing: Sharing, shape: &[Dim], bound: u8) -> Id {
        self.declared(op, &[], Some(Ty::ring(bits, scale, sharing, shape.to_vec(), bound)), 0)
    }

    fn declared(&mut self, op: Op, args: &[Id], declared: Option<Ty>, rot: u8) -> Id {
        let operands: Vec<Operand> = args.iter().map(|id| Operand::of(&self.0, *id).unwrap()).collect();
        let ty = infer(&op, &operands, declared.as_ref(), &TypeCx::of(&self.0))
            .unwrap_or_else(|violation| panic!("{}: {}", op.name(), violation.message));
        let origin = Origin { node: format!("node{}", self.0.ops.len()), ..Origin::default() };
        let rot = rot % self.0.setting.protocol().rotations;
        self.0.ops.push(Node { op, args: args.to_vec(), ty, origin, rot });
        Id(self.0.ops.len() as u32 - 1)
    }

    /// Declares a smaller bound than the proven one.
    fn calibrated(&mut self, id: Id, bound: u8) {
        let ty = &mut self.0.ops[id.index()].ty;
        (ty.bound, ty.bound_from) = (bound, BoundFrom::Calibrated);
    }

    fn done(self) -> Module {
        if let Err(errors) = ombra_ir::verify::verify(&self.0) {
            panic!("{errors:#?}");
        }
        self.0
    }
}

/// Tensors by name.
#[derive(Clone, Default)]
struct Tensors(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl TensorSource for Tensors {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        self.0.get(name).cloned().ok_or_else(|| Diagnostic::input("E0000", "no such tensor"))
    }
}

/// What a step is given.
#[derive(Clone)]
struct Given {
    sizes: Vec<(&'static str, u64)>,
    public: Vec<(String, Tensor)>,
    client: Vec<Tensor>,
}

/// What one party has after a step.
struct Seen {
    opened: Vec<(u32, Vec<f64>)>,
    sent: Vec<u64>,
    meter: transport::Snapshot,
}

/// What a party does wrong in the first step's third tick.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    Truncated,
    Oversized,
    Reordered,
}

/// Links with a fault of the sender.
struct Faulty<'a> {
    links: LinkNet<'a>,
    fault: Fault,
}

impl Net for Faulty<'_> {
    fn send(&mut self, epoch: u32, tick: u32, to: Party, mut payload: Vec<u8>) -> Result<()> {
        let here = epoch == 0 && tick == 2;
        match self.fault {
            Fault::Truncated if here => _ = payload.pop(),
            Fault::Oversized if here => payload.push(0),
            Fault::Reordered if here => return self.links.send(epoch, tick + 1, to, payload),
            _ => {}
        }
        self.links.send(epoch, tick, to, payload)
    }

    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>> {
        self.links.recv(epoch, tick, from, len)
    }
}

/// Runs the steps at three threads; by party and step.
fn run_parties(module: &Module, steps: &[Given], public: &Tensors, own: &Tensors) -> Vec<Result<Vec<Seen>>> {
    run_with(module, steps, public, own, (Party::Client, Fault::None))
}

/// Runs the steps at three threads of which the server has a fault.
fn run_faulty(
    module: &Module,
    steps: &[Given],
    public: &Tensors,
    own: &Tensors,
    fault: Fault,
) -> Vec<Result<Vec<Seen>>> {
    run_with(module, steps, public, own, (Party::Client, fault))
}

/// Runs the steps at three threads: whose term of the weights follows from a key, and the server's fault.
fn run_with(
    module: &Module,
    steps: &[Given],
    public: &Tensors,
    own: &Tensors,
    how: (Party, Fault),
) -> Vec<Result<Vec<Seen>>> {
    let parties = module.setting.protocol().parties;
    let sessions = Session::in_memory(parties).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = parties
            .iter()
            .copied()
            .zip(sessions)
            .map(|(party, session)| {
                scope.spawn(move || {
                    let result = run_party(module, steps, public, own, (party, how), &session);
                    match &result {
                        Ok(_) => session.finish(),
                        Err(error) => session.abort(error),
                    }
                    result
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn run_party(
    module: &Module,
    steps: &[Given],
    public: &Tensors,
    own: &Tensors,
    (party, (derives, fault)): (Party, (Party, Fault)),
    session: &Session,
) -> Result<Vec<Seen>> {
    let fault = if party == Party::Server { fault } else { Fault::None };
    let mut net = Faulty { links: LinkNet::new(session, 5), fault };
    let keys = settings::agree_keys(module, "a plan", party, &mut net)?;
    let own = (party == Party::Server).then(|| Arc::new(own.clone()) as Arc<dyn TensorSource>);
    let public = Arc::new(public.clone());
    let weights = Arc::new(if module.setting.third().is_ok() {
        let key = agree_weight_key(derives, party, &mut net)?;
        Weights::share(module, (derives, party), key.as_ref(), public, own, &mut net)?
    } else {
        Weights::unshared(module, party, public, own)?
    });
    let mut run = settings::begin(Arc::new(module.clone()), party, keys, weights, Products::cpu(1)).unwrap();
    if party.is_third() && derives == party {
        assert_eq!(received(&session.meter().snapshot()), 32, "two keys and nothing of the model");
    }
    let mut seen = Vec::new();
    for given in steps {
        session.meter().reset();
        let bound = bind(module, &given.sizes, &given.public)?;
        let schedule = schedule(module, &bound)?;
        let client = if party == Party::Client { given.client.as_slice() } else { &[] };
        let result = run.step(&bound, &schedule, client, &mut net)?;
        seen.push(Seen {
            opened: result.opened.iter().map(|o| (o.slot, o.reals())).collect(),
            sent: result.sent,
            meter: session.meter().snapshot(),
        });
    }
    Ok(seen)
}

/// No peers: for one party alone.
struct Nobody;

impl Net for Nobody {
    fn send(&mut self, _: u32, _: u32, _: Party, _: Vec<u8>) -> Result<()> {
        Err(Diagnostic::internal("E0000", "one party alone sends nothing"))
    }

    fn recv(&mut self, _: u32, _: u32, _: Party, _: u64) -> Result<Vec<u8>> {
        Err(Diagnostic::internal("E0000", "one party alone receives nothing"))
    }
}

/// Runs the steps at one party in the clear; by step, what is revealed.
fn run_plain(module: &Module, steps: &[Given], weights: &Tensors) -> Vec<Vec<(u32, Vec<f64>)>> {
    let (module, weights) = (Arc::new(module.clone()), Arc::new(weights.clone()));
    let side = Plain::new(Arc::clone(&module), weights.clone(), weights);
    let mut run = Run::new(Arc::clone(&module), Party::Client, side, Products::cpu(1)).unwrap();
    // Nobody deals to a party that is alone.
    let alone = Module { setting: Setting::Plain, ..(*module).clone() };
    let step = |given: &Given| {
        let bound = bind(&module, &given.sizes, &given.public).unwrap();
        let schedule = schedule(&alone, &bound).unwrap();
        let result = run.step(&bound, &schedule, &given.client, &mut Nobody).unwrap();
        assert!(result.sent.iter().all(|bytes| *bytes == 0));
        result.opened.iter().map(|opened| (opened.slot, opened.reals())).collect()
    };
    steps.iter().map(step).collect()
}

fn received(meter: &transport::Snapshot) -> u64 {
    meter.peers.iter().map(|peer| peer.received_bytes).sum()
}

/// Runs the steps, compares what the client learns with the setting `plain` to `tolerance`, and bytes and rounds with the
/// declared ones; where there is a dealer, also with one that gets nothing of the model.
fn check(module: &Module, steps: &[Given], public: &Tensors, own: &Tensors, tolerance: f64) {
    for derives in [Some(Party::Client), module.setting.protocol().dealer].into_iter().flatten() {
        check_deriving(module, steps, (public, own), derives, tolerance);
    }
}

fn check_deriving(
    module: &Module,
    steps: &[Given],
    (public, own): (&Tensors, &Tensors),
    derives: Party,
    tolerance: f64,
) {
    let runs = run_with(module, steps, public, own, (derives, Fault::None));
    let parties: Vec<Vec<Seen>> = runs.into_iter().map(|r| r.unwrap()).collect();
    let mut weights = public.clone();
    weights.0.extend(own.0.clone());
    for (step, expected) in run_plain(module, steps, &weights).iter().enumerate() {
        let found = &parties[0][step].opened;
        assert_eq!(found.iter().map(|o| o.0).collect::<Vec<_>>(), expected.iter().map(|o| o.0).collect::<Vec<_>>());
        for ((slot, found), (_, expected)) in found.iter().zip(expected) {
            assert_eq!(found.len(), expected.len());
            for (i, (x, y)) in found.iter().zip(expected).enumerate() {
                assert!((x - y).abs() <= tolerance, "step {step}, output {slot}, element {i}: {x} for {y}");
            }
        }
        assert!(parties[1..].iter().all(|party| party[step].opened.is_empty()));
        assert!(module.setting.protocol().dealer.is_none() || received(&parties[2][step].meter) == 0);

        let bound = bind(module, &steps[step].sizes, &steps[step].public).unwrap();
        let schedule = schedule(module, &bound).unwrap();
        let mut measured = Cost::default();
        for (party, seen) in parties.iter().map(|steps| &steps[step]).enumerate() {
            measured.bytes[party] = seen.meter.sent_bytes();
            measured.rounds = measured.rounds.max(seen.meter.depth);
            for (i, sent) in seen.sent.iter().enumerate() {
                assert_eq!(*sent, schedule.op_bytes(module, Id(i as u32))[party], "op {i} at party {party}");
            }
        }
        assert_eq!(measured, schedule.cost(module));
    }
}

fn floats(shape: &[usize], from: f32, step: f32) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::f32(shape, (0..n).map(|i| from + step * (i * 7 % 11) as f32).collect()).unwrap()
}

fn weight(tensors: &mut Tensors, name: &str, shape: &[usize], from: f32, step: f32) -> String {
    let tensor = floats(shape, from, step);
    tensors.0.insert(name.into(), (shape.to_vec(), tensor.as_f32().unwrap().to_vec()));
    name.into()
}

/// Embedding, products with public and private weights, a cache, causal rows: three steps with a growing cache.
#[test]
fn attention_like_block_with_a_cache() {
    [Setting::ThreeParty, Setting::Dealer, Setting::TwoParty]
        .into_iter()
        .for_each(attention_like_block_with_a_cache_in);
}

fn attention_like_block_with_a_cache_in(setting: Setting) {
    let (mut public, mut own) = (Tensors::default(), Tensors::default());
    let (mut b, dims) = Build::new(setting, &[("seq", 8), ("past", 16)]);
    let (seq, past, four) = (dims[0].clone(), dims[1].clone(), Dim::from(4));
    let all = past.add(&seq).unwrap();
    b.0.states.push(StateSlot {
        input: "past".into(),
        output: "present".into(),
        shape: vec![past.clone(), four.clone()],
    });
    let slot = b.input(DType::I64, std::slice::from_ref(&seq));
    let ids = b.op(Op::ClientInts { slot }, &[]);
    let dense = vec![seq.clone(), all.clone()];
    let mask = b.public("mask", DType::Bool, &dense);
    let count = b.0.dims.symbol("kept").unwrap();
    b.0.dims.info_mut(count).unwrap().max = Some(200);
    b.0.counts.push(Count { sym: count, mask: 0, shape: dense.clone() });

    let table = weight(&mut own, "table", &[10, 4], -1.0, 0.25);
    let table = b.ring(Op::Weight { name: table }, (64, 12), Sharing::Shared, &[Dim::from(10), four.clone()], 16);
    let embedded = b.op(Op::Embed, &[ids, table]);
    let slot = b.input(DType::F32, &[seq.clone(), four.clone()]);
    let given = b.ring(Op::Input { slot }, (64, 12), Sharing::Shared, &[seq.clone(), four.clone()], 16);
    let x = b.rotated(1, Op::Add, &[embedded, given]);
    let w = weight(&mut public, "w", &[4, 4], -0.5, 0.125);
    let w = b.ring(Op::PublicWeight { name: w }, (64, 12), Sharing::Public, &[four.clone(), four.clone()], 13);
    let product = b.rotated(1, Op::MatMul { trans_b: false }, &[x, w]);
    let x = b.rotated(1, Op::Truncate { by: 12, bits: 64 }, &[product]);
    let q = weight(&mut own, "q", &[4, 4], 0.5, -0.1);
    let q = b.ring(Op::Weight { name: q }, (64, 12), Sharing::Shared, &[four.clone(), four.clone()], 13);
    let product = b.rotated(2, Op::MatMul { trans_b: true }, &[x, q]);
    let query = b.rotated(2, Op::Truncate { by: 12, bits: 64 }, &[product]);
    let before = b.ring(Op::State { slot: 0 }, (64, 12), Sharing::Shared, &[past, four.clone()], 22);
    let keys = b.op(Op::Concat { axis: 0 }, &[before, x]);
    b.op(Op::SetState { slot: 0 }, &[keys]);
    let scores = b.rotated(1, Op::MatMul { trans_b: true }, &[query, keys]);
    let scores = b.rotated(1, Op::Truncate { by: 14, bits: 64 }, &[scores]);
    let scores = b.op(Op::SetScale { scale: 12 }, &[scores]);
    b.calibrated(scores, 18);
    let packed = b.rotated(2, Op::Pack, &[scores, mask]);
    let greatest = b.rotated(2, Op::RowMax { shape: dense.clone(), width: 30, drop: 0 }, &[packed, mask]);
    let wide = b.op(Op::RowExpand { shape: dense.clone() }, &[greatest, mask]);
    let below = b.op(Op::Sub, &[packed, wide]);
    let square = b.rotated(1, Op::Mul, &[below, below]);
    let square = b.rotated(1, Op::Truncate { by: 12, bits: 64 }, &[square]);
    let sums = b.op(Op::RowSum { shape: dense.clone() }, &[square, mask]);
    let spread = b.op(Op::Unpack { shape: dense }, &[square, mask]);
    let mixed = b.rotated(2, Op::MatMul { trans_b: false }, &[spread, keys]);
    let mixed = b.rotated(2, Op::Reshare, &[mixed]);
    for value in [greatest, sums, mixed] {
        let slot = b.output(OutputKind::Tensor);
        b.op(Op::Reveal { slot }, &[value]);
    }
    let module = b.done();

    let step = |seq: usize, past: usize| {
        let mask = (0..seq * (past + seq)).map(|i| i % (past + seq) <= past + i / (past + seq)).collect();
        Given {
            sizes: vec![("seq", seq as u64), ("past", past as u64)],
            public: vec![("mask".into(), Tensor::bool(&[seq, past + seq], mask).unwrap())],
            client: vec![
                Tensor::i64(&[seq], (0..seq as i64).map(|i| (i * 3 + 9) % 10).collect()).unwrap(),
                floats(&[seq, 4], 0.3, -0.07),
            ],
        }
    };
    let steps = [step(5, 0), step(1, 5), step(1, 6)];
    check(&module, &steps, &public, &own, 0.02);
}

/// Comparisons, bits, movement and constants on a small ring: no truncation, so results are exact.
#[test]
fn exact_ops_on_a_small_ring() {
    [Setting::ThreeParty, Setting::Dealer, Setting::TwoParty].into_iter().for_each(exact_ops_on_a_small_ring_in);
}

fn exact_ops_on_a_small_ring_in(setting: Setting) {
    let (public, own) = (Tensors::default(), Tensors::default());
    let (mut b, dims) = Build::new(setting, &[("seq", 8)]);
    let (seq, six) = (dims[0].clone(), Dim::from(6));
    let slot = b.input(DType::F32, &[seq.clone(), six.clone()]);
    let x = b.ring(Op::Input { slot }, (40, 4), Sharing::Shared, &[seq.clone(), six.clone()], 12);
    let slot = b.input(DType::F32, &[Dim::from(1), six.clone()]);
    let last = b.ring(Op::Input { slot }, (40, 4), Sharing::Shared, &[Dim::from(1), six.clone()], 12);
    let order = b.public("order", DType::I64, &[Dim::from(4)]);
    let factor = b.public("factor", DType::F32, std::slice::from_ref(&six));
    let factor = {
        let ty = Ty::ring(40, 2, Sharing::Public, vec![six.clone()], 8);
        b.declared(Op::Encode { bits: 40, scale: 2 }, &[factor], Some(ty), 0)
    };
    let y = b.op(Op::Sub, &[x, last]);
    let negative = b.rotated(1, Op::Msb { width: 20, drop: 0 }, &[y]);
    let other = b.rotated(2, Op::Msb { width: 20, drop: 0 }, &[x]);
    let bit_last = b.rotated(2, Op::Msb { width: 20, drop: 0 }, &[last]);
    let positive = b.rotated(1, Op::Not, &[negative]);
    let both = b.rotated(2, Op::And, &[positive, other]);
    let either = b.rotated(1, Op::Xor, &[both, bit_last]);
    let columns = b.op(Op::Gather { axis: 1 }, &[either, order]);
    let turned = b.op(Op::Transpose { perm: vec![1, 0] }, &[columns]);
    let ones = b.rotated(1, Op::BitToRing { bits: 40 }, &[turned]);
    let sums = b.op(Op::ReduceSum { axis: 0 }, &[ones]);
    let scaled = b.op(Op::Mul, &[y, factor]);
    let scaled = b.rotated(2, Op::AddInt { k: -5 }, &[scaled]);
    let scaled = b.op(Op::Neg, &[scaled]);
    let fine = b.op(Op::Upscale { by: 3 }, &[scaled]);
    let fine = b.op(Op::MulInt { k: -3 }, &[fine]);
    let narrow = b.op(Op::Narrow { bits: 32 }, &[fine]);
    let part = b.op(Op::Slice { axis: 1, start: Dim::from(1), len: Dim::from(4) }, &[narrow]);
    let flat = b.op(Op::Reshape { shape: vec![seq.mul(&Dim::from(4)).unwrap()] }, &[part]);
    let wide = b.op(Op::Expand { shape: vec![Dim::from(2), seq.clone(), Dim::from(4)] }, &[part]);
    let squares = b.rotated(1, Op::Mul, &[x, y]);
    let squares = b.rotated(1, Op::Reshare, &[squares]);
    let index = b.rotated(2, Op::ArgMax { width: 30 }, &[squares]);
    for (value, kind) in [
        (sums, OutputKind::Tensor),
        (flat, OutputKind::Tensor),
        (wide, OutputKind::Tensor),
        (index, OutputKind::NextToken),
    ] {
        let slot = b.output(kind);
        b.op(Op::Reveal { slot }, &[value]);
    }
    let module = b.done();
    let step = |seq: usize| Given {
        sizes: vec![("seq", seq as u64)],
        public: vec![
            ("order".into(), Tensor::i64(&[4], vec![5, 0, 0, 3]).unwrap()),
            ("factor".into(), floats(&[6], -2.0, 0.75)),
        ],
        client: vec![floats(&[seq, 6], 2.0, -0.5), floats(&[1, 6], -1.0, 0.25)],
    };
    check(&module, &[step(3), step(8), step(1)], &public, &own, 0.0);
}

/// A weight of the wrong shape, a missing client tensor: every party ends with one error.
#[test]
fn every_party_ends_when_one_fails() {
    let mut own = Tensors::default();
    let (mut b, _) = Build::new(Setting::ThreeParty, &[]);
    let shape = [Dim::from(3)];
    let name = weight(&mut own, "w", &[3], 0.0, 0.5);
    let w = b.ring(Op::Weight { name }, (64, 8), Sharing::Shared, &shape, 12);
    let slot = b.input(DType::F32, &shape);
    let x = b.ring(Op::Input { slot }, (64, 8), Sharing::Shared, &shape, 12);
    let sum = b.op(Op::Add, &[x, w]);
    let slot = b.output(OutputKind::Tensor);
    b.op(Op::Reveal { slot }, &[sum]);
    let module = b.done();
    let given = |client: Vec<Tensor>| [Given { sizes: vec![], public: vec![], client }];
    let public = Tensors::default();
    check(&module, &given(vec![floats(&[3], 1.0, 0.5)]), &public, &own, 0.0);

    let codes = |steps: &[Given], own: &Tensors| -> Vec<&str> {
        run_parties(&module, steps, &public, own).into_iter().map(|r| r.err().map_or("", |e| e.code)).collect()
    };
    let ends = |client: Vec<Tensor>, code: &str| {
        let found = codes(&given(client), &own);
        assert_eq!(found[..2], [code, "E0705"]);
        // The helper waits for nothing in this step, but may hear of the end before it sends.
        assert!(["", "E0705"].contains(&found[2]), "{found:?}");
    };
    ends(vec![], "E0817");
    ends(vec![floats(&[2], 1.0, 0.5)], "E0817");
    ends(vec![floats(&[3], 1e9, 0.5)], "E0381");
    own.0.insert("w".into(), (vec![2], vec![0.0; 2]));
    assert_eq!(codes(&given(vec![floats(&[3], 1.0, 0.5)]), &own), ["E0705", "E0813", "E0705"]);
}

/// Rows and columns that are longer than the plan declares are refused by whoever encodes them: the server for its
/// weights, every party for public ones.
#[test]
fn weights_beyond_their_declared_norms_are_refused() {
    let values = vec![3.0, 0.5, 4.0, 0.0];
    let tensors = Tensors(BTreeMap::from([("w".to_owned(), (vec![2, 2], values.clone()))]));
    let mut measure = Measure::new(&[2, 2], Some(8)).unwrap();
    measure.take(&values);
    let exact = measure.declared();
    let codes = |secret: bool, norms: Norms| -> Vec<&'static str> {
        let (mut b, _) = Build::new(Setting::ThreeParty, &[]);
        let shape = [Dim::from(2), Dim::from(2)];
        let sharing = if secret { Sharing::Shared } else { Sharing::Public };
        let name = "w".to_owned();
        let op = if secret { Op::Weight { name } } else { Op::PublicWeight { name } };
        let w = b.declared(op, &[], Some(Ty { norms, ..Ty::ring(64, 8, sharing, shape.to_vec(), 12) }), 0);
        let slot = b.input(DType::F32, &shape);
        let x = b.ring(Op::Input { slot }, (64, 8), Sharing::Shared, &shape, 12);
        let sum = b.op(Op::Add, &[x, w]);
        let slot = b.output(OutputKind::Tensor);
        b.op(Op::Reveal { slot }, &[sum]);
        let given = [Given { sizes: vec![], public: vec![], client: vec![floats(&[2, 2], 1.0, 0.5)] }];
        let results = run_parties(&b.done(), &given, &tensors, &tensors);
        results.into_iter().map(|r| r.err().map_or("", |e| e.code)).collect()
    };
    assert_eq!([codes(true, exact), codes(false, exact)], [[""; 3]; 2]);
    let less = |n: Option<u16>| n.map(|n| n - 25);
    for norms in [Norms { rows: less(exact.rows), ..exact }, Norms { columns: less(exact.columns), ..exact }] {
        assert_eq!(codes(true, norms), ["E0705", "E0381", "E0705"]);
        // Whoever comes to the weight later may have heard of another's error by then.
        let found = codes(false, norms);
        assert!(found.contains(&"E0381") && found.iter().all(|code| ["E0381", "E0705"].contains(code)), "{found:?}");
    }
}

/// A message of a wrong size or in a wrong round ends the run at every party that waits for more, in an error that names
/// op and peer.
#[test]
fn faulty_messages_end_the_run() {
    let none = Tensors::default();
    let (mut b, _) = Build::new(Setting::ThreeParty, &[]);
    let shape = [Dim::from(70)];
    let slot = b.input(DType::F32, &shape);
    let x = b.ring(Op::Input { slot }, (64, 8), Sharing::Shared, &shape, 12);
    let squares = b.rotated(1, Op::Mul, &[x, x]);
    let y = b.rotated(1, Op::Truncate { by: 8, bits: 64 }, &[squares]);
    let y = b.rotated(2, Op::Truncate { by: 4, bits: 64 }, &[y]);
    let slot = b.output(OutputKind::Tensor);
    b.op(Op::Reveal { slot }, &[y]);
    let module = b.done();
    let given = [Given { sizes: vec![], public: vec![], client: vec![floats(&[70], 1.0, 0.5)] }];
    check(&module, &given, &none, &none, 0.1);
    for fault in [Fault::Truncated, Fault::Oversized, Fault::Reordered] {
        let errors = run_faulty(&module, &given, &none, &none, fault);
        // Who waits for nothing after the fault may end well.
        let errors: Vec<Diagnostic> = errors.into_iter().filter_map(|r| r.err()).collect();
        assert!(errors.len() >= 2, "{fault:?}: {errors:?}");
        let found = errors.iter().find(|e| e.code == "E0703").unwrap_or_else(|| panic!("{fault:?}: {errors:?}"));
        let place = found.place.clone().unwrap_or_default();
        assert!(place.contains("truncate of node2") && place.ends_with("with server"), "{place}");
        assert!(errors.iter().all(|e| ["E0703", "E0705", "E0701"].contains(&e.code)), "{fault:?}: {errors:?}");
    }
}

/// A matrix that is made block by block behind a public one, and bits of two shapes.
#[test]
fn public_rows_meet_private_matrices_and_bits_broadcast() {
    for setting in [Setting::ThreeParty, Setting::Dealer] {
        let (mut b, _) = Build::new(setting, &[]);
        let (public, mut own) = (Tensors::default(), Tensors::default());
        let (rows, inner, columns) = (Dim::from(2), Dim::from(200), Dim::from(100));
        let x = b.public("rows", DType::F32, &[rows.clone(), inner.clone()]);
        let declared = Ty::ring(64, 12, Sharing::Public, vec![rows, inner.clone()], 14);
        let x = b.declared(Op::Encode { bits: 64, scale: 12 }, &[x], Some(declared), 0);
        let w = weight(&mut own, "w", &[200, 100], -0.5, 0.1);
        let w = b.ring(Op::Weight { name: w }, (64, 12), Sharing::Shared, &[inner, columns], 13);
        let product = b.op(Op::MatMul { trans_b: false }, &[x, w]);
        let product = b.op(Op::Truncate { by: 12, bits: 64 }, &[product]);
        let slot = b.output(OutputKind::Tensor);
        b.op(Op::Reveal { slot }, &[product]);

        let slot = b.input(DType::F32, &[Dim::from(3), Dim::from(2)]);
        let wide = b.ring(Op::Input { slot }, (64, 12), Sharing::Shared, &[Dim::from(3), Dim::from(2)], 16);
        let slot = b.input(DType::F32, &[Dim::from(2)]);
        let row = b.ring(Op::Input { slot }, (64, 12), Sharing::Shared, &[Dim::from(2)], 16);
        let signs = [wide, row].map(|x| b.op(Op::Msb { width: 20, drop: 0 }, &[x]));
        let both = b.op(Op::And, &signs);
        let both = b.op(Op::BitToRing { bits: 64 }, &[both]);
        let slot = b.output(OutputKind::Tensor);
        b.op(Op::Reveal { slot }, &[both]);
        let given = Given {
            sizes: vec![],
            public: vec![("rows".into(), floats(&[2, 200], -1.0, 0.2))],
            client: vec![floats(&[3, 2], -2.0, 0.5), floats(&[2], -0.5, 0.25)],
        };
        check(&b.done(), &[given], &public, &own, 2.0 / 4096.0);
    }
}
