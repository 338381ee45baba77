//! What is chosen: adapters apart, known parts out of MPC, equal layers once, the same program every time.

use super::sampling::Draw;
use super::{Rewrite, rewrite};
use crate::graph::{Graph, Op, Owner, TensorOp, ValueId, text};
use core::time::Duration;
use ombra_ir::network::Network;
use std::collections::BTreeMap;

/// Rounds cost nothing.
const IMMEDIATE: Network = Network { bandwidth_bits_per_s: 200_000_000, rtt: Duration::ZERO };

fn rewritten(draw: &Draw, network: Network) -> (Graph, Vec<Rewrite>) {
    let mut graph = draw.graph.clone();
    let reports = rewrite(&mut graph, network, &|region| draw.cost(region)).unwrap();
    assert!(reports.iter().all(|r| r.after <= r.before), "{reports:?}");
    (graph, reports)
}

fn applied(reports: &[Rewrite], rule: &str) -> usize {
    reports.iter().filter_map(|r| r.applied.get(rule)).sum()
}

#[test]
fn what_the_server_knows_is_shared_as_one_sum() {
    let mut d = Draw::new(3);
    let x = d.secret(&[40, 8]);
    let (p, q) = (d.weight(Owner::Server, &[40, 8]), d.weight(Owner::Server, &[8]));
    let y = d.op(Op::ADD, &[x, p]);
    let y = d.op(Op::ADD, &[q, y]);
    d.output(y);
    let (graph, reports) = rewritten(&d, IMMEDIATE);
    assert_eq!(graph.iter().filter(|(_, n)| n.owner == Owner::Secret && n.op == Op::ADD).count(), 1);
    assert_eq!(applied(&reports, "known terms"), 1);
}

/// x·(W + B·A) with an adapter of rank `r` to a square matrix, in layer `layer`.
fn adapted(d: &mut Draw, x: ValueId, size: i64, r: i64, layer: u32) -> ValueId {
    let w = d.weight(Owner::Public, &[size, size]);
    let (a, b) = (d.weight(Owner::Server, &[size, r]), d.weight(Owner::Server, &[r, size]));
    let delta = d.op(Op::MATMUL, &[a, b]);
    let sum = d.op(Op::ADD, &[w, delta]);
    let y = d.op(Op::MATMUL, &[x, sum]);
    for id in [delta, sum, y] {
        d.graph.node_mut(id).unwrap().origin.layer = Some(layer);
    }
    y
}

#[test]
fn equal_layers_are_solved_once() {
    let mut d = Draw::new(4);
    let mut x = d.secret(&[4, 64]);
    for layer in 0..5 {
        x = adapted(&mut d, x, 64, 4, layer);
    }
    d.output(x);
    let (graph, reports) = rewritten(&d, IMMEDIATE);
    assert_eq!(reports.iter().map(|r| r.layers.clone()).collect::<Vec<_>>(), [vec![0, 1, 2, 3, 4]]);
    let products = |graph: &Graph| graph.iter().filter(|(_, n)| n.op == Op::MATMUL && n.owner == Owner::Secret).count();
    assert_eq!(products(&graph), 15, "three in each layer");
}

#[test]
fn thick_adapters_and_slow_networks_leave_them_whole() {
    let thick = |r: i64, network| {
        let mut d = Draw::new(5);
        let x = d.secret(&[4, 64]);
        let y = adapted(&mut d, x, 64, r, 0);
        d.output(y);
        rewritten(&d, network).1
    };
    let near = &thick(40, IMMEDIATE)[0].near;
    assert!(near.iter().any(|n| n.why.contains("rank 40") && n.why.contains("break-even rank of 32")), "{near:?}");
    assert_eq!(applied(&thick(4, IMMEDIATE), "product of a sum"), 1);
    let slow = thick(4, Network::WAN);
    assert_eq!(applied(&slow, "product of a sum"), 0);
    assert!(slow[0].near.iter().any(|n| n.why.contains("more rounds")), "{:?}", slow[0].near);
}

#[test]
fn wide_matrices_are_worth_their_adapters_rounds() {
    let mut d = Draw::new(7);
    let x = d.secret(&[4, 1024]);
    let y = adapted(&mut d, x, 1024, 8, 0);
    d.output(y);
    assert_eq!(applied(&rewritten(&d, Network::WAN).1, "product of a sum"), 1);
}

