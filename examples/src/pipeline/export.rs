//! Export of bars as CSV: exact decimals, ascending. The file appears complete or not at all.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use qi_core::{Bar, Error, ErrorKind, Result};
use tempfile::NamedTempFile;

/// A file that is written under a random name in its folder, and renamed when it is complete and synced. A symbolic
/// link at its path is replaced, and the target of the link is unchanged.
pub(super) struct Export {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl Export {
    /// Creates the file, in the folder of its path.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut options = tempfile::Builder::new();
        // The umask of the process applies, as for any new file.
        options.prefix(".export-").permissions(Permissions::from_mode(0o666));
        let file = options.tempfile_in(folder(path)).map_err(|e| failed(path, e))?;
        let mut export = Self { path: path.to_owned(), out: BufWriter::new(file) };
        export.line(format_args!("open_time_us,open,high,low,close,volume,count"))?;
        Ok(export)
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.out, "{line}").map_err(|e| failed(&self.path, e))
    }

    pub(super) fn write(&mut self, bar: &Bar) -> Result<()> {
        let values = bar.values();
        let or_empty = |value: Option<String>| value.unwrap_or_default();
        self.line(format_args!(
            "{},{},{},{},{},{},{}",
            bar.open_time().as_micros(),
            values.open,
            values.high,
            values.low,
            values.close,
            or_empty(values.volume.map(|v| v.to_string())),
            or_empty(values.count.map(|c| c.to_string())),
        ))
    }

    pub(super) fn finish(self) -> Result<()> {
        let Self { path, out } = self;
        let finish = || {
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            replace(file, &path, File::sync_all)
        };
        finish().map_err(|e| failed(&path, e))
    }
}

/// Renames a synced file, and syncs its folder, which contains the name.
fn replace(file: NamedTempFile, path: &Path, sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    sync(file.as_file())?;
    file.persist(path)?;
    sync(&File::open(folder(path))?)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Application, "pipeline.export", "export")
        .with_context("file", path.display())
        .with_source(error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn an_export_is_synced_before_its_rename_and_its_folder_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bars.csv");
        let new = || NamedTempFile::new_in(&folder).unwrap();
        let synced = RefCell::new(Vec::new());
        let sync = |file: &File| {
            synced.borrow_mut().push((file.metadata()?.is_file(), path.exists()));
            Ok(())
        };
        replace(new(), &path, sync).unwrap();
        assert_eq!(*synced.borrow(), [(true, false), (false, true)]);
        std::fs::remove_file(&path).unwrap();
        let rejected = replace(new(), &path, |_| Err(io::Error::other("the disk is full")));
        assert!(rejected.is_err() && !path.exists());
    }
}
