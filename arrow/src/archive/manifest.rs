//! The manifest of a data file.

use qi_core::record::{Dataset, Owner, SeriesKey, SeriesType};
use qi_core::{Error, Exchange, Instrument, Interval, Result, Symbol};
use serde::{Deserialize, Serialize};

use super::{Period, PeriodLength};
use crate::error::corrupt;
use crate::parquet_file::CREATED_BY;
use crate::{Content, Decimals};

/// The version of the layout of an archive.
const FORMAT: u32 = 1;

/// The description of one data file, which is stored in the same folder as `_<period>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of this format: 1.
    pub format: u32,
    /// The dataset.
    pub dataset: String,
    /// The version of the dataset.
    pub version: u16,
    /// The exchange, in a dataset of instruments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// The symbol, in a dataset of instruments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The name of the series, in other datasets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The interval, if the series has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// The day or the month.
    pub period: Period,
    /// The form of decimal values.
    pub decimals: Decimals,
    /// The program that wrote the file.
    pub created_by: String,
    /// The number, the range and the digest of the records.
    #[serde(flatten)]
    pub content: Content,
    /// The size of the data file in bytes.
    pub bytes: u64,
    /// The SHA-256 of the data file in hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    pub(super) fn new(
        dataset: Dataset,
        series: &SeriesKey,
        period: Period,
        decimals: Decimals,
        (content, bytes, sha256): (Content, u64, String),
    ) -> Self {
        let instrument = series.owner.instrument();
        Self {
            format: FORMAT,
            dataset: dataset.name().to_owned(),
            version: dataset.version(),
            exchange: instrument.map(|instrument| instrument.exchange().to_string()),
            symbol: instrument.map(|instrument| instrument.symbol().to_string()),
            name: series.owner.name().map(str::to_owned),
            interval: series.interval.map(|interval| interval.to_string()),
            period,
            decimals,
            created_by: CREATED_BY.to_owned(),
            content,
            bytes,
            sha256,
        }
    }

    /// Parses a manifest.
    ///
    /// # Errors
    /// `CorruptData` for text that is no manifest, or for a manifest of a later version of this library.
    pub fn parse(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let broken =
            |e: serde_json::Error| corrupt("archive.manifest", "the manifest cannot be read").with_source(e);
        let Format { format } = serde_json::from_slice(json).map_err(broken)?;
        if format != FORMAT {
            let message = format_args!("the manifest has the format {format}; this program reads {FORMAT}");
            return Err(corrupt("archive.manifest.format", message));
        }
        serde_json::from_slice(json).map_err(broken)
    }

    /// Returns the series of the data file.
    ///
    /// # Errors
    /// `CorruptData` or `InvalidInput` for a series that the dataset cannot have.
    pub fn series(&self, dataset: Dataset) -> Result<SeriesKey> {
        let owner = match (dataset.series(), &self.exchange, &self.symbol, &self.name) {
            (SeriesType::Instrument, Some(exchange), Some(symbol), None) => {
                Owner::Instrument(Instrument::new(Exchange::new(exchange)?, Symbol::new(symbol)?))
            }
            (SeriesType::Name { .. }, None, None, Some(name)) => Owner::Name(name.as_str().into()),
            _ => {
                return Err(corrupt(
                    "archive.manifest",
                    "the manifest has another type of series than its dataset",
                ));
            }
        };
        let interval = self.interval.as_deref().map(str::parse::<Interval>).transpose()?;
        if interval.is_some() != dataset.interval().is_some() {
            return Err(corrupt(
                "archive.manifest",
                "the manifest has another type of series than its dataset",
            ));
        }
        let series = SeriesKey { owner, interval };
        dataset.check_series(&series)?;
        Ok(series)
    }
}

/// The settings of an archive, stored as `_archive.json` by its first export. Later exports must have the same
/// settings, so that an archive has no file twice and no mixture of exact and inexact values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) format: u32,
    pub(super) period: PeriodLength,
    pub(super) decimals: Decimals,
}

impl Settings {
    pub(super) fn new(period: PeriodLength, decimals: Decimals) -> Self {
        Self { format: FORMAT, period, decimals }
    }

    pub(super) fn check(&self, wanted: &Self) -> Result<()> {
        if self == wanted {
            return Ok(());
        }
        let show =
            |s: &Self| format!("{{format {}, period {:?}, decimals {:?}}}", s.format, s.period, s.decimals);
        let difference = if self.format != wanted.format {
            format!("which has the format {}; this program writes {}", self.format, wanted.format)
        } else if self.period == wanted.period {
            match self.decimals {
                Decimals::Exact => "which has exact decimals; omit --floats".to_owned(),
                Decimals::Float64 => "which has doubles; add --floats".to_owned(),
            }
        } else {
            let period = match self.period {
                PeriodLength::Day => "day",
                PeriodLength::Month => "month",
            };
            format!("which has one file for each {period}; use --period {period}")
        };
        let rule = format_args!("must be the settings of the archive, {difference}");
        Err(Error::invalid("archive.settings", "settings", show(wanted), rule))
    }
}
