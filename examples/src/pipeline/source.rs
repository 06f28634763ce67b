//! Single files as sources. [`qi_files::open`] reads several files and other kinds.

use std::path::Path;

use qi_core::{Bar, Error, Instrument, Interval, Result};
use qi_files::{Data, FileOptions, Source};

/// Opens a file of candles, and returns their interval.
///
/// # Errors
/// The errors of [`qi_files::open`]; `InvalidInput` for a file of trades.
pub fn candles(path: &Path, instrument: &Instrument) -> Result<(Source<Bar>, Interval)> {
    let files = qi_files::open(&[path.to_owned()], &FileOptions::default().instrument(instrument.clone()))?;
    match files.data {
        Data::Candles(source, interval) => Ok((source, interval)),
        Data::Trades(_) => {
            Err(Error::invalid("pipeline.candles", "path", path.display(), "must be a file of candles"))
        }
    }
}
