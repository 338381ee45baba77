//! The parameter sets: data, with ids that never change their meaning.
//!
//! A plan and a file of encrypted weights name their sets by id. `security/table.md` says how many bits every set has,
//! computed by the script beside it; a test compares the two. Secrets are ternary and uniform, errors as in
//! [`crate::random`].

use crate::bits::packed_bytes;

/// Two largest primes below 2^44 that are 1 mod 2^14.
pub const PRIMES_44: [u64; 2] = [(1 << 44) - 16_383, (1 << 44) - 606_207];
/// Three largest primes below 2^50 that are 1 mod 2^14.
pub const PRIMES_50: [u64; 3] = [(1 << 50) - 16_383, (1 << 50) - 212_991, (1 << 50) - 1_097_727];
/// Largest prime below 2^43 that is 1 mod 2^14: the modulus of element-wise products.
pub const SLOT_PRIME: u64 = (1 << 43) - 163_839;

/// Products with private weights, encrypted once (`weights`): moduli are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightSet {
    /// Number in files and plans.
    pub id: u16,
    /// Bits of the ring that the encrypted weights are in; products are mod this or any smaller power of two.
    pub ring: u32,
    /// Coefficients of a polynomial: outputs in a block.
    pub n: usize,
    /// Bits of a ciphertext's modulus, a multiple of 8.
    pub log_q: u32,
    /// Bits of the public key's modulus, with which an answer is randomised.
    pub log_key: u32,
}

/// All sets for private weights.
pub const WEIGHT_SETS: &[WeightSet] = &[
    WeightSet { id: 1, ring: 40, n: 4096, log_q: 88, log_key: 64 },
    WeightSet { id: 2, ring: 44, n: 4096, log_q: 96, log_key: 64 },
    WeightSet { id: 3, ring: 44, n: 8192, log_q: 96, log_key: 64 },
    WeightSet { id: 4, ring: 48, n: 8192, log_q: 104, log_key: 72 },
    WeightSet { id: 5, ring: 52, n: 8192, log_q: 112, log_key: 72 },
    WeightSet { id: 6, ring: 56, n: 8192, log_q: 120, log_key: 80 },
    WeightSet { id: 7, ring: 60, n: 8192, log_q: 128, log_key: 80 },
];

/// Products of two shared matrices in tiles (`tiles`): rings up to `ring` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileSet {
    /// Number in plans.
    pub id: u16,
    /// Bits of the largest ring.
    pub ring: u32,
    /// Coefficients of a polynomial.
    pub n: usize,
    /// Factors of the ciphertext's modulus, two or three.
    pub primes: &'static [u64],
}

/// All sets for tiles.
pub const TILE_SETS: &[TileSet] = &[
    TileSet { id: 33, ring: 40, n: 4096, primes: &PRIMES_44 },
    TileSet { id: 34, ring: 64, n: 8192, primes: &PRIMES_50 },
];

/// Element-wise products (`slots`) mod a prime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSet {
    /// Number in plans.
    pub id: u16,
    /// Modulus of values.
    pub prime: u64,
    /// Slots of a ciphertext.
    pub n: usize,
    /// Factors of the ciphertext's modulus.
    pub primes: [u64; 3],
}

/// All sets for slots.
pub const SLOT_SETS: &[SlotSet] = &[SlotSet { id: 65, prime: SLOT_PRIME, n: 8192, primes: PRIMES_50 }];

impl WeightSet {
    /// The set with this id.
    pub fn by_id(id: u16) -> Option<&'static WeightSet> {
        WEIGHT_SETS.iter().find(|set| set.id == id)
    }

    /// The cheapest set for rings of `bits` bits that has 128 bits of security even in core-SVP.
    pub fn for_ring(bits: u32) -> Option<&'static WeightSet> {
        WEIGHT_SETS.iter().find(|set| set.ring >= bits && set.id != 2)
    }

    /// Bytes of a word of a ciphertext.
    pub fn word_bytes(&self) -> usize {
        self.log_q as usize / 8
    }
}

impl TileSet {
    /// The set with this id.
    pub fn by_id(id: u16) -> Option<&'static TileSet> {
        TILE_SETS.iter().find(|set| set.id == id)
    }

    /// The cheapest set for rings of `bits` bits.
    pub fn for_ring(bits: u32) -> Option<&'static TileSet> {
        TILE_SETS.iter().find(|set| set.ring >= bits)
    }

    /// Bits of a residue.
    pub fn residue_bits(&self) -> u32 {
        self.primes.iter().map(|p| u64::BITS - p.leading_zeros()).fold(0, u32::max)
    }

    /// Bytes of a ciphertext whose `a` is a seed.
    pub fn ciphertext_bytes(&self) -> usize {
        packed_bytes(self.primes.len() * self.n, self.residue_bits())
    }
}

