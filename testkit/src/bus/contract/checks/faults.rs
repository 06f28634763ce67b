//! Checks of connection failures: all guarantees still hold.

use std::time::Duration;

use qi_core::bus::{DeliveryState, MessageBusExt, Offsets, PublishOptions, TopicPartition};
use qi_core::layer::RetryConfig;
use qi_core::{ErrorKind, RetryAdvice};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::context::{message_in_partition, parse_payload, publish_to_partitions, text};
use crate::bus::contract::{CheckResult, Failure, TestContext, ensure, ensure_eq};

chapter! { "faults":
    short_outage_causes_no_loss_and_no_duplicates [ConnectionFaults],
    long_outage_reports_unknown_deliveries [ConnectionFaults],
    recv_reports_an_outage_and_continues [ConnectionFaults],
    short_outage_keeps_the_membership [ConnectionFaults],
    expired_member_gets_a_new_assignment [ConnectionFaults],
    unreachable_brokers_make_ping_retryable [ConnectionFaults],
}

async fn short_outage_causes_no_loss_and_no_duplicates(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    let other = context.bus().await?;
    let topic = context.create_topic(&*other, 2).await?;
    let sending = async {
        for round in 0..20 {
            let batch: Vec<_> = (0..50_u32)
                .map(|n| message_in_partition(&topic, n % 2, round * 25 + n as usize / 2))
                .collect();
            client.bus.send(&batch).await?;
            context.sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, Failure>(())
    };
    let interrupting = async {
        for _ in 0..3 {
            context.sleep(Duration::from_millis(70)).await;
            client.connection.interrupt().await;
            context.sleep(Duration::from_millis(500)).await;
            client.connection.restore().await;
        }
        Ok::<_, Failure>(())
    };
    futures::try_join!(sending, interrupting)?;
    let mut next = [0, 0];
    for message in context.read_all(&*other, &topic, 2, 1_000).await? {
        let wanted = &mut next[message.partition as usize];
        ensure_eq!(
            parse_payload(&message)?.1,
            *wanted,
            "the next message of partition {}",
            message.partition
        );
        *wanted += 1;
    }
    ensure_eq!(next, [500, 500], "the number of messages per partition");
    Ok(())
}

async fn long_outage_reports_unknown_deliveries(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    let other = context.bus().await?;
    let topic = context.create_topic(&*other, 1).await?;
    client.bus.publish_one(&message_in_partition(&topic, 0, 0)).await?;
    client.connection.interrupt().await;
    let batch: Vec<_> = (1..=20).map(|n| message_in_partition(&topic, 0, n)).collect();
    let began = Instant::now();
    let report = client.bus.publish(&batch, PublishOptions::NONE).await?;
    // A `Retry` layer starts attempts within its time budget and does not cancel an attempt.
    let attempt = client.bus.info().delivery_timeout * 2 + context.timing().receive_timeout;
    let limit = RetryConfig::default().max_elapsed + attempt * 2;
    ensure!(began.elapsed() <= limit, "the publish returned after {:?}", began.elapsed());
    client.connection.restore().await;
    let outcomes = report.into_outcomes();
    ensure_eq!(outcomes.len(), 20, "the number of outcomes");
    for outcome in &outcomes {
        match outcome {
            Ok(delivery) => {
                return Err(Failure::new(format_args!(
                    "a message was delivered without a connection: {delivery:?}"
                )));
            }
            Err(failure) => {
                ensure!(
                    failure.error.retry().is_retryable(),
                    "the error is not retryable: {}",
                    failure.error
                );
                ensure!(
                    matches!(failure.error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable),
                    "unexpected error kind: {}",
                    failure.error
                );
            }
        }
    }
    // A message in the state `NotSent` is not in the log. A message in the state `Unknown` is there at most once.
    context.short_sleep().await;
    client.bus.publish_one(&message_in_partition(&topic, 0, 99)).await?;
    let mut reader = context.subscribe(&*other, &topic).await?;
    let mut there = Vec::new();
    let deadline = Instant::now() + context.timing().effect_timeout;
    while there.last() != Some(&99) {
        ensure!(Instant::now() < deadline, "received only {there:?}");
        for message in reader.recv(100, context.timing().receive_timeout).await?.messages() {
            there.push(parse_payload(message)?.1);
        }
    }
    for (n, outcome) in (1..).zip(&outcomes) {
        let times = there.iter().filter(|found| **found == n).count();
        let state = outcome.as_ref().err().map(|failure| failure.state);
        let most = usize::from(state == Some(DeliveryState::Unknown));
        ensure!(times <= most, "message {n} has the state {state:?} and occurs {times} times in the log");
    }
    Ok(())
}

async fn recv_reports_an_outage_and_continues(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    let other = context.bus().await?;
    let topic = context.create_topic(&*other, 1).await?;
    let mut reader = context.subscribe(&*client.bus, &topic).await?;
    publish_to_partitions(&*other, &topic, 1, 3).await?;
    context.receive(&mut *reader, 3).await?;
    client.connection.interrupt().await;
    let deadline = Instant::now() + context.timing().effect_timeout;
    let error = loop {
        let began = Instant::now();
        match reader.recv(10, context.timing().receive_timeout * 4).await {
            Err(error) => {
                ensure!(
                    began.elapsed() >= context.timing().receive_timeout * 4,
                    "recv failed before its wait elapsed"
                );
                break error;
            }
            Ok(batch) => ensure!(batch.is_empty(), "received messages without a connection"),
        }
        ensure!(Instant::now() < deadline, "recv reports no outage");
    };
    ensure_eq!(
        (error.kind(), error.retry()),
        (ErrorKind::Unavailable, RetryAdvice::Backoff),
        "kind and retry advice of the error"
    );
    client.connection.restore().await;
    publish_to_partitions(&*other, &topic, 1, 2).await?;
    let arrived = receive_two(context, &mut *reader).await?;
    ensure_eq!(arrived, [3, 4], "the offsets after the outage");
    Ok(())
}

/// Receives two messages while the brokers may still be unavailable.
async fn receive_two(context: &TestContext, reader: &mut dyn qi_core::Subscription) -> CheckResult<Vec<u64>> {
    let deadline = Instant::now() + context.timing().effect_timeout;
    let mut arrived = Vec::new();
    while arrived.len() < 2 {
        match reader.recv(10, context.timing().receive_timeout).await {
            Ok(batch) => arrived.extend(batch.iter().map(|m| m.offset)),
            Err(error) if error.kind() == ErrorKind::Unavailable => context.short_sleep().await,
            Err(error) => return Err(error.into()),
        }
        ensure!(Instant::now() < deadline, "received only the offsets {arrived:?}");
    }
    Ok(arrived)
}

async fn short_outage_keeps_the_membership(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    let other = context.bus().await?;
    let topic = context.create_topic(&*other, 2).await?;
    let group = context.new_group()?;
    let mut reader = client.bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    publish_to_partitions(&*other, &topic, 2, 1).await?;
    let received = context.receive(&mut *reader, 2).await?;
    client.connection.interrupt().await;
    context.sleep(context.timing().session_timeout / 6).await;
    client.connection.restore().await;
    let mut held = Offsets::new();
    for message in &received {
        held.mark_processed(message);
    }
    let deadline = Instant::now() + context.timing().effect_timeout;
    let committed = loop {
        match reader.commit(&held).await {
            Ok(committed) => break committed,
            Err(error) => ensure!(error.retry().is_retryable() && Instant::now() < deadline, "{error}"),
        }
        context.short_sleep().await;
    };
    ensure_eq!(committed.stored, held, "the offsets stored after a short outage");
    Ok(())
}

async fn expired_member_gets_a_new_assignment(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    let other = context.bus().await?;
    let topic = context.create_topic(&*other, 1).await?;
    let group = context.new_group()?;
    let mut reader = client.bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    publish_to_partitions(&*other, &topic, 1, 4).await?;
    context.receive(&mut *reader, 4).await?;
    client.connection.interrupt().await;
    let mut next = other.subscribe(context.subscribe_request(&group, &topic)?).await?;
    let received = context.receive(&mut *next, 4).await?;
    let here = TopicPartition::new(topic.clone(), 0);
    next.commit(&[(here, received[1].offset)].into_iter().collect()).await?;
    client.connection.restore().await;
    next.close().await?;
    let deadline = Instant::now() + context.timing().effect_timeout;
    let mut again = Vec::new();
    while again.len() < 3 {
        match reader.recv(10, context.timing().receive_timeout).await {
            Ok(batch) => again.extend(batch.iter().map(text)),
            Err(error) => ensure!(error.kind() == ErrorKind::Unavailable, "{error}"),
        }
        ensure!(Instant::now() < deadline, "the member did not continue: {again:?}");
    }
    ensure_eq!(again, ["0#1", "0#2", "0#3"], "the messages from the commit of the other member");
    Ok(())
}

async fn unreachable_brokers_make_ping_retryable(context: &TestContext) -> CheckResult {
    let client = context.client().await?;
    client.connection.interrupt().await;
    let began = Instant::now();
    let rejected = client.bus.ping().await.err();
    let error = rejected.ok_or_else(|| Failure::new("a ping without a connection succeeded"))?;
    ensure!(
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) && error.retry().is_retryable(),
        "unexpected error: {error}"
    );
    ensure!(began.elapsed() < context.timing().effect_timeout, "the ping took {:?}", began.elapsed());
    client.connection.restore().await;
    client.bus.wait_ready(context.timing().effect_timeout).await?;
    Ok(())
}
