//! Products against integers in all widths, noise against the formulas, masks against a client that looks for them.

use super::client::noisy_values;
use super::server::products;
use super::*;
use crate::arith::{centred, inverse_mod, mul_mod};
use crate::params::{SLOT_PRIME as P, SLOT_SETS};
use crate::random::views::{UNEVEN, chi_square};
use crate::random::{Seed, Stream};
use crate::rns::{Modulus, add};

const PUBLIC: [u8; 16] = [1; 16];

struct Parties {
    slots: Slots,
    key: SlotKey,
    public: SlotPublicKey,
}

fn parties() -> Parties {
    let slots = Slots::new(&SLOT_SETS[0]);
    let key = SlotKey::new(&slots, Seed::new([2; 16]));
    let bytes = slot_public_key(&slots, &key, &PUBLIC, Seed::new([3; 16]));
    assert_eq!(bytes.len(), slots.public_key_bytes());
    let public = read_slot_public_key(&slots, &PUBLIC, &bytes).expect("the key is right");
    Parties { slots, key, public }
}

fn random(n: usize, seed: u8) -> Vec<u64> {
    let mut out = vec![0; n];
    Stream::new(&[seed; 16], 0).uniform(P, &mut out);
    out
}

impl Parties {
    fn encrypt(&self, width: usize, values: &[u64], index: u32) -> SlotCiphertext {
        let bytes =
            encrypt_slots(&self.slots, &self.key, width, values, &PUBLIC, index, Seed::new([40 + index as u8; 16]));
        let bytes = bytes.expect("values are right");
        assert_eq!(bytes.len(), self.slots.operand_bytes(width));
        read_slot_ciphertext(&self.slots, width, &PUBLIC, index, &bytes).expect("the ciphertext is right")
    }

    /// The server's share and the client's.
    fn multiply(&self, width: usize, terms: &[(&SlotCiphertext, &[u64])], seed: u8) -> (Vec<u64>, Vec<u64>) {
        let (answer, server) =
            multiply_slots(&self.slots, &self.public, terms, Seed::new([seed; 16])).expect("sizes are right");
        assert_eq!(answer.len(), self.slots.answer_bytes(width));
        (server, decrypt_slots(&self.slots, &self.key, width, &answer).expect("the answer is right"))
    }
}

#[test]
fn products_and_squares_are_exact_in_every_width() {
    let parties = parties();
    for (i, width) in WIDTHS.into_iter().enumerate() {
        let [x0, x1, y0, y1] = [5, 6, 7, 8].map(|seed| random(width, seed));
        let [cx, cy] = [(0, &x0), (1, &y0)].map(|(j, v)| parties.encrypt(width, v, (2 * i + j) as u32));
        let (server, client) = parties.multiply(width, &[(&cx, &y1), (&cy, &x1)], 9);
        for j in 0..width {
            let own = (mul_mod(x0[j], y0[j], P) + mul_mod(x1[j], y1[j], P)) % P;
            let want = mul_mod((x0[j] + x1[j]) % P, (y0[j] + y1[j]) % P, P);
            assert_eq!((server[j] + client[j] + own) % P, want, "product {width} {j}");
        }
        let twice: Vec<u64> = x1.iter().map(|x| 2 * x % P).collect();
        let (server, client) = parties.multiply(width, &[(&cx, &twice)], 10);
        for j in 0..width {
            let own = (mul_mod(x0[j], x0[j], P) + mul_mod(x1[j], x1[j], P)) % P;
            let sum = (x0[j] + x1[j]) % P;
            assert_eq!((server[j] + client[j] + own) % P, mul_mod(sum, sum, P), "square {width} {j}");
        }
        let (server, client) = parties.multiply(width, &[(&cx, &y1), (&cy, &x1), (&cx, &x1)], 11);
        for j in 0..width {
            let terms = [mul_mod(x0[j], y1[j], P), mul_mod(y0[j], x1[j], P), mul_mod(x0[j], x1[j], P)];
            assert_eq!((server[j] + client[j]) % P, terms.iter().sum::<u64>() % P, "sum {width} {j}");
        }
    }
}

