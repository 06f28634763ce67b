//! Errors of librdkafka and the brokers, and their mapping to `qi_core::Error` in one table.

use std::fmt::Display;

use qi_core::bus::{DeliveryError, DeliveryState, TopicName, TopicPartition};
use qi_core::{Error, ErrorKind, RetryAdvice};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The backend name in errors and metrics.
pub(super) const BACKEND: &str = "redpanda";

/// The error codes of brokers (0 and above) and of librdkafka (below 0), as listed in librdkafka's `rdkafka.h`. Any
/// other code is `Internal`.
pub(super) const CODES: &[(Code, ErrorKind, &str)] = &[
    (Code::MessageSizeTooLarge, ErrorKind::InvalidInput, DeliveryError::TOO_LARGE),
    (Code::InvalidMessageSize, ErrorKind::InvalidInput, DeliveryError::TOO_LARGE),
    (Code::MessageBatchTooLarge, ErrorKind::InvalidInput, DeliveryError::TOO_LARGE),
    (Code::UnknownPartition, ErrorKind::InvalidInput, "bus.redpanda.partition"),
    (Code::InvalidTimestamp, ErrorKind::InvalidInput, "bus.redpanda.message.timestamp"),
    (Code::InvalidRecord, ErrorKind::InvalidInput, "bus.redpanda.message.invalid"),
    (Code::InvalidTopic, ErrorKind::InvalidInput, "bus.redpanda.topic.name"),
    (Code::InvalidPartitions, ErrorKind::InvalidInput, "bus.redpanda.topic.partitions"),
    (Code::InvalidReplicationFactor, ErrorKind::InvalidInput, "bus.redpanda.topic.replication"),
    (Code::InvalidReplicaAssignment, ErrorKind::InvalidInput, "bus.redpanda.topic.replication"),
    (Code::InvalidConfig, ErrorKind::InvalidInput, "bus.redpanda.topic.setting"),
    (Code::PolicyViolation, ErrorKind::InvalidInput, "bus.redpanda.policy"),
    (Code::InvalidSessionTimeout, ErrorKind::InvalidInput, "bus.redpanda.session"),
    (Code::InvalidGroupId, ErrorKind::InvalidInput, "bus.redpanda.group"),
    (Code::InvalidRequest, ErrorKind::InvalidInput, "bus.redpanda.request"),
    (Code::InvalidArgument, ErrorKind::Config, "bus.redpanda.argument"),
    (Code::NotConfigured, ErrorKind::Config, "bus.redpanda.not_configured"),
    (Code::UnsupportedSASLMechanism, ErrorKind::Config, "bus.redpanda.sasl.mechanism"),
    (Code::IllegalSASLState, ErrorKind::Config, "bus.redpanda.sasl.state"),
    (Code::SecurityDisabled, ErrorKind::Config, "bus.redpanda.security_disabled"),
    (Code::InconsistentGroupProtocol, ErrorKind::Config, "bus.redpanda.group.protocol"),
    (Code::Authentication, ErrorKind::Unauthorized, "bus.redpanda.login"),
    (Code::SaslAuthenticationFailed, ErrorKind::Unauthorized, "bus.redpanda.login"),
    (Code::TopicAuthorizationFailed, ErrorKind::Unauthorized, "bus.redpanda.permission.topic"),
    (Code::GroupAuthorizationFailed, ErrorKind::Unauthorized, "bus.redpanda.permission.group"),
    (Code::ClusterAuthorizationFailed, ErrorKind::Unauthorized, "bus.redpanda.permission.cluster"),
    (Code::TransactionalIdAuthorizationFailed, ErrorKind::Unauthorized, "bus.redpanda.permission.producer"),
    (Code::UnknownTopic, ErrorKind::NotFound, "bus.redpanda.topic"),
    (Code::UnknownTopicOrPartition, ErrorKind::NotFound, "bus.redpanda.topic"),
    (Code::UnknownTopicId, ErrorKind::NotFound, "bus.redpanda.topic"),
    (Code::GroupIdNotFound, ErrorKind::NotFound, "bus.redpanda.group.unknown"),
    (Code::AutoOffsetReset, ErrorKind::NotFound, "bus.redpanda.position"),
    (Code::OffsetOutOfRange, ErrorKind::NotFound, "bus.redpanda.position"),
    (Code::UnsupportedFeature, ErrorKind::Unsupported, "bus.redpanda.unsupported"),
    (Code::UnsupportedVersion, ErrorKind::Unsupported, "bus.redpanda.unsupported"),
    (Code::NotImplemented, ErrorKind::Unsupported, "bus.redpanda.unsupported"),
    (Code::UnsupportedForMessageFormat, ErrorKind::Unsupported, "bus.redpanda.unsupported"),
    (Code::UnsupportedCompressionType, ErrorKind::Unsupported, "bus.redpanda.compression"),
    (Code::TopicDeletionDisabled, ErrorKind::Unsupported, "bus.redpanda.topic.deletion"),
    (Code::BrokerTransportFailure, ErrorKind::Unavailable, "bus.redpanda.transport"),
    (Code::AllBrokersDown, ErrorKind::Unavailable, "bus.redpanda.brokers_down"),
    (Code::Resolve, ErrorKind::Unavailable, "bus.redpanda.resolve"),
    (Code::SSL, ErrorKind::Unavailable, "bus.redpanda.tls"),
    (Code::BrokerDestroy, ErrorKind::Unavailable, "bus.redpanda.transport"),
    (Code::DestroyBroker, ErrorKind::Unavailable, "bus.redpanda.transport"),
    (Code::UnknownBroker, ErrorKind::Unavailable, "bus.redpanda.transport"),
    (Code::WaitingForCoordinator, ErrorKind::Unavailable, "bus.redpanda.coordinator"),
    (Code::CoordinatorLoadInProgress, ErrorKind::Unavailable, "bus.redpanda.coordinator"),
    (Code::CoordinatorNotAvailable, ErrorKind::Unavailable, "bus.redpanda.coordinator"),
    (Code::NotCoordinator, ErrorKind::Unavailable, "bus.redpanda.coordinator"),
    (Code::LeaderNotAvailable, ErrorKind::Unavailable, "bus.redpanda.leader"),
    (Code::NotLeaderForPartition, ErrorKind::Unavailable, "bus.redpanda.leader"),
    (Code::PreferredLeaderNotAvailable, ErrorKind::Unavailable, "bus.redpanda.leader"),
    (Code::FencedLeaderEpoch, ErrorKind::Unavailable, "bus.redpanda.leader"),
    (Code::UnknownLeaderEpoch, ErrorKind::Unavailable, "bus.redpanda.leader"),
    (Code::OffsetNotAvailable, ErrorKind::Unavailable, "bus.redpanda.leader"),
    (Code::ReplicaNotAvailable, ErrorKind::Unavailable, "bus.redpanda.replicas"),
    (Code::NotEnoughReplicas, ErrorKind::Unavailable, "bus.redpanda.replicas"),
    (Code::NotEnoughReplicasAfterAppend, ErrorKind::Unavailable, "bus.redpanda.replicas"),
    (Code::ISRInsufficient, ErrorKind::Unavailable, "bus.redpanda.replicas"),
    (Code::BrokerNotAvailable, ErrorKind::Unavailable, "bus.redpanda.broker"),
    (Code::NetworkException, ErrorKind::Unavailable, "bus.redpanda.network"),
    (Code::NotController, ErrorKind::Unavailable, "bus.redpanda.controller"),
    (Code::KafkaStorageError, ErrorKind::Unavailable, "bus.redpanda.storage"),
    (Code::RebootstrapRequired, ErrorKind::Unavailable, "bus.redpanda.rebootstrap"),
    (Code::MessageTimedOut, ErrorKind::Timeout, "bus.redpanda.delivery_timeout"),
    (Code::OperationTimedOut, ErrorKind::Timeout, "bus.redpanda.timeout"),
    (Code::TimedOutQueue, ErrorKind::Timeout, "bus.redpanda.timeout"),
    (Code::RequestTimedOut, ErrorKind::Timeout, "bus.redpanda.timeout"),
    (Code::QueueFull, ErrorKind::Overloaded, BUFFER_FULL),
    (Code::ThrottlingQuotaExceeded, ErrorKind::Overloaded, "bus.redpanda.quota"),
    (Code::GroupMaxSizeReached, ErrorKind::Overloaded, "bus.redpanda.group.size"),
    (Code::IllegalGeneration, ErrorKind::Conflict, "bus.redpanda.rebalance"),
    (Code::RebalanceInProgress, ErrorKind::Conflict, "bus.redpanda.rebalance"),
    (Code::UnknownMemberId, ErrorKind::Conflict, "bus.redpanda.rebalance"),
    (Code::AssignmentLost, ErrorKind::Conflict, "bus.redpanda.rebalance"),
    (Code::UnstableOffsetCommit, ErrorKind::Conflict, "bus.redpanda.commit.unstable"),
    (Code::FencedInstanceId, ErrorKind::Conflict, FENCED),
    (Code::TopicAlreadyExists, ErrorKind::Conflict, "bus.redpanda.topic.exists"),
    (Code::BadMessage, ErrorKind::CorruptData, "bus.redpanda.message.corrupt"),
    (Code::InvalidMessage, ErrorKind::CorruptData, "bus.redpanda.message.corrupt"),
    (Code::BadCompression, ErrorKind::CorruptData, "bus.redpanda.message.compression"),
    (Code::LogTruncation, ErrorKind::CorruptData, "bus.redpanda.log.truncated"),
    (Code::Fatal, ErrorKind::Internal, "bus.redpanda.fatal"),
];

