//! Progress files: JSON that belongs to one plan and is replaced atomically.

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Write as _};
use std::path::Path;

use qi_core::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads the file, if there is one.
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

/// Replaces the file atomically: a kill or a power failure leaves the old content or the new content.
///
/// # Errors
/// `InvalidInput` with `code` for a file that cannot be written.
pub(crate) fn save<T: Serialize>(path: Option<&Path>, code: &'static str, progress: &T) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let json = serde_json::to_vec_pretty(progress).map_err(|e| broken(path, code, e))?;
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(&json)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|e| broken(path, code, e))
}

fn broken(path: &Path, code: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidInput, code, "progress")
        .with_message("the progress file cannot be used")
        .with_context("file", path.display())
        .with_source(source)
}
