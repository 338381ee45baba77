//! Batches of products against integers at full dimension, noise against the formula, masks against a client that looks
//! for them.

use super::client::Client;
use super::server::Server;
use super::*;
use crate::params::TILE_SETS;
use crate::random::views::{UNEVEN, chi_square, random};
use crate::random::{Secret, Seed};
use crate::rns::add;

const PUBLIC: [u8; 16] = [1; 16];

fn labels(first_index: u32, seed: Seed) -> Labels<'static> {
    Labels { public_seed: &PUBLIC, first_index, seed }
}

struct Parties {
    set: &'static TileSet,
    client: Box<dyn TileClient>,
    server: Box<dyn TileServer>,
}

fn parties(set: &'static TileSet) -> Parties {
    let client = tile_client(set, Seed::new([2; 16])).expect("the set has a kernel");
    let public = client.public_key(&PUBLIC, Seed::new([3; 16]));
    assert_eq!(public.len(), public_key_bytes(set));
    let server = tile_server(set, &PUBLIC, &public).expect("the key is right");
    Parties { set, client, server }
}

/// Both halves with what they keep.
fn halves<const K: usize>(set: &'static TileSet) -> (Client<K>, Server<K>) {
    let client = Client::new(set, Seed::new([2; 16])).expect("the set has so many primes");
    let public = client.public_key(&PUBLIC, Seed::new([3; 16]));
    let server = Server::new(set, &PUBLIC, &public).expect("the key is right");
    (client, server)
}

/// A word mod 2^bits as the number nearest to zero.
fn signed(word: u64, bits: u32) -> i64 {
    word.cast_signed() << (64 - bits) >> (64 - bits)
}

/// The products mod 2^bits by integers.
fn products(tiling: &Tiling, bits: u32, left: &[u64], right: &[u64]) -> Vec<u64> {
    let Tiling { batch, rows, inner, cols, .. } = *tiling;
    let mut out = Vec::new();
    for b in 0..batch {
        for r in 0..rows {
            for c in 0..cols {
                let term = |j: usize| left[(b * rows + r) * inner + j].wrapping_mul(right[(b * inner + j) * cols + c]);
                let sum = (0..inner).fold(0u64, |sum, j| sum.wrapping_add(term(j)));
                out.push(sum & (u64::MAX >> (64 - bits)));
            }
        }
    }
    out
}

fn shares_sum_to_the_products(set: &'static TileSet, cases: &[[usize; 5]]) {
    let Parties { client, server, .. } = parties(set);
    for (i, &[batch, rows, inner, cols, bits]) in cases.iter().enumerate() {
        let bits = bits as u32;
        let tiling = Tiling::new(set, batch, rows, inner, cols).expect("sizes are right");
        let (left, right) = (random(batch * rows * inner, bits, 4), random(batch * inner * cols, bits, 5));
        let first = 1000 * i as u32;
        let message =
            client.encrypt_left(&tiling, bits, &left, labels(first, Seed::new([6; 16]))).expect("sizes are right");
        assert_eq!(message.len(), tiling.message_bytes());
        let served = server.multiply_right(&tiling, bits, &message, &right, labels(first, Seed::new([7; 16])));
        let (answer, own) = served.expect("sizes are right");
        assert_eq!(answer.len(), tiling.answer_bytes(bits));
        let decrypted = client.decrypt_products(&tiling, bits, &answer).expect("the answer is right");
        let bound = noise::max_error(&tiling, bits);
        assert!(bound < 1 << ERROR_BITS, "{tiling:?}: {bound}");
        for (i, want) in products(&tiling, bits, &left, &right).iter().enumerate() {
            let error = signed(decrypted[i].wrapping_add(own[i]).wrapping_sub(*want), bits);
            assert!(error.unsigned_abs() <= bound, "{tiling:?} result {i}: off by {error}");
        }
    }
}

#[test]
fn shares_sum_to_the_products_for_all_kinds_of_sizes() {
    let cases = [
        [12, 32, 64, 32, 40],
        [3, 20, 64, 20, 40],
        [2, 20, 20, 64, 33],
        [1, 1, 64, 70, 40],
        [1, 300, 5, 7, 24],
        [2, 3, 300, 2, 40],
        [1, 1, 1, 1, 40],
        [5, 2, 1, 3, 17],
        [1, 1, 3072, 40, 40],
        [70, 1, 300, 1, 40],
        [5, 3, 4, 2, 40],
    ];
    shares_sum_to_the_products(&TILE_SETS[0], &cases);
    let cases = [[3, 20, 64, 20, 64], [1, 1, 70, 300, 56], [1, 9, 300, 5, 48], [1, 1, 1, 1, 64], [2, 30, 8, 30, 41]];
    shares_sum_to_the_products(&TILE_SETS[1], &cases);
}

