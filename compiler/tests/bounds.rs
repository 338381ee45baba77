//! Proven bounds by attack: random graphs of many operators, on random inputs and on inputs chosen to reach the bounds.

use fastrand::Rng;
use ombra_compiler::graph::eval::visit;
use ombra_compiler::graph::{Graph, InputRole, Op, Origin, TensorOp, ValueId};
use ombra_compiler::ranges::bounds::{Ranges, prove};
use ombra_compiler::ranges::calibrate::{Inputs, Seen};
use ombra_compiler::weights::statics::{Known, Statics};
use ombra_ir::Dim;
use ombra_ir::plain::{Binary, DType, Reduce, Tensor, Type, Unary};
use std::collections::BTreeMap;

/// Channels of the rows that an input has.
const CHANNELS: usize = 12;
/// Rows of every input.
const ROWS: usize = 4;
/// Maximum size of an input's elements.
const MOST: f64 = 4.0;
/// Rounding of single precision beside what is proven.
const ROUNDING: f64 = 1e-4;

fn between(random: &mut Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * random.f64()
}

/// A graph in the making, with the contents of its weights.
struct Build {
    graph: Graph,
    weights: BTreeMap<String, Tensor>,
    random: Rng,
}

fn dims(sizes: &[usize]) -> Vec<Dim> {
    sizes.iter().map(|&n| Dim::from_usize(n).unwrap()).collect()
}

impl Build {
    fn new(seed: u64) -> Self {
        Build { graph: Graph::new(), weights: BTreeMap::new(), random: Rng::with_seed(seed) }
    }

    fn input(&mut self, name: &str, shape: &[usize]) -> ValueId {
        self.graph.add_input(name, InputRole::Other, Type::new(DType::F32, dims(shape)), Origin::default())
    }

    /// The value, where the operands fit.
    fn try_op(&mut self, op: Op, args: &[ValueId]) -> Option<ValueId> {
        self.graph.add(op, args, Origin::default()).ok()
    }

    fn op(&mut self, op: Op, args: &[ValueId]) -> ValueId {
        self.graph.add(op, args, Origin::default()).unwrap()
    }

