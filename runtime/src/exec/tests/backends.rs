//! Parties that make their products in different places send the same bytes and open the same values.

use ombra_gpu::{Form, Options, open};

use super::*;
use crate::backend::products::{Backend, Ran};
use crate::prg::Key;
use crate::settings::cx::Keys;

/// A message as it was sent.
#[derive(PartialEq)]
struct Message(u32, u32, Party, Vec<u8>);

/// Links of which all messages are kept.
struct Kept<'a> {
    links: LinkNet<'a>,
    sent: Vec<Message>,
}

impl Net for Kept<'_> {
    fn send(&mut self, epoch: u32, tick: u32, to: Party, payload: Vec<u8>) -> Result<()> {
        self.sent.push(Message(epoch, tick, to, payload.clone()));
        self.links.send(epoch, tick, to, payload)
    }

    fn recv(&mut self, epoch: u32, tick: u32, from: Party, len: u64) -> Result<Vec<u8>> {
        self.links.recv(epoch, tick, from, len)
    }
}

/// What a party sent and what it learned.
#[derive(PartialEq)]
struct Side {
    sent: Vec<Message>,
    opened: Vec<(u32, Vec<i64>)>,
}

/// Runs the steps with keys that are the same every time; by party, with where its products ran.
fn run_on(
    (module, steps): (&Module, &[Given]),
    (public, own): (&Tensors, &Tensors),
    products: &[Products],
) -> Vec<(Side, Ran)> {
    let parties = module.setting.protocol().parties;
    let sessions = Session::in_memory(parties).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = parties
            .iter()
            .copied()
            .zip(sessions)
            .zip(products)
            .map(|((party, session), products)| {
                let key = |i: usize| Key::from_bytes([i as u8; 16]);
                scope.spawn(move || {
                    let at = party.index();
                    let keys = Keys::new(&key(at), &key((at + 1) % 3), &key(3 + at));
                    let mut net = Kept { links: LinkNet::new(&session, 5), sent: Vec::new() };
                    let is_server = party == Party::Server;
                    let weights = Weights::share(
                        module,
                        (Party::Client, party),
                        (!party.is_third()).then(|| key(7)).as_ref(),
                        Arc::new(public.clone()),
                        is_server.then(|| Arc::new(own.clone()) as Arc<dyn TensorSource>),
                        &mut net,
                    );
                    let (module, weights) = (Arc::new(module.clone()), Arc::new(weights.unwrap()));
                    let mut run = settings::begin(Arc::clone(&module), party, keys, weights, products.clone()).unwrap();
                    let mut opened = Vec::new();
                    for given in steps {
                        let bound = bind(&module, &given.sizes, &given.public).unwrap();
                        let schedule = schedule(&module, &bound).unwrap();
                        let client = if party == Party::Client { given.client.as_slice() } else { &[] };
                        let result = run.step(&bound, &schedule, client, &mut net).unwrap();
                        opened.extend(result.opened.into_iter().map(|opened| (opened.slot, opened.values)));
                    }
                    session.finish();
                    (Side { sent: net.sent, opened }, products.ran())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Three products with weights that are not small: private ones by rows and with their axes exchanged, and a public one.
fn products_with_weights(setting: Setting) -> (Module, Vec<Given>, [Tensors; 2]) {
    let (mut public, mut own) = (Tensors::default(), Tensors::default());
    let (mut b, dims) = Build::new(setting, &[("seq", 64)]);
    let seq = dims[0].clone();
    let slot = b.input(DType::F32, &[seq.clone(), Dim::from(140)]);
    let mut x = b.ring(Op::Input { slot }, (64, 12), Sharing::Shared, &[seq, Dim::from(140)], 13);
    let weights = [([140u32, 131], false), ([150, 131], true), ([150, 120], false)];
    for (i, (sizes, trans_b)) in weights.into_iter().enumerate() {
        let (dims, shape) = (sizes.map(Dim::from), sizes.map(|size| size as usize));
        let name = weight(if i < 2 { &mut own } else { &mut public }, &format!("w{i}"), &shape, -0.3, 0.06);
        let w = if i < 2 {
            b.ring(Op::Weight { name }, (64, 12), Sharing::Shared, &dims, 12)
        } else {
            b.ring(Op::PublicWeight { name }, (64, 12), Sharing::Public, &dims, 12)
        };
        let product = b.rotated(i as u8, Op::MatMul { trans_b }, &[x, w]);
        x = b.rotated(i as u8, Op::Truncate { by: 12, bits: 64 }, &[product]);
    }
    let slot = b.output(OutputKind::Tensor);
    b.op(Op::Reveal { slot }, &[x]);
    let step = |seq: usize| Given {
        sizes: vec![("seq", seq as u64)],
        public: Vec::new(),
        client: vec![floats(&[seq, 140], -0.2, 0.03)],
    };
    (b.done(), vec![step(21), step(1)], [public, own])
}

#[test]
fn parties_with_different_backends_send_the_same_bytes() {
    let options = |form: Option<Form>, memory: Option<u64>| {
        let options = Options { form, memory, ..Options::from_environment().unwrap() };
        match open(&options) {
            Ok(gpu) => Some(Products::on_gpu(gpu, 1)),
            Err(error) => {
                assert!(std::env::var("OMBRA_EXPECT_GPU").as_deref() != Ok("1"), "a device was expected: {error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    };
    // With room for one of the weights too.
    let memories = [(None, None), (Some(Form::Limbs), None), (Some(Form::Limbs), Some(160_000))];
    for setting in [Setting::ThreeParty, Setting::Dealer] {
        let (module, steps, [public, own]) = products_with_weights(setting);
        let run = |products: &[Products]| run_on((&module, &steps), (&public, &own), products);
        let expected = run(&[1, 1, 1].map(Products::cpu));
        assert!(expected.iter().all(|(_, ran)| ran.backend == Backend::Cpu && ran.placed_bytes == 0));
        let mut weights = public.clone();
        weights.0.extend(own.0.clone());
        for ((_, found), plain) in expected[0].0.opened.iter().zip(run_plain(&module, &steps, &weights)) {
            let error = found.iter().zip(&plain[0].1).map(|(x, y)| (*x as f64 / 4096.0 - y).abs()).fold(0.0, f64::max);
            assert!(error < 0.05, "{}: {error}", setting.name());
        }
        assert!(expected[0].0.opened.len() == 2 && expected[0].0.opened[1].1.iter().any(|x| *x != 0));
        for (at, (form, memory)) in memories.into_iter().enumerate() {
            // One party, and then all of them.
            for all in [false, true] {
                let on = |party: usize| if all || party == at { options(form, memory) } else { Some(Products::cpu(1)) };
                let (Some(a), Some(b), Some(c)) = (on(0), on(1), on(2)) else { return };
                let found = run(&[a, b, c]);
                for (party, ((found, ran), (expected, _))) in found.iter().zip(&expected).enumerate() {
                    let what = format!("{} {form:?} at party {at}, all {all}: party {party}", setting.name());
                    assert!(found.sent == expected.sent, "{what}: the messages differ");
                    assert!(found.opened == expected.opened, "{what}: the results differ");
                    let is_here = all || party == at;
                    assert_eq!(ran.backend == Backend::Gpu, is_here, "{what}");
                    assert_eq!(ran.placed_bytes > 0, is_here, "{what}");
                    assert_eq!(ran.left_bytes > 0, is_here && memory.is_some(), "{what}");
                }
            }
        }
    }
}
