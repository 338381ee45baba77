//! Set-up, extension and every use of pads between two parties in one thread.

use super::pads::{Decided, Entries, Hash, Rows, Settled, table_bytes, times_bytes};
use super::softspoken::message_bytes;
use super::*;
use crate::backend::bits::{to_planes, words};
use crate::settings::testing::{EXTRA, Words, affine_rank, deviation};

const LABEL: Label = Label { op: 5, step: 1, purpose: 7, part: 2 };

/// Bytes that follow from a seed.
fn random(seed: u64) -> impl FnMut(&mut [u8]) -> Result<()> {
    let mut words = Words(seed);
    move |out: &mut [u8]| {
        out.chunks_mut(8).for_each(|out| out.copy_from_slice(&words.next().to_le_bytes()[..out.len()]));
        Ok(())
    }
}

/// Both parties after the set-up.
pub(crate) fn set_up(seed: u64, depth: u8) -> [Transfers; 2] {
    set_up_as([&SessionId::of(&[&seed.to_le_bytes()]); 2], seed, depth, &mut Sha256::new())
}

/// The same of parties that call the session as given; what they send is hashed.
fn set_up_as(ids: [&SessionId; 2], seed: u64, depth: u8, seen: &mut Sha256) -> [Transfers; 2] {
    confirmed(ids, seed, depth, &mut |message: &mut Vec<u8>| seen.update(message))
        .map(|party| party.expect("one session"))
}

/// What both parties have in the end, where all messages pass through `wire`.
fn confirmed(
    [one_id, two_id]: [&SessionId; 2],
    seed: u64,
    depth: u8,
    wire: &mut dyn FnMut(&mut Vec<u8>),
) -> [Result<Transfers>; 2] {
    let [mut one, mut two] = [random(seed), random(!seed)];
    let (first, mut to_second) = begin(one_id, 0, depth, &mut one).expect("the depth is allowed");
    let (second, mut to_first) = begin(two_id, 1, depth, &mut two).expect("the depth is allowed");
    assert_eq!([to_first.len(), to_second.len()], [FIRST_BYTES; 2]);
    wire(&mut to_first);
    wire(&mut to_second);
    let (first, mut next_to_second) = first.exchange(&to_first, &mut one).expect("an honest message");
    let (second, mut next_to_first) = second.exchange(&to_second, &mut two).expect("an honest message");
    assert_eq!([next_to_first.len(), next_to_second.len()], [SECOND_BYTES; 2]);
    wire(&mut next_to_first);
    wire(&mut next_to_second);
    let (first, last_to_second) = first.finish(&next_to_first).expect("a message of this length");
    let (second, last_to_first) = second.finish(&next_to_second).expect("a message of this length");
    let [mut last_to_first, mut last_to_second] = [last_to_first.to_vec(), last_to_second.to_vec()];
    assert_eq!([last_to_first.len(), last_to_second.len()], [CONFIRM_BYTES; 2]);
    wire(&mut last_to_first);
    wire(&mut last_to_second);
    [first.confirm(&last_to_first), second.confirm(&last_to_second)]
}

/// A batch of transfers that the first of two parties offers, with the choices that are given.
fn batch(parties: [&Transfers; 2], label: Label, choices: &[u64]) -> (Settled, Decided) {
    let [offers, chooses] = parties;
    let mut message = Vec::new();
    let chosen = chooses.choosing.choose(label, choices.len(), &mut message).expect("few transfers");
    assert_eq!(message.len(), offers.offering.message_bytes(choices.len()));
    let offered = offers.offering.offer(label, choices.len(), &message).expect("an honest message");
    let (decided, flips) = chosen.with(choices).expect("as many choices");
    (offered.flipped(&flips).expect("as many choices"), decided)
}

/// Numbers of `bits` bits and their planes.
fn numbers(seed: u64, n: usize, bits: usize) -> (Vec<u64>, Vec<u64>) {
    let x: Vec<u64> = Words(seed).take(n).into_iter().map(|x| x & (u64::MAX >> (64 - bits))).collect();
    let mut planes = vec![0; bits * words(n)];
    to_planes(&x, bits as u32, &mut planes);
    (x, planes)
}

