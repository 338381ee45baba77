//! Building modules: the types and bounds that the rules prove, and what `push` refuses.

use ombra_ir::dim::{Dim, Dims};
use ombra_ir::infer::{push, push_source, push_within};
use ombra_ir::module::{Id, InputSlot, Module, Origin, Setting, Stage};
use ombra_ir::op::Op;
use ombra_ir::plain::{DType, Program};
use ombra_ir::ty::{BoundFrom, Sharing, Ty};

fn module() -> Module {
    let mut dims = Dims::default();
    for (name, max) in [("seq", Some(100)), ("open", None)] {
        let sym = dims.symbol(name).unwrap();
        let info = dims.info_mut(sym).unwrap();
        (info.min, info.max) = (1, max);
    }
    let size = |name| Dim::from(dims.find(name).unwrap());
    let slot = |name: &str, shape| InputSlot { name: name.into(), dtype: DType::F32, shape };
    let inputs = vec![slot("x", vec![size("seq"), 8.into()]), slot("y", vec![size("open"), size("open")])];
    Module {
        name: "m".into(),
        setting: Setting::ThreeParty,
        stage: Stage::Lowered,
        dims,
        counts: vec![],
        public: Program::default(),
        inputs,
        states: vec![],
        outputs: vec![],
        ops: vec![],
    }
}

fn input(m: &mut Module, slot: u32, bound: u8) -> Id {
    let shape = m.inputs[slot as usize].shape.clone();
    push_source(m, Op::Input { slot }, Ty::ring(64, 16, Sharing::Shared, shape, bound), Origin::default()).unwrap()
}

fn go(m: &mut Module, op: Op, args: &[Id]) -> String {
    let id = push(m, op, args, None, Origin::default()).unwrap();
    m.ty(id).show(&m.dims)
}

#[test]
fn bounds_are_the_proven_ones() {
    let mut m = module();
    let x = input(&mut m, 0, 20);
    let m = &mut m;
    assert_eq!(go(m, Op::Add, &[x, x]), "ring64.16[seq, 8] shared <21");
    assert_eq!(go(m, Op::Neg, &[x]), "ring64.16[seq, 8] shared <20");
    for (k, bound) in [(0, 0), (1, 20), (-1, 20), (3, 22), (4, 22), (-5, 23), (1 << 40, 60)] {
        assert_eq!(go(m, Op::MulInt { k }, &[x]), format!("ring64.16[seq, 8] shared <{bound}"), "k = {k}");
    }
    for (k, bound) in [(0, 20), (1, 21), (-(1 << 20), 21), ((1 << 20) + 1, 22)] {
        assert_eq!(go(m, Op::AddInt { k }, &[x]), format!("ring64.16[seq, 8] shared <{bound}"), "k = {k}");
    }
    assert_eq!(go(m, Op::Upscale { by: 4 }, &[x]), "ring64.20[seq, 8] shared <24");
    assert_eq!(go(m, Op::SetScale { scale: 18 }, &[x]), "ring64.18[seq, 8] shared <20");
    assert_eq!(go(m, Op::Mul, &[x, x]), "ring64.32[seq, 8] sum3 <40");
    // 8 terms take 3 bits, 100 terms 7.
    assert_eq!(go(m, Op::MatMul { trans_b: true }, &[x, x]), "ring64.32[seq, seq] sum3 <43");
    assert_eq!(go(m, Op::ReduceSum { axis: 0 }, &[x]), "ring64.16[1, 8] shared <27");
    assert_eq!(go(m, Op::ReduceSum { axis: 1 }, &[x]), "ring64.16[seq, 1] shared <23");
    for (by, bound) in [(1, 20), (8, 13), (16, 5)] {
        let scale = 16 - by;
        assert_eq!(go(m, Op::Truncate { by, bits: 64 }, &[x]), format!("ring64.{scale}[seq, 8] shared <{bound}"));
    }
    assert_eq!(go(m, Op::Narrow { bits: 24 }, &[x]), "ring24.16[seq, 8] shared <20");
    assert_eq!(go(m, Op::ArgMax { width: 22 }, &[x]), "ring64.0[seq] shared <3");
    let table = Ty::ring(64, 12, Sharing::Shared, vec![1000.into(), 4.into()], 15);
    let table = push_source(m, Op::Weight { name: "t".into() }, table, Origin::default()).unwrap();
    let public = Ty::ring(64, 12, Sharing::Public, vec![8.into(), 5.into()], 15);
    let public = push_source(m, Op::PublicWeight { name: "p".into() }, public, Origin::default()).unwrap();
    assert_eq!(go(m, Op::MatMul { trans_b: false }, &[x, public]), "ring64.28[seq, 5] sum2 <38");
    assert_eq!(go(m, Op::Transpose { perm: vec![1, 0] }, &[table]), "ring64.12[4, 1000] shared <15");
    let sum = push(m, Op::Mul, &[x, x], None, Origin::default()).unwrap();
    let raised = push(m, Op::Upscale { by: 16 }, &[x], None, Origin::default()).unwrap();
    assert_eq!(go(m, Op::Sub, &[raised, sum]), "ring64.32[seq, 8] sum3 <41");
    assert_eq!(go(m, Op::Concat { axis: 0 }, &[raised, sum]), "ring64.32[2*seq, 8] sum3 <40");
    assert_eq!(go(m, Op::Reshare, &[sum]), "ring64.32[seq, 8] shared <40");
    // Eight columns: 1.01 √8 and 1.05 √8 are below 4.
    // Their rows are as long as 1.01 √8 and 1.05 √8, and a rounding.
    for (length, scale, rows) in [(20, 16, "17.53"), (20, 12, "13.53"), (50, 16, "17.59")] {
        let norm = Op::RmsNorm { eps: 0.0.into(), length, scale };
        assert_eq!(go(m, norm, &[x]), format!("ring64.{scale}[seq, 8] shared <{} rows {rows}", scale + 2));
    }
    let norm = Op::LayerNorm { eps: 0.0.into(), length: 47, scale: 20 };
    assert_eq!(go(m, norm, &[x]), "ring64.20[seq, 8] shared <22 rows 21.59");
    assert_eq!(go(m, Op::Cut { by: 8 }, &[x]), "ring56.8[seq, 8] shared <13");
    assert_eq!(go(m, Op::Cut { by: 16 }, &[x]), "ring48.0[seq, 8] shared <5");
    let narrow = push(m, Op::Narrow { bits: 24 }, &[x], None, Origin::default()).unwrap();
    assert_eq!(go(m, Op::Lift { by: 16 }, &[narrow]), "ring40.32[seq, 8] shared <36");
    let found = ombra_ir::verify::findings(m);
    assert_eq!(found.iter().map(|f| f.diagnostic.code).collect::<Vec<_>>(), ["E0305"], "a size without maximum");
}

