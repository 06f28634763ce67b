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

use qi_core::{Error, ErrorKind, Result};

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
