//! Waits for a backend to answer.

use std::time::Duration;

use tokio::time::{sleep, timeout_at};

use crate::deadline::later;
use crate::{Error, ErrorKind, Result, RetryAdvice};

/// Pings until the backend answers, with delays that grow from 50 ms to 1 s.
///
/// An error that is not retryable is returned immediately. The last error is returned if no further ping fits into
/// `timeout`.
pub(crate) async fn wait_ready<T, F>(timeout: Duration, ping: impl Fn() -> F + Send) -> Result<T>
where
    F: Future<Output = Result<T>> + Send,
    T: Send,
{
    let deadline = later(timeout);
    let mut pause = Duration::from_millis(50);
    let mut last: Option<Error> = None;
    loop {
        match timeout_at(deadline, ping()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => {
                let at_least = match error.retry() {
                    RetryAdvice::Never => return Err(error),
                    RetryAdvice::Backoff => pause,
                    RetryAdvice::After(wait) => wait,
                };
                if later(at_least) >= deadline {
                    return Err(error);
                }
                last = Some(error);
                sleep(at_least).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
            Err(_) => {
                return Err(last.unwrap_or_else(|| {
                    Error::new(ErrorKind::Timeout, "ready.timeout", "wait_ready")
                        .with_message(format_args!("no response within {timeout:?}"))
                        .with_context("limit", format_args!("{timeout:?}"))
                }));
            }
        }
    }
}
