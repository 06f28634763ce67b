//! Panics of other people's code: caught, read, and never let through.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::redact::tidy;

/// Runs `work`, or gives the message of its panic.
///
/// What `work` borrows may be half changed after a panic. The driver copes: it drops a hook that panicked, and
/// `cleanup` is documented to meet a half-done value.
pub(super) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(message)
}

/// The text of a panic's payload. A payload may be any type, even one whose drop panics.
pub(super) fn message(payload: Box<dyn Any + Send>) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| tidy(text))
        .or_else(|| payload.downcast_ref::<String>().map(|text| tidy(text)))
        .unwrap_or_else(|| "a payload that is no text".to_owned());
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    text
}

/// A lock whose data is whole even if a holder panicked: nothing of ours panics between two writes.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops `value`, or gives the message of the panic of its drop.
pub(super) fn drop_caught<T>(value: T) -> Option<String> {
    catch(|| drop(value)).err()
}