/// The noise of products before flooding: their phase less the encoded result.
fn noise_before_flooding(parties: &Parties, x: &[u64], y: &[u64]) -> Vec<f64> {
    let Parties { slots, key, public } = parties;
    let n = slots.set.n;
    let cx = parties.encrypt(n, x, 50);
    let [mut c0, mut c1] = products(slots, public, &[(&cx, y)], &Seed::new([12; 16])).expect("sizes are right");
    slots.ring.forward(&mut c1);
    let mut product = vec![0; n];
    let want: Vec<u64> = x.iter().zip(y).map(|(x, y)| mul_mod(*x, *y, P)).collect();
    let want = slots.ring.encode(&slots.encoding, &slots.polynomial(n, &want).expect("values are right"));
    let mut residues = Vec::new();
    for k in 0..2 {
        let (t, p) = (&slots.ring.transforms()[k], slots.ring.prime(k));
        t.dot([&c1[k]], [&key.secret()[k]], &mut product);
        t.inverse(&mut product);
        add(t.isa(), p, product.as_chunks().0, c0[k].as_chunks_mut().0);
        residues.push((0..n).map(|i| (c0[k][i] + 2 * p - want[k][i]) % p).collect::<Vec<u64>>());
    }
    // Two primes hold it: mixed radix, nearest to zero.
    let (p0, p1) = (slots.ring.prime(0), slots.ring.prime(1));
    let digit = |i: usize| mul_mod((residues[1][i] + p1 - residues[0][i] % p1) % p1, inverse_mod(p0 % p1, p1), p1);
    (0..n).map(|i| residues[0][i] as f64 + p0 as f64 * centred(digit(i), p1) as f64).collect()
}

#[test]
fn noise_is_as_the_formula_says_and_the_flooding_covers_it() {
    let parties = parties();
    let set = parties.slots.set;
    let noise = noise_before_flooding(&parties, &random(set.n, 13), &random(set.n, 14));
    let found = (noise.iter().map(|z| z * z).sum::<f64>() / set.n as f64).sqrt();
    let expected = noise::deviation(set, 1);
    assert!((found / expected - 1.0).abs() < 0.05, "{} {}", found.log2(), expected.log2());
    assert!(noise.iter().all(|z| z.abs() < 2f64.powi(53)));
    // 2^-40 a ciphertext, whatever it sums; and decryption is exact.
    assert!((1..=3).all(|terms| noise::distance(set, terms) < -40.0), "{}", noise::distance(set, 3));
    assert!((1..=3).all(|terms| noise::max_noise(set, terms) < 1024.0), "{}", noise::max_noise(set, 3));
}

#[test]
fn what_the_client_decrypts_is_uniform_and_its_noise_is_the_flooding() {
    let parties = parties();
    let Parties { slots, key, public } = &parties;
    let n = slots.set.n;
    let cx = parties.encrypt(n, &vec![0; n], 0);
    let mut last = Vec::new();
    for (seed, y) in [(20, vec![0; n]), (21, vec![0; n]), (22, random(n, 15))] {
        let (answer, server) =
            multiply_slots(slots, public, &[(&cx, &y)], Seed::new([seed; 16])).expect("sizes are right");
        let client = decrypt_slots(slots, key, n, &answer).expect("the answer is right");
        assert!(chi_square(client.iter().copied(), P) < UNEVEN && client != last, "ρ is missing");
        assert!(client.iter().zip(&server).all(|(x, y)| (x + y) % P == 0), "zero times something is zero");
        // What is left of a unit: uniform in half of its width, by the flooding alone.
        let noisy = noisy_values(slots, key, n, &answer).expect("the answer is right");
        let rest = noisy.iter().map(|v| ((v + 1024) & 2047) as f64 - 1024.0);
        let deviation = (rest.clone().map(|r| r * r).sum::<f64>() / n as f64).sqrt();
        assert!((deviation / (512.0 / 3f64.sqrt()) - 1.0).abs() < 0.1, "the flooding is missing: {deviation}");
        assert!(rest.fold(0.0, |worst: f64, r| worst.max(r.abs())) < noise::max_noise(slots.set, 1));
        last = client;
    }
}

