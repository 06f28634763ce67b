//! What the tests on real servers share: names of their own, trials, and servers that they may break.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::{Completion, Failed, Trial};
use qi_testkit::presence;
use qi_testkit::store::contract::StoreFactory;

/// A name that no other trial has, of this run or of another one.
pub(crate) fn namespace() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("t_{}_{}_{next}", std::process::id(), started.as_micros())
}

/// A server that tests run on.
pub(crate) trait Tested: StoreFactory + Clone + 'static {
    /// The same kind of store on another server.
    fn at(self, url: String) -> Self;
}

/// A server by the script. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Spare {
    kind: String,
    name: String,
}

impl Spare {
    /// Does what the word says, and gives what the script prints.
    pub(crate) fn order(&self, action: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
        let words = ["spare", &self.kind, &self.name].into_iter().chain(action.split(' '));
        let out = Command::new(script).args(words).output().unwrap();
        assert!(out.status.success(), "{action}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// The same from inside a runtime.
    pub(crate) async fn ordered(self, action: &'static str) -> Self {
        tokio::task::spawn_blocking(move || {
            self.order(action);
            self
        })
        .await
        .unwrap()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.order("remove");
    }
}

/// Runs a check to its end.
pub(crate) fn run<R: Future<Output = ()>>(check: R) -> Result<Completion, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(check);
    Ok(Completion::Completed)
}

/// A trial on the shared server.
pub(crate) fn trial<S: Tested, R: Future<Output = ()>>(
    server: &S,
    name: &str,
    check: impl FnOnce(S) -> R + Send + 'static,
) -> Trial {
    let server = server.clone();
    let (backend, absent) = (server.name().to_owned(), server.absent());
    presence::trial(format!("{backend}/{name}"), &backend, absent, move || run(check(server)))
}

/// A trial on a server of its own.
pub(crate) fn spare_trial<S: Tested, R: Future<Output = ()>>(
    server: &S,
    name: &'static str,
    check: impl FnOnce(S, Spare) -> R + Send + 'static,
) -> Trial {
    let server = server.clone();
    let (backend, absent) = (server.name().to_owned(), server.absent());
    let absent = absent.or_else(|| {
        let root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout == b"0\n");
        (!root).then(|| "a server that may be broken needs root".to_owned())
    });
    presence::trial(format!("{backend}/{name}"), &backend.clone(), absent, move || {
        let spare = Spare { kind: backend, name: namespace() };
        let server = server.at(spare.order("start"));
        run(check(server, spare))
    })
}
