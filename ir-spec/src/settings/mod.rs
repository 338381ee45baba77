//! Settings: who takes part, in what forms secrets are held, and what every op costs.
//!
//! A setting is a value: the facts of each stand in a file of their own here, its kernels in a folder of their own in the
//! runtime. What is generic asks [`Setting::protocol`]: type rules for the forms of products, the verifier for what is
//! legal, schedules for what is sent.

pub mod dealer;
mod plain;
pub mod rep3;
pub mod two_party;

use crate::diag::{Diagnostic, Result};
use crate::module::{Module, Party};
use crate::op::Op;
use crate::ty::Sharing;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Bits that a link carries while a message is on its way, at the least of the networks that are usual: 1.2 million at
/// 3 Gbit/s and 0.4 ms, 4 million at 200 Mbit/s and 20 ms. A round is worth so many bits on one link.
pub(crate) const ROUND_BITS: u64 = 1 << 20;

/// Who takes part and what they are trusted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Setting {
    /// Client, server and helper; at most one corrupted, semi-honest (replicated sharing).
    ThreeParty,
    /// The client alone, in the clear: no secrets and no messages. What other settings are compared with.
    Plain,
    /// Client and server with a dealer of correlations; at most one of the three corrupted, semi-honest.
    Dealer,
    /// Client and server alone; one of them corrupted, semi-honest.
    TwoParty,
}

/// The facts of a setting.
pub struct Protocol {
    /// Name on the command line and in the text form.
    pub name: &'static str,
    /// Who takes part, in the order of their numbers.
    pub parties: &'static [Party],
    /// The party that deals, where one does: its messages of a step follow from keys and weights alone, so that they can be
    /// made before there is an input. What it sends is counted apart from what is sent online. With one, values may be
    /// masked and held.
    pub dealer: Option<Party>,
    /// The form of an element-wise product; none where the setting has no such product.
    pub product: fn(Sharing, Sharing) -> Option<Sharing>,
    /// The form of a matrix product.
    pub matrix_product: fn(Sharing, Sharing) -> Option<Sharing>,
    /// The form of a quotient in a ring that its division leaves: what no wrap has to be paid for.
    pub quotient: Sharing,
    /// Fraction bits of activations where nobody asks for others: what is enough for trained models, and 2 more where such
    /// bits cost little.
    pub fraction_bits: u8,
    /// The windows of `exp_digits` that are wide enough, and not too dear, for a whole range.
    pub exp_windows: RangeInclusive<u8>,
    /// Numbers that add up to a secret. What a `cut` of `x` by `2^k` loses follows: of `c` uniform ones, `c/2` of a unit on
    /// average, with a variance of `c/12`.
    pub components: u8,
    /// Number of ways in which logical roles can be given to parties.
    pub rotations: u8,
    /// What an op sends, in logical roles. Composite ops send nothing.
    pub traffic: fn(&Op, &Sizes) -> Traffic,
    /// Payload bytes that every party sends to share so many elements of a private weight once, in a ring of so many bits.
    pub setup: fn(u64, u8) -> [u64; 3],
    /// Payload bytes that every party sends at the beginning of every session for the correlations and keys that a module is
    /// run with, and the rounds of that.
    pub session_setup: fn(&Module) -> ([u64; 3], u32),
    /// By what secret matrices are multiplied where that is ciphertexts. Without, such products are exact, and as long as
    /// shares of any ring.
    pub ciphertexts: Option<Ciphertexts>,
    /// Checks that the setting serves a module.
    pub check: fn(&Module) -> Result<()>,
}

impl Protocol {
    /// Whether a division into a ring that it leaves takes no message, and gives a sum of terms.
    pub fn divides_freely(&self) -> bool {
        self.quotient.is_sum()
    }
}

/// Facts of products by ciphertexts.
#[derive(Clone, Copy, Debug)]
pub struct Ciphertexts {
    /// Every element of a product is off by less than two to this.
    pub error: u32,
    /// Rings of more bits cost several times as much.
    pub short_ring: u8,
}

impl Setting {
    /// All settings: a model can be compiled for each.
    pub const ALL: [Setting; 4] = [Setting::ThreeParty, Setting::Plain, Setting::Dealer, Setting::TwoParty];

