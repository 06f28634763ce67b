//! Checks of commits, seeks and pauses, and of positions that no longer exist.

use std::time::Duration;

use qi_core::ErrorKind;
use qi_core::bus::{
    MessageBusExt, OffsetReset, Offsets, ReaderRequest, SeekTo, Subscription, SubscriptionEvent, TopicName,
    TopicPartition, TopicSpec,
};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::context::{message_in_partition, publish_to_partitions, text};
use crate::bus::contract::{CheckResult, Failure, TestContext, ensure, ensure_eq};

chapter! { "positions":
    next_member_starts_at_the_commit [],
    lower_commit_rewinds_the_group [],
    commit_above_the_position_is_rejected [],
    rejected_commit_stores_no_offset [Groups],
    position_and_lag_follow_each_call [Groups],
    seek_moves_to_the_given_offset [],
    seek_by_timestamp_finds_the_first_message [OffsetsForTimes],
    seek_of_an_unassigned_partition_is_rejected [],
    pause_stops_only_the_paused_partition [],
    pause_of_an_unassigned_partition_is_rejected [],
    deleted_position_is_reset_and_reported [Admin],
    deleted_position_fails_with_offset_reset_error [Admin],
    reader_without_group_reports_a_deleted_position [Admin],
    deleted_commit_is_reset_to_earliest [Admin],
    late_commit_does_not_undo_a_reset [Admin, Groups],
    retention_removes_old_messages [Admin, Retention],
}

fn at(topic: &TopicName, partition: u32) -> TopicPartition {
    TopicPartition::new(topic.clone(), partition)
}

fn positions(topic: &TopicName, next: u64) -> Offsets {
    [(at(topic, 0), next)].into_iter().collect()
}

/// Receives the next `count` messages and returns their payloads.
async fn next(
    context: &TestContext,
    reader: &mut dyn Subscription,
    count: usize,
) -> CheckResult<Vec<String>> {
    Ok(context.receive(reader, count).await?.iter().map(text).collect())
}

async fn next_member_starts_at_the_commit(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 20).await?;
    let group = context.new_group()?;
    for round in 0..3 {
        let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
        let batch = context.receive(&mut *reader, 7).await?;
        ensure_eq!(text(&batch[0]), format!("0#{}", round * 5), "the first message of round {round}");
        // Only five of the seven messages were processed.
        let done = positions(&topic, batch[4].offset + 1);
        let committed = reader.commit(&done).await?;
        ensure_eq!(committed.stored, done, "the offsets stored in round {round}");
        ensure!(committed.lost.is_empty(), "the commit reports lost partitions");
        reader.close().await?;
    }
    Ok(())
}

async fn lower_commit_rewinds_the_group(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 5).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let all = context.receive(&mut *reader, 5).await?;
    reader.commit(&positions(&topic, all[4].offset + 1)).await?;
    reader.commit(&positions(&topic, all[2].offset)).await?;
    context.expect_no_message(&mut *reader).await?;
    reader.close().await?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    ensure_eq!(
        next(context, &mut *reader, 3).await?,
        ["0#2", "0#3", "0#4"],
        "the messages after the lower commit"
    );
    Ok(())
}

async fn commit_above_the_position_is_rejected(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 5).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let batch = context.receive(&mut *reader, 2).await?;
    let rejected = reader.commit(&positions(&topic, batch[1].offset + 2)).await.err();
    ensure_eq!(
        rejected.map(|e| e.kind()),
        Some(ErrorKind::InvalidInput),
        "the error of a commit above the position"
    );
    reader.commit(&positions(&topic, batch[1].offset + 1)).await?;
    let nothing = reader.commit(&Offsets::new()).await?;
    ensure!(nothing.stored.is_empty() && nothing.lost.is_empty(), "an empty commit has a result");
    Ok(())
}

