//! Checks of rebalances.

use std::collections::{BTreeMap, BTreeSet};

use qi_core::ErrorKind;
use qi_core::bus::{OffsetReset, Offsets, ReceivedMessage, SeekTo, SubscriptionEvent, TopicPartition};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::consumers::Consumers;
use crate::bus::contract::context::{message_with_key, parse_payload, publish_to_partitions};
use crate::bus::contract::{CheckResult, Failure, TestContext, ensure, ensure_eq};

chapter! { "rebalance":
    rebalance_takes_effect_only_inside_recv [],
    announced_revocation_waits_for_the_next_recv [Groups],
    seek_does_not_revoke_partitions [Admin],
    commit_reports_lost_partitions [Groups],
    buffered_messages_of_a_lost_partition_are_discarded [],
    events_report_gained_and_lost_partitions [],
    revocation_ends_the_pause [],
    third_member_joins_and_leaves_under_load [],
    members_receive_only_their_topics [],
}

fn held(messages: &[ReceivedMessage]) -> Offsets {
    let mut positions = Offsets::new();
    for message in messages {
        positions.mark_processed(message);
    }
    positions
}

async fn rebalance_takes_effect_only_inside_recv(context: &TestContext) -> CheckResult {
    let (bus, other) = (context.bus().await?, context.bus().await?);
    let topic = context.create_topic(&*bus, 4).await?;
    let group = context.new_group()?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    publish_to_partitions(&*bus, &topic, 4, 5).await?;
    let received = context.receive(&mut *first, 20).await?;
    // The second member may have to wait until the first one calls `recv`.
    let request = context.subscribe_request(&group, &topic)?;
    let joining = tokio::spawn(async move { other.subscribe(request).await });
    context.short_sleep().await;
    let committed = first.commit(&held(&received)).await?;
    ensure_eq!(committed.stored, held(&received), "the offsets stored before the next recv");
    ensure!(committed.lost.is_empty(), "partitions were revoked outside of recv: {:?}", committed.lost);
    let mut consumers = Consumers::new(context);
    consumers.add(first);
    while !joining.is_finished() {
        consumers.poll_all().await?;
        context.short_sleep().await;
    }
    let sub = joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??;
    consumers.add(sub);
    consumers.wait_until_balanced(4).await?;
    ensure_eq!(consumers.total_count(), 0, "the number of redelivered messages");
    Ok(())
}

async fn announced_revocation_waits_for_the_next_recv(context: &TestContext) -> CheckResult {
    let (bus, other) = (context.bus().await?, context.bus().await?);
    let topic = context.create_topic(&*bus, 4).await?;
    let group = context.new_group()?;
    let request = context.subscribe_request(&group, &topic)?.with_announced_revocations();
    let mut first = bus.subscribe(request.clone()).await?;
    publish_to_partitions(&*bus, &topic, 4, 5).await?;
    let received = context.receive(&mut *first, 20).await?;
    let joining = tokio::spawn(async move { other.subscribe(request).await });
    let deadline = Instant::now() + context.timing().effect_timeout;
    loop {
        ensure!(Instant::now() < deadline, "the revocation was not announced");
        let batch = first.recv(500, context.timing().receive_timeout).await?;
        for event in batch.events() {
            let lost = matches!(event, SubscriptionEvent::AssignmentChanged { lost, .. } if !lost.is_empty());
            ensure!(!lost, "partitions were revoked without an announcement");
        }
        if batch.events().contains(&SubscriptionEvent::RevocationPending) {
            ensure!(batch.is_empty(), "the announcement has messages");
            break;
        }
    }
    context.short_sleep().await;
    ensure_eq!(
        first.assignment().await?.partitions.len(),
        4,
        "the number of partitions after the announcement"
    );
    let committed = first.commit(&held(&received)).await?;
    ensure_eq!(committed.stored, held(&received), "the offsets stored before the next recv");
    ensure!(committed.lost.is_empty(), "partitions were revoked before the next recv: {:?}", committed.lost);
    let mut consumers = Consumers::new(context);
    consumers.add(first);
    while !joining.is_finished() {
        consumers.poll_all().await?;
        context.short_sleep().await;
    }
    let sub = joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??;
    consumers.add(sub);
    consumers.wait_until_balanced(4).await?;
    ensure_eq!(consumers.total_count(), 0, "the number of redelivered messages");
    Ok(())
}

