//! Checks of consumer groups and their members.

use qi_core::ErrorKind;
use qi_core::bus::{
    GroupInstanceId, MessageBusExt, OffsetReset, Offsets, ReceivedMessage, SubscriptionEvent, TopicPartition,
};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::consumers::Consumers;
use crate::bus::contract::context::{message_in_partition, publish_to_partitions, text};
use crate::bus::contract::{CheckResult, Failure, TestContext, ensure, ensure_eq};

chapter! { "groups":
    two_groups_receive_all_messages [],
    two_members_share_the_messages [],
    takeover_before_the_first_commit_redelivers [],
    uncommitted_messages_are_redelivered_after_a_leave [],
    committed_messages_are_not_redelivered [],
    expired_session_releases_partitions [ConnectionFaults],
    exceeded_max_poll_interval_releases_partitions [],
    static_member_keeps_its_partitions [Coordinator],
}

async fn two_groups_receive_all_messages(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 3, 20).await?;
    let mut one = context.subscribe(&*bus, &topic).await?;
    let mut two = context.subscribe(&*bus, &topic).await?;
    for reader in [&mut one, &mut two] {
        let all = context.receive(&mut **reader, 60).await?;
        context.expect_no_message(&mut **reader).await?;
        let next =
            all.iter().map(|m| (TopicPartition::new(topic.clone(), m.partition), m.offset + 1)).collect();
        reader.commit(&next).await?;
    }
    Ok(())
}

async fn two_members_share_the_messages(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 5).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(5).await?;
    publish_to_partitions(&*bus, &topic, 5, 100).await?;
    consumers.receive_until(500).await?;
    consumers.poll_all().await?;
    ensure_eq!(consumers.total_count(), 500, "the number of received messages");
    ensure!(
        consumers.members.iter().all(|member| member.received.len() >= 200),
        "a member received fewer than 200 messages"
    );
    Ok(())
}

async fn takeover_before_the_first_commit_redelivers(context: &TestContext) -> CheckResult {
    let (bus, other) = (context.bus().await?, context.bus().await?);
    let topic = context.create_topic(&*bus, 2).await?;
    publish_to_partitions(&*bus, &topic, 2, 5).await?;
    let group = context.new_group()?;
    let latest = context.subscribe_request(&group, &topic)?.with_offset_reset(OffsetReset::Latest);
    let mut first = bus.subscribe(latest.clone()).await?;
    publish_to_partitions(&*bus, &topic, 2, 3).await?;
    let arrived = context.receive(&mut *first, 6).await?;
    // The first member received messages and committed nothing. The next member must receive them too, and must
    // not resolve `Latest` again.
    first.close().await?;
    let mut second = other.subscribe(latest).await?;
    let again = context.receive(&mut *second, 6).await?;
    let places = |all: &[ReceivedMessage]| {
        let mut places: Vec<_> = all.iter().map(|m| (m.partition, m.offset)).collect();
        places.sort_unstable();
        places
    };
    ensure_eq!(places(&again), places(&arrived), "the redelivered offsets");
    context.expect_no_message(&mut *second).await
}

async fn uncommitted_messages_are_redelivered_after_a_leave(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 10).await?;
    let group = context.new_group()?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let batch = context.receive(&mut *first, 8).await?;
    let done = [(TopicPartition::new(topic.clone(), 0), batch[3].offset + 1)].into_iter().collect();
    first.commit(&done).await?;
    drop(first);
    let mut second = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let rest = context.receive(&mut *second, 6).await?;
    let texts: Vec<_> = rest.iter().map(text).collect();
    ensure_eq!(texts, ["0#4", "0#5", "0#6", "0#7", "0#8", "0#9"], "the uncommitted messages");
    context.expect_no_message(&mut *second).await
}

async fn committed_messages_are_not_redelivered(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    publish_to_partitions(&*bus, &topic, 4, 25).await?;
    let group = context.new_group()?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let mut count = 0;
    let deadline = Instant::now() + context.timing().effect_timeout;
    while count < 100 {
        let batch = first.recv(30, context.timing().receive_timeout).await?;
        let committed = first.commit(batch.offsets()).await?;
        ensure_eq!(&committed.stored, batch.offsets(), "the stored offsets");
        count += batch.len();
        ensure!(Instant::now() < deadline, "received only {count} messages");
    }
    first.close().await?;
    let mut second = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.expect_no_message(&mut *second).await?;
    bus.publish_one(&message_in_partition(&topic, 2, 25)).await?;
    ensure_eq!(text(&context.receive(&mut *second, 1).await?[0]), "2#25", "the next message");
    Ok(())
}

