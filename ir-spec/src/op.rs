//! The operations of the MPC IR.
//!
//! Every op has at most one result, and is known by its index in the module: op id and value id are one number.
//! `Local` ops send nothing. `Interactive` ops are what a setting implements with messages.
//! `Composite` ops have an expansion into the others and are gone after the `expanded` stage.

use crate::dim::Dim;
use serde::{Deserialize, Serialize};

/// Ring bits of the result of `exp_digits`.
pub const EXP_RING: u8 = 32;
/// Fraction bits of the result of `exp_digits`.
pub const EXP_SCALE: u8 = 29;
/// Bits above the fraction that `exp_digits` looks at: it takes its operand modulo `2^6`.
pub const EXP_WINDOW: u8 = 6;
/// `exp_digits` holds from `−2^5` on.
pub const EXP_LOWEST: f64 = -32.0;

/// An operation with its attributes. Operands are listed in the module beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    // Sources.
    /// Output `value` of the module's public program. Result: plain, public.
    Public {
        /// Index among the public program's outputs.
        value: u32,
    },
    /// A public f32 tensor rounded to the ring: `round(x · 2^scale)`. Operand: plain f32, public.
    Encode {
        /// Ring bits.
        bits: u8,
        /// Fraction bits.
        scale: u8,
    },
    /// A tensor of `weights.safetensors` in the public folder, rounded to the ring.
    PublicWeight {
        /// Its name in the file.
        name: String,
    },
    /// A tensor of the server's own weights file, rounded to the ring and shared once for many runs.
    Weight {
        /// Its name in the file.
        name: String,
    },
    /// A float tensor that the client knows (a border of its plaintext region or a given input), rounded and shared.
    Input {
        /// Index in the module's inputs.
        slot: u32,
    },
    /// Integers that the client knows and keeps in the clear, such as token ids.
    ClientInts {
        /// Index in the module's inputs.
        slot: u32,
    },
    /// The present content of a state slot, such as a key or value cache.
    State {
        /// Index in the module's states.
        slot: u32,
    },
    /// Fresh uniform bits that no party knows: of the three bits that make each, every party knows two.
    ///
    /// The components come from the pair keys, so nothing is sent, and one party's view says nothing of the third. Nobody
    /// chooses the outcome: whatever a party takes for the keys that it draws, the third bit is of a key that it never sees.
    Random {
        /// The shape.
        shape: Vec<Dim>,
    },

    // Local arithmetic. Operands broadcast as in ONNX.
    /// `a + b`, equal scales. Public with secret is allowed; the weaker sharing wins.
    Add,
    /// `a − b`, equal scales.
    Sub,
    /// `−a`.
    Neg,
    /// `a · k` for an integer; the scale stays.
    MulInt {
        /// The factor.
        k: i64,
    },
    /// `a + k` for an integer in units of the ring; the scale stays.
    AddInt {
        /// The summand.
        k: i64,
    },
    /// `a · 2^by` with the scale raised by `by`: the same real value, finer.
    Upscale {
        /// Added fraction bits.
        by: u8,
    },
    /// The same integers read with another scale: the real value is multiplied by `2^(old − new)`.
    SetScale {
        /// The new fraction bits.
        scale: u8,
    },
    /// `a ∘ b`; scales add. Shared by shared gives `sum3`; a secret by a public operand keeps its sharing.
    Mul,
    /// Matrix product over the last two axes, batched as in ONNX; scales add. Shared by shared gives `sum3`,
    /// shared by public gives `sum2`.
    MatMul {
        /// The right operand is given with its last two axes exchanged.
        trans_b: bool,
    },
    /// Sum over one axis, which stays with size 1.
    ReduceSum {
        /// The axis.
        axis: u8,
    },
    /// The low `bits` of the ring: a local homomorphism to a smaller ring.
    Narrow {
        /// The new ring bits.
        bits: u8,
    },
    /// Divides a sharing by `2^by`, in a ring of `by` bits less: every party shifts the components it holds, none sends.
    ///
    /// The result is `⌊x / 2^by⌋` less 0, 1 or 2, as the shares decide, modulo the smaller ring: components
    /// `x_i = 2^by h_i + l_i` add up to `x` modulo the larger ring, so the `h_i` do to `(x − Σ l_i) / 2^by` modulo the
    /// smaller one. No wrap matters, and so no bound. Uniform components give `x / 2^by − 3/2` on average with a variance
    /// of 1/4. No rounds, no bits; semi-honest: nobody sees more than the shares that he had, which his own view simulates.
    Cut {
        /// Dropped fraction bits, a multiple of 8.
        by: u8,
    },

    // Local movement.
    /// The same elements in another shape.
    Reshape {
        /// The new shape.
        shape: Vec<Dim>,
    },
    /// Axes permuted: result axis `i` is operand axis `perm[i]`.
    Transpose {
        /// The permutation.
        perm: Vec<u8>,
    },
    /// Elements `start..start + len` along an axis.
    Slice {
        /// The axis.
        axis: u8,
        /// First element.
        start: Dim,
        /// Number of elements.
        len: Dim,
    },
    /// Operands one after another along an axis.
    Concat {
        /// The axis.
        axis: u8,
    },
    /// Broadcast to a shape.
    Expand {
        /// The shape.
        shape: Vec<Dim>,
    },
    /// Rows of operand 0 along an axis, picked by the public integers of operand 1.
    Gather {
        /// The axis.
        axis: u8,
    },

    // Ragged rows: the entries of `[…, columns]` that a public mask keeps, row after row.
    /// The entries of operand 0 where the public boolean operand 1, broadcast to its shape, is true; 1-D.
    Pack,
    /// Back from packed entries (operand 0) to the shape, zero where the public mask (operand 1) is false.
    Unpack {
        /// The dense shape.
        shape: Vec<Dim>,
    },
    /// Sum of every row's packed entries (operand 0; operand 1 the mask): one element a row.
    RowSum {
        /// The dense shape that the mask is broadcast to.
        shape: Vec<Dim>,
    },
    /// One element a row (operand 0) repeated over the row's packed entries (operand 1 the mask).
    RowExpand {
        /// The dense shape that the mask is broadcast to.
        shape: Vec<Dim>,
    },

    // Interactive.
    /// Divides by `2^by`: the result is the floor or one more. Operand: any secret form with `bound ≤ bits − 2`.
    Truncate {
        /// Dropped fraction bits.
        by: u8,
    },
    /// A sum turned into shares.
    Reshare,
    /// The same value in a larger ring. Operand: any secret form with `bound ≤ bits − 2` of its own ring.
    Extend {
        /// The new ring bits.
        bits: u8,
    },
    /// The sign bit of a value that fits in `width` bits: 1 where it is negative.
    Msb {
        /// Bits that hold the value in two's complement: `bound ≤ width − 1`, or `width − 2` where bits are dropped.
        width: u8,
        /// Low bits that are not looked at: values in `[0, 2^drop)` may count as negative.
        drop: u8,
    },
    /// Exclusive or of bits (local).
    Xor,
    /// Complement of bits (local).
    Not,
    /// And of bits.
    And,
    /// Bits as ring elements 0 and 1 of scale 0.
    BitToRing {
        /// Ring bits.
        bits: u8,
    },
    /// `e^x` for `−32 ≤ x ≤ 1/2`, in a ring of [`EXP_RING`] bits with [`EXP_SCALE`] fraction bits, 4e-6 at most from it;
    /// any element of that ring elsewhere.
    ExpDigits {
        /// Fraction bits of the operand.
        scale: u8,
        /// Within 1.3e-4 of the result's own size in place of 4e-6 of 1, and right on average down to −18: for sums of many
        /// small ones.
        tail: bool,
    },
    /// Maximum packed entry of every row (operand 0 packed, operand 1 the mask); 0 for an empty row.
    RowMax {
        /// The dense shape that the mask is broadcast to.
        shape: Vec<Dim>,
        /// Bits that hold the difference of two entries: `bound + 2 ≤ width`, or `bound + 3` where bits are dropped.
        width: u8,
        /// Low bits that comparisons do not look at: at every level of the tree the result may fall short by `2^drop`.
        drop: u8,
    },
    /// Index of the maximum element along the last axis, which is dropped; scale 0.
    ArgMax {
        /// Bits that hold the difference of two elements: `bound + 2 ≤ width`.
        width: u8,
    },
    /// Rows of the secret weight table (operand 1, `[v, d]`) at the client's ids (operand 0, `[…]`): `[…, d]`.
    Embed,
    /// Opens operand 0 to the client as output `slot`.
    Reveal {
        /// Index in the module's outputs.
        slot: u32,
    },
    /// Keeps operand 0 as the new content of a state slot (local).
    SetState {
        /// Index in the module's states.
        slot: u32,
    },

    // Composite.
    /// `exp(x)` for `x ≤ max`, zero below `max − 32` and perhaps from there to `max − 16`.
    Exp {
        /// The maximum operand.
        max: i8,
    },
    /// `1/x` for `2^min_log2 ≤ x < 2^max_log2`.
    Reciprocal {
        /// Logarithm of the range's begin.
        min_log2: i8,
        /// Logarithm of the range's end.
        max_log2: i8,
        /// Fraction bits of the result.
        scale: u8,
    },
    /// `a / b` for `2^min_log2 ≤ b < 2^max_log2`.
    Div {
        /// Logarithm of the divisor's least value.
        min_log2: i8,
        /// Logarithm of the end of its range.
        max_log2: i8,
        /// Fraction bits of the result.
        scale: u8,
    },
    /// `√x` for `0 ≤ x < 4^max_log4`, with an absolute error up to `2^min_log4` below `4^min_log4`.
    Sqrt {
        /// Logarithm to base 4 of the begin of the exact range.
        min_log4: i8,
        /// Logarithm to base 4 of the range's end.
        max_log4: i8,
        /// Fraction bits of the result.
        scale: u8,
    },
    /// `1/√x` for `4^min_log4 ≤ x < 4^max_log4`; outside, the nearest bucket's parabola.
    Rsqrt {
        /// Logarithm to base 4 of the range's begin.
        min_log4: i8,
        /// Logarithm to base 4 of the range's end.
        max_log4: i8,
        /// Fraction bits of the result.
        scale: u8,
    },
    /// `ln x` for `2^min_log2 ≤ x < 2^max_log2`.
    Log {
        /// Logarithm to base 2 of the range's begin.
        min_log2: i8,
        /// Logarithm to base 2 of the range's end.
        max_log2: i8,
        /// Fraction bits of the result.
        scale: u8,
    },
    /// Softmax over the last axis of operand 0 among the entries that the public mask (operand 1) keeps.
    Softmax,
    /// `g(x) / (Σ g(x) + eps)` over the last axis of operand 0 among the entries that the public mask (operand 1) keeps,
    /// where `g(x) = max(x + shift, 0)`, or `(x + shift)²`: what takes the place of softmax in models trained for MPC.
    RatioSoftmax {
        /// Whether `g` is the square.
        square: bool,
        /// Added to every score, as the bits of an f32.
        shift: u32,
        /// Added to the sum, as the bits of an f32.
        eps: u32,
        /// Range of the divisor: `2^min_log2 ≤ Σ g(x) + eps < 2^max_log2`. Below it the result is too small.
        min_log2: i8,
        /// End of that range.
        max_log2: i8,
    },
    /// `x · Φ(x)`, or its tanh form `x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    Gelu {
        /// The tanh form.
        tanh: bool,
    },
    /// `x / (1 + e^−x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// The error function.
    Erf,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `x / √(mean(x²) + eps)` over the last axis, for rows of any length below `2^length`, zero among them.
    RmsNorm {
        /// eps, as the bits of an f32.
        eps: u32,
        /// The 2-norm of every row of integers is below `2^length`.
        length: u8,
        /// Fraction bits of the result.
        scale: u8,
    },
    /// `(x − mean) / √(var + eps)` over the last axis, for rows of any length below `2^length`, constant ones among them.
    LayerNorm {
        /// eps, as the bits of an f32.
        eps: u32,
        /// The 2-norm of every row of integers is below `2^length`.
        length: u8,
        /// Fraction bits of the result.
        scale: u8,
    },
}

