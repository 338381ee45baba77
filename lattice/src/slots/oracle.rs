//! An independent library in the client's place: `fhe` makes the keys, encrypts, and decrypts what the server computes.

use fhe::bfv::{BfvParameters, BfvParametersBuilder, Ciphertext, Encoding, Plaintext, SecretKey};
use fhe_math::rq::traits::TryConvertFrom;
use fhe_math::rq::{Poly as Other, Representation};
use fhe_traits::{FheDecoder, FheDecrypter, FheEncoder, FheEncrypter};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::array::from_fn;
use std::sync::Arc;

use super::server::masked_products;
use super::*;
use crate::arith::mul_mod;
use crate::params::{PRIMES_50, SLOT_PRIME as P, SLOT_SETS};
use crate::random::{Secret, Seed, Stream};

/// The values of a polynomial of the library.
fn ours(slots: &Slots, poly: &Other) -> Poly<3> {
    let mut poly = poly.clone();
    poly.change_representation(Representation::PowerBasis);
    let rows = poly.coefficients();
    let mut out = from_fn(|k| Secret(rows.row(k).to_vec()));
    slots.ring.forward(&mut out);
    out
}

/// A polynomial of the library from coefficients below `2q`.
fn theirs(parameters: &Arc<BfvParameters>, slots: &Slots, poly: &Poly<3>) -> Other {
    let all: Vec<u64> =
        poly.iter().enumerate().flat_map(|(k, part)| part.iter().map(move |x| x % slots.ring.prime(k))).collect();
    let context = parameters.context_at_level(0).expect("the first level exists");
    let mut out =
        Other::try_convert_from(all, context, false, Representation::PowerBasis).expect("there are enough residues");
    out.change_representation(Representation::Ntt);
    out
}

#[test]
fn another_library_encrypts_and_decrypts_what_the_server_multiplies() {
    let slots = Slots::new(&SLOT_SETS[0]);
    let n = slots.set.n;
    let mut builder = BfvParametersBuilder::new();
    let parameters = builder
        .set_degree(n)
        .set_plaintext_modulus(P)
        .set_moduli(&PRIMES_50)
        .build_arc()
        .expect("parameters are right");
    let mut rng = StdRng::seed_from_u64(7);
    let secret = SecretKey::random(&parameters, &mut rng);
    let mut encrypt = |polynomial: &[u64]| -> [Poly<3>; 2] {
        let plain = Plaintext::try_encode(polynomial, Encoding::poly(), &parameters).expect("coefficients are right");
        let ciphertext: Ciphertext = secret.try_encrypt(&plain, &mut rng).expect("it encrypts");
        from_fn(|side| ours(&slots, &ciphertext[side]))
    };
    let random = |seed: u8| {
        let mut out = vec![0; n];
        Stream::new(&[seed; 16], 0).uniform(P, &mut out);
        out
    };
    let [x, y] = [1, 2].map(random);
    let mut zero = encrypt(&vec![0; n]);
    zero.iter_mut().for_each(|part| slots.ring.prepare(part));
    let public = SlotPublicKey { parts: zero };
    let operand = SlotCiphertext { width: n, parts: encrypt(&slots.polynomial(n, &x).expect("values are right")) };
    let (answer, mask) =
        masked_products(&slots, &public, &[(&operand, &y)], &Seed::new([3; 16])).expect("sizes are right");
    let parts = answer.iter().map(|part| theirs(&parameters, &slots, part)).collect();
    let ciphertext = Ciphertext::new(parts, &parameters).expect("the ciphertext is right");
    let plain = secret.try_decrypt(&ciphertext).expect("it decrypts");
    let mut found = Vec::<u64>::try_decode(&plain, Encoding::poly()).expect("it decodes");
    slots.transform(n).expect("the width exists").forward(&mut found);
    for i in 0..n {
        assert_eq!((found[i] + mask[i]) % P, mul_mod(x[i], y[i], P), "slot {i}");
    }
}
