//! The operations of the MPC IR: what each of them is stands once, in its [`Description`].
//!
//! Every op has at most one result, and is known by its index in the module: op id and value id are one number.
//! [`ops!`] lists the ops with their attributes; the files beside this one describe them by theme. The printer, the parser,
//! the type rules, the verifier, the reference and the tables of `SPEC.md` read the descriptions. What a setting sends for
//! an op, and the kernel that sends it, are the setting's; what a composite op expands into is the compiler's.

mod bits;
mod composite;
mod interactive;
mod linear;
mod movement;
mod ragged;
mod source;

use crate::curve::Curve;
use crate::diag::Result;
use crate::dim::Dim;
use crate::infer::{Rule, Typing};
use crate::norms::Norms;
use crate::reference::{Evaluation, RefValue};
use crate::settings::Setting;
use crate::text::{Attr, Attribute, Attrs, no_such_op};
use crate::ty::Ty;
use serde::{Deserialize, Serialize};

/// Ring bits of the result of `exp_digits`, at most.
pub const EXP_RING: u8 = 32;
/// Fraction bits of the result of `exp_digits`, at most.
pub const EXP_SCALE: u8 = 29;

/// Ring and fraction bits of the result of `exp_digits`: a byte less, but of a tail, where a setting divides without a
/// message, so that bits that are dropped later are not sent.
pub fn exp_form(setting: Setting, tail: bool) -> (u8, u8) {
    let less = if setting.protocol().divides_freely() && !tail { 8 } else { 0 };
    (EXP_RING - less, EXP_SCALE - less)
}

/// Bits above the fraction that `exp_digits` looks at where a setting has no choice: it takes its operand modulo `2^6`.
pub const EXP_WINDOW: u8 = 6;
/// Bits above the fraction that it may look at.
pub const EXP_WINDOWS: std::ops::RangeInclusive<u8> = 5..=10;

/// `exp_digits` with a window holds from here on: −32 of 64.
pub fn exp_lowest(window: u8) -> f64 {
    -libm::exp2(f64::from(window) - 1.0)
}

/// What the IR says of an op.
///
/// ```text
/// static SOFTPLUS: Description = Description {
///     name: "softplus",
///     bound: "max(x, scale) + 1",
///     constraints: &[ONE_SHARED],
///     infer: |_, t| { … },
///     meaning: Some(|_, e| e.map(softplus)),
///     ..COMPOSITE
/// };
/// ```
pub struct Description {
    /// Name in the text form.
    pub name: &'static str,
    /// What kind of op it is.
    pub class: Class,
    /// Names of its operands, as documents write them; `…` for any number from one up.
    pub operands: &'static [&'static str],
    /// Whether the result's bound is declared, and checked by whoever encodes the value, instead of derived.
    pub declares_bound: bool,
    /// Element, sharing and shape of the result, in words.
    pub result: &'static str,
    /// Bound of the result, in terms of the operands' bounds and the attributes.
    pub bound: &'static str,
    /// Norms of the result in words: size, rows, columns. Empty where nothing is said.
    pub norms: [&'static str; 3],
    /// What must hold, beside what holds for every op; the first one's label is the op's name and `_c1`.
    pub constraints: &'static [Constraint],
    /// The type of the result, but for its norms.
    pub infer: fn(&Op, &Typing) -> Rule<Ty>,
    /// The norms of a result of a type.
    pub derive_norms: NormRule,
    /// The value of the result, in the clear; none where it is given from outside.
    pub meaning: Option<fn(&Op, &Evaluation) -> Result<RefValue>>,
}

/// How the norms of a result come about.
#[derive(Clone, Copy)]
pub enum NormRule {
    /// There are none.
    None,
    /// Rows and columns are declared.
    Declared,
    /// They follow from the op.
    OfOp(fn(&Op, &Typing, &Ty) -> Norms),
    /// They follow from those of the operands, where an operand has any.
    OfOperands(fn(&Op, &Typing, &Ty) -> Norms),
}

/// What kind of op it is, in every setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Brings a value in.
    Source,
    /// Computed by the parties, with or without messages: that is the setting's.
    Core,
    /// Has an expansion into other ops, and is gone after the `expanded` stage.
    Composite,
}

/// What must hold of an op's operands and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constraint {
    /// The code of the diagnostic when it does not hold.
    pub code: &'static str,
    /// What must hold, in words.
    pub says: &'static str,
}

