//! Attention in forms that the corpus does not have, and what nearly is one.

use ombra_ir::plain::{self, Binary, DType, Reduce, Tensor, Type};

use super::*;
use crate::graph::{InputRole, Origin, Output, OutputRole};

/// A graph with inputs of one batch: `seq` new tokens, no cache.
struct Build {
    g: Graph,
    batch: Dim,
    seq: Dim,
}

fn n(size: i64) -> Dim {
    Dim::constant(size)
}

impl Build {
    fn new() -> Self {
        let mut g = Graph::new();
        let batch = Dim::from(g.dims.symbol("batch").unwrap());
        let seq = Dim::from(g.dims.symbol("seq").unwrap());
        let ids = Type::new(DType::I64, vec![batch.clone(), seq.clone()]);
        g.add_input("input_ids", InputRole::TokenIds, ids, Origin::default());
        Build { g, batch, seq }
    }

    fn op(&mut self, op: Op, operands: &[ValueId]) -> ValueId {
        self.g.add(op, operands, Origin::default()).unwrap()
    }

    fn input(&mut self, name: &str, shape: Vec<Dim>) -> ValueId {
        self.g.add_input(name, InputRole::Other, Type::new(DType::F32, shape), Origin::default())
    }

    /// `[batch, heads, seq, size]`
    fn heads(&mut self, name: &str, heads: i64, size: i64) -> ValueId {
        self.input(name, vec![self.batch.clone(), n(heads), self.seq.clone(), n(size)])
    }

    fn c(&mut self, value: f32) -> ValueId {
        self.g.add_const(Tensor::scalar_f32(value), Origin::default()).unwrap()
    }

    fn turned(&mut self, x: ValueId) -> ValueId {
        let mut perm: Vec<usize> = (0..self.g.shape(x).len()).collect();
        let last = perm.len() - 1;
        perm.swap(last - 1, last);
        self.op(Op::Tensor(TensorOp::Transpose { perm }), &[x])
    }

    fn scores(&mut self, q: ValueId, k: ValueId) -> ValueId {
        let k = self.turned(k);
        self.op(Op::MATMUL, &[q, k])
    }

    /// 2 heads of 4: scores and values.
    fn plain(&mut self) -> (ValueId, ValueId) {
        let (q, k, v) = (self.heads("q", 2, 4), self.heads("k", 2, 4), self.heads("v", 2, 4));
        (self.scores(q, k), v)
    }

    fn softmax(&mut self, x: ValueId) -> ValueId {
        let axis = self.g.shape(x).len() - 1;
        self.op(Op::Softmax { axis }, &[x])
    }

    fn output(&mut self, value: ValueId) {
        self.g.outputs.push(Output { name: "y".into(), role: OutputRole::Other, value });
    }

    /// What is found when `y` is the output.
    fn found(mut self, y: ValueId) -> Vec<std::result::Result<String, String>> {
        self.output(y);
        let all = attentions(&self.g).into_iter();
        all.map(|c| c.map(|a| describe(&self.g, &a, &[]).to_string()).map_err(|miss| miss.why)).collect()
    }

    /// What is found when what `make` makes of scores becomes distributions over values.
    fn between(make: impl FnOnce(&mut Build, ValueId) -> ValueId) -> Vec<std::result::Result<String, String>> {
        let mut b = Build::new();
        let (scores, v) = b.plain();
        let scores = make(&mut b, scores);
        let p = b.softmax(scores);
        let y = b.op(Op::MATMUL, &[p, v]);
        b.found(y)
    }

    /// Which of `all` keys each of `new` queries sees: no later one, and with a window not more than so many.
    fn causal(&mut self, window: Option<i64>) -> ValueId {
        let iota = plain::Op::Iota { start: n(0), len: self.seq.clone(), step: 1 };
        let columns = self.op(Op::Tensor(iota), &[]);
        let rows = self.op(Op::Tensor(TensorOp::Reshape { shape: vec![self.seq.clone(), n(1)] }), &[columns]);
        let seen = self.op(Op::Tensor(TensorOp::Binary(Binary::LessOrEqual)), &[columns, rows]);
        let Some(window) = window else { return seen };
        let width = Tensor::i64(&[], vec![window]).unwrap();
        let width = self.g.add_const(width, Origin::default()).unwrap();
        let first = self.op(Op::Tensor(TensorOp::Binary(Binary::Sub)), &[rows, width]);
        let near = self.op(Op::Tensor(TensorOp::Binary(Binary::Greater)), &[columns, first]);
        self.op(Op::Tensor(TensorOp::Binary(Binary::And)), &[seen, near])
    }
}