const BUFFER_FULL: &str = "bus.redpanda.full";
const FENCED: &str = "bus.redpanda.fenced";

/// Returns the code of an error. Administration results contain the code in a separate variant.
pub(super) fn code_of(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

pub(super) fn from_code(code: Code, operation: &'static str) -> Error {
    let (kind, name) = CODES
        .iter()
        .find(|(known, ..)| *known == code)
        .map_or((ErrorKind::Internal, "bus.redpanda.broker_error"), |(_, kind, name)| (*kind, *name));
    let error = error(kind, name, operation).with_context("code", code as i32).with_source(code);
    match code {
        // Another member keeps this instance id, and an existing topic continues to exist. A retry does not help.
        Code::FencedInstanceId | Code::TopicAlreadyExists => error.with_retry(RetryAdvice::Never),
        _ => error,
    }
}

pub(super) fn from_kafka(error: KafkaError, operation: &'static str) -> Error {
    if let Some(code) = code_of(&error) {
        return from_code(code, operation);
    }
    let (kind, name) = match &error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_) => {
            (ErrorKind::Config, "bus.redpanda.config")
        }
        KafkaError::Canceled => (ErrorKind::Unavailable, "bus.redpanda.canceled"),
        _ => (ErrorKind::Internal, "bus.redpanda.client"),
    };
    match error {
        // The value of a property may be a secret.
        KafkaError::ClientConfig(_, message, key, value) => {
            let message = if value.is_empty() { message } else { message.replace(&value, "***") };
            self::error(kind, name, operation).with_message(message).with_context("property", key)
        }
        other => self::error(kind, name, operation).with_source(other),
    }
}