const fn c(code: &'static str, says: &'static str) -> Constraint {
    Constraint { code, says }
}

const SLOT: &str = "E0304";
const ELEMENT: &str = "E0310";
const RING: &str = "E0311";
const SHAPE: &str = "E0312";
const ATTRIBUTE: &str = "E0313";
const SHARING: &str = "E0315";
const LIMIT: &str = "E0321";
const MASK: &str = "E0338";

impl Description {
    /// Number of operands; `None` for any number from one up.
    pub fn arity(&self) -> Option<usize> {
        if self.operands == ["…"] { None } else { Some(self.operands.len()) }
    }

    /// A description that every other one begins with.
    const BLANK: Description = Description {
        name: "",
        class: Class::Core,
        operands: &["x"],
        declares_bound: false,
        result: "as x",
        bound: "x",
        norms: ["", "", ""],
        constraints: &[],
        infer: |_, t| Err(t.other()),
        derive_norms: NormRule::None,
        meaning: None,
    };
}

/// An op as it is listed: for documents.
pub struct Listed {
    /// Its description.
    pub description: &'static Description,
    /// Names of its attributes, in the order of the text form.
    pub attributes: &'static [&'static str],
    /// Lines of its documentation; the first paragraph is the op's meaning.
    pub doc: &'static [&'static str],
}

/// The bits of an f32 that is an attribute: equal where the bits are, and written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct F32Bits(pub u32);

