//! Operators of the typed graph, and the roles of inputs and outputs.

use ombra_ir::Dim;
use ombra_ir::plain::{self, Binary, DType, Tensor, Unary};

use super::Owner;

/// What an input of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputRole {
    /// The prompt's tokens, `[batch, seq]`: the client's.
    TokenIds,
    /// Which positions count, `[batch, past + seq]`: public.
    AttentionMask,
    /// Positions of the tokens, `[batch, seq]`: public.
    PositionIds,
    /// Keys of earlier tokens, `[batch, heads, past, head size]`: the client's, or state.
    PastKey {
        /// Number of the layer.
        layer: u32,
    },
    /// Values of earlier tokens, `[batch, heads, past, head size]`: the client's, or state.
    PastValue {
        /// Number of the layer.
        layer: u32,
    },
    /// Embeddings in place of tokens: the client's.
    Embeddings,
    /// Declared public by the user: everybody learns its contents.
    Public,
    /// Any other, whatever its element type: the client's.
    Other,
}

impl InputRole {
    /// Who knows an input of this role; the element type says nothing about that.
    pub fn owner(self, _: DType) -> Owner {
        match self {
            InputRole::AttentionMask | InputRole::PositionIds | InputRole::Public => Owner::Public,
            InputRole::TokenIds
            | InputRole::PastKey { .. }
            | InputRole::PastValue { .. }
            | InputRole::Embeddings
            | InputRole::Other => Owner::Client,
        }
    }

    /// Name as printed.
    pub fn name(self) -> &'static str {
        match self {
            InputRole::TokenIds => "token_ids",
            InputRole::AttentionMask => "attention_mask",
            InputRole::PositionIds => "position_ids",
            InputRole::PastKey { .. } => "past_key",
            InputRole::PastValue { .. } => "past_value",
            InputRole::Embeddings => "embeddings",
            InputRole::Public => "public",
            InputRole::Other => "other",
        }
    }
}

/// What an output of the model is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OutputRole {
    /// Scores of the vocabulary, `[batch, seq, vocabulary]`.
    Logits,
    /// Keys of all tokens so far: the past input, continued.
    PresentKey {
        /// Number of the layer.
        layer: u32,
        /// Name of the input it continues, when it is its concatenation with new keys.
        past: Option<String>,
    },
    /// Values of all tokens so far: the past input, continued.
    PresentValue {
        /// Number of the layer.
        layer: u32,
        /// Name of the input it continues, when it is its concatenation with new values.
        past: Option<String>,
    },
    /// Any other.
    Other,
}

/// What takes the place of the exponential in [`Op::RatioSoftmax`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numerator {
    /// `max(x, 0)`.
    Relu,
    /// `(x + shift)²`.
    Square {
        /// Added to every score.
        shift: f32,
    },
}

