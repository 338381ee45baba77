//! Text form of modules (`.mpcir`): one op a line, canonical, and exact both ways.
//!
//! ```text
//! module "block0" stage(lowered) setting(3pc) {
//!   size seq 1..64
//!   size kept 0..4096
//!   public {
//!     $i0 = input "mask" : i64[seq, seq]
//!     $0 = cast $i0 {to = bool} : bool[seq, seq]
//!     return $0
//!   }
//!   count kept = true of 0 in [4, seq, seq]
//!   input "hidden" : f32[seq, 96]
//!   state "past" -> "present" : [4, seq, 16]
//!   output "logits" : next_token to client
//!   %0 = input {slot = 0} : ring64.16[seq, 96] shared <24 calibrated @ "/embed/Add" layer 0 as "norm"
//!   %1 = truncate %0 {by = 8, bits = 64} : ring64.8[seq, 96] shared <17 @ "/embed/Add" rot 2
//! }
//! ```
//!
//! Blanks and line ends between words mean nothing; `;` starts a comment that ends with its line.
//! The full grammar is in `SPEC.md`. Nothing that is parsed can panic: an error has the code `E0370` (the form) or
//! `E0371` (an unknown op or a wrong attribute), and a line and column.

mod attr;
mod cursor;
mod parse;
mod print;
mod public;

pub(crate) use attr::{Attribute, no_such_op};
// The parts that the text of other programs is made of.
pub use attr::{Attr, Attrs, flag, parse_tensor, print_attrs, quote};
pub use cursor::Cursor;
pub use parse::{parse, parse_size, parse_type, parse_with_lines};
pub use print::{print, print_sizes};
pub use public::{tensor_attrs, tensor_op};
