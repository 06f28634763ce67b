//! Checks of topics, groups and brokers from an operator's view.

use std::time::Duration;

use qi_core::bus::{
    GroupQuery, GroupState, MessageBusExt, Offsets, SubscribeRequest, TopicName, TopicPartition, TopicSpec,
    TopicState,
};
use qi_core::{ErrorKind, RetryAdvice, Selection};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::context::{message_in_partition, publish_to_partitions};
use crate::bus::contract::{CheckResult, Failure, TestContext, ensure, ensure_eq};

chapter! { "admin":
    create_topics_reports_one_outcome_per_topic [Admin],
    topics_have_watermarks_and_settings [Admin],
    deleted_topic_can_be_created_again [Admin],
    groups_report_commits_and_lag [Groups],
    lag_is_limited_to_the_selected_topics [Groups],
    unknown_group_returns_an_empty_list [Groups],
    ping_reports_the_brokers [],
    info_needs_no_connection [],
}

async fn create_topics_reports_one_outcome_per_topic(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let (name, other) = (context.unused_topic_name()?, context.unused_topic_name()?);
    let spec = TopicSpec::new(name.clone(), 3)?.with_retention(Duration::from_hours(48));
    let first = bus.create_topics(std::slice::from_ref(&spec)).await?;
    ensure!(
        matches!(first[0].result, Ok(TopicState::Created)),
        "the outcome for a new topic: {:?}",
        first[0]
    );
    let specs = [
        spec.clone(),
        TopicSpec::new(other.clone(), 1)?,
        TopicSpec::new(name.clone(), 4)?,
        spec.clone().with_retention(Duration::from_hours(24)),
    ];
    let outcomes = bus.create_topics(&specs[..3]).await?;
    ensure_eq!(
        outcomes.iter().map(|o| &o.topic).collect::<Vec<_>>(),
        [&name, &other, &name],
        "the topics of the outcomes"
    );
    ensure!(
        matches!(&outcomes[0].result, Ok(TopicState::Existed { differs, .. }) if differs.is_empty()),
        "the outcome for an equal topic: {:?}",
        outcomes[0]
    );
    ensure!(
        matches!(outcomes[1].result, Ok(TopicState::Created)),
        "the outcome for another new topic: {:?}",
        outcomes[1]
    );
    match &outcomes[2].result {
        Ok(state) => {
            return Err(Failure::new(format_args!("another partition count was accepted: {state:?}")));
        }
        Err(error) => {
            ensure_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Conflict, RetryAdvice::Never),
                "the kind and the retry advice"
            );
            let text = error.to_string();
            ensure!(
                text.contains('3') && text.contains('4'),
                "the error does not name both partition counts: {text}"
            );
        }
    }
    let outcomes = bus.create_topics(&specs[3..]).await?;
    match &outcomes[0].result {
        Ok(TopicState::Existed { differs, settings_hidden: false }) => {
            let retention = differs.iter().find(|diff| diff.name == "retention.ms");
            let values = retention.map(|diff| (diff.wanted.as_str(), diff.found.as_str()));
            ensure_eq!(values, Some(("86400000", "172800000")), "the difference in retention.ms");
        }
        other => return Err(Failure::new(format_args!("unexpected outcome: {other:?}"))),
    }
    Ok(())
}

async fn topics_have_watermarks_and_settings(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 3).await?;
    publish_to_partitions(&*bus, &topic, 2, 5).await?;
    context.delete_records(&TopicPartition::new(topic.clone(), 1), 2).await?;
    let topics = bus.topics().await?;
    ensure!(topics.is_sorted_by_key(|info| info.name.clone()), "the list is not ordered by name");
    let info = topics
        .iter()
        .find(|info| info.name == topic)
        .ok_or_else(|| Failure::new("the topic is not listed"))?;
    let marks: Vec<_> = info.partitions.iter().map(|p| (p.id, p.low, p.high)).collect();
    ensure_eq!(marks, [(0, 0, 5), (1, 2, 5), (2, 0, 0)], "partitions with their watermarks");
    ensure!(
        info.partitions.iter().all(|p| p.leader.is_some() && !p.replicas.is_empty()),
        "a partition has no leader or no replicas"
    );
    let setting = info.settings.as_ref().and_then(|settings| settings.get("max.message.bytes"));
    ensure_eq!(setting.map(String::as_str), Some("2097152"), "max.message.bytes");
    Ok(())
}

