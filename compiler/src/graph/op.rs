//! Operators of the typed graph, and the roles of inputs and outputs.

use ombra_ir::plain::{Binary, Reduce, Unary};

pub use ombra_ir::plain::Op as TensorOp;
pub use ombra_ir::plan::InputRole;

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

impl OutputRole {
    /// Name as printed, without the layer and what it continues.
    pub fn name(&self) -> &'static str {
        match self {
            OutputRole::Logits => "logits",
            OutputRole::PresentKey { .. } => "present_key",
            OutputRole::PresentValue { .. } => "present_value",
            OutputRole::Other => "other",
        }
    }
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
    /// A tensor operator: on public tensors, evaluated by everybody; on those of one owner, by that owner; on secret ones,
    /// what lowering makes of it.
    Tensor(TensorOp),
    /// x to a constant power.
    Pow(f32),
    /// max(x, 0).
    Relu,
    /// min(max(x, low), high).
    Clamp {
        /// Least result.
        low: f32,
        /// Maximum result, not below `low`.
        high: f32,
    },
    /// x·Φ(x), exactly or by the tanh approximation.
    Gelu {
        /// The approximation.
        tanh: bool,
    },
    /// x·sigmoid(x).
    Silu,
    /// ln(1 + e^x).
    Softplus,
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
}

/// Names for tensor operators without attributes, in patterns too.
macro_rules! named {
    ($($name:ident = $op:expr;)*) => {
        impl Op {
            $( #[doc = concat!("`", stringify!($op), "`.")] pub const $name: Op = Op::Tensor($op); )*
        }
    };
}

named! {
    ABS = TensorOp::Unary(Unary::Abs);
    ADD = TensorOp::Binary(Binary::Add);
    DIV = TensorOp::Binary(Binary::Div);
    ERF = TensorOp::Unary(Unary::Erf);
    EXP = TensorOp::Unary(Unary::Exp);
    IS_NAN = TensorOp::Unary(Unary::IsNan);
    LOG = TensorOp::Unary(Unary::Log);
    MATMUL = TensorOp::MatMul;
    MAX = TensorOp::Binary(Binary::Max);
    MIN = TensorOp::Binary(Binary::Min);
    MUL = TensorOp::Binary(Binary::Mul);
    NEG = TensorOp::Unary(Unary::Neg);
    RECIPROCAL = TensorOp::Unary(Unary::Reciprocal);
    SIGMOID = TensorOp::Unary(Unary::Sigmoid);
    SIGN = TensorOp::Unary(Unary::Sign);
    SQRT = TensorOp::Unary(Unary::Sqrt);
    SUB = TensorOp::Binary(Binary::Sub);
    TANH = TensorOp::Unary(Unary::Tanh);
    WHERE = TensorOp::Where;
}

impl Op {
    /// Name as printed.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Input { .. } => "input",
            Op::Weight { .. } => "weight",
            Op::Tensor(TensorOp::Constant(_)) => "const",
            Op::Tensor(op) => op.name(),
            Op::Pow(_) => "pow",
            Op::Relu => "relu",
            Op::Clamp { .. } => "clamp",
            Op::Gelu { .. } => "gelu",
            Op::Silu => "silu",
            Op::Softplus => "softplus",
            Op::Softmax { .. } => "softmax",
            Op::MaskedSoftmax { .. } => "masked_softmax",
            Op::RatioSoftmax { .. } => "ratio_softmax",
            Op::Quadratic { .. } => "quadratic",
            Op::AffineNorm { .. } => "affine_norm",
            Op::RmsNorm { .. } => "rms_norm",
            Op::LayerNorm { .. } => "layer_norm",
        }
    }

    /// The name of an input or of a weight: a value that no operator makes.
    pub fn given(&self) -> Option<&str> {
        match self {
            Op::Input { name, .. } | Op::Weight { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Whether every element of the result is one of operand 0, in another place, and none of it is left out.
    pub fn moves_all(&self) -> bool {
        use TensorOp as T;
        matches!(self, Op::Tensor(T::Identity | T::Reshape { .. } | T::Transpose { .. } | T::Expand { .. }))
    }

    /// Whether every element of the result is one of operand 0, in another place.
    pub fn moves(&self) -> bool {
        matches!(self, Op::Tensor(TensorOp::Slice { .. } | TensorOp::Gather { .. })) || self.moves_all()
    }

    /// The operator on tensors, if it is one.
    pub fn tensor(&self) -> Option<&TensorOp> {
        match self {
            Op::Tensor(op) => Some(op),
            _ => None,
        }
    }

    /// Whether a float operator has a meaning of its own on values of one party: where it has none, what it takes of the
    /// weights is structure and put in the clear.
    pub fn is_private(&self) -> bool {
        use TensorOp as T;
        match self {
            Op::Tensor(op) => match op {
                T::MatMul
                | T::Reshape { .. }
                | T::Transpose { .. }
                | T::Slice { .. }
                | T::Concat { .. }
                | T::Expand { .. }
                | T::Gather { .. }
                | T::Where => true,
                T::Unary(u) => matches!(
                    u,
                    Unary::Neg
                        | Unary::Sqrt
                        | Unary::Reciprocal
                        | Unary::Exp
                        | Unary::IsNan
                        | Unary::Tanh
                        | Unary::Sigmoid
                        | Unary::Erf
                        | Unary::Sign
                        | Unary::Log
                ),
                T::Binary(b) => {
                    matches!(b, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Max | Binary::Min)
                }
                T::Reduce { kind, .. } => matches!(kind, Reduce::Mean | Reduce::Sum | Reduce::Max),
                _ => false,
            },
            _ => true,
        }
    }
}
