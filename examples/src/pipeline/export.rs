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
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.part", std::process::id()));
        let beside = PathBuf::from(beside);
        let mut out = BufWriter::new(File::create(&beside).map_err(Error::other)?);
        writeln!(out, "open_time_us,open,high,low,close,volume,count").map_err(Error::other)?;
        Ok(Self { path: path.to_owned(), beside, out })
    }

    pub(super) fn write(&mut self, bar: &Ohlcv) -> Result<()> {
        let values = bar.values();
        let or_empty = |value: Option<String>| value.unwrap_or_default();
        writeln!(
            self.out,
            "{},{},{},{},{},{},{}",
            bar.open_time().as_micros(),
            values.open,
            values.high,
            values.low,
            values.close,
            or_empty(values.volume.map(|v| v.to_string())),
            or_empty(values.count.map(|c| c.to_string())),
        )
        .map_err(Error::other)
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.out.flush().and_then(|()| std::fs::rename(&self.beside, &self.path)).map_err(Error::other)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // Only an export that was not finished still has it.
        let _ = std::fs::remove_file(&self.beside);
    }
}
