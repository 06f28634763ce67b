//! Random histories, checked against a simple model and compared between two buses.
//!
//! [`run_history`] runs a history on a bus and compares every response with a model of lists and maps. The bus decides
//! the assignment of partitions. The model takes the assignment from the events and checks that the events are
//! complete. [`trace`] runs a history without the model and returns the results on which two buses must agree.
//! [`check_traces`] compares the results of many histories.

mod compare;
mod history;
mod run;
mod state;
mod trace;

pub use compare::check_traces;
pub use history::{Step, histories};
pub use run::run_history;
pub use trace::{Content, Trace, trace};