fn one(text: &str) -> Vec<std::result::Result<String, String>> {
    vec![Ok(format!("a layer without a number: {text}"))]
}

fn near(why: &str) -> Vec<std::result::Result<String, String>> {
    vec![Err(why.to_owned())]
}

#[test]
fn heads_on_any_axes() {
    let mut b = Build::new();
    let (q, k, v) = (b.heads("q", 4, 8), b.heads("k", 1, 8), b.heads("v", 1, 6));
    let s = b.scores(q, k);
    let p = b.softmax(s);
    let y = b.op(Op::MATMUL, &[p, v]);
    let text = "multi-query attention, 4 query heads over 1 key head, head width 8 (values 6), no mask";
    assert_eq!(b.found(y), one(text));

    // Groups and their heads on two axes.
    let mut b = Build::new();
    let shape = |b: &Build, groups: i64, heads: i64| vec![b.batch.clone(), n(groups), n(heads), b.seq.clone(), n(8)];
    let q = shape(&b, 2, 3);
    let q = b.input("q", q);
    let kv = shape(&b, 2, 1);
    let (k, v) = (b.input("k", kv.clone()), b.input("v", kv));
    let s = b.scores(q, k);
    let p = b.softmax(s);
    let y = b.op(Op::MATMUL, &[p, v]);
    assert_eq!(b.found(y), one("grouped-query attention, 6 query heads over 2 key heads, head width 8, no mask"));

    // Heads on one axis with the batch.
    let mut b = Build::new();
    let joined = vec![b.batch.mul(&n(3)).unwrap(), b.seq.clone(), n(8)];
    let [q, k, v] = ["q", "k", "v"].map(|name| b.input(name, joined.clone()));
    let s = b.scores(q, k);
    let p = b.softmax(s);
    let y = b.op(Op::MATMUL, &[p, v]);
    assert_eq!(b.found(y), one("multi-head attention, 3 query heads, head width 8, no mask"));
}

