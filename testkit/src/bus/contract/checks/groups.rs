//! Checks of consumer groups and their members.

use qi_core::ErrorKind;
use qi_core::bus::{
    GroupInstanceId, MessageBusExt, OffsetReset, Offsets, ReceivedMessage, SubscriptionEvent, TopicPartition,
};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::crew::Crew;
use crate::bus::contract::lab::{fill, placed, text};
use crate::bus::contract::{Failure, Lab, Verdict, ensure, ensure_eq};

chapter! { "groups":
    two_groups_receive_all_messages [],
    two_members_share_the_messages [],
    takeover_before_the_first_commit_redelivers [],
    uncommitted_messages_are_redelivered_after_a_leave [],
    committed_messages_are_not_redelivered [],
    expired_session_releases_partitions [WireFaults],
    exceeded_max_poll_interval_releases_partitions [],
    static_member_keeps_its_partitions [Coordinator],
}

async fn two_groups_receive_all_messages(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 3).await?;
    fill(&*bus, &topic, 3, 20).await?;
    let mut one = lab.reader(&*bus, &topic).await?;
    let mut two = lab.reader(&*bus, &topic).await?;
    for reader in [&mut one, &mut two] {
        let all = lab.drain(&mut **reader, 60).await?;
        lab.quiet(&mut **reader).await?;
        let next =
            all.iter().map(|m| (TopicPartition::new(topic.clone(), m.partition), m.offset + 1)).collect();
        reader.commit(&next).await?;
    }
    Ok(())
}

async fn two_members_share_the_messages(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 5).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.join(&*bus, lab.request(&group, &topic)?).await?;
    crew.settle(5).await?;
    fill(&*bus, &topic, 5, 100).await?;
    crew.gather(500).await?;
    crew.round().await?;
    ensure_eq!(crew.total(), 500, "messages that both got together: none twice at rest");
    ensure!(crew.mates.iter().all(|mate| mate.got.len() >= 200), "each has its share");
    Ok(())
}

async fn takeover_before_the_first_commit_redelivers(lab: &Lab) -> Verdict {
    let (bus, other) = (lab.bus().await?, lab.bus().await?);
    let topic = lab.topic(&*bus, 2).await?;
    fill(&*bus, &topic, 2, 5).await?;
    let group = lab.group()?;
    let latest = lab.request(&group, &topic)?.with_offset_reset(OffsetReset::Latest);
    let mut first = bus.subscribe(latest.clone()).await?;
    fill(&*bus, &topic, 2, 3).await?;
    let came = lab.drain(&mut *first, 6).await?;
    // The first member received messages and committed nothing. The next member must receive them too, and must
    // not resolve `Latest` again.
    first.close().await?;
    let mut second = other.subscribe(latest).await?;
    let again = lab.drain(&mut *second, 6).await?;
    let places = |all: &[ReceivedMessage]| {
        let mut places: Vec<_> = all.iter().map(|m| (m.partition, m.offset)).collect();
        places.sort_unstable();
        places
    };
    ensure_eq!(places(&again), places(&came), "what was delivered and not committed comes again");
    lab.quiet(&mut *second).await
}

async fn uncommitted_messages_are_redelivered_after_a_leave(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 1).await?;
    fill(&*bus, &topic, 1, 10).await?;
    let group = lab.group()?;
    let mut first = bus.subscribe(lab.request(&group, &topic)?).await?;
    let batch = lab.drain(&mut *first, 8).await?;
    let done = [(TopicPartition::new(topic.clone(), 0), batch[3].offset + 1)].into_iter().collect();
    first.commit(&done).await?;
    drop(first);
    let mut second = bus.subscribe(lab.request(&group, &topic)?).await?;
    let rest = lab.drain(&mut *second, 6).await?;
    let texts: Vec<_> = rest.iter().map(text).collect();
    ensure_eq!(texts, ["0#4", "0#5", "0#6", "0#7", "0#8", "0#9"], "what was not committed");
    lab.quiet(&mut *second).await
}

async fn committed_messages_are_not_redelivered(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 4).await?;
    fill(&*bus, &topic, 4, 25).await?;
    let group = lab.group()?;
    let mut first = bus.subscribe(lab.request(&group, &topic)?).await?;
    let mut count = 0;
    let deadline = Instant::now() + lab.timing().eventually;
    while count < 100 {
        let batch = first.recv(30, lab.timing().short).await?;
        let committed = first.commit(batch.offsets()).await?;
        ensure_eq!(&committed.stored, batch.offsets(), "what was stored");
        count += batch.len();
        ensure!(Instant::now() < deadline, "only {count} came");
    }
    first.close().await?;
    let mut second = bus.subscribe(lab.request(&group, &topic)?).await?;
    lab.quiet(&mut *second).await?;
    bus.publish_one(&placed(&topic, 2, 25)).await?;
    ensure_eq!(text(&lab.drain(&mut *second, 1).await?[0]), "2#25", "only what is new");
    Ok(())
}