#[test]
fn tilings_cost_what_they_should() {
    let set = &TILE_SETS[0];
    let of = |batch, rows, inner, cols| {
        let tiling = Tiling::new(set, batch, rows, inner, cols).expect("sizes are right");
        (tiling.tile, tiling.ciphertexts(), tiling.products(), tiling.answers())
    };
    // Scores of twelve heads, a layer's weights for many tokens and for one.
    assert_eq!(of(12, 32, 64, 32), ([32, 64, 2], 12, 192, 3));
    assert_eq!(of(1, 64, 768, 2304), ([64, 16, 4], 48, 576, 36));
    assert_eq!(of(1, 1, 768, 2304), ([1, 128, 32], 6, 72, 1));
    // Squares of rows, and twelve heads' scores of one token.
    assert_eq!(of(32, 1, 768, 1), ([32, 128, 1], 6, 32, 1));
    assert_eq!(of(12, 1, 64, 64), ([4, 64, 16], 3, 48, 1));
    assert!(Tiling::new(set, 1, 0, 1, 1).is_err() && Tiling::new(set, 1, 1, MOST_INNER + 1, 1).is_err());
    for set in TILE_SETS {
        let tiling = Tiling::new(set, usize::MAX, usize::MAX, MOST_INNER, usize::MAX).expect("sizes are right");
        assert_eq!((tiling.message_bytes(), tiling.answer_bytes(set.ring)), (usize::MAX, usize::MAX));
        assert!([1, 768, MOST_INNER].iter().all(|n| Tiling::new(set, 1, 1, *n, 3072).is_ok()));
    }
    let keys: Vec<_> = TILE_SETS.iter().map(public_key_bytes).collect();
    assert_eq!(keys, [29 * 45_056, 43 * 153_600]);
}

/// Of a zero that is written as the prime both are added.
#[test]
fn weights_of_digits_and_their_negatives_have_no_bit_in_common() {
    for set in TILE_SETS {
        for p in set.primes {
            for weight in [1, 1 << (set.residue_bits() / 2)] {
                assert_eq!((weight & (p - weight), weight | (p - weight)), (0, *p));
            }
        }
    }
}

fn noise_is_as_the_formula_says<const K: usize>(set: &'static TileSet, bits: u32, sizes: [usize; 4]) {
    let (client, server) = halves::<K>(set);
    let Tiles { ring, .. } = &client.tiles;
    let [batch, rows, inner, cols] = sizes;
    let tiling = Tiling::new(set, batch, rows, inner, cols).expect("sizes are right");
    let (left, right) = (random(batch * rows * inner, bits, 8), random(batch * inner * cols, bits, 9));
    let message = client.encrypt_left(&tiling, bits, &left, labels(0, Seed::new([10; 16]))).expect("sizes are right");
    let lefts = server.read(&PUBLIC, 0, &message).expect("the message is right");
    let mut packed = server.merged_products(&tiling, bits, &lefts, &right, 0);
    ring.forward(&mut packed[1]);
    let mut product = Secret::zeros(set.n);
    let [mut b, a] = packed;
    for k in 0..K {
        let t = &ring.transforms()[k];
        t.dot([&a[k]], [&client.secret[k]], &mut product);
        t.inverse(&mut product);
        add(t.isa(), t.prime(), product.as_chunks().0, b[k].as_chunks_mut().0);
    }
    // The phase in units of 2^-24 is as good as the part that is sent.
    let phase = ring.rescale_bits(&b, bits + 24);
    let want = products(&tiling, bits, &left, &right);
    let (merged, mut squares, mut count) = (tiling.merged(0), 0.0, 0.0);
    for (at, place) in tiling.group(0).enumerate() {
        for (coefficient, element) in tiling.positions(place, at, merged) {
            let noise = phase[coefficient].wrapping_sub(u128::from(want[element]) << 24) << (104 - bits);
            let noise = (noise.cast_signed() >> (104 - bits)) as f64 / 2f64.powi(24);
            squares += noise * noise;
            count += 1.0;
        }
    }
    let (found, expected) = (squares / count, noise::deviation(&tiling, bits));
    // The answer's cuts come on top of what was measured.
    let cuts = (4f64.powi(-4) + set.n as f64 * 2.0 / 3.0 * 4f64.powi(-12)) / 12.0;
    let whole = (found + cuts).sqrt();
    let margin = 6.0 * (0.5 / count).sqrt() + 0.1;
    assert!((whole / expected - 1.0).abs() < margin, "{tiling:?}: {whole} {expected}");
}

#[test]
fn noise_is_as_the_formulas_say() {
    // Sixty-four merged products, one alone, and a row.
    for sizes in [[4, 32, 64, 32], [1, 64, 64, 1], [1, 1, 3072, 300]] {
        noise_is_as_the_formula_says::<2>(&TILE_SETS[0], 40, sizes);
    }
    noise_is_as_the_formula_says::<3>(&TILE_SETS[1], 64, [1, 1, 1024, 300]);
}

