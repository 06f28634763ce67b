//! Bars as CSV: exact decimals, ascending. The file appears complete or not at all.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use qi_core::{Error, ErrorKind, Ohlcv, Result};
use tempfile::NamedTempFile;

/// A file that is written under a random name in its folder, and renamed when it is complete and synced. A link at its
/// path is replaced, and its target stays as it is.
pub(super) struct Export {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
}

impl Export {
    /// Begins the file, in the folder of its path.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut options = tempfile::Builder::new();
        // As an ordinary new file: the umask of the process applies.
        options.prefix(".export-").permissions(Permissions::from_mode(0o666));
        let file = options.tempfile_in(folder(path)).map_err(|e| failed(path, e))?;
        let mut export = Self { path: path.to_owned(), out: BufWriter::new(file) };
        export.line(format_args!("open_time_us,open,high,low,close,volume,count"))?;
        Ok(export)
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.out, "{line}").map_err(|e| failed(&self.path, e))
    }

    pub(super) fn write(&mut self, bar: &Ohlcv) -> Result<()> {
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
            let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            // The name is durable with its folder.
            File::open(folder(&path))?.sync_all()
        };
        finish().map_err(|e| failed(&path, e))
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Application, "pipeline.export", "export")
        .with_context("file", path.display())
        .with_source(error)
}