async fn deleted_topic_can_be_created_again(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    publish_to_partitions(&*bus, &topic, 2, 3).await?;
    let outcomes = bus.delete_topics(&[topic.clone(), context.unused_topic_name()?]).await?;
    ensure!(
        matches!(outcomes[0].result, Ok(TopicState::Deleted)),
        "the outcome for the deleted topic: {:?}",
        outcomes[0]
    );
    let unknown = outcomes[1].result.as_ref().err().map(qi_core::Error::kind);
    ensure_eq!(unknown, Some(ErrorKind::NotFound), "the error for an unknown topic");
    let deadline = Instant::now() + context.timing().effect_timeout;
    while bus.topics().await?.iter().any(|info| info.name == topic) {
        ensure!(Instant::now() < deadline, "the deleted topic is still listed");
        context.short_sleep().await;
    }
    // Some brokers delete topics asynchronously.
    let spec = TopicSpec::new(topic.clone(), 1)?;
    loop {
        match bus.create_topics(std::slice::from_ref(&spec)).await?.pop().map(|outcome| outcome.result) {
            Some(Ok(TopicState::Created)) => break,
            other => ensure!(Instant::now() < deadline, "the topic cannot be created again: {other:?}"),
        }
        context.short_sleep().await;
    }
    let delivery = bus.publish_one(&message_in_partition(&topic, 0, 7)).await?;
    ensure_eq!(delivery.offset, 0, "the first offset of the new topic");
    context.read_all(&*bus, &topic, 1, 1).await?;
    Ok(())
}

async fn groups_report_commits_and_lag(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let topic = context.create_topic(&*bus, 2).await?;
    publish_to_partitions(&*bus, &topic, 2, 10).await?;
    let group = context.new_group()?;
    let mut reader = bus.subscribe(context.subscribe_request(&group, &topic)?).await?;
    context.receive(&mut *reader, 20).await?;
    let at = |p| TopicPartition::new(topic.clone(), p);
    let done: Offsets = [(at(0), 10), (at(1), 4)].into_iter().collect();
    reader.commit(&done).await?;
    let deadline = Instant::now() + context.timing().effect_timeout;
    let info = loop {
        match context.describe_group(&*bus, &group).await? {
            Some(info) if info.state == GroupState::Stable => break info,
            other => ensure!(Instant::now() < deadline, "the group is not stable: {other:?}"),
        }
        context.short_sleep().await;
    };
    ensure_eq!(info.id, group, "the group id");
    ensure_eq!(info.members.len(), 1, "the number of members");
    ensure_eq!(info.members[0].partitions, [at(0), at(1)], "the partitions of the member");
    let rows: Vec<_> = info.partitions.iter().map(|p| (p.committed, p.end, p.lag)).collect();
    ensure_eq!(
        rows,
        [(Some(10), Some(10), Some(0)), (Some(4), Some(10), Some(6))],
        "commit, end offset and lag"
    );
    ensure_eq!(info.lag(), Some(6), "the lag of the group");
    reader.close().await?;
    loop {
        let info = context
            .describe_group(&*bus, &group)
            .await?
            .ok_or_else(|| Failure::new("the group has no commits after its last member left"))?;
        if info.state == GroupState::Empty && info.members.is_empty() {
            ensure_eq!(info.lag(), Some(6), "the lag of the group without members");
            break;
        }
        ensure!(Instant::now() < deadline, "the group still has members: {info:?}");
        context.short_sleep().await;
    }
    let all = bus.groups(&GroupQuery::new(Selection::All)).await?;
    ensure!(all.iter().any(|info| info.id == group), "the group is missing in the list of all groups");
    ensure!(all.is_sorted_by_key(|info| info.id.clone()), "the list is not ordered by name");
    Ok(())
}

