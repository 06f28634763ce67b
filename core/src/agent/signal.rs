//! Signal handling. The first SIGINT or SIGTERM begins the shutdown, and the second expires the soft deadline.

use std::io;

use super::report::{RuntimeReport, ShutdownCause};
use super::runtime::AgentRuntime;
use crate::{Error, ErrorKind, Result, RetryAdvice};

impl AgentRuntime {
    /// Runs until all agents have ended. SIGINT or SIGTERM begins the shutdown. See
    /// [`AgentRuntime::run_until_or_signal`].
    pub async fn run_with_signals(self) -> Result<RuntimeReport> {
        self.run_until_or_signal(std::future::pending::<()>()).await
    }

    /// Runs like [`AgentRuntime::run_until`]. The first SIGINT or SIGTERM also begins the shutdown, and the second
    /// moves its soft deadline to now.
    ///
    /// The report has the cause of the shutdown. This method never ends the process. As always with tokio, the default
    /// action of both signals stays disabled until the process ends.
    ///
    /// # Errors
    /// `Internal` if the signal handlers cannot be installed. In that case no agent was started.
    pub async fn run_until_or_signal<F: Future>(self, until: F) -> Result<RuntimeReport> {
        let mut signals = Signals::listen().map_err(|source| {
            Error::new(ErrorKind::Internal, "agent.signal", "run_with_signals")
                .with_message("the handlers of SIGINT and SIGTERM could not be installed")
                .with_source(source)
                .with_retry(RetryAdvice::Never)
        })?;
        let handle = self.handle();
        let set = handle.set().clone();
        let run = self.run_until(until);
        tokio::pin!(run);
        let mut first = true;
        loop {
            tokio::select! {
                biased;
                report = &mut run => return Ok(report),
                cause = signals.next() => {
                    if !std::mem::take(&mut first) {
                        set.expire_soft_deadline();
                    }
                    set.begin_shutdown(cause);
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

    async fn next(&mut self) -> ShutdownCause {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => ShutdownCause::Terminate,
            _ = self.interrupt.recv() => ShutdownCause::Interrupt,
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

    async fn next(&mut self) -> ShutdownCause {
        let _pressed = self.0.recv().await;
        ShutdownCause::Interrupt
    }
}
