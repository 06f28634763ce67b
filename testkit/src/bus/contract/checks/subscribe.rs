//! Checks of start positions and of `recv`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use qi_core::ErrorKind;
use qi_core::bus::{
    Batch, Message, MessageBusExt, OffsetReset, Offsets, ReaderRequest, SeekTo, SubscribeRequest,
    Subscription, SubscriptionEvent, TopicPartition, TopicSpec,
};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::context::{message_in_partition, parse_payload, publish_to_partitions, text};
use crate::bus::contract::{CheckResult, TestContext, ensure, ensure_eq};

chapter! { "subscribe":
    earliest_starts_at_the_low_watermark [],
    latest_starts_at_the_high_watermark [],
    offset_reset_by_time_starts_at_that_time [OffsetsForTimes],
    offset_reset_error_fails_without_a_commit [],
    commits_take_precedence_over_offset_reset [],
    recv_respects_max [],
    recv_waits_for_the_given_duration [],
    recv_with_max_zero_is_rejected [],
    message_wakes_a_waiting_recv [],
    dropped_recv_loses_no_message [],
    subscription_to_several_topics_receives_all [],
    small_receive_buffer_delivers_all_messages [],
    unknown_topic_is_not_created [Admin],
    deleted_topic_ends_the_subscription [Admin],
    other_topics_continue_after_a_deletion [Admin],
    reader_without_group_reads_and_seeks [],
}

async fn earliest_starts_at_the_low_watermark(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 3, 10).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    context.receive(&mut *reader, 30).await?;
    context.expect_no_message(&mut *reader).await
}

async fn latest_starts_at_the_high_watermark(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 3, 10).await?;
    let request =
        context.subscribe_request(&context.new_group()?, &topic)?.with_offset_reset(OffsetReset::Latest);
    let mut reader = bus.subscribe(request).await?;
    bus.send(&[message_in_partition(&topic, 0, 77), message_in_partition(&topic, 2, 78)]).await?;
    let mut new: Vec<_> = context.receive(&mut *reader, 2).await?.iter().map(text).collect();
    new.sort();
    ensure_eq!(new, ["0#77", "2#78"], "the messages after subscribe");
    context.expect_no_message(&mut *reader).await
}

async fn offset_reset_by_time_starts_at_that_time(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    let (base, second) = (context.now(), Duration::from_secs(1));
    let at = |n: u32| base.checked_sub(second * (60 - n)).unwrap_or(base);
    let batch: Vec<_> = (0..10)
        .flat_map(|n| [0, 1].map(|p| message_in_partition(&topic, p, n as usize).with_timestamp(at(n))))
        .collect();
    bus.send(&batch).await?;
    let request =
        context.subscribe_request(&context.new_group()?, &topic)?.with_offset_reset(OffsetReset::At(at(7)));
    let mut reader = bus.subscribe(request).await?;
    let mut found: Vec<_> = context.receive(&mut *reader, 6).await?.iter().map(text).collect();
    found.sort();
    ensure_eq!(found, ["0#7", "0#8", "0#9", "1#7", "1#8", "1#9"], "the messages at that time and later");
    let later = context
        .subscribe_request(&context.new_group()?, &topic)?
        .with_offset_reset(OffsetReset::At(context.now()));
    let mut reader = bus.subscribe(later).await?;
    context.expect_no_message(&mut *reader).await?;
    bus.publish_one(&message_in_partition(&topic, 1, 10)).await?;
    ensure_eq!(
        text(&context.receive(&mut *reader, 1).await?[0]),
        "1#10",
        "the first message after the time of the last message"
    );
    Ok(())
}

async fn offset_reset_error_fails_without_a_commit(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 3).await?;
    let group = context.new_group()?;
    let strict = context.subscribe_request(&group, &topic)?.with_offset_reset(OffsetReset::Error);
    let rejected = match bus.subscribe(strict.clone()).await {
        Err(error) => Some(error),
        Ok(mut reader) => reader.recv(1, context.timing().receive_timeout * 4).await.err(),
    };
    ensure_eq!(rejected.map(|e| e.kind()), Some(ErrorKind::NotFound), "the error without a commit");
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let batch = reader.recv(2, context.timing().receive_timeout * 4).await?;
    reader.commit(batch.offsets()).await?;
    reader.close().await?;
    let mut reader = bus.subscribe(strict).await?;
    ensure_eq!(
        context.receive(&mut *reader, 3 - batch.len()).await?.len(),
        3 - batch.len(),
        "the number of messages after the commit"
    );
    Ok(())
}