async fn lag_is_limited_to_the_selected_topics(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let (left, kept) = (context.create_topic(&*bus, 1).await?, context.create_topic(&*bus, 2).await?);
    publish_to_partitions(&*bus, &left, 1, 10).await?;
    publish_to_partitions(&*bus, &kept, 2, 5).await?;
    let group = context.new_group()?;
    let timing = context.timing();
    let both = SubscribeRequest::new(group.clone(), [left.clone(), kept.clone()])?;
    let mut reader =
        bus.subscribe(both.with_timeouts(timing.session_timeout, timing.max_poll_interval)?).await?;
    context.receive(&mut *reader, 20).await?;
    let at = |topic: &TopicName, p| TopicPartition::new(topic.clone(), p);
    let done = [(at(&left, 0), 3), (at(&kept, 0), 5), (at(&kept, 1), 5)];
    reader.commit(&done.into_iter().collect()).await?;
    reader.close().await?;
    let query = GroupQuery::one(group.clone());
    let lag = async |query: &GroupQuery| {
        let info = bus.groups(query).await?.pop();
        let info = info.ok_or_else(|| Failure::new("the group is not listed"))?;
        let rows: Vec<_> = info.partitions.iter().map(|p| (p.partition.clone(), p.lag)).collect();
        Ok::<_, Failure>((info.lag(), rows))
    };
    ensure_eq!(lag(&query).await?.0, Some(7), "the lag of all topics");
    let named = query.clone().with_topics(Selection::one(kept.clone()));
    let rows = vec![(at(&kept, 0), Some(0)), (at(&kept, 1), Some(0))];
    ensure_eq!(lag(&named).await?, (Some(0), rows.clone()), "the lag of the selected topic");
    let with_unknown = Selection::only([kept.clone(), context.unused_topic_name()?])?;
    let asked = query.clone().with_topics(with_unknown);
    ensure_eq!(lag(&asked).await?, (Some(0), rows), "the lag of the selected topic and an unknown topic");
    let elsewhere = query.with_topics(Selection::one(context.unused_topic_name()?));
    ensure!(
        bus.groups(&elsewhere).await?.is_empty(),
        "a group without commits in the selected topic is listed"
    );
    // Now the group has a member that owns partitions of another topic.
    let mut reader = bus.subscribe(context.subscribe_request(&group, &kept)?).await?;
    let asked = GroupQuery::one(group.clone()).with_topics(Selection::one(left.clone()));
    ensure_eq!(
        lag(&asked).await?,
        (Some(7), vec![(at(&left, 0), Some(7))]),
        "the lag of the unsubscribed topic"
    );
    reader.close().await?;
    Ok(())
}

async fn unknown_group_returns_an_empty_list(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let found = bus.groups(&GroupQuery::one(context.new_group()?)).await?;
    ensure!(found.is_empty(), "an unknown group is listed: {found:?}");
    Ok(())
}

async fn ping_reports_the_brokers(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let status = bus.wait_ready(context.timing().effect_timeout).await?;
    ensure!(status.brokers >= 1, "no broker answered");
    Ok(())
}

async fn info_needs_no_connection(context: &TestContext) -> CheckResult {
    let bus = context.bus().await?;
    let info = bus.info();
    ensure!(!info.backend.is_empty() && info.max_message_bytes > 0, "invalid info: {info:?}");
    ensure!(!info.delivery_timeout.is_zero(), "invalid info: {info:?}");
    ensure!(!format!("{bus}").is_empty(), "the bus has an empty Display");
    Ok(())
}