    /// Its facts.
    pub fn protocol(self) -> &'static Protocol {
        match self {
            Setting::ThreeParty => &rep3::PROTOCOL,
            Setting::Plain => &plain::PROTOCOL,
            Setting::Dealer => &dealer::PROTOCOL,
            Setting::TwoParty => &two_party::PROTOCOL,
        }
    }

    /// Name on the command line and in the text form.
    pub fn name(self) -> &'static str {
        self.protocol().name
    }

    /// The party beside client and server, where there is one.
    pub fn beside(self) -> Option<Party> {
        self.protocol().parties.iter().copied().find(|party| party.is_third())
    }

    /// The party beside client and server.
    ///
    /// # Errors
    /// `E0421` for a setting without a third party.
    pub fn third(self) -> Result<Party> {
        self.beside()
            .ok_or_else(|| Diagnostic::input("E0421", format!("the setting {} has no third party", self.name())))
    }

    /// The party that deals.
    ///
    /// # Errors
    /// `E0421` for a setting without one.
    pub fn dealer(self) -> Result<Party> {
        self.protocol().dealer.ok_or_else(|| {
            Diagnostic::input("E0421", format!("nobody deals in the setting {}", self.name()))
                .note("expected  a setting with a dealer")
                .note("help      compile for 2pc-dealer")
        })
    }

    /// Checks that a party takes part.
    ///
    /// # Errors
    /// `E0711`.
    pub fn check_party(self, party: Party) -> Result<()> {
        let parties = self.protocol().parties;
        if parties.contains(&party) {
            return Ok(());
        }
        let names: Vec<_> = parties.iter().map(|party| party.name()).collect();
        Err(Diagnostic::input("E0711", format!("the setting {} has no {party}", self.name()))
            .note(format!("expected  {}", names.join(", "))))
    }

    /// What every party sends, by its number, with what is dealt apart.
    pub fn apart(self, bytes: [u64; 3]) -> Sent {
        let mut online = bytes;
        let dealt = self.protocol().dealer.map_or(0, |dealer| std::mem::take(&mut online[dealer.index()]));
        Sent { online, dealt }
    }
}

/// Payload bytes, with what is dealt apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// What every party sends online, by its number.
    pub online: [u64; 3],
    /// What is dealt.
    pub dealt: u64,
}

impl Sent {
    /// What all parties send online.
    pub fn online_bytes(&self) -> u64 {
        self.online.iter().fold(0, |sum, &bytes| sum.saturating_add(bytes))
    }
}

impl FromStr for Setting {
    type Err = Diagnostic;

    fn from_str(text: &str) -> Result<Self> {
        let known: Vec<_> = Setting::ALL.iter().map(|setting| setting.name()).collect();
        Setting::ALL.into_iter().find(|setting| setting.name() == text).ok_or_else(|| {
            Diagnostic::input("E0421", format!("unknown setting `{}`", text.escape_debug()))
                .note(format!("expected {}", known.join(" or ")))
        })
    }
}

/// One message of an op: `bytes` from one logical role to another in a round of the op, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msg {
    /// Round within the op.
    pub round: u32,
    /// Sending role.
    pub from: u8,
    /// Receiving role.
    pub to: u8,
    /// Payload bytes.
    pub bytes: u64,
}

/// Messages of one op and the rounds it takes. An op may take a round in which nothing is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rounds from start to result; where role 2 deals, at the others.
    pub rounds: u32,
    /// Messages in order of rounds, one at most from one role to another in a round.
    pub msgs: Vec<Msg>,
    /// What role 2 deals, where it receives nothing and its part of the result follows from keys and from its parts of the
    /// operands. It takes part in no round, then: all that it sends leaves it at once.
    pub dealt: Option<Dealt>,
}

/// What role 2 sends at once, without waiting for anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dealt {
    /// Payload bytes to role 0 and to role 1.
    pub bytes: [u64; 2],
    /// Ticks before the first round of the others in which this leaves at the latest: 1 where they need it to begin, 0 where
    /// they need it after that round.
    pub lead: u32,
}

/// The concrete sizes an op's cost depends on.
#[derive(Clone, Debug)]
pub struct Sizes<'a> {
    /// Elements of the result (of what is revealed for `reveal`).
    pub out: u64,
    /// Ring bits of the operand and of the result, where they are ring elements.
    pub bits: u8,
    /// Ring bits of operand 0 where it has another ring than the result, for a division.
    pub from_bits: u8,
    /// The forms of the first two operands; of what is not there, public.
    pub forms: [Sharing; 2],
    /// Elements of the first two operands.
    pub elements: [u64; 2],
    /// Which of them the server knows: a private weight, or what is moved from one.
    pub of_server: [bool; 2],
    /// Whether they are one value, for `matmul` one that meets its own rows: a square, or a matrix times itself turned.
    pub same: bool,
    /// Row lengths, for `row_max`; for `arg_max` one row of the axis' length for each result element.
    pub rows: RowLens<'a>,
    /// Rows of the table, for `embed`.
    pub table_rows: u64,
    /// Tokens looked up, for `embed`.
    pub tokens: u64,
    /// The inner size of a matrix product.
    pub inner: u64,
    /// Rows of a matrix of the result.
    pub matrix_rows: u64,
    /// Columns of the result.
    pub columns: u64,
}

