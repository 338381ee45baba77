//! The order of the parties of a run.

pub use ombra_ir::module::Party;

/// Whether `party` opens the connections to `peer`, instead of accepting them: of two parties the earlier one does.
pub fn dials(party: Party, peer: Party) -> bool {
    party < peer
}