#[test]
fn chosen_pads_are_one_of_the_offered() {
    for depth in [2, 4, 8] {
        let [first, second] = set_up(3, depth);
        for (part, count) in (0..).zip([1, 2, 63, 64, 65, 130]) {
            for parties in [[&first, &second], [&second, &first]] {
                let label = Label { part, ..LABEL };
                let mut message = Vec::new();
                let chosen = parties[1].choosing.choose(label, count, &mut message).unwrap();
                assert_eq!(message.len(), message_bytes(depth.into(), count));
                let offered = parties[0].offering.offer(label, count, &message).unwrap();
                let [bits, shares] = offered.random().triples::<64>(64 * count).unwrap();
                let [choices, products] = chosen.random().triples::<64>(64 * count).unwrap();
                for plane in 0..64 {
                    for at in 0..count {
                        let i = plane * count + at;
                        assert!(shares[i] ^ products[i] == bits[i] & choices[at], "depth {depth}, {count} words");
                    }
                }
                let ones = |words: &[u64]| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
                for words in [&choices[..], &bits[..], &shares[..]] {
                    let all = 64 * words.len() as u64;
                    assert!(deviation(&[ones(words), all - ones(words)]) < 12.0);
                }
            }
        }
    }
}

#[test]
fn products_of_bits_with_ring_elements() {
    let [first, second] = set_up(4, 8);
    let mut part = 0;
    for (planes, n, bits) in [(1, 1, 8), (1, 100, 64), (7, 65, 24), (40, 3, 40), (64, 9, 64), (3, 10, 1)] {
        part += 1;
        let (a, choices) = numbers(part, n, planes);
        let (b, _) = numbers(part + 100, n, 64);
        let (settled, decided) = batch([&first, &second], Label { part: part as u16, ..LABEL }, &choices);
        let mut message = Vec::new();
        let share = settled.times(planes, &b, bits, &mut message).unwrap();
        assert_eq!(message.len(), times_bytes(planes, n, bits));
        let other = decided.times(planes, n, bits, &message).unwrap();
        for i in 0..n {
            let sum = share[i].wrapping_add(other[i]);
            assert_eq!(sum << (64 - bits), a[i].wrapping_mul(b[i]) << (64 - bits), "{planes} planes, {bits} bits");
            assert!((share[i] | other[i]) <= u64::MAX >> (64 - bits), "{planes} planes, {bits} bits: above the ring");
        }
    }
}

#[test]
fn products_of_bits_with_rows() {
    let [first, second] = set_up(14, 4);
    for (part, (rows, inner, width, bits)) in (0..).zip([(3, 5, 7, 64), (1, 70, 1, 24), (2, 1, 33, 40)]) {
        let (planes, count) = (usize::from(bits), rows * inner);
        let (a, choices) = numbers(part, count, planes);
        let (b, _) = numbers(part + 100, inner * width, 64);
        let (settled, decided) = batch([&first, &second], Label { part: part as u16, ..LABEL }, &choices);
        let sizes = Rows { planes, count, inner, width };
        let mut message = Vec::new();
        let share = settled.times_rows(sizes, (&b, &|i| i % inner * width), bits, &mut message).unwrap();
        assert_eq!(message.len(), sizes.message_bytes(bits));
        let other = decided.times_rows(sizes, bits, &message).unwrap();
        for (at, (x, y)) in share.iter().zip(other.iter()).enumerate() {
            let (row, column) = (at / width, at % width);
            let term = |j: usize| a[row * inner + j].wrapping_mul(b[j * width + column]);
            let sum = (0..inner).fold(0u64, |sum, j| sum.wrapping_add(term(j)));
            assert_eq!(x.wrapping_add(*y) << (64 - bits), sum << (64 - bits), "{sizes:?}");
            assert!((x | y) <= u64::MAX >> (64 - bits), "{sizes:?}: above the ring");
        }
    }
}

