//! All agents of one runtime: the order in which they start and stop, and the report at the end.
//!
//! Nobody supervises from above. Each driver tells the fleet what became of its agent, and the fleet counts:
//! an agent starts when no dependency is left to wait for, and is stopped when no dependent is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::catch::lock;
use super::cell::{Asked, Cell, Env};
use super::report::{AgentReport, EndedBy, Ending, RuntimeReport};
use super::shutdown::Deadlines;
use super::status::{AgentStatus, agent_error};
use crate::{ErrorKind, Result};

/// One agent and its place among the others.
pub(super) struct Member {
    pub(super) cell: Arc<Cell>,
    pub(super) finite: bool,
    pub(super) critical: bool,
    pub(super) dependencies: Vec<usize>,
    pub(super) dependents: Vec<usize>,
    /// Its dependents need not wait for it any more.
    satisfied: AtomicBool,
}

impl Member {
    pub(super) fn new(cell: Arc<Cell>, finite: bool, critical: bool, dependencies: Vec<usize>) -> Self {
        Self {
            cell,
            finite,
            critical,
            dependencies,
            dependents: Vec::new(),
            satisfied: AtomicBool::new(false),
        }
    }
}

pub(super) struct Fleet {
    pub(super) env: Arc<Env>,
    pub(super) members: Vec<Member>,
    pub(super) deadlines: Deadlines,
    /// The shutdown has begun.
    pub(super) begun: CancellationToken,
    /// The report is closed.
    pub(super) closed: CancellationToken,
    by_name: HashMap<Arc<str>, usize>,
    alive: AtomicUsize,
    stage: Mutex<Stage>,
    report: OnceLock<RuntimeReport>,
}

#[derive(Clone, Default)]
struct Stage {
    launched: bool,
    shutdown: Option<(EndedBy, Instant)>,
}

impl Fleet {
    pub(super) fn new(
        env: Arc<Env>,
        mut members: Vec<Member>,
        by_name: HashMap<Arc<str>, usize>,
        deadlines: Deadlines,
    ) -> Self {
        for index in 0..members.len() {
            for at in 0..members[index].dependencies.len() {
                let dependency = members[index].dependencies[at];
                members[dependency].dependents.push(index);
                members[dependency].cell.dependents_left.fetch_add(1, Ordering::SeqCst);
                members[index].cell.waiting_on.fetch_add(1, Ordering::SeqCst);
            }
        }
        Self {
            env,
            alive: AtomicUsize::new(members.len()),
            members,
            by_name,
            deadlines,
            begun: CancellationToken::new(),
            closed: CancellationToken::new(),
            stage: Mutex::default(),
            report: OnceLock::new(),
        }
    }

    pub(super) fn cell(&self, index: usize) -> &Arc<Cell> {
        &self.members[index].cell
    }

    pub(super) fn find(&self, name: &str) -> Result<&Arc<Cell>> {
        self.by_name.get(name).map(|index| self.cell(*index)).ok_or_else(|| {
            agent_error(
                ErrorKind::NotFound,
                "agent.unknown",
                "find",
                name,
                "no agent of the runtime has this name",
            )
        })
    }

    /// The agent is Running.
    pub(super) fn running(&self, index: usize) {
        let member = &self.members[index];
        member.cell.ready_once.store(true, Ordering::SeqCst);
        if !member.finite {
            self.satisfy(member);
        }
    }

    /// The agent has completed.
    pub(super) fn completed(&self, index: usize) {
        let member = &self.members[index];
        if member.finite {
            self.satisfy(member);
        }
    }

    fn satisfy(&self, member: &Member) {
        if member.dependents.is_empty() || member.satisfied.swap(true, Ordering::SeqCst) {
            return;
        }
        for &dependent in &member.dependents {
            let cell = self.cell(dependent);
            if cell.waiting_on.fetch_sub(1, Ordering::SeqCst) == 1 {
                cell.waker.wake();
            }
        }
    }