#[test]
fn repeated_keys_count_once_and_scales_multiply() {
    let mut b = Build::new();
    let (q, k, v) = (b.heads("q", 6, 4), b.heads("k", 2, 4), b.heads("v", 2, 4));
    let half = b.c(0.5);
    let two = b.c(2.0);
    let q = b.op(Op::MUL, &[q, half]);
    let mut repeat = |x: ValueId| {
        let apart = vec![b.batch.clone(), n(2), n(1), b.seq.clone(), n(4)];
        let all = vec![b.batch.clone(), n(2), n(3), b.seq.clone(), n(4)];
        let joined = vec![b.batch.clone(), n(6), b.seq.clone(), n(4)];
        let x = b.op(Op::Tensor(TensorOp::Reshape { shape: apart }), &[x]);
        let x = b.op(Op::Tensor(TensorOp::Expand { shape: all }), &[x]);
        b.op(Op::Tensor(TensorOp::Reshape { shape: joined }), &[x])
    };
    let (k, v) = (repeat(k), repeat(v));
    let k = b.op(Op::MUL, &[k, half]);
    let s = b.scores(q, k);
    let s = b.op(Op::DIV, &[s, two]);
    let p = b.softmax(s);
    let y = b.op(Op::MATMUL, &[p, v]);
    b.output(y);
    let found = attentions(&b.g);
    let [Ok(a)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((a.heads, a.key_heads), (6, 2));
    assert_eq!(describe(&b.g, a, &[]).scale, 0.125);
}

#[test]
fn masks_are_told_by_what_they_keep() {
    for (window, text) in [
        (None, "causal mask by operator"),
        (Some(3), "causal mask of the last 3 by operator"),
        (Some(1000), "causal mask by operator"),
    ] {
        let mut b = Build::new();
        let (s, v) = b.plain();
        let mask = b.causal(window);
        let p = b.op(Op::MaskedSoftmax { axis: 3 }, &[s, mask]);
        let y = b.op(Op::MATMUL, &[p, v]);
        assert_eq!(b.found(y), one(&format!("multi-head attention, 2 query heads, head width 4, {text}")));
    }
    let mut b = Build::new();
    let (s, v) = b.plain();
    let shape = vec![b.batch.clone(), n(1), n(1), b.seq.clone()];
    let ty = Type::new(DType::Bool, shape);
    let given = b.g.add_input("keep", InputRole::Public, ty, Origin::default());
    let axis = 3;
    let numerator = Numerator::Square { shift: 5.0 };
    let p = b.op(Op::RatioSoftmax { axis, numerator, eps: 0.0 }, &[s, given]);
    let y = b.op(Op::MATMUL, &[p, v]);
    let text =
        "multi-head attention, 2 query heads, head width 4, 2quad in place of softmax, mask with keep by operator";
    assert_eq!(b.found(y), one(text));
}

#[test]
fn caps_and_biases_are_told() {
    let found = Build::between(|b, s| {
        let (cap, bias) = (b.c(30.0), b.g.add_weight("bias", false, vec![n(2), n(1), n(1)], Origin::default()));
        let s = b.op(Op::DIV, &[s, cap]);
        let s = b.op(Op::TANH, &[s]);
        let s = b.op(Op::MUL, &[s, cap]);
        b.op(Op::ADD, &[s, bias])
    });
    let text = "multi-head attention, 2 query heads, head width 4, no mask, scores capped at 30, server bias";
    assert_eq!(found, one(text));
}

#[test]
fn near_misses_say_which_condition_failed() {
    let mut b = Build::new();
    let (s, v) = b.plain();
    let p = b.softmax(s);
    let y = b.op(Op::MATMUL, &[p, v]);
    let z = b.op(Op::Relu, &[p]);
    b.output(z);
    assert_eq!(b.found(y), near("its distributions are used more than once"));

    let mut b = Build::new();
    let (s, v) = b.plain();
    let p = b.softmax(s);
    b.output(p);
    let y = b.op(Op::MATMUL, &[p, v]);
    assert_eq!(b.found(y), near("its distributions are an output of the model"));

    let mut b = Build::new();
    let (s, _) = b.plain();
    let p = b.softmax(s);
    let y = b.op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: vec![3], keepdims: false }), &[p]);
    assert_eq!(b.found(y), near("its distributions are not simply multiplied with values"));

    let mut b = Build::new();
    let (s, _) = b.plain();
    let p = b.softmax(s);
    let w = b.g.add_weight("w", false, vec![b.seq.clone(), n(4)], Origin::default());
    let y = b.op(Op::MATMUL, &[p, w]);
    assert_eq!(b.found(y), near("its distributions are multiplied with weights, not with values"));

    let mut b = Build::new();
    let (s, v) = b.plain();
    let p = b.op(Op::Softmax { axis: 1 }, &[s]);
    let y = b.op(Op::MATMUL, &[p, v]);
    assert_eq!(b.found(y), near("its softmax runs along axis 1, not along the keys"));

    let mut b = Build::new();
    let (s, v) = b.plain();
    b.output(s);
    let p = b.softmax(s);
    let y = b.op(Op::MATMUL, &[p, v]);
    assert_eq!(b.found(y), near("its scores are used more than once"));

    assert_eq!(Build::between(|b, s| b.op(Op::Relu, &[s])), near("relu stands between its scores and the softmax"));
    assert_eq!(
        Build::between(|b, s| {
            let shape = vec![b.batch.clone(), n(1), b.seq.clone(), b.seq.clone()];
            let bias = b.input("bias", shape);
            b.op(Op::ADD, &[s, bias])
        }),
        near("what is combined with its scores depends on tokens or caches")
    );
    assert_eq!(
        Build::between(|b, s| {
            let ty = Type::new(DType::Bool, vec![b.batch.clone(), n(1), n(1), b.seq.clone()]);
            let keep = b.g.add_input("keep", InputRole::Other, ty, Origin::default());
            let low = b.c(-1e9);
            b.op(Op::WHERE, &[keep, s, low])
        }),
        near("its mask is not public: it depends on tokens or caches")
    );
}

#[test]
fn a_softmax_over_something_else_is_none() {
    let mut b = Build::new();
    let x = b.input("x", vec![b.batch.clone(), b.seq.clone(), n(4)]);
    let w = b.g.add_weight("w", false, vec![n(4), n(9)], Origin::default());
    let logits = b.op(Op::MATMUL, &[x, w]);
    let y = b.softmax(logits);
    assert_eq!(b.found(y), []);
}