/// An operator with its attributes. Axes are non-negative and within the rank. Operands are named in slot order.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// An input of the model.
    Input {
        /// Name in the ONNX file.
        name: String,
        /// What it is.
        role: InputRole,
    },
    /// A floating-point initializer of two elements or more; its data stay in the ONNX file.
    Weight {
        /// Name of the initializer.
        name: String,
        /// The last two axes are exchanged.
        transposed: bool,
    },
    /// A public constant: structure, scalars, tables.
    Const(Tensor),
    /// An operator on values of one owner, which that owner evaluates; public unless an operand is the client's.
    Public(plain::Op),
    /// Matrix product of a and b, with ONNX's batches.
    MatMul,
    /// a + b with broadcasting.
    Add,
    /// a - b with broadcasting.
    Sub,
    /// a · b with broadcasting.
    Mul,
    /// a / b with broadcasting.
    Div,
    /// -x.
    Neg,
    /// x to a constant power.
    Pow(f32),
    /// Square root.
    Sqrt,
    /// 1/x.
    Reciprocal,
    /// Hyperbolic tangent.
    Tanh,
    /// 1/(1 + e^-x).
    Sigmoid,
    /// Error function.
    Erf,
    /// max(x, 0).
    Relu,
    /// min(max(x, low), high).
    Clamp {
        /// Least result.
        low: f32,
        /// Maximum result, not below `low`.
        high: f32,
    },
    /// e^x.
    Exp,
    /// x·Φ(x), exactly or by the tanh approximation.
    Gelu {
        /// The approximation.
        tanh: bool,
    },
    /// x·sigmoid(x).
    Silu,
    /// Softmax along an axis.
    Softmax {
        /// The axis.
        axis: usize,
    },
    /// Softmax of operand 0 along an axis over the positions where operand 1, a public bool tensor that broadcasts to
    /// operand 0, holds; 0 elsewhere, and 0 in rows where it holds nowhere.
    MaskedSoftmax {
        /// The axis.
        axis: usize,
    },
    /// `g(x) / (Σ g(x) + eps)` along an axis, where `g` is the numerator: what takes the place of softmax in models that are
    /// trained for MPC. Over the positions where operand 1, a public bool tensor that broadcasts to operand 0, holds, or
    /// over all without it; 0 elsewhere, and 0 where the divisor is 0.
    RatioSoftmax {
        /// The axis.
        axis: usize,
        /// `g`.
        numerator: Numerator,
        /// Added to the sum.
        eps: f32,
    },
    /// `square · x² + linear · x + constant`.
    Quadratic {
        /// Factor of x².
        square: f32,
        /// Factor of x.
        linear: f32,
        /// What is added.
        constant: f32,
    },
    /// A norm without its division: x · w, or (x - mean) · w where it is centred, + b along the last axis; operands x, w
    /// and, when there is one, b.
    AffineNorm {
        /// Whether the mean is taken away.
        centred: bool,
    },
    /// x / sqrt(mean(x²) + eps) · w along the last axis; operands x, w.
    RmsNorm {
        /// Added to the mean.
        eps: f32,
    },
    /// (x - mean) / sqrt(variance + eps) · w + b along the last axis; operands x, w and, when there is one, b.
    LayerNorm {
        /// Added to the variance.
        eps: f32,
    },
    /// Mean over axes.
    ReduceMean {
        /// Ascending.
        axes: Vec<usize>,
        /// Whether reduced axes stay with size 1.
        keepdims: bool,
    },
    /// Sum over axes.
    ReduceSum {
        /// Ascending.
        axes: Vec<usize>,
        /// Whether reduced axes stay with size 1.
        keepdims: bool,
    },
    /// Maximum over axes.
    ReduceMax {
        /// Ascending.
        axes: Vec<usize>,
        /// Whether reduced axes stay with size 1.
        keepdims: bool,
    },
    /// The same elements in another shape.
    Reshape {
        /// Shape of the result.
        shape: Vec<Dim>,
    },
    /// Permutation of the axes.
    Transpose {
        /// Axis `k` of the result is axis `perm[k]` of the operand.
        perm: Vec<usize>,
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
    /// Operands side by side.
    Concat {
        /// Along this axis.
        axis: usize,
    },
    /// Broadcast.
    Expand {
        /// Shape of the result.
        shape: Vec<Dim>,
    },
    /// Rows of operand 0 chosen by operand 1, an integer tensor: an embedding when that is the client's.
    Gather {
        /// Axis of operand 0 that is indexed.
        axis: usize,
    },
    /// Operand 1 where operand 0, a bool tensor, holds, otherwise operand 2; with broadcasting.
    Where,
    /// Larger of a and b with broadcasting.
    Max,
    /// Smaller of a and b with broadcasting.
    Min,
    /// Whether x is no number.
    IsNan,
    /// -1, 0 or 1.
    Sign,
    /// ln x.
    Log,
    /// ln(1 + e^x).
    Softplus,
}

