//! Starts and stops 10,000 agents, compared with as many actors of kameo and of ractor and with as many bare tokio
//! tasks, on a runtime with two workers and without a log subscriber.
//!
//! `cargo bench -p qi-benches --bench agents` measures each side alone with criterion, then prints the ratios of
//! interleaved pairs. The argument `ratios` omits criterion.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::Criterion;
use qi_benches::ratio;
use qi_core::agent::{Agent, AgentContext, AgentRuntime, AgentSpec};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

const AGENTS: usize = 10_000;
const ROUNDS: usize = 31;

/// A barrier that notifies when all agents have arrived.
#[derive(Default)]
struct Meeting {
    here: AtomicUsize,
    all: Notify,
}

impl Meeting {
    fn arrive(&self) {
        if self.here.fetch_add(1, Ordering::Relaxed) + 1 == AGENTS {
            self.all.notify_one();
        }
    }
}

struct Waits(Arc<Meeting>);

#[async_trait::async_trait]
impl Agent for Waits {
    async fn run(&mut self, cx: &AgentContext) -> qi_core::Result<()> {
        self.0.arrive();
        cx.cancelled().await;
        Ok(())
    }
}

/// Our side: builds the agents, waits until each is in `run`, stops them, cleans up, and reports.
async fn agents() {
    let meeting = Arc::new(Meeting::default());
    let mut builder = AgentRuntime::builder();
    for n in 0..AGENTS {
        let meeting = meeting.clone();
        builder = builder.agent(AgentSpec::new(format!("agent-{n}"), move || Waits(meeting.clone())));
    }
    let runtime = builder.build().expect("the names differ");
    let report = runtime.run_until(meeting.all.notified()).await;
    assert_eq!(report.agents.len(), AGENTS);
    report.result().expect("all agents end in order");
}

struct KameoWaits;

impl kameo::Actor for KameoWaits {
    type Args = ();
    type Error = kameo::error::Infallible;

    async fn on_start((): (), _: kameo::actor::ActorRef<Self>) -> Result<Self, Self::Error> {
        Ok(Self)
    }
}

async fn kameo_actors() {
    use kameo::actor::Spawn;
    let actors: Vec<_> = (0..AGENTS).map(|_| KameoWaits::spawn(())).collect();
    for actor in &actors {
        actor.wait_for_startup().await;
    }
    for actor in &actors {
        actor.stop_gracefully().await.expect("the actor is alive");
    }
    for actor in &actors {
        actor.wait_for_shutdown().await;
    }
}

struct RactorWaits;

impl ractor::Actor for RactorWaits {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ractor::ActorRef<()>, (): ()) -> Result<(), ractor::ActorProcessingErr> {
        Ok(())
    }
}

async fn ractor_actors() {
    let mut actors = Vec::with_capacity(AGENTS);
    for _ in 0..AGENTS {
        actors.push(ractor::Actor::spawn(None, RactorWaits, ()).await.expect("the actor starts"));
    }
    for (actor, _) in &actors {
        actor.stop(None);
    }
    for (_, task) in actors {
        task.await.expect("the actor ends");
    }
}

async fn bare_tasks() {
    let meeting = Arc::new(Meeting::default());
    let stop = Arc::new(tokio::sync::Semaphore::new(0));
    let tasks: Vec<_> = (0..AGENTS)
        .map(|_| {
            let (meeting, stop) = (meeting.clone(), stop.clone());
            tokio::spawn(async move {
                meeting.arrive();
                let _closed = stop.acquire().await;
            })
        })
        .collect();
    meeting.all.notified().await;
    stop.close();
    for task in tasks {
        task.await.expect("the task ends");
    }
}

/// Runs `work` as a task of the runtime, so that no side starts outside the workers.
fn on<F: Future<Output = ()> + Send + 'static>(runtime: &Runtime, work: impl Fn() -> F) -> Duration {
    let begun = Instant::now();
    runtime.block_on(async { tokio::spawn(work()).await }).expect("the work ends");
    black_box(begun.elapsed())
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if !std::env::args().any(|argument| argument == "ratios") {
        let mut criterion = Criterion::default().configure_from_args().sample_size(10);
        let mut group = criterion.benchmark_group("10,000 started and stopped");
        group.bench_function("qi agents", |b| b.iter(|| on(&runtime, agents)));
        group.bench_function("kameo actors", |b| b.iter(|| on(&runtime, kameo_actors)));
        group.bench_function("ractor actors", |b| b.iter(|| on(&runtime, ractor_actors)));
        group.bench_function("bare tasks", |b| b.iter(|| on(&runtime, bare_tasks)));
        group.finish();
        criterion.final_summary();
    }
    println!("10,000 started and stopped, qi over each baseline, interleaved pairs:");
    println!("  kameo  {}", ratio(ROUNDS, || on(&runtime, agents), || on(&runtime, kameo_actors)));
    println!("  ractor {}", ratio(ROUNDS, || on(&runtime, agents), || on(&runtime, ractor_actors)));
    println!("  tasks  {}", ratio(ROUNDS, || on(&runtime, agents), || on(&runtime, bare_tasks)));
}
