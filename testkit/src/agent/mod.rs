//! Tools for agent tests: scripted agents, a log of their calls, a log of transitions, a check of histories, and the
//! contract suite.

#[cfg(feature = "contract")]
mod contract;
mod log;
mod poll;
mod scripted;

#[cfg(feature = "contract")]
pub use contract::{ClockMode, agent_contract, agent_contract_async, agent_contract_on};
pub use log::{TransitionLog, legal, legal_history};
pub use poll::{Polled, drop_at_poll};
pub use scripted::{CallLog, Script, ScriptedAgent, Scripts, Step};
