//! The publishing of messages.

mod client;
mod in_flight;
mod publisher;

pub(super) use publisher::Publisher;
