//! The exit codes: 2 for wrong usage or configuration, 1 for every other failure.

use qi_core::{Error, ErrorKind};

pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;

/// The codes of wrong usage whose kind is not `Config`. The page on operations has the same table.
const USAGE_CODES: &[&str] = &[
    "archive.range",
    "archive.settings",
    "copy.to",
    "dlq.target",
    "domain.exchange",
    "domain.instrument",
    "domain.symbol",
    "files.columns",
    "files.format",
    "files.instrument",
    "files.interval",
    "files.kind",
    "files.open",
    "query.series",
    "record.series",
    "store.query.exchange",
    "store.query.interval",
    "store.query.owner",
    "store.query.series",
    "tail.partition",
];

/// The codes of the kind `Config` that describe the server: its database is absent.
const FAILURE_CODES: &[&str] = &["store.clickhouse.no_database", "store.timescale.no_database"];

/// Returns true if the command line or the configuration is wrong.
pub(crate) fn is_usage(error: &Error) -> bool {
    let code = error.code();
    USAGE_CODES.contains(&code) || (error.kind() == ErrorKind::Config && !FAILURE_CODES.contains(&code))
}

/// Returns the exit code of an error.
pub(crate) fn code(error: &Error) -> u8 {
    if is_usage(error) { USAGE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_on_operations_lists_every_code() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
        let page = std::fs::read_to_string(page).unwrap();
        for code in USAGE_CODES.iter().chain(FAILURE_CODES) {
            assert!(page.contains(&format!("`{code}`")), "{code}");
        }
    }
}