#[test]
fn what_the_client_decrypts_is_uniform_for_fixed_matrices() {
    let Parties { set, client, server } = parties(&TILE_SETS[0]);
    let bits = 40;
    let tiling = Tiling::new(set, 2, 32, 64, 32).expect("sizes are right");
    let left = random(2 * 32 * 64, bits, 11);
    let message = client.encrypt_left(&tiling, bits, &left, labels(0, Seed::new([12; 16]))).expect("sizes are right");
    let mut views: Vec<Vec<u64>> = Vec::new();
    for (seed, right) in [(13, vec![0; 2 * 64 * 32]), (14, vec![0; 2 * 64 * 32]), (15, random(2 * 64 * 32, bits, 16))] {
        let served = server.multiply_right(&tiling, bits, &message, &right, labels(0, Seed::new([seed; 16])));
        let (answer, _) = served.expect("sizes are right");
        let view = client.decrypt_products(&tiling, bits, &answer).expect("the answer is right");
        assert!(chi_square(view.iter().copied(), 1 << bits) < UNEVEN, "R is missing");
        for other in &views {
            let difference = view.iter().zip(other).map(|(x, y)| x.wrapping_sub(*y) & ((1 << bits) - 1));
            assert!(chi_square(difference, 1 << bits) < UNEVEN, "one mask for two answers");
        }
        views.push(view);
    }
}

#[test]
fn a_client_that_guesses_the_servers_matrix_cannot_tell_and_could_without_the_mask() {
    let (client, server) = halves::<2>(&TILE_SETS[0]);
    let (bits, n) = (40, 4096);
    let tiling = Tiling::new(&TILE_SETS[0], 1, 32, 64, 2).expect("sizes are right");
    let (left, right) = (random(32 * 64, bits, 17), random(64 * 2, bits, 18));
    let message = client.encrypt_left(&tiling, bits, &left, labels(0, Seed::new([19; 16]))).expect("sizes are right");
    let lefts = server.read(&PUBLIC, 0, &message).expect("the message is right");
    let guessed = || server.merged_products(&tiling, bits, &lefts, &right, 0);
    let a_of = |message: &[u8]| {
        let mut out = vec![0; n];
        unpack(&message[..packed_bytes(n, bits + BELOW_A)], bits + BELOW_A, &mut out);
        out
    };
    let served = server.multiply_right(&tiling, bits, &message, &right, labels(0, Seed::new([20; 16])));
    let (sent, _) = served.expect("sizes are right");
    let difference = |sent: &[u64], guess: &[u64]| {
        let words: Vec<u64> =
            sent.iter().zip(guess).map(|(x, y)| x.wrapping_sub(*y) & ((1 << (bits + BELOW_A)) - 1)).collect();
        chi_square(words.into_iter(), 1 << (bits + BELOW_A))
    };
    let bare = client.tiles.ring.rescale_bits(&guessed()[1], bits + BELOW_A);
    let bare: Vec<u64> = bare.iter().map(|word| *word as u64).collect();
    assert!(difference(&a_of(&sent), &bare) < UNEVEN, "A is not masked");
    // With the mask of the same seed the guess is right: the test would see a missing one.
    let again = server.answer(&tiling, bits, guessed(), 0, &Seed::new([20; 16]));
    assert!(difference(&a_of(&sent), &a_of(&again.a)) > UNEVEN);
}

#[test]
fn hostile_and_wrong_messages_are_refused() {
    for set in TILE_SETS {
        let Parties { client, server, .. } = parties(set);
        let tiling = Tiling::new(set, 1, 4, 4, 4).expect("sizes are right");
        let left = random(16, 40, 21);
        let encrypt = |bits, left: &[u64]| client.encrypt_left(&tiling, bits, left, labels(0, Seed::new([22; 16])));
        assert!(
            encrypt(set.ring + 1, &left).is_err() && encrypt(40, &left[1..]).is_err() && encrypt(20, &left).is_err()
        );
        let message = encrypt(40, &left).expect("sizes are right");
        let multiply = |message: &[u8], right: &[u64]| {
            server.multiply_right(&tiling, 40, message, right, labels(0, Seed::new([23; 16]))).is_err()
        };
        assert!(multiply(&message[1..], &left) && multiply(&message, &left[1..]) && multiply(&message, &[1 << 41; 16]));
        assert!(multiply(&vec![255; message.len()], &left) && !multiply(&message, &left));
        assert!(client.decrypt_products(&tiling, 40, &[0; 7]).is_err());
        assert!(client.decrypt_products(&tiling, 0, &[]).is_err());
        let other = TILE_SETS.iter().find(|other| *other != set).expect("there are two");
        let tiling = Tiling::new(other, 1, 4, 4, 4).expect("sizes are right");
        assert!(client.encrypt_left(&tiling, 40, &left, labels(0, Seed::new([22; 16]))).is_err());
        let bytes = public_key_bytes(set);
        assert!(tile_server(set, &PUBLIC, &vec![255; bytes]).is_err());
        assert!(tile_server(set, &PUBLIC, &vec![0; bytes - 1]).is_err());
    }
}