/// Lengths of rows: all listed, or all equal.
#[derive(Clone, Copy, Debug)]
pub enum RowLens<'a> {
    /// `count` rows of `len` entries.
    Equal {
        /// Number of rows.
        count: u64,
        /// Entries in each.
        len: u64,
    },
    /// One length a row.
    Listed(&'a [u32]),
}

impl RowLens<'_> {
    /// Pairs of entries that are compared where of every row all pairs of `together` neighbours are, after so many levels of
    /// a binary tree.
    pub fn comparisons(&self, level: u8, together: u64) -> u64 {
        let of_row = |len: u64| {
            let len = len.div_ceil(1 << level.min(63));
            let pairs = |n: u64| n * n.saturating_sub(1) / 2;
            (len / together).saturating_mul(pairs(together)).saturating_add(pairs(len % together))
        };
        match self {
            RowLens::Equal { count, len } => count.saturating_mul(of_row(*len)),
            RowLens::Listed(lens) => lens.iter().map(|&len| of_row(len.into())).sum(),
        }
    }

    /// Number of pairs compared at every level of a binary tree over each row: rows halve, an odd one out moves up.
    pub fn pairs_by_level(&self) -> Vec<u64> {
        (0..=u8::MAX).map(|level| self.comparisons(level, 2)).take_while(|&pairs| pairs > 0).collect()
    }
}

/// Bytes of an element for the wrap of a division, where a value of a ring of `from` bits is divided by `2^by`, in a ring of
/// `to` bits: what that has more than the shift leaves. Without any, each term is shifted where it is.
pub fn wrap_bytes(from: u8, to: u8, by: u8) -> u8 {
    to.saturating_sub(from.saturating_sub(by)).div_ceil(8)
}

/// Bytes of a plane of `n` bits.
pub fn plane_bytes(n: u64) -> u64 {
    n.div_ceil(8)
}

impl Traffic {
    /// Payload bytes in all.
    pub fn bytes(&self) -> u64 {
        self.sent().map(|(_, _, bytes)| bytes).sum()
    }

    /// Sender, receiver and bytes of every message, dealt ones last.
    pub fn sent(&self) -> impl Iterator<Item = (u8, u8, u64)> {
        let dealt = self.dealt.iter().flat_map(|dealt| (0u8..).zip(dealt.bytes)).map(|(to, bytes)| (2, to, bytes));
        self.msgs.iter().map(|m| (m.from, m.to, m.bytes)).chain(dealt)
    }

    /// Adds what role 2 deals, which the others need so many rounds after those that there are.
    fn deal(&mut self, offset: u32, to: u8, bytes: u64) {
        let first = self.rounds + offset == 0;
        let dealt = self.dealt.get_or_insert_default();
        dealt.bytes[usize::from(to)] += bytes;
        dealt.lead = dealt.lead.max(u32::from(first && bytes > 0));
    }

    /// Adds bytes that one role sends another, so many rounds after those that there are.
    fn send(&mut self, offset: u32, from: u8, to: u8, bytes: u64) {
        let round = self.rounds + offset;
        let same = self.msgs.iter_mut().rev().take_while(|m| m.round == round).find(|m| (m.from, m.to) == (from, to));
        match same {
            Some(msg) => msg.bytes += bytes,
            None if bytes > 0 => self.msgs.push(Msg { round, from, to, bytes }),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_ragged_rows() {
        assert_eq!(RowLens::Listed(&[1, 2, 3, 5, 0]).pairs_by_level(), vec![4, 2, 1]);
        assert_eq!(RowLens::Equal { count: 3, len: 4 }.pairs_by_level(), vec![6, 3]);
        assert!(RowLens::Listed(&[1, 0]).pairs_by_level().is_empty());
    }

    /// Two at a time are the pairs of a level.
    #[test]
    fn comparisons_of_ragged_rows() {
        let rows = RowLens::Listed(&[1, 2, 3, 5, 0, 20]);
        for (level, pairs) in (0u8..).zip(rows.pairs_by_level()) {
            assert_eq!(rows.comparisons(level, 2), pairs);
        }
        assert_eq!(rows.comparisons(0, 4), 1 + 3 + 6 + 5 * 6);
        assert_eq!(rows.comparisons(1, 4), 1 + 3 + (6 + 6 + 1));
        assert_eq!(RowLens::Equal { count: 3, len: 11 }.comparisons(0, 8), 3 * (28 + 3));
    }
}
