//! How large a memory store may grow, and what it removes by itself.

use std::time::Duration;

use qi_core::store::{Dataset, Retention, StoreInfo};
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
    /// The most records that the store holds, of all datasets together; at least 1. A tick takes about 100
    /// bytes, a bar or a snapshot two to three times that.
    pub max_rows: usize,
    /// The largest batch of one insert, 1 to 1,000,000.
    pub max_batch: usize,
    /// What is removed without being asked. By default nothing.
    pub retention: RetentionConfig,
}

impl Default for MemoryStoreConfig {
    fn default() -> Self {
        Self { max_rows: 5_000_000, max_batch: StoreInfo::MAX_BATCH, retention: RetentionConfig::default() }
    }
}

/// What a memory store removes by itself, of each dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the names of the datasets are the documentation")]
pub struct RetentionConfig {
    pub ticks: KeepConfig,
    pub quotes: KeepConfig,
    pub bars: KeepConfig,
    pub snapshots: KeepConfig,
}

/// What a dataset keeps. Both rules hold where both are given; without one everything stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepConfig {
    /// Records whose time (of a bar the open time) is more than so many seconds before the clock go, at the next
    /// insert into the dataset; at least 1.
    pub max_age_secs: Option<u64>,
    /// Of each series (instrument; instrument and interval; scope) only the newest so many records stay; at
    /// least 1.
    pub max_rows_per_series: Option<usize>,
}

impl KeepConfig {
    /// The largest age that is a rule: about 292 years, the whole domain of time.
    const MAX_AGE_SECS: u64 = 9_223_372_036;

    /// Keep what is at most so old.
    #[must_use]
    pub fn by_age_secs(secs: u64) -> Self {
        Self { max_age_secs: Some(secs), ..Self::default() }
    }

    /// Keep the newest so many of each series.
    #[must_use]
    pub fn by_rows(rows: usize) -> Self {
        Self { max_rows_per_series: Some(rows), ..Self::default() }
    }

    pub(super) fn max_age(self) -> Option<Duration> {
        self.max_age_secs.map(Duration::from_secs)
    }
}

impl RetentionConfig {
    /// The rule of one dataset.
    pub fn of(&self, dataset: Dataset) -> KeepConfig {
        match dataset {
            Dataset::Ticks => self.ticks,
            Dataset::Quotes => self.quotes,
            Dataset::Bars => self.bars,
            Dataset::Snapshots => self.snapshots,
        }
    }

    /// The rules as [`StoreInfo`] shows them.
    pub(super) fn rules(&self) -> Vec<Retention> {
        Dataset::ALL
            .into_iter()
            .flat_map(|dataset| {
                let keep = self.of(dataset);
                let age = keep.max_age().map(|age| Retention::Age(dataset, age));
                let rows = keep.max_rows_per_series.map(|rows| Retention::RowsPerSeries(dataset, rows));
                age.into_iter().chain(rows)
            })
            .collect()
    }
}

impl MemoryStoreConfig {
    /// With room for so many records.
    #[must_use]
    pub fn with_max_rows(self, max_rows: usize) -> Self {
        Self { max_rows, ..self }
    }

    /// With batches of at most so many records.
    #[must_use]
    pub fn with_max_batch(self, max_batch: usize) -> Self {
        Self { max_batch, ..self }
    }

    /// With this retention.
    #[must_use]
    pub fn with_retention(self, retention: RetentionConfig) -> Self {
        Self { retention, ..self }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` that names the key and its value.
    pub fn validate(&self) -> Result<()> {
        let Self { max_rows, max_batch, retention } = self;
        within("max_rows", *max_rows as u64, 1, usize::MAX as u64)?;
        within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        for dataset in Dataset::ALL {
            let KeepConfig { max_age_secs, max_rows_per_series } = retention.of(dataset);
            if let Some(secs) = max_age_secs {
                within(format!("retention.{dataset}.max_age_secs"), secs, 1, KeepConfig::MAX_AGE_SECS)?;
            }
            if let Some(rows) = max_rows_per_series {
                let key = format!("retention.{dataset}.max_rows_per_series");
                within(key, rows as u64, 1, usize::MAX as u64)?;
            }
        }
        Ok(())
    }
}

fn within(key: impl std::fmt::Display, value: u64, least: u64, most: u64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "store.memory.config", "open")
        .with_backend("memory")
        .with_message(format_args!("{key} must lie from {least} to {most}"))
        .with_context("key", key)
        .with_context("value", value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_checked_and_named() {
        let keep = |ticks| RetentionConfig { ticks, ..RetentionConfig::default() };
        let default = MemoryStoreConfig::default;
        default().validate().unwrap();
        for (config, key) in [
            (default().with_max_rows(0), "max_rows"),
            (default().with_max_batch(0), "max_batch"),
            (default().with_max_batch(1_000_001), "max_batch"),
            (default().with_retention(keep(KeepConfig::by_rows(0))), "retention.ticks.max_rows_per_series"),
            (default().with_retention(keep(KeepConfig::by_age_secs(0))), "retention.ticks.max_age_secs"),
            (
                default().with_retention(keep(KeepConfig::by_age_secs(u64::MAX))),
                "retention.ticks.max_age_secs",
            ),
        ] {
            let error = config.validate().unwrap_err();
            assert_eq!((error.kind(), error.context_value("key")), (ErrorKind::Config, Some(key)));
        }
    }

    #[test]
    fn retention_is_shown_rule_by_rule() {
        let both = KeepConfig { max_age_secs: Some(60), max_rows_per_series: Some(5) };
        let config = RetentionConfig { quotes: both, ..RetentionConfig::default() };
        let minute = Duration::from_mins(1);
        assert_eq!(
            config.rules(),
            [Retention::Age(Dataset::Quotes, minute), Retention::RowsPerSeries(Dataset::Quotes, 5)]
        );
    }
}
