//! Agents that follow a script, and a log of their calls.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::agent::{Agent, AgentContext, ExitReason};
use qi_core::{Error, ErrorKind, Result};

/// The largest number of calls in a log.
const LIMIT: usize = 1_000_000;

/// The behaviour of one hook of one incarnation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Step {
    /// Returns Ok immediately.
    Ok,
    /// Returns an error of this kind immediately.
    Err(ErrorKind),
    /// Panics with a text.
    Panic,
    /// Panics with a payload that is not a string and that panics when dropped.
    PanicWithOtherPayload,
    /// Never ends, ignores a stop request, and panics when dropped.
    PanicOnDrop,
    /// Waits for the stop request, then returns Ok. In `cleanup`, where the stop was already requested, behaves like
    /// `HangIgnoringStop`.
    WaitForStop,
    /// Never ends and ignores a stop request.
    HangIgnoringStop,
    /// Never ends and is always ready. It yields only to tokio's cooperative budget.
    Spin,
    /// Blocks its thread for the given real time, then returns Ok.
    Block(Duration),
    /// Sleeps in tokio time and ignores stop requests, then performs the step.
    After(Duration, Box<Step>),
    /// Starts a child task that performs the step, then waits for the stop request.
    Child(Box<Step>),
}

impl Step {
    /// Creates a [`Step::After`].
    pub fn after(delay: Duration, step: Step) -> Self {
        Self::After(delay, Box::new(step))
    }

    /// Creates a [`Step::Child`].
    pub fn child(step: Step) -> Self {
        Self::Child(Box::new(step))
    }

    /// Performs the step, for an agent that is not a [`ScriptedAgent`] or for an asynchronous factory.
    ///
    /// # Errors
    /// The error of the script.
    pub async fn perform(self, cx: &AgentContext) -> Result<()> {
        self.take(cx.clone(), true).await
    }

    fn take(self, cx: AgentContext, may_stop: bool) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
        Box::pin(async move {
            match self {
                Self::Ok => Ok(()),
                Self::Err(kind) => Err(Error::new(kind, "scripted", "script")),
                Self::Panic => panic!("scripted panic"),
                Self::PanicWithOtherPayload => std::panic::panic_any(PanicsWhenDropped),
                Self::PanicOnDrop => {
                    let _armed = PanicsWhenDropped;
                    std::future::pending().await
                }
                Self::WaitForStop if may_stop => {
                    cx.cancelled().await;
                    Ok(())
                }
                Self::WaitForStop | Self::HangIgnoringStop => std::future::pending().await,
                Self::Spin => loop {
                    tokio::task::consume_budget().await;
                },
                Self::Block(real_time) => {
                    std::thread::sleep(real_time);
                    Ok(())
                }
                Self::After(delay, step) => {
                    tokio::time::sleep(delay).await;
                    step.take(cx, may_stop).await
                }
                Self::Child(step) => {
                    let child = cx.clone();
                    cx.spawn("scripted", async move { step.take(child, true).await })?;
                    cx.cancelled().await;
                    Ok(())
                }
            }
        })
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        // A second panic during unwinding would abort the process.
        assert!(std::thread::panicking(), "scripted panic in drop");
    }
}

/// The behaviour of one incarnation. By default, `initialize` and `cleanup` return Ok, and `run` waits for the
/// stop request and returns Ok.
#[derive(Debug, Clone)]
pub struct Script {
    factory_panics: bool,
    value_drop_panics: bool,
    initialize: Step,
    run: Step,
    cleanup: Step,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            factory_panics: false,
            value_drop_panics: false,
            initialize: Step::Ok,
            run: Step::WaitForStop,
            cleanup: Step::Ok,
        }
    }
}

impl Script {
    /// Creates a default script with this `run`.
    pub fn run(run: Step) -> Self {
        Self { run, ..Self::default() }
    }

    /// Creates a default script with this `initialize`.
    pub fn initialize(initialize: Step) -> Self {
        Self::default().with_initialize(initialize)
    }

    /// Sets `run`.
    #[must_use]
    pub fn with_run(mut self, step: Step) -> Self {
        self.run = step;
        self
    }

    /// Sets `initialize`.
    #[must_use]
    pub fn with_initialize(mut self, step: Step) -> Self {
        self.initialize = step;
        self
    }

    /// Sets `cleanup`.
    #[must_use]
    pub fn with_cleanup(mut self, step: Step) -> Self {
        self.cleanup = step;
        self
    }

    /// Makes the factory panic.
    #[must_use]
    pub fn with_factory_panic(mut self) -> Self {
        self.factory_panics = true;
        self
    }

    /// Makes the drop of the agent panic.
    #[must_use]
    pub fn with_value_drop_panic(mut self) -> Self {
        self.value_drop_panics = true;
        self
    }
}

/// A log of the calls of scripted agents: `Init#1`, `Run#1`, `Cleanup#1(Panicked)`, `Drop#1`, and so on.
/// Clones share one log.
#[derive(Clone, Default)]
pub struct CallLog(Arc<Mutex<Vec<String>>>);

