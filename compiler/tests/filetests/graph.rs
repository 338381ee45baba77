//! Passes over the typed graph, and lowering.

use super::{after, files, marks};
use ombra_compiler::graph::text::{parse, print};
use ombra_compiler::graph::{Graph, Op, Owner, ValueId, eval};
use ombra_compiler::lower::{self, lower};
use ombra_compiler::passes::approximate::{Approximations, approximate};
use ombra_compiler::passes::assign_owners::{assign_owners, secret_states};
use ombra_compiler::passes::decompose::decompose;
use ombra_compiler::passes::fold_norms::fold_norms;
use ombra_compiler::passes::lift_reshapes::lift_reshapes;
use ombra_compiler::passes::narrow_demand::narrow_demand;
use ombra_compiler::ranges::assume::assume;
use ombra_compiler::secrecy::published::check_inputs;
use ombra_compiler::weights::statics::{Known, Statics};
use ombra_ir::module::OutputKind;
use ombra_ir::plain::{DType, Tensor};
use ombra_ir::settings::Setting;
use ombra_ir::verify::verify;
use ombra_ir::{Bindings, Diagnostic, Dim, Result, Sym, text};
use std::collections::BTreeMap;

type Tensors = BTreeMap<String, Tensor>;

/// Numbers from -2 to 2 that depend on a name alone.
fn drawn(name: &str, dtype: DType, shape: &[usize]) -> Tensor {
    let mut state: u64 = name.bytes().fold(7, |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 40
    };
    let n = shape.iter().product();
    match dtype {
        DType::F32 => Tensor::f32(shape, (0..n).map(|_| (next() % 4001) as f32 / 1000.0 - 2.0).collect()),
        DType::I64 => Tensor::i64(shape, (0..n).map(|_| (next() % 2) as i64).collect()),
        DType::Bool => Tensor::bool(shape, (0..n).map(|_| next() % 2 == 0).collect()),
    }
    .unwrap()
}

/// Contents of all inputs and weights of a graph, where every size is 2 or 3, or as near as it may be.
fn given(graph: &Graph) -> (Tensors, Tensors) {
    let mut sizes = Bindings::new();
    for (i, info) in graph.dims.syms.iter().enumerate() {
        sizes.set(Sym(i as u32), (2 + i as u64 % 2).max(info.min).min(info.max.unwrap_or(u64::MAX)));
    }
    let concrete = |shape: &[Dim]| shape.iter().map(|d| d.eval_usize(&sizes).unwrap()).collect::<Vec<_>>();
    let (mut inputs, mut weights) = (Tensors::new(), Tensors::new());
    for (_, node) in graph.iter() {
        let mut shape = concrete(&node.shape);
        match &node.op {
            Op::Input { name, .. } => drop(inputs.insert(name.clone(), drawn(name, node.dtype, &shape))),
            Op::Weight { name, transposed } => {
                let n = shape.len();
                if *transposed {
                    shape.swap(n - 1, n - 2);
                }
                weights.insert(name.clone(), drawn(name, node.dtype, &shape));
            }
            _ => {}
        }
    }
    (inputs, weights)
}

/// Outputs of a graph for what another one is given.
fn outputs(graph: &Graph, (inputs, weights): &(Tensors, Tensors)) -> Vec<Tensor> {
    eval::evaluate(graph, &|name: &str| Ok(weights[name].clone()), inputs).unwrap()
}

/// One way to make text of a graph, or what is wrong with it.
type Run<'a> = &'a dyn Fn(&mut Graph, &Tensors) -> std::result::Result<String, Vec<Diagnostic>>;

