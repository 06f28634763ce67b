//! The table of a dataset, with prepared parts of statements.

use std::fmt::Write as _;
use std::sync::Arc;

use qi_core::record::{Column, Dataset, Owner, OwnerRef, RecordVec, SeriesKey, SeriesType};
use qi_core::{Error, Interval, Result};
use sqlx::sqlite::SqliteRow;

use super::error::Cause;
use super::values::{RowReader, Values, sql_type};

/// The table of the owners of all datasets. A record contains the number of its owner. The names of datasets and
/// columns do not begin with an underscore.
pub(super) const OWNERS_TABLE: &str = "CREATE TABLE _owners (id INTEGER PRIMARY KEY, exchange TEXT NOT NULL, \
    name TEXT NOT NULL, UNIQUE (exchange, name)) STRICT";

/// The number of an owner, if the owner has one.
pub(super) const OWNER_ID: &str = "(SELECT id FROM _owners WHERE exchange = ? AND name = ?)";

/// The maximum number of parameters of a statement.
const MAX_PARAMETERS: usize = 32_766;

/// The numbers of records of the insert statements. A batch uses the largest statements first.
const ROWS: [usize; 4] = [256, 32, 8, 1];

#[derive(Debug)]
pub(super) struct Table {
    pub(super) dataset: Dataset,
    /// The name in statements.
    pub(super) name: String,
    /// The time, the sequence number if the dataset has one, and the values.
    pub(super) record_columns: Vec<String>,
    /// The insert statements, each with its number of records.
    pub(super) inserts: Vec<(usize, Arc<str>)>,
    /// The number of columns.
    pub(super) width: usize,
}

/// Returns a name for use in statements. SQLite reads an unknown name in double quotes as a text.
pub(super) fn quoted(name: &str) -> String {
    format!("`{name}`")
}

/// Returns the definition of a value column.
pub(super) fn definition(column: &Column) -> String {
    let null = if column.optional { "" } else { " NOT NULL" };
    format!("{} {}{null}", quoted(column.name), sql_type(column.ty))
}

impl Table {
    pub(super) fn new(dataset: Dataset) -> Self {
        let name = quoted(dataset.name());
        let values = dataset.values().iter().map(|column| column.name);
        let record_columns: Vec<String> =
            [Some(dataset.time()), dataset.seq()].into_iter().flatten().chain(values).map(quoted).collect();
        let columns = record_columns.join(", ");
        let interval = dataset.interval().map_or_else(String::new, |column| format!("{}, ", quoted(column)));
        let width = 1 + usize::from(dataset.interval().is_some()) + record_columns.len();
        let row = format!("({})", vec!["?"; width].join(", "));
        let insert = |rows: usize| {
            let values = vec![&*row; rows].join(", ");
            // Replaces all columns, including columns of a newer version of the program.
            format!("INSERT OR REPLACE INTO {name} (_owner, {interval}{columns}) VALUES {values}")
        };
        let sizes = ROWS.into_iter().filter(|rows| rows * width <= MAX_PARAMETERS);
        Self {
            dataset,
            inserts: sizes.map(|rows| (rows, Arc::from(insert(rows)))).collect(),
            name,
            record_columns,
            width,
        }
    }

    /// Returns the statement that creates the table. The rows are stored in the order of the key.
    pub(super) fn create(&self) -> String {
        let Self { dataset, name, .. } = self;
        let key = [dataset.interval().map(|column| (column, "TEXT")), Some((dataset.time(), "INTEGER"))];
        let key = key.into_iter().flatten().chain(dataset.seq().map(|column| (column, "INTEGER")));
        let (mut columns, mut names) = ("_owner INTEGER NOT NULL".to_owned(), "_owner".to_owned());
        for (column, ty) in key {
            let _ = write!(columns, ", {} {ty} NOT NULL", quoted(column));
            let _ = write!(names, ", {}", quoted(column));
        }
        for column in dataset.values() {
            let _ = write!(columns, ", {}", definition(column));
        }
        format!("CREATE TABLE {name} ({columns}, PRIMARY KEY ({names})) STRICT, WITHOUT ROWID")
    }

    /// Returns the time column.
    pub(super) fn time(&self) -> &str {
        &self.record_columns[0]
    }

    /// Returns the time, and the sequence number if the dataset has one.
    pub(super) fn sort_key(&self) -> &[String] {
        &self.record_columns[..=usize::from(self.dataset.seq().is_some())]
    }