    fn weight(&mut self, shape: &[usize], low: f64, high: f64) -> ValueId {
        let n: usize = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|_| between(&mut self.random, low, high) as f32).collect();
        let name = format!("w{}", self.weights.len());
        self.weights.insert(name.clone(), Tensor::f32(shape, data).unwrap());
        self.graph.add_weight(&name, false, dims(shape), Origin::default())
    }

    fn constant(&mut self, shape: &[usize], data: Vec<f32>) -> ValueId {
        self.graph.add_const(Tensor::f32(shape, data).unwrap(), Origin::default()).unwrap()
    }

    fn slice(&mut self, x: ValueId, axis: usize, start: usize, len: usize, step: i64) -> Option<ValueId> {
        let (start, len) = (Dim::from_usize(start).unwrap(), Dim::from_usize(len).unwrap());
        self.try_op(Op::Tensor(TensorOp::Slice { axis, start, len, step }), &[x])
    }

    fn sizes(&self, v: ValueId) -> Vec<usize> {
        self.graph.shape(v).iter().map(|d| d.as_constant().unwrap() as usize).collect()
    }

    fn ranges(&self, inputs: &[&str]) -> Ranges {
        let load = |name: &str| Ok(self.weights[name].clone());
        let known = Known::default();
        let statics = Statics::new(&self.graph, &load, &known);
        let given = inputs.iter().map(|name| ((*name).to_string(), MOST)).collect();
        prove(&statics, 16, &given, &|| Ok(Seen::default())).unwrap()
    }

    /// Every value's tensor.
    fn values(&self, inputs: &Inputs) -> BTreeMap<ValueId, Tensor> {
        let load = |name: &str| Ok(self.weights[name].clone());
        let mut values = BTreeMap::new();
        visit(&self.graph, &load, inputs, &mut |v, tensor| {
            values.insert(v, tensor.clone());
        })
        .unwrap();
        values
    }

    /// Every element and every row within its range, where all are numbers; how many were compared.
    fn check(&self, ranges: &Ranges, inputs: &Inputs, what: &str) -> usize {
        let mut compared = 0;
        for (v, tensor) in self.values(inputs) {
            let (Ok(values), Some(range)) = (tensor.as_f32(), ranges.values.get(&v)) else { continue };
            if values.iter().any(|x| !x.is_finite()) {
                continue;
            }
            compared += 1;
            let describe = || {
                let node = self.graph.node(v).unwrap();
                let args: Vec<String> = self
                    .graph
                    .operands(v)
                    .iter()
                    .map(|a| format!("{} {:?}", self.graph.op(*a).unwrap().name(), ranges.values.get(a)))
                    .collect();
                format!("{what}: {:?} {:?} of {}", node.op.name(), tensor.shape(), args.join(" and "))
            };
            for &x in values {
                let x = f64::from(x);
                let spare = ROUNDING * (1.0 + x.abs());
                let inside = range.low - spare <= x && x <= range.high + spare;
                assert!(inside, "{x} is not within {range}, {}", describe());
                assert!(x.abs() >= range.away - spare, "{x} is nearer to 0 than {}, {}", range.away, describe());
            }
            let (Some(length), Some(&n)) = (range.length, tensor.shape().last()) else { continue };
            for row in values.chunks_exact(n.max(1)) {
                let found = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
                assert!(found <= length * (1.0 + ROUNDING) + ROUNDING, "{found} beyond {length}, {}", describe());
            }
        }
        compared
    }

    /// One more value of those that there are.
    fn grow(&mut self, pool: &[ValueId]) -> Option<ValueId> {
        let x = pool[self.random.usize(..pool.len())];
        let y = pool[self.random.usize(..pool.len())];
        let shape = self.sizes(x);
        let rank = shape.len();
        let last = *shape.last()?;
        let axis = self.random.usize(..rank);
        let n = shape[axis];
        match self.random.usize(..34) {
            0 => self.try_op(Op::ADD, &[x, y]),
            1 => self.try_op(Op::SUB, &[x, y]),
            2 | 3 => self.try_op(Op::MUL, &[x, y]),
            4 => self.try_op(Op::MUL, &[x, x]),
            5 | 6 => {
                let columns = [6, CHANNELS][self.random.usize(..2)];
                let w = self.weight(&[last, columns], -0.7, 0.7);
                self.try_op(Op::MATMUL, &[x, w])
            }
            7 => self.try_op(Op::MATMUL, &[x, y]),
            8 => {
                let op = [Op::NEG, Op::Relu, Op::Silu, Op::Gelu { tanh: false }][self.random.usize(..4)].clone();
                self.try_op(op, &[x])
            }
            9 | 10 => {
                let op = [Op::TANH, Op::SIGMOID, Op::ERF, Op::Softplus, Op::SIGN][self.random.usize(..5)].clone();
                self.try_op(op, &[x])
            }
            11 => {
                let op = [Op::EXP, Op::SQRT, Op::LOG, Op::RECIPROCAL, Op::Pow(2.0), Op::Pow(3.0)]
                    [self.random.usize(..6)]
                .clone();
                self.try_op(op, &[x])
            }
            12 => self.try_op(Op::DIV, &[x, y]),
            13 => self.try_op(Op::Softmax { axis: rank - 1 }, &[x]),
            14 | 15 => {
                let (gamma, beta) = (self.weight(&[last], -1.5, 1.5), self.weight(&[last], -1.0, 1.0));
                match self.random.usize(..3) {
                    0 => self.try_op(Op::RmsNorm { eps: 1e-5 }, &[x]),
                    1 => self.try_op(Op::RmsNorm { eps: 1e-5 }, &[x, gamma]),
                    _ => self.try_op(Op::LayerNorm { eps: 1e-5 }, &[x, gamma, beta]),
                }
            }
            16 | 17 => {
                // Heads are split, or merged.
                let new = match *shape {
                    [rows, n] if n % 3 == 0 => vec![rows, 3, n / 3],
                    [a, b, c] => [vec![a, b * c], vec![a * b, c]][self.random.usize(..2)].clone(),
                    _ => return None,
                };
                self.try_op(Op::Tensor(TensorOp::Reshape { shape: dims(&new) }), &[x])
            }
            18 | 19 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.swap(axis, self.random.usize(..rank));
                self.try_op(Op::Tensor(TensorOp::Transpose { perm }), &[x])
            }
            20 => {
                let len = 1 + self.random.usize(..n);
                let start = self.random.usize(..n - len + 1);
                self.slice(x, axis, start, len, 1)
            }
            21 => self.slice(x, axis, n - 1, n, -1),
            22 => self.try_op(Op::Tensor(TensorOp::Concat { axis }), &[x, y]),
            23 => {
                let condition = self.try_op(Op::Tensor(TensorOp::Binary(Binary::Less)), &[x, y])?;
                let z = pool[self.random.usize(..pool.len())];
                self.try_op(Op::WHERE, &[condition, z, y])
            }
            24 => {
                self.try_op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Mean, axes: vec![axis], keepdims: true }), &[x])
            }
            25 => {
                self.try_op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Sum, axes: vec![axis], keepdims: true }), &[x])
            }
            26 => {
                let keepdims = self.random.usize(..2) == 0;
                self.try_op(Op::Tensor(TensorOp::Reduce { kind: Reduce::Max, axes: vec![axis], keepdims }), &[x])
            }
            27 => {
                let op = [Op::MAX, Op::MIN][self.random.usize(..2)].clone();
                self.try_op(op, &[x, y])
            }
            28 => {
                let rows = (0..3).map(|_| self.random.usize(..n) as i64).collect();
                let index = self.graph.add_const(Tensor::i64(&[3], rows).unwrap(), Origin::default()).unwrap();
                self.try_op(Op::Tensor(TensorOp::Gather { axis }), &[x, index])
            }
            29 => {
                // A number of one element, whatever its rank.
                let k = between(&mut self.random, -3.0, 3.0) as f32;
                let shape = [vec![], vec![1], vec![1, 1]][self.random.usize(..3)].clone();
                let k = self.constant(&shape, vec![k]);
                let op = [Op::MUL, Op::ADD, Op::DIV][self.random.usize(..3)].clone();
                self.try_op(op, &[x, k])
            }
            30 => {
                // A row's own factor.
                let w = self.weight(&[last, 1], -1.0, 1.0);
                let gate = self.try_op(Op::MATMUL, &[x, w])?;
                let gate = self.try_op(Op::SIGMOID, &[gate])?;
                self.try_op(Op::MUL, &[x, gate])
            }
            31 => self.rotate(x),
            32 => {
                let w = self.weight(&[last], -1.0, 1.0);
                let centred = self.random.usize(..2) == 0;
                self.try_op(Op::AffineNorm { centred }, &[x, w])
            }
            _ => self.try_op(Op::Tensor(TensorOp::Unary(Unary::Abs)), &[x]),
        }
    }

    /// A rotation of pairs, of halves or of neighbours, by tables of either kind.
    fn rotate(&mut self, x: ValueId) -> Option<ValueId> {
        let shape = self.sizes(x);
        let (rank, n) = (shape.len(), *shape.last()?);
        if n % 2 != 0 {
            return None;
        }
        let turned = if self.random.usize(..2) == 0 {
            let (first, second) = (self.slice(x, rank - 1, 0, n / 2, 1)?, self.slice(x, rank - 1, n / 2, n / 2, 1)?);
            let second = self.op(Op::NEG, &[second]);
            self.op(Op::Tensor(TensorOp::Concat { axis: rank - 1 }), &[second, first])
        } else {
            let (even, odd) = (self.slice(x, rank - 1, 0, n / 2, 2)?, self.slice(x, rank - 1, 1, n / 2, 2)?);
            let odd = self.op(Op::NEG, &[odd]);
            let mut apart = shape.clone();
            apart[rank - 1] = n / 2;
            apart.push(1);
            let apart = Op::Tensor(TensorOp::Reshape { shape: dims(&apart) });
            let (even, odd) = (self.op(apart.clone(), &[even]), self.op(apart, &[odd]));
            let both = self.op(Op::Tensor(TensorOp::Concat { axis: rank }), &[odd, even]);
            self.op(Op::Tensor(TensorOp::Reshape { shape: dims(&shape) }), &[both])
        };
        let half: Vec<f64> = (0..n / 2).map(|_| between(&mut self.random, -3.2, 3.2)).collect();
        let angles: Vec<f64> = match self.random.usize(..3) {
            0 => [half.clone(), half].concat(),
            1 => half.iter().flat_map(|t| [*t, *t]).collect(),
            _ => (0..n).map(|_| between(&mut self.random, -3.2, 3.2)).collect(),
        };
        let cosines = angles.iter().map(|t| 1.3 * t.cos() as f32).collect();
        let sines = angles.iter().map(|t| 1.3 * t.sin() as f32).collect();
        let (c, s) = (self.constant(&[n], cosines), self.constant(&[n], sines));
        let (straight, across) = (self.op(Op::MUL, &[x, c]), self.op(Op::MUL, &[turned, s]));
        Some(self.op(Op::ADD, &[straight, across]))
    }

    /// Rows that may reach a bound: random ones, ones of corners, single entries, and columns of weights.
    fn attack(&mut self) -> Tensor {
        let columns: Vec<Vec<f64>> = self
            .weights
            .values()
            .filter(|w| w.rank() == 2 && w.shape()[0] == CHANNELS)
            .flat_map(|w| {
                let (n, data) = (w.shape()[1], w.as_f32().unwrap().to_vec());
                (0..n).map(move |j| data.iter().skip(j).step_by(n).map(|x| f64::from(*x)).collect::<Vec<_>>())
            })
            .collect();
        let mut data = Vec::new();
        for _ in 0..ROWS {
            let mut row: Vec<f64> = match self.random.usize(..5) {
                0 => (0..CHANNELS).map(|_| between(&mut self.random, -1.0, 1.0)).collect(),
                1 => (0..CHANNELS).map(|_| if self.random.usize(..2) == 0 { 1.0 } else { -1.0 }).collect(),
                2 => (0..CHANNELS).map(|i| if i == self.random.usize(..CHANNELS) { 1.0 } else { 0.0 }).collect(),
                3 if !columns.is_empty() => {
                    columns[self.random.usize(..columns.len())].iter().map(|x| x.signum()).collect()
                }
                _ if !columns.is_empty() => columns[self.random.usize(..columns.len())].clone(),
                _ => vec![between(&mut self.random, -1.0, 1.0); CHANNELS],
            };
            let most = row.iter().fold(1e-9, |m: f64, x| m.max(x.abs()));
            let size = [MOST, MOST, 0.1, 1.0][self.random.usize(..4)];
            row.iter_mut().for_each(|x| *x *= size / most);
            data.extend(row.into_iter().map(|x| x as f32));
        }
        Tensor::f32(&[ROWS, CHANNELS], data).unwrap()
    }
}