/// What an op needs from a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Brings a value in.
    Source,
    /// Sends nothing.
    Local,
    /// Sends messages.
    Interactive,
    /// Has an expansion.
    Composite,
}

impl Op {
    /// Name in the text form.
    pub fn name(&self) -> &'static str {
        self.info().0
    }

    /// What it needs from a setting.
    pub fn class(&self) -> Class {
        self.info().1
    }

    /// Number of operands; `None` for any number from one up.
    pub fn arity(&self) -> Option<usize> {
        self.info().2
    }

    fn info(&self) -> (&'static str, Class, Option<usize>) {
        use Class::*;
        match self {
            Op::Public { .. } => ("public", Source, Some(0)),
            Op::Encode { .. } => ("encode", Local, Some(1)),
            Op::PublicWeight { .. } => ("public_weight", Source, Some(0)),
            Op::Weight { .. } => ("weight", Source, Some(0)),
            Op::Input { .. } => ("input", Source, Some(0)),
            Op::ClientInts { .. } => ("client_ints", Source, Some(0)),
            Op::State { .. } => ("state", Source, Some(0)),
            Op::Random { .. } => ("random", Source, Some(0)),
            Op::Add => ("add", Local, Some(2)),
            Op::Sub => ("sub", Local, Some(2)),
            Op::Neg => ("neg", Local, Some(1)),
            Op::MulInt { .. } => ("mul_int", Local, Some(1)),
            Op::AddInt { .. } => ("add_int", Local, Some(1)),
            Op::Upscale { .. } => ("upscale", Local, Some(1)),
            Op::SetScale { .. } => ("set_scale", Local, Some(1)),
            Op::Mul => ("mul", Local, Some(2)),
            Op::MatMul { .. } => ("matmul", Local, Some(2)),
            Op::ReduceSum { .. } => ("reduce_sum", Local, Some(1)),
            Op::Narrow { .. } => ("narrow", Local, Some(1)),
            Op::Cut { .. } => ("cut", Local, Some(1)),
            Op::Reshape { .. } => ("reshape", Local, Some(1)),
            Op::Transpose { .. } => ("transpose", Local, Some(1)),
            Op::Slice { .. } => ("slice", Local, Some(1)),
            Op::Concat { .. } => ("concat", Local, None),
            Op::Expand { .. } => ("expand", Local, Some(1)),
            Op::Gather { .. } => ("gather", Local, Some(2)),
            Op::Pack => ("pack", Local, Some(2)),
            Op::Unpack { .. } => ("unpack", Local, Some(2)),
            Op::RowSum { .. } => ("row_sum", Local, Some(2)),
            Op::RowExpand { .. } => ("row_expand", Local, Some(2)),
            Op::Truncate { .. } => ("truncate", Interactive, Some(1)),
            Op::Reshare => ("reshare", Interactive, Some(1)),
            Op::Extend { .. } => ("extend", Interactive, Some(1)),
            Op::Msb { .. } => ("msb", Interactive, Some(1)),
            Op::Xor => ("xor", Local, Some(2)),
            Op::Not => ("not", Local, Some(1)),
            Op::And => ("and", Interactive, Some(2)),
            Op::BitToRing { .. } => ("bit_to_ring", Interactive, Some(1)),
            Op::ExpDigits { .. } => ("exp_digits", Interactive, Some(1)),
            Op::RowMax { .. } => ("row_max", Interactive, Some(2)),
            Op::ArgMax { .. } => ("arg_max", Interactive, Some(1)),
            Op::Embed => ("embed", Interactive, Some(2)),
            Op::Reveal { .. } => ("reveal", Interactive, Some(1)),
            Op::SetState { .. } => ("set_state", Local, Some(1)),
            Op::Exp { .. } => ("exp", Composite, Some(1)),
            Op::Reciprocal { .. } => ("reciprocal", Composite, Some(1)),
            Op::Div { .. } => ("div", Composite, Some(2)),
            Op::Sqrt { .. } => ("sqrt", Composite, Some(1)),
            Op::Rsqrt { .. } => ("rsqrt", Composite, Some(1)),
            Op::Log { .. } => ("log", Composite, Some(1)),
            Op::Softmax => ("softmax", Composite, Some(2)),
            Op::RatioSoftmax { .. } => ("ratio_softmax", Composite, Some(2)),
            Op::Gelu { .. } => ("gelu", Composite, Some(1)),
            Op::Silu => ("silu", Composite, Some(1)),
            Op::Tanh => ("tanh", Composite, Some(1)),
            Op::Sigmoid => ("sigmoid", Composite, Some(1)),
            Op::Erf => ("erf", Composite, Some(1)),
            Op::Softplus => ("softplus", Composite, Some(1)),
            Op::RmsNorm { .. } => ("rms_norm", Composite, Some(1)),
            Op::LayerNorm { .. } => ("layer_norm", Composite, Some(1)),
        }
    }
}
