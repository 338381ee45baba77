//! `2pc-dealer`: client and server with additive shares, and a dealer that gives them correlations; one of the three may be
//! corrupted and is semi-honest.
//!
//! What every op sends, to the byte and the round; tests hold the runtime's kernels to it. Roles: 0 the client, 1 the
//! server, 2 the dealer, who sends to the server alone.

mod bits;

pub use bits::{Comparison, Join, LARGEST_CHUNK, MOST_JOINED};

use super::{Protocol, Sizes, Traffic, plane_bytes, two_party, wrap_bytes};
use crate::module::Party;
use crate::op::{EXP_RING, EXP_SCALE, EXP_WINDOWS, Op};
use crate::ty::Sharing;

/// The setting's facts. A product is finished: each of two parties holds a share of it.
pub(super) static PROTOCOL: Protocol = Protocol {
    name: "2pc-dealer",
    parties: &[Party::Client, Party::Server, Party::Dealer],
    dealer: Some(Party::Dealer),
    product,
    matrix_product: product,
    quotient: Sharing::Shared,
    fraction_bits: 16,
    exp_windows: EXP_WINDOWS,
    // Of a masked number: what norms cut is masked.
    components: 3,
    rotations: 1,
    traffic,
    // The server sends the dealer what its key with the client does not make.
    setup: |elements, bits| [0, elements.saturating_mul(u64::from(bits) / 8), 0],
    session_setup: |_| ([0; 3], 0),
    ciphertexts: None,
    check: |_| Ok(()),
};

/// Products of secrets in any of their forms are shares; with what is public they keep the secret's form.
fn product(a: Sharing, b: Sharing) -> Option<Sharing> {
    match (a, b) {
        (Sharing::Public, other) | (other, Sharing::Public) => Some(other),
        _ => [a, b].iter().all(|form| form.is_secret()).then_some(Sharing::Shared),
    }
}

/// Whether parties take part in an op together; `public` says which of its first two operands every party knows. Beside the
/// ops of two parties alone, in which values are neither masked nor held.
pub fn is_interactive(op: &Op, public: [bool; 2]) -> bool {
    matches!(op, Op::Mask | Op::Hold) || two_party::is_interactive(op, public)
}

/// What `op` sends. Ops that are local, or composite, send nothing.
fn traffic(op: &Op, s: &Sizes) -> Traffic {
    let mut t = Traffic::default();
    let eb = u64::from(s.bits) / 8;
    match op {
        Op::Mul | Op::MatMul { .. } if s.forms.iter().all(|form| form.is_secret()) => multiply(&mut t, s, eb),
        Op::Mask => {
            bits::exchange(&mut t, s.out * eb);
            t.rounds = 1;
        }
        Op::Hold => {
            t.send(0, 0, 1, s.out * eb);
            t.rounds = 1;
        }
        Op::Truncate { by, bits } => divide(&mut t, s.out, wrap_bytes(s.from_bits, *bits, *by)),
        Op::ExpDigits { scale, window, tail } => {
            let table = exp_table(*window, *tail);
            look_up(&mut t, s, window + scale, table.count as u64, 1, u64::from(table.ring) / 8);
        }
        Op::Select => {
            if s.forms[1] != Sharing::Masked {
                bits::exchange(&mut t, s.elements[1] * eb);
                t.rounds = 1;
            }
            bits::exchange(&mut t, plane_bytes(s.out));
            t.send(0, 2, 1, 2 * s.out * eb);
            t.rounds += 1;
        }
        Op::Lookup { window, cell, .. } => look_up(&mut t, s, *window, 1 << (window - cell), 3, eb),
        Op::Embed => embed(&mut t, s, eb),
        Op::Reveal { .. } => {
            t.send(0, 1, 0, s.out * eb);
            t.rounds = 1;
        }
        Op::Msb { width, drop } => bits::msb(&mut t, s.out, width - drop, s.forms[0] == Sharing::Masked),
        Op::And => bits::and(&mut t, s.out),
        Op::BitToRing { .. } => bits::select(&mut t, s.out, 0, eb),
        Op::RowMax { width, drop, .. } => bits::row_max(&mut t, &s.rows, width - drop, eb),
        Op::ArgMax { width } => bits::arg_max(&mut t, &s.rows, *width, eb),
        _ => {}
    }
    t
}

/// What of the operands is not yet held, where the server knows the other one, or masked; and a dealt element of the result.
fn multiply(t: &mut Traffic, s: &Sizes, eb: u64) {
    let (is_product, of_server) = (s.of_server == [false; 2], s.of_server);
    for i in [0, 1] {
        let known = match s.forms[i] {
            Sharing::Masked => true,
            Sharing::Held => !is_product,
            _ => of_server[i] && !(i == 0 && of_server[1]),
        };
        match known {
            true => {}
            false if is_product => bits::exchange(t, s.elements[i] * eb),
            false => t.send(0, 0, 1, s.elements[i] * eb),
        }
    }
    t.send(0, 2, 1, s.out * eb);
    t.rounds += 1;
}

/// A bit each way, and the product of two masks.
fn divide(t: &mut Traffic, n: u64, dealt: u8) {
    if dealt == 0 {
        return;
    }
    t.send(0, 0, 1, plane_bytes(n));
    t.send(0, 1, 0, plane_bytes(n));
    t.send(0, 2, 1, n * u64::from(dealt));
    t.rounds += 1;
}

/// How an exponential is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpTable {
    /// Cells are `2^cell` wide.
    pub cell: u8,
    /// Number of cells.
    pub count: usize,
    /// Ring of what is looked up: the result has three bits less for its fraction.
    pub ring: u8,
    /// Fraction bits of an entry; the factor that the dealer knows has the others.
    pub entry_scale: u8,
}

/// The table of a window. Wide cells are few, and their entries many bits larger than the result, which the ring holds.
pub fn exp_table(window: u8, tail: bool) -> ExpTable {
    let (cell, ring, entry_scale) = match window {
        _ if tail => (2, 64, 30),
        ..=8 => (2, 48, 20),
        _ => (3, 56, 22),
    };
    ExpTable { cell, count: 1 << (window - cell), ring, entry_scale }
}

/// Fraction bits that a looked-up exponential has beyond those of the result. As many bits are what its ring has beyond the
/// result's: the division sends nothing.
pub fn exp_shift(table: ExpTable) -> u8 {
    let shift = table.ring - 3 - EXP_SCALE;
    debug_assert_eq!(shift, table.ring - EXP_RING);
    shift
}

/// The masked window and a vector of cells; then `products` masked ones of `bytes`, their factors and a sum.
fn look_up(t: &mut Traffic, s: &Sizes, window: u8, cells: u64, products: u64, bytes: u64) {
    let n = s.out;
    if s.forms[0] != Sharing::Masked {
        bits::exchange(t, n * u64::from(window.div_ceil(8)));
    }
    t.send(0, 2, 1, n * plane_bytes(cells));
    t.rounds += 1;
    bits::exchange(t, products * n * bytes);
    t.send(0, 2, 1, (products + 1) * n * bytes);
    t.rounds += 1;
}

/// Vectors of bits and a masked sign, then the server's masked sum; the dealer's sum and a product.
fn embed(t: &mut Traffic, s: &Sizes, eb: u64) {
    t.send(0, 0, 1, s.tokens * plane_bytes(s.table_rows) + plane_bytes(s.tokens));
    t.send(0, 2, 1, 2 * s.out * eb);
    t.send(1, 1, 0, s.out * eb);
    t.rounds += 2;
}