async fn expired_session_releases_partitions(context: &TestContext) -> CheckResult {
    let (interrupted, other) = (context.client().await?, context.bus().await?);
    let topic = context.create_topic(&*other, 2).await?;
    publish_to_partitions(&*other, &topic, 2, 10).await?;
    let group = context.new_group()?;
    let mut first = interrupted.bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let batch = context.receive(&mut *first, 20).await?;
    let zero = TopicPartition::new(topic.clone(), 0);
    let fifth = batch
        .iter()
        .filter(|m| m.partition == 0)
        .nth(4)
        .ok_or_else(|| Failure::new("received fewer than five messages of partition 0"))?;
    first.commit(&[(zero, fifth.offset)].into_iter().collect()).await?;
    interrupted.connection.interrupt().await;
    let began = Instant::now();
    let mut consumers = Consumers::new(context);
    consumers.join(&*other, context.subscribe_request(&group, &topic)?).await?;
    consumers.receive_until(16).await?;
    consumers.wait_until_balanced(2).await?;
    let arrived = &consumers.members[0].received;
    ensure_eq!(arrived.len(), 16, "the number of uncommitted messages");
    ensure!(
        began.elapsed() < context.timing().session_timeout * 4,
        "the partitions were released after {:?}",
        began.elapsed()
    );
    let first_of_zero = arrived.iter().find(|m| m.partition == 0).map(text);
    ensure_eq!(first_of_zero.as_deref(), Some("0#4"), "the first uncommitted message of partition 0");
    drop(first);
    Ok(())
}

async fn exceeded_max_poll_interval_releases_partitions(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    let group = context.new_group()?;
    let mut slow = Consumers::new(context);
    slow.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    publish_to_partitions(&*bus, &topic, 2, 10).await?;
    slow.receive_until(20).await?;
    let mut held = Offsets::new();
    for message in &slow.members[0].received {
        held.mark_processed(message);
    }
    // The slow member does not poll within its maximum poll interval. Meanwhile a quick member has joined.
    let mut quick = Consumers::new(context);
    quick.join(&*bus, context.subscribe_request(&group, &topic)?).await?;
    let until = Instant::now() + context.timing().max_poll_interval + context.timing().receive_timeout;
    while Instant::now() < until {
        quick.poll_all().await?;
    }
    quick.receive_until(20).await?;
    ensure_eq!(quick.total_count(), 20, "the number of messages of the second member");
    let committed = slow.members[0].sub.commit(&held).await?;
    ensure!(committed.stored.is_empty(), "offsets of revoked partitions were stored: {:?}", committed.stored);
    ensure_eq!(committed.lost.len(), 2, "the number of lost partitions");
    // The slow member polls again, receives the event, and gets a partition again.
    let deadline = Instant::now() + context.timing().effect_timeout;
    loop {
        slow.poll_all().await?;
        quick.poll_all().await?;
        let (here, there) = (slow.members[0].owned().await?, quick.members[0].owned().await?);
        ensure!(here.is_disjoint(&there), "both members own a partition: {here:?} and {there:?}");
        if here.len() == 1 && there.len() == 1 {
            break;
        }
        ensure!(Instant::now() < deadline, "the expired member got no partition: {here:?} and {there:?}");
    }
    let reported = slow.members[0].events.contains(&SubscriptionEvent::MaxPollIntervalExceeded);
    ensure!(reported, "the event MaxPollIntervalExceeded is missing");
    publish_to_partitions(&*bus, &topic, 2, 1).await?;
    slow.poll_all().await?;
    Ok(())
}

async fn static_member_keeps_its_partitions(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 4).await?;
    let group = context.new_group()?;
    let request = |name: &str| -> CheckResult<_> {
        Ok(context.subscribe_request(&group, &topic)?.with_group_instance_id(GroupInstanceId::new(name)?))
    };
    let mut consumers = Consumers::new(context);
    consumers.join(&*bus, request("one")?).await?;
    consumers.join(&*bus, request("two")?).await?;
    consumers.wait_until_balanced(4).await?;
    let mut departing = consumers.members.remove(0);
    let (had, epoch) = (departing.owned().await?, consumers.members[0].sub.assignment().await?.epoch);
    departing.sub.close().await?;
    consumers.poll_all().await?;
    consumers.join(&*bus, request("one")?).await?;
    consumers.wait_until_balanced(4).await?;
    ensure_eq!(consumers.members[1].owned().await?, had, "the partitions after the restart");
    ensure_eq!(consumers.members[0].sub.assignment().await?.epoch, epoch, "the epoch of the other member");
    // When the session of a closed static member passes, the other members take over.
    let mut departing = consumers.members.remove(1);
    departing.sub.close().await?;
    let closed = departing.sub.assignment().await.err();
    ensure_eq!(closed.map(|e| e.kind()), Some(ErrorKind::Closed), "the error after close");
    consumers.wait_until_balanced(4).await
}
