//! `plain`: one party that holds everything in the clear. It sends nothing, and every op is local.

use super::{Protocol, Traffic};
use crate::module::Party;
use crate::op::EXP_WINDOW;
use crate::ty::Sharing;

/// The setting's facts. A product is finished: one party has it whole.
pub(super) static PROTOCOL: Protocol = Protocol {
    name: "plain",
    parties: &[Party::Client],
    dealer: None,
    product: one_form,
    matrix_product: one_form,
    quotient: Sharing::Shared,
    fraction_bits: 16,
    exp_windows: EXP_WINDOW..=EXP_WINDOW,
    components: 1,
    rotations: 1,
    traffic: |_, _| Traffic::default(),
    setup: |_, _| [0; 3],
    session_setup: |_| ([0; 3], 0),
    ciphertexts: None,
    check: |_| Ok(()),
};

/// Products of one secret form, with it and with what is public.
pub(super) fn one_form(a: Sharing, b: Sharing) -> Option<Sharing> {
    match (a, b) {
        (Sharing::Public, other) | (other, Sharing::Public) => Some(other),
        (Sharing::Shared, Sharing::Shared) => Some(Sharing::Shared),
        _ => None,
    }
}
