//! The time from `publish` to `recv` at 1,000 messages a second, each published alone, with the profile for low
//! latency. The baseline is Kafka's own tool, which sends the next message after the one before has arrived.

use std::process::Command;
use std::time::{Duration, Instant};

use qi_adapters::config::Profile;
use qi_core::bus::{GroupId, Message, MessageBus, MessageBusExt, SubscribeRequest};

use crate::setup::Setup;

const EACH: Duration = Duration::from_millis(1);
const WARM_UP: usize = 1_000;
const COUNT: usize = 10_000;

pub(crate) fn run(setup: &Setup) {
    let mut rounds: Vec<(f64, f64)> = (0..setup.rounds).map(|_| ours(setup)).collect();
    rounds.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (p50, p99) = rounds[rounds.len() / 2];
    println!(
        "latency: p50 {p50:.2} ms, p99 {p99:.2} ms at 1000 a second (median of {} rounds)",
        setup.rounds
    );
    match theirs(setup) {
        Some(line) => println!("latency: Kafka's EndToEndLatency on the same broker: {line}"),
        None => println!("latency: Kafka's EndToEndLatency could not be run here"),
    }
}

fn ours(setup: &Setup) -> (f64, f64) {
    let topic = setup.topic(1);
    let bus = std::sync::Arc::new(setup.bus(Profile::LowLatency));
    let times = setup.block_on(async {
        let group = GroupId::new(topic.name.as_str()).expect("a valid name");
        let request = SubscribeRequest::new(group, [topic.name.clone()]).expect("a topic");
        let mut reader = bus.subscribe(request).await.expect("brokers that answer");
        let began = Instant::now();
        let (sender, name) = (bus.clone(), topic.name.clone());
        let sending = tokio::spawn(async move {
            let mut tick = tokio::time::interval(EACH);
            let mut sent = tokio::task::JoinSet::new();
            for _ in 0..WARM_UP + COUNT {
                tick.tick().await;
                let (bus, name) = (sender.clone(), name.clone());
                sent.spawn(async move {
                    let mut payload = vec![0; 100];
                    payload[..8].copy_from_slice(&nanos(began).to_be_bytes());
                    bus.publish_one(&Message::new(name, payload)).await
                });
                while let Some(sent) = sent.try_join_next() {
                    sent.expect("no panic").expect("brokers that answer");
                }
            }
            while let Some(sent) = sent.join_next().await {
                sent.expect("no panic").expect("brokers that answer");
            }
        });
        let mut times = Vec::with_capacity(WARM_UP + COUNT);
        while times.len() < WARM_UP + COUNT {
            let batch = reader.recv(1_000, Duration::from_secs(10)).await.expect("brokers that answer");
            let now = nanos(began);
            for message in &batch {
                let payload = message.payload.as_ref().expect("a payload");
                let sent = u64::from_be_bytes(payload[..8].try_into().expect("eight bytes"));
                times.push(now.saturating_sub(sent));
            }
        }
        sending.await.expect("no panic");
        bus.close().await.expect("an open bus");
        times
    });
    let mut times = times[WARM_UP..].to_vec();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100] as f64 / 1e6;
    (at(50), at(99))
}

fn nanos(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn theirs(setup: &Setup) -> Option<String> {
    let topic = setup.topic(1);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/backends");
    let out = Command::new(script)
        .args(["kafka-tool", "EndToEndLatency", "--bootstrap-server", &setup.brokers])
        .args(["--topic", topic.name.as_str(), "--num-records", "10000"])
        .args(["--producer-acks", "all", "--record-size", "100"])
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.lines().find(|line| line.starts_with("Percentiles")).map(str::to_owned)
}
