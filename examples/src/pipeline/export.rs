//! Bars as CSV: exact decimals, ascending. The file appears whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use qi_core::{Error, Ohlcv, Result};

/// A file that is written beside its place and moved there when it is whole.
pub(super) struct Export {
    path: PathBuf,
    beside: PathBuf,
    out: BufWriter<File>,
}

impl Export {
    /// Begins the file, beside the place where it is to stand.
    pub(super) fn create(path: &Path) -> Result<Self> {
        // What a link points to is replaced, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.part", std::process::id()));
        let beside = PathBuf::from(beside);
        let file = File::create(&beside).map_err(|e| failed(&path, e))?;
        let mut export = Self { path, beside, out: BufWriter::new(file) };
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

    pub(super) fn finish(mut self) -> Result<()> {
        let moved = self.out.flush().and_then(|()| std::fs::rename(&self.beside, &self.path));
        moved.map_err(|e| failed(&self.path, e))
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::other(error).with_operation("export").with_context("file", path.display())
}

impl Drop for Export {
    fn drop(&mut self) {
        // Only an export that was not finished still has it.
        let _ = std::fs::remove_file(&self.beside);
    }
}
