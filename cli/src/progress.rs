//! Progress files: JSON that belongs to one plan and is replaced atomically.

use std::fs::File;
use std::io::{self, ErrorKind as IoErrorKind, Write as _};
use std::path::Path;

use qi_core::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

/// Reads the file, if it exists.
///
/// # Errors
/// `InvalidInput` with `code` for a file that cannot be read, or that belongs to another plan.
pub(crate) fn load<T: DeserializeOwned>(
    path: Option<&Path>,
    code: &'static str,
    plan: &str,
    plan_of: impl Fn(&T) -> &str,
) -> Result<Option<T>> {
    let Some(path) = path else { return Ok(None) };
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
        text => text.map_err(|e| broken(path, code, e))?,
    };
    let found: T = serde_json::from_str(&text).map_err(|e| broken(path, code, e))?;
    if plan_of(&found) == plan {
        return Ok(Some(found));
    }
    let rule = format!("belongs to another plan ({}); this plan is {plan}", plan_of(&found));
    Err(Error::invalid(code, "progress", path.display(), rule))
}

/// Replaces the file atomically: a kill or a power failure leaves the old content or the new content. A symbolic link
/// at the path is replaced, not followed.
///
/// # Errors
/// `InvalidInput` with `code` for a file that cannot be written.
pub(crate) fn save<T: Serialize>(path: Option<&Path>, code: &'static str, progress: &T) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let json = serde_json::to_vec_pretty(progress).map_err(|e| broken(path, code, e))?;
    let write = || {
        // The random name must be new, so no symbolic link is followed, neither here nor at the path.
        let mut file = tempfile::Builder::new().prefix(".progress-").tempfile_in(folder)?;
        file.write_all(&json)?;
        replace(file, path, folder, File::sync_all)
    };
    write().map_err(|e| broken(path, code, e))
}

/// Renames a synced file, and syncs its folder, which contains the name.
fn replace(
    file: NamedTempFile,
    path: &Path,
    folder: &Path,
    sync: impl Fn(&File) -> io::Result<()>,
) -> io::Result<()> {
    sync(file.as_file())?;
    file.persist(path)?;
    sync(&File::open(folder)?)
}

fn broken(path: &Path, code: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidInput, code, "progress")
        .with_message("the progress file cannot be used")
        .with_context("file", path.display())
        .with_source(source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn progress_is_synced_before_its_rename_and_its_folder_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("progress.json");
        let new = || NamedTempFile::new_in(&folder).unwrap();
        let synced = RefCell::new(Vec::new());
        let sync = |file: &File| {
            synced.borrow_mut().push((file.metadata()?.is_file(), path.exists()));
            Ok(())
        };
        replace(new(), &path, folder.path(), sync).unwrap();
        assert_eq!(*synced.borrow(), [(true, false), (false, true)]);
        std::fs::remove_file(&path).unwrap();
        let rejected = replace(new(), &path, folder.path(), |_| Err(io::Error::other("the disk is full")));
        assert!(rejected.is_err() && !path.exists());
    }
}