impl F32Bits {
    /// The number.
    pub fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

impl From<f32> for F32Bits {
    fn from(x: f32) -> Self {
        F32Bits(x.to_bits())
    }
}

impl Op {
    /// The function of one variable that an op computes, if it is a curve's.
    pub fn curve(&self) -> Option<Curve> {
        Some(match self {
            Op::Gelu { tanh: false } => Curve::Gelu,
            Op::Gelu { tanh: true } => Curve::GeluTanh,
            Op::Silu => Curve::Silu,
            Op::Softplus => Curve::Softplus,
            Op::Tanh => Curve::Tanh,
            Op::Sigmoid => Curve::Sigmoid,
            Op::Erf => Curve::Erf,
            _ => return None,
        })
    }
}

/// Makes the op list: the enum, and from every op's description and attributes what the text form needs.
macro_rules! ops {
    ($(
        $(#[doc = $doc:literal])*
        $variant:ident $({ $( $(#[doc = $field_doc:literal])* $field:ident: $ty:ty, )* })? => $description:path;
    )*) => {
        /// An operation with its attributes. Operands are listed in the module beside it.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum Op {
            $( $(#[doc = $doc])* $variant $({ $( $(#[doc = $field_doc])* $field: $ty, )* })?, )*
        }

        /// Every op, in the order of the list.
        pub static OPS: &[Listed] = &[
            $( Listed {
                description: &$description,
                attributes: &[$($(stringify!($field)),*)?],
                doc: &[$($doc),*],
            }, )*
        ];

        impl Op {
            /// What the IR says of it.
            pub fn description(&self) -> &'static Description {
                match self {
                    $( Op::$variant { .. } => &$description, )*
                }
            }

            /// Its attributes in the order of the text form.
            pub(crate) fn attributes(&self) -> Vec<(&'static str, Attr<'_>)> {
                match self {
                    $( Op::$variant $({ $($field),* })? => vec![$($((stringify!($field), $field.show())),*)?], )*
                }
            }

            /// The op of a name, with its attributes. Errors: `E0371`.
            pub(crate) fn read(name: &str, _attrs: &mut Attrs) -> Result<Op> {
                $( if name == $description.name {
                    return Ok(Op::$variant { $($($field: Attribute::read(_attrs, stringify!($field))?),*)? });
                } )*
                Err(no_such_op(name))
            }
        }
    };
}

ops! {
    // Sources.
    /// Output `value` of the public program.
    Public {
        /// Index among the public program's outputs.
        value: u32,
    } => source::PUBLIC;
    /// `round(x · 2^scale)` of a public f32 tensor, halves away from zero.
    Encode {
        /// Ring bits.
        bits: u8,
        /// Fraction bits.
        scale: u8,
    } => source::ENCODE;
    /// A tensor of the public weights (`weights.safetensors` in the public folder), rounded.
    PublicWeight {
        /// Its name in the file.
        name: String,
    } => source::PUBLIC_WEIGHT;
    /// A tensor of the server's weights, rounded, and shared once for many runs.
    Weight {
        /// Its name in the file.
        name: String,
    } => source::WEIGHT;
    /// Floats that the client knows (a border of its plaintext region or a given input), rounded and shared.
    Input {
        /// Index in the module's inputs.
        slot: u32,
    } => source::INPUT;
    /// Integers that the client knows and keeps in the clear, such as token ids.
    ClientInts {
        /// Index in the module's inputs.
        slot: u32,
    } => source::CLIENT_INTS;
    /// The content of a state slot before the step, such as a key or value cache.
    State {
        /// Index in the module's states.
        slot: u32,
    } => source::STATE;
    /// Fresh uniform bits that no party knows and none can choose; a second evaluation gives other ones. Nothing is sent.
    ///
    /// Of the three bits that make each, every party knows two: the components come from the pair keys, and one party's
    /// view says nothing of the third. Nobody chooses the outcome: whatever a party takes for the keys that it draws, the
    /// third bit is of a key that it never sees.
    Random {
        /// The shape.
        shape: Vec<Dim>,
    } => source::RANDOM;

    // Local arithmetic. Operands broadcast as in ONNX.
    /// a + b, of equal scales.
    Add => linear::ADD;
    /// a − b, of equal scales.
    Sub => linear::SUB;
    /// −x.
    Neg => linear::NEG;
    /// x · k for an integer; the scale stays.
    MulInt {
        /// The factor.
        k: i64,
    } => linear::MUL_INT;
    /// x + k for an integer in units of the ring; the scale stays.
    AddInt {
        /// The summand.
        k: i64,
    } => linear::ADD_INT;
    /// x · 2^by with the scale raised by `by`: the same real value, finer.
    Upscale {
        /// Added fraction bits.
        by: u8,
    } => linear::UPSCALE;
    /// x · 2^by with the scale raised by `by`, in a ring of `by` more bits, whatever x is: a local homomorphism to a larger ring.
    Lift {
        /// Added fraction bits, and bits of the ring: a multiple of 8.
        by: u8,
    } => linear::LIFT;
    /// The same integers read with another scale: the real value times 2^(old − new).
    SetScale {
        /// The new fraction bits.
        scale: u8,
    } => linear::SET_SCALE;
    /// a ∘ b, element by element.
    Mul => linear::MUL;
    /// a · b over the last two axes, batched as in ONNX; with `trans_b` a · bᵀ.
    MatMul {
        /// The right operand is given with its last two axes exchanged.
        trans_b: bool,
    } => linear::MATMUL;
    /// The sum over an axis, which stays with size 1.
    ReduceSum {
        /// The axis.
        axis: u8,
    } => linear::REDUCE_SUM;
    /// The low bits: a local homomorphism to a smaller ring.
    Narrow {
        /// The new ring bits.
        bits: u8,
    } => linear::NARROW;
    /// ⌊x / 2^by⌋ less a number from 0 to one less than a secret has components (3 in `3pc`, and masked in `2pc-dealer`, 2 in shares there), as the
    /// shares decide, modulo the smaller ring; the reference takes half of that number on average. Every component is
    /// shifted where it is, and nothing is sent.
    ///
    /// Components `x_i = 2^by h_i + l_i` add up to `x` modulo the larger ring, so the `h_i` do to `(x − Σ l_i) / 2^by`
    /// modulo the smaller one. No wrap matters, and so no bound. Uniform components give `x / 2^by − c/2` on average with a
    /// variance of `c/12`, where there are `c`. No rounds, no bits; semi-honest: nobody sees more than the shares that he had, which his own view
    /// simulates.
    ///
    /// A masked `x = m − λ^0 − λ^1` has three such numbers, `m`, `−λ^0` and `−λ^1`.
    Cut {
        /// Dropped fraction bits, a multiple of 8.
        by: u8,
    } => linear::CUT;

    // Local movement.
    /// The same elements in another shape.
    Reshape {
        /// The new shape.
        shape: Vec<Dim>,
    } => movement::RESHAPE;
    /// Axes permuted: result axis `i` is operand axis `perm[i]`.
    Transpose {
        /// The permutation.
        perm: Vec<u8>,
    } => movement::TRANSPOSE;
    /// Elements `start` to `start + len` of an axis.
    Slice {
        /// The axis.
        axis: u8,
        /// First element.
        start: Dim,
        /// Number of elements.
        len: Dim,
    } => movement::SLICE;
    /// Operands one after another along an axis.
    Concat {
        /// The axis.
        axis: u8,
    } => movement::CONCAT;
    /// Broadcast to a shape.
    Expand {
        /// The shape.
        shape: Vec<Dim>,
    } => movement::EXPAND;
    /// Rows of x along an axis, at the public integers i; negative ones count from the end.
    Gather {
        /// The axis.
        axis: u8,
    } => movement::GATHER;

    // Ragged rows.
    /// The entries of dense x that the mask, broadcast to its shape, keeps.
    Pack => ragged::PACK;
    /// Packed entries back in the dense shape, 0 elsewhere.
    Unpack {
        /// The dense shape.
        shape: Vec<Dim>,
    } => ragged::UNPACK;
    /// The sum of every row's packed entries.
    RowSum {
        /// The dense shape that the mask is broadcast to.
        shape: Vec<Dim>,
    } => ragged::ROW_SUM;
    /// One element a row, repeated over the row's packed entries.
    RowExpand {
        /// The dense shape that the mask is broadcast to.
        shape: Vec<Dim>,
    } => ragged::ROW_EXPAND;

    // Interactive.
    /// ⌊x / 2^by⌋, or one more, as the shares decide; the reference takes the floor. By 0 it is the same value in a larger
    /// ring.
    Truncate {
        /// Dropped fraction bits.
        by: u8,
        /// The new ring bits.
        bits: u8,
    } => interactive::TRUNCATE;
    /// A sum, or a masked value, turned into shares.
    Reshare => interactive::RESHARE;
    /// A shared value opened to client and server under a mask that the dealer knows: what is multiplied with other masked
    /// values without a further message between them.
    Mask => interactive::MASKED;
    /// A shared value opened to the server under a mask that client and dealer know: what is multiplied with private weights
    /// without a further message of the client.
    Hold => interactive::HELD;
    /// 1 where x is negative; where `drop` > 0, values in [0, 2^drop) may count as negative.
    Msb {
        /// Bits that hold the value in two's complement.
        width: u8,
        /// Low bits that are not looked at.
        drop: u8,
    } => bits::MSB;
    /// Exclusive or of bits. Local.
    Xor => bits::XOR;
    /// Complement of bits. Local.
    Not => bits::NOT;
    /// Conjunction of bits.
    And => bits::AND;
    /// Bits as ring elements 0 and 1.
    BitToRing {
        /// Ring bits.
        bits: u8,
    } => bits::BIT_TO_RING;
    /// e^x for x from [`exp_lowest`] to 1/2, 4e-6 at most from it; elsewhere any element of the ring. In `3pc` a window of 5 is
    /// for x from −16 to 0. With `tail` 1.3e-4 of e^x and 4 units at most from it for −18 ≤ x, and without a bias but for units.
    /// The reference gives what x modulo 2^window has, of which three quarters are below zero.
    ExpDigits {
        /// Fraction bits of the operand.
        scale: u8,
        /// Bits above the fraction that are looked at.
        window: u8,
        /// Within 1.3e-4 of the result's own size in place of 4e-6 of 1, and right on average down to −18: for sums of many
        /// small ones.
        tail: bool,
    } => interactive::EXP_DIGITS;
    /// x where the bit is 1, 0 elsewhere.
    Select => interactive::SELECT;
    /// f(x) for what x has modulo `2^window` in two's complement, by one polynomial for every cell of `2^cell` units: that of the
    /// cell of x or of the next one, as the shares decide; the reference takes the first. Values in the highest cell, and
    /// beyond the window, give any element of the ring.
    Lookup {
        /// The function.
        curve: Curve,
        /// Low bits of x that are looked at.
        window: u8,
        /// Bits below a cell's index.
        cell: u8,
        /// The new ring bits.
        bits: u8,
        /// The new fraction bits.
        scale: u8,
    } => interactive::LOOKUP;
    /// The maximum packed entry of every row, short of it by at most 2^drop units at every level of the tree; 0 for an
    /// empty row.
    RowMax {
        /// The dense shape that the mask is broadcast to.
        shape: Vec<Dim>,
        /// Bits that hold the difference of two entries.
        width: u8,
        /// Low bits that comparisons do not look at.
        drop: u8,
    } => interactive::ROW_MAX;
    /// The index of the maximum element along the last axis; the first of equal ones.
    ArgMax {
        /// Bits that hold the difference of two elements.
        width: u8,
    } => interactive::ARG_MAX;
    /// Rows of a secret table at the client's ids.
    Embed => interactive::EMBED;
    /// Opens x to the client as a declared output.
    Reveal {
        /// Index in the module's outputs.
        slot: u32,
    } => interactive::REVEAL;
    /// Keeps x as the new content of a state slot. Local.
    SetState {
        /// Index in the module's states.
        slot: u32,
    } => interactive::SET_STATE;

    // Composite.
    /// e^x for x ≤ max, zero below max − 32, and perhaps from there to max − 16.
    Exp {
        /// The maximum operand.
        max: i8,
    } => composite::EXP;
    /// 1/x for 2^min_log2 ≤ x < 2^max_log2.
    Reciprocal {
        /// Logarithm of the range's begin.
        min_log2: i8,
        /// Logarithm of the range's end.
        max_log2: i8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::RECIPROCAL;
    /// a/b for 2^min_log2 ≤ b < 2^max_log2.
    Div {
        /// Logarithm of the divisor's minimum.
        min_log2: i8,
        /// Logarithm of the end of its range.
        max_log2: i8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::DIV;
    /// √x for 0 ≤ x < 4^max_log4, with an absolute error up to 2^min_log4 below 4^min_log4.
    Sqrt {
        /// Logarithm to base 4 of the begin of the exact range.
        min_log4: i8,
        /// Logarithm to base 4 of the range's end.
        max_log4: i8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::SQRT;
    /// 1/√x for 4^min_log4 ≤ x < 4^max_log4; outside, the nearest bucket's parabola.
    Rsqrt {
        /// Logarithm to base 4 of the range's begin.
        min_log4: i8,
        /// Logarithm to base 4 of the range's end.
        max_log4: i8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::RSQRT;
    /// ln x for 2^min_log2 ≤ x < 2^max_log2.
    Log {
        /// Logarithm to base 2 of the range's begin.
        min_log2: i8,
        /// Logarithm to base 2 of the range's end.
        max_log2: i8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::LOG;
    /// Softmax over the last axis among the entries that the mask keeps, 0 elsewhere.
    Softmax => composite::SOFTMAX;
    /// g / (Σ g + eps) over the last axis among the entries that the mask keeps, 0 elsewhere; g = max(x + shift, 0), or
    /// (x + shift)² with `square`; for 2^min_log2 ≤ Σ g + eps < 2^max_log2, and too small below.
    ///
    /// It takes the place of softmax in models that were trained for MPC.
    RatioSoftmax {
        /// Whether `g` is the square.
        square: bool,
        /// Added to every score.
        shift: F32Bits,
        /// Added to the sum.
        eps: F32Bits,
        /// Logarithm of the divisor's minimum.
        min_log2: i8,
        /// Logarithm of the end of its range.
        max_log2: i8,
    } => composite::RATIO_SOFTMAX;
    /// x · Φ(x); with `tanh` its tanh form x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), which differs by at most 4.8e-4.
    Gelu {
        /// The tanh form.
        tanh: bool,
    } => composite::GELU;
    /// x / (1 + e^−x).
    Silu => composite::SILU;
    /// tanh x.
    Tanh => composite::TANH;
    /// 1 / (1 + e^−x).
    Sigmoid => composite::SIGMOID;
    /// The error function.
    Erf => composite::ERF;
    /// sin x, of radians.
    Sin => composite::SIN;
    /// cos x, of radians.
    Cos => composite::COS;
    /// ln(1 + e^x).
    Softplus => composite::SOFTPLUS;
    /// x / √(mean(x²) + eps) over the last axis, for rows of integers of any 2-norm below 2^length, zero among them.
    RmsNorm {
        /// eps.
        eps: F32Bits,
        /// The 2-norm of every row of integers is below `2^length`.
        length: u8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::RMS_NORM;
    /// (x − mean) / √(var + eps) over the last axis, for rows of integers of any 2-norm below 2^length, constant ones among
    /// them.
    LayerNorm {
        /// eps.
        eps: F32Bits,
        /// The 2-norm of every row of integers is below `2^length`.
        length: u8,
        /// Fraction bits of the result.
        scale: u8,
    } => composite::LAYER_NORM;
}

impl Op {
    /// Name in the text form.
    pub fn name(&self) -> &'static str {
        self.description().name
    }

    /// What kind of op it is.
    pub fn class(&self) -> Class {
        self.description().class
    }

    /// Number of operands; `None` for any number from one up.
    pub fn arity(&self) -> Option<usize> {
        self.description().arity()
    }
}
