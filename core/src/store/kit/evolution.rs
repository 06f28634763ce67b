//! The changes of a dataset's declaration that are compatible with a stored dataset.
//!
//! Stores record a dataset as lines of text. The first line is its key; each further line is a column.

use crate::record::{Column, ColumnType, Dataset, SeriesType};
use crate::{Error, ErrorKind, Result, Scope, Symbol};

/// Returns the lines of a dataset.
pub fn lines(dataset: Dataset) -> Vec<String> {
    let mut key = match dataset.series() {
        SeriesType::Instrument => "instrument".to_owned(),
        SeriesType::Name { column, max } => format!("{column} text({max})"),
    };
    for column in [dataset.interval(), Some(dataset.time()), dataset.seq()].into_iter().flatten() {
        key = format!("{key}, {column}");
    }
    std::iter::once(key).chain(dataset.values().iter().map(line)).collect()
}

fn line(column: &Column) -> String {
    let ty = match column.ty {
        ColumnType::Decimal => "decimal".to_owned(),
        ColumnType::Counter => "counter".to_owned(),
        ColumnType::Integer => "integer".to_owned(),
        ColumnType::Boolean => "boolean".to_owned(),
        ColumnType::Text { max } => format!("text({max})"),
        ColumnType::Enumeration(names) => format!("enumeration({})", names.join(", ")),
        ColumnType::Timestamp => "timestamp".to_owned(),
        ColumnType::Interval => "interval".to_owned(),
        ColumnType::Levels { max } => format!("levels({max})"),
    };
    format!("{} {ty}{}", column.name, if column.optional { OPTIONAL } else { "" })
}

const OPTIONAL: &str = " optional";

/// Returns the indices of the lines to record: columns that were added at the end, and enumerations with new names.
///
/// An empty result means that the stored dataset equals the declaration, or has additional optional columns of a newer
/// version of the program.
///
/// # Errors
/// `SchemaMismatch` with the difference and the remedy.
pub fn compare(dataset: Dataset, stored: &[String]) -> Result<Vec<usize>> {
    let reject = |rule: &str, stored: &str, declared: &str| {
        Err(Error::new(ErrorKind::SchemaMismatch, "store.dataset.changed", "ensure_schema")
            .with_message(rule)
            .with_context("dataset", dataset)
            .with_context("stored", stored)
            .with_context("declared", declared))
    };
    let declared = lines(dataset);
    let mut record = Vec::new();
    for (at, (stored, declared)) in stored.iter().zip(&declared).enumerate() {
        match (enumeration(stored), enumeration(declared)) {
            _ if stored == declared || widened(stored) == *declared => {}
            (Some((column, old)), Some((same, new))) if column == same && new.starts_with(&old) => {
                record.push(at);
            }
            _ => {
                let rule = "the stored dataset differs: declare stored columns as they are stored, and new ones as \
                            optional columns after them; or give the dataset a new name";
                return reject(rule, stored, declared);
            }
        }
    }
    for (at, added) in declared.iter().enumerate().skip(stored.len()) {
        if !added.ends_with(OPTIONAL) {
            let rule = "a new column must be optional, because stored records have no value; or give the dataset a \
                        new name";
            return reject(rule, "none", added);
        }
        record.push(at);
    }
    match stored.iter().skip(declared.len()).find(|column| !column.ends_with(OPTIONAL)) {
        Some(column) => reject(
            "a required column is not declared: declare it as it is stored, or give the dataset a new name",
            column,
            "none",
        ),
        None => Ok(record),
    }
}

/// Returns the line with the current size limits of symbols and scopes. Databases of earlier versions recorded smaller
/// limits, which no table enforces.
fn widened(line: &str) -> String {
    let (symbol, scope) = (Symbol::MAX_BYTES, Scope::MAX_BYTES);
    line.replacen(" text(64)", &format!(" text({symbol})"), 1).replacen(
        " text(80)",
        &format!(" text({scope})"),
        1,
    )
}

/// Splits the line of an enumeration into its names and the rest of the line.
fn enumeration(line: &str) -> Option<((&str, &str), Vec<&str>)> {
    let (column, rest) = line.split_once(" enumeration(")?;
    let (names, optional) = rest.split_once(')')?;
    Some(((column, optional), names.split(", ").collect()))
}

#[cfg(test)]
mod tests {
    use crate::{MarketSnapshot, PriceTick};

    use super::*;

    fn changed(change: impl FnOnce(&mut Vec<String>)) -> std::result::Result<Vec<usize>, String> {
        let mut stored = lines(PriceTick::DATASET);
        change(&mut stored);
        compare(PriceTick::DATASET, &stored).map_err(|error| error.report())
    }

    #[test]
    fn lines_of_ticks_have_the_stored_form() {
        assert_eq!(
            lines(PriceTick::DATASET),
            [
                "instrument, ts, seq",
                "price decimal",
                "quantity decimal optional",
                "side enumeration(buy, sell) optional"
            ]
        );
    }

    #[test]
    fn columns_are_added_only_at_the_end() {
        assert_eq!(changed(|_| ()), Ok(vec![]));
        assert_eq!(changed(|stored| stored.truncate(2)), Ok(vec![2, 3]));
        assert_eq!(
            changed(|stored| stored.push("fee decimal optional".to_owned())),
            Ok(vec![]),
            "an older version"
        );
        let rejected = |change: fn(&mut Vec<String>), what: &str| {
            let message = changed(change).unwrap_err();
            assert!(message.contains(what), "{message}");
        };
        rejected(|stored| stored.truncate(1), "declared=price decimal");
        rejected(|stored| stored.push("fee decimal".to_owned()), "stored=fee decimal");
        rejected(|stored| stored[2] = "quantity decimal".to_owned(), "stored=quantity decimal");
        rejected(|stored| stored.swap(2, 3), "declared=quantity decimal optional");
        rejected(|stored| stored[0] = "instrument, ts".to_owned(), "stored=instrument, ts");
    }

    #[test]
    fn the_earlier_symbol_length_needs_no_migration() {
        let mut stored = lines(MarketSnapshot::DATASET);
        assert_eq!(stored[0], "scope text(262), ts");
        stored[0] = "scope text(80), ts".to_owned();
        assert!(compare(MarketSnapshot::DATASET, &stored).unwrap().is_empty());
        stored[0] = "scope text(81), ts".to_owned();
        assert!(compare(MarketSnapshot::DATASET, &stored).is_err());
    }

    #[test]
    fn enumerations_are_extended_at_the_end() {
        let side = |names: &str| changed(|stored| stored[3] = format!("side enumeration({names}) optional"));
        assert_eq!(side("buy"), Ok(vec![3]));
        assert!(side("buy, sell, both").is_err(), "this version cannot read the third name");
        assert!(side("sell, buy").is_err());
        assert!(side("bu").is_err());
    }
}
