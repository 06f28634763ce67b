//! Seeded stress tests of the memory bus under the full stack, on paused time. No message is lost, and only messages in
//! an unknown state are duplicated.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use qi_core::MessageBus;
use qi_core::bus::{TopicName, TopicSpec};
use qi_testkit::bus::MemoryBus;
use qi_testkit::bus::contract::stress_test;

#[tokio::test(start_paused = true)]
async fn stress_causes_no_loss_and_only_unknown_messages_have_duplicates() {
    for seed in [1, 7, 20_240_101] {
        let bus: Arc<dyn MessageBus> = Arc::new(MemoryBus::default());
        let topic = TopicName::new("storm").unwrap();
        let made = bus.create_topics(&[TopicSpec::new(topic.clone(), 6).unwrap()]).await.unwrap();
        assert!(made[0].result.is_ok());
        let limit = Duration::from_secs(5);
        let report = stress_test(bus, &topic, "readers".parse().unwrap(), 10_000, seed, limit).await.unwrap();
        assert!(report.faults > 50, "{report}");
        assert!(report.duplicates > 0 && report.duplicates < report.unknown, "seed {seed}: {report}");
    }
}