/// Compares what a pass makes of every file with what is beside it, or its refusals with the marks of the file.
fn check(folder: &str, run: Run, same: &dyn Fn(&[Tensor], &[Tensor]) -> bool) {
    for path in files(folder, "graph") {
        let source = std::fs::read_to_string(&path).unwrap();
        let (mut graph, lines) = parse(&source).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let before = graph.clone();
        let given = given(&graph);
        let refused = match run(&mut graph, &given.1) {
            Ok(made) => {
                after(&path, &made);
                if graph.iter().eq(before.iter()) || !made.starts_with("graph") {
                    continue;
                }
                let read = parse(&made).unwrap_or_else(|e| panic!("{path:?}: {e}")).0;
                assert_eq!(print(&read), made, "{path:?}");
                let (a, b) = (outputs(&before, &given), outputs(&graph, &given));
                assert!(same(&a, &b), "{path:?}: {a:?} becomes {b:?}");
                continue;
            }
            Err(refused) => refused,
        };
        let line = |d: &Diagnostic| {
            let named = |id: ValueId| before.node(id).is_ok_and(|n| Some(&n.origin.node) == d.place.as_ref());
            lines.iter().find(|(id, _)| named(*id)).map_or(1, |(_, line)| *line)
        };
        let mut found: Vec<(usize, String)> = refused.iter().map(|d| (line(d), d.code.to_owned())).collect();
        found.sort();
        assert_eq!(found, marks(&source), "{path:?}: {refused:?}");
    }
}

fn equal(a: &[Tensor], b: &[Tensor]) -> bool {
    let near = |a: &Tensor, b: &Tensor| match (a.as_f32(), b.as_f32()) {
        (Ok(x), Ok(y)) => {
            let most = x.iter().fold(1.0f32, |m, x| m.max(x.abs()));
            a.shape() == b.shape() && x.iter().zip(y).all(|(x, y)| (x - y).abs() <= 1e-4 * most)
        }
        _ => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b))
}

fn printed(result: Result<()>, graph: &Graph) -> std::result::Result<String, Vec<Diagnostic>> {
    result.map(|()| print(graph)).map_err(|d| vec![d])
}

#[test]
fn reshapes() {
    check("lift_reshapes", &|graph, _| printed(lift_reshapes(graph), graph), &equal);
}

/// The last position of the first output, alone.
#[test]
fn demand() {
    let last = |a: &[Tensor], b: &[Tensor]| {
        let row = |t: &Tensor| {
            let columns = *t.shape().last().unwrap();
            let positions = t.shape()[1];
            let rows = t.as_f32().unwrap().chunks(columns).enumerate();
            rows.filter(|(i, _)| i % positions == positions - 1).flat_map(|(_, row)| row.to_vec()).collect::<Vec<f32>>()
        };
        let flat = |values: Vec<f32>| Tensor::f32(&[values.len()], values).unwrap();
        b[0].shape()[1] == 1 && equal(&[flat(row(&a[0]))], &[flat(row(&b[0]))])
    };
    check("narrow_demand", &|graph, _| printed(narrow_demand(graph, 0, 1).map(drop), graph), &last);
}

#[test]
fn owners() {
    let public = |name: &str| if name.starts_with("public") { Owner::Public } else { Owner::Server };
    let run = |graph: &mut Graph, _: &Tensors| {
        assign_owners(graph, public);
        check_inputs(graph).map(|()| print(graph))
    };
    check("assign_owners", &run, &equal);
}

#[test]
fn approximations() {
    let wanted = Approximations {
        softmax: vec!["2quad".parse().unwrap(), "*relu*=2relu".parse().unwrap()],
        activation: vec!["quad".parse().unwrap(), "*relu*=relu".parse().unwrap()],
        norm: vec!["affine".parse().unwrap()],
    };
    check("approximate", &|graph, _| printed(approximate(graph, &wanted).map(drop), graph), &|_, _| true);
}

#[test]
fn norms() {
    let run = |graph: &mut Graph, weights: &Tensors| {
        let elements = |name: &str| Ok(weights[name].clone());
        printed(fold_norms(graph, &elements, &Known::default()).map(drop), graph)
    };
    check("fold_norms", &run, &equal);
}

#[test]
fn decompositions() {
    check("decompose", &|graph, _| printed(decompose(graph), graph), &equal);
}

/// Lowered for three parties, with assumed ranges.
#[test]
fn lowering() {
    let run = |graph: &mut Graph, weights: &Tensors| {
        let (elements, known) = (|name: &str| Ok(weights[name].clone()), Known::default());
        let lowered = lower(
            graph,
            lower::Options {
                setting: Setting::ThreeParty,
                name: "lowered".into(),
                f: 16,
                ranges: &assume(graph),
                statics: &Statics::new(graph, &elements, &known),
                reveal: vec![(0, OutputKind::Tensor)],
                states: secret_states(graph),
                guard: false,
                defer: true,
            },
        )?;
        verify(&lowered.module)?;
        Ok(text::print(&lowered.module))
    };
    check("lower", &run, &equal);
}
