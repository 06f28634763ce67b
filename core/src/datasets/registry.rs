//! The datasets of a program.

use super::{
    Bar, BookSnapshot, FundingRate, Liquidation, MarkPrice, MarketSnapshot, OpenInterest, PriceTick, Quote,
};
use crate::record::{Dataset, Record};
use crate::{Error, ErrorKind, Result};

/// The datasets that a program stores, with unique names. A store creates the tables of
/// these datasets and rejects others.
///
/// ```
/// use qi_core::Datasets;
/// use qi_core::{PriceTick, Record};
/// let datasets = Datasets::standard();
/// assert_eq!(datasets.get("ticks"), Some(PriceTick::DATASET));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datasets(Vec<Dataset>);

impl Default for Datasets {
    fn default() -> Self {
        Self::standard()
    }
}

impl Datasets {
    /// Returns ticks, quotes, bars and snapshots, the default datasets of a store.
    pub fn standard() -> Self {
        Self(vec![PriceTick::DATASET, Quote::DATASET, Bar::DATASET, MarketSnapshot::DATASET])
    }

    /// Returns all datasets of this library: the default datasets, then funding rates, open interest, liquidations,
    /// mark prices and book snapshots.
    pub fn built_in() -> Self {
        let mut all = Self::standard();
        all.0.extend([
            FundingRate::DATASET,
            OpenInterest::DATASET,
            Liquidation::DATASET,
            MarkPrice::DATASET,
            BookSnapshot::DATASET,
        ]);
        all
    }

    /// Adds the dataset of a declared record.
    ///
    /// # Errors
    /// `InvalidInput` for a description with invalid names or bounds, or for a name that another dataset already has.
    pub fn with<R: Record>(self) -> Result<Self> {
        self.with_dataset(R::DATASET)
    }

    /// Adds a dataset by its description.
    ///
    /// # Errors
    /// As [`Datasets::with`].
    pub fn with_dataset(mut self, dataset: Dataset) -> Result<Self> {
        dataset.check()?;
        match self.get(dataset.name()) {
            Some(known) if known == dataset => Ok(self),
            Some(_) => {
                let rule = "must have a unique name";
                Err(Error::invalid("record.datasets.name", "dataset", dataset, rule))
            }
            None => {
                self.0.push(dataset);
                Ok(self)
            }
        }
    }

    /// Returns the dataset with this name.
    pub fn get(&self, name: &str) -> Option<Dataset> {
        self.iter().find(|dataset| dataset.name() == name)
    }

    /// Returns the position of a dataset in the order of registration. Stores call it before any I/O.
    ///
    /// # Errors
    /// `SchemaMismatch` for a dataset that is not registered, or is registered with other columns.
    pub fn position(&self, dataset: Dataset) -> Result<usize> {
        match self.0.iter().position(|known| known.name() == dataset.name()) {
            Some(at) if self.0[at] == dataset => Ok(at),
            found => {
                let rule = if found.is_some() {
                    "the store was opened with another declaration of this dataset"
                } else {
                    "the store was not opened with this dataset: register it with Datasets::with"
                };
                Err(Error::new(ErrorKind::SchemaMismatch, "store.dataset.unknown", "call")
                    .with_message(rule)
                    .with_context("dataset", dataset))
            }
        }
    }

    /// Returns the number of datasets.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no datasets.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns an empty list of datasets.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Returns the datasets in the order of registration.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Dataset> + '_ {
        self.0.iter().copied()
    }
}
