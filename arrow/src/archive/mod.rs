//! Archives: folders of immutable Parquet files with manifests.

mod export;
mod import;
mod layout;
mod location;
mod manifest;
mod scratch;

pub use export::{ExportOptions, ExportReport, ExportedSeries, export};
pub use import::{ImportOptions, ImportReport, ImportedSeries, import};
pub use layout::{Period, PeriodLength};
pub use location::Archive;
pub use manifest::Manifest;

use qi_core::{Error, ErrorKind, Result, TimeRange, Timestamp};

/// Rejects a range that cuts a period: a file has all records of its period.
fn check_range(range: TimeRange, length: PeriodLength) -> Result<()> {
    let name = match length {
        PeriodLength::Day => "day",
        PeriodLength::Month => "month",
    };
    for (field, time) in [("since", range.start()), ("until", range.end())] {
        if time != Period::of(time, length).start() && time != Timestamp::MAX {
            let rule = format_args!("must be the start of a {name}");
            return Err(Error::invalid("archive.range", field, time, rule));
        }
    }
    Ok(())
}

/// Runs work that blocks or computes for long outside of the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::new(ErrorKind::Closed, "archive.runtime", "archive").with_source(error)),
        },
    }
}
