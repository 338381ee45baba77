//! What the parties see: sizes and order do not depend on secrets, every received message looks uniform, and every one is
//! under a mask that its receiver does not know.

use super::*;
use crate::dpf;
use crate::settings::rep3::compare::msb;
use crate::settings::rep3::convert::{bit_to_ring, select};
use crate::settings::rep3::curve::look_up;
use crate::settings::rep3::embed::{Rows, Table, embed};
use crate::settings::rep3::exp::exp_digits;
use crate::settings::rep3::input::input;
use crate::settings::rep3::join::and;
use crate::settings::rep3::reshare::{Operand, reshare};
use crate::settings::rep3::reveal::reveal;
use crate::settings::rep3::tree::{arg_max, row_max};
use crate::settings::rep3::truncate::truncate;
use crate::settings::tables::CurveTables;
use crate::settings::testing::deviation;
use ombra_ir::curve::{Cells, Curve};
use ombra_ir::op::EXP_WINDOW;

const N: usize = 512;
/// Ring of values that are extended.
const SMALL: u8 = 40;
/// Rows of the ops on rows, and elements of each.
const ROWS: usize = 64;
const LEN: usize = N / ROWS;
/// Rows and columns of the table of lookups, of which there are `N / COLUMNS`.
const TABLE: usize = 16;
const COLUMNS: usize = 8;
/// How lookups of curves cut their operand.
const CELLS: Cells = Cells { window: 20, from: 14, cell: 12, scale: 24 };

/// How the secret operand is held.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// A replicated sharing.
    Shared,
    /// A sharing of which a component is zero by construction, as of weights and inputs.
    Without(usize),
    /// A sum of a term that roles 0 and 1 hold and one of role 2.
    Two,
    /// A sum over all roles.
    Three,
}

impl Form {
    fn sharing(self) -> Sharing {
        match self {
            Form::Shared | Form::Without(_) => Sharing::Shared,
            Form::Two => Sharing::Sum2,
            Form::Three => Sharing::Sum3,
        }
    }
}

/// An interactive op on an operand of some form.
#[derive(Clone, Debug)]
struct Case {
    op: Op,
    form: Form,
}

impl Case {
    /// The rotations that the op may have: who gives an input or learns an output is the client.
    fn rotations(&self) -> std::ops::Range<u8> {
        if matches!(self.op, Op::Input { .. } | Op::Embed | Op::Reveal { .. }) { 0..1 } else { 0..3 }
    }
}

fn cases() -> Vec<Case> {
    let shared = [Form::Shared, Form::Without(0), Form::Without(1), Form::Without(2)];
    let mut cases = Vec::new();
    for op in [Op::Truncate { by: 16, bits: 64 }, Op::Reshare, Op::Truncate { by: 0, bits: 64 }] {
        let forms = shared.into_iter().chain([Form::Two, Form::Three]);
        cases.extend(forms.map(|form| Case { op: op.clone(), form }));
    }
    // Without a wrap, of three terms alone there is a message.
    cases.push(Case { op: Op::Truncate { by: 16, bits: 48 }, form: Form::Three });
    for op in [
        Op::Msb { width: 40, drop: 6 },
        Op::ExpDigits { scale: 16, window: EXP_WINDOW, tail: false },
        Op::ExpDigits { scale: 16, window: EXP_WINDOW - 1, tail: false },
        Op::Lookup { curve: Curve::Gelu, window: CELLS.window, cell: CELLS.cell, bits: 32, scale: CELLS.scale },
        Op::RowMax { shape: Vec::new(), width: 30, drop: 2 },
        Op::ArgMax { width: 30 },
    ] {
        cases.extend(shared.into_iter().chain([Form::Two]).map(|form| Case { op: op.clone(), form }));
    }
    // The message of a revelation is component 2.
    let open = shared.into_iter().filter(|form| *form != Form::Without(2));
    cases.extend(open.map(|form| Case { op: Op::Reveal { slot: 0 }, form }));
    // Operands of one form alone: bits have no zero components, a table is a weight.
    for op in [Op::And, Op::BitToRing { bits: 64 }, Op::Select, Op::Input { slot: 0 }, Op::Embed] {
        cases.push(Case { op, form: Form::Shared });
    }
    cases
}

/// Sharings of `x` whose component `zero`, if any, is zero.
fn share_without(x: &[u64], zero: Option<usize>, words: &mut Words) -> [Rc<Shared>; 3] {
    let mut parts = [words.take(x.len()), words.take(x.len()), words.take(x.len())];
    if let Some(zero) = zero {
        parts[zero].fill(0);
    }
    let last = zero.map_or(2, |zero| (zero + 1) % 3);
    for (i, x) in x.iter().enumerate() {
        let others = parts[(last + 1) % 3][i].wrapping_add(parts[(last + 2) % 3][i]);
        parts[last][i] = x.wrapping_sub(others);
    }
    let component = |i: usize| if Some(i % 3) == zero { Component::Zero } else { parts[i % 3].clone().into() };
    [0, 1, 2].map(|role| Rc::new(Shared { a: component(role), b: component(role + 1) }))
}

