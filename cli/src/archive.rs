//! `qi export` and `qi import` of archives: Parquet files with manifests in a folder or an object store.

use qi_arrow::{ExportReport, ImportReport};

use crate::Series;
use crate::output::{Listing, text};

/// Returns true for the address of an archive: a URL or a folder. Other addresses are files of exchanges.
pub fn is_archive(address: &str) -> bool {
    address.contains("://") || std::path::Path::new(address).is_dir()
}

/// Returns a row for each exported series.
pub fn exported(report: &ExportReport) -> Listing {
    let mut listing = Listing::new(["series", "records", "written", "bytes", "unchanged", "surplus"]);
    for exported in &report.series {
        listing.push([
            text(Series { dataset: exported.dataset, key: exported.series.clone() }),
            exported.records.into(),
            exported.written.into(),
            exported.bytes.into(),
            exported.unchanged.into(),
            exported.surplus.into(),
        ]);
    }
    listing
}

/// Returns a row for each imported series.
pub fn imported(report: &ImportReport) -> Listing {
    let mut listing = Listing::new(["series", "records", "imported", "unchanged", "failed"]);
    for ((dataset, key), imported) in &report.series {
        listing.push([
            text(Series { dataset: *dataset, key: key.clone() }),
            imported.records.into(),
            imported.imported.into(),
            imported.unchanged.into(),
            imported.failed.into(),
        ]);
    }
    listing
}
