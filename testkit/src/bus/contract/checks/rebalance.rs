//! Checks of rebalances.

use std::collections::{BTreeMap, BTreeSet};

use qi_core::ErrorKind;
use qi_core::bus::{OffsetReset, Offsets, ReceivedMessage, SeekTo, SubscriptionEvent, TopicPartition};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::crew::Crew;
use crate::bus::contract::lab::{fill, keyed, parts};
use crate::bus::contract::{Failure, Lab, Verdict, ensure, ensure_eq};

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

async fn rebalance_takes_effect_only_inside_recv(lab: &Lab) -> Verdict {
    let (bus, other) = (lab.bus().await?, lab.bus().await?);
    let topic = lab.topic(&*bus, 4).await?;
    let group = lab.group()?;
    let mut first = bus.subscribe(lab.request(&group, &topic)?).await?;
    fill(&*bus, &topic, 4, 5).await?;
    let got = lab.drain(&mut *first, 20).await?;
    // The second member may have to wait until the first one calls `recv`.
    let request = lab.request(&group, &topic)?;
    let joining = tokio::spawn(async move { other.subscribe(request).await });
    lab.pause().await;
    let committed = first.commit(&held(&got)).await?;
    ensure_eq!(committed.stored, held(&got), "what the batch held stayed owned until the next recv");
    ensure!(committed.lost.is_empty(), "lost outside of recv: {:?}", committed.lost);
    let mut crew = Crew::new(lab);
    crew.take_in(first);
    while !joining.is_finished() {
        crew.round().await?;
        lab.pause().await;
    }
    let sub = joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??;
    crew.take_in(sub);
    crew.settle(4).await?;
    ensure_eq!(crew.total(), 0, "messages that came again although they were committed");
    Ok(())
}

async fn announced_revocation_waits_for_the_next_recv(lab: &Lab) -> Verdict {
    let (bus, other) = (lab.bus().await?, lab.bus().await?);
    let topic = lab.topic(&*bus, 4).await?;
    let group = lab.group()?;
    let request = lab.request(&group, &topic)?.with_announced_revocations();
    let mut first = bus.subscribe(request.clone()).await?;
    fill(&*bus, &topic, 4, 5).await?;
    let got = lab.drain(&mut *first, 20).await?;
    let joining = tokio::spawn(async move { other.subscribe(request).await });
    let deadline = Instant::now() + lab.timing().eventually;
    loop {
        ensure!(Instant::now() < deadline, "the revocation was never announced");
        let batch = first.recv(500, lab.timing().short).await?;
        for event in batch.events() {
            let lost = matches!(event, SubscriptionEvent::AssignmentChanged { lost, .. } if !lost.is_empty());
            ensure!(!lost, "partitions were revoked without an announcement");
        }
        if batch.events().contains(&SubscriptionEvent::RevocationPending) {
            ensure!(batch.is_empty(), "the announcement has no messages");
            break;
        }
    }
    lab.pause().await;
    ensure_eq!(first.assignment().await?.partitions.len(), 4, "partitions after the announcement");
    let committed = first.commit(&held(&got)).await?;
    ensure_eq!(committed.stored, held(&got), "the commit before the next recv");
    ensure!(committed.lost.is_empty(), "lost before the next recv: {:?}", committed.lost);
    let mut crew = Crew::new(lab);
    crew.take_in(first);
    while !joining.is_finished() {
        crew.round().await?;
        lab.pause().await;
    }
    let sub = joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??;
    crew.take_in(sub);
    crew.settle(4).await?;
    ensure_eq!(crew.total(), 0, "messages that came again although they were committed");
    Ok(())
}

