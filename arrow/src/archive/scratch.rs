//! Files in progress. They have no final name, so a program that is killed leaves no incomplete data file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use crate::content::hex;

/// The beginning of the names of files in progress.
pub(super) const PREFIX: &str = "file-";

/// A temporary file that counts and hashes the bytes that are written.
#[derive(Debug)]
pub(super) struct Scratch {
    file: File,
    /// The path in the folder of the archive. None for a file that is uploaded.
    path: Option<TempPath>,
    hash: Sha256,
    bytes: u64,
}

impl Scratch {
    /// Creates a file in a folder, or an unnamed file for an upload.
    pub(super) fn new(folder: Option<&Path>) -> io::Result<Self> {
        let (file, path) = match folder {
            Some(folder) => {
                let mut builder = tempfile::Builder::new();
                builder.prefix(PREFIX);
                // The default is a file that only its owner can read. The umask applies.
                #[cfg(unix)]
                builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
                let (file, path) = builder.tempfile_in(folder)?.into_parts();
                (file, Some(path))
            }
            None => (tempfile::tempfile()?, None),
        };
        Ok(Self { file, path, hash: Sha256::new(), bytes: 0 })
    }

    /// Returns the file, its path, its size and its SHA-256.
    pub(super) fn finish(self) -> (File, Option<TempPath>, u64, String) {
        (self.file, self.path, self.bytes, hex(&self.hash.finalize()))
    }
}

impl Write for Scratch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
