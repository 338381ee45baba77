//! Buffers that are wiped when they are dropped, at the speed of a plain fill.
//!
//! What `zeroize` does for a vector is a store of its own for every element, a byte at a time for messages. Here the whole
//! capacity is filled, and the barrier of `zeroize` keeps the compiler from leaving that out.

use std::ops::{Deref, DerefMut};

use zeroize::optimization_barrier;

/// What can be wiped.
pub trait Wipe {
    /// Overwrites all of it with zeros, and leaves it empty.
    fn wipe(&mut self);
}

impl Wipe for Vec<u8> {
    fn wipe(&mut self) {
        wipe(self);
    }
}

impl Wipe for Vec<u64> {
    fn wipe(&mut self) {
        wipe(self);
    }
}

impl Wipe for Vec<u128> {
    fn wipe(&mut self) {
        wipe(self);
    }
}

/// Fills all the capacity: growing up to it takes no other memory.
fn wipe<T: Copy + Default>(buffer: &mut Vec<T>) {
    buffer.clear();
    buffer.resize(buffer.capacity(), T::default());
    optimization_barrier(buffer.as_slice());
    buffer.clear();
}

/// A buffer that is wiped when it is dropped. It has no `Debug`.
#[derive(Clone, Default)]
pub struct Zeroizing<B: Wipe>(B);

impl<B: Wipe> Zeroizing<B> {
    /// Wipes `buffer` when it is dropped.
    pub fn new(buffer: B) -> Self {
        Zeroizing(buffer)
    }
}

impl<B: Wipe> Deref for Zeroizing<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0
    }
}

impl<B: Wipe> DerefMut for Zeroizing<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.0
    }
}

impl<B: Wipe> Drop for Zeroizing<B> {
    fn drop(&mut self) {
        self.0.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zero_up_to_its_capacity() {
        let mut words = Vec::with_capacity(40);
        words.extend(1..=30u64);
        let capacity = words.capacity();
        words.truncate(7);
        words.wipe();
        assert!(words.is_empty() && words.capacity() == capacity);
        let mut bytes = vec![7u8; 1001];
        bytes.wipe();
        assert!(bytes.is_empty() && bytes.capacity() >= 1001);
        assert!(Zeroizing::new(vec![1u64, 2]).clone()[..] == [1, 2]);
    }
}
