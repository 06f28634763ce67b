//! What becomes of the trials of a backend that is not there: one rule for stores and buses.

use libtest_mimic::{Completion, Failed, Trial};

/// The environment variable that names the backends which may not be absent, separated by commas.
const REQUIRED: &str = "QI_REQUIRE_BACKENDS";

/// A trial on `backend`: run where it is there; where it is `absent`, ignored with that reason, or failed if
/// `QI_REQUIRE_BACKENDS` names it.
pub fn trial(
    name: String,
    backend: &str,
    absent: Option<String>,
    run: impl FnOnce() -> Result<Completion, Failed> + Send + 'static,
) -> Trial {
    let backend = backend.to_owned();
    Trial::ignorable_test(name, move || match absent {
        Some(reason) => self::absent(&backend, reason),
        None => run(),
    })
}

/// The end of a trial whose backend turned out to be absent.
///
/// # Errors
/// If `QI_REQUIRE_BACKENDS` names the backend.
pub fn absent(backend: &str, reason: String) -> Result<Completion, Failed> {
    let list = std::env::var(REQUIRED).unwrap_or_default();
    if list.split(',').any(|word| word.trim() == backend) {
        return Err(format!("{REQUIRED} names {backend}, which is absent: {reason}").into());
    }
    Ok(Completion::ignored_with(reason))
}
