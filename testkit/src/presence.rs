//! Trials on backends that may be absent: one rule for stores and buses.

use libtest_mimic::{Completion, Failed, Trial};

/// The environment variable with the names of the backends that must be present, separated by commas.
const REQUIRED: &str = "QI_REQUIRE_BACKENDS";

/// Creates a trial on `backend`. If `absent` has a reason, the trial is ignored with that reason, or fails if
/// `QI_REQUIRE_BACKENDS` names the backend. Otherwise the trial calls `run`.
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

/// Ends a trial whose backend is absent: the trial is ignored with `reason`.
///
/// # Errors
/// If `QI_REQUIRE_BACKENDS` names the backend.
pub fn absent(backend: &str, reason: String) -> Result<Completion, Failed> {
    absent_of(&std::env::var(REQUIRED).unwrap_or_default(), backend, reason)
}

fn absent_of(list: &str, backend: &str, reason: String) -> Result<Completion, Failed> {
    if list.split(',').any(|word| word.trim() == backend) {
        return Err(format!("{REQUIRED} names {backend}, which is absent: {reason}").into());
    }
    Ok(Completion::ignored_with(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_required_backend_must_be_present() {
        let is_error = |list: &str| absent_of(list, "python", "no module".to_owned()).is_err();
        assert!(is_error("python") && is_error("timescale, python"));
        assert!(!is_error("") && !is_error("timescale") && !is_error("python3"));
    }
}
