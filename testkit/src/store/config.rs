//! The capacity and the retention of a memory store.

use std::collections::BTreeMap;
use std::time::Duration;

use qi_core::Datasets;
use qi_core::domain::duration;
use qi_core::record::Dataset;
use qi_core::store::{Retention, StoreInfo};
use qi_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The configuration of a [`super::MemoryStore`]: the section `[store.memory]` of a configuration file.
///
/// ```
/// use qi_testkit::store::MemoryStoreConfig;
/// let config = MemoryStoreConfig::default().with_max_rows(1_000);
/// assert_eq!((config.max_rows, config.max_batch), (1_000, 1_000_000));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MemoryStoreConfig {
    /// The largest number of records in the store, in all datasets together, at least 1. A tick takes about 100 bytes;
    /// a bar or a snapshot takes two to three times as much.
    pub max_rows: usize,
    /// The largest number of records in one insert, 1 to 1,000,000.
    pub max_batch: usize,
    /// The records that are removed automatically. Defaults to none.
    pub retention: RetentionConfig,
    /// The datasets of the store. Defaults to the datasets of this library.
    #[serde(skip)]
    pub datasets: Datasets,
}

impl Default for MemoryStoreConfig {
    fn default() -> Self {
        Self {
            max_rows: 5_000_000,
            max_batch: StoreInfo::MAX_BATCH,
            retention: RetentionConfig::default(),
            datasets: Datasets::standard(),
        }
    }
}

/// The retention rules of a memory store by dataset name: `[store.memory.retention.ticks]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RetentionConfig(BTreeMap<String, RetentionRule>);

/// The retention of a dataset. If both limits are set, both apply. Without limits, all records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RetentionRule {
    /// The largest age of a record, at least 1 s. The age counts from the record's time; the time of a bar
    /// is its open time. Older records are removed at the next insert into the dataset, and at every insert that could
    /// exceed `max_rows`.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// The number of records to keep in each series, at least 1. The newest records are kept. A series is an
    /// instrument, an instrument with an interval, or a scope.
    pub max_rows_per_series: Option<usize>,
}

impl RetentionRule {
    /// The largest age, about 292 years. It covers the complete time domain.
    const MAX_AGE: Duration = Duration::from_secs(9_223_372_036);

    /// Creates a rule that keeps records up to an age.
    #[must_use]
    pub fn by_age(max_age: Duration) -> Self {
        Self { max_age: Some(max_age), ..Self::default() }
    }

    /// Creates a rule that keeps the newest `rows` records of each series.
    #[must_use]
    pub fn by_rows(rows: usize) -> Self {
        Self { max_rows_per_series: Some(rows), ..Self::default() }
    }
}

impl RetentionConfig {
    /// Sets the rule of a dataset.
    #[must_use]
    pub fn with_rule(mut self, dataset: &str, keep: RetentionRule) -> Self {
        self.0.insert(dataset.to_owned(), keep);
        self
    }

    /// Returns the rule of a dataset.
    pub fn rule(&self, dataset: Dataset) -> RetentionRule {
        self.0.get(dataset.name()).copied().unwrap_or_default()
    }

    /// Returns the rules in the form of [`StoreInfo`].
    pub(super) fn rules(&self, datasets: &Datasets) -> Vec<Retention> {
        datasets
            .iter()
            .flat_map(|dataset| {
                let keep = self.rule(dataset);
                let age = keep.max_age.map(|age| Retention::Age(dataset, age));
                let rows = keep.max_rows_per_series.map(|rows| Retention::RowsPerSeries(dataset, rows));
                age.into_iter().chain(rows)
            })
            .collect()
    }
}

impl MemoryStoreConfig {
    /// Sets the largest number of records in the store.
    #[must_use]
    pub fn with_max_rows(self, max_rows: usize) -> Self {
        Self { max_rows, ..self }
    }

    /// Sets the largest number of records in one insert.
    #[must_use]
    pub fn with_max_batch(self, max_batch: usize) -> Self {
        Self { max_batch, ..self }
    }

    /// Sets the retention of all datasets.
    #[must_use]
    pub fn with_retention(self, retention: RetentionConfig) -> Self {
        Self { retention, ..self }
    }

    /// Sets the datasets of the store.
    #[must_use]
    pub fn with_datasets(self, datasets: Datasets) -> Self {
        Self { datasets, ..self }
    }

    /// Checks that all settings are within their bounds.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        let Self { max_rows, max_batch, retention, datasets } = self;
        within("max_rows", *max_rows as u64, 1, usize::MAX as u64)?;
        within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        for (name, RetentionRule { max_age, max_rows_per_series }) in &retention.0 {
            if datasets.get(name).is_none() {
                let known: Vec<_> = datasets.iter().map(Dataset::name).collect();
                let rule = format!("must name a dataset of the store: {}", known.join(", "));
                return Err(config_error(format!("retention.{name}"), &rule, name));
            }
            let (least, most) = (Duration::from_secs(1), RetentionRule::MAX_AGE);
            if let Some(age) = max_age.filter(|age| !(least..=most).contains(age)) {
                let rule = format!("must lie from {} to {}", duration::format(least), duration::format(most));
                return Err(config_error(format!("retention.{name}.max_age"), &rule, duration::format(age)));
            }
            if let Some(rows) = max_rows_per_series {
                within(format!("retention.{name}.max_rows_per_series"), *rows as u64, 1, usize::MAX as u64)?;
            }
        }
        Ok(())
    }
}

fn within(key: impl std::fmt::Display, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(config_error(key, &format!("must lie from {least} to {most}"), value))
}

fn config_error(key: impl std::fmt::Display, rule: &str, value: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, "store.memory.config", "open")
        .with_backend("memory")
        .with_message(format_args!("{key} {rule}"))
        .with_context("key", format_args!("store.memory.{key}"))
        .with_context("value", value)
}

#[cfg(test)]
mod tests {
    use qi_core::Quote;

    use super::*;

    #[test]
    fn settings_out_of_range_are_rejected_by_key() {
        let keep = |keep| RetentionConfig::default().with_rule("ticks", keep);
        let default = MemoryStoreConfig::default;
        default().validate().unwrap();
        for (config, key) in [
            (default().with_max_rows(0), "max_rows"),
            (default().with_max_batch(0), "max_batch"),
            (default().with_max_batch(1_000_001), "max_batch"),
            (
                default().with_retention(keep(RetentionRule::by_rows(0))),
                "retention.ticks.max_rows_per_series",
            ),
            (
                default().with_retention(keep(RetentionRule::by_age(Duration::ZERO))),
                "retention.ticks.max_age",
            ),
            (default().with_retention(keep(RetentionRule::by_age(Duration::MAX))), "retention.ticks.max_age"),
            (
                default().with_retention(
                    RetentionConfig::default().with_rule("trades", RetentionRule::by_rows(1)),
                ),
                "retention.trades",
            ),
        ] {
            let error = config.validate().unwrap_err();
            let key = format!("store.memory.{key}");
            assert_eq!((error.kind(), error.context_value("key")), (ErrorKind::Config, Some(&*key)));
        }
    }

    #[test]
    fn retention_is_listed_by_rule() {
        let both = RetentionRule { max_age: Some(Duration::from_mins(1)), max_rows_per_series: Some(5) };
        let config = RetentionConfig::default().with_rule("quotes", both);
        let minute = Duration::from_mins(1);
        assert_eq!(
            config.rules(&Datasets::standard()),
            [Retention::Age(Quote::DATASET, minute), Retention::RowsPerSeries(Quote::DATASET, 5)]
        );
    }
}