fn tables_of<const K: usize>(parties: [&Transfers; 2], n: usize) {
    let (v, choices) = numbers(9, n, K);
    let tables: Vec<u64> = Words(10).take(n).into_iter().map(|x| x & 0xffff_ffff).collect();
    let (settled, decided) = batch(parties, Label { part: 50 + K as u16, ..LABEL }, &choices);
    let mut message = Vec::new();
    settled.tables::<K>(&tables, &mut message).unwrap();
    assert_eq!(message.len(), n * table_bytes(K));
    let found = decided.tables::<K>(n, &message).unwrap();
    for i in 0..n {
        assert_eq!(found[i], tables[i] >> (2 * v[i]) & 3, "{K} bits");
    }
}

#[test]
fn entries_of_tables() {
    let [first, second] = set_up(5, 4);
    tables_of::<1>([&second, &first], 70);
    tables_of::<2>([&second, &first], 70);
    tables_of::<3>([&second, &first], 70);
    tables_of::<4>([&second, &first], 70);
    for (part, (n, count, bytes)) in (0..).zip([(3, 2, 16), (65, 8, 12), (5, 256, 3), (2, 100, 40), (4, 1, 1)]) {
        let sizes = Entries { n, count, bytes };
        let v: Vec<u64> = Words(11).take(n).into_iter().map(|v| v % count as u64).collect();
        let mut choices = vec![0; sizes.planes() * words(n)];
        to_planes(&v, sizes.planes() as u32, &mut choices);
        let entries: Vec<u8> = Words(12).take(sizes.message_bytes()).into_iter().map(|x| x as u8).collect();
        let (settled, decided) = batch([&second, &first], Label { part, ..LABEL }, &choices);
        let mut message = Vec::new();
        settled.entries(sizes, &entries, &mut message).unwrap();
        assert_eq!(message.len(), sizes.message_bytes());
        let found = decided.entries(sizes, &message).unwrap();
        for i in 0..n {
            let at = (i * count + v[i] as usize) * bytes;
            assert!(found[i * bytes..(i + 1) * bytes] == entries[at..at + bytes], "{sizes:?}");
        }
    }
}

/// What the chooser sends for fixed choices, and what it gets for fixed products, in many calls of one session.
fn transcripts(seed: u64) -> Vec<[Vec<u8>; 2]> {
    let [first, second] = set_up(seed, 8);
    let run = |op: u32| {
        let (mut message, mut answer) = (Vec::new(), Vec::new());
        let label = Label { op, ..LABEL };
        let chosen = second.choosing.choose(label, 1, &mut message).unwrap();
        let offered = first.offering.offer(label, 1, &message).unwrap();
        let (_, flips) = chosen.with(&[0x5555]).unwrap();
        // The corrections of few trees, so that there are no more bits than calls.
        message.truncate(16);
        message.extend(&flips[0].to_le_bytes());
        offered.flipped(&flips).unwrap().times(1, &[3, 0, 7], 64, &mut answer).unwrap();
        [message, answer]
    };
    (0..(BITS + EXTRA) as u32).map(run).collect()
}

/// Bits of either message.
const BITS: usize = 8 * 24;

/// Over many calls, messages that say the same have independent bits: their differences have full rank.
#[test]
fn messages_of_fixed_secrets_are_uniform() {
    let runs = transcripts(21);
    for which in 0..2 {
        let messages: Vec<Vec<u8>> = runs.iter().map(|run| run[which].clone()).collect();
        assert_eq!(affine_rank(&messages), BITS);
        let mut counts = [0; 16];
        messages.iter().flatten().for_each(|byte| counts[usize::from(byte & 15)] += 1);
        assert!(deviation(&counts) < 6.0);
    }
}

/// The statistic above sees a product that goes without its pad, and one that goes under the pad of another.
#[test]
fn a_mask_that_is_left_out_is_seen() {
    let runs = transcripts(22);
    let with = |last: &dyn Fn(&[u8]) -> Vec<u8>| {
        let messages: Vec<_> = runs.iter().map(|run| [&run[1][..16], &last(&run[1])].concat()).collect();
        affine_rank(&messages)
    };
    assert_eq!(with(&|message| message[16..].to_vec()), BITS);
    assert!(with(&|_| 7u64.to_le_bytes().to_vec()) < BITS);
    assert!(with(&|message| message[..8].iter().map(|byte| byte ^ 5).collect()) < BITS);
}

