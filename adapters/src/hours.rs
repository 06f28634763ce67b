//! A number of hours for each dataset.

use std::collections::BTreeMap;

use qi_core::Datasets;
use qi_core::Result;
use serde::Deserialize;

use crate::rules::Rules;

/// A number of hours for each dataset. The keys of its section have the form `<dataset>_hours`.
///
/// ```
/// use qi_adapters::config::ClickHouseConfig;
/// let mut config = ClickHouseConfig::from_url("http://qi:secret@127.0.0.1:8123");
/// config.retention.set("ticks", 24);
/// assert_eq!((config.retention.get("ticks"), config.retention.get("bars")), (Some(24), None));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, u32>")]
pub struct DatasetHours(BTreeMap<String, u32>);

impl TryFrom<BTreeMap<String, u32>> for DatasetHours {
    type Error = String;

    fn try_from(keys: BTreeMap<String, u32>) -> std::result::Result<Self, String> {
        let name = |(key, hours): (String, u32)| match key.strip_suffix("_hours") {
            Some(dataset) => Ok((dataset.to_owned(), hours)),
            None => Err(format!("unknown key `{key}`; known here: <dataset>_hours")),
        };
        keys.into_iter().map(name).collect::<std::result::Result<_, _>>().map(Self)
    }
}

impl DatasetHours {
    /// Sets the number of hours of a dataset.
    pub fn set(&mut self, dataset: impl Into<String>, hours: u32) {
        self.0.insert(dataset.into(), hours);
    }

    /// Returns the number of hours of a dataset.
    pub fn get(&self, dataset: &str) -> Option<u32> {
        self.0.get(dataset).copied()
    }

    /// Returns whether no dataset has an entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that each key of the section names a registered dataset, and that its value lies from 1 to `most`.
    pub(crate) fn check(&self, rules: &Rules, section: &str, datasets: &Datasets, most: u64) -> Result<()> {
        for (dataset, hours) in &self.0 {
            let key = format!("{section}.{dataset}_hours");
            if datasets.get(dataset).is_none() {
                let known: Vec<_> = datasets.iter().map(|dataset| format!("{dataset}_hours")).collect();
                let known = known.join(", ");
                return Err(rules.refuse(
                    &key,
                    hours,
                    format_args!("must name a dataset of the program: {known}"),
                ));
            }
            rules.within(&key, (*hours).into(), 1, most)?;
        }
        Ok(())
    }
}
