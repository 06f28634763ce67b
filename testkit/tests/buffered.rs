//! `Buffered` on paused time: the times of writes, waiting callers, and the result of each record.
#![allow(clippy::unwrap_used, clippy::unnecessary_wraps, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use qi_core::{BatchSink, Buffered, BufferedConfig, Error, ErrorKind, Result};
use tokio::time::{Instant, sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

/// A sink that writes numbers with a delay. It rejects a batch that contains 13, and the record 7 alone.
#[derive(Clone, Default)]
struct Numbers {
    batches: Arc<Mutex<Vec<Vec<u32>>>>,
    pause: Duration,
}

impl Numbers {
    fn batches(&self) -> Vec<Vec<u32>> {
        self.batches.lock().unwrap().clone()
    }
}

#[async_trait]
impl BatchSink<u32> for Numbers {
    type Output = u32;

    async fn write(&self, batch: &[u32]) -> Result<Vec<Result<u32>>> {
        sleep(self.pause).await;
        assert!(!batch.contains(&666), "the sink panics on purpose");
        if batch.contains(&13) {
            return Err(Error::new(ErrorKind::Unavailable, "test.thirteen", "write"));
        }
        self.batches.lock().unwrap().push(batch.to_vec());
        let answer = |n: &u32| match n {
            7 => Err(Error::new(ErrorKind::InvalidInput, "test.seven", "write")),
            n => Ok(n * 10),
        };
        let short = usize::from(batch.contains(&99));
        Ok(batch.iter().skip(short).map(answer).collect())
    }

    fn size(&self, record: &u32) -> usize {
        *record as usize
    }
}

fn config() -> BufferedConfig {
    BufferedConfig::default()
        .with_max_records(3)
        .with_max_bytes(1_000)
        .with_max_delay(Duration::from_millis(50))
}

#[tokio::test(start_paused = true)]
async fn full_batch_is_written_and_every_record_gets_a_result() {
    let sink = Numbers::default();
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let since = Instant::now();
    let mut receipts = Vec::new();
    for n in 1..=6 {
        receipts.push(buffer.add(n).await.unwrap());
    }
    for (n, receipt) in (1..).zip(receipts) {
        assert_eq!(receipt.await.unwrap(), n * 10);
    }
    assert_eq!(since.elapsed(), Duration::ZERO);
    assert_eq!(sink.batches(), [[1, 2, 3], [4, 5, 6]]);
}

#[tokio::test(start_paused = true)]
async fn batch_is_written_after_the_delay_of_its_first_record() {
    let sink = Numbers::default();
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let since = Instant::now();
    let first = buffer.add(1).await.unwrap();
    sleep(Duration::from_millis(30)).await;
    let _second = buffer.add(2).await.unwrap();
    first.await.unwrap();
    assert_eq!(since.elapsed(), Duration::from_millis(50));
    assert_eq!(sink.batches(), [[1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn batch_is_written_at_the_byte_limit_and_a_large_record_alone() {
    let sink = Numbers::default();
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let since = Instant::now();
    let (a, b) = (buffer.add(600).await.unwrap(), buffer.add(400).await.unwrap());
    a.await.unwrap();
    b.await.unwrap();
    let giant = buffer.add(5_000).await.unwrap();
    giant.await.unwrap();
    assert_eq!(since.elapsed(), Duration::ZERO);
    assert_eq!(sink.batches(), [vec![600, 400], vec![5_000]]);
}

#[tokio::test(start_paused = true)]
async fn full_buffer_makes_the_caller_wait() {
    let sink = Numbers { pause: SECOND, ..Numbers::default() };
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    // Three records are being written and three wait in the channel. The seventh must wait for the first batch.
    for n in 1..=6 {
        let _receipt = buffer.add(n).await.unwrap();
    }
    let since = Instant::now();
    let _receipt = buffer.add(8).await.unwrap();
    assert_eq!(since.elapsed(), SECOND);

    let bytes = Buffered::new(sink, config().with_max_records(100)).unwrap();
    let _receipt = bytes.add(999).await.unwrap();
    assert!(timeout(SECOND / 2, bytes.add(2)).await.is_err(), "only one byte of room is left");
}

#[tokio::test(start_paused = true)]
async fn failed_batch_fails_its_records_and_others_continue() {
    let sink = Numbers::default();
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let mut receipts = Vec::new();
    for n in [1, 13, 2, 7, 8, 9] {
        receipts.push(buffer.add(n).await.unwrap());
    }
    let mut codes = Vec::new();
    for receipt in receipts {
        codes.push(receipt.await.err().map(|e| e.code().to_owned()));
    }
    let (bad, seven) = (Some("test.thirteen".to_owned()), Some("test.seven".to_owned()));
    assert_eq!(codes, [bad.clone(), bad.clone(), bad, seven, None, None]);
}

#[tokio::test(start_paused = true)]
async fn flush_returns_the_first_failure_since_the_previous_flush() {
    let buffer = Buffered::new(Numbers::default(), config()).unwrap();
    for n in [13, 7] {
        drop(buffer.add(n).await.unwrap());
    }
    assert_eq!(buffer.flush(SECOND).await.unwrap_err().code(), "test.thirteen");
    drop(buffer.add(7).await.unwrap());
    assert_eq!(buffer.flush(SECOND).await.unwrap_err().code(), "test.seven");
    drop(buffer.add(1).await.unwrap());
    buffer.flush(SECOND).await.unwrap();
    buffer.flush(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn flush_skips_the_delay_and_reports_a_timeout() {
    let sink = Numbers { pause: SECOND, ..Numbers::default() };
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let _receipt = buffer.add(1).await.unwrap();
    assert_eq!(buffer.flush(SECOND / 2).await.unwrap_err().kind(), ErrorKind::Timeout);
    buffer.flush(SECOND).await.unwrap();
    assert_eq!(sink.batches(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn close_drains_the_buffer_is_idempotent_and_rejects_new_records() {
    let sink = Numbers { pause: SECOND, ..Numbers::default() };
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let mut receipts = Vec::new();
    for n in 1..=5 {
        receipts.push(buffer.add(n).await.unwrap());
    }
    buffer.close(10 * SECOND).await.unwrap();
    assert_eq!(sink.batches(), [vec![1, 2, 3], vec![4, 5]]);
    buffer.close(SECOND).await.unwrap();
    assert_eq!(buffer.add(6).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(buffer.flush(SECOND).await.unwrap_err().kind(), ErrorKind::Closed);
    for receipt in receipts {
        receipt.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_close_waits_for_the_end() {
    let sink = Numbers { pause: 10 * SECOND, ..Numbers::default() };
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    for n in [1, 7] {
        let _receipt = buffer.add(n).await.unwrap();
    }
    assert!(timeout(SECOND, buffer.close(60 * SECOND)).await.is_err(), "the first future is dropped");
    assert_eq!(buffer.close(SECOND).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(sink.batches().is_empty());
    let (one, two) = tokio::join!(buffer.close(60 * SECOND), buffer.close(60 * SECOND));
    assert_eq!(sink.batches(), [[1, 7]]);
    for outcome in [one, two, buffer.close(SECOND).await] {
        assert_eq!(outcome.unwrap_err().code(), "test.seven", "every call has the same result");
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_caller_skips_the_delay_of_other_records() {
    let sink = Numbers::default();
    let config = config().with_max_delay(Duration::MAX);
    let buffer = Buffered::new(sink.clone(), config).unwrap();
    let since = Instant::now();
    let _one = buffer.add(600).await.unwrap();
    let _two = buffer.add(601).await.unwrap();
    assert_eq!((since.elapsed(), sink.batches()), (Duration::ZERO, vec![vec![600]]));
    buffer.close(SECOND).await.unwrap();
    assert_eq!(sink.batches().concat(), [600, 601]);
}

#[tokio::test(start_paused = true)]
async fn unpolled_add_does_not_block_close() {
    let sink = Numbers { pause: SECOND, ..Numbers::default() };
    let buffer = Buffered::new(sink, config()).unwrap();
    for n in 1..=6 {
        let _receipt = buffer.add(n).await.unwrap();
    }
    let mut waiting = Box::pin(buffer.add(8));
    assert!(futures::poll!(&mut waiting).is_pending());
    buffer.close(10 * SECOND).await.unwrap();
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn close_fails_callers_that_wait_for_space() {
    let sink = Numbers { pause: SECOND, ..Numbers::default() };
    let buffer = Arc::new(Buffered::new(sink, config()).unwrap());
    let _receipt = buffer.add(1_000).await.unwrap();
    let waiting = tokio::spawn({
        let buffer = Arc::clone(&buffer);
        async move { buffer.add(1).await.map(drop) }
    });
    tokio::task::yield_now().await;
    buffer.close(10 * SECOND).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn dropped_add_discards_only_its_record() {
    let sink = Numbers { pause: SECOND, ..Numbers::default() };
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    for n in 1..=6 {
        let _receipt = buffer.add(n).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(10), buffer.add(100)).await.is_err());
    let _receipt = buffer.add(8).await.unwrap();
    buffer.close(10 * SECOND).await.unwrap();
    assert_eq!(sink.batches().concat(), [1, 2, 3, 4, 5, 6, 8]);
}

#[tokio::test(start_paused = true)]
async fn panicking_or_short_sink_is_reported_and_never_counts_as_written() {
    let buffer = Buffered::new(Numbers::default(), config()).unwrap();
    let receipt = buffer.add(666).await.unwrap();
    assert_eq!(receipt.await.unwrap_err().code(), "buffered.worker");
    assert_eq!(buffer.add(1).await.unwrap_err().code(), "buffered.worker");

    let buffer = Buffered::new(Numbers::default(), config()).unwrap();
    let receipt = buffer.add(99).await.unwrap();
    assert_eq!(receipt.await.unwrap_err().code(), "buffered.results");
    assert_eq!(buffer.close(SECOND).await.unwrap_err().code(), "buffered.results");
}

#[tokio::test(start_paused = true)]
async fn dropped_buffer_writes_its_records() {
    let sink = Numbers::default();
    let buffer = Buffered::new(sink.clone(), config()).unwrap();
    let receipt = buffer.add(1).await.unwrap();
    drop(buffer);
    receipt.await.unwrap();
    assert_eq!(sink.batches(), [[1]]);
}

#[tokio::test]
async fn limits_of_zero_are_rejected() {
    assert!(Buffered::new(Numbers::default(), config().with_max_records(0)).is_err());
    assert!(Buffered::new(Numbers::default(), config().with_max_bytes(0)).is_err());
}
