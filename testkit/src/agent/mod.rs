//! Tools for agent tests: scripted agents and their call log, a log of transitions with checks of their order, a
//! cancellation helper ([`drop_at_poll`]), and the contract suite.

mod cancellation;
#[cfg(feature = "contract")]
mod contract;
mod log;
mod scripted;

pub use cancellation::{DropOutcome, drop_at_poll};
#[cfg(feature = "contract")]
pub use contract::{ClockMode, agent_contract, agent_contract_async, agent_contract_on};
pub use log::{TransitionLog, check_transitions, is_legal_status_sequence};
pub use scripted::{AgentScript, CallLog, Script, ScriptedAgent, Step};
