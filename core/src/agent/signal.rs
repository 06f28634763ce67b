//! SIGINT and SIGTERM end the runtime in order; the second one makes it hurry.

use std::io;

use super::report::{EndedBy, RuntimeReport};
use super::runtime::AgentRuntime;
use crate::{Error, ErrorKind, Result, RetryAdvice};

impl AgentRuntime {
    /// Runs until all agents have ended, or until SIGINT or SIGTERM. See
    /// [`AgentRuntime::run_until_or_signal`].
    pub async fn run_with_signals(self) -> Result<RuntimeReport> {
        self.run_until_or_signal(std::future::pending::<()>()).await
    }

    /// As [`AgentRuntime::run_until`]; the first SIGINT or SIGTERM begins the shutdown as well, and the second
    /// one makes its soft deadline now. The report says what ended it; the process is never ended from here.
    /// The signals' default action stays off for the rest of the process's life, as is tokio's way.
    ///
    /// # Errors
    /// `Internal` if the signals cannot be listened to; nothing was started then.
    pub async fn run_until_or_signal<F: Future>(self, until: F) -> Result<RuntimeReport> {
        let mut signals = Signals::listen().map_err(|source| {
            Error::new(ErrorKind::Internal, "agent.signal", "run_with_signals")
                .with_message("cannot listen to SIGINT and SIGTERM")
                .with_source(source)
                .with_retry(RetryAdvice::Never)
        })?;
        let handle = self.handle();
        let fleet = handle.fleet().clone();
        let run = self.run_until(until);
        tokio::pin!(run);
        let mut first = true;
        loop {
            tokio::select! {
                biased;
                report = &mut run => return Ok(report),
                cause = signals.next() => {
                    if !std::mem::take(&mut first) {
                        fleet.deadlines.hurry();
                    }
                    fleet.begin_shutdown(cause);
                }
            }
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> EndedBy {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => EndedBy::Terminate,
            _ = self.interrupt.recv() => EndedBy::Interrupt,
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self(tokio::signal::windows::ctrl_c()?))
    }

    async fn next(&mut self) -> EndedBy {
        let _pressed = self.0.recv().await;
        EndedBy::Interrupt
    }
}