/// The messages of a kernel on `N` elements that are all `x`, shared by `seed`.
fn messages(case: &Case, x: u64, seed: u64, rot: u8, keys: [Rc<crate::settings::rep3::Keys>; 3]) -> Vec<Sent> {
    let Case { op, form } = case;
    let mut words = Words(seed);
    let ids = vec![(x % TABLE as u64) as i64; N / COLUMNS];
    let x = vec![x; N];
    let shared = match form {
        Form::Without(zero) => share_without(&x, Some(*zero), &mut words),
        _ => share_without(&x, None, &mut words),
    };
    let sum = terms(&x, *form == Form::Three, &mut words);
    let bits = share_bits(&x.iter().map(|x| x & 1 == 1).collect::<Vec<_>>(), &mut words);
    let table = words.take(TABLE * COLUMNS);
    let table = share_without(&table, Some(0), &mut words);
    let declared = traffic(
        op,
        &Sizes {
            rows: RowLens::Equal { count: ROWS as u64, len: LEN as u64 },
            table_rows: TABLE as u64,
            tokens: ids.len() as u64,
            from_bits: if matches!(op, Op::Truncate { by: 0, .. }) { SMALL } else { 64 },
            forms: [form.sharing(), Sharing::Public],
            ..sizes(
                if matches!(op, Op::RowMax { .. } | Op::ArgMax { .. }) { ROWS } else { N },
                if let Op::Lookup { bits, .. } | Op::Truncate { bits, .. } = op { *bits } else { 64 },
                *form == Form::Three,
            )
        },
    );
    let run = lockstep::run_with_keys(keys, rot, &declared, |cx| {
        let role = usize::from(cx.role());
        let (op, form, x, ids) = (op.clone(), *form, x.clone(), ids.clone());
        let (shared, sum, bits, table) =
            (shared[role].clone(), sum[role].clone(), bits[role].clone(), table[role].clone());
        async move {
            let operand = match form {
                Form::Two => Operand::Two(&sum),
                Form::Three => Operand::Three(&sum),
                _ => Operand::Shared(&shared),
            };
            let of_two = operand.two_terms(cx.role());
            let taken = of_two.as_ref().unwrap_or(&shared);
            match op {
                Op::Truncate { by, bits } => {
                    let from = if by == 0 { SMALL } else { 64 };
                    truncate(&cx, operand, N, (from, bits), by).await.map(drop)
                }
                Op::Reshare => reshare(&cx, operand, N, 64).await.map(drop),
                Op::Msb { width, drop: low } => msb(&cx, taken, N, width, low).await.map(drop),
                Op::ExpDigits { scale, window, tail } => {
                    exp_digits(&cx, taken, N, scale, (window, tail)).await.map(drop)
                }
                Op::Lookup { curve, bits, .. } => {
                    look_up(&cx, &CurveTables::default(), taken, N, curve, CELLS, bits).await.map(drop)
                }
                Op::And => and(&cx, &bits, &bits).await.map(drop),
                Op::BitToRing { .. } => bit_to_ring(&cx, &bits, 64).await.map(drop),
                Op::Select => select(&cx, &bits, &shared, 64).await.map(drop),
                Op::RowMax { width, drop: low, .. } => {
                    let max = row_max(&cx, taken, &[LEN as u32; ROWS], 64, (width, low)).await?;
                    match form {
                        Form::Two => Ok(()),
                        _ => reshare(&cx, Operand::Two(&max), ROWS, 64).await.map(drop),
                    }
                }
                Op::ArgMax { width } => arg_max(&cx, taken, ROWS, LEN, 64, width).await.map(drop),
                Op::Reveal { .. } => reveal(&cx, &shared, N, 64).await.map(drop),
                Op::Embed => {
                    let block = |start: usize, count: usize| {
                        Ok(table.map(|w| w[start * COLUMNS..(start + count) * COLUMNS].to_vec()))
                    };
                    let sizes = Table { rows: TABLE, columns: COLUMNS, tokens: ids.len(), bits: 64 };
                    let ids = (role == 0).then_some(&*ids);
                    embed(&cx, ids, &Rows { stored: Some(&*table), block: &block, at_once: TABLE }, sizes, 1)
                        .await
                        .map(drop)
                }
                _ => input(&cx, (role == 0).then_some(x), N, 64).await.map(drop),
            }
        }
    });
    let (_, sent) = run.expect("the kernel runs as declared");
    assert_declared(&sent, &declared);
    sent
}

/// Secrets of opposite extremes.
const SECRETS: [u64; 2] = [0, (1 << 62) - 1];

#[test]
fn sizes_and_order_do_not_depend_on_secrets() {
    for case in cases() {
        let shapes = SECRETS.map(|x| {
            let sent = messages(&case, x, 1, 0, lockstep::keys(1));
            sent.iter().map(|m| (m.round, m.from, m.to, m.bytes.len())).collect::<Vec<_>>()
        });
        assert_eq!(shapes[0], shapes[1], "{case:?}");
    }
}