impl SlotSet {
    /// The set with this id.
    pub fn by_id(id: u16) -> Option<&'static SlotSet> {
        SLOT_SETS.iter().find(|set| set.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::is_prime;

    #[test]
    fn primes_are_the_largest_of_their_kind() {
        for (bits, list) in [(44, &PRIMES_44[..]), (50, &PRIMES_50[..]), (43, &[SLOT_PRIME][..])] {
            let mut found = Vec::new();
            let mut candidate = (1u64 << bits) - (1 << 14) + 1;
            while found.len() < list.len() {
                found.extend(is_prime(candidate).then_some(candidate));
                candidate -= 1 << 14;
            }
            assert_eq!(found, list);
        }
    }

    #[test]
    fn ids_are_frozen() {
        let weights: Vec<_> = WEIGHT_SETS.iter().map(|s| (s.id, s.ring, s.n, s.log_q, s.log_key)).collect();
        let frozen = [
            (1, 40, 4096, 88, 64),
            (2, 44, 4096, 96, 64),
            (3, 44, 8192, 96, 64),
            (4, 48, 8192, 104, 72),
            (5, 52, 8192, 112, 72),
            (6, 56, 8192, 120, 80),
            (7, 60, 8192, 128, 80),
        ];
        assert_eq!(weights, frozen);
        let tiles: Vec<_> = TILE_SETS.iter().map(|s| (s.id, s.ring, s.n, s.primes)).collect();
        assert_eq!(tiles, [(33, 40, 4096, &PRIMES_44[..]), (34, 64, 8192, &PRIMES_50)]);
        assert_eq!(SLOT_SETS, [SlotSet { id: 65, prime: SLOT_PRIME, n: 8192, primes: PRIMES_50 }]);
    }

    #[test]
    fn every_set_has_128_bits_by_the_computed_table() {
        let table = include_str!("../security/table.md");
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
            .filter(|c| c.len() == 13)
            .collect();
        let check = |id: u16, n: usize, log_q: u32, in_use: bool| {
            let row = rows.iter().find(|cells| cells[1] == id.to_string()).expect("the table has the set");
            assert_eq!([row[3], row[4]], [n.to_string(), log_q.to_string()], "set {id}");
            let bits = |cell: &str| -> Vec<u32> {
                let numbers = cell.split(" (").next().unwrap_or_default();
                numbers.split('/').map(|x| x.trim().parse().expect("a number of bits")).collect()
            };
            let least = bits(row[11]);
            for attack in &row[5..11] {
                assert!(bits(attack).iter().zip(&least).all(|(bits, least)| bits >= least), "set {id}: {attack}");
            }
            assert!(least[2] >= 128, "set {id}: {least:?}");
            assert!(least[0] >= 128 || !in_use, "set {id}: {least:?}");
        };
        for set in WEIGHT_SETS {
            let in_use = (1..=60).any(|bits| WeightSet::for_ring(bits) == Some(set));
            check(set.id, set.n, set.log_q, in_use);
        }
        let log = |primes: &[u64]| primes.iter().map(|p| (*p as f64).log2()).sum::<f64>().ceil() as u32;
        TILE_SETS.iter().for_each(|set| check(set.id, set.n, log(set.primes), true));
        SLOT_SETS.iter().for_each(|set| check(set.id, set.n, log(&set.primes), true));
    }

    #[test]
    fn answers_are_masked_where_they_are_sent_and_exact_where_they_are_computed() {
        for set in WEIGHT_SETS {
            // The sent bits of A lie above those that the public key does not cover, with room for its noise.
            assert!(set.log_key >= set.ring + 12 && set.log_q >= set.log_key && set.log_q % 8 == 0);
            // Noise of 4096 rows is below a unit's half: 2 ring + ½ log k + 2.
            assert!(set.log_q >= 2 * set.ring + 8);
            assert_eq!(WeightSet::by_id(set.id), Some(set));
        }
        assert_eq!(WeightSet::for_ring(37).map(|s| s.id), Some(1));
        assert_eq!(WeightSet::for_ring(41).map(|s| s.id), Some(3));
        assert_eq!(WeightSet::for_ring(61), None);
    }
}
