//! Batches of products against integers at full dimension, noise against the formula, masks against a client that looks
//! for them.

use super::merge::Ciphertext;
use super::server::{answer, merged_products};
use super::*;
use crate::params::TILE_SETS;
use crate::random::views::{UNEVEN, chi_square, random};
use crate::random::{Secret, Seed, Stream};
use crate::rns::add;

const PUBLIC: [u8; 16] = [1; 16];

fn labels(first_index: u32, seed: Seed) -> Labels<'static> {
    Labels { public_seed: &PUBLIC, first_index, seed }
}

struct Parties {
    tiles: Tiles,
    key: TileKey,
    public: TilePublicKey,
}

fn parties() -> Parties {
    let tiles = Tiles::new(&TILE_SETS[0]);
    let key = TileKey::new(&tiles, Seed::new([2; 16]));
    let bytes = tile_public_key(&tiles, &key, &PUBLIC, Seed::new([3; 16]));
    let public = read_tile_public_key(&tiles, &PUBLIC, &bytes).expect("the key is right");
    Parties { tiles, key, public }
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

#[test]
fn shares_sum_to_the_products_for_all_kinds_of_sizes() {
    let Parties { tiles, key, public } = parties();
    let cases = [
        (12, 32, 64, 32, 40),
        (3, 20, 64, 20, 40),
        (2, 20, 20, 64, 33),
        (1, 1, 64, 70, 40),
        (1, 300, 5, 7, 24),
        (2, 3, 300, 2, 40),
        (1, 1, 1, 1, 40),
        (5, 2, 1, 3, 17),
    ];
    for (i, (batch, rows, inner, cols, bits)) in cases.into_iter().enumerate() {
        let tiling = Tiling::new(tiles.set, batch, rows, inner, cols).expect("sizes are right");
        let (left, right) = (random(batch * rows * inner, bits, 4), random(batch * inner * cols, bits, 5));
        let first = 1000 * i as u32;
        let message = encrypt_left(&tiles, &key, &tiling, bits, &left, labels(first, Seed::new([6; 16])))
            .expect("sizes are right");
        assert_eq!(message.len(), tiling.message_bytes());
        let served =
            multiply_right(&tiles, &public, &tiling, bits, &message, &right, labels(first, Seed::new([7; 16])));
        let (answer, server) = served.expect("sizes are right");
        assert_eq!(answer.len(), tiling.answer_bytes(bits));
        let client = decrypt_products(&tiles, &key, &tiling, bits, &answer).expect("the answer is right");
        let bound = noise::max_error(tiles.set, &tiling, bits);
        // A wide right tile has many elements, and as much noise.
        assert!(bound <= if rows == 1 { 5 } else { 2 }, "{tiling:?}: {bound}");
        for (i, want) in products(&tiling, bits, &left, &right).iter().enumerate() {
            let error = signed(client[i].wrapping_add(server[i]).wrapping_sub(*want), bits);
            assert!(error.unsigned_abs() <= bound.min(1), "{tiling:?} result {i}: off by {error}");
        }
    }
}

#[test]
fn attention_takes_the_ciphertexts_that_it_should() {
    let set = &TILE_SETS[0];
    let tiling = Tiling::new(set, 12, 32, 64, 32).expect("sizes are right");
    assert_eq!((tiling.tile, tiling.ciphertexts(), tiling.products(), tiling.answers()), ([32, 64, 2], 12, 192, 3));
    assert!(Tiling::new(set, 1, 0, 1, 1).is_err() && Tiling::new(set, 1, 1 << 21, 1, 1).is_err());
    assert_eq!(Tiles::new(set).public_key_bytes(), 29 * 45056);
}

/// Left ciphertexts of a message.
fn lefts(tiles: &Tiles, message: &[u8]) -> Vec<Ciphertext> {
    let bytes = message.chunks_exact(tiles.ciphertext_bytes());
    let read = |(i, bytes)| {
        let a = tiles.ring.uniform(&mut Stream::new(&PUBLIC, CIPHERTEXTS + i as u64));
        [read_residues(&tiles.ring, bytes).expect("the message is right"), a]
    };
    bytes.enumerate().map(read).collect()
}

#[test]
fn noise_is_as_the_formula_says() {
    let Parties { tiles, key, public } = parties();
    let bits = 40;
    let (ring, n) = (&tiles.ring, tiles.set.n);
    // Sixty-four merged products, and one alone.
    for (batch, rows, inner, cols) in [(4, 32, 64, 32), (1, 64, 64, 1)] {
        let tiling = Tiling::new(tiles.set, batch, rows, inner, cols).expect("sizes are right");
        let (left, right) = (random(batch * rows * inner, bits, 8), random(batch * inner * cols, bits, 9));
        let message =
            encrypt_left(&tiles, &key, &tiling, bits, &left, labels(0, Seed::new([10; 16]))).expect("sizes are right");
        let mut packed = merged_products(&tiles, &public, &tiling, bits, &lefts(&tiles, &message), &right, 0);
        ring.forward(&mut packed[1]);
        let mut product = Secret::zeros(n);
        let [mut b, a] = packed;
        for k in 0..2 {
            let t = &ring.transforms()[k];
            t.dot([&a[k]], [&key.secret[k]], &mut product);
            t.inverse(&mut product);
            add(t.isa(), t.prime(), product.as_chunks().0, b[k].as_chunks_mut().0);
        }
        // The phase in units of 2^-12 is as good as the part that is sent.
        let phase = ring.rescale(&b, 1 << (bits + 12));
        let want = products(&tiling, bits, &left, &right);
        let (merged, mut squares, mut count) = (tiling.merged(0), 0.0, 0.0);
        for (at, place) in tiling.group(0).enumerate() {
            for (coefficient, element) in tiling.positions(place, at, merged) {
                let noise = signed(phase[coefficient].wrapping_sub(want[element] << 12), bits + 12) as f64 / 4096.0;
                squares += noise * noise;
                count += 1.0;
            }
        }
        let (found, expected) = ((squares / count).sqrt(), noise::deviation(tiles.set, &tiling, bits));
        // The answer's cuts come on top of what was measured.
        let whole = (found * found + 4f64.powi(-4) / 12.0).sqrt();
        let margin = 6.0 * (0.5 / count).sqrt() + 0.1;
        assert!((whole / expected - 1.0).abs() < margin, "{tiling:?}: {whole} {expected}");
    }
}

#[test]
fn what_the_client_decrypts_is_uniform_for_fixed_matrices() {
    let Parties { tiles, key, public } = parties();
    let bits = 40;
    let tiling = Tiling::new(tiles.set, 2, 32, 64, 32).expect("sizes are right");
    let left = random(2 * 32 * 64, bits, 11);
    let message =
        encrypt_left(&tiles, &key, &tiling, bits, &left, labels(0, Seed::new([12; 16]))).expect("sizes are right");
    let mut views: Vec<Vec<u64>> = Vec::new();
    for (seed, right) in [(13, vec![0; 2 * 64 * 32]), (14, vec![0; 2 * 64 * 32]), (15, random(2 * 64 * 32, bits, 16))] {
        let served = multiply_right(&tiles, &public, &tiling, bits, &message, &right, labels(0, Seed::new([seed; 16])));
        let (answer, _) = served.expect("sizes are right");
        let client = decrypt_products(&tiles, &key, &tiling, bits, &answer).expect("the answer is right");
        assert!(chi_square(client.iter().copied(), 1 << bits) < UNEVEN, "R is missing");
        for other in &views {
            let difference = client.iter().zip(other).map(|(x, y)| x.wrapping_sub(*y) & ((1 << bits) - 1));
            assert!(chi_square(difference, 1 << bits) < UNEVEN, "one mask for two answers");
        }
        views.push(client);
    }
}

#[test]
fn a_client_that_guesses_the_servers_matrix_cannot_tell_and_could_without_the_mask() {
    let Parties { tiles, key, public } = parties();
    let (bits, n) = (40, tiles.set.n);
    let tiling = Tiling::new(tiles.set, 1, 32, 64, 2).expect("sizes are right");
    let (left, right) = (random(32 * 64, bits, 17), random(64 * 2, bits, 18));
    let message =
        encrypt_left(&tiles, &key, &tiling, bits, &left, labels(0, Seed::new([19; 16]))).expect("sizes are right");
    let lefts = lefts(&tiles, &message);
    let guessed = || merged_products(&tiles, &public, &tiling, bits, &lefts, &right, 0);
    let a_of = |message: &[u8]| {
        let mut out = vec![0; n];
        unpack(message, bits + BELOW_A, &mut out);
        out
    };
    let served = multiply_right(&tiles, &public, &tiling, bits, &message, &right, labels(0, Seed::new([20; 16])));
    let (sent, _) = served.expect("sizes are right");
    let difference = |sent: &[u64], guess: &[u64]| {
        let words: Vec<u64> =
            sent.iter().zip(guess).map(|(x, y)| x.wrapping_sub(*y) & ((1 << (bits + BELOW_A)) - 1)).collect();
        chi_square(words.into_iter(), 1 << (bits + BELOW_A))
    };
    let bare = tiles.ring.rescale(&guessed()[1], 1 << (bits + BELOW_A));
    assert!(difference(&a_of(&sent), &bare) < UNEVEN, "A is not masked");
    // With the mask of the same seed the guess is right: the test would see a missing one.
    let (again, _) = answer(&tiles, &public, &tiling, bits, guessed(), 0, &Seed::new([20; 16]));
    assert!(difference(&a_of(&sent), &a_of(&again)) > UNEVEN);
}

#[test]
fn hostile_and_wrong_messages_are_refused() {
    let Parties { tiles, key, public } = parties();
    let tiling = Tiling::new(tiles.set, 1, 4, 4, 4).expect("sizes are right");
    let left = random(16, 40, 21);
    let encrypt = |bits, left: &[u64]| encrypt_left(&tiles, &key, &tiling, bits, left, labels(0, Seed::new([22; 16])));
    assert!(encrypt(41, &left).is_err() && encrypt(40, &left[1..]).is_err() && encrypt(20, &left).is_err());
    let message = encrypt(40, &left).expect("sizes are right");
    let multiply = |message: &[u8], right: &[u64]| {
        multiply_right(&tiles, &public, &tiling, 40, message, right, labels(0, Seed::new([23; 16]))).is_err()
    };
    assert!(multiply(&message[1..], &left) && multiply(&message, &left[1..]) && multiply(&message, &[1 << 41; 16]));
    assert!(multiply(&vec![255; message.len()], &left) && !multiply(&message, &left));
    assert!(decrypt_products(&tiles, &key, &tiling, 40, &[0; 7]).is_err());
    assert!(decrypt_products(&tiles, &key, &tiling, 0, &[]).is_err());
    let bytes = tiles.public_key_bytes();
    assert!(read_tile_public_key(&tiles, &PUBLIC, &vec![255; bytes]).is_err());
    assert!(read_tile_public_key(&tiles, &PUBLIC, &vec![0; bytes - 1]).is_err());
}