/// Every value below a bound, less every error that shares can make, is within the bound of a cut, and no bound that is
/// less holds them all.
#[test]
fn bounds_of_cuts_are_exact() {
    for bound in 0..=13u8 {
        let mut m = module();
        let x = input(&mut m, 0, bound);
        let cut = push(&mut m, Op::Cut { by: 8 }, &[x], None, Origin::default()).unwrap();
        let proven = m.ty(cut).bound;
        let most = (1i64 << bound) - 1;
        let greatest = (-most..=most).flat_map(|x| (0..=2).map(move |less| ((x >> 8) - less).abs())).max().unwrap();
        assert!(greatest < 1 << proven, "{bound}: {greatest} is not below 2^{proven}");
        // A bound of 0 is that of 0 alone, which is its own floor.
        assert!(greatest >= 1 << (proven - 1) || bound == 0, "{bound}: {greatest} is below 2^{}", proven - 1);
    }
}

#[test]
fn push_refuses_what_the_verifier_would() {
    let mut m = module();
    let x = input(&mut m, 0, 20);
    let node = |name: &str| Origin { node: name.into(), ..Origin::default() };
    let error = push(&mut m, Op::Add, &[x, x], Some((20, BoundFrom::Proven)), node("/add")).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("E0320", Some("/add")));
    let kept = push(&mut m, Op::Add, &[x, x], Some((20, BoundFrom::Calibrated)), node("/add")).unwrap();
    assert_eq!(m.ty(kept).show(&m.dims), "ring64.16[seq, 8] shared <20 calibrated");
    for (most, shown) in [(19, "<19 guarded"), (30, "<21")] {
        let id = push_within(&mut m, Op::Add, &[x, x], (most, BoundFrom::Guarded), node("/add")).unwrap();
        assert_eq!(m.ty(id).show(&m.dims), format!("ring64.16[seq, 8] shared {shown}"));
    }
    let error = push(&mut m, Op::Upscale { by: 44 }, &[x], None, node("/up")).unwrap_err();
    assert_eq!(error.code, "E0323");
    let scaled = push(&mut m, Op::SetScale { scale: 12 }, &[x], None, node("")).unwrap();
    let error = push(&mut m, Op::Add, &[x, scaled], None, node("/res")).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("E0311", Some("/res")));
    assert!(error.message.starts_with("add_c2: "), "{error}");
    let error = push(&mut m, Op::Neg, &[Id(99)], None, node("")).unwrap_err();
    assert_eq!((error.code, error.place.as_deref()), ("E0302", Some("neg")));
    let error = push(&mut m, Op::Input { slot: 0 }, &[], None, node("")).unwrap_err();
    assert_eq!((error.code, error.message.split(':').next()), ("E0314", Some("source_c1")));
    let wrong = Ty::ring(64, 16, Sharing::Shared, vec![8.into()], 20);
    assert_eq!(push_source(&mut m, Op::Input { slot: 0 }, wrong, node("")).unwrap_err().code, "E0314");
    let before = m.ops.len();
    let y = input(&mut m, 1, 20);
    let error = push(&mut m, Op::ReduceSum { axis: 0 }, &[y], None, node("")).unwrap_err();
    assert!(error.message.starts_with("reduce_sum_c3: "), "{error}");
    // The degree of the number of elements of a product of nine symbols is too high.
    let ninth = Op::Reshape { shape: vec![m.inputs[1].shape[0].clone(); 9] };
    let error = push(&mut m, ninth, &[y], None, node(""));
    assert!(error.unwrap_err().message.starts_with("size_c1: "));
    assert_eq!(m.ops.len(), before + 1, "a refused op is not added");
}

/// A plan may be as long as it likes: how far away a weight is takes no more work and no stack.
#[test]
fn weights_are_known_through_a_few_movements() {
    let mut m = module();
    let ty = Ty::ring(64, 12, Sharing::Shared, vec![4.into(), 2.into()], 15);
    let mut last = push_source(&mut m, Op::Weight { name: "w".into() }, ty, Origin::default()).unwrap();
    let mut known = vec![ombra_ir::schedule::of_server(&m, last)];
    for _ in 0..100_000 {
        let shape = vec![4.into(), 2.into()];
        last = push(&mut m, Op::Reshape { shape }, &[last], None, Origin::default()).unwrap();
        known.push(ombra_ir::schedule::of_server(&m, last));
    }
    assert!(known[..60].iter().all(|known| *known) && known[70..].iter().all(|known| !*known));
    let x = input(&mut m, 0, 20);
    assert!(!ombra_ir::schedule::of_server(&m, x));
}