    /// The agent has reached its last status.
    pub(super) fn ended(&self, index: usize, status: AgentStatus) {
        let member = &self.members[index];
        if !member.satisfied.load(Ordering::SeqCst) {
            for &dependent in &member.dependents {
                let cell = self.cell(dependent);
                let _already_failed = cell.dependency_failed.set(member.cell.name.clone());
                cell.waker.wake();
            }
        }
        // Before it is counted out, so that the report of a fleet of one names it.
        if member.critical && status == AgentStatus::Failed {
            self.begin_shutdown(EndedBy::AgentFailed(member.cell.name.clone()));
        }
        for &dependency in &member.dependencies {
            let cell = self.cell(dependency);
            if cell.dependents_left.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_shutting_down() {
                cell.ask(Asked::Stop);
            }
        }
        if self.alive.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.close();
        }
    }

    pub(super) fn is_shutting_down(&self) -> bool {
        self.env.shutting_down.load(Ordering::SeqCst)
    }

    /// The drivers start now; a shutdown that was asked for before counts from here.
    pub(super) fn launch(&self) {
        let mut stage = lock(&self.stage);
        stage.launched = true;
        if stage.shutdown.is_some() {
            self.deadlines.arm();
        }
        drop(stage);
        if self.members.is_empty() {
            self.close();
        }
    }

    /// Begins the shutdown, once: agents without dependents are asked to stop, the others follow.
    pub(super) fn begin_shutdown(&self, cause: EndedBy) {
        {
            let mut stage = lock(&self.stage);
            if stage.shutdown.is_some() || self.report.get().is_some() {
                return;
            }
            tracing::info!(target: "qi_core::agent", %cause, "shutdown");
            stage.shutdown = Some((cause, Instant::now()));
            self.env.shutting_down.store(true, Ordering::SeqCst);
            if stage.launched {
                self.deadlines.arm();
            }
        }
        self.begun.cancel();
        for member in &self.members {
            if member.cell.dependents_left.load(Ordering::SeqCst) == 0 {
                member.cell.ask(Asked::Stop);
            }
        }
    }

    /// The soft deadline: no hook but cleanup goes on.
    pub(super) fn drop_hooks(&self) {
        for member in &self.members {
            member.cell.ask(Asked::DropHooks);
        }
    }

    /// Closes the report, and says whether this call did it.
    pub(super) fn close(&self) -> Option<&RuntimeReport> {
        let mut closed_here = false;
        let report = self.report.get_or_init(|| {
            closed_here = true;
            self.write_report()
        });
        self.deadlines.disarm();
        if closed_here {
            self.env.tell(|observer| observer.on_end(report));
        }
        self.closed.cancel();
        closed_here.then_some(report)
    }

    fn write_report(&self) -> RuntimeReport {
        let Stage { launched, shutdown } = lock(&self.stage).clone();
        let (ended_by, began) = match shutdown {
            Some((cause, began)) => (cause, Some(began)),
            None => (EndedBy::AllEnded, None),
        };
        let shutdown_took = began.map_or(Duration::ZERO, |began| began.elapsed());
        let agents = self.members.iter().map(|member| agent_report(member, launched)).collect();
        RuntimeReport { ended_by, shutdown_took, agents }
    }

    pub(super) async fn closed(&self) -> RuntimeReport {
        self.closed.cancelled().await;
        self.report.get().cloned().unwrap_or_else(|| self.write_report())
    }

    pub(super) fn was_launched(&self) -> bool {
        lock(&self.stage).launched
    }

    /// A runtime that was dropped without having run: nothing is left to wait for.
    pub(super) fn never_ran(&self) {
        self.begin_shutdown(EndedBy::Dropped);
        self.close();
    }
}

fn agent_report(member: &Member, launched: bool) -> AgentReport {
    let cell = &member.cell;
    let snapshot = cell.snapshot();
    let ending = if launched && !snapshot.status.is_terminal() {
        Ending::Leaked { blocking: cell.is_busy() }
    } else if cell.forced.load(Ordering::Relaxed) {
        Ending::Forced
    } else {
        Ending::Orderly
    };
    AgentReport {
        name: cell.name.clone(),
        critical: member.critical,
        status: snapshot.status,
        ending,
        restarts: snapshot.restarts,
        last_exit: snapshot.last_exit,
        last_error: cell.last_error(),
    }
}
