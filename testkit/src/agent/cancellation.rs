//! Drops a future at a chosen poll, to test the promise that a future may be dropped at any `.await`.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

/// The end of a future under [`drop_at_poll`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DropOutcome<T> {
    /// The future was ready within the polls.
    Ready(T),
    /// The future was pending after the requested number of polls and was dropped.
    Dropped,
    /// The future was pending at the time limit, before the requested number of polls, and was dropped.
    TimedOut,
}

/// Polls `future` up to `polls` times, each time after a wake-up, and then drops the future.
///
/// A future that does not reach this number of polls within `timeout` (tokio time) is dropped too. Such a future waits
/// for an event that does not occur in the test, so more polls would give no new result.
///
/// ```
/// use std::time::Duration;
/// use qi_testkit::agent::{DropOutcome, drop_at_poll};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let two_awaits = || async {
///     tokio::task::yield_now().await;
///     tokio::task::yield_now().await;
/// };
/// let timeout = Duration::from_secs(1);
/// assert_eq!(drop_at_poll(two_awaits(), 2, timeout).await, DropOutcome::Dropped);
/// assert_eq!(drop_at_poll(two_awaits(), 3, timeout).await, DropOutcome::Ready(()));
/// # }
/// ```
pub async fn drop_at_poll<F: Future>(future: F, polls: usize, timeout: Duration) -> DropOutcome<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    let until = std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(DropOutcome::Dropped);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(DropOutcome::Ready(value)),
            Poll::Pending if left == 0 => Poll::Ready(DropOutcome::Dropped),
            Poll::Pending => Poll::Pending,
        }
    });
    tokio::time::timeout(timeout, until).await.unwrap_or(DropOutcome::TimedOut)
}
