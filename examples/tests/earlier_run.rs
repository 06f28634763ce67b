//! A job waits for its own topic only.
#![allow(clippy::unwrap_used, reason = "a test")]
use qi_core::bus::{MessageBusExt, SubscribeRequest, TopicCatalogue, TopicName};
use qi_core::{MessageBus, PriceStore, PriceTick, Timestamp};
use qi_examples::pipeline::{Data, Job, source};
use qi_testkit::{bus::MemoryBus, store::MemoryStore};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn candles_do_not_wait_for_the_ticks_of_an_earlier_run() {
    let bus: Arc<dyn MessageBus> = Arc::new(MemoryBus::default());
    bus.create_catalogue(&TopicCatalogue::standard().unwrap()).await.unwrap();
    // An earlier run was stopped: 10 ticks published, 3 committed.
    let request =
        SubscribeRequest::new("pipeline-writer".parse().unwrap(), [TopicName::new("crypto-prices").unwrap()])
            .unwrap();
    let mut reader = bus.subscribe(request).await.unwrap();
    let at = Timestamp::from_secs(1_700_000_000).unwrap();
    let ticks: Vec<_> = (0..10)
        .map(|n| PriceTick::new("x:Y".parse().unwrap(), at, n, "1".parse().unwrap()).unwrap())
        .collect();
    bus.send_records(&ticks, None).await.unwrap();
    let batch = reader.recv(3, Duration::from_secs(1)).await.unwrap();
    reader.commit(batch.offsets()).await.unwrap();
    reader.close().await.unwrap();

    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "timestamp,open,high,low,close,volume\n2022-01-01 00:00:00,1,1,1,1,1\n2022-01-01 00:01:00,1,1,1,1,1\n"
    )
    .unwrap();
    let (bars, interval) = source::candles(file.path(), &"x:Y".parse().unwrap()).unwrap();
    let store: Arc<dyn PriceStore> = Arc::new(MemoryStore::default());
    let job = Job::new(store, bus, Data::Bars(bars, interval)).unwrap();
    let ended = tokio::time::timeout(Duration::from_mins(10), job.run()).await;
    assert_eq!(ended.expect("the run exceeded its time limit").unwrap().stored, 2);
}
