//! Shared support for tests on real servers: unique names, trials, and servers that tests may break.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::{Completion, Failed, Trial};
use qi_testkit::presence;
use qi_testkit::store::contract::{StoreFactory, Suite, Wrapper};

/// Returns a name that no other trial has, in this run or in any other run.
pub(crate) fn namespace() -> String {
    static NEXT_ID: AtomicU32 = AtomicU32::new(0);
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let next = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    format!("t_{}_{}_{next}", std::process::id(), started.as_micros())
}

/// Returns whether the environment sets `QI_LONG_TESTS=1`.
pub(crate) fn runs_long_tests() -> bool {
    std::env::var("QI_LONG_TESTS").is_ok_and(|value| value == "1")
}

/// Returns `short`, and `long` too with `QI_LONG_TESTS=1`.
pub(crate) fn with_long_tests<T>(short: impl Into<Vec<T>>, long: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut all = short.into();
    if runs_long_tests() {
        all.extend(long);
    }
    all
}

/// Adds the contract of a store: plain on all datasets, and in the full stack over faults on representative datasets.
/// With `QI_LONG_TESTS=1`, it runs on all datasets in both, and in the full stack without faults.
pub(crate) fn with_contract(suite: Suite, factory: impl StoreFactory + Clone) -> Suite {
    let suite = suite.on(factory.clone(), [Wrapper::PLAIN]);
    if runs_long_tests() {
        suite.on(factory, [Wrapper::FULL_STACK, Wrapper::FULL_STACK_OVER_CHAOS])
    } else {
        suite.on_representative(factory, [Wrapper::FULL_STACK_OVER_CHAOS])
    }
}

/// A kind of server that the tests run on.
pub(crate) trait TestServer: Clone + Send + 'static {
    /// Returns the name of the kind in `scripts/backends` and in `QI_REQUIRE_BACKENDS`.
    fn kind(&self) -> &str;

    /// Returns the reason why the kind cannot be tested on this machine, if any.
    fn missing(&self) -> Option<String>;

    /// Returns the same kind at another address.
    fn with_address(self, address: String) -> Self;
}

/// A server or a cluster that the script started. Dropping it removes the server.
#[derive(Debug)]
pub(crate) struct Spare {
    kind: String,
    name: String,
}

impl Spare {
    /// Starts a server and returns its address, or the reason why this machine cannot start it.
    pub(crate) fn start(kind: &str) -> Result<(Self, String), String> {
        Self::start_with(kind, &[])
    }

    /// Starts a server with further arguments of the script.
    pub(crate) fn start_with(kind: &str, arguments: &[&str]) -> Result<(Self, String), String> {
        let spare = Self { kind: kind.to_owned(), name: namespace() };
        let address = script(&[&["spare", kind, &spare.name, "start"], arguments].concat(), "")?;
        Ok((spare, address))
    }

    /// Runs an action of the script. Returns its output.
    pub(crate) fn run_action_blocking(&self, action: &str) -> String {
        let arguments: Vec<_> =
            ["spare", &self.kind, &self.name].into_iter().chain(action.split(' ')).collect();
        script(&arguments, "").unwrap()
    }

    /// Runs an action of the script inside a runtime.
    pub(crate) async fn run_action(self, action: impl Into<String>) -> Self {
        let action = action.into();
        tokio::task::spawn_blocking(move || {
            self.run_action_blocking(&action);
            self
        })
        .await
        .unwrap()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // A server that failed to start leaves nothing behind.
        let _ = script(&["spare", &self.kind, &self.name, "remove"], "");
    }
}

/// Runs `scripts/backends` with this input. Returns its output, or the reason why this machine cannot run it.
pub(crate) fn script(arguments: &[&str], input: &str) -> Result<String, String> {
    const EXIT_UNSUPPORTED: i32 = 3;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A separate thread writes the input, so that a script that prints before reading everything is not blocked.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let out = child.wait_with_output().unwrap();
    let arguments = arguments.join(" ");
    let errors = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    if out.status.code() == Some(EXIT_UNSUPPORTED) {
        return Err(errors);
    }
    assert!(out.status.success(), "{arguments}: {errors}");
    writer.join().unwrap().unwrap();
    Ok(String::from_utf8(out.stdout).unwrap().trim_end().to_owned())
}

/// Runs a check to completion.
pub(crate) fn run<R: Future<Output = ()>>(check: R) -> Result<Completion, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(check);
    Ok(Completion::Completed)
}

/// Returns a trial on the shared server.
pub(crate) fn trial<S: TestServer, R: Future<Output = ()>>(
    server: &S,
    name: &str,
    check: impl FnOnce(S) -> R + Send + 'static,
) -> Trial {
    let server = server.clone();
    let (backend, absent) = (server.kind().to_owned(), server.missing());
    presence::trial(format!("{backend}/{name}"), &backend, absent, move || run(check(server)))
}

/// Returns a trial on a separate server.
pub(crate) fn spare_trial<S: TestServer, R: Future<Output = ()>>(
    server: &S,
    name: &'static str,
    check: impl FnOnce(S, Spare) -> R + Send + 'static,
) -> Trial {
    trial_on(server, server.kind(), name, check)
}

/// Returns a trial on a separate server that the script starts under another name than the kind of the server.
pub(crate) fn trial_on<S: TestServer, R: Future<Output = ()>>(
    server: &S,
    server_name: &str,
    name: &'static str,
    check: impl FnOnce(S, Spare) -> R + Send + 'static,
) -> Trial {
    let (server, server_name) = (server.clone(), server_name.to_owned());
    let (backend, absent) = (server.kind().to_owned(), server.missing().or_else(no_root));
    presence::trial(format!("{backend}/{name}"), &backend.clone(), absent, move || {
        let (spare, address) = match Spare::start(&server_name) {
            Ok(started) => started,
            Err(reason) => return presence::absent(&backend, reason),
        };
        run(check(server.with_address(address), spare))
    })
}

/// Returns the reason why the script cannot start servers on this machine, as far as this is known without running it.
pub(crate) fn no_root() -> Option<String> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
    (!root).then(|| "a server that may be broken needs root".to_owned())
}