async fn commits_take_precedence_over_offset_reset(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &topic, 1, 5).await?;
    let group = context.new_group()?;
    let mut first = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let batch = first.recv(2, context.timing().receive_timeout * 4).await?;
    ensure_eq!(batch.len(), 2, "the number of messages of the first batch");
    first.commit(batch.offsets()).await?;
    first.close().await?;
    for offset_reset in [OffsetReset::Latest, OffsetReset::Earliest, OffsetReset::Error] {
        let mut next =
            bus.subscribe(context.subscribe_request(&group, &topic)?.with_offset_reset(offset_reset)).await?;
        ensure_eq!(
            text(&context.receive(&mut *next, 1).await?[0]),
            "0#2",
            "the first message after the commit with {offset_reset:?}"
        );
        next.close().await?;
    }
    Ok(())
}

async fn recv_respects_max(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 3, 40).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let mut count = 0;
    let deadline = Instant::now() + context.timing().effect_timeout;
    for max in [1, 7, 2, 50].into_iter().cycle() {
        let batch = reader.recv(max, context.timing().receive_timeout * 4).await?;
        ensure!(batch.len() <= max, "recv returned {} messages, max is {max}", batch.len());
        for (partition, next) in batch.offsets().iter() {
            let last = batch.iter().filter(|m| m.partition == partition.partition).map(|m| m.offset).max();
            ensure!(
                last.is_some_and(|last| last < next),
                "the offset {next} of the batch does not follow {last:?}"
            );
        }
        count += batch.len();
        ensure!(count <= 120, "received more than 120 messages");
        if count == 120 {
            return context.expect_no_message(&mut *reader).await;
        }
        ensure!(Instant::now() < deadline, "received only {count} messages");
    }
    Ok(())
}

async fn recv_waits_for_the_given_duration(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    for wait in [Duration::ZERO, context.timing().receive_timeout, context.timing().receive_timeout * 10] {
        let began = Instant::now();
        let batch = reader.recv(10, wait).await?;
        let took = began.elapsed();
        ensure!(batch.is_empty() && batch.offsets().is_empty(), "recv returned messages of an empty topic");
        ensure!(took >= wait, "recv returned after {took:?}, wait is {wait:?}");
        ensure!(took <= wait + Duration::from_secs(2), "recv returned after {took:?}, wait is {wait:?}");
    }
    Ok(())
}

async fn recv_with_max_zero_is_rejected(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 1).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let rejected = reader.recv(0, Duration::ZERO).await.err();
    ensure_eq!(rejected.map(|e| e.kind()), Some(ErrorKind::InvalidInput), "the error of a max of 0");
    Ok(())
}

async fn message_wakes_a_waiting_recv(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    let wait = context.timing().effect_timeout;
    let began = Instant::now();
    let receiving = async { reader.recv(10, wait).await };
    let sending = async {
        context.short_sleep().await;
        bus.publish_one(&message_in_partition(&topic, 1, 0)).await
    };
    let (batch, _) = futures::try_join!(receiving, sending)?;
    ensure_eq!(batch.len(), 1, "the number of messages");
    ensure!(began.elapsed() < wait / 2, "recv returned after {:?}", began.elapsed());
    Ok(())
}

async fn dropped_recv_loses_no_message(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let before = reader.assignment().await?.partitions.iter().map(|p| p.committed).collect::<Vec<_>>();
    let (mut all, mut sent) = (Vec::new(), 0);
    let deadline = Instant::now() + context.timing().effect_timeout;
    let mut turn = 0_u32;
    while all.len() < 300 {
        ensure!(Instant::now() < deadline, "received only {} of {sent} messages", all.len());
        turn += 1;
        if sent < 300 {
            bus.publish_one(&message_in_partition(&topic, u32::try_from(sent % 3).unwrap_or(0), sent / 3))
                .await?;
            sent += 1;
        }
        // The future is polled a few times, with short sleeps in some rounds, and then dropped.
        let mut receiving = Box::pin(reader.recv(4, context.timing().receive_timeout));
        for _ in 0..turn % 5 {
            if let Some(batch) = (&mut receiving).now_or_never() {
                all.extend(batch?.into_messages());
                break;
            }
            if turn.is_multiple_of(3) {
                tokio::task::yield_now().await;
            } else {
                context.sleep(Duration::from_millis(u64::from(turn % 7))).await;
            }
        }
    }
    let mut next: BTreeMap<u32, usize> = BTreeMap::new();
    for message in &all {
        let wanted = next.entry(message.partition).or_default();
        ensure_eq!(parse_payload(message)?.1, *wanted, "the next message of partition {}", message.partition);
        *wanted += 1;
    }
    let after = reader.assignment().await?.partitions.iter().map(|p| p.committed).collect::<Vec<_>>();
    for (before, after) in before.iter().zip(&after) {
        ensure!(after.is_none() || before.is_none() || before == after, "a dropped recv changed the commit");
        ensure!(after.is_none_or(|after| after == 0), "the commit is {after:?} without a commit call");
    }
    context.expect_no_message(&mut *reader).await
}

