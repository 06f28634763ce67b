//! The Arrow schema of a dataset.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use qi_core::record::{Column, ColumnType, Dataset, SeriesType};

/// The key of the dataset's name in the metadata of a schema.
pub const DATASET_KEY: &str = "qi.dataset";
/// The key of the dataset's version in the metadata of a schema.
pub const VERSION_KEY: &str = "qi.version";

/// The precision and the scale of the decimals: 20 digits before and 18 after the point.
pub(crate) const PRECISION: u8 = 38;
pub(crate) const SCALE: i8 = 18;

/// The form of decimal values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[cfg_attr(
    feature = "parquet",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
pub enum Decimals {
    /// `Decimal128(38, 18)`, exact.
    #[default]
    Exact,
    /// `Float64`: the nearest double. Such data cannot be imported.
    Float64,
}

/// Returns the Arrow schema of a dataset. `docs/columnar.md` has the table of types.
pub fn schema(dataset: Dataset, decimals: Decimals) -> SchemaRef {
    let mut fields = Vec::with_capacity(dataset.values().len() + 5);
    match dataset.series() {
        SeriesType::Instrument => {
            fields.push(Field::new("exchange", name(), false));
            fields.push(Field::new("symbol", name(), false));
        }
        SeriesType::Name { column, .. } => fields.push(Field::new(column, name(), false)),
    }
    if let Some(interval) = dataset.interval() {
        fields.push(Field::new(interval, name(), false));
    }
    fields.push(Field::new(dataset.time(), time(), false));
    if let Some(seq) = dataset.seq() {
        fields.push(Field::new(seq, DataType::UInt64, false));
    }
    let values = dataset.values().iter();
    fields.extend(
        values.map(|Column { name, ty, optional }| Field::new(*name, value(*ty, decimals), *optional)),
    );
    let metadata = [
        (DATASET_KEY.to_owned(), dataset.name().to_owned()),
        (VERSION_KEY.to_owned(), dataset.version().to_string()),
    ];
    Arc::new(Schema::new(fields).with_metadata(metadata))
}

pub(crate) fn name() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn decimal(decimals: Decimals) -> DataType {
    match decimals {
        Decimals::Exact => DataType::Decimal128(PRECISION, SCALE),
        Decimals::Float64 => DataType::Float64,
    }
}

pub(crate) fn level_fields(decimals: Decimals) -> Fields {
    ["price", "quantity"].map(|name| Field::new(name, decimal(decimals), false)).into_iter().collect()
}

pub(crate) fn level_field(decimals: Decimals) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(level_fields(decimals)), false))
}

fn value(ty: ColumnType, decimals: Decimals) -> DataType {
    match ty {
        ColumnType::Decimal => decimal(decimals),
        ColumnType::Counter => DataType::UInt64,
        ColumnType::Integer => DataType::Int64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Enumeration(_) | ColumnType::Interval => name(),
        ColumnType::Timestamp => time(),
        ColumnType::Levels { .. } => DataType::List(level_field(decimals)),
        // `Text`. A new column type adds a required method to `FieldWriter`, so the encoder does not compile without it.
        _ => DataType::Utf8,
    }
}