async fn expired_session_releases_partitions(lab: &Lab) -> Verdict {
    let (dying, living) = (lab.client().await?, lab.bus().await?);
    let topic = lab.topic(&*living, 2).await?;
    fill(&*living, &topic, 2, 10).await?;
    let group = lab.group()?;
    let mut first = dying.bus.subscribe(lab.request(&group, &topic)?).await?;
    let batch = lab.drain(&mut *first, 20).await?;
    let zero = TopicPartition::new(topic.clone(), 0);
    let fifth =
        batch.iter().filter(|m| m.partition == 0).nth(4).ok_or_else(|| Failure::new("too few came"))?;
    first.commit(&[(zero, fifth.offset)].into_iter().collect()).await?;
    dying.wire.cut().await;
    let began = Instant::now();
    let mut crew = Crew::new(lab);
    crew.join(&*living, lab.request(&group, &topic)?).await?;
    crew.gather(16).await?;
    crew.settle(2).await?;
    let came = &crew.mates[0].got;
    ensure_eq!(came.len(), 16, "what was not committed, and no more");
    ensure!(began.elapsed() < lab.timing().session * 4, "it took {:?}", began.elapsed());
    let first_of_zero = came.iter().find(|m| m.partition == 0).map(text);
    ensure_eq!(first_of_zero.as_deref(), Some("0#4"), "the first that was not committed");
    drop(first);
    Ok(())
}

async fn exceeded_max_poll_interval_releases_partitions(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 2).await?;
    let group = lab.group()?;
    let mut slow = Crew::new(lab);
    slow.join(&*bus, lab.request(&group, &topic)?).await?;
    fill(&*bus, &topic, 2, 10).await?;
    slow.gather(20).await?;
    let mut held = Offsets::new();
    for message in &slow.mates[0].got {
        held.mark_processed(message);
    }
    // The slow member does not poll within its maximum poll interval. Meanwhile a quick member has joined.
    let mut quick = Crew::new(lab);
    quick.join(&*bus, lab.request(&group, &topic)?).await?;
    let until = Instant::now() + lab.timing().max_poll_interval + lab.timing().short;
    while Instant::now() < until {
        quick.round().await?;
    }
    quick.gather(20).await?;
    ensure_eq!(quick.total(), 20, "everything that was not committed, once");
    let committed = slow.mates[0].sub.commit(&held).await?;
    ensure!(committed.stored.is_empty(), "stored for partitions of another: {:?}", committed.stored);
    ensure_eq!(committed.lost.len(), 2, "how many partitions were lost");
    // The slow member polls again, receives the event, and gets its share again.
    let deadline = Instant::now() + lab.timing().eventually;
    loop {
        slow.round().await?;
        quick.round().await?;
        let (here, there) = (slow.mates[0].own().await?, quick.mates[0].own().await?);
        ensure!(here.is_disjoint(&there), "{here:?} and {there:?} overlap");
        if here.len() == 1 && there.len() == 1 {
            break;
        }
        ensure!(Instant::now() < deadline, "it never got a share again: {here:?} and {there:?}");
    }
    let told = slow.mates[0].events.contains(&SubscriptionEvent::MaxPollIntervalExceeded);
    ensure!(told, "it was not told that the maximum poll interval had passed");
    fill(&*bus, &topic, 2, 1).await?;
    slow.round().await?;
    Ok(())
}

async fn static_member_keeps_its_partitions(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 4).await?;
    let group = lab.group()?;
    let request = |name: &str| -> Verdict<_> {
        Ok(lab.request(&group, &topic)?.with_group_instance_id(GroupInstanceId::new(name)?))
    };
    let mut crew = Crew::new(lab);
    crew.join(&*bus, request("one")?).await?;
    crew.join(&*bus, request("two")?).await?;
    crew.settle(4).await?;
    let mut leaver = crew.mates.remove(0);
    let (had, epoch) = (leaver.own().await?, crew.mates[0].sub.assignment().await?.epoch);
    leaver.sub.close().await?;
    crew.round().await?;
    crew.join(&*bus, request("one")?).await?;
    crew.settle(4).await?;
    ensure_eq!(crew.mates[1].own().await?, had, "what it has after a quick restart");
    ensure_eq!(crew.mates[0].sub.assignment().await?.epoch, epoch, "the other one's assignment");
    // When the session of a closed static member passes, the other members take over.
    let mut leaver = crew.mates.remove(1);
    leaver.sub.close().await?;
    let closed = leaver.sub.assignment().await.err();
    ensure_eq!(closed.map(|e| e.kind()), Some(ErrorKind::Closed), "after close");
    crew.settle(4).await
}
