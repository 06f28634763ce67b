//! SIGTERM and SIGINT, on real time. The test starts itself as a child process and sends the signals to it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod agent_rig;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_rig::{ms, scripted};
use qi_core::agent::{AgentRuntime, AgentStatus, Termination};
use qi_testkit::agent::{Script, Step};

const SCRIPT: &str = "QI_TEST_SIGNAL_CHILD";

/// Runs one agent under signals in the child process, and prints the result.
#[test]
#[ignore = "the child process of the tests below"]
fn child() {
    // Without the variable, the test does not run as a child process, for example in a run of all ignored tests.
    let Ok(script) = std::env::var(SCRIPT) else { return };
    let run = if script == "deaf" { Step::HangIgnoringStop } else { Step::WaitForStop };
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    tokio.block_on(async {
        let (spec, calls) = scripted("a", [Script::run(run)]);
        let runtime =
            AgentRuntime::builder().agent(spec.stop_timeout(Duration::from_secs(20))).build().unwrap();
        let handle = runtime.handle();
        let report = tokio::spawn(runtime.run_with_signals());
        handle.wait_for("a", |s| s.status == AgentStatus::Running).await.unwrap();
        println!("\nthe agent is up");
        let report = report.await.unwrap().unwrap();
        let agent = report.agent("a").unwrap();
        let ending = if agent.termination == Termination::Forced { "forced" } else { "orderly" };
        println!("\nended by {}, {ending}, {}, clean {}", report.cause, agent.status, calls.is_clean());
    });
}

struct Signalled {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Signalled {
    fn start(script: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(SCRIPT, script)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut child = Self { process, lines };
        child.line_with("the agent is up");
        child
    }

    fn line_with(&mut self, word: &str) -> String {
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(word))
            .expect("the child process reports the signal")
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.process.id())).status();
        assert!(sent.unwrap().success());
    }

    fn end(mut self) -> String {
        let line = self.line_with("ended by");
        assert!(self.process.wait().unwrap().success());
        line
    }
}

#[test]
fn sigterm_and_sigint_shut_down_in_order() {
    for (signal, name) in [("TERM", "SIGTERM"), ("INT", "SIGINT")] {
        let child = Signalled::start("polite");
        child.signal(signal);
        assert_eq!(child.end(), format!("ended by {name}, orderly, stopped, clean true"));
    }
}

#[test]
fn second_signal_expires_the_soft_deadline_and_the_first_is_the_cause() {
    let child = Signalled::start("deaf");
    let begun = Instant::now();
    child.signal("TERM");
    std::thread::sleep(ms(300));
    child.signal("INT");
    assert_eq!(child.end(), "ended by SIGTERM, forced, stopped, clean true");
    let took = begun.elapsed();
    assert!(
        (ms(300)..Duration::from_secs(5)).contains(&took),
        "the shutdown took {took:?}, longer than without the second signal"
    );
}
