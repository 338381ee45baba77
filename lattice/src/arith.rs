//! Arithmetic mod primes below 2^50, one number at a time: constants of transforms and of encodings.

/// `x y mod p`.
pub fn mul_mod(x: u64, y: u64, p: u64) -> u64 {
    (u128::from(x) * u128::from(y) % u128::from(p)) as u64
}

/// `x^e mod p`.
pub fn pow_mod(mut x: u64, mut e: u64, p: u64) -> u64 {
    let mut product = 1;
    x %= p;
    while e > 0 {
        if e & 1 == 1 {
            product = mul_mod(product, x, p);
        }
        x = mul_mod(x, x, p);
        e >>= 1;
    }
    product
}

/// The inverse of `x`, which is no multiple of the prime `p`.
pub fn inverse_mod(x: u64, p: u64) -> u64 {
    pow_mod(x, p - 2, p)
}

/// ⌊2^52 w / p⌋, with which Shoup's method multiplies by `w`, for `w` below `p`.
pub(crate) fn ratio(w: u64, p: u64) -> u64 {
    ((u128::from(w) << 52) / u128::from(p)) as u64
}

/// 1/p mod 2^52 for odd `p`.
pub(crate) fn inverse_mod_2_52(p: u64) -> u64 {
    // Newton: every step doubles the number of right bits, of which an odd number's square gives three.
    let mut x = p;
    for _ in 0..5 {
        x = x.wrapping_mul(2u64.wrapping_sub(p.wrapping_mul(x)));
    }
    x & crate::lanes::MASK52
}

/// A residue mod `p` as the number nearest to zero.
#[cfg(test)]
pub(crate) fn centred(x: u64, p: u64) -> i64 {
    if x > p / 2 { x.cast_signed() - p.cast_signed() } else { x.cast_signed() }
}

/// Whether `n` is prime: Miller and Rabin's test with the first twelve primes as bases decides below 2^64
/// (Sorenson, Webster 2015).
#[cfg(test)]
pub(crate) fn is_prime(n: u64) -> bool {
    let twos = (n - 1).trailing_zeros();
    [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37].iter().all(|&base| {
        let mut x = pow_mod(base, (n - 1) >> twos, n);
        x == 1
            || (0..twos).any(|_| {
                let found = x == n - 1;
                x = mul_mod(x, x, n);
                found
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverses_and_powers() {
        let p = (1 << 50) - 27;
        assert!(is_prime(p) && !is_prime(p - 2) && !is_prime(3_215_031_751));
        for x in [1, 2, 12345, p - 1] {
            assert_eq!(mul_mod(x, inverse_mod(x, p), p), 1);
            assert_eq!(pow_mod(x, p - 1, p), 1);
        }
        assert_eq!(inverse_mod_2_52(p).wrapping_mul(p) & crate::lanes::MASK52, 1);
        assert_eq!((centred(p - 3, p), centred(3, p)), (-3, 3));
    }
}
