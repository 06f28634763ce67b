//! Responses of a local port that replaces a server.

#![allow(clippy::unwrap_used, reason = "test support")]

use qi_adapters::clickhouse::ClickHouseStore;
use qi_core::Datasets;
use qi_core::record::SeriesType;

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap());
    out.extend_from_slice(text.as_bytes());
}

/// Returns the rows of `system.columns` after `ensure_schema`, for the tables of the built-in datasets. The names of
/// the tables have this prefix and one of these suffixes. Each suffix states whether its tables have a key.
pub(crate) fn columns(prefix: &str, ends: &[(&str, bool)]) -> Vec<u8> {
    let mut rows = Vec::new();
    for dataset in Datasets::standard().iter() {
        let owner = if dataset.series() == SeriesType::Instrument { 2 } else { 1 };
        let key =
            owner + 1 + usize::from(dataset.interval().is_some()) + usize::from(dataset.seq().is_some());
        for (end, keyed) in ends {
            for (at, (name, ty)) in ClickHouseStore::expected_columns(dataset).into_iter().enumerate() {
                text(&mut rows, &format!("{prefix}{dataset}{end}"));
                text(&mut rows, &name);
                text(&mut rows, &ty);
                rows.push(u8::from(*keyed && at < key));
            }
        }
    }
    rows
}