async fn subscription_to_several_topics_receives_all(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topics = [
        context.create_topic(&*bus, 2).await?,
        context.create_topic(&*bus, 3).await?,
        context.create_topic(&*bus, 1).await?,
    ];
    for (topic, partitions) in topics.iter().zip([2, 3, 1]) {
        publish_to_partitions(&*bus, topic, partitions, 10).await?;
    }
    let other = context.create_topic(&*bus, 1).await?;
    publish_to_partitions(&*bus, &other, 1, 10).await?;
    let timing = context.timing();
    let request = SubscribeRequest::new(context.new_group()?, topics.clone())?
        .with_timeouts(timing.session_timeout, timing.max_poll_interval)?;
    let mut reader = bus.subscribe(request).await?;
    let all = context.receive(&mut *reader, 60).await?;
    for (topic, wanted) in topics.iter().zip([20, 30, 10]) {
        ensure_eq!(
            all.iter().filter(|m| m.topic == *topic).count(),
            wanted,
            "the number of messages of {topic}"
        );
    }
    context.expect_no_message(&mut *reader).await
}

async fn small_receive_buffer_delivers_all_messages(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    let sizes = [10_usize, 5_000, 0, 40_000, 1, 300_000, 2_000];
    let batch: Vec<_> = sizes
        .iter()
        .flat_map(|size| [0, 1].map(|p| Message::new(topic.clone(), vec![1; *size]).with_partition(p)))
        .collect();
    bus.send(&batch).await?;
    for bytes in [4_096, 0] {
        let request =
            context.subscribe_request(&context.new_group()?, &topic)?.with_max_buffered_bytes(bytes);
        let mut reader = bus.subscribe(request).await?;
        let all = context.receive(&mut *reader, batch.len()).await?;
        for partition in [0, 1] {
            let received: Vec<_> = all
                .iter()
                .filter(|m| m.partition == partition)
                .map(qi_core::bus::ReceivedMessage::size)
                .collect();
            ensure_eq!(
                received,
                sizes,
                "the message sizes in partition {partition} with a buffer of {bytes} bytes"
            );
        }
        context.expect_no_message(&mut *reader).await?;
        reader.close().await?;
    }
    Ok(())
}

async fn unknown_topic_is_not_created(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let unknown = context.unused_topic_name()?;
    let place = TopicPartition::new(unknown.clone(), 0);
    let joined = bus.subscribe(context.subscribe_request(&context.new_group()?, &unknown)?).await;
    ensure_eq!(joined.err().map(|e| e.kind()), Some(ErrorKind::NotFound), "the error of subscribe");
    let read = bus.open_reader(ReaderRequest::new([(place, SeekTo::Earliest)])?).await;
    ensure_eq!(read.err().map(|e| e.kind()), Some(ErrorKind::NotFound), "the error of open_reader");
    let topics = bus.topics().await?;
    ensure!(topics.iter().all(|topic| topic.name != unknown), "the unknown topic was created");
    Ok(())
}

async fn deleted_topic_ends_the_subscription(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    publish_to_partitions(&*bus, &topic, 2, 2).await?;
    let mut reader = context.subscribe(&*bus, &topic).await?;
    context.receive(&mut *reader, 4).await?;
    for outcome in bus.delete_topics(std::slice::from_ref(&topic)).await? {
        outcome.result?;
    }
    expect_not_found(context, &mut *reader).await
}