async fn rejected_commit_stores_no_offset(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    publish_to_partitions(&*bus, &topic, 2, 3).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.receive(&mut *reader, 6).await?;
    let both = |first, second| -> Offsets {
        [(at(&topic, 0), first), (at(&topic, 1), second)].into_iter().collect()
    };
    reader.commit(&both(1, 1)).await?;
    for wrong in [both(3, 4), both(4, 3)] {
        let rejected = reader.commit(&wrong).await.err();
        ensure_eq!(
            rejected.map(|e| e.kind()),
            Some(ErrorKind::InvalidInput),
            "the error of a commit with one offset above the position"
        );
        for partition in [0, 1] {
            let committed = context.committed(&*bus, &group, &at(&topic, partition)).await?;
            ensure_eq!(committed, Some(1), "the commit of partition {partition} after {wrong:?}");
        }
    }
    Ok(())
}

/// Returns the position, lag and commit of the only partition.
async fn state(reader: &mut dyn Subscription) -> CheckResult<(u64, u64, Option<u64>)> {
    let mut assignment = reader.assignment().await?;
    let one = assignment.partitions.pop().ok_or_else(|| Failure::new("no partition is assigned"))?;
    ensure!(assignment.partitions.is_empty(), "more than one partition is assigned");
    Ok((one.position, one.lag, one.committed))
}

async fn position_and_lag_follow_each_call(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let here = at(&topic, 0);
    publish_to_partitions(&*bus, &topic, 1, 10).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let (position, lag, _) = state(&mut *reader).await?;
    ensure_eq!((position, lag), (0, 10), "position and lag after subscribe");
    context.receive(&mut *reader, 4).await?;
    let (position, lag, _) = state(&mut *reader).await?;
    ensure_eq!((position, lag), (4, 6), "position and lag after recv");
    reader.commit(&positions(&topic, 3)).await?;
    ensure_eq!(state(&mut *reader).await?, (4, 6, Some(3)), "position, lag and commit after commit");
    let info =
        context.describe_group(&*bus, &group).await?.ok_or_else(|| Failure::new("the group is unknown"))?;
    let seen = info.partitions.iter().find(|p| p.partition == here).map(|p| (p.committed, p.end, p.lag));
    ensure_eq!(seen, Some((Some(3), Some(10), Some(7))), "commit, end offset and lag of the group");
    reader.seek(&[(here.clone(), SeekTo::Offset(8))]).await?;
    ensure_eq!(state(&mut *reader).await?, (8, 2, Some(3)), "position, lag and commit after a seek");
    reader.seek(&[(here.clone(), SeekTo::Latest)]).await?;
    ensure_eq!(
        state(&mut *reader).await?,
        (10, 0, Some(3)),
        "position, lag and commit at the high watermark"
    );
    bus.publish_one(&message_in_partition(&topic, 0, 10)).await?;
    context.receive(&mut *reader, 1).await?;
    ensure_eq!(
        state(&mut *reader).await?,
        (11, 0, Some(3)),
        "position, lag and commit after another message"
    );
    Ok(())
}

async fn seek_moves_to_the_given_offset(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    publish_to_partitions(&*bus, &topic, 2, 6).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    context.receive(&mut *reader, 12).await?;
    reader.seek(&[(at(&topic, 0), SeekTo::Offset(4))]).await?;
    ensure_eq!(next(context, &mut *reader, 2).await?, ["0#4", "0#5"], "the messages from the offset");
    context.expect_no_message(&mut *reader).await?;
    reader.seek(&[(at(&topic, 1), SeekTo::Earliest), (at(&topic, 0), SeekTo::Latest)]).await?;
    ensure_eq!(next(context, &mut *reader, 6).await?[0], "1#0", "the first message from the low watermark");
    context.expect_no_message(&mut *reader).await?;
    reader.seek(&[(at(&topic, 0), SeekTo::Earliest)]).await?;
    reader.seek(&[(at(&topic, 0), SeekTo::Latest)]).await?;
    context.expect_no_message(&mut *reader).await?;
    bus.publish_one(&message_in_partition(&topic, 0, 6)).await?;
    ensure_eq!(next(context, &mut *reader, 1).await?, ["0#6"], "the message after the high watermark");
    Ok(())
}