/// (Q·Kᵀ)·V, and Q·(Kᵀ·V) where `right`, of `tokens` rows in two heads of width `width`.
fn product_chain(tokens: i64, width: i64, right: bool) -> Vec<Rewrite> {
    let mut d = Draw::new(9);
    let [q, k, v] = [[2, tokens, width]; 3].map(|shape| d.secret(&shape));
    let turned = d.op(Op::Tensor(TensorOp::Transpose { perm: vec![0, 2, 1] }), &[k]);
    let y = if right {
        let kv = d.op(Op::MATMUL, &[turned, v]);
        d.op(Op::MATMUL, &[q, kv])
    } else {
        let scores = d.op(Op::MATMUL, &[q, turned]);
        d.op(Op::MATMUL, &[scores, v])
    };
    d.output(y);
    rewritten(&d, Network::WAN).1
}

#[test]
fn product_chains_are_multiplied_so_that_the_middle_is_small() {
    for (tokens, width, right, changes) in
        [(64, 8, false, true), (64, 8, true, false), (8, 64, false, false), (8, 64, true, true)]
    {
        let reports = product_chain(tokens, width, right);
        assert_eq!(applied(&reports, "product chain"), usize::from(changes), "{tokens} {width} {right}: {reports:?}");
    }
}

#[test]
fn the_same_graph_gives_the_same_program() {
    let once = || {
        let mut d = Draw::new(6);
        let mut x = d.secret(&[4, 32]);
        for layer in 0..3 {
            let y = adapted(&mut d, x, 32, 2, layer);
            let r = d.op(Op::Relu, &[y]);
            let n = d.op(Op::NEG, &[y]);
            let s = d.op(Op::Relu, &[n]);
            x = d.op(Op::ADD, &[r, s]);
        }
        d.output(x);
        let (graph, reports) = rewritten(&d, IMMEDIATE);
        (text::print(&graph), format!("{reports:?}"))
    };
    let first = once();
    for _ in 0..3 {
        assert!(once() == first);
    }
}

/// Long chains of sums and factors, where equal programs are many: limits end the search, and what is found is no costlier.
#[test]
fn limits_end_what_does_not_saturate() {
    let mut d = Draw::new(8);
    let mut x = d.secret(&[4, 8]);
    for i in 0..40 {
        let p = d.weight(if i % 3 == 0 { Owner::Server } else { Owner::Public }, &[8]);
        x = d.op(if i % 2 == 0 { Op::ADD } else { Op::MUL }, &[x, p]);
        let q = d.weight(Owner::Public, &[8]);
        x = d.op(Op::ADD, &[x, q]);
        let q = d.weight(Owner::Public, &[4, 8]);
        x = d.op(Op::ADD, &[q, x]);
    }
    let w = d.weight(Owner::Server, &[8, 8]);
    let y = d.op(Op::MATMUL, &[x, w]);
    d.output(y);
    let mut chain = d.secret(&[4, 8]);
    for _ in 0..40 {
        let p = d.weight(Owner::Public, &[8]);
        chain = d.op(Op::ADD, &[chain, p]);
    }
    d.output(chain);
    let (graph, reports) = rewritten(&d, IMMEDIATE);
    assert_eq!(reports.len(), 1);
    assert_ne!(reports[0].stop, "saturated");
    for (a, b) in d.evaluate(&d.graph).iter().zip(d.evaluate(&graph)) {
        let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
        let largest = a.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-3 * largest));
    }
}

#[test]
fn what_is_taken_back_is_reported_as_refused() {
    let report = Rewrite {
        layers: vec![3],
        nodes: 10,
        terms: 20,
        iterations: 2,
        stop: "saturated",
        applied: BTreeMap::from([("product of a sum", 4)]),
        before: 100.0,
        after: 90.0,
        near: Vec::new(),
    };
    let report = report.taken_back(1000.0, 1001.0);
    assert!(report.applied.is_empty() && report.after == report.before);
    let [miss] = report.near.as_slice() else { panic!("{:?}", report.near) };
    assert_eq!(miss.rule, "product of a sum");
    assert!(miss.why.contains("1001 bytes") && miss.why.contains("1000"), "{}", miss.why);
    assert!(report.text().contains("near miss: product of a sum"));
}
