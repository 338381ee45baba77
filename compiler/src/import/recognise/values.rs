//! Numbers that the elements of a public value may be, from constants, choices, movements and arithmetic.
//!
//! What is said holds for every input: a few numbers that are kept apart, or the ends of a range. Single precision is
//! rounded as the operators round it. Nothing is said of values that may be no numbers.

use std::collections::BTreeMap;

use ombra_ir::plain::{Binary, DType, Data, Reduce, Tensor, Unary};

use crate::graph::{Graph, InputRole, Op, TensorOp, ValueId};

/// Most numbers that are kept apart.
const FEW: usize = 16;
/// Most nodes that one question looks at.
const STEPS: usize = 1000;
/// Integers up to this are exact in double precision.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// What the elements of a value may be. Booleans are 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Values {
    /// These numbers, ascending, one at least.
    Few(Vec<f64>),
    /// Numbers from the first to the second.
    Between(f64, f64),
}

impl Values {
    /// What holds all of `numbers`; `None` without numbers, and with one that is none.
    fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Values> {
        let mut few: Vec<f64> = Vec::new();
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for x in numbers {
            if x.is_nan() {
                return None;
            }
            // Zeros of both signs are one number.
            let x = x + 0.0;
            (low, high) = (low.min(x), high.max(x));
            if few.len() <= FEW && !few.contains(&x) {
                few.push(x);
            }
        }
        if few.is_empty() {
            return None;
        }
        few.sort_by(f64::total_cmp);
        Some(if few.len() <= FEW { Values::Few(few) } else { Values::Between(low, high) })
    }

    fn bits() -> Values {
        Values::Few(vec![0.0, 1.0])
    }

    /// No element is below.
    pub(crate) fn low(&self) -> f64 {
        match self {
            Values::Few(list) => list.first().copied().unwrap_or(f64::NEG_INFINITY),
            Values::Between(low, _) => *low,
        }
    }

    /// No element is above.
    pub(crate) fn high(&self) -> f64 {
        match self {
            Values::Few(list) => list.last().copied().unwrap_or(f64::INFINITY),
            Values::Between(_, high) => *high,
        }
    }

    /// The numbers that are kept apart.
    pub(crate) fn few(&self) -> &[f64] {
        match self {
            Values::Few(list) => list,
            Values::Between(..) => &[],
        }
    }

    /// Whether every element is one of a few numbers for which `holds` is true.
    pub(crate) fn all(&self, holds: impl Fn(f64) -> bool) -> bool {
        !self.few().is_empty() && self.few().iter().all(|x| holds(*x))
    }

    fn join(self, other: Values) -> Option<Values> {
        match (&self, &other) {
            (Values::Few(a), Values::Few(b)) => Values::of(a.iter().chain(b).copied()),
            _ => Some(Values::Between(self.low().min(other.low()), self.high().max(other.high()))),
        }
    }

    /// The numbers among a few for which `holds` is true; all for a range, and where none is left.
    fn only(self, holds: impl Fn(f64) -> bool) -> Values {
        match &self {
            Values::Few(list) => Values::of(list.iter().copied().filter(|x| holds(*x))).unwrap_or(self),
            Values::Between(..) => self,
        }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Option<Values> {
        match self {
            Values::Few(list) => Values::of(list.iter().map(|x| f(*x))),
            Values::Between(..) => None,
        }
    }
}

/// What the elements of `id` may be; `None` when nothing is known of them.
pub(crate) fn possible(graph: &Graph, id: ValueId) -> Option<Values> {
    Walk { graph, known: BTreeMap::new() }.of(id)
}

struct Walk<'a> {
    graph: &'a Graph,
    known: BTreeMap<ValueId, Option<Values>>,
}

