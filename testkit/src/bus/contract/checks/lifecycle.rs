//! Checks of the end of buses and subscriptions.

use std::time::Duration;

use qi_core::ErrorKind;
use qi_core::bus::{
    GroupQuery, MessageBusExt, Offsets, PublishOptions, ReaderRequest, SeekTo, TopicPartition, TopicSpec,
};
use qi_core::{Error, Selection};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::consumers::Consumers;
use crate::bus::contract::context::{message_in_partition, publish_to_partitions, text};
use crate::bus::contract::{CheckResult, TestContext, ensure, ensure_eq};

chapter! { "lifecycle":
    close_waits_for_pending_publishes [],
    close_is_idempotent [],
    closed_bus_rejects_every_call [Admin],
    subscription_close_is_idempotent [],
    close_releases_partitions_within_a_second [Coordinator],
    close_wakes_a_waiting_recv [],
    drop_without_close_commits_nothing [],
}

async fn close_waits_for_pending_publishes(context: &TestContext) -> CheckResult {
    let (bus, other) = (context.bus().await?, context.bus().await?);
    let topic = context.create_topic(&*bus, 2).await?;
    let batch: Vec<_> = (0..500).map(|n| message_in_partition(&topic, n % 2, n as usize / 2)).collect();
    let (report, closed) = futures::join!(bus.publish(&batch, PublishOptions::NONE), bus.close());
    // The close overlaps with the publish: every message has an outcome, and a delivered message is in the log.
    let unknown = closed?.unknown;
    let outcomes = report?.into_outcomes();
    ensure_eq!(outcomes.len(), 500, "the number of outcomes");
    let delivered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    ensure_eq!((delivered, unknown), (500, 0), "the numbers of delivered and unknown messages");
    let all = context.read_all(&*other, &topic, 2, delivered).await?;
    ensure_eq!(all.len(), delivered, "the number of messages in the log");
    Ok(())
}

async fn close_is_idempotent(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let reader = context.subscribe(&*bus, &topic).await?;
    bus.close().await?;
    let again = bus.close().await?;
    ensure_eq!(again.unknown, 0, "the unknown messages of the second close");
    drop(reader);
    bus.close().await?;
    Ok(())
}

fn is_closed<T>(result: Result<T, Error>, call: &str) -> CheckResult {
    ensure_eq!(result.err().map(|e| e.kind()), Some(ErrorKind::Closed), "the error of {call} after close");
    Ok(())
}

async fn closed_bus_rejects_every_call(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let here = TopicPartition::new(topic.clone(), 0);
    let mut member = context.subscribe(&*bus, &topic).await?;
    let read = ReaderRequest::new([(here.clone(), SeekTo::Earliest)])?;
    let mut reader = bus.open_reader(read.clone()).await?;
    bus.close().await?;
    is_closed(bus.publish(&[message_in_partition(&topic, 0, 0)], PublishOptions::NONE).await, "publish")?;
    is_closed(bus.publish(&[], PublishOptions::NONE).await, "publish of nothing")?;
    is_closed(bus.subscribe(context.subscribe_request(&context.new_group()?, &topic)?).await, "subscribe")?;
    is_closed(bus.open_reader(read).await, "open_reader")?;
    is_closed(bus.create_topics(&[TopicSpec::new(topic.clone(), 1)?]).await, "create_topics")?;
    is_closed(bus.delete_topics(std::slice::from_ref(&topic)).await, "delete_topics")?;
    is_closed(bus.topics().await, "topics")?;
    is_closed(bus.groups(&GroupQuery::new(Selection::All)).await, "groups")?;
    is_closed(bus.ping().await, "ping")?;
    for sub in [&mut member, &mut reader] {
        is_closed(sub.recv(1, Duration::ZERO).await, "recv")?;
        is_closed(sub.commit(&Offsets::new()).await, "commit")?;
        is_closed(sub.seek(&[(here.clone(), SeekTo::Earliest)]).await, "seek")?;
        is_closed(sub.pause(std::slice::from_ref(&here)).await, "pause")?;
        is_closed(sub.resume(std::slice::from_ref(&here)).await, "resume")?;
        is_closed(sub.assignment().await, "assignment")?;
        sub.close().await?;
    }
    Ok(())
}

async fn subscription_close_is_idempotent(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    reader.close().await?;
    reader.close().await?;
    is_closed(reader.recv(1, Duration::ZERO).await, "recv")?;
    is_closed(reader.assignment().await, "assignment")?;
    bus.publish_one(&message_in_partition(&topic, 0, 0)).await?;
    Ok(())
}

async fn close_releases_partitions_within_a_second(context: &TestContext) -> CheckResult {
    let (leaving, staying) = (context.bus().await?, context.bus().await?);
    let topic = context.create_topic(&*staying, 2).await?;
    let group = context.new_group()?;
    let mut consumers = Consumers::new(context);
    consumers.join(&*leaving, context.subscribe_request(&group, &topic)?).await?;
    consumers.join(&*staying, context.subscribe_request(&group, &topic)?).await?;
    consumers.wait_until_balanced(2).await?;
    publish_to_partitions(&*staying, &topic, 2, 5).await?;
    consumers.receive_until(10).await?;
    let left = consumers.members.remove(0);
    leaving.close().await?;
    let began = Instant::now();
    while consumers.members[0].owned().await?.len() < 2 {
        consumers.poll_all().await?;
        ensure!(began.elapsed() < context.timing().effect_timeout, "no member takes over the partitions");
    }
    ensure!(
        began.elapsed() <= Duration::from_secs(1),
        "the partitions were reassigned after {:?}",
        began.elapsed()
    );
    consumers.receive_until(10).await?;
    ensure_eq!(
        consumers.members[0].received.len(),
        10,
        "the number of messages, including uncommitted messages of the closed member"
    );
    drop(left);
    Ok(())
}

async fn close_wakes_a_waiting_recv(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let wait = context.timing().effect_timeout;
    let began = Instant::now();
    let waiting = async { reader.recv(1, wait).await };
    let closing = async {
        context.short_sleep().await;
        bus.close().await
    };
    let (received, closed) = futures::join!(waiting, closing);
    closed?;
    is_closed(received, "recv")?;
    ensure!(began.elapsed() < wait / 2, "recv returned after {:?}", began.elapsed());
    Ok(())
}

async fn drop_without_close_commits_nothing(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 3).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.receive(&mut *reader, 2).await?;
    let began = std::time::Instant::now();
    drop(reader);
    ensure!(began.elapsed() < Duration::from_secs(5), "the drop blocked for {:?}", began.elapsed());
    let mut next = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    ensure_eq!(
        text(&context.receive(&mut *next, 3).await?[0]),
        "0#0",
        "the first message of the next member"
    );
    Ok(())
}