/// Returns whether a topic or partition does not exist.
pub(super) fn is_missing(error: &KafkaError) -> bool {
    matches!(
        code_of(error),
        Some(
            Code::UnknownTopicOrPartition
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::UnknownTopicId
        )
    )
}

/// Returns whether a partition has no leader, or another leader than the client knows.
pub(super) fn is_leaderless(error: &KafkaError) -> bool {
    matches!(
        code_of(error),
        Some(
            Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::BrokerNotAvailable
                | Code::ReplicaNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::OffsetNotAvailable
        )
    )
}

/// Returns whether the principal is not allowed to describe a topic.
pub(super) fn is_unauthorized(error: &KafkaError) -> bool {
    code_of(error) == Some(Code::TopicAuthorizationFailed)
}

/// Returns the error of a failed request. A timeout becomes `Unavailable`, because no broker responded.
pub(super) fn from_request(e: KafkaError, operation: &'static str) -> Error {
    let error = from_kafka(e, operation);
    if error.kind() == ErrorKind::Timeout { unavailable(operation).with_source(error) } else { error }
}

/// Returns the error and the state of a failed delivery. A message is certainly not in the log only if a broker
/// rejected it, or if it never left the client.
pub(super) fn delivery(code: Code) -> DeliveryError {
    let state = match code {
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidMessageSize
        | Code::UnknownPartition
        | Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::InvalidTimestamp
        | Code::InvalidRecord
        | Code::InvalidTopic
        | Code::PolicyViolation
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::QueueFull => DeliveryState::NotSent,
        _ => DeliveryState::Unknown,
    };
    let error = match code {
        Code::PurgeQueue | Code::PurgeInflight => {
            error(ErrorKind::Unavailable, "bus.redpanda.purged", "publish")
                .with_message("producer closed before the brokers acknowledged the message")
        }
        code => from_code(code, "publish"),
    };
    DeliveryError::new(state, error)
}