async fn seek_does_not_revoke_partitions(context: &TestContext) -> CheckResult {
    let (bus, other) = (context.bus().await?, context.bus().await?);
    let topic = context.create_topic(&*bus, 2).await?;
    let group = context.new_group()?;
    publish_to_partitions(&*bus, &topic, 2, 10).await?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let received = context.receive(&mut *first, 20).await?;
    first.commit(&held(&received)).await?;
    first.close().await?;
    // The position no longer exists, so the reader has no valid position.
    let gone = TopicPartition::new(topic.clone(), 0);
    let mut first = bus
        .subscribe(context.subscribe_request(&group, &topic)?.with_offset_reset(OffsetReset::Error))
        .await?;
    first.pause(std::slice::from_ref(&gone)).await?;
    first.seek(&[(gone.clone(), SeekTo::Offset(3))]).await?;
    context.delete_records(&gone, 6).await?;
    first.resume(std::slice::from_ref(&gone)).await?;
    let deadline = Instant::now() + context.timing().effect_timeout;
    while first.recv(10, context.timing().receive_timeout).await.is_ok() {
        ensure!(Instant::now() < deadline, "recv reports no deleted position");
    }
    // A second member joins, while the first one does not call `recv`.
    let request = context.subscribe_request(&group, &topic)?;
    let joining = tokio::spawn(async move { other.subscribe(request).await });
    context.sleep(context.timing().receive_timeout * 10).await;
    first.seek(&[(gone.clone(), SeekTo::Earliest)]).await?;
    context.sleep(context.timing().receive_timeout * 4).await;
    let mut consumers = Consumers::new(context);
    if joining.is_finished() {
        let mut second = joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??;
        second.recv(10, context.timing().receive_timeout * 4).await?;
        let taken = second.assignment().await?.partitions;
        ensure!(taken.is_empty(), "the seek revoked partitions: {taken:?}");
        consumers.add(first);
        consumers.add(second);
    } else {
        consumers.add(first);
        while !joining.is_finished() {
            consumers.poll_all().await?;
        }
        consumers.add(joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??);
    }
    consumers.wait_until_balanced(2).await?;
    publish_to_partitions(&*bus, &topic, 2, 1).await?;
    consumers.receive_until(2).await
}

async fn commit_reports_lost_partitions(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    publish_to_partitions(&*bus, &topic, 4, 10).await?;
    consumers.receive_until(40).await?;
    // The first five messages of each partition are processed and not yet committed.
    let old: Offsets = (0..4).map(|p| (TopicPartition::new(topic.clone(), p), 5)).collect();
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(4).await?;
    consumers.receive_until(40).await?;
    let theirs = consumers.members[1].owned().await?;
    ensure_eq!(theirs.len(), 2, "the number of partitions of the second member");
    while consumers.members[1].received.len() < 20 {
        consumers.poll_all().await?;
    }
    let done = held(&consumers.members[1].received);
    consumers.members[1].sub.commit(&done).await?;
    let committed = consumers.members[0].sub.commit(&old).await?;
    let lost: BTreeSet<_> = committed.lost.into_iter().collect();
    ensure_eq!(lost, theirs, "the lost partitions");
    let stored: BTreeSet<_> = committed.stored.iter().map(|(p, _)| p.clone()).collect();
    ensure_eq!(stored, consumers.members[0].owned().await?, "the partitions with stored offsets");
    for partition in &theirs {
        let found = context.committed(&*bus, &group, partition).await?;
        ensure_eq!(found, done.get(partition), "the owner's commit of {partition}");
    }
    Ok(())
}

async fn buffered_messages_of_a_lost_partition_are_discarded(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    publish_to_partitions(&*bus, &topic, 4, 200).await?;
    // Only a few messages of each partition, so the others may be in a buffer. Each turn checks that the member owns
    // the partitions of its messages.
    while (0..4).any(|p| consumers.members[0].received.iter().all(|message| message.partition != p)) {
        ensure!(consumers.members[0].poll(context, 5).await? > 0, "not every partition delivers messages");
    }
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(4).await?;
    consumers.receive_until(800).await?;
    for member in &consumers.members {
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for message in &member.received {
            if let Some(before) = last.insert(message.partition, message.offset) {
                ensure!(
                    message.offset > before,
                    "offset {} follows offset {before} for one member",
                    message.offset
                );
            }
        }
    }
    Ok(())
}

async fn events_report_gained_and_lost_partitions(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(4).await?;
    consumers.members[0].events.clear();
    let before = consumers.members[0].owned().await?;
    let epoch = consumers.members[0].sub.assignment().await?.epoch;
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(4).await?;
    let after = consumers.members[0].owned().await?;
    let mut reported = before.clone();
    for event in &consumers.members[0].events {
        if let SubscriptionEvent::AssignmentChanged { gained, lost } = event {
            for partition in lost {
                reported.remove(partition);
            }
            reported.extend(gained.iter().cloned());
        }
    }
    ensure_eq!(reported, after, "the partitions according to the events after {before:?}");
    ensure!(consumers.members[0].sub.assignment().await?.epoch > epoch, "the epoch did not increase");
    Ok(())
}

