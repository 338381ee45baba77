//! The whole protocol at full dimension against integers, its noise against the formula, and its masks against a server
//! that knows what to look for.

use super::gemm::{Room, Shares, Source, multiply_panel};
use super::words::PANEL;
use super::*;
use crate::bits::Unpacker;
use crate::exact::draw_ternary;
use crate::lanes::Isa;
use crate::params::WEIGHT_SETS;
use crate::random::views::{UNEVEN, chi_square, random};
use crate::random::{Seed, Use};

/// Weights of 16 bits with a sign, mod 2^ring.
fn weights(n: usize, ring: u32, seed: u8) -> Vec<u64> {
    random(n, 16, seed).iter().map(|w| w.wrapping_sub(1 << 15) & (u64::MAX >> (64 - ring))).collect()
}

/// An encrypted matrix of random weights.
struct Case {
    key: ServerKey,
    client: ClientKey,
    shape: Shape,
    weights: Vec<u64>,
    bytes: Vec<u8>,
}

impl Case {
    fn new(set: &'static WeightSet, rows: usize, cols: usize) -> Case {
        let shape = Shape { index: 3, rows, cols };
        let key = ServerKey::new(set, shape.blocks(set), &[7; 16]);
        let weights = weights(rows * cols, set.ring, 8);
        let mut bytes = Vec::new();
        for block in 0..shape.blocks(set) {
            let own = block * set.n..cols.min((block + 1) * set.n);
            let part: Vec<u64> = weights.chunks(cols).flat_map(|row| row[own.clone()].to_vec()).collect();
            bytes.extend(encrypt_block(&key, shape, block, &part).expect("the block is the matrix's"));
        }
        let client = ClientKey::new(key.public().clone());
        Case { key, client, shape, weights, bytes }
    }

    fn matrix(&self) -> EncryptedMatrix<'_> {
        EncryptedMatrix::new(self.key.set, self.shape, &self.bytes).expect("all bytes are there")
    }

    /// The client's message and both shares.
    fn run(&self, bits: u32, x: &[u64], seed: u8) -> (Vec<u8>, Vec<u64>, Vec<u64>) {
        let (matrix, mut message) = (self.matrix(), Vec::new());
        let sums = matrix.sums(&self.client);
        let client = client_product(&self.client, &matrix, &sums, bits, x, Seed::new([seed; 16]), &mut message);
        let client = client.expect("sizes are right");
        let rows = x.len() / self.shape.rows;
        assert_eq!(message.len(), message_bytes(self.key.set, bits, self.shape.cols, rows));
        let server = server_finish(&self.key, bits, self.shape.cols, rows, &message).expect("sizes are right");
        (message, client, server)
    }

    /// The product mod 2^bits by integers.
    fn product(&self, bits: u32, x: &[u64]) -> Vec<u64> {
        let mask = u64::MAX >> (64 - bits);
        let mut out = Vec::new();
        for x in x.chunks(self.shape.rows) {
            let mut row = vec![0u64; self.shape.cols];
            for (x, w) in x.iter().zip(self.weights.chunks(self.shape.cols)) {
                row.iter_mut().zip(w).for_each(|(sum, w)| *sum = sum.wrapping_add(x.wrapping_mul(*w)));
            }
            out.extend(row.iter().map(|sum| sum & mask));
        }
        out
    }
}

/// A word mod 2^bits as the number nearest to zero.
fn signed(word: u64, bits: u32) -> i64 {
    word.cast_signed() << (64 - bits) >> (64 - bits)
}

#[test]
fn shares_sum_to_the_product_for_every_set_and_ring() {
    for set in WEIGHT_SETS {
        for (rows, cols, bits, batch) in [(40, 33, set.ring, 3), (17, 16, set.ring - 7, 1), (3, set.n + 5, set.ring, 2)]
        {
            let case = Case::new(set, rows, cols);
            let x = random(rows * batch, bits, 9);
            let (_, client, server) = case.run(bits, &x, 1);
            let bound = noise::max_error(set, bits, rows);
            assert!(bound <= 2, "{set:?}");
            for (i, want) in case.product(bits, &x).iter().enumerate() {
                let error = signed(client[i].wrapping_add(server[i]).wrapping_sub(*want), bits);
                assert!(error.unsigned_abs() <= bound, "{set:?} {rows} {cols} {bits}, result {i}: off by {error}");
            }
        }
    }
}