/// The correlation of rows is gone from pads: what both pads of a transfer differ by is another for each.
#[test]
fn pads_have_no_common_difference() {
    let [first, second] = set_up(6, 8);
    let (settled, _) = batch([&first, &second], LABEL, &[0; 2]);
    let [differences, _] = settled.triples::<64>(128).unwrap();
    for plane in differences.chunks(2) {
        let ones: u32 = plane.iter().map(|word| word.count_ones()).sum();
        assert!((30..=98).contains(&ones), "{ones} of 128");
    }
}

#[test]
fn sessions_directions_and_labels_give_other_pads() {
    let [first, second] = set_up(7, 8);
    let pads = |parties: [&Transfers; 2], label| {
        let (settled, _) = batch(parties, label, &[0]);
        settled.triples::<64>(64).unwrap()[1].to_vec()
    };
    let base = pads([&first, &second], LABEL);
    assert!(base != pads([&second, &first], LABEL));
    assert!(base != pads([&first, &second], Label { step: 9, ..LABEL }));
    let [other, another] = set_up(8, 8);
    assert!(base != pads([&other, &another], LABEL));
    // The id alone makes another session of the same seeds.
    let hash = |id: &[u8]| key_of(SessionId::of(&[id]).hash(b"pads    "));
    assert!(*hash(b"one") != *hash(b"two"));
    assert!(SessionId::of(&[b"ab", b"c"]).0 != SessionId::of(&[b"a", b"bc"]).0);
}

/// In release builds, too; and no earlier step comes again.
#[test]
fn a_label_serves_once() {
    let [first, second] = set_up(9, 8);
    batch([&first, &second], LABEL, &[0]);
    // The other direction is another label.
    batch([&second, &first], LABEL, &[0]);
    let next = Label { step: 2, ..LABEL };
    for (label, works) in [(LABEL, false), (Label { part: 3, ..LABEL }, true), (next, true), (LABEL, false)] {
        let mut message = Vec::new();
        let chosen = second.choosing.choose(label, 1, &mut message).map(|_| ());
        let offered = first.offering.offer(label, 1, &[0; 120]).map(|_| ());
        for found in [chosen, offered] {
            assert_eq!(found.err().map(|error| error.code), (!works).then_some("E0909"), "{label:?}");
        }
    }
}

/// A table of two entries is half a byte, and says nothing of what else lies in its word.
#[test]
fn a_small_table_sends_its_entries_alone() {
    let [first, second] = set_up(12, 8);
    let (settled, decided) = batch([&second, &first], LABEL, &[1]);
    let mut message = Vec::new();
    settled.tables::<1>(&[0xffff_fff6; 3], &mut message).unwrap();
    assert!(message.len() == 3 && message.iter().all(|byte| *byte < 16));
    assert_eq!(decided.tables::<1>(3, &message).unwrap()[..], [1, 2, 2]);
}

#[test]
fn choices_without_a_product_are_not_kept() {
    let [first, second] = set_up(13, 8);
    let mut message = Vec::new();
    let chosen = second.choosing.choose(LABEL, 2, &mut message).unwrap();
    let offered = first.offering.offer(LABEL, 2, &message).unwrap();
    for planes in [offered.random().triples::<2>(70).unwrap(), chosen.random().triples::<2>(70).unwrap()] {
        assert!(planes.iter().flat_map(|planes| planes.chunks(2)).all(|words| words[1] >> 6 == 0));
    }
}

