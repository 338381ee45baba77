//! Weights that look like those of an untrained model and are the same on every machine.

/// The elements of one random weight, each a function of its index, so that any order of writing gives the same tensor.
#[derive(Clone, Copy)]
pub(super) struct Random {
    key: u64,
    mean: f32,
    deviation: f32,
}

impl Random {
    /// The weight called `name` of the model with `seed`: elements around `mean` with standard deviation `deviation`.
    pub(super) fn new(seed: u64, name: &str, mean: f32, deviation: f32) -> Self {
        let key = name.bytes().fold(mixed(seed), |key, byte| mixed(key ^ u64::from(byte)));
        Random { key, mean, deviation }
    }

    /// The first `count` elements.
    pub(super) fn values(self, count: usize) -> impl Iterator<Item = f32> {
        (0..count).map(move |index| self.at(index))
    }

    /// Element `index`: the sum of four uniform numbers of 16 bits, which is close to a normal distribution.
    pub(super) fn at(&self, index: usize) -> f32 {
        let bits = mixed(self.key.wrapping_add(index as u64));
        let sum: i32 = [0, 16, 32, 48].iter().map(|shift| (bits >> shift & 0xffff) as i32).sum();
        let centred = (sum - 2 * 0xffff) as f32 / 65536.0;
        self.mean + self.deviation * 3f32.sqrt() * centred
    }
}

/// One step of the xorshift-multiply generator splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014, figure 17).
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn moments_are_as_asked() {
        let weights = Random::new(1, "w", 0.5, 0.02);
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(weights.at(i))).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!((mean - 0.5).abs() < 5e-4 && (deviation - 0.02).abs() < 5e-4, "{mean} {deviation}");
    }

    #[test]
    fn names_and_seeds_give_other_weights() {
        let first = |seed, name| Random::new(seed, name, 0.0, 1.0).at(0);
        assert_eq!(first(1, "a"), first(1, "a"));
        assert!(first(1, "a") != first(1, "b") && first(1, "a") != first(2, "a"));
    }
}
