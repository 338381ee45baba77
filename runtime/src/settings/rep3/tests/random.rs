//! Bits that no party knows.

use super::*;
use crate::settings::rep3::random::random;

const N: usize = 4096;

fn drawn(seeds: [u64; 6], rot: u8) -> Vec<bool> {
    let keys = lockstep::keys_of(seeds);
    let kernel = |cx: Cx| async move { random(&cx, N) };
    let (bits, sent) = lockstep::run_with_keys(keys, rot, &Traffic::default(), kernel).unwrap();
    assert!(sent.is_empty(), "nothing is sent");
    open_bits(&bits)
}

/// Every pair key has a part: who knows two of them knows nothing of the bits. Private keys have none.
#[test]
fn no_two_keys_determine_the_bits() {
    for rot in 0..3 {
        let first = drawn([1, 2, 3, 4, 5, 6], rot);
        let ones = first.iter().filter(|bit| **bit).count();
        // Eight deviations of a fair coin, for these fixed keys.
        assert!(ones.abs_diff(N / 2) < 8 * 32, "{ones} of {N}");
        for key in 0..3 {
            let mut seeds = [1, 2, 3, 4, 5, 6];
            seeds[key] = 7;
            let other = drawn(seeds, rot);
            let differ = first.iter().zip(&other).filter(|(a, b)| a != b).count();
            assert!(differ.abs_diff(N / 2) < 8 * 32, "key {key}: {differ} of {N} bits differ");
        }
        assert!(first == drawn([1, 2, 3, 7, 8, 9], rot), "private keys have a part");
    }
}
