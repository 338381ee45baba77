//! Operators on public tensors.

use serde::{Deserialize, Serialize};

use super::{DType, Tensor};
use crate::dim::Dim;

/// One operator with its attributes. Axes are non-negative and within the rank, sizes are symbolic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// The tensor itself; no operand.
    Constant(Tensor),
    /// Symbolic sizes as integers; no operand.
    Sizes {
        /// Shape of the result.
        shape: Vec<usize>,
        /// Its elements, which may be negative.
        values: Vec<Dim>,
    },
    /// `start, start + step, …`: `len` integers; no operand.
    Iota {
        /// First element.
        start: Dim,
        /// Number of elements.
        len: Dim,
        /// Difference of neighbours.
        step: i64,
    },
    /// `Range` of three scalars: start, limit, step. Its length depends on values.
    Range,
    /// The operand.
    Identity,
    /// Conversion: floats to integers truncate and saturate, numbers to booleans compare with zero.
    Cast {
        /// Type of the result.
        to: DType,
    },
    /// The same elements in another shape.
    Reshape {
        /// Shape of the result.
        shape: Vec<Dim>,
    },
    /// Broadcast to `shape`, which is the shape of the result.
    Expand {
        /// Shape of the result.
        shape: Vec<Dim>,
    },
    /// Permutation of the axes.
    Transpose {
        /// Axis `k` of the result is axis `perm[k]` of the operand.
        perm: Vec<usize>,
    },
    /// Operands side by side.
    Concat {
        /// Along this axis.
        axis: usize,
    },
    /// `len` elements of one axis.
    Slice {
        /// The axis.
        axis: usize,
        /// First index.
        start: Dim,
        /// Number of indices.
        len: Dim,
        /// Difference of neighbouring indices, not zero.
        step: i64,
    },
    /// Repetition along each axis.
    Tile {
        /// How often, one number an axis.
        repeats: Vec<Dim>,
    },
    /// The upper or lower triangle of the last two axes; zero elsewhere.
    Trilu {
        /// Upper rather than lower.
        upper: bool,
        /// Diagonal the triangle starts at.
        k: i64,
    },
    /// `shape` filled with one element; no operand.
    ConstantOfShape {
        /// Shape of the result.
        shape: Vec<Dim>,
        /// A tensor of one element.
        value: Tensor,
    },
    /// Rows of operand 0 chosen by operand 1.
    Gather {
        /// Axis of operand 0 that is indexed.
        axis: usize,
    },
    /// Slices of operand 0 chosen by index tuples, the last axis of operand 1.
    GatherNd {
        /// Number of leading axes that both share.
        batch_dims: usize,
    },
    /// Elements of operand 0 chosen by an index each.
    GatherElements {
        /// Axis that is indexed.
        axis: usize,
    },
    /// Operand 0 with the slices at index tuples (operand 1) replaced by operand 2.
    ScatterNd,
    /// One operand, element by element.
    Unary(Unary),
    /// Two operands, element by element with broadcasting.
    Binary(Binary),
    /// Operand 1 where operand 0 holds, otherwise operand 2; with broadcasting.
    Where,
    /// Operand 0 limited to operands 1 and 2, which are scalars.
    Clip,
    /// Matrix product with ONNX's (numpy's) treatment of vectors and batches.
    MatMul,
    /// Running sums.
    CumSum {
        /// Along this axis.
        axis: usize,
        /// Without the element itself.
        exclusive: bool,
        /// From the end.
        reverse: bool,
    },
    /// Reduction over axes.
    Reduce {
        /// Which.
        kind: Reduce,
        /// Ascending.
        axes: Vec<usize>,
        /// Whether reduced axes stay with size 1.
        keepdims: bool,
    },
    /// Index of the maximum element along the last axis, which goes; the first of equal ones.
    ArgMax,
}

/// Element-wise operators of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unary {
    /// Negation of a boolean.
    Not,
    /// Negation of a number.
    Neg,
    /// Absolute value.
    Abs,
    /// Square root.
    Sqrt,
    /// 1/x.
    Reciprocal,
    /// e^x.
    Exp,
    /// Cosine.
    Cos,
    /// Sine.
    Sin,
    /// Largest integer not above.
    Floor,
    /// Whether a float is no number.
    IsNan,
    /// Smallest integer not below.
    Ceil,
    /// Nearest integer, the even one of two.
    Round,
    /// -1, 0 or 1; a zero keeps its sign.
    Sign,
    /// ln x.
    Log,
    /// Hyperbolic tangent.
    Tanh,
    /// 1/(1 + e^-x).
    Sigmoid,
    /// Error function.
    Erf,
}

/// Element-wise operators of two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Binary {
    /// Sum; integers wrap.
    Add,
    /// Difference; integers wrap.
    Sub,
    /// Product; integers wrap.
    Mul,
    /// Quotient; integers truncate, and division by zero is an error.
    Div,
    /// Remainder with the divisor's sign (`fmod = 0`).
    Mod,
    /// Power.
    Pow,
    /// Conjunction.
    And,
    /// Disjunction.
    Or,
    /// Equality.
    Equal,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// Larger of two; no-number wins.
    Max,
    /// Smaller of two; no-number wins.
    Min,
}