/// Whatever a graph of these operators is and whatever it is given, no element and no row is beyond its bound.
#[test]
fn no_input_leaves_a_proven_range() {
    let mut compared = 0;
    for seed in 0..400 {
        let mut b = Build::new(seed);
        let mut pool = vec![b.input("a", &[ROWS, CHANNELS]), b.input("b", &[ROWS, CHANNELS])];
        for _ in 0..24 {
            let Some(v) = b.grow(&pool) else { continue };
            if b.sizes(v).iter().product::<usize>() <= 4096 && b.sizes(v).len() <= 4 && !b.sizes(v).is_empty() {
                pool.push(v);
            }
        }
        let ranges = b.ranges(&["a", "b"]);
        for round in 0..6 {
            let inputs = Inputs::from([("a".into(), b.attack()), ("b".into(), b.attack())]);
            compared += b.check(&ranges, &inputs, &format!("graph {seed}, round {round}"));
        }
    }
    assert!(compared > 30_000, "{compared} values were compared");
}

/// For the product of a norm with a matrix, the row that points along a column reaches the column's bound to 1 percent, and
/// no singular value of a head is beyond the length that is proven of it.
#[test]
fn bounds_of_products_are_reached() {
    let mut b = Build::new(7);
    let x = b.input("a", &[ROWS, CHANNELS]);
    let gamma = b.weight(&[CHANNELS], 0.5, 1.5);
    let norm = b.op(Op::RmsNorm { eps: 0.0 }, &[x, gamma]);
    let columns = 6;
    let w = b.weight(&[CHANNELS, columns], -0.7, 0.7);
    let y = b.op(Op::MATMUL, &[norm, w]);
    let heads = b.op(Op::Tensor(TensorOp::Reshape { shape: dims(&[ROWS, 2, columns / 2]) }), &[y]);
    let ranges = b.ranges(&["a"]);
    let (gammas, matrix) = (b.weights["w0"].as_f32().unwrap().to_vec(), b.weights["w1"].as_f32().unwrap().to_vec());
    let scaled = |i: usize, j: usize| f64::from(gammas[i]) * f64::from(matrix[i * columns + j]);
    let mut greatest = 0.0f64;
    let mut longest = 0.0f64;
    let mut run = |row: Vec<f64>| {
        let most = row.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let data = (0..ROWS).flat_map(|_| row.iter().map(|x| (MOST * x / most) as f32)).collect();
        let inputs = Inputs::from([("a".to_string(), Tensor::f32(&[ROWS, CHANNELS], data).unwrap())]);
        b.check(&ranges, &inputs, "rows along columns");
        let values = b.values(&inputs);
        let sizes = values[&y].as_f32().unwrap().iter().map(|x| f64::from(x.abs()));
        greatest = sizes.fold(greatest, f64::max);
        for head in values[&heads].as_f32().unwrap().chunks_exact(columns / 2) {
            longest = longest.max(head.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt());
        }
    };
    for j in 0..columns {
        run((0..CHANNELS).map(|i| scaled(i, j)).collect());
    }
    // The power method: the direction in which a head's columns are longest.
    for head in 0..2 {
        let mut u: Vec<f64> = (0..CHANNELS).map(|i| scaled(i, head * 3)).collect();
        for _ in 0..100 {
            let y: Vec<f64> = (0..3).map(|j| (0..CHANNELS).map(|i| u[i] * scaled(i, head * 3 + j)).sum()).collect();
            u = (0..CHANNELS).map(|i| (0..3).map(|j| y[j] * scaled(i, head * 3 + j)).sum()).collect();
            let size = u.iter().map(|x| x * x).sum::<f64>().sqrt();
            u.iter_mut().for_each(|x| *x /= size);
        }
        run(u);
    }
    let size = ranges.size(y).unwrap();
    assert!(greatest > 0.985 * size, "{greatest} of {size}");
    let length = ranges.values[&heads].length.unwrap();
    assert!(longest > 0.9 * length, "{longest} of {length}");
}
