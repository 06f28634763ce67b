//! The constructors for the errors of the memory bus.

use qi_core::bus::{DeliveryError, TopicName, TopicPartition};
use qi_core::{Error, ErrorKind};

/// The backend's name in errors and in the configuration.
pub(super) const BACKEND: &str = "memory";

fn error(kind: ErrorKind, code: &'static str, operation: &'static str) -> Error {
    Error::new(kind, code, operation).with_backend(BACKEND)
}

pub(super) fn closed(operation: &'static str) -> Error {
    Error::closed("bus.memory.closed", operation).with_backend(BACKEND)
}

pub(super) fn unavailable(operation: &'static str) -> Error {
    error(ErrorKind::Unavailable, "bus.memory.unavailable", operation)
        .with_message("this client is disconnected from the log")
}

pub(super) fn unknown_topic(topic: &TopicName, operation: &'static str) -> Error {
    error(ErrorKind::NotFound, "bus.memory.topic", operation)
        .with_message("the topic does not exist")
        .with_context("topic", topic)
}

pub(super) fn partitions_differ(topic: &TopicName, wanted: u32, found: usize) -> Error {
    error(ErrorKind::Conflict, "bus.memory.topic.partitions", "create_topics")
        .with_retry(qi_core::RetryAdvice::Never)
        .with_message(format_args!("the topic exists with {found} partitions, not {wanted}"))
        .with_context("topic", topic)
        .with_context("wanted", wanted)
        .with_context("found", found)
}

pub(super) fn unknown_partition(topic: &TopicName, partition: u32, operation: &'static str) -> Error {
    invalid("bus.memory.partition", operation, "partition", partition, "the topic has no such partition")
        .with_context("topic", topic)
}

pub(super) fn too_large(size: usize, limit: usize) -> Error {
    let rule = "exceeds the message size limit of the topic or of this client";
    invalid(DeliveryError::TOO_LARGE, "publish", "size", size, rule).with_context("limit", limit)
}

pub(super) fn full(max_bytes: usize, largest_lag: Option<(&str, u64)>) -> Error {
    let error =
        error(ErrorKind::Overloaded, "bus.memory.full", "publish").with_context("max_bytes", max_bytes);
    match largest_lag {
        Some((group, lag)) => error
            .with_message(format_args!("log is full ({max_bytes} bytes); group {group} has a lag of {lag}"))
            .with_context("group", group)
            .with_context("lag", lag),
        None => error.with_message(format_args!(
            "log is full ({max_bytes} bytes); no committed message can be removed"
        )),
    }
}

pub(super) fn delivery_timeout_while_disconnected() -> Error {
    error(ErrorKind::Timeout, "bus.memory.delivery_timeout", "publish")
        .with_message("this client was disconnected from the log for the complete delivery timeout")
}

pub(super) fn no_valid_position(partition: &TopicPartition, operation: &'static str) -> Error {
    error(ErrorKind::NotFound, "bus.memory.position", operation)
        .with_message("no valid commit, and offset_reset is error")
        .with_context("partition", partition)
}

pub(super) fn fenced(operation: &'static str) -> Error {
    error(ErrorKind::Conflict, "bus.memory.fenced", operation)
        .with_retry(qi_core::RetryAdvice::Never)
        .with_message("another subscription replaced this static member")
}

pub(super) fn not_owned(partition: &TopicPartition, operation: &'static str) -> Error {
    invalid("bus.memory.not_owned", operation, "partition", partition, "the partition is not assigned")
}

pub(super) fn beyond_position(partition: &TopicPartition, upto: u64, position: u64) -> Error {
    invalid("bus.memory.commit.position", "commit", "offset", upto, "must not exceed the position of recv")
        .with_context("partition", partition)
        .with_context("position", position)
}

pub(super) fn zero_max() -> Error {
    invalid("bus.memory.recv.max", "recv", "max", 0, "must be at least 1")
}

pub(super) fn no_group() -> Error {
    error(ErrorKind::Unsupported, "bus.memory.commit.group", "commit")
        .with_message("a reader without a group cannot commit")
}

pub(super) fn beyond_end(partition: &TopicPartition, offset: u64, end: u64) -> Error {
    invalid(
        "bus.memory.delete_records",
        "delete_records",
        "offset",
        offset,
        "must not exceed the high watermark",
    )
    .with_context("partition", partition)
    .with_context("end", end)
}

fn invalid(
    code: &'static str,
    operation: &'static str,
    field: &'static str,
    value: impl std::fmt::Display,
    rule: &'static str,
) -> Error {
    error(ErrorKind::InvalidInput, code, operation)
        .with_message(rule)
        .with_context("field", field)
        .with_context("value", value)
}