impl Walk<'_> {
    fn of(&mut self, id: ValueId) -> Option<Values> {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        if self.known.len() >= STEPS {
            return None;
        }
        // A place for it, so that steps on the way are counted.
        self.known.insert(id, None);
        let is_bool = self.graph.node(id).is_ok_and(|n| n.dtype == DType::Bool);
        let found = self.find(id).or_else(|| is_bool.then(Values::bits));
        self.known.insert(id, found.clone());
        found
    }

    fn join(&mut self, list: &[ValueId]) -> Option<Values> {
        let (first, rest) = list.split_first()?;
        let mut all = self.of(*first)?;
        for id in rest {
            all = all.join(self.of(*id)?)?;
        }
        Some(all)
    }

    fn find(&mut self, id: ValueId) -> Option<Values> {
        let graph = self.graph;
        let node = graph.node(id).ok()?;
        let op = match &node.op {
            Op::Tensor(TensorOp::Constant(tensor)) => return elements(tensor),
            // An attention mask is 0 or 1, by its meaning.
            Op::Input { role: InputRole::AttentionMask, .. } => return Some(Values::bits()),
            Op::Tensor(op) => op,
            _ => return None,
        };
        let operands = graph.operands(id);
        let float = node.dtype == DType::F32;
        match (op, operands.as_slice()) {
            (TensorOp::Constant(tensor) | TensorOp::ConstantOfShape { value: tensor, .. }, _) => elements(tensor),
            (TensorOp::Sizes { values, .. }, _) => {
                let ends = values.iter().map(|d| Some((graph.dims.lower(d)? as f64, graph.dims.upper(d)? as f64)));
                let ends = ends.collect::<Option<Vec<_>>>()?;
                let low = ends.iter().map(|e| e.0).fold(f64::INFINITY, f64::min);
                let high = ends.iter().map(|e| e.1).fold(f64::NEG_INFINITY, f64::max);
                (low <= high).then_some(Values::Between(low, high))
            }
            (TensorOp::Where, [c, a, b]) => self.chosen(*c, *a, *b),
            (TensorOp::ScatterNd, [x, _, update]) => self.join(&[*x, *update]),
            (TensorOp::Trilu { .. }, [x]) => self.of(*x)?.join(Values::Few(vec![0.0])),
            (
                TensorOp::Identity
                | TensorOp::Reshape { .. }
                | TensorOp::Expand { .. }
                | TensorOp::Transpose { .. }
                | TensorOp::Slice { .. }
                | TensorOp::Tile { .. }
                | TensorOp::Reduce { kind: Reduce::Max | Reduce::Min, .. },
                [x],
            ) => self.of(*x),
            (TensorOp::Gather { .. } | TensorOp::GatherNd { .. } | TensorOp::GatherElements { .. }, [x, _]) => {
                self.of(*x)
            }
            (TensorOp::Concat { .. }, all) => self.join(all),
            (TensorOp::Cast { to }, [x]) => {
                let from = self.of(*x)?;
                match to {
                    DType::Bool => from.map(|v| bit(v != 0.0)),
                    DType::I64 => from.map(f64::trunc),
                    DType::F32 => Some(from),
                }
            }
            (TensorOp::Unary(u), [x]) => {
                let from = self.of(*x)?;
                match u {
                    Unary::Not => from.map(|v| bit(v == 0.0)),
                    Unary::Neg => match from {
                        Values::Few(_) => from.map(|v| -v),
                        Values::Between(low, high) => Some(Values::Between(-high, -low)),
                    },
                    Unary::Abs => from.map(f64::abs),
                    Unary::Floor => from.map(f64::floor),
                    Unary::Ceil => from.map(f64::ceil),
                    Unary::Round => from.map(f64::round_ties_even),
                    Unary::Sign => from.map(|v| if v == 0.0 { 0.0 } else { v.signum() }),
                    Unary::Sqrt
                    | Unary::Reciprocal
                    | Unary::Exp
                    | Unary::Cos
                    | Unary::Sin
                    | Unary::IsNan
                    | Unary::Log
                    | Unary::Tanh
                    | Unary::Sigmoid
                    | Unary::Erf => None,
                }
            }
            (TensorOp::Binary(b), [x, y]) => {
                let (x, y) = (self.of(*x)?, self.of(*y)?);
                combined(*b, &x, &y, float)
            }
            _ => None,
        }
    }

    /// A choice. Where one of the two is what the condition was made of, it is chosen where it is 0, or where it is not.
    fn chosen(&mut self, c: ValueId, a: ValueId, b: ValueId) -> Option<Values> {
        let source = match self.graph.op(c) {
            Some(Op::Tensor(TensorOp::Cast { to: DType::Bool })) => self.graph.operand(c, 0),
            _ => None,
        };
        let (mut yes, mut no) = (self.of(a)?, self.of(b)?);
        if source == Some(a) {
            yes = yes.only(|x| x != 0.0);
        }
        if source == Some(b) {
            no = no.only(|x| x == 0.0);
        }
        yes.join(no)
    }
}

fn bit(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn elements(tensor: &Tensor) -> Option<Values> {
    match tensor.data() {
        Data::F32(v) => Values::of(v.iter().map(|x| f64::from(*x))),
        Data::I64(v) => Values::of(v.iter().map(|x| *x as f64)),
        Data::Bool(v) => Values::of(v.iter().map(|x| bit(*x))),
    }
}

fn combined(op: Binary, x: &Values, y: &Values, float: bool) -> Option<Values> {
    let element = |a: f64, b: f64| {
        let result = match op {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div if float => a / b,
            Binary::Div => (a / b).trunc(),
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::And => bit(a != 0.0 && b != 0.0),
            Binary::Or => bit(a != 0.0 || b != 0.0),
            Binary::Equal => bit(a == b),
            Binary::Less => bit(a < b),
            Binary::LessOrEqual => bit(a <= b),
            Binary::Greater => bit(a > b),
            Binary::GreaterOrEqual => bit(a >= b),
            Binary::Mod | Binary::Pow => f64::NAN,
        };
        // Sums, products and quotients of single precision are exact enough in double to be rounded once.
        match float {
            true => f64::from(result as f32),
            false if result.abs() > EXACT => f64::NAN,
            false => result,
        }
    };
    match (x, y) {
        (Values::Few(a), Values::Few(b)) => Values::of(a.iter().flat_map(|a| b.iter().map(|b| element(*a, *b)))),
        // All of these are maximum and least at the ends of their operands.
        _ if matches!(op, Binary::Add | Binary::Sub | Binary::Mul | Binary::Max | Binary::Min) => {
            let ends = [(x.low(), y.low()), (x.low(), y.high()), (x.high(), y.low()), (x.high(), y.high())];
            let ends = Values::of(ends.into_iter().map(|(a, b)| element(a, b)))?;
            Some(Values::Between(ends.low(), ends.high()))
        }
        _ => None,
    }
}