async fn seek_by_timestamp_finds_the_first_message(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let base = context.now();
    let time = |n: u64| base.checked_sub(Duration::from_secs(100 - n)).unwrap_or(base);
    let batch: Vec<_> = (0..10_u32)
        .map(|n| message_in_partition(&topic, 0, n as usize).with_timestamp(time(u64::from(n) * 10)))
        .collect();
    bus.send(&batch).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    context.receive(&mut *reader, 10).await?;
    for (wanted, seconds) in [("0#4", 40), ("0#5", 41), ("0#0", 0)] {
        reader.seek(&[(at(&topic, 0), SeekTo::At(time(seconds)))]).await?;
        ensure_eq!(
            next(context, &mut *reader, 1).await?,
            [wanted],
            "the first message at {seconds} s or later"
        );
    }
    reader.seek(&[(at(&topic, 0), SeekTo::At(base))]).await?;
    context.expect_no_message(&mut *reader).await
}

async fn seek_of_an_unassigned_partition_is_rejected(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 3).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    context.receive(&mut *reader, 3).await?;
    let both = [(at(&topic, 0), SeekTo::Earliest), (at(&topic, 1), SeekTo::Earliest)];
    let rejected = reader.seek(&both).await.err();
    ensure_eq!(
        rejected.map(|e| e.kind()),
        Some(ErrorKind::InvalidInput),
        "the error of a seek of an unassigned partition"
    );
    context.expect_no_message(&mut *reader).await
}

async fn pause_stops_only_the_paused_partition(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 3, 10).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    // Messages of the paused partition may already be in a buffer. They are not delivered either.
    context.receive(&mut *reader, 3).await?;
    let before = reader.assignment().await?;
    let behind = before.partitions.iter().find(|p| p.lag > 0).map(|p| p.partition.clone());
    let paused = behind.ok_or_else(|| Failure::new("all messages were received in one call"))?;
    let held = before.partitions.iter().filter(|p| p.partition == paused).map(|p| p.lag).sum::<u64>();
    reader.pause(std::slice::from_ref(&paused)).await?;
    let others = usize::try_from(before.lag() - held).unwrap_or(usize::MAX);
    let arrived = context.receive(&mut *reader, others).await?;
    ensure!(
        arrived.iter().all(|m| m.partition != paused.partition),
        "received a message of the paused partition"
    );
    bus.publish_one(&message_in_partition(&topic, paused.partition, 10)).await?;
    context.expect_no_message(&mut *reader).await?;
    let now = reader.assignment().await?;
    let flags: Vec<_> = now.partitions.iter().map(|p| p.paused == (p.partition == paused)).collect();
    ensure!(flags.iter().all(|right| *right), "the assignment does not show the paused partition");
    reader.resume(std::slice::from_ref(&paused)).await?;
    let arrived = context.receive(&mut *reader, usize::try_from(held).unwrap_or(0) + 1).await?;
    ensure!(
        arrived.iter().all(|m| m.partition == paused.partition),
        "received a message of another partition after resume"
    );
    ensure!(arrived.is_sorted_by_key(|m| m.offset), "the messages are not ordered by offset");
    context.expect_no_message(&mut *reader).await
}

async fn pause_of_an_unassigned_partition_is_rejected(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let foreign = [at(&topic, 0), at(&topic, 5)];
    let paused = reader.pause(&foreign).await.err();
    ensure_eq!(paused.map(|e| e.kind()), Some(ErrorKind::InvalidInput), "the error of pause");
    let resumed = reader.resume(&foreign).await.err();
    ensure_eq!(resumed.map(|e| e.kind()), Some(ErrorKind::InvalidInput), "the error of resume");
    bus.publish_one(&message_in_partition(&topic, 0, 0)).await?;
    ensure_eq!(
        next(context, &mut *reader, 1).await?,
        ["0#0"],
        "the message of the assigned partition after a rejected pause"
    );
    Ok(())
}

