//! Records the metrics of a test, and compares each metric with the table of metrics.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::len_without_is_empty,
    reason = "shared by test files, each of which uses its part"
)]

use std::collections::BTreeMap;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use qi_core::telemetry::{METRICS, MetricKind};

/// The recorded series, as `name{label=value,..}`.
pub struct RecordedMetrics(BTreeMap<String, DebugValue>);

impl RecordedMetrics {
    fn take(snapshotter: &Snapshotter) -> Self {
        let mut seen = BTreeMap::new();
        for (key, unit, help, value) in snapshotter.snapshot().into_vec() {
            let key = key.key();
            let metric = METRICS.iter().find(|metric| metric.name == key.name());
            let metric = metric.unwrap_or_else(|| panic!("{} is not in the table", key.name()));
            let labels: Vec<_> = key.labels().map(|l| format!("{}={}", l.key(), l.value())).collect();
            let names: Vec<_> = key.labels().map(metrics::Label::key).collect();
            assert_eq!(names, metric.labels, "{}", metric.name);
            let kind = match value {
                DebugValue::Counter(_) => MetricKind::Counter,
                DebugValue::Gauge(_) => MetricKind::Gauge,
                DebugValue::Histogram(_) => MetricKind::Histogram,
            };
            assert_eq!((kind, unit, help.unwrap().as_ref()), (metric.kind, Some(metric.unit), metric.help));
            seen.insert(format!("{}{{{}}}", key.name(), labels.join(",")), value);
        }
        Self(seen)
    }

    pub fn counter(&self, key: &str) -> u64 {
        match self.0.get(key) {
            Some(DebugValue::Counter(n)) => *n,
            None => 0,
            other => panic!("{key} is {other:?}"),
        }
    }

    pub fn gauge(&self, key: &str) -> f64 {
        match self.0.get(key) {
            Some(DebugValue::Gauge(value)) => value.into_inner(),
            other => panic!("{key} is {other:?} of {:?}", self.0.keys()),
        }
    }

    pub fn histogram(&self, key: &str) -> Vec<f64> {
        match self.0.get(key) {
            Some(DebugValue::Histogram(values)) => values.iter().map(|value| value.into_inner()).collect(),
            other => panic!("{key} is {other:?} of {:?}", self.0.keys()),
        }
    }

    /// Returns the number of series.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the keys of all series.
    pub fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// Returns the sum of a counter over all its series.
    pub fn total(&self, name: &str) -> u64 {
        let of_name = self.0.keys().filter(|key| key.split('{').next() == Some(name));
        of_name.map(|key| self.counter(key)).sum()
    }
}

/// Runs `work` on paused time and returns the recorded metrics.
pub fn measured<F: Future<Output = ()>>(work: impl FnOnce() -> F) -> RecordedMetrics {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || {
        qi_core::telemetry::describe();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(work());
    });
    RecordedMetrics::take(&snapshotter)
}