#[test]
fn noise_is_as_the_formula_says_and_results_are_off_by_one_at_most() {
    for (id, rows, cols, batch) in [(1, 768, 1024, 4), (1, 3072, 256, 2), (2, 768, 256, 2), (4, 768, 256, 2)] {
        let set = WeightSet::by_id(id).expect("the set exists");
        let bits = set.ring;
        let case = Case::new(set, rows, cols);
        let x = random(rows * batch, bits, 10);
        let (message, client, server) = case.run(bits, &x, 2);
        let want = case.product(bits, &x);
        let row_bytes = message_bytes(set, bits, cols, 1);
        let mut squares = 0.0;
        for row in 0..batch {
            // What the server sees before it rounds, and the mask as the client drew it.
            let message = &message[row * row_bytes..][..row_bytes];
            let mut unpacker = Unpacker::new(message);
            let a: Vec<u128> = (0..set.n).map(|_| unpacker.pull(bits + BELOW_A)).collect();
            let mut product = vec![0; set.n];
            let a = case.key.answers.transform(&a, bits + BELOW_A);
            case.key.answers.product(&a, &case.key.secrets[0], &mut product);
            let mut unpacker = Unpacker::new(&message[packed_bytes(set.n, bits + BELOW_A)..]);
            let mut stream = Seed::new([2; 16]).stream(Use::Product, row as u64);
            draw_ternary(&mut stream, set.n);
            stream.errors(&mut vec![0; set.n]);
            let mut masks = vec![0; 2 * cols];
            stream.words(&mut masks);
            for c in 0..cols {
                let b = unpacker.pull(bits + BELOW_B) << (BELOW_A - BELOW_B);
                let mask = u128::from(masks[2 * c]) | u128::from(masks[2 * c + 1]) << 64;
                let mask = (mask & u128::MAX >> (128 - set.log_q)) >> (set.log_q - bits - BELOW_A);
                let noisy = b.wrapping_sub(product[c]).wrapping_sub(mask);
                let noisy = noisy.wrapping_sub(u128::from(want[row * cols + c]) << BELOW_A);
                let places = 128 - bits - BELOW_A;
                let noise = (noisy.cast_signed() << places >> places) as f64 / 4096.0;
                squares += noise * noise;
            }
        }
        let count = (batch * cols) as f64;
        let (found, expected) = ((squares / count).sqrt(), noise::deviation(set, bits, rows));
        // A deviation of n samples is off by 1/√(2n); the shares' own squares add as much.
        let margin = 6.0 * (0.5 / count).sqrt() + 6.0 * (0.2 / (rows * batch) as f64).sqrt();
        assert!((found / expected - 1.0).abs() < margin, "set {id}, {rows} rows: {found} {expected} {margin}");
        let bound = noise::max_error(set, bits, rows);
        let errors = (0..want.len()).map(|i| signed(client[i].wrapping_add(server[i]).wrapping_sub(want[i]), bits));
        let worst = errors.map(i64::unsigned_abs).max().unwrap_or_default();
        assert!(worst <= 1 && worst <= bound, "set {id}, {rows} rows: {worst} {bound}");
    }
}

#[test]
fn bounds_of_errors_grow_with_rows() {
    let set = WeightSet::by_id(1).expect("the set exists");
    assert_eq!([64, 768, 3072, 11008].map(|rows| noise::max_error(set, 40, rows)), [1, 2, 4, 7]);
    assert!((noise::deviation(set, 40, 768) - 0.103).abs() < 0.002);
    // A smaller ring has less.
    assert_eq!(noise::max_error(set, 32, 11008), 1);
}

/// How A, as it was sent, differs from `Σ x_k a_k` for a guessed `x`.
fn differences(case: &Case, bits: u32, message: &[u8], guess: &[u64]) -> Vec<u64> {
    let set = case.key.set;
    let shares = Shares::new(guess, 1, guess.len(), bits, set.word_bytes());
    let cipher = case.key.public().cipher();
    let source = Source::Stream(&cipher, stream_of(case.shape.index));
    let sums = case.matrix().sums(&case.client);
    let mut unpacker = Unpacker::new(message);
    let mut out = Vec::new();
    let mut words = [0; PANEL];
    for panel in 0..set.n / PANEL {
        multiply_panel(Isa::best(), &shares, set.word_bytes(), &source, panel, &mut Room::new(), &mut words);
        for (c, word) in words.iter().enumerate() {
            let guessed = word.wrapping_sub(sums.a_of(PANEL * panel + c) << (bits - 1));
            let shift = set.log_q - set.ring - BELOW_A;
            let difference = unpacker.pull(bits + BELOW_A).wrapping_sub(guessed >> shift);
            out.push(difference as u64 & (u64::MAX >> (64 - bits - BELOW_A)));
        }
    }
    out
}

#[test]
fn a_server_that_guesses_the_shares_cannot_tell_and_could_without_the_mask() {
    let set = WeightSet::by_id(1).expect("the set exists");
    let (bits, rows) = (40, 24);
    let case = Case::new(set, rows, 16);
    let x = random(rows, bits, 11);
    let (message, ..) = case.run(bits, &x, 3);
    // With the right guess nothing but the mask is left: it has to look uniform.
    let left = differences(&case, bits, &message, &x);
    let chi = chi_square(left.iter().copied(), 1 << (bits + BELOW_A));
    assert!(chi < UNEVEN, "A is not masked: {chi}");
    // The same message with the mask taken off again, as if it had been left out, is caught.
    let key = case.key.public();
    let exact = &case.key.answers;
    let u = exact.ternary(&draw_ternary(&mut Seed::new([3; 16]).stream(Use::Product, 0), set.n));
    let mut product = vec![0; set.n];
    exact.product(&exact.transform(&key.first_part(), set.log_key), &u, &mut product);
    let below = set.log_key - bits - BELOW_A;
    let bare = left
        .iter()
        .zip(&product)
        .map(|(d, p)| d.wrapping_sub((p >> below) as u64) & (u64::MAX >> (64 - bits - BELOW_A)));
    let bare: Vec<u64> = bare.collect();
    assert!(chi_square(bare.iter().copied(), 1 << (bits + BELOW_A)) > UNEVEN);
    assert!(bare.iter().all(|d| signed(*d, bits + BELOW_A).unsigned_abs() <= 2), "only errors are left");
}