async fn seek_does_not_revoke_partitions(lab: &Lab) -> Verdict {
    let (bus, other) = (lab.bus().await?, lab.bus().await?);
    let topic = lab.topic(&*bus, 2).await?;
    let group = lab.group()?;
    fill(&*bus, &topic, 2, 10).await?;
    let mut first = bus.subscribe(lab.request(&group, &topic)?).await?;
    let got = lab.drain(&mut *first, 20).await?;
    first.commit(&held(&got)).await?;
    first.close().await?;
    // The position no longer exists, so the reader has no valid position.
    let gone = TopicPartition::new(topic.clone(), 0);
    let mut first = bus.subscribe(lab.request(&group, &topic)?.with_offset_reset(OffsetReset::Error)).await?;
    first.pause(std::slice::from_ref(&gone)).await?;
    first.seek(&[(gone.clone(), SeekTo::Offset(3))]).await?;
    lab.trim(&gone, 6).await?;
    first.resume(std::slice::from_ref(&gone)).await?;
    let deadline = Instant::now() + lab.timing().eventually;
    while first.recv(10, lab.timing().short).await.is_ok() {
        ensure!(Instant::now() < deadline, "no error says that the position is gone");
    }
    // A second member joins, while the first one does not call `recv`.
    let request = lab.request(&group, &topic)?;
    let joining = tokio::spawn(async move { other.subscribe(request).await });
    lab.sleep(lab.timing().short * 10).await;
    first.seek(&[(gone.clone(), SeekTo::Earliest)]).await?;
    lab.sleep(lab.timing().short * 4).await;
    let mut crew = Crew::new(lab);
    if joining.is_finished() {
        let mut second = joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??;
        second.recv(10, lab.timing().short * 4).await?;
        let taken = second.assignment().await?.partitions;
        ensure!(taken.is_empty(), "the first one gave away by its seek: {taken:?}");
        crew.take_in(first);
        crew.take_in(second);
    } else {
        crew.take_in(first);
        while !joining.is_finished() {
            crew.round().await?;
        }
        crew.take_in(joining.await.map_err(|e| Failure::new(format_args!("the task failed: {e}")))??);
    }
    crew.settle(2).await?;
    fill(&*bus, &topic, 2, 1).await?;
    crew.gather(2).await
}

async fn commit_reports_lost_partitions(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 4).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    fill(&*bus, &topic, 4, 10).await?;
    crew.gather(40).await?;
    // The first five messages of each partition are processed and not yet committed.
    let old: Offsets = (0..4).map(|p| (TopicPartition::new(topic.clone(), p), 5)).collect();
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(4).await?;
    crew.gather(40).await?;
    let theirs = crew.mates[1].own().await?;
    ensure_eq!(theirs.len(), 2, "the second one's share");
    while crew.mates[1].got.len() < 20 {
        crew.round().await?;
    }
    let done = held(&crew.mates[1].got);
    crew.mates[1].sub.commit(&done).await?;
    let committed = crew.mates[0].sub.commit(&old).await?;
    let lost: BTreeSet<_> = committed.lost.into_iter().collect();
    ensure_eq!(lost, theirs, "what was lost");
    let stored: BTreeSet<_> = committed.stored.iter().map(|(p, _)| p.clone()).collect();
    ensure_eq!(stored, crew.mates[0].own().await?, "what was stored");
    for partition in &theirs {
        let found = lab.committed(&*bus, &group, partition).await?;
        ensure_eq!(found, done.get(partition), "the owner's commit of {partition} stays");
    }
    Ok(())
}

async fn buffered_messages_of_a_lost_partition_are_discarded(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 4).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    fill(&*bus, &topic, 4, 200).await?;
    // Only a few messages of each partition, so the others may be in a buffer. Each turn checks that the member owns
    // the partitions of its messages.
    while (0..4).any(|p| crew.mates[0].got.iter().all(|message| message.partition != p)) {
        ensure!(crew.mates[0].turn(lab, 5).await? > 0, "not every partition is read");
    }
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(4).await?;
    crew.gather(800).await?;
    for mate in &crew.mates {
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for message in &mate.got {
            if let Some(before) = last.insert(message.partition, message.offset) {
                ensure!(message.offset > before, "offset {} after {before} for one member", message.offset);
            }
        }
    }
    Ok(())
}

async fn events_report_gained_and_lost_partitions(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 4).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(4).await?;
    crew.mates[0].events.clear();
    let before = crew.mates[0].own().await?;
    let epoch = crew.mates[0].sub.assignment().await?.epoch;
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(4).await?;
    let after = crew.mates[0].own().await?;
    let mut told = before.clone();
    for event in &crew.mates[0].events {
        if let SubscriptionEvent::AssignmentChanged { gained, lost } = event {
            for partition in lost {
                told.remove(partition);
            }
            told.extend(gained.iter().cloned());
        }
    }
    ensure_eq!(told, after, "what the events tell of {before:?}");
    ensure!(crew.mates[0].sub.assignment().await?.epoch > epoch, "the epoch rises with a change");
    Ok(())
}