    /// Returns ` AND "interval" = ?`, or an empty text for a dataset without intervals.
    pub(super) fn interval_condition(&self) -> String {
        self.dataset.interval().map_or_else(String::new, |column| format!(" AND {} = ?", quoted(column)))
    }

    /// Returns the order of the records in a series.
    pub(super) fn order_by(&self, direction: &str) -> String {
        let columns = self.sort_key().iter().map(|column| format!("{column} {direction}"));
        columns.collect::<Vec<_>>().join(", ")
    }

    /// Returns the condition that selects the owners of this dataset from the table of all owners.
    pub(super) fn owners(&self) -> &'static str {
        match self.dataset.series() {
            SeriesType::Instrument => "exchange > ''",
            SeriesType::Name { .. } => "exchange = ''",
        }
    }

    /// Reads an owner from the columns `exchange` and `name`.
    pub(super) fn read_owner(&self, row: &mut RowReader<'_>) -> Result<Owner, Cause> {
        let (exchange, name): (&str, &str) =
            (row.next().map_err(Cause::Corrupt)?, row.next().map_err(Cause::Corrupt)?);
        Ok(match self.dataset.series() {
            SeriesType::Instrument => {
                Owner::Instrument(format!("{exchange}:{name}").parse().map_err(Cause::Corrupt)?)
            }
            SeriesType::Name { .. } => Owner::Name(name.into()),
        })
    }

    /// Reads a record from [`Table::record_columns`].
    pub(super) fn read(&self, row: &SqliteRow, series: &SeriesKey, out: &mut RecordVec) -> Result<(), Cause> {
        self.read_from(&mut RowReader::new(row), series, out).map_err(Cause::Corrupt)
    }

    pub(super) fn read_from(
        &self,
        row: &mut RowReader<'_>,
        series: &SeriesKey,
        out: &mut RecordVec,
    ) -> Result<()> {
        use qi_core::record::FieldReader as _;
        let time = row.time()?;
        let seq = if self.dataset.seq().is_some() { row.counter()? } else { 0 };
        out.push(series, (time, seq), row)
    }

    /// Rejects an owner that does not fit the dataset.
    pub(super) fn check_owner(&self, owner: &Owner) -> Result<()> {
        let instruments = self.dataset.series() == SeriesType::Instrument;
        if instruments == owner.instrument().is_some() {
            return Ok(());
        }
        let rule = if instruments { "must be an instrument" } else { "must be a name" };
        Err(Error::invalid("store.query.owner", "owner", owner, rule).with_context("dataset", self.dataset))
    }

    /// Rejects a series that does not fit the dataset.
    pub(super) fn check_series(&self, series: &SeriesKey) -> Result<()> {
        self.check_owner(&series.owner)?;
        if series.interval.is_some() == self.dataset.interval().is_some() {
            return Ok(());
        }
        let value = series.interval.map_or("none", Interval::as_str);
        let rule = "must be set if and only if the dataset has intervals";
        Err(Error::invalid("store.query.interval", "interval", value, rule)
            .with_context("dataset", self.dataset))
    }
}

/// Adds the columns `exchange` and `name` of an owner.
pub(super) fn add_owner(values: &mut Values, owner: &OwnerRef<'_>) {
    let (exchange, name) = match owner {
        OwnerRef::Instrument(instrument) => (instrument.exchange().as_str(), instrument.symbol().as_str()),
        OwnerRef::Name(name) => ("", &**name),
    };
    values.add(exchange.to_owned());
    values.add(name.to_owned());
}

/// Adds the columns `exchange`, `name` and the interval of a series.
pub(super) fn add_series(values: &mut Values, owner: &Owner, interval: Option<Interval>) {
    add_owner(values, &owner.as_ref());
    if let Some(interval) = interval {
        values.add(interval.as_str());
    }
}

/// Returns the common table `wanted(at, exchange, name)` with room for `count` owners. An owner without values is NULL,
/// so it matches nothing. Few sizes keep the cache of statements small.
pub(super) fn owner_list(count: usize) -> String {
    let rows: Vec<String> = (0..count.next_power_of_two()).map(|at| format!("({at}, ?, ?)")).collect();
    format!("WITH wanted(at, exchange, name) AS (VALUES {})", rows.join(", "))
}