async fn deleted_position_is_reset_and_reported(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    for (offset_reset, goes_on) in [(OffsetReset::Earliest, 6), (OffsetReset::Latest, 10)] {
        let topic = context.create_topic(&*bus, 1).await?;
        let group = context.new_group()?;
        let request = context.subscribe_request(&group, &topic)?.with_offset_reset(offset_reset);
        let mut reader = bus.subscribe(request).await?;
        publish_to_partitions(&*bus, &topic, 1, 10).await?;
        // The pause and the seek empty the reader's buffer, so that it holds no messages that `delete_records` removes.
        reader.pause(&[at(&topic, 0)]).await?;
        reader.seek(&[(at(&topic, 0), SeekTo::Offset(2))]).await?;
        context.delete_records(&at(&topic, 0), 6).await?;
        reader.resume(&[at(&topic, 0)]).await?;
        let wanted = SubscriptionEvent::Reset { partition: at(&topic, 0), from: 2, to: goes_on };
        let deadline = Instant::now() + context.timing().effect_timeout;
        let mut arrived = Vec::new();
        loop {
            let batch = reader.recv(10, context.timing().receive_timeout).await?;
            arrived.extend(batch.iter().map(|m| m.offset));
            if batch.events().contains(&wanted) {
                break;
            }
            ensure!(Instant::now() < deadline, "no event {wanted:?}; received offsets {arrived:?}");
        }
        bus.publish_one(&message_in_partition(&topic, 0, 10)).await?;
        while arrived.last() != Some(&10) {
            ensure!(Instant::now() < deadline, "the subscription does not continue: {arrived:?}");
            arrived.extend(reader.recv(10, context.timing().receive_timeout).await?.iter().map(|m| m.offset));
        }
        ensure_eq!(arrived, (goes_on..=10).collect::<Vec<_>>(), "the offsets with {offset_reset:?}");
    }
    Ok(())
}

async fn deleted_position_fails_with_offset_reset_error(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 10).await?;
    let group = context.new_group()?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.receive(&mut *first, 3).await?;
    first.commit(&positions(&topic, 3)).await?;
    first.close().await?;
    let mut reader = bus
        .subscribe(context.subscribe_request(&group, &topic)?.with_offset_reset(OffsetReset::Error))
        .await?;
    reader.pause(&[at(&topic, 0)]).await?;
    reader.seek(&[(at(&topic, 0), SeekTo::Offset(3))]).await?;
    context.delete_records(&at(&topic, 0), 6).await?;
    reader.resume(&[at(&topic, 0)]).await?;
    let deadline = Instant::now() + context.timing().effect_timeout;
    let error = loop {
        match reader.recv(10, context.timing().receive_timeout).await {
            Err(error) => break error,
            Ok(batch) => ensure!(batch.is_empty(), "received messages after the deleted offsets"),
        }
        ensure!(Instant::now() < deadline, "recv reports no deleted position");
    };
    ensure_eq!(error.kind(), ErrorKind::NotFound, "the error kind");
    reader.seek(&[(at(&topic, 0), SeekTo::Earliest)]).await?;
    ensure_eq!(next(context, &mut *reader, 1).await?, ["0#6"], "the first message after a seek");
    Ok(())
}

