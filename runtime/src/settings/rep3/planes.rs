//! Several planes of shared bits side by side, one after another in memory.

use super::Cx;

/// Planes of `words` words each, at one party.
pub(super) struct Planes {
    /// Component `x_i`.
    pub a: Vec<u64>,
    /// Component `x_{i+1}`.
    pub b: Vec<u64>,
    count: usize,
    words: usize,
}

impl Planes {
    /// `count` planes of `words` words from both components' words.
    pub(super) fn new(a: Vec<u64>, b: Vec<u64>, count: usize, words: usize) -> Self {
        Planes { a, b, count, words }
    }

    /// Words of a plane.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Number of planes.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Copies of the planes with these numbers.
    pub(super) fn pick(&self, planes: impl Iterator<Item = usize> + Clone) -> Planes {
        let copy =
            |from: &[u64]| planes.clone().flat_map(|i| &from[i * self.words..(i + 1) * self.words]).copied().collect();
        Planes::new(copy(&self.a), copy(&self.b), planes.clone().count(), self.words)
    }

    /// Adds planes at the end.
    pub(super) fn append(&mut self, mut other: Planes) {
        self.a.append(&mut other.a);
        self.b.append(&mut other.b);
        self.count += other.count;
    }

    /// Takes away the planes from number `at` on.
    pub(super) fn split_off(&mut self, at: usize) -> Planes {
        let count = std::mem::replace(&mut self.count, at) - at;
        Planes::new(self.a.split_off(at * self.words), self.b.split_off(at * self.words), count, self.words)
    }

    /// Adds to component 1 what roles 0 and 1 know, a word for each of the first ones.
    pub(super) fn add_joint(&mut self, cx: &Cx, joint: &[u64]) {
        let component = match cx.role() {
            0 => &mut self.b,
            1 => &mut self.a,
            _ => return,
        };
        component.iter_mut().zip(joint).for_each(|(x, y)| *x ^= y);
    }

    /// Plane by plane exclusive or.
    pub(super) fn xor(&mut self, other: &Planes) {
        self.a.iter_mut().zip(&other.a).for_each(|(x, y)| *x ^= y);
        self.b.iter_mut().zip(&other.b).for_each(|(x, y)| *x ^= y);
    }
}

/// Component 1 of planes at roles 0 and 1, the sum of the others at role 2, from what a party holds.
pub(super) fn two_planes(cx: &Cx, a: &[u64], b: &[u64]) -> Vec<u64> {
    match cx.role() {
        0 => b.to_vec(),
        1 => a.to_vec(),
        _ => a.iter().zip(b).map(|(a, b)| a ^ b).collect(),
    }
}
