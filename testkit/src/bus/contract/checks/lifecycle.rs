//! Checks of the end of buses and subscriptions.

use std::time::Duration;

use qi_core::ErrorKind;
use qi_core::bus::{
    GroupQuery, MessageBusExt, Offsets, PublishOptions, ReaderRequest, SeekTo, TopicPartition, TopicSpec,
};
use qi_core::{Error, Selection};
use tokio::time::Instant;

use super::chapter;
use crate::bus::contract::crew::Crew;
use crate::bus::contract::lab::{fill, placed, text};
use crate::bus::contract::{Lab, Verdict, ensure, ensure_eq};

chapter! { "lifecycle":
    close_waits_for_pending_publishes [],
    close_is_idempotent [],
    closed_bus_rejects_every_call [Admin],
    subscription_close_is_idempotent [],
    close_releases_partitions_within_a_second [Coordinator],
    close_wakes_a_waiting_recv [],
    drop_without_close_commits_nothing [],
}

async fn close_waits_for_pending_publishes(lab: &Lab) -> Verdict {
    let (bus, other) = (lab.bus().await?, lab.bus().await?);
    let topic = lab.topic(&*bus, 2).await?;
    let batch: Vec<_> = (0..500).map(|n| placed(&topic, n % 2, n as usize / 2)).collect();
    let (report, closed) = futures::join!(bus.publish(&batch, PublishOptions::NONE), bus.close());
    // The close overlaps with the publish: every message has an outcome, and a delivered message is in the log.
    let unknown = closed?.unknown;
    let outcomes = report?.into_outcomes();
    ensure_eq!(outcomes.len(), 500, "answers");
    let delivered = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    ensure_eq!((delivered, unknown), (500, 0), "delivered and unknown");
    let all = lab.all_of(&*other, &topic, 2, delivered).await?;
    ensure_eq!(all.len(), delivered, "what is there");
    Ok(())
}

async fn close_is_idempotent(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 1).await?;
    let reader = lab.reader(&*bus, &topic).await?;
    bus.close().await?;
    let again = bus.close().await?;
    ensure_eq!(again.unknown, 0, "the second time nothing is left");
    drop(reader);
    bus.close().await?;
    Ok(())
}

fn is_closed<T>(result: Result<T, Error>, call: &str) -> Verdict {
    ensure_eq!(result.err().map(|e| e.kind()), Some(ErrorKind::Closed), "{call} after close");
    Ok(())
}

async fn closed_bus_rejects_every_call(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 1).await?;
    let here = TopicPartition::new(topic.clone(), 0);
    let mut member = lab.reader(&*bus, &topic).await?;
    let read = ReaderRequest::new([(here.clone(), SeekTo::Earliest)])?;
    let mut reader = bus.open_reader(read.clone()).await?;
    bus.close().await?;
    is_closed(bus.publish(&[placed(&topic, 0, 0)], PublishOptions::NONE).await, "publish")?;
    is_closed(bus.publish(&[], PublishOptions::NONE).await, "publish of nothing")?;
    is_closed(bus.subscribe(lab.request(&lab.group()?, &topic)?).await, "subscribe")?;
    is_closed(bus.open_reader(read).await, "read")?;
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

async fn subscription_close_is_idempotent(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 1).await?;
    let mut reader = lab.reader(&*bus, &topic).await?;
    reader.close().await?;
    reader.close().await?;
    is_closed(reader.recv(1, Duration::ZERO).await, "recv")?;
    is_closed(reader.assignment().await, "assignment")?;
    bus.publish_one(&placed(&topic, 0, 0)).await?;
    Ok(())
}

async fn close_releases_partitions_within_a_second(lab: &Lab) -> Verdict {
    let (leaving, staying) = (lab.bus().await?, lab.bus().await?);
    let topic = lab.topic(&*staying, 2).await?;
    let group = lab.group()?;
    let mut crew = Crew::new(lab);
    crew.join(&*leaving, lab.request(&group, &topic)?).await?;
    crew.join(&*staying, lab.request(&group, &topic)?).await?;
    crew.settle(2).await?;
    fill(&*staying, &topic, 2, 5).await?;
    crew.gather(10).await?;
    let left = crew.mates.remove(0);
    leaving.close().await?;
    let began = Instant::now();
    while crew.mates[0].own().await?.len() < 2 {
        crew.round().await?;
        ensure!(began.elapsed() < lab.timing().eventually, "nobody takes over");
    }
    ensure!(began.elapsed() <= Duration::from_secs(1), "the hand-over took {:?}", began.elapsed());
    crew.gather(10).await?;
    ensure_eq!(crew.mates[0].got.len(), 10, "what the leaver had not committed came as well");
    drop(left);
    Ok(())
}

async fn close_wakes_a_waiting_recv(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 1).await?;
    let mut reader = lab.reader(&*bus, &topic).await?;
    let wait = lab.timing().eventually;
    let began = Instant::now();
    let waiting = async { reader.recv(1, wait).await };
    let closing = async {
        lab.pause().await;
        bus.close().await
    };
    let (received, closed) = futures::join!(waiting, closing);
    closed?;
    is_closed(received, "recv")?;
    ensure!(began.elapsed() < wait / 2, "it slept on for {:?}", began.elapsed());
    Ok(())
}

async fn drop_without_close_commits_nothing(lab: &Lab) -> Verdict {
    let bus = lab.bus().await?;
    let topic = lab.topic(&*bus, 1).await?;
    fill(&*bus, &topic, 1, 3).await?;
    let group = lab.group()?;
    let mut reader = bus.subscribe(lab.request(&group, &topic)?).await?;
    lab.drain(&mut *reader, 2).await?;
    let began = std::time::Instant::now();
    drop(reader);
    ensure!(began.elapsed() < Duration::from_secs(5), "dropping blocked for {:?}", began.elapsed());
    let mut next = bus.subscribe(lab.request(&group, &topic)?).await?;
    ensure_eq!(text(&lab.drain(&mut *next, 3).await?[0]), "0#0", "nothing was committed by dropping");
    Ok(())
}