#[test]
fn uses_of_nothing_and_of_too_much() {
    let [first, second] = set_up(15, 8);
    let code = |found: Result<usize>| found.map_err(|error| error.code);
    let mut part = 0;
    let mut both = |choices: &[u64]| {
        part += 1;
        batch([&first, &second], Label { part, ..LABEL }, choices)
    };
    let nothing = &mut Vec::new();
    let (settled, decided) = both(&[]);
    assert_eq!(code(settled.times(24, &[], 24, nothing).map(|share| share.len())), Ok(0));
    assert_eq!(code(decided.times(24, 0, 24, &[]).map(|share| share.len())), Ok(0));
    let (settled, decided) = both(&[]);
    assert_eq!(code(settled.triples::<2>(0).map(|planes| planes[0].len())), Ok(0));
    assert_eq!(code(decided.triples::<2>(0).map(|planes| planes[0].len())), Ok(0));
    let (settled, decided) = both(&[]);
    let empty = Entries { n: 0, count: 4, bytes: 3 };
    assert_eq!(code(settled.entries(empty, &[], nothing).map(|()| 0)), Ok(0));
    assert_eq!(code(decided.entries(empty, &[]).map(|entries| entries.len())), Ok(0));
    assert!(nothing.is_empty());
    for (n, count, bytes) in [(0, 0, 1), (1, 4, 0), (1, 0, 1), (usize::MAX, 2, 2), (1, 2, usize::MAX)] {
        let (settled, decided) = both(&[0; 2]);
        let sizes = Entries { n, count, bytes };
        assert_eq!(code(settled.entries(sizes, &[], nothing).map(|()| 0)), Err("E0909"), "{sizes:?}");
        assert_eq!(code(decided.entries(sizes, &[]).map(|_| 0)), Err("E0909"), "{sizes:?}");
    }
    let most = usize::MAX;
    for (planes, count, inner, width) in
        [(2, 1, 1, 0), (2, 1, 0, 1), (2, 3, 2, 1), (most, 1, 1, 1), (2, most, 1, 1), (2, 1, 1, most)]
    {
        let (settled, decided) = both(&[0; 2]);
        let sizes = Rows { planes, count, inner, width };
        assert_eq!(code(settled.times_rows(sizes, (&[1], &|_| 0), 8, nothing).map(|_| 0)), Err("E0909"), "{sizes:?}");
        assert_eq!(code(decided.times_rows(sizes, 8, &[]).map(|_| 0)), Err("E0909"), "{sizes:?}");
    }
    assert_eq!(code(both(&[0]).1.times(most, 1, 8, &[]).map(|_| 0)), Err("E0909"));
    assert_eq!(code(both(&[0]).1.times(1, most, 8, &[]).map(|_| 0)), Err("E0909"));
}

/// What the parties of fixed randomness send and hold, from the set-up to pads of either direction. A change of this digest
/// is a change of the protocol: of what goes into a hash, of a message, of the order of either.
#[test]
fn all_that_is_sent_and_held_is_pinned() {
    let mut seen = Sha256::new();
    let id = SessionId::of(&[b"pinned"]);
    let [first, second] = set_up_as([&id; 2], 31, 8, &mut seen);
    for parties in [[&first, &second], [&second, &first]] {
        for label in [LABEL, Label { op: 6, step: 2, ..LABEL }] {
            let mut message = Vec::new();
            let chosen = parties[1].choosing.choose(label, 65, &mut message).unwrap();
            seen.update(&message);
            let settled = parties[0].offering.offer(label, 65, &message).unwrap().random();
            for planes in [chosen.random().triples::<64>(65 * 64).unwrap(), settled.triples::<64>(65 * 64).unwrap()] {
                planes.iter().flat_map(|plane| plane.iter()).for_each(|word| seen.update(word.to_le_bytes()));
            }
        }
    }
    let found: String = seen.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(found, "821f253d8bdd9ee54fb155a133498e17c35fb20ff5cacb20c5964d3eecd0f688");
}

/// The hash of pads, by the library's block cipher: `π(π(x) ⊕ t) ⊕ π(x)`, where `π` has the session's key and `t` is the
/// label and the transfer's number.
#[test]
fn the_hash_is_two_block_ciphers() {
    use aes::cipher::{BlockCipherEncrypt, KeyInit};
    let id = SessionId::of(&[b"hash"]);
    let digest = Sha256::new_with_prefix(id.0).chain_update(b"pads    ").finalize();
    let key: [u8; 16] = std::array::from_fn(|i| digest[i]);
    let cipher = aes::Aes128::new(&key.into());
    let permuted = |x: u128| {
        let mut block = aes::Block::from(x.to_le_bytes());
        cipher.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    };
    let label = Label { op: 0x0102_0304, step: 0x0506_0708, purpose: 0x890a, part: 0x0b0c };
    let tweak = 0x0102_0304_0506_0708_890a_0b0c_0000_0000_u128;
    let rows: Vec<u128> = (0..200).map(|i| u128::from(Words(i).next()) << 64 | u128::from(i)).collect();
    for first in [0, 1, 4096] {
        let mut hashed = rows.clone();
        Hash::new(&id).apply(label, first, &mut hashed);
        for (i, (row, hashed)) in rows.iter().zip(hashed).enumerate() {
            let inner = permuted(*row);
            assert!(hashed == permuted(inner ^ (tweak + (first + i) as u128)) ^ inner, "{first} + {i}");
        }
    }
}