async fn reader_without_group_reports_a_deleted_position(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 10).await?;
    let mut reader = bus.open_reader(ReaderRequest::new([(at(&topic, 0), SeekTo::Latest)])?).await?;
    reader.pause(&[at(&topic, 0)]).await?;
    reader.seek(&[(at(&topic, 0), SeekTo::Offset(2))]).await?;
    context.delete_records(&at(&topic, 0), 6).await?;
    reader.resume(&[at(&topic, 0)]).await?;
    let (mut received, mut reported) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + context.timing().effect_timeout;
    while received.last() != Some(&9) {
        ensure!(Instant::now() < deadline, "the subscription does not continue: {received:?}");
        let batch = reader.recv(10, context.timing().receive_timeout).await?;
        reported.extend(batch.events().to_vec());
        received.extend(batch.iter().map(|m| m.offset));
    }
    ensure_eq!(received, [6, 7, 8, 9], "the remaining messages");
    ensure_eq!(
        reported,
        [SubscriptionEvent::Reset { partition: at(&topic, 0), from: 2, to: 6 }],
        "the reset events"
    );
    Ok(())
}

async fn deleted_commit_is_reset_to_earliest(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 10).await?;
    let group = context.new_group()?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.receive(&mut *first, 3).await?;
    first.commit(&positions(&topic, 3)).await?;
    first.close().await?;
    context.delete_records(&at(&topic, 0), 8).await?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    ensure_eq!(next(context, &mut *reader, 2).await?, ["0#8", "0#9"], "the remaining messages");
    context.expect_no_message(&mut *reader).await
}

async fn late_commit_does_not_undo_a_reset(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 10).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.receive(&mut *reader, 3).await?;
    // The messages that the reader processes are removed, and so is its next position.
    reader.pause(&[at(&topic, 0)]).await?;
    reader.seek(&[(at(&topic, 0), SeekTo::Offset(3))]).await?;
    context.delete_records(&at(&topic, 0), 6).await?;
    reader.resume(&[at(&topic, 0)]).await?;
    let wanted = SubscriptionEvent::Reset { partition: at(&topic, 0), from: 3, to: 6 };
    let deadline = Instant::now() + context.timing().effect_timeout;
    let mut arrived = Vec::new();
    loop {
        let batch = reader.recv(1, context.timing().receive_timeout).await?;
        arrived.extend(batch.iter().map(|m| m.offset));
        if batch.events().contains(&wanted) {
            break;
        }
        ensure!(Instant::now() < deadline, "no event {wanted:?}; received offsets {arrived:?}");
    }
    let committed = reader.commit(&positions(&topic, 3)).await?;
    ensure!(committed.lost.is_empty(), "the commit reports lost partitions");
    ensure_eq!(committed.stored, positions(&topic, 6), "the offsets stored by the late commit");
    let found = context.committed(&*bus, &group, &at(&topic, 0)).await?;
    ensure_eq!(found, Some(6), "the commit of the group");
    // The next owner begins at the reset position. From there, commits are stored as requested.
    reader.close().await?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let rest = context.receive(&mut *reader, 2).await?;
    ensure_eq!(rest.iter().map(|m| m.offset).collect::<Vec<_>>(), [6, 7], "the offsets of the next member");
    reader.commit(&positions(&topic, 8)).await?;
    let committed = reader.commit(&positions(&topic, 7)).await?;
    ensure_eq!(committed.stored, positions(&topic, 7), "the offsets stored by a lower commit");
    Ok(())
}

async fn retention_removes_old_messages(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let age = context.timing().receive_timeout * 20;
    let spec = TopicSpec::new(context.unused_topic_name()?, 1)?.with_retention(age);
    let topic = context.create_topic_from(&*bus, spec).await?;
    publish_to_partitions(&*bus, &topic, 1, 5).await?;
    let deadline = Instant::now() + context.timing().effect_timeout;
    loop {
        let info = bus.topics().await?.into_iter().find(|info| info.name == topic);
        let marks = info.and_then(|info| info.partitions.first().map(|p| (p.low, p.high)));
        if marks == Some((5, 5)) {
            break;
        }
        ensure!(Instant::now() < deadline, "expired messages are still in the log: {marks:?}");
        context.sleep(age).await;
    }
    bus.publish_one(&message_in_partition(&topic, 0, 5)).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    ensure_eq!(next(context, &mut *reader, 1).await?, ["0#5"], "the first message after retention");
    Ok(())
}
