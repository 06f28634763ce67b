//! Which changes of a dataset's declaration a stored dataset takes.
//!
//! Stores record a dataset as lines of text: its key, then each of its columns.

use crate::record::{Column, ColumnType, Dataset, SeriesType};

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

/// Returns the numbers of the lines that are to be recorded: columns that were added at the end, and enumerations with
/// new names. None of them: the stored dataset is that of the declaration, or of a newer version of it.
///
/// # Errors
/// What differs and what to do.
pub fn compare(dataset: Dataset, stored: &[String]) -> Result<Vec<usize>, String> {
    let refuse = |what: String| {
        format!(
            "columns are only added at the end, as optional ones, and other changes need a dataset with a new name; \
             {dataset}: {what}"
        )
    };
    let declared = lines(dataset);
    let mut record = Vec::new();
    for (at, (stored, declared)) in stored.iter().zip(&declared).enumerate() {
        match (stored == declared, enumeration(stored), enumeration(declared)) {
            (true, ..) => {}
            // An older version of the program knows fewer names.
            (_, Some((column, old)), Some((same, new))) if column == same && begins(&old, &new) => {}
            (_, Some((column, old)), Some((same, new))) if column == same && begins(&new, &old) => {
                record.push(at);
            }
            _ if at == 0 => {
                return Err(refuse(format!("the key is stored as `{stored}`, and declared as `{declared}`")));
            }
            _ => {
                return Err(refuse(format!(
                    "column {at} is stored as `{stored}`, and declared as `{declared}`"
                )));
            }
        }
    }
    for (at, added) in declared.iter().enumerate().skip(stored.len()) {
        if !added.ends_with(OPTIONAL) {
            return Err(refuse(format!("the new column `{added}` is required")));
        }
        record.push(at);
    }
    match stored.iter().skip(declared.len()).find(|column| !column.ends_with(OPTIONAL)) {
        Some(column) => Err(refuse(format!("the column `{column}` is required, and is not declared"))),
        None => Ok(record),
    }
}

/// Splits the line of an enumeration into its names and all else.
fn enumeration(line: &str) -> Option<((&str, &str), Vec<&str>)> {
    let (column, rest) = line.split_once(" enumeration(")?;
    let (names, optional) = rest.split_once(')')?;
    Some(((column, optional), names.split(", ").collect()))
}

fn begins(all: &[&str], first: &[&str]) -> bool {
    all.starts_with(first)
}

#[cfg(test)]
mod tests {
    use crate::PriceTick;

    use super::*;

    fn changed(change: impl FnOnce(&mut Vec<String>)) -> Result<Vec<usize>, String> {
        let mut stored = lines(PriceTick::DATASET);
        change(&mut stored);
        compare(PriceTick::DATASET, &stored)
    }

    #[test]
    fn the_lines_of_the_ticks() {
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
    fn columns_are_added_at_the_end_alone() {
        assert_eq!(changed(|_| ()), Ok(vec![]));
        assert_eq!(changed(|stored| stored.truncate(2)), Ok(vec![2, 3]));
        assert_eq!(
            changed(|stored| stored.push("fee decimal optional".to_owned())),
            Ok(vec![]),
            "an older version"
        );
        let refused = |change: fn(&mut Vec<String>), what: &str| {
            let message = changed(change).unwrap_err();
            assert!(message.contains(what), "{message}");
        };
        refused(|stored| stored.truncate(1), "the new column `price decimal` is required");
        refused(|stored| stored.push("fee decimal".to_owned()), "the column `fee decimal` is required");
        refused(
            |stored| stored[2] = "quantity decimal".to_owned(),
            "column 2 is stored as `quantity decimal`",
        );
        refused(|stored| stored.swap(2, 3), "declared as `quantity decimal optional`");
        refused(|stored| stored[0] = "instrument, ts".to_owned(), "the key is stored as `instrument, ts`");
    }

    #[test]
    fn an_enumeration_grows_at_the_end() {
        let side = |names: &str| changed(|stored| stored[3] = format!("side enumeration({names}) optional"));
        assert_eq!(side("buy"), Ok(vec![3]));
        assert_eq!(side("buy, sell, both"), Ok(vec![]), "an older version");
        assert!(side("sell, buy").is_err());
        assert!(side("bu").is_err());
    }
}