/// Reductions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reduce {
    /// Sum.
    Sum,
    /// Sum divided by the number of elements.
    Mean,
    /// Largest.
    Max,
    /// Smallest.
    Min,
    /// Product.
    Prod,
}

impl Op {
    /// Name as in ONNX, in lower case with underscores.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Constant(_) => "constant",
            Op::Sizes { .. } => "sizes",
            Op::Iota { .. } => "iota",
            Op::Range => "range",
            Op::Identity => "identity",
            Op::Cast { .. } => "cast",
            Op::Reshape { .. } => "reshape",
            Op::Expand { .. } => "expand",
            Op::Transpose { .. } => "transpose",
            Op::Concat { .. } => "concat",
            Op::Slice { .. } => "slice",
            Op::Tile { .. } => "tile",
            Op::Trilu { .. } => "trilu",
            Op::ConstantOfShape { .. } => "constant_of_shape",
            Op::Gather { .. } => "gather",
            Op::GatherNd { .. } => "gather_nd",
            Op::GatherElements { .. } => "gather_elements",
            Op::ScatterNd => "scatter_nd",
            Op::Unary(u) => u.name(),
            Op::Binary(b) => b.name(),
            Op::Where => "where",
            Op::Clip => "clip",
            Op::MatMul => "matmul",
            Op::CumSum { .. } => "cum_sum",
            Op::Reduce { kind, .. } => kind.name(),
            Op::ArgMax => "arg_max",
        }
    }

    /// Number of operands; `None` for one or more.
    pub fn arity(&self) -> Option<usize> {
        match self {
            Op::Constant(_) | Op::Sizes { .. } | Op::Iota { .. } | Op::ConstantOfShape { .. } => Some(0),
            Op::Identity
            | Op::Cast { .. }
            | Op::Reshape { .. }
            | Op::Expand { .. }
            | Op::Transpose { .. }
            | Op::Slice { .. }
            | Op::Tile { .. }
            | Op::Trilu { .. }
            | Op::Unary(_)
            | Op::CumSum { .. }
            | Op::Reduce { .. }
            | Op::ArgMax => Some(1),
            Op::Gather { .. } | Op::GatherNd { .. } | Op::GatherElements { .. } | Op::Binary(_) | Op::MatMul => Some(2),
            Op::Range | Op::ScatterNd | Op::Where | Op::Clip => Some(3),
            Op::Concat { .. } => None,
        }
    }
}

impl Unary {
    /// All of them.
    pub const ALL: [Unary; 17] = [
        Unary::Not,
        Unary::Neg,
        Unary::Abs,
        Unary::Sqrt,
        Unary::Reciprocal,
        Unary::Exp,
        Unary::Cos,
        Unary::Sin,
        Unary::Floor,
        Unary::IsNan,
        Unary::Ceil,
        Unary::Round,
        Unary::Sign,
        Unary::Log,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Erf,
    ];

    /// Name as in ONNX, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Unary::Not => "not",
            Unary::Neg => "neg",
            Unary::Abs => "abs",
            Unary::Sqrt => "sqrt",
            Unary::Reciprocal => "reciprocal",
            Unary::Exp => "exp",
            Unary::Cos => "cos",
            Unary::Sin => "sin",
            Unary::Floor => "floor",
            Unary::IsNan => "is_nan",
            Unary::Ceil => "ceil",
            Unary::Round => "round",
            Unary::Sign => "sign",
            Unary::Log => "log",
            Unary::Tanh => "tanh",
            Unary::Sigmoid => "sigmoid",
            Unary::Erf => "erf",
        }
    }
}

impl Binary {
    /// Name as in ONNX, in lower case with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::Mod => "mod",
            Binary::Pow => "pow",
            Binary::And => "and",
            Binary::Or => "or",
            Binary::Equal => "equal",
            Binary::Less => "less",
            Binary::LessOrEqual => "less_or_equal",
            Binary::Greater => "greater",
            Binary::GreaterOrEqual => "greater_or_equal",
            Binary::Max => "max",
            Binary::Min => "min",
        }
    }

    /// Whether the result is a boolean for operands of numbers.
    pub fn is_comparison(self) -> bool {
        match self {
            Binary::Equal | Binary::Less | Binary::LessOrEqual | Binary::Greater | Binary::GreaterOrEqual => true,
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Div
            | Binary::Mod
            | Binary::Pow
            | Binary::And
            | Binary::Or
            | Binary::Max
            | Binary::Min => false,
        }
    }
}

impl Reduce {
    /// Name as in ONNX, in lower case with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Reduce::Sum => "reduce_sum",
            Reduce::Mean => "reduce_mean",
            Reduce::Max => "reduce_max",
            Reduce::Min => "reduce_min",
            Reduce::Prod => "reduce_prod",
        }
    }
}
