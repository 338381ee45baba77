//! How divisions by powers of two round.

/// What is added to the floor of a quotient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing.
    Floor,
    /// One with the chance that the remainder has, as where the operand's shares are fresh: the mean is the quotient.
    /// Numbers are drawn by a fixed generator from `seed` and the position of the element.
    Drawn {
        /// Where the generator begins.
        seed: u64,
    },
}

impl Rounding {
    /// The same with numbers of its own for the op at `index`.
    pub(super) fn of_op(self, index: usize) -> Self {
        match self {
            Rounding::Floor => Rounding::Floor,
            Rounding::Drawn { seed } => Rounding::Drawn { seed: mix(seed, index as u64) },
        }
    }

    /// The quotient of `value` by `2^by`, `by` at most 63, for the element at `at`.
    pub(super) fn quotient(self, value: i64, by: u8, at: usize) -> i64 {
        let by = u32::from(by.min(63));
        let floor = value >> by;
        match self {
            Rounding::Drawn { seed } if by > 0 => {
                let drawn = mix(seed, at as u64) >> (64 - by);
                let rest = value.cast_unsigned() & ((1u64 << by) - 1);
                floor.wrapping_add(i64::from(rest > drawn))
            }
            Rounding::Drawn { .. } | Rounding::Floor => floor,
        }
    }
}

/// A number that looks drawn for every position (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
fn mix(seed: u64, at: u64) -> u64 {
    let mut z = seed.wrapping_add(at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Rounding;

    #[test]
    fn the_mean_of_drawn_quotients_is_the_quotient() {
        let rounding = Rounding::Drawn { seed: 7 }.of_op(3);
        for value in [0, 1, 300, 511, -1, -300, 1 << 40] {
            let n = 20_000;
            let drawn = (0..n).map(|at| rounding.quotient(value, 9, at) as f64);
            let mean = drawn.clone().sum::<f64>() / n as f64;
            assert!((mean - value as f64 / 512.0).abs() < 0.02, "{value}: {mean}");
            assert!(drawn.clone().all(|q| (q - value as f64 / 512.0).abs() < 1.0), "{value}");
            assert_eq!(Rounding::Floor.quotient(value, 9, 0), value.div_euclid(512));
        }
        assert_eq!(rounding.quotient(-5, 0, 0), -5);
    }
}
