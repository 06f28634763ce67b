//! Exact conversion of records to Apache Arrow and Parquet, and back.
//!
//! A decimal of the domain is an `i128` in units of 10⁻¹⁸, which is the value of Arrow's `Decimal128(38, 18)`. The
//! conversion therefore needs no rounding, and the records that come back are equal to the records that went out. The
//! conversion works for every dataset, because the schema follows from the declaration of the dataset.
//!
//! # Concepts
//! - A **record batch** holds records of one dataset, one Arrow column for each column of the dataset.
//! - A **file** is a Parquet file of records of one dataset.
//! - An **archive** is a folder of immutable Parquet files, each with the records of one series and period, and
//!   manifests with their digests.
//!
//! # A first program
//! ```
//! use qi_core::record::{Record as _, RecordVec, Slice};
//! use qi_core::{PriceTick, Timestamp};
//!
//! let ts = Timestamp::from_millis(1_610_064_000_278)?;
//! let ticks = [PriceTick::new("binance:BTC-USDT".parse()?, ts, 553_287_559, "39432.48".parse()?)?];
//! let batch = qi_arrow::encode(&Slice::new(&ticks)?)?;
//! assert_eq!(batch.schema().field(4).name(), "price");
//!
//! let back: RecordVec = qi_arrow::decode(PriceTick::DATASET, &batch)?;
//! assert_eq!(back.as_slice::<PriceTick>()?, ticks);
//! # Ok::<(), qi_core::Error>(())
//! ```
//!
//! # Schema
//! [The page on Arrow and Parquet](qi_core::guide::columnar#schema) has the Arrow type of each column. The columns are in
//! the order of the declaration: series, interval, time, sequence number, values. The metadata of the schema has the name
//! and the version of the dataset as `qi.dataset` and `qi.version`.
//!
//! # Features
//! | feature | default | content |
//! | --- | --- | --- |
//! | none | | [`schema`], [`encode`] and [`decode`] for record batches, [`range_batches`] and [`insert_batch`] for stores |
//! | `parquet` | no | [`ParquetWriter`] and [`ParquetReader`]: one file of records of one dataset |
//! | `archive` | no | [`Archive`]: a folder of immutable Parquet files with manifests, [`export`] and [`import`] |
//! | `cloud` | no | archives in S3, Google Cloud Storage and Azure Blob Storage |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod decode;
mod encode;
mod error;
mod records;
mod schema;
mod stream;

#[cfg(feature = "archive")]
mod archive;
#[cfg(feature = "parquet")]
mod content;
#[cfg(feature = "parquet")]
mod parquet_file;

#[cfg(feature = "archive")]
pub use archive::{
    Archive, ExportOptions, ExportReport, ExportedSeries, ImportOptions, ImportReport, ImportedSeries,
    Manifest, Period, PeriodLength, export, import,
};
#[cfg(feature = "parquet")]
pub use content::{Content, ContentDigest};
pub use decode::decode;
pub use encode::{Encoder, encode};
#[cfg(feature = "parquet")]
pub use parquet_file::{ParquetReader, ParquetWriter};
pub use schema::{DATASET_KEY, Decimals, VERSION_KEY, schema};
pub use stream::{insert_batch, range_batches};

// The types of other crates in public signatures, so that callers need not depend on these crates.
#[doc(no_inline)]
pub use arrow_array::RecordBatch;
#[doc(no_inline)]
pub use arrow_schema::SchemaRef;
#[cfg(feature = "archive")]
#[doc(no_inline)]
pub use object_store;