/// One row under other tweaks and in other sessions has other pads.
#[test]
fn a_pad_depends_on_session_label_and_number() {
    let hashed = |id: &[u8], label, first| {
        let mut row = [5];
        Hash::new(&SessionId::of(&[id])).apply(label, first, &mut row);
        row[0]
    };
    let both = |label| [Direction::FromFirst, Direction::FromSecond].map(|direction| direction.label(label));
    let mut all = vec![hashed(b"other", LABEL, 0), hashed(b"id", LABEL, 1)];
    for label in [
        LABEL,
        Label { op: 6, ..LABEL },
        Label { step: 2, ..LABEL },
        Label { purpose: 8, ..LABEL },
        Label { part: 3, ..LABEL },
    ] {
        all.extend(both(label).map(|label| hashed(b"id", label, 0)));
        all.extend((0..14).map(|plane| hashed(b"id", super::pads::of_entries(label, plane), 0)));
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
}

/// With the same random numbers, the session goes into base keys, elements of the group and trees, and the direction into
/// the first two.
#[test]
fn a_set_up_depends_on_session_and_direction() {
    let base = |id: &SessionId, direction| {
        let (mut to_receiver, mut to_sender) = (Vec::new(), Vec::new());
        let sender = BaseSender::new(&mut random(1), &mut to_receiver).unwrap();
        let receiver = BaseReceiver::new(id, direction, &mut random(2), &mut to_sender).unwrap();
        let pairs = sender.keys(id, direction, &to_sender).unwrap();
        let (choices, keys) = receiver.keys(id, direction, to_receiver[..].try_into().unwrap()).unwrap();
        for (i, key) in keys.iter().enumerate() {
            assert!(*key == pairs[2 * i + (*choices >> i & 1) as usize]);
        }
        (to_sender, keys[0])
    };
    let [one, two] = [b"one", b"two"].map(|id| SessionId::of(&[id]));
    let (points, key) = base(&one, Direction::FromFirst);
    for (other_points, other) in [base(&two, Direction::FromFirst), base(&one, Direction::FromSecond)] {
        // What is sent and what is kept: points are of the same random numbers, and hide them.
        assert!(points != other_points && key != other);
    }
    // A key on the same points.
    let pairs = |id: &SessionId, direction| {
        BaseSender::new(&mut random(1), &mut Vec::new()).unwrap().keys(id, direction, &points).unwrap()[..4].to_vec()
    };
    let all =
        [pairs(&one, Direction::FromFirst), pairs(&two, Direction::FromFirst), pairs(&one, Direction::FromSecond)];
    assert!((0..4).all(|i| all[0][i] != all[1][i] && all[0][i] != all[2][i] && all[1][i] != all[2][i]));
    let sent = |id: &SessionId| {
        let mut message = Vec::new();
        Trees::grow(id, 8, &mut random(3)).unwrap().send(&[0; 2 * BASE_COUNT], &mut message);
        message
    };
    let (one, two) = (sent(&one), sent(&two));
    assert!(one.chunks(16).zip(two.chunks(16)).all(|(one, two)| one != two));
}

/// Every message that is changed on its way is seen by both before there is a pad, and so are two names of a session.
#[test]
fn parties_that_saw_different_things_have_no_pads() {
    let codes = |ids: [&SessionId; 2], tampered: usize| {
        let mut at = 0;
        let found = confirmed(ids, 17, 8, &mut |message: &mut Vec<u8>| {
            // Of the first messages, a pair of points changes places: each of them is an element of the group.
            match at == tampered {
                true if message.len() == FIRST_BYTES => message[32..96].rotate_left(32),
                true => message[5] ^= 1,
                false => {}
            }
            at += 1;
        });
        found.map(|party| party.err().map(|error| error.code))
    };
    let [one, two] = [b"one", b"two"].map(|id| SessionId::of(&[id]));
    assert_eq!(codes([&one; 2], 6), [None; 2]);
    for message in 0..4 {
        assert_eq!(codes([&one; 2], message), [Some("E0908"); 2], "message {message}");
    }
    assert_eq!(codes([&one; 2], 4), [Some("E0908"), None]);
    assert_eq!(codes([&one; 2], 5), [None, Some("E0908")]);
    assert_eq!(codes([&one, &two], 6), [Some("E0908"); 2]);
    // A party's own word is not the peer's.
    assert!(confirmation(&one, 0) != confirmation(&one, 1));
}

#[test]
fn hostile_messages_are_refused() {
    let id = SessionId::of(&[b"hostile"]);
    let code = |found: Result<()>| found.err().map(|error| error.code);
    let honest = begin(&id, 1, 8, &mut random(2)).unwrap().1;
    let first = |message: &[u8]| {
        let (begun, _) = begin(&id, 0, 8, &mut random(1)).unwrap();
        code(begun.exchange(message, &mut random(1)).map(|_| ()))
    };
    assert_eq!(first(&honest), None);
    assert_eq!(first(&honest[1..]), Some("E0908"));
    assert_eq!(first(&[]), Some("E0908"));
    // No element, the neutral element, and a number that is no canonical encoding, in both parts of the message.
    for bad in [[0x55; 32], [0; 32], [0xff; 32]] {
        for at in [0, 32, 64, FIRST_BYTES - 32] {
            let mut message = honest.clone();
            message[at..at + 32].copy_from_slice(&bad);
            assert_eq!(first(&message), Some("E0908"), "{at}");
        }
    }
    let (begun, _) = begin(&id, 0, 8, &mut random(1)).unwrap();
    let (exchanged, second) = begun.exchange(&honest, &mut random(1)).unwrap();
    assert_eq!(code(exchanged.finish(&second[1..]).map(|_| ())), Some("E0908"));
    assert_eq!(code(begin(&id, 0, 3, &mut random(1)).map(|_| ())), Some("E0909"));

    let [first, second] = set_up(1, 8);
    let mut message = Vec::new();
    let chosen = second.choosing.choose(LABEL, 2, &mut message).unwrap();
    assert_eq!(code(first.offering.offer(LABEL, 2, &message[8..]).map(|_| ())), Some("E0908"));
    assert_eq!(code(first.offering.offer(LABEL, usize::MAX, &message).map(|_| ())), Some("E0908"));
    let offered = first.offering.offer(LABEL, 2, &message).unwrap();
    assert_eq!(code(offered.flipped(&[0]).map(|_| ())), Some("E0908"));
    assert_eq!(code(chosen.with(&[0]).map(|_| ())), Some("E0909"));
    let chosen = second.choosing.choose(Label { part: 9, ..LABEL }, 2, &mut message).unwrap();
    assert_eq!(code(chosen.with(&[0; 3]).map(|_| ())), Some("E0909"));
    let label = |part| Label { part, ..LABEL };
    let choosers = |part| batch([&first, &second], label(part), &[0; 4]);
    assert_eq!(code(choosers(20).1.times(4, 64, 32, &[0; 4]).map(|_| ())), Some("E0908"));
    assert_eq!(code(choosers(21).1.times(1, 257, 32, &[0; 4]).map(|_| ())), Some("E0909"));
    assert_eq!(code(choosers(27).1.times(1, 64, 32, &[0; 4]).map(|_| ())), Some("E0909"));
    assert_eq!(code(choosers(22).1.tables::<4>(64, &[0; 4]).map(|_| ())), Some("E0908"));
    let sizes = |count| Entries { n: 64, count, bytes: 4 };
    assert_eq!(code(choosers(23).1.entries(sizes(16), &[0; 4]).map(|_| ())), Some("E0908"));
    assert_eq!(code(choosers(24).1.entries(sizes(32), &[0; 4]).map(|_| ())), Some("E0909"));
    assert_eq!(code(choosers(25).0.entries(sizes(16), &[0; 3], &mut Vec::new())), Some("E0909"));
    assert_eq!(code(choosers(26).0.entries(sizes(usize::MAX), &[0; 3], &mut Vec::new())), Some("E0909"));
}