/// The bytes of a message that are to look random. Keys of point functions have three others: which of the two it is,
/// the lowest byte of the root, whose last bit is zero, and the byte with one bit for each level.
fn random_bytes(case: &Case, sent: Sent) -> Vec<u8> {
    if !(matches!(case.op, Op::Embed) && sent.round == Some(0)) {
        return sent.bytes;
    }
    let len = dpf::key_len(TABLE);
    let fixed = [0, 1, len - 17];
    sent.bytes.into_iter().enumerate().filter(|(i, _)| !fixed.contains(&(i % len))).map(|(_, byte)| byte).collect()
}

/// For every round and pair of roles, over several seeds: bytes and lowest bits of the elements are uniform. A
/// simulator that sends uniform messages is thus not told apart by these statistics. The seeds are fixed.
#[test]
fn received_messages_look_uniform() {
    for case in cases() {
        for secret in SECRETS {
            let mut bytes = std::collections::BTreeMap::<_, Vec<u8>>::new();
            for seed in 0..8 {
                for m in messages(&case, secret, seed, 0, lockstep::keys(seed)) {
                    bytes.entry((m.round, m.from, m.to)).or_default().extend(random_bytes(&case, m));
                }
            }
            for (key, bytes) in bytes {
                let mut nibbles = [0; 16];
                bytes.iter().for_each(|b| [b & 15, b >> 4].iter().for_each(|n| nibbles[usize::from(*n)] += 1));
                assert!(deviation(&nibbles) < 7.0, "{case:?} {key:?}: {nibbles:?}");
                if bytes.len() >= 2048 {
                    let mut values = [0; 256];
                    bytes.iter().for_each(|b| values[usize::from(*b)] += 1);
                    assert!(deviation(&values) < 6.0, "{case:?} {key:?}: bytes");
                }
                let mut low = [0; 2];
                bytes.iter().step_by(8).for_each(|b| low[usize::from(b & 1)] += 1);
                assert!(deviation(&low) < 14.0, "{case:?} {key:?}: low bits {low:?}");
            }
        }
    }
}

/// For every receiver, two runs that differ in nothing but keys that it does not know: its messages differ everywhere.
/// A message under a mask that the receiver can take off would be the same in both.
///
/// The one pair key unknown to a receiver masks all its messages but two kinds. Keys of point functions depend on the
/// private key of the client. What is revealed is a component of the sharing, masked by its randomness.
#[test]
fn every_message_is_under_a_key_that_its_receiver_does_not_know() {
    for case in cases().iter().filter(|case| !matches!(case.op, Op::Reveal { .. })) {
        for (rot, receiver) in case.rotations().flat_map(|rot| [0, 1, 2].map(|receiver| (rot, receiver))) {
            let party = |role: u8| usize::from((role + rot) % 3);
            let mut equal = std::collections::BTreeMap::<_, [usize; 2]>::new();
            for seed in 0..8 {
                let run = |changed: Option<usize>| {
                    let mut seeds = [seed; 6];
                    changed.into_iter().for_each(|key| seeds[key] = seed + 1000);
                    let sent = messages(case, SECRETS[1], seed, rot, lockstep::keys_of(seeds));
                    sent.into_iter().filter(|m| m.to == receiver).collect::<Vec<_>>()
                };
                // Pair key `j` is known to roles `j` and `j − 1`; the private ones follow the three.
                let [before, pair, private] = [None, Some(party(receiver + 2)), Some(3 + party(0))].map(run);
                for (i, old) in before.iter().enumerate() {
                    let of_private = matches!(case.op, Op::Embed) && old.round == Some(0);
                    let new = if of_private { &private[i] } else { &pair[i] };
                    assert_eq!((old.round, old.from, old.bytes.len()), (new.round, new.from, new.bytes.len()));
                    let same = old.bytes.iter().zip(&new.bytes).filter(|(old, new)| old == new).count();
                    let [all_same, all] = equal.entry((old.round, old.from)).or_default();
                    *all_same += same;
                    *all += old.bytes.len();
                }
            }
            for ((round, from), [same, all]) in equal {
                // One byte of 256 is the same by chance; of a point function's key, two of 82 have few values.
                assert!(
                    all >= 64 && same <= all / 32 + 4,
                    "{case:?}, rotation {rot}, round {round:?}, {from} to {receiver}: {same} of {all}"
                );
            }
        }
    }
}

/// Role 2 knows the masks of what the others send each other, so no message may go to it but its key of a lookup's rows.
#[test]
fn role_2_receives_nothing() {
    for case in cases().iter().filter(|case| !matches!(case.op, Op::Embed)) {
        let sent = messages(case, 5, 1, 0, lockstep::keys(1));
        assert!(!sent.is_empty() && sent.iter().all(|m| m.to != 2), "{case:?}");
    }
}