impl Op {
    /// Name as printed.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input { .. } => "input",
            Op::Weight { .. } => "weight",
            Op::Const(_) => "const",
            Op::Public(op) => op.name(),
            Op::MatMul => "matmul",
            Op::Add => "add",
            Op::Sub => "sub",
            Op::Mul => "mul",
            Op::Div => "div",
            Op::Neg => "neg",
            Op::Pow(_) => "pow",
            Op::Sqrt => "sqrt",
            Op::Reciprocal => "reciprocal",
            Op::Tanh => "tanh",
            Op::Sigmoid => "sigmoid",
            Op::Erf => "erf",
            Op::Relu => "relu",
            Op::Clamp { .. } => "clamp",
            Op::Exp => "exp",
            Op::Gelu { .. } => "gelu",
            Op::Silu => "silu",
            Op::Softmax { .. } => "softmax",
            Op::MaskedSoftmax { .. } => "masked_softmax",
            Op::RatioSoftmax { .. } => "ratio_softmax",
            Op::Quadratic { .. } => "quadratic",
            Op::AffineNorm { .. } => "affine_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::LayerNorm { .. } => "layer_norm",
            Op::ReduceMean { .. } => "reduce_mean",
            Op::ReduceSum { .. } => "reduce_sum",
            Op::ReduceMax { .. } => "reduce_max",
            Op::Reshape { .. } => "reshape",
            Op::Transpose { .. } => "transpose",
            Op::Slice { .. } => "slice",
            Op::Concat { .. } => "concat",
            Op::Expand { .. } => "expand",
            Op::Gather { .. } => "gather",
            Op::Where => "where",
            Op::Max => "max",
            Op::Min => "min",
            Op::IsNan => "is_nan",
            Op::Sign => "sign",
            Op::Log => "log",
            Op::Softplus => "softplus",
        }
    }

    /// Whether every element of the result is one of operand 0, in another place, and none of it is left out.
    pub fn moves_all(&self) -> bool {
        use plain::Op as P;
        matches!(
            self,
            Op::Reshape { .. }
                | Op::Transpose { .. }
                | Op::Expand { .. }
                | Op::Public(P::Identity | P::Reshape { .. } | P::Transpose { .. } | P::Expand { .. })
        )
    }

    /// Whether every element of the result is one of operand 0, in another place.
    pub fn moves(&self) -> bool {
        use plain::Op as P;
        let picks =
            matches!(self, Op::Slice { .. } | Op::Gather { .. } | Op::Public(P::Slice { .. } | P::Gather { .. }));
        picks || self.moves_all()
    }

    /// The same operator on public tensors, for those that have one with the same operands.
    pub fn to_plain(&self) -> Option<plain::Op> {
        let reduce = |kind, axes: &Vec<usize>, keepdims: &bool| plain::Op::Reduce {
            kind,
            axes: axes.clone(),
            keepdims: *keepdims,
        };
        Some(match self {
            Op::Const(tensor) => plain::Op::Constant(tensor.clone()),
            Op::Public(op) => op.clone(),
            Op::MatMul => plain::Op::MatMul,
            Op::Add => plain::Op::Binary(Binary::Add),
            Op::Sub => plain::Op::Binary(Binary::Sub),
            Op::Mul => plain::Op::Binary(Binary::Mul),
            Op::Div => plain::Op::Binary(Binary::Div),
            Op::Max => plain::Op::Binary(Binary::Max),
            Op::Min => plain::Op::Binary(Binary::Min),
            Op::Neg => plain::Op::Unary(Unary::Neg),
            Op::Sqrt => plain::Op::Unary(Unary::Sqrt),
            Op::Reciprocal => plain::Op::Unary(Unary::Reciprocal),
            Op::Exp => plain::Op::Unary(Unary::Exp),
            Op::IsNan => plain::Op::Unary(Unary::IsNan),
            Op::Tanh => plain::Op::Unary(Unary::Tanh),
            Op::Sigmoid => plain::Op::Unary(Unary::Sigmoid),
            Op::Erf => plain::Op::Unary(Unary::Erf),
            Op::Sign => plain::Op::Unary(Unary::Sign),
            Op::Log => plain::Op::Unary(Unary::Log),
            Op::ReduceMean { axes, keepdims } => reduce(plain::Reduce::Mean, axes, keepdims),
            Op::ReduceSum { axes, keepdims } => reduce(plain::Reduce::Sum, axes, keepdims),
            Op::ReduceMax { axes, keepdims } => reduce(plain::Reduce::Max, axes, keepdims),
            Op::Reshape { shape } => plain::Op::Reshape { shape: shape.clone() },
            Op::Transpose { perm } => plain::Op::Transpose { perm: perm.clone() },
            Op::Slice { axis, start, len, step } => {
                plain::Op::Slice { axis: *axis, start: start.clone(), len: len.clone(), step: *step }
            }
            Op::Concat { axis } => plain::Op::Concat { axis: *axis },
            Op::Expand { shape } => plain::Op::Expand { shape: shape.clone() },
            Op::Gather { axis } => plain::Op::Gather { axis: *axis },
            Op::Where => plain::Op::Where,
            Op::Input { .. }
            | Op::Weight { .. }
            | Op::Pow(_)
            | Op::Relu
            | Op::Clamp { .. }
            | Op::Gelu { .. }
            | Op::Silu
            | Op::Softplus
            | Op::Softmax { .. }
            | Op::MaskedSoftmax { .. }
            | Op::RatioSoftmax { .. }
            | Op::Quadratic { .. }
            | Op::AffineNorm { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. } => return None,
        })
    }
}