fn error(kind: ErrorKind, code: &'static str, operation: &'static str) -> Error {
    Error::new(kind, code, operation).with_backend(BACKEND)
}

fn invalid(
    code: &'static str,
    operation: &'static str,
    field: &'static str,
    value: impl Display,
    rule: &'static str,
) -> Error {
    error(ErrorKind::InvalidInput, code, operation)
        .with_message(rule)
        .with_context("field", field)
        .with_context("value", value)
}

pub(super) fn closed(operation: &'static str) -> Error {
    Error::closed("bus.redpanda.closed", operation).with_backend(BACKEND)
}

pub(super) fn unavailable(operation: &'static str) -> Error {
    error(ErrorKind::Unavailable, "bus.redpanda.unavailable", operation)
        .with_message("no broker is connected")
}

pub(super) fn timed_out(operation: &'static str, message: &'static str) -> Error {
    error(ErrorKind::Timeout, "bus.redpanda.timeout", operation).with_message(message)
}

pub(super) fn internal(operation: &'static str, message: impl Display) -> Error {
    error(ErrorKind::Internal, "bus.redpanda.internal", operation).with_message(message)
}

pub(super) fn unknown_topic(topic: &TopicName, operation: &'static str) -> Error {
    error(ErrorKind::NotFound, "bus.redpanda.topic", operation)
        .with_message("the topic does not exist")
        .with_context("topic", topic)
}

pub(super) fn unknown_partition(topic: &TopicName, partition: u32, operation: &'static str) -> Error {
    invalid(
        "bus.redpanda.partition",
        operation,
        "partition",
        partition,
        "the topic does not have this partition",
    )
    .with_context("topic", topic)
}

pub(super) fn partition_count_differs(topic: &TopicName, expected: u32, found: usize) -> Error {
    error(ErrorKind::Conflict, "bus.redpanda.topic.partitions", "create_topics")
        .with_retry(RetryAdvice::Never)
        .with_message(format_args!("topic has {found} partitions, expected {expected}"))
        .with_context("topic", topic)
        .with_context("wanted", expected)
        .with_context("found", found)
}

pub(super) fn too_large(size: usize, limit: usize) -> Error {
    let rule = "message exceeds the size limit";
    invalid(DeliveryError::TOO_LARGE, "publish", "size", size, rule).with_context("limit", limit)
}

pub(super) fn buffer_full(bytes: usize) -> Error {
    error(ErrorKind::Overloaded, BUFFER_FULL, "publish")
        .with_message("send buffer full for the entire delivery timeout")
        .with_context("buffer_bytes", bytes)
}

/// Returns the error of a producer that is replaced after a fatal error. The next producer can
/// send the unsent messages.
pub(super) fn producer_replaced() -> Error {
    error(ErrorKind::Unavailable, "bus.redpanda.rebuilding", "publish")
        .with_message("producer is being replaced after a fatal error")
}

pub(super) fn publish_cancelled() -> Error {
    error(ErrorKind::Unavailable, "bus.redpanda.dropped", "publish")
        .with_message("publish was cancelled before this message was sent")
}

pub(super) fn no_valid_offset(partition: &TopicPartition, operation: &'static str) -> Error {
    error(ErrorKind::NotFound, "bus.redpanda.position", operation)
        .with_message("no valid commit, and offset_reset is error")
        .with_context("partition", partition)
}

pub(super) fn not_owned(partition: &TopicPartition, operation: &'static str) -> Error {
    invalid("bus.redpanda.not_owned", operation, "partition", partition, "the partition is not assigned")
}

pub(super) fn beyond_position(partition: &TopicPartition, upto: u64, position: u64) -> Error {
    invalid("bus.redpanda.commit.position", "commit", "offset", upto, "must not exceed the position of recv")
        .with_context("partition", partition)
        .with_context("position", position)
}

pub(super) fn zero_max() -> Error {
    invalid("bus.redpanda.recv.max", "recv", "max", 0, "must be at least 1")
}

pub(super) fn commit_without_group() -> Error {
    error(ErrorKind::Unsupported, "bus.redpanda.commit.group", "commit")
        .with_message("a reader without a group cannot commit")
}
