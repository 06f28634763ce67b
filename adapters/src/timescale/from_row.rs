//! Records from the rows of custom SQL.

use qi_core::Instrument;
use qi_core::record::{Owner, Record, Series as _, SeriesKey, SeriesType};
use sqlx::postgres::PgRow;
use sqlx::{Decode, FromRow, Postgres, Row, Type};

use super::table::RowReader;
use super::types::Pg;

fn get<T>(row: &PgRow, column: &str) -> Result<T, sqlx::Error>
where
    Pg<T>: for<'r> Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get::<Pg<T>, _>(column).map(|value| value.0)
}

impl<R: Record> FromRow<'_, PgRow> for Pg<R> {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let dataset = R::DATASET;
        let owner = match dataset.series() {
            SeriesType::Instrument => {
                Owner::Instrument(Instrument::new(get(row, "exchange")?, get(row, "symbol")?))
            }
            SeriesType::Name { column, .. } => Owner::Name(row.try_get::<&str, _>(column)?.into()),
        };
        let interval = dataset.interval().map(|column| get(row, column)).transpose()?;
        let seq = dataset.seq().map(|column| get(row, column)).transpose()?;
        let sort_key = (get(row, dataset.time())?, seq.unwrap_or(0));
        let series = R::Series::from_key(&SeriesKey { owner, interval });
        let series = series.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let mut reader = RowReader::view(row, dataset);
        match R::read(series, sort_key, &mut reader) {
            Ok(record) => Ok(Self(record)),
            Err(error) => Err(reader.cause(error)),
        }
    }
}