async fn other_topics_continue_after_a_deletion(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let (kept, deleted) = (context.create_topic(&*bus, 2).await?, context.create_topic(&*bus, 2).await?);
    publish_to_partitions(&*bus, &kept, 2, 2).await?;
    publish_to_partitions(&*bus, &deleted, 2, 2).await?;
    let request = SubscribeRequest::new(context.new_group()?, [kept.clone(), deleted.clone()])?;
    let mut reader = bus.subscribe(request).await?;
    let read = context.receive(&mut *reader, 8).await?;
    let mut positions = Offsets::new();
    for message in &read {
        positions.mark_processed(message);
    }
    for outcome in bus.delete_topics(std::slice::from_ref(&deleted)).await? {
        outcome.result?;
    }
    let reported = |batch: &Batch| {
        let events = batch.events().iter();
        events.filter(|n| matches!(n, SubscriptionEvent::TopicDeleted { topic } if *topic == deleted)).count()
    };
    let deadline = Instant::now() + context.timing().effect_timeout;
    let mut events = 0;
    while events == 0 {
        ensure!(Instant::now() < deadline, "no event TopicDeleted");
        let batch = reader.recv(10, context.timing().receive_timeout).await?;
        ensure!(batch.is_empty(), "received messages of the deleted topic");
        events += reported(&batch);
    }
    // A commit of a batch from before the deletion stores the positions of the other topic.
    let committed = reader.commit(&positions).await?;
    let stored: Vec<_> = committed.stored.iter().filter(|(p, _)| p.topic == kept).map(|(_, at)| at).collect();
    ensure_eq!(stored, [2, 2], "the stored offsets of the other topic");
    bus.send(&[message_in_partition(&kept, 0, 2), message_in_partition(&kept, 1, 2)]).await?;
    let mut arrived = Vec::new();
    while arrived.len() < 2 {
        ensure!(Instant::now() < deadline, "the other topic does not continue");
        let batch = reader.recv(10, context.timing().receive_timeout).await?;
        events += reported(&batch);
        arrived.extend(batch.iter().map(text));
    }
    arrived.sort();
    ensure_eq!(arrived, ["0#2", "1#2"], "the messages of the other topic");
    ensure_eq!(events, 1, "the number of TopicDeleted events");
    let lag = reader.assignment().await?.lag();
    ensure_eq!(lag, 0, "the lag");
    for outcome in bus.create_topics(&[TopicSpec::new(deleted.clone(), 2)?]).await? {
        outcome.result?;
    }
    publish_to_partitions(&*bus, &deleted, 2, 1).await?;
    let deadline = Instant::now() + context.timing().effect_timeout;
    let mut again = Vec::new();
    while again.len() < 2 {
        ensure!(Instant::now() < deadline, "the recreated topic is not read");
        let batch = reader.recv(10, context.timing().receive_timeout).await?;
        again.extend(batch.iter().map(|message| (message.topic.clone(), text(message))));
    }
    again.sort();
    let wanted = ["0#0", "1#0"].map(|text| (deleted.clone(), text.to_owned()));
    ensure_eq!(again, wanted, "the messages of the recreated topic");
    for outcome in bus.delete_topics(&[kept, deleted.clone()]).await? {
        outcome.result?;
    }
    expect_not_found(context, &mut *reader).await
}

/// Receives until the error of a subscription whose topics are all deleted.
async fn expect_not_found(context: &TestContext, reader: &mut dyn Subscription) -> CheckResult {
    let deadline = Instant::now() + context.timing().effect_timeout;
    loop {
        match reader.recv(10, context.timing().receive_timeout).await {
            Err(error) => {
                ensure_eq!(error.kind(), ErrorKind::NotFound, "the error kind");
                return Ok(());
            }
            Ok(batch) => ensure!(batch.is_empty(), "received messages of a deleted topic"),
        }
        ensure!(Instant::now() < deadline, "recv returns no error after every topic was deleted");
    }
}

async fn reader_without_group_reads_and_seeks(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 3, 10).await?;
    let at = |p| TopicPartition::new(topic.clone(), p);
    let from = [(at(0), SeekTo::Offset(7)), (at(1), SeekTo::Latest)];
    let mut reader = bus.open_reader(ReaderRequest::new(from)?).await?;
    let all = context.receive(&mut *reader, 3).await?;
    ensure_eq!(all.iter().map(text).collect::<Vec<_>>(), ["0#7", "0#8", "0#9"], "the messages from offset 7");
    bus.send(&[message_in_partition(&topic, 1, 10), message_in_partition(&topic, 2, 10)]).await?;
    ensure_eq!(
        text(&context.receive(&mut *reader, 1).await?[0]),
        "1#10",
        "the message after the high watermark"
    );
    context.expect_no_message(&mut *reader).await?;
    reader.seek(&[(at(0), SeekTo::Offset(9))]).await?;
    let batch = reader.recv(10, context.timing().receive_timeout * 4).await?;
    ensure_eq!(batch.iter().map(text).collect::<Vec<_>>(), ["0#9"], "the message after a seek");
    let rejected = reader.commit(batch.offsets()).await.err();
    ensure_eq!(rejected.map(|e| e.kind()), Some(ErrorKind::Unsupported), "the error of commit");
    let elsewhere = reader.seek(&[(at(2), SeekTo::Earliest)]).await.err();
    ensure_eq!(
        elsewhere.map(|e| e.kind()),
        Some(ErrorKind::InvalidInput),
        "the error of a seek of an unassigned partition"
    );
    let missing = bus.open_reader(ReaderRequest::new([(at(3), SeekTo::Earliest)])?).await.err();
    ensure_eq!(missing.map(|e| e.kind()), Some(ErrorKind::InvalidInput), "the error of an unknown partition");
    reader.close().await?;
    let closed = reader.recv(1, Duration::ZERO).await.err();
    ensure_eq!(closed.map(|e| e.kind()), Some(ErrorKind::Closed), "the error after close");
    Ok(())
}
