//! Faulty buses, each with the check that must detect its fault.
//!
//! A suite that no faulty bus fails proves nothing. Every mutant is a correct bus with one fault.

mod bus;
mod fault;
mod reader;

use std::sync::Arc;

use qi_core::MessageBus;

use super::contract::Wrapper;
use bus::FaultyBus;
use fault::Fault;

/// A faulty bus that the suite must reject.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// The name of the fault.
    pub name: &'static str,
    /// The check that must detect the fault.
    pub detected_by: &'static str,
    /// The wrapper that adds the fault to a correct bus.
    pub wrapper: Wrapper,
}

macro_rules! mutants {
    ($($fault:ident $name:literal => $check:literal),* $(,)?) => {
        /// All mutants of the message bus.
        pub const MUTANTS: &[Mutant] = &[$(
            Mutant {
                name: $name,
                detected_by: $check,
                wrapper: Wrapper {
                    name: $name,
                    wrap: |bus| -> Arc<dyn MessageBus> { Arc::new(FaultyBus::new(bus, Fault::$fault)) },
                },
            }
        ),*];
    };
}

mutants! {
    ForgetsCommits "forgets_commits" => "positions::next_member_starts_at_the_commit",
    AcceptsAnyCommit "accepts_a_commit_above_the_position"
        => "positions::commit_above_the_position_is_rejected",
    CommitsPartially "stores_a_part_of_a_rejected_commit" => "positions::rejected_commit_stores_no_offset",
    HidesLost "hides_lost_partitions_of_a_commit" => "rebalance::commit_reports_lost_partitions",
    CommitsLostPartitions "rewinds_the_commit_of_the_new_owner"
        => "rebalance::commit_reports_lost_partitions",
    CommitsBelowReset "stores_a_late_commit_below_a_reset" => "positions::late_commit_does_not_undo_a_reset",
    CommitsInRecv "commits_messages_in_recv" => "groups::takeover_before_the_first_commit_redelivers",
    ReversesBatch "reorders_within_a_batch" => "publish::messages_of_one_key_keep_their_order",
    SwapsBatches "reorders_across_batches" => "publish::messages_of_one_key_keep_their_order",
    LosesLast "loses_the_last_message_of_a_batch" => "publish::sixteen_concurrent_publishers_lose_no_message",
    SendsTwice "sends_a_message_twice" => "publish::hundred_thousand_messages_are_delivered_once",
    WrongOffsets "reports_the_next_offset" => "publish::reported_offsets_match_the_log",
    DuplicatesAfterRebalance "duplicates_a_message_after_a_rebalance"
        => "groups::two_members_share_the_messages",
    DeliversLost "delivers_buffered_messages_of_a_lost_partition"
        => "rebalance::buffered_messages_of_a_lost_partition_are_discarded",
    OtherHash "maps_keys_with_another_hash" => "publish::keys_map_to_partitions_like_the_java_client",
    NegatesHash "negates_negative_hashes" => "publish::keys_map_to_partitions_like_the_java_client",
    EmptyKeyIsNone "treats_an_empty_key_as_no_key" => "publish::empty_key_differs_from_no_key",
    SendsMessagesWithoutKeyToFirst "sends_messages_without_key_to_one_partition"
        => "publish::messages_without_key_reach_all_partitions",
    ScattersMessagesWithoutKey "scatters_messages_without_key"
        => "publish::batches_without_keys_stay_in_one_partition",
    IgnoresPartition "ignores_an_explicit_partition" => "publish::explicit_partition_overrides_the_key",
    TombstoneIsEmpty "delivers_a_tombstone_as_an_empty_payload"
        => "publish::null_empty_and_large_payloads_are_delivered",
    SortsHeaders "sorts_headers" => "publish::headers_keep_order_and_duplicates",
    DeduplicatesHeaders "removes_duplicate_header_names" => "publish::headers_keep_order_and_duplicates",
    DropsOptions "drops_the_headers_of_the_options" => "publish::options_add_headers",
    KeepsMicros "does_not_truncate_timestamps" => "publish::timestamps_are_truncated_to_milliseconds",
    FailsTogether "fails_the_batch_for_one_message" => "publish::too_large_message_fails_alone",
    CreatesOnPublish "creates_unknown_topics_in_publish" => "publish::unknown_topic_fails_immediately",
    CreatesOnSubscribe "creates_unknown_topics_in_subscribe" => "subscribe::unknown_topic_is_not_created",
    ResolvesLatestAgain "resolves_latest_at_every_takeover"
        => "groups::takeover_before_the_first_commit_redelivers",
    LosesOnCancel "loses_messages_of_a_dropped_recv" => "subscribe::dropped_recv_loses_no_message",
    ExceedsMax "returns_more_than_max_messages" => "subscribe::recv_respects_max",
    NeverWaits "does_not_wait_in_recv" => "subscribe::recv_waits_for_the_given_duration",
    HidesDeletionOfLastTopic "hides_the_deletion_of_the_last_topic"
        => "subscribe::deleted_topic_ends_the_subscription",
    HidesDeletionOfOneTopic "hides_the_deletion_of_one_topic"
        => "subscribe::other_topics_continue_after_a_deletion",
    PausesAll "pauses_every_partition" => "positions::pause_stops_only_the_paused_partition",
    NeverPauses "ignores_a_pause" => "positions::pause_stops_only_the_paused_partition",
    SeeksOneFurther "seeks_one_offset_too_far" => "positions::seek_moves_to_the_given_offset",
    RebalancesInSeek "revokes_partitions_in_seek" => "rebalance::seek_does_not_revoke_partitions",
    LagOneOff "reports_a_lag_that_is_one_too_high" => "positions::position_and_lag_follow_each_call",
    GroupLagOneOff "reports_a_group_lag_that_is_one_too_high" => "admin::groups_report_commits_and_lag",
    IgnoresTopicsOfQuery "includes_unselected_topics_in_the_lag"
        => "admin::lag_is_limited_to_the_selected_topics",
    HidesResets "hides_resets" => "positions::deleted_position_is_reset_and_reported",
    HidesResetsWithoutGroup "hides_resets_without_a_group"
        => "positions::reader_without_group_reports_a_deleted_position",
    HidesMaxPollInterval "hides_an_exceeded_max_poll_interval"
        => "groups::exceeded_max_poll_interval_releases_partitions",
    HidesRevocations "hides_pending_revocations" => "rebalance::announced_revocation_waits_for_the_next_recv",
    HidesAssignments "hides_assignment_changes" => "rebalance::events_report_gained_and_lost_partitions",
    TwoOwners "assigns_one_partition_to_two_members" => "groups::two_members_share_the_messages",
    AcceptsOtherPartitions "accepts_another_partition_count"
        => "admin::create_topics_reports_one_outcome_per_topic",
    InventsGroups "returns_unknown_groups" => "admin::unknown_group_returns_an_empty_list",
    ClosesOnce "fails_the_second_close" => "lifecycle::close_is_idempotent",
    IgnoresClosed "accepts_calls_after_close" => "lifecycle::closed_bus_rejects_every_call",
    IgnoresCapacity "ignores_the_capacity" => "publish::full_log_makes_publish_wait",
    OtherTooLargeCode "uses_another_code_for_too_large_messages"
        => "dead_letters::too_large_messages_have_one_error_code",
    HidesTooLarge "reports_too_large_messages_as_delivered"
        => "dead_letters::dead_letter_above_the_limit_is_truncated",
    DropsNamelessHeaders "drops_headers_without_a_name"
        => "dead_letters::empty_and_long_header_names_are_readable",
    NeverLeaves "keeps_members_after_close" => "lifecycle::close_releases_partitions_within_a_second",
}
