//! The section `[store.sqlite]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use qi_core::domain::duration;
use qi_core::store::StoreInfo;
use qi_core::{Datasets, Result};
use serde::{Deserialize, Serialize};

use crate::validation::Rules;

/// The file and the settings of a SQLite store. Compiled even without the feature `sqlite`, because a file may contain
/// the section of every backend.
///
/// ```
/// use qi_adapters::config::SqliteConfig;
/// let config = SqliteConfig::from_path("data/prices.db");
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// The path of the database file. `ensure_schema` creates the file, but not its folder. A relative path in a
    /// configuration file is relative to the folder of that file. Other relative paths are relative to the current
    /// folder.
    pub path: PathBuf,
    /// The durability of an acknowledged write after a loss of power. Defaults to `full`.
    pub synchronous: Synchronous,
    /// The longest wait for a connection of the store, and the longest wait for the lock of another process. A call may
    /// wait for both. Defaults to 10 s.
    #[serde(with = "duration")]
    pub lock_timeout: Duration,
    /// The maximum number of connections that read at the same time. Each connection has one thread. One additional
    /// connection writes. Defaults to 4.
    pub readers: u32,
    /// The page cache of each connection, in bytes. Defaults to 16 MiB.
    pub cache_bytes: u64,
    /// The part of the file that is mapped into memory, in bytes. An I/O error in a mapped page ends the process.
    /// Defaults to 0.
    pub mmap_bytes: u64,
    /// The maximum number of records in one insert. Defaults to 1,000,000, which is also the upper bound.
    pub max_batch: usize,
    /// The datasets of the store. Defaults to the standard datasets; see [`Self::with_datasets`].
    #[serde(skip)]
    pub datasets: Datasets,
}

/// The durability of an acknowledged write after a loss of power. A write always survives the end of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Synchronous {
    /// Flushes the log to the disk at each write. An acknowledged write survives a loss of power.
    Full,
    /// Flushes the log to the disk at each checkpoint. The last acknowledged writes may be lost with the power. The file
    /// stays intact.
    Normal,
}

impl Default for SqliteConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            synchronous: Synchronous::Full,
            lock_timeout: Duration::from_secs(10),
            readers: 4,
            cache_bytes: 16 << 20,
            mmap_bytes: 0,
            max_batch: StoreInfo::MAX_BATCH,
            datasets: Datasets::standard(),
        }
    }
}

impl SqliteConfig {
    /// Creates a configuration for the file at `path`, with defaults for all other settings.
    pub fn from_path(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Replaces the standard datasets with these datasets.
    #[must_use]
    pub fn with_datasets(mut self, datasets: Datasets) -> Self {
        self.datasets = datasets;
        self
    }

    /// Returns whether a text has a scheme, which [`Self::validate`] rejects.
    pub(crate) fn has_scheme(path: &str) -> bool {
        SCHEMES.iter().any(|scheme| path.starts_with(scheme))
    }

    /// Validates all settings of the section.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        if self.path == Path::new("") {
            return Err(RULES.reject("path", "none", "is required"));
        }
        self.check_bounds()
    }

    /// Validates all settings that have a default.
    pub(crate) fn check_bounds(&self) -> Result<()> {
        let Self { path, lock_timeout, readers, cache_bytes, mmap_bytes, max_batch, datasets, .. } = self;
        let shown = path.display();
        match path.to_str() {
            Some(text) if Self::has_scheme(text) => {
                return Err(RULES.reject("path", shown, "must be the path of a file, without a scheme"));
            }
            Some(text) if !text.contains('\0') => {}
            _ => return Err(RULES.reject("path", shown, "must be UTF-8 without NUL")),
        }
        let (min, max) = (Duration::from_millis(1), Duration::from_hours(1));
        RULES.duration_within("lock_timeout", *lock_timeout, min, max)?;
        RULES.within("readers", (*readers).into(), 1, 64)?;
        RULES.within("cache_bytes", *cache_bytes, 1 << 20, 1 << 36)?;
        RULES.within("mmap_bytes", *mmap_bytes, 0, 1 << 40)?;
        RULES.within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        match datasets.iter().find(|dataset| dataset.name().starts_with("sqlite_")) {
            Some(dataset) => Err(RULES.reject(
                "path",
                shown,
                format_args!("SQLite reserves the name of dataset {dataset}"),
            )),
            None => Ok(()),
        }
    }
}

/// The beginnings of a name that SQLite takes as a database in memory or as a URI.
const SCHEMES: [&str; 3] = [":", "file:", "sqlite:"];

const RULES: Rules = Rules { section: "store.sqlite", code: "store.sqlite.config", backend: "sqlite" };