#[test]
fn a_client_that_guesses_the_servers_values_cannot_tell_and_could_without_the_mask() {
    let parties = parties();
    let Parties { slots, public, .. } = &parties;
    let n = slots.set.n;
    let cx = parties.encrypt(n, &random(n, 16), 0);
    let y = random(n, 17);
    let (answer, _) = multiply_slots(slots, public, &[(&cx, &y)], Seed::new([23; 16])).expect("sizes are right");
    let modulus = P << BELOW;
    let mut sent = vec![0; n];
    unpack(&answer, ANSWER, &mut sent);
    // a y, as the client computes it for its guess, and the same with the server's encryption of zero.
    let guess = |with_zero: bool| {
        let plain = slots.ring.plain(Modulus::Odd(P), &slots.polynomial(n, &y).expect("values are right"), [1; 3]);
        let mut product = slots.ring.zero();
        for k in 0..3 {
            slots.ring.transforms()[k].dot([&cx.parts[1][k]], [&plain[k]], &mut product[k]);
        }
        slots.ring.inverse(&mut product);
        if with_zero {
            product = products(slots, public, &[(&cx, &y)], &Seed::new([23; 16]))
                .expect("sizes are right")
                .into_iter()
                .next_back()
                .expect("two parts");
        }
        let words = slots.ring.rescale(&product, modulus);
        sent.iter().zip(words).map(|(sent, word)| (sent + modulus - word) % modulus).collect::<Vec<u64>>()
    };
    assert!(chi_square(guess(false).into_iter(), modulus) < UNEVEN, "c_1 is not masked");
    assert!(chi_square(guess(true).into_iter(), modulus) > UNEVEN, "the test sees a missing mask");
}

#[test]
fn hostile_and_wrong_messages_are_refused() {
    let parties = parties();
    let Parties { slots, key, public } = &parties;
    let values = random(1024, 18);
    let bytes = encrypt_slots(slots, key, 1024, &values, &PUBLIC, 0, Seed::new([4; 16])).expect("values are right");
    assert!(encrypt_slots(slots, key, 1000, &values, &PUBLIC, 0, Seed::new([4; 16])).is_err());
    assert!(encrypt_slots(slots, key, 2048, &values, &PUBLIC, 0, Seed::new([4; 16])).is_err());
    assert!(encrypt_slots(slots, key, 1024, &vec![P; 1024], &PUBLIC, 0, Seed::new([4; 16])).is_err());
    assert!(read_slot_ciphertext(slots, 1024, &PUBLIC, 0, &bytes[1..]).is_err());
    assert!(read_slot_ciphertext(slots, 7, &PUBLIC, 0, &bytes).is_err());
    assert!(read_slot_ciphertext(slots, 1024, &PUBLIC, 0, &vec![255; bytes.len()]).is_err());
    assert!(read_slot_public_key(slots, &PUBLIC, &vec![255; slots.public_key_bytes()]).is_err());
    let [few, many] = [1024, 2048].map(|width| parties.encrypt(width, &random(width, 19), 1));
    let y = random(1024, 20);
    let refused =
        |terms: &[(&SlotCiphertext, &[u64])]| multiply_slots(slots, public, terms, Seed::new([5; 16])).is_err();
    assert!(refused(&[]) && refused(&[(&few, &y), (&many, &y)]) && refused(&[(&few, &y[1..])]));
    assert!(refused(&[(&few, &y), (&few, &y), (&few, &y), (&few, &y)]) && !refused(&[(&few, &y)]));
    let answer = vec![255; slots.answer_bytes(1024)];
    assert!(decrypt_slots(slots, key, 1024, &answer).is_err());
    assert!(decrypt_slots(slots, key, 1024, &answer[1..]).is_err());
    assert_eq!([slots.width(1), slots.width(1025), slots.width(8192)], [1024, 2048, 8192]);
}