async fn revocation_ends_the_pause(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 2).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(2).await?;
    let both: Vec<_> = crew.mates[0].own().await?.into_iter().collect();
    crew.mates[0].sub.pause(&both).await?;
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(2).await?;
    let kept = crew.mates[0].own().await?;
    let moved: Vec<_> = both.iter().filter(|partition| !kept.contains(*partition)).cloned().collect();
    ensure_eq!(moved.len(), 1, "partitions that moved");
    let refused = crew.mates[0].sub.resume(&moved).await.err();
    ensure_eq!(refused.map(|e| e.kind()), Some(ErrorKind::InvalidInput), "resuming what was lost");
    fill(&*bus, &topic, 2, 3).await?;
    crew.gather(3).await?;
    crew.round().await?;
    ensure_eq!((crew.mates[0].got.len(), crew.mates[1].got.len()), (0, 3), "paused here, not paused there");
    let mut leaver = crew.mates.remove(1);
    leaver.sub.close().await?;
    crew.settle(2).await?;
    crew.gather(3).await?;
    ensure!(
        crew.mates[0].got.iter().all(|m| m.partition == moved[0].partition),
        "the kept one is still paused"
    );
    let paused: Vec<_> = crew.mates[0].sub.assignment().await?.partitions.iter().map(|p| p.paused).collect();
    ensure_eq!(paused.iter().filter(|p| **p).count(), 1, "the pause of what was lost has ended");
    Ok(())
}

async fn third_member_joins_and_leaves_under_load(lab: &Lab) -> Verdict {
    const PARTITIONS: u32 = 7;
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, PARTITIONS).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    let mut sent = 0;
    for _ in 0..2 {
        crew.join(&*bus, lab.request(&group, &topic)?).await?;
    }
    for round in 0..30 {
        let batch: Vec<_> =
            (0..70).map(|n| keyed(&topic, &format!("k{}", n % 14), round * 5 + n / 14)).collect();
        crew.publish(&*bus, &batch).await?;
        sent += batch.len();
        if round == 10 {
            crew.join(&*bus, lab.request(&group, &topic)?).await?;
        }
        if round == 15 {
            // With three members, the shares of 7 partitions are 3, 2 and 2. `settle` checks the balance.
            crew.settle(PARTITIONS as usize).await?;
        }
        if round == 20 {
            crew.leave(0).await?;
        }
    }
    crew.gather(sent).await?;
    crew.settle(PARTITIONS as usize).await?;
    // No message is lost, and the messages of each member are in order between restarts.
    let mut seen: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for message in crew.histories().flatten() {
        let (key, n) = parts(message)?;
        seen.entry(key).or_default().insert(n);
    }
    ensure_eq!(seen.len(), 14, "keys");
    for (key, numbers) in seen {
        ensure_eq!(numbers.len(), 150, "messages of {key}");
    }
    in_order_between_restarts(&crew)
}

/// Checks that the offsets of a partition increase within one member's messages, except at a restart from a commit.
fn in_order_between_restarts(crew: &Crew<'_>) -> Verdict {
    for got in crew.histories() {
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        for message in got {
            if let Some(before) = last.insert(message.partition, message.offset) {
                // Nothing was committed, so a restart begins at offset 0.
                ensure!(
                    message.offset == before + 1 || message.offset == 0,
                    "offset {} follows {before} in partition {}",
                    message.offset,
                    message.partition
                );
            }
        }
    }
    Ok(())
}

async fn members_receive_only_their_topics(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let (left, right) = (lab.topic(&*bus, 2).await?, lab.topic(&*bus, 2).await?);
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*bus, lab.request(&group, &left)?).await?;
    crew.join(&*bus, lab.request(&group, &right)?).await?;
    crew.settle(4).await?;
    fill(&*bus, &left, 2, 1).await?;
    fill(&*bus, &right, 2, 1).await?;
    crew.gather(4).await?;
    ensure!(crew.mates[0].got.iter().all(|m| m.topic == left), "a topic that it did not ask for came");
    ensure!(crew.mates[1].got.iter().all(|m| m.topic == right), "a topic that it did not ask for came");
    Ok(())
}
