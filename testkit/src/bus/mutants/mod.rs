//! Faulty buses, each with the check that must detect its fault.
//!
//! A suite that no faulty bus fails proves nothing. Every mutant is a correct bus with one fault.

mod bus;
mod fault;
mod reader;

use std::sync::Arc;

use qi_core::MessageBus;

use super::contract::Wrapping;
use bus::Broken;
use fault::Fault;

/// A faulty bus that the suite must reject.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// The name of the fault.
    pub name: &'static str,
    /// The check that must detect the fault.
    pub caught_by: &'static str,
    /// The wrapping that adds the fault to a correct bus.
    pub wrapping: Wrapping,
}

macro_rules! mutants {
    ($($fault:ident $name:literal => $check:literal),* $(,)?) => {
        /// All mutants of the message bus.
        pub const MUTANTS: &[Mutant] = &[$(
            Mutant {
                name: $name,
                caught_by: $check,
                wrapping: Wrapping {
                    name: $name,
                    wrap: |bus| -> Arc<dyn MessageBus> { Arc::new(Broken::new(bus, Fault::$fault)) },
                },
            }
        ),*];
    };
}

mutants! {
    ForgetsCommits "forgets_commits" => "positions::commit_is_where_the_next_begins",
    TakesAnyCommit "takes_a_commit_above_the_position" => "positions::commit_above_the_position_is_refused",
    CommitsWhatItCan "stores_a_part_of_a_refused_commit" => "positions::refused_commit_stores_nothing",
    HidesLost "hides_what_a_commit_lost" => "rebalance::commit_after_losing_says_lost",
    CommitsWhatIsLost "moves_the_commit_of_the_new_owner_back" => "rebalance::commit_after_losing_says_lost",
    CommitsWhatHasGone "lets_a_late_commit_undo_a_reset" => "positions::late_commit_does_not_undo_a_reset",
    CommitsInRecv "commits_what_recv_hands_out" => "groups::takeover_before_the_first_commit",
    ReversesBatch "reorders_within_a_batch" => "publish::order_of_one_key",
    SwapsBatches "reorders_across_batches" => "publish::order_of_one_key",
    LosesLast "loses_the_last_message_of_a_batch" => "publish::sixteen_tasks_lose_nothing",
    SendsTwice "sends_a_message_twice" => "publish::hundred_thousand_each_once",
    WrongOffsets "reports_the_next_offset" => "publish::offsets_are_true",
    DoublesAfterRebalance "doubles_a_message_after_a_rebalance" => "groups::two_members_share_all",
    DeliversLost "delivers_buffered_messages_of_a_lost_partition"
        => "rebalance::buffered_messages_of_a_lost_partition_are_gone",
    OtherHash "maps_keys_by_another_hash" => "publish::keys_map_as_in_java",
    NegatesHash "negates_negative_hashes" => "publish::keys_map_as_in_java",
    EmptyKeyIsNone "takes_an_empty_key_for_none" => "publish::empty_key_is_a_key",
    KeylessToFirst "sends_what_has_no_key_to_one_partition" => "publish::keyless_reach_all_partitions",
    ScattersKeyless "scatters_what_has_no_key" => "publish::keyless_stay_together",
    IgnoresPartition "ignores_an_explicit_partition" => "publish::explicit_partition",
    TombstoneIsEmpty "makes_a_tombstone_an_empty_payload" => "publish::payloads_none_empty_and_large",
    SortsHeaders "sorts_headers" => "publish::headers_as_they_were",
    DeduplicatesHeaders "keeps_one_header_of_a_name" => "publish::headers_as_they_were",
    DropsOptions "drops_the_headers_of_the_options" => "publish::options_add_headers",
    KeepsMicros "does_not_cut_timestamps" => "publish::timestamps_to_the_millisecond",
    FailsTogether "fails_the_batch_for_one_message" => "publish::oversized_fails_alone",
    CreatesOnPublish "creates_unknown_topics_in_publish" => "publish::unknown_topic_at_once",
    CreatesOnSubscribe "creates_unknown_topics_in_subscribe" => "subscribe::unknown_topic_creates_nothing",
    LatestAnew "resolves_latest_at_every_takeover" => "groups::takeover_before_the_first_commit",
    LosesOnCancel "loses_messages_with_a_dropped_recv" => "subscribe::dropped_recv_loses_nothing",
    ExceedsMax "hands_out_more_than_max" => "subscribe::recv_respects_max",
    NeverWaits "does_not_wait_in_recv" => "subscribe::recv_waits_as_long_as_told",
    SilentDeletion "keeps_silent_about_a_deleted_topic" => "subscribe::deleted_topic_is_not_found",
    HidesDeletion "hides_that_one_of_its_topics_was_deleted" => "subscribe::deleted_topic_beside_another",
    PausesAll "pauses_every_partition" => "positions::pause_holds_back_and_blocks_no_other",
    NeverPauses "ignores_a_pause" => "positions::pause_holds_back_and_blocks_no_other",
    SeeksOneFurther "seeks_one_too_far" => "positions::seek_goes_where_it_is_told",
    RebalancesInSeek "gives_partitions_away_in_seek" => "rebalance::seek_gives_nothing_away",
    LagOneOff "counts_one_too_many_behind" => "positions::position_and_lag_at_each_step",
    GroupLagOneOff "counts_one_too_many_in_groups" => "admin::groups_with_commits_and_lag",
    IgnoresTopicsOfQuery "counts_the_lag_of_topics_that_the_query_does_not_name" => "admin::lag_of_the_named_topics",
    HidesResets "hides_that_a_position_had_gone" => "positions::position_gone_is_answered_visibly",
    HidesResetsOfReaders "skips_silently_without_a_group" => "positions::position_gone_is_told_without_a_group",
    HidesMaxPollInterval "hides_an_exceeded_max_poll_interval" => "groups::max_poll_interval_hands_over",
    HidesRevocations "hides_that_a_revocation_is_pending" => "rebalance::announced_revocation_waits_for_the_next_recv",
    HidesAssignments "hides_changes_of_the_assignment" => "rebalance::events_tell_what_came_and_went",
    TwoOwners "gives_one_partition_to_two_members" => "groups::two_members_share_all",
    AcceptsOtherPartitions "accepts_a_topic_with_other_partitions" => "admin::create_says_what_became_of_each",
    InventsGroups "invents_a_group_that_is_unknown" => "admin::unknown_group_is_an_empty_list",
    ClosesOnce "cannot_be_closed_twice" => "life::close_twice",
    IgnoresClosed "goes_on_after_close" => "life::closed_everywhere",
    IgnoresBound "ignores_its_bound" => "publish::full_buffer_waits",
    OtherSizeCode "has_its_own_code_for_too_large" => "dead_letters::too_large_has_one_code",
    HidesTooLarge "hides_that_a_message_is_too_large" => "dead_letters::letter_above_the_limit_is_truncated",
    DropsNamelessHeaders "drops_headers_without_a_name"
        => "dead_letters::header_names_empty_and_long_are_readable",
    NeverLeaves "keeps_its_members_after_close" => "life::close_hands_over_within_a_second",
}
