//! Random histories against a plain model, and the same histories against two buses.
//!
//! [`follow`] runs a history on a bus and holds every answer against a model that is nothing but lists and maps.
//! Who gets which partition is the bus's choice: the model takes it from the notices and demands that they tell
//! the whole truth. [`trace`] runs a history without the model and gives what two buses must agree on;
//! [`check_traces`] does that for many histories.

mod compare;
mod history;
mod run;
mod state;
mod trace;

pub use compare::check_traces;
pub use history::{Step, histories};
pub use run::follow;
pub use trace::{Content, Trace, trace};
