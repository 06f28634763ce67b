//! A backoff for COPY, which fails on a record that exists.

use std::sync::atomic::{AtomicU32, Ordering};

/// The backoff of one dataset. After a collision, batches are merged for a while before COPY is tried again.
#[derive(Debug, Default)]
pub(super) struct CopyBackoff {
    /// The number of consecutive collisions.
    streak: AtomicU32,
    /// The number of batches that are merged before the next COPY.
    remaining: AtomicU32,
}

impl CopyBackoff {
    /// The longest backoff, in batches.
    const MAX: u32 = 256;

    /// Returns whether the next batch is sent by COPY.
    pub(super) fn allows_copy(&self) -> bool {
        self.remaining.load(Ordering::Relaxed) == 0
    }

    /// Doubles the backoff: COPY met a record that exists.
    pub(super) fn collided(&self) {
        let streak = self.streak.fetch_add(1, Ordering::Relaxed).min(16) + 1;
        self.remaining.store((1 << streak).min(Self::MAX), Ordering::Relaxed);
    }

    /// Counts a merged batch, in which `written` of `rows` records were new or differed.
    pub(super) fn merged(&self, rows: u64, written: u64) {
        if written == rows {
            // No record existed, so the replay of old records has ended.
            self.reset();
        } else {
            // The count may race with another task; the backoff need not be exact.
            let _ =
                self.remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        }
    }

    /// Ends the backoff.
    pub(super) fn reset(&self) {
        self.streak.store(0, Ordering::Relaxed);
        self.remaining.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_suspend_copy_for_a_bounded_number_of_batches() {
        let backoff = CopyBackoff::default();
        assert!(backoff.allows_copy());
        backoff.collided();
        assert!(!backoff.allows_copy());
        backoff.merged(10, 0);
        backoff.merged(10, 3);
        assert!(backoff.allows_copy(), "the backoff is over");
        for _ in 0..20 {
            backoff.collided();
        }
        for _ in 0..CopyBackoff::MAX {
            assert!(!backoff.allows_copy());
            backoff.merged(10, 0);
        }
        assert!(backoff.allows_copy());
        backoff.collided();
        backoff.merged(10, 10);
        assert!(backoff.allows_copy(), "a batch of new records ends the backoff");
    }
}
