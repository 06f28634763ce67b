//! The log output of the runtime, with only a subscriber installed.

mod agent_rig;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use agent_rig::{ms, scripted};
use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext, AgentRuntime, AgentSpec};
use qi_core::{Error, ErrorKind, Result};
use qi_testkit::agent::{Script, Step};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// A subscriber that keeps each event as `LEVEL [span fields] event fields`.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lines: Vec<(Level, String)>,
    spans: HashMap<u64, String>,
    entered: Vec<u64>,
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").expect("a write to a string succeeds");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("qi_core::agent") || metadata.target() == "agent_log"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        assert!(span.is_root(), "a span per phase is a root");
        let mut text = Text(String::new());
        span.record(&mut text);
        let mut state = self.0.lock().expect("no panic under the lock");
        let id = state.spans.len() as u64 + 1;
        state.spans.insert(id, text.0);
        Id::from_u64(id)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let mut state = self.0.lock().expect("no panic under the lock");
        let span = state.entered.last().map(|id| format!("[{}] ", state.spans[id])).unwrap_or_default();
        state.lines.push((*event.metadata().level(), span + &text.0));
    }

    fn enter(&self, span: &Id) {
        self.0.lock().expect("no panic under the lock").entered.push(span.into_u64());
    }

    fn exit(&self, _span: &Id) {
        self.0.lock().expect("no panic under the lock").entered.pop();
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
}

struct LoggingAgent;

#[async_trait]
impl Agent for LoggingAgent {
    async fn run(&mut self, _cx: &AgentContext) -> Result<()> {
        tracing::info!(target: "agent_log", "at work");
        let cause = std::io::Error::other("the disk is full");
        Err(Error::new(ErrorKind::Config, "app.disk", "run").with_source(cause))
    }
}

#[tokio::test(start_paused = true)]
async fn each_transition_is_logged_at_its_level() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let (flaky, _) = scripted("flaky", [Script::run(Step::Err(ErrorKind::Timeout)), Script::run(Step::Ok)]);
    let speaks = AgentSpec::new("speaks", || LoggingAgent).best_effort();
    let runtime = AgentRuntime::builder().agent(flaky).agent(speaks).build().expect("the specs are fine");
    runtime.run_until(tokio::time::sleep(ms(5_000))).await;
    let state = lines.0.lock().expect("no panic under the lock");
    let found = |level: Level, words: &[&str]| {
        let hit = |(l, line): &&(Level, String)| *l == level && words.iter().all(|word| line.contains(word));
        assert!(state.lines.iter().any(|line| hit(&line)), "{level} {words:?} in {:#?}", state.lines);
    };
    found(Level::INFO, &["agent=flaky", "from=initializing", "to=running", "incarnation=2"]);
    found(Level::WARN, &["agent=flaky", "attempt=1", "delay=1", "ms", "timeout"]);
    found(Level::ERROR, &["agent=speaks", "app.disk", "the disk is full", "NotRetryable"]);
    found(Level::INFO, &["[name=speaks incarnation=1 phase=run ]", "at work"]);
}
