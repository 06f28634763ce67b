//! Catches panics of foreign code and turns them into text.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::redact::redact;

/// Runs `work` and returns its value, or the message of its panic.
///
/// A panic may leave a partly changed value behind. The runtime then drops the hook, and `cleanup`
/// must accept such a value.
pub(super) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(panic_message)
}

/// Returns the text of a panic payload. The payload may have any type, including a type whose drop panics.
pub(super) fn panic_message(payload: Box<dyn Any + Send>) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| redact(text))
        .or_else(|| payload.downcast_ref::<String>().map(|text| redact(text)))
        .unwrap_or_else(|| "payload without a text".to_owned());
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    text
}

/// Locks a mutex. Its data stays consistent after a panic, because no holder runs foreign code.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value of foreign code. If the value is dropped with its owning task, a panic of the drop is caught.
pub(super) struct DropCaught<T>(Option<T>);

impl<T> DropCaught<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(super) fn get(&mut self) -> &mut T {
        self.0.as_mut().expect("the value is present until it is dropped")
    }

    /// Drops the value. A panic of the drop propagates.
    pub(super) fn drop_now(mut self) {
        drop(self.0.take());
    }
}

impl<T> Drop for DropCaught<T> {
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            let _panic = catch(|| drop(value));
        }
    }
}