impl fmt::Debug for CallLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.calls().iter()).finish()
    }
}

impl CallLog {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, call: String) {
        let mut calls = self.lock();
        assert!(calls.len() < LIMIT, "a call log holds at most {LIMIT} calls");
        calls.push(call);
    }

    /// Returns all calls in order.
    pub fn calls(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// Returns the number of calls that start with `beginning`.
    pub fn count(&self, beginning: &str) -> usize {
        self.lock().iter().filter(|call| call.starts_with(beginning)).count()
    }

    /// Returns whether every agent whose `initialize` was called had exactly one `cleanup`, after all its other calls
    /// and before its drop.
    pub fn is_clean(&self) -> bool {
        let calls = self.lock();
        let values = calls.iter().filter_map(|call| call.strip_prefix("Init#"));
        let mut open = 0usize;
        let in_order = calls.iter().all(|call| {
            let name = call.split(['#', '(']).next().unwrap_or_default();
            match name {
                "Init" => {
                    open += 1;
                    open == 1
                }
                "Run" => open == 1,
                "Cleanup" => {
                    let was_open = open == 1;
                    open = 0;
                    was_open
                }
                _ => open == 0,
            }
        });
        let once = values.into_iter().all(|number| {
            let cleanup = format!("Cleanup#{number}(");
            calls.iter().filter(|call| call.starts_with(&cleanup)).count() == 1
        });
        in_order && once && open == 0
    }
}

/// An agent that follows a [`Script`].
///
/// ```
/// use qi_core::agent::{AgentRuntime, AgentSpec};
/// use qi_testkit::agent::{Script, ScriptedAgent, Step};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> qi_core::Result<()> {
/// // Panics in its first run, then completes.
/// let scripts = ScriptedAgent::script([Script::run(Step::Panic), Script::run(Step::Ok)]);
/// let log = scripts.log();
/// let runtime = AgentRuntime::builder().agent(AgentSpec::new("a", scripts.factory())).build()?;
/// runtime.run().await;
/// assert_eq!(
///     log.calls(),
///     ["Init#1", "Run#1", "Cleanup#1(Panicked)", "Drop#1", "Init#2", "Run#2", "Cleanup#2(Completed)", "Drop#2"]
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ScriptedAgent {
    script: Script,
    number: usize,
    log: CallLog,
}

impl ScriptedAgent {
    /// Creates scripts, one for each incarnation. The last script applies to all further incarnations.
    pub fn script(scripts: impl IntoIterator<Item = Script>) -> AgentScript {
        let scripts: Vec<Script> = scripts.into_iter().collect();
        AgentScript { each: scripts.into(), made: Arc::default(), log: CallLog::default() }
    }
}

/// The scripts of one agent's incarnations, and their shared log. Clones share the incarnation counter.
#[derive(Debug, Clone)]
pub struct AgentScript {
    each: Arc<[Script]>,
    made: Arc<AtomicUsize>,
    log: CallLog,
}

impl AgentScript {
    /// Returns the log of all incarnations.
    pub fn log(&self) -> CallLog {
        self.log.clone()
    }

    /// Returns the factory for an `AgentSpec`.
    pub fn factory(&self) -> impl FnMut() -> ScriptedAgent + Send + 'static {
        let scripts = self.clone();
        move || scripts.make()
    }

    /// Creates the agent of the next incarnation.
    ///
    /// # Panics
    /// If the script has [`Script::with_factory_panic`].
    pub fn make(&self) -> ScriptedAgent {
        let made = self.made.fetch_add(1, Ordering::SeqCst);
        let script = self.each.get(made).or(self.each.last()).cloned().unwrap_or_default();
        assert!(!script.factory_panics, "scripted panic in the factory");
        ScriptedAgent { script, number: made + 1, log: self.log.clone() }
    }
}

#[async_trait]
impl Agent for ScriptedAgent {
    async fn initialize(&mut self, cx: &AgentContext) -> Result<()> {
        self.log.add(format!("Init#{}", self.number));
        self.script.initialize.clone().take(cx.clone(), true).await
    }

    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        self.log.add(format!("Run#{}", self.number));
        self.script.run.clone().take(cx.clone(), true).await
    }

    async fn cleanup(&mut self, cx: &AgentContext, exit: &ExitReason) -> Result<()> {
        let exit = format!("{exit:?}");
        let name = exit.split(['(', ' ']).next().unwrap_or_default();
        self.log.add(format!("Cleanup#{}({name})", self.number));
        self.script.cleanup.clone().take(cx.clone(), false).await
    }
}

impl Drop for ScriptedAgent {
    fn drop(&mut self) {
        self.log.add(format!("Drop#{}", self.number));
        let quiet = !self.script.value_drop_panics || std::thread::panicking();
        assert!(quiet, "scripted panic in the drop of the value");
    }
}
