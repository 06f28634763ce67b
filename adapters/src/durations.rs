//! Durations by dataset, for example of `[store.clickhouse.retention]`.

use std::collections::BTreeMap;
use std::time::Duration;

use qi_core::Datasets;
use qi_core::Result;
use qi_core::domain::duration;
use serde::{Deserialize, Serialize};

use crate::validation::Rules;

/// Durations in full hours, by dataset. The keys of the configuration section are the names of the datasets. A dataset
/// without a key has no duration.
///
/// ```
/// use std::time::Duration;
/// use qi_adapters::config::ClickHouseConfig;
/// let mut config = ClickHouseConfig::from_url("http://qi:secret@127.0.0.1:8123");
/// let day = Duration::from_hours(24);
/// config.retention.set("ticks", day);
/// assert_eq!((config.retention.get("ticks"), config.retention.get("bars")), (Some(day), None));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "BTreeMap<String, DurationText>", into = "BTreeMap<String, DurationText>")]
pub struct DatasetDurations(BTreeMap<String, Duration>);

/// A duration as text with a unit, such as `"7d"`.
#[derive(Deserialize, Serialize)]
#[serde(transparent)]
struct DurationText(#[serde(with = "duration")] Duration);

impl From<BTreeMap<String, DurationText>> for DatasetDurations {
    fn from(entries: BTreeMap<String, DurationText>) -> Self {
        Self(entries.into_iter().map(|(dataset, DurationText(duration))| (dataset, duration)).collect())
    }
}

impl From<DatasetDurations> for BTreeMap<String, DurationText> {
    fn from(DatasetDurations(entries): DatasetDurations) -> Self {
        entries.into_iter().map(|(dataset, duration)| (dataset, DurationText(duration))).collect()
    }
}

impl DatasetDurations {
    /// Sets the duration of a dataset.
    pub fn set(&mut self, dataset: impl Into<String>, duration: Duration) {
        self.0.insert(dataset.into(), duration);
    }

    /// Returns the duration of a dataset, or None without an entry.
    pub fn get(&self, dataset: &str) -> Option<Duration> {
        self.0.get(dataset).copied()
    }

    /// Returns the duration of a dataset in hours. [`Self::check`] rejects durations that are not full hours.
    #[cfg(feature = "timescale")]
    pub(crate) fn hours(&self, dataset: &str) -> Option<u32> {
        self.get(dataset).map(|duration| u32::try_from(duration.as_secs() / 3_600).unwrap_or(u32::MAX))
    }

    /// Returns whether no dataset has an entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Rejects a key that is not a dataset of the program, and a value that is not a number of full hours from 1 h to
    /// [`Self::MAX`]. `section` is the path of the keys below the backend's section, for example `retention`.
    pub(crate) fn check(&self, rules: &Rules, section: &str, datasets: &Datasets) -> Result<()> {
        for (dataset, value) in &self.0 {
            let (key, shown) = (format!("{section}.{dataset}"), duration::format(*value));
            if datasets.get(dataset).is_none() {
                let known: Vec<_> = datasets.iter().map(qi_core::Dataset::name).collect();
                let rule = format!("must name a dataset of the program: {}", known.join(", "));
                return Err(rules.reject(&key, shown, rule));
            }
            let full_hours = value.subsec_nanos() == 0 && value.as_secs().is_multiple_of(3_600);
            if !full_hours || value.is_zero() || *value > Self::MAX {
                let max = duration::format(Self::MAX);
                let rule = format!("must be a number of full hours from 1h to {max}");
                return Err(rules.reject(&key, shown, rule));
            }
        }
        Ok(())
    }

    /// The longest duration: 100 years of 366 days.
    const MAX: Duration = Duration::from_hours(100 * 366 * 24);
}