async fn revocation_ends_the_pause(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(2).await?;
    let both: Vec<_> = consumers.members[0].owned().await?.into_iter().collect();
    consumers.members[0].sub.pause(&both).await?;
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(2).await?;
    let kept = consumers.members[0].owned().await?;
    let moved: Vec<_> = both.iter().filter(|partition| !kept.contains(*partition)).cloned().collect();
    ensure_eq!(moved.len(), 1, "the number of reassigned partitions");
    let rejected = consumers.members[0].sub.resume(&moved).await.err();
    ensure_eq!(
        rejected.map(|e| e.kind()),
        Some(ErrorKind::InvalidInput),
        "the error of resume for a lost partition"
    );
    publish_to_partitions(&*bus, &topic, 2, 3).await?;
    consumers.receive_until(3).await?;
    consumers.poll_all().await?;
    ensure_eq!(
        (consumers.members[0].received.len(), consumers.members[1].received.len()),
        (0, 3),
        "the messages of the paused member and the other member"
    );
    let mut departing = consumers.members.remove(1);
    departing.sub.close().await?;
    consumers.wait_until_balanced(2).await?;
    consumers.receive_until(3).await?;
    ensure!(
        consumers.members[0].received.iter().all(|m| m.partition == moved[0].partition),
        "the paused partition delivered messages"
    );
    let paused: Vec<_> =
        consumers.members[0].sub.assignment().await?.partitions.iter().map(|p| p.paused).collect();
    ensure_eq!(paused.iter().filter(|p| **p).count(), 1, "the number of paused partitions");
    Ok(())
}

async fn third_member_joins_and_leaves_under_load(context: &TestContext) -> CheckResult {
    const PARTITIONS: u32 = 7;
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, PARTITIONS).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    let mut sent = 0;
    for _ in 0..2 {
        consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    }
    for round in 0..30 {
        let batch: Vec<_> =
            (0..70).map(|n| message_with_key(&topic, &format!("k{}", n % 14), round * 5 + n / 14)).collect();
        consumers.publish(&*bus, &batch).await?;
        sent += batch.len();
        if round == 10 {
            consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
        }
        if round == 15 {
            // With three members, the shares of 7 partitions are 3, 2 and 2. `wait_until_balanced` checks the balance.
            consumers.wait_until_balanced(PARTITIONS as usize).await?;
        }
        if round == 20 {
            consumers.leave(0).await?;
        }
    }
    consumers.receive_until(sent).await?;
    consumers.wait_until_balanced(PARTITIONS as usize).await?;
    // No message is lost, and the messages of each member are in order between restarts.
    let mut seen: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for message in consumers.histories().flatten() {
        let (key, n) = parse_payload(message)?;
        seen.entry(key).or_default().insert(n);
    }
    ensure_eq!(seen.len(), 14, "the number of keys");
    for (key, numbers) in seen {
        ensure_eq!(numbers.len(), 150, "the number of messages of key {key}");
    }
    offsets_increase_between_restarts(&consumers)
}

/// Checks that the offsets of a partition increase within one member's messages, except at a restart from a commit.
fn offsets_increase_between_restarts(consumers: &Consumers<'_>) -> CheckResult {
    for received in consumers.histories() {
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for message in received {
            if let Some(before) = last.insert(message.partition, message.offset) {
                // Nothing was committed, so a restart begins at offset 0.
                ensure!(
                    message.offset == before + 1 || message.offset == 0,
                    "offset {} follows offset {before} in partition {}",
                    message.offset,
                    message.partition
                );
            }
        }
    }
    Ok(())
}

async fn members_receive_only_their_topics(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let (left, right) = (context.create_topic(&*bus, 2).await?, context.create_topic(&*bus, 2).await?);
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, context.subscribe_request(&group, &left)?).await?;
    consumers.join(&*bus, context.subscribe_request(&group, &right)?).await?;
    consumers.wait_until_balanced(4).await?;
    publish_to_partitions(&*bus, &left, 2, 1).await?;
    publish_to_partitions(&*bus, &right, 2, 1).await?;
    consumers.receive_until(4).await?;
    ensure!(
        consumers.members[0].received.iter().all(|m| m.topic == left),
        "received a message of an unsubscribed topic"
    );
    ensure!(
        consumers.members[1].received.iter().all(|m| m.topic == right),
        "received a message of an unsubscribed topic"
    );
    Ok(())
}
