//! `qi export` and `qi import` of archives: Parquet files with manifests in a folder or an object store.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use qi_arrow::{ExportReport, ImportReport};
use qi_core::{Datasets, Error, ErrorKind, Result};

use crate::Series;
use crate::output::{Listing, text};

/// Returns true for the address of an archive: a URL or a folder. Other addresses are files of exchanges.
pub fn is_archive(address: &str) -> bool {
    address.contains("://") || Path::new(address).is_dir()
}

fn usage(message: &str) -> Error {
    Error::new(ErrorKind::Config, "import.archive", "import").with_message(message)
}

/// Rejects a folder that is not an archive. The import itself accepts every folder, and finds no file in most.
pub(crate) fn check_folder(address: &str, known: &Datasets) -> Result<()> {
    let has_settings = |folder: &Path| folder.join("_archive.json").is_file();
    let Ok(folder) = Path::new(address).canonicalize() else { return Ok(()) };
    if has_settings(&folder) {
        return Ok(());
    }
    // The path of a file has at most four folders below the archive.
    if let Some(archive) = folder.ancestors().skip(1).take(4).find(|folder| has_settings(folder)) {
        let message = "the folder is a part of an archive; import the archive, and select a part with --dataset, \
                       --instrument, --since or --until";
        return Err(usage(message).with_context("archive", archive.display()));
    }
    let built_in = Datasets::built_in();
    if known.iter().chain(built_in.iter()).any(|dataset| folder.join(dataset.name()).is_dir()) {
        return Ok(());
    }
    let message = "the folder is not an archive of `qi export`; to import files of exchanges, name the files";
    Err(usage(message).with_context("folder", folder.display()))
}

/// Rejects a Parquet file, which cannot be imported without its manifest.
pub(crate) fn reject_parquet(files: &[PathBuf]) -> Result<()> {
    let is_parquet = |file: &PathBuf| {
        let mut magic = [0; 4];
        let read = file.is_file().then(|| File::open(file)?.read_exact(&mut magic));
        matches!(read, Some(Ok(()))) && magic == *b"PAR1"
    };
    match files.iter().find(|file| is_parquet(file)) {
        None => Ok(()),
        Some(file) => {
            let message =
                "a Parquet file is imported with its archive; name the folder or the URL of the archive";
            Err(usage(message).with_context("file", file.display()))
        }
    }
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

/// Returns a row for each imported series, and a row for failed files whose series is unknown.
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
    let of_series: u64 = report.series.values().map(|imported| imported.failed).sum();
    let others = report.failed.saturating_sub(of_series);
    if others > 0 {
        let none = 0_u64;
        listing.push([text("other files"), none.into(), none.into(), none.into(), others.into()]);
    }
    listing
}