#[test]
fn what_the_server_decrypts_is_uniform_for_fixed_weights_and_shares() {
    let set = WeightSet::by_id(1).expect("the set exists");
    let (bits, rows, cols) = (40, 8, 2048);
    let case = Case::new(set, rows, cols);
    let mut views = Vec::new();
    for x in [vec![0; rows], random(rows, bits, 12)] {
        for seed in [4, 5] {
            let (message, _, server) = case.run(bits, &x, seed);
            assert!(chi_square(server.iter().copied(), 1 << bits) < UNEVEN, "R is missing");
            let b = &message[packed_bytes(set.n, bits + BELOW_A)..];
            let bytes = b.iter().map(|b| u64::from(*b));
            assert!(chi_square(bytes, 1 << 8) < UNEVEN, "B is not masked");
            views.push(server);
        }
    }
    // A mask that is used twice would cancel between two rows: within a call, too.
    let x = random(rows, bits, 12).repeat(2);
    let (_, _, server) = case.run(bits, &x, 6);
    views.extend(server.chunks(cols).map(<[u64]>::to_vec));
    for (i, one) in views.iter().enumerate() {
        for other in &views[..i] {
            let difference = one.iter().zip(other).map(|(x, y)| x.wrapping_sub(*y) & ((1 << bits) - 1));
            assert!(chi_square(difference, 1 << bits) < UNEVEN, "one mask for two messages");
        }
    }
}

#[test]
fn encryptions_hide_the_weights_and_differ_by_row_and_matrix() {
    let set = WeightSet::by_id(1).expect("the set exists");
    let key = ServerKey::new(set, 1, &[7; 16]);
    let shape = Shape { index: 0, rows: 2, cols: 2048 };
    let zeros = vec![0; 2 * 2048];
    let first = encrypt_block(&key, shape, 0, &zeros).expect("sizes are right");
    assert!(chi_square(first.iter().map(|b| u64::from(*b)), 1 << 8) < UNEVEN);
    assert!(first == encrypt_block(&key, shape, 0, &zeros).expect("sizes are right"), "one seed, one file");
    let other = Shape { index: 1, ..shape };
    let second = encrypt_block(&key, other, 0, &zeros).expect("sizes are right");
    let differences = first.iter().zip(&second).map(|(x, y)| u64::from(x.wrapping_sub(*y)));
    assert!(chi_square(differences, 1 << 8) < UNEVEN);
    let rows: Vec<&[u8]> = first.chunks(words::row_bytes(set)).collect();
    assert!(rows[0] != rows[1]);
}

#[test]
fn wrong_sizes_are_refused_and_a_key_comes_back_from_its_bytes() {
    let set = WeightSet::by_id(1).expect("the set exists");
    let case = Case::new(set, 2, 3);
    let key = case.key.public();
    let mut bytes = Vec::new();
    key.write(&mut bytes);
    assert_eq!(bytes.len(), PublicKey::bytes(set, 1));
    assert!(PublicKey::read(set, 1, &bytes).is_ok_and(|read| read == *key));
    assert!(PublicKey::read(set, 2, &bytes).is_err() && PublicKey::read(set, 1, &bytes[1..]).is_err());
    assert!(PublicKey::read(set, usize::MAX, &bytes).is_err());
    assert!(EncryptedMatrix::new(set, case.shape, &case.bytes[1..]).is_err());
    assert!(EncryptedMatrix::new(set, Shape { rows: 0, ..case.shape }, &[]).is_err());
    let (matrix, mut message) = (case.matrix(), Vec::new());
    let sums = matrix.sums(&case.client);
    let mut run = |bits, x: &[u64]| {
        client_product(&case.client, &matrix, &sums, bits, x, Seed::new([0; 16]), &mut message).is_err()
    };
    assert!(run(41, &[1, 2]) && run(0, &[1, 2]) && run(40, &[1, 2, 3]) && !run(40, &[1, 2]));
    assert!(server_finish(&case.key, 40, 3, 1, &message[1..]).is_err());
    assert!(server_finish(&case.key, 41, 3, 1, &message).is_err());
    assert!(server_finish(&case.key, 40, 4097, 1, &message).is_err());
    assert!(encrypt_block(&case.key, case.shape, 1, &[]).is_err());
    assert!(encrypt_block(&case.key, case.shape, 0, &[1; 5]).is_err());
    assert!(encrypt_block(&case.key, Shape { index: 1 << 31, ..case.shape }, 0, &[1; 6]).is_err());
}
