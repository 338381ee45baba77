//! How many sessions are served at once, and the memory that they may take together.
//!
//! A session is admitted with what the largest step of the plan could take (of one text, where the plan has no most of
//! them). Once its request is known it gives back what it cannot need; one that needs more gets it at once or is refused.
//! What a session holds it holds to its end: its cache stays between steps. So an admitted session waits for nobody's
//! memory, and no two of them wait for each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory and places of a process.
pub struct Budget {
    total: u64,
    max_sessions: u32,
    used: Mutex<Used>,
}

/// What is taken of a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Memory in bytes.
    pub bytes: u64,
    /// Sessions.
    pub sessions: u32,
}

/// What one session has of a budget, until it is dropped.
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    /// A budget of `total` bytes for at most `max_sessions` sessions.
    pub fn new(total: u64, max_sessions: u32) -> Arc<Budget> {
        Arc::new(Budget { total, max_sessions, used: Mutex::default() })
    }

    /// All of its memory, in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What is taken of it.
    pub fn used(&self) -> Used {
        *self.lock()
    }

    /// Whether there is room for a session that takes `bytes`.
    pub fn has_room(&self, bytes: u64) -> bool {
        let used = self.used();
        used.sessions < self.max_sessions && self.total.saturating_sub(used.bytes) >= bytes
    }

    /// `bytes` for one session more, if there is room.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut used = self.lock();
        if used.sessions >= self.max_sessions || self.total.saturating_sub(used.bytes) < bytes {
            return None;
        }
        *used = Used { bytes: used.bytes + bytes, sessions: used.sessions + 1 };
        Some(Reservation { budget: Arc::clone(self), bytes })
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Its memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what is above `bytes`, or takes what is missing. False if there is no room for that.
    pub fn resize(&mut self, bytes: u64) -> bool {
        let mut used = self.budget.lock();
        let others = used.bytes.saturating_sub(self.bytes);
        let fits = bytes <= self.bytes || self.budget.total.saturating_sub(others) >= bytes;
        if fits {
            used.bytes = others.saturating_add(bytes);
            drop(used);
            self.bytes = bytes;
        }
        fits
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        *used = Used { bytes: used.bytes.saturating_sub(self.bytes), sessions: used.sessions.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_exceeded_and_comes_back() {
        let budget = Budget::new(100, 3);
        let mut first = budget.reserve(60).expect("room for one");
        assert!(!budget.has_room(41) && budget.reserve(41).is_none() && budget.has_room(40));
        assert!(!first.resize(101));
        assert_eq!(first.bytes(), 60);
        assert!(first.resize(100) && !budget.has_room(1));
        assert!(first.resize(30));
        assert_eq!((first.bytes(), budget.used()), (30, Used { bytes: 30, sessions: 1 }));
        let others = [budget.reserve(35), budget.reserve(35)];
        assert!(others.iter().all(Option::is_some));
        assert!(!budget.has_room(0), "no place is left");
        drop(others);
        drop(first);
        assert_eq!(budget.used(), Used::default());
    }
}
