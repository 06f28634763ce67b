//! The backends of `qi`, each behind a feature of its own, and the [configuration](config) that picks one.

pub mod config;

pub use config::{Backends, Config};
