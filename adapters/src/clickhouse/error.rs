//! Errors of the client and the server, and their mapping to the library's errors in one table.

use qi_core::{Error, ErrorKind, Operation, RetryAdvice};

use super::BACKEND;
use super::wire::Malformed;

/// The cause of a failed call, before the operation is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    /// An error of the client, which contains the server's response.
    #[error(transparent)]
    Client(#[from] clickhouse::error::Error),
    /// No permit was free within the acquire timeout.
    #[error("all {max_connections} connection permits are in use")]
    Busy { max_connections: usize },
    /// A call after `close`.
    #[error("the store is closed")]
    Closed,
    /// A concurrent change. A deletion interrupted every attempt of a read, an upgrade interrupted every attempt of a
    /// write, every attempt of a write began after its deadline, or another call interrupted a step of maintenance.
    #[error("the data, the schema or the server changed during the call, or the call was too slow")]
    ConcurrentChange,
    /// A schema that does not match this program.
    #[error("{rule}")]
    Schema { rule: String },
    /// A response that is longer than any correct response to the request.
    #[error("response exceeds {limit} bytes")]
    TooLarge { limit: usize },
    /// A response that does not decode to rows.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A row that is not a valid record.
    #[error(transparent)]
    Corrupt(Error),
    /// An error of the core library about a value.
    #[error(transparent)]
    Core(#[from] Error),
}

/// The server's error codes with their names, as returned by `errorCodeToName`.
pub(super) const CODES: &[(u16, &str, ErrorKind, &str)] = &[
    (407, "DECIMAL_OVERFLOW", ErrorKind::InvalidInput, "store.clickhouse.decimal_overflow"),
    (81, "UNKNOWN_DATABASE", ErrorKind::Config, "store.clickhouse.no_database"),
    (115, "UNKNOWN_SETTING", ErrorKind::Config, "store.clickhouse.setting"),
    (139, "NO_ELEMENTS_IN_CONFIG", ErrorKind::Config, "store.clickhouse.server_config"),
    (701, "CLUSTER_DOESNT_EXIST", ErrorKind::Config, "store.clickhouse.no_cluster"),
    (516, "AUTHENTICATION_FAILED", ErrorKind::Unauthorized, "store.clickhouse.login"),
    (192, "UNKNOWN_USER", ErrorKind::Unauthorized, "store.clickhouse.user"),
    (193, "WRONG_PASSWORD", ErrorKind::Unauthorized, "store.clickhouse.password"),
    (194, "REQUIRED_PASSWORD", ErrorKind::Unauthorized, "store.clickhouse.password_required"),
    (497, "ACCESS_DENIED", ErrorKind::Unauthorized, "store.clickhouse.permission"),
    (164, "READONLY", ErrorKind::Unauthorized, "store.clickhouse.readonly"),
    (60, "UNKNOWN_TABLE", ErrorKind::SchemaMismatch, "store.clickhouse.no_table"),
    (16, "NO_SUCH_COLUMN_IN_TABLE", ErrorKind::SchemaMismatch, "store.clickhouse.no_column"),
    (47, "UNKNOWN_IDENTIFIER", ErrorKind::SchemaMismatch, "store.clickhouse.no_identifier"),
    (469, "VIOLATED_CONSTRAINT", ErrorKind::InvalidInput, "store.clickhouse.constraint"),
    (53, "TYPE_MISMATCH", ErrorKind::SchemaMismatch, "store.clickhouse.column_type"),
    (117, "INCORRECT_DATA", ErrorKind::SchemaMismatch, "store.clickhouse.incorrect_data"),
    (218, "TABLE_IS_DROPPED", ErrorKind::SchemaMismatch, "store.clickhouse.table_dropped"),
    (48, "NOT_IMPLEMENTED", ErrorKind::Unsupported, "store.clickhouse.not_implemented"),
    (344, "SUPPORT_IS_DISABLED", ErrorKind::Unsupported, "store.clickhouse.disabled"),
    (209, "SOCKET_TIMEOUT", ErrorKind::Unavailable, "store.clickhouse.socket_timeout"),
    (210, "NETWORK_ERROR", ErrorKind::Unavailable, "store.clickhouse.network"),
    (279, "ALL_CONNECTION_TRIES_FAILED", ErrorKind::Unavailable, "store.clickhouse.no_replica"),
    (242, "TABLE_IS_READ_ONLY", ErrorKind::Unavailable, "store.clickhouse.read_only"),
    (225, "NO_ZOOKEEPER", ErrorKind::Unavailable, "store.clickhouse.no_keeper"),
    (999, "KEEPER_EXCEPTION", ErrorKind::Unavailable, "store.clickhouse.keeper"),
    (285, "TOO_FEW_LIVE_REPLICAS", ErrorKind::Unavailable, "store.clickhouse.replicas"),
    (289, "REPLICA_IS_NOT_IN_QUORUM", ErrorKind::Unavailable, "store.clickhouse.replica"),
    (286, "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", ErrorKind::Unavailable, "store.clickhouse.quorum"),
    (236, "ABORTED", ErrorKind::Unavailable, "store.clickhouse.aborted"),
    (394, "QUERY_WAS_CANCELLED", ErrorKind::Unavailable, "store.clickhouse.cancelled"),
    (243, "NOT_ENOUGH_SPACE", ErrorKind::Unavailable, DISK_FULL),
    (159, "TIMEOUT_EXCEEDED", ErrorKind::Timeout, "store.clickhouse.timeout"),
    (160, "TOO_SLOW", ErrorKind::Timeout, "store.clickhouse.too_slow"),
    (319, "UNKNOWN_STATUS_OF_INSERT", ErrorKind::Timeout, "store.clickhouse.unknown_insert"),
    (202, "TOO_MANY_SIMULTANEOUS_QUERIES", ErrorKind::Overloaded, "store.clickhouse.queries"),
    (203, "NO_FREE_CONNECTION", ErrorKind::Overloaded, "store.clickhouse.no_connection"),
    (439, "CANNOT_SCHEDULE_TASK", ErrorKind::Overloaded, "store.clickhouse.threads"),
    (745, "SERVER_OVERLOADED", ErrorKind::Overloaded, "store.clickhouse.overloaded"),
    (241, "MEMORY_LIMIT_EXCEEDED", ErrorKind::Overloaded, "store.clickhouse.memory"),
    (252, "TOO_MANY_PARTS", ErrorKind::Overloaded, "store.clickhouse.parts"),
    (341, "UNFINISHED", ErrorKind::Timeout, "store.clickhouse.unfinished"),
    (473, "DEADLOCK_AVOIDED", ErrorKind::Conflict, "store.clickhouse.deadlock"),
    (253, "REPLICA_ALREADY_EXISTS", ErrorKind::Conflict, "store.clickhouse.replica_exists"),
    (57, "TABLE_ALREADY_EXISTS", ErrorKind::Conflict, "store.clickhouse.table_exists"),
    (82, "DATABASE_ALREADY_EXISTS", ErrorKind::Conflict, "store.clickhouse.database_exists"),
    (517, "CANNOT_ASSIGN_ALTER", ErrorKind::Conflict, "store.clickhouse.alter"),
    (40, "CHECKSUM_DOESNT_MATCH", ErrorKind::CorruptData, "store.clickhouse.checksum"),
];

/// The server's code for a missing privilege.
pub(super) const ACCESS_DENIED: u16 = 497;

/// The code of a table that does not exist.
pub(super) const NO_TABLE: u16 = 60;

/// The code of a part that does not exist.
pub(super) const NO_PART: u16 = 232;

/// The code of a row that violates a constraint of its table.
pub(super) const VIOLATED_CONSTRAINT: u16 = 469;

/// The maximum length of the server's text in an error, in bytes.
const MAX_TEXT_BYTES: usize = 4 * 1024;

/// The library's error code for a full disk. The error is never retried, because waiting frees no space.
const DISK_FULL: &str = "store.clickhouse.disk_full";

/// Returns the code of a text such as `Code: 60. DB::Exception: ...`. Only the beginning of the text counts, because a
/// proxy's error page may contain "Error Code: 502".
fn code_of(text: &str) -> Option<u16> {
    const PREFIXES: [&str; 3] = ["", "Poco::Exception. ", "std::exception. "];
    let rest = PREFIXES.iter().find_map(|before| text.strip_prefix(before)?.strip_prefix("Code: "))?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().ok()
}

fn classify_response(text: &str) -> (ErrorKind, &'static str) {
    let Some(code) = code_of(text) else {
        // The text comes from a proxy or from a server that is shutting down.
        return (ErrorKind::Unavailable, "store.clickhouse.response");
    };
    match code {
        // The server uses one code for two conditions. Too many parts is temporary; too many partitions in one insert
        // is permanent. The word "partitions" alone is not sufficient. It also occurs in "Too many parts (2) in all
        // partitions in total" and in names of tables.
        252 if text.contains("Too many partitions") => (ErrorKind::Internal, "store.clickhouse.partitions"),
        // The memory limit of the query will be the same on the next attempt.
        241 if text.contains("(for query)") || text.contains("Query memory limit") => {
            (ErrorKind::Internal, "store.clickhouse.query_memory")
        }
        _ => CODES
            .iter()
            .find(|(known, ..)| *known == code)
            .map_or((ErrorKind::Internal, "store.clickhouse.server"), |(_, _, kind, code)| (*kind, *code)),
    }
}

fn classify(error: &clickhouse::error::Error) -> (ErrorKind, &'static str) {
    use clickhouse::error::Error as Client;
    match error {
        Client::BadResponse(text) => classify_response(text),
        Client::Network(_) => (ErrorKind::Unavailable, "store.clickhouse.network"),
        Client::TimedOut => (ErrorKind::Timeout, "store.clickhouse.client_timeout"),
        Client::Decompression(_) => (ErrorKind::Unavailable, "store.clickhouse.decompression"),
        Client::InvalidParams(_) => (ErrorKind::Config, "store.clickhouse.url"),
        Client::Unsupported(_) => (ErrorKind::Config, "store.clickhouse.scheme"),
        _ => (ErrorKind::Internal, "store.clickhouse.client"),
    }
}

impl Cause {
    /// Returns whether the connection failed, so that the response of the server is unknown.
    pub(super) fn is_network(&self) -> bool {
        matches!(self, Self::Client(clickhouse::error::Error::Network(_)))
    }

    /// Returns whether the cause is a server error with a code.
    pub(super) fn is_server_error(&self) -> bool {
        matches!(self, Self::Client(clickhouse::error::Error::BadResponse(text)) if code_of(text).is_some())
    }

    /// Returns whether the server responded with this code.
    pub(super) fn has_code(&self, code: u16) -> bool {
        matches!(self, Self::Client(clickhouse::error::Error::BadResponse(text)) if code_of(text) == Some(code))
    }

    /// Returns the public error of `operation`, with the original error as its source.
    pub(super) fn into_error(self, operation: Operation) -> Error {
        let new = |kind, code: &'static str| Error::new(kind, code, operation).with_backend(BACKEND);
        match self {
            Self::Core(error) => error.with_operation(operation).with_backend(BACKEND),
            Self::Closed => Error::closed("store.clickhouse.closed", operation).with_backend(BACKEND),
            Self::Busy { max_connections } => new(ErrorKind::Overloaded, "store.clickhouse.pool")
                .with_message(self)
                .with_context("max_connections", max_connections),
            Self::ConcurrentChange => {
                new(ErrorKind::Conflict, "store.clickhouse.changing").with_message(self)
            }
            Self::TooLarge { limit } => new(ErrorKind::CorruptData, "store.clickhouse.response_too_large")
                .with_message(self)
                .with_context("limit_bytes", limit),
            Self::Schema { .. } => {
                new(ErrorKind::SchemaMismatch, "store.clickhouse.schema").with_message(self)
            }
            Self::Malformed(source) => {
                new(ErrorKind::CorruptData, "store.clickhouse.value").with_source(source)
            }
            Self::Corrupt(source) => {
                new(ErrorKind::CorruptData, "store.clickhouse.value").with_source(source)
            }
            Self::Client(source) => {
                let (kind, code) = classify(&source);
                let mut error = new(kind, code);
                if let clickhouse::error::Error::BadResponse(text) = &source
                    && let Some(number) = code_of(text)
                {
                    error = error.with_context("code", number);
                }
                if code == DISK_FULL {
                    error = error.with_retry(RetryAdvice::Never);
                }
                error.with_source(truncated(source))
            }
        }
    }
}

/// Truncates a long error text of the server.
fn truncated(error: clickhouse::error::Error) -> clickhouse::error::Error {
    match error {
        clickhouse::error::Error::BadResponse(text) if text.len() > MAX_TEXT_BYTES => {
            let kept = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
            clickhouse::error::Error::BadResponse(format!(
                "{kept}... (truncated after {MAX_TEXT_BYTES} bytes)"
            ))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use clickhouse::error::Error as Client;

    use super::*;

    fn error_of_text(text: &str) -> Error {
        Cause::Client(Client::BadResponse(text.to_owned())).into_error(Operation::Insert)
    }

    fn error_of_code(number: u16) -> Error {
        error_of_text(&format!("Code: {number}. DB::Exception: something (NAME) (version 26.9.2.1)"))
    }

    #[test]
    fn every_server_code_has_a_kind() {
        use ErrorKind::{
            Config, Conflict, CorruptData, Internal, InvalidInput, Overloaded, SchemaMismatch, Timeout,
            Unauthorized, Unavailable, Unsupported,
        };
        let rows = [
            (&[407, 469][..], InvalidInput, false),
            (&[81, 115, 139, 701], Config, false),
            (&[516, 497, 192, 193, 194, 164], Unauthorized, false),
            (&[60, 16, 47, 53, 117, 218], SchemaMismatch, false),
            (&[48, 344], Unsupported, false),
            (&[209, 210, 279, 242, 225, 999, 285, 286, 289, 236, 394], Unavailable, true),
            (&[243], Unavailable, false),
            (&[159, 160, 319, 341], Timeout, true),
            (&[202, 203, 241, 252, 439, 745], Overloaded, true),
            (&[57, 82, 253, 473, 517], Conflict, true),
            (&[40], CorruptData, false),
            // A code outside the table needs investigation, so it is not retried.
            (&[62, 1, 49, 9999], Internal, false),
        ];
        for (code, ..) in CODES {
            assert!(rows.iter().any(|(codes, ..)| codes.contains(code)), "{code} is not checked");
        }
        for (codes, kind, retried) in rows {
            for number in codes {
                let error = error_of_code(*number);
                assert_eq!((error.kind(), error.retry().is_retryable()), (kind, retried), "{number}");
                assert_eq!((error.operation(), error.backend()), ("insert", Some(BACKEND)));
                assert_eq!(error.context_value("code"), Some(number.to_string().as_str()));
                assert!(error.find_source::<Client>().is_some(), "the original is the source");
            }
        }
    }

    #[test]
    fn kind_of_memory_and_part_errors_depends_on_the_text() {
        let kind = |text: &str| (error_of_text(text).kind(), error_of_text(text).retry().is_retryable());
        let parts = "Code: 252. DB::Exception: Too many parts (3000 with average size of 1.00 KiB) in table 'qi.ticks'. \
                     Merges are processing significantly slower than inserts. (TOO_MANY_PARTS)";
        assert_eq!(kind(parts), (ErrorKind::Overloaded, true));
        let partitions = "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 100). \
                          The limit is controlled by 'max_partitions_per_insert_block' setting. (TOO_MANY_PARTS)";
        assert_eq!(kind(partitions), (ErrorKind::Internal, false));
        for parts in [
            "Code: 252. DB::Exception: Too many parts (2) in all partitions in total in table 'qi.ticks'. This indicates \
             wrong choice of partition key. (TOO_MANY_PARTS)",
            "Code: 252. DB::Exception: Too many parts (300 with average size of 1.00 KiB) in table 'qi.partitions_ticks'. \
             Merges are processing significantly slower than inserts. (TOO_MANY_PARTS)",
        ] {
            assert_eq!(kind(parts), (ErrorKind::Overloaded, true), "{parts}");
        }
        let server = "Code: 241. DB::Exception: (total) memory limit exceeded: would use 7.20 GiB. (MEMORY_LIMIT_EXCEEDED)";
        assert_eq!(kind(server), (ErrorKind::Overloaded, true));
        for query in [
            "Code: 241. DB::Exception: Query memory limit exceeded: would use 10.00 MiB. (MEMORY_LIMIT_EXCEEDED)",
            "Code: 241. DB::Exception: Memory limit (for query) exceeded: would use 10.00 MiB. (MEMORY_LIMIT_EXCEEDED)",
        ] {
            assert_eq!(kind(query), (ErrorKind::Internal, false));
        }
    }

    #[test]
    fn only_a_code_at_the_beginning_of_the_text_counts() {
        for (text, code) in [
            ("Code: 60. DB::Exception: no (UNKNOWN_TABLE)", Some(60)),
            ("Code: 60", Some(60)),
            ("Poco::Exception. Code: 1000, e.code() = 111, Connection refused", Some(1000)),
            ("std::exception. Code: 1001, type: std::length_error", Some(1001)),
            ("<h1>Error Code: 502</h1>", None),
            ("Code: many", None),
            ("Code: 99999999999", None),
            ("", None),
        ] {
            assert_eq!(code_of(text), code, "{text}");
        }
        let page = error_of_text("<h1>Error Code: 60</h1>");
        assert_eq!((page.kind(), page.code()), (ErrorKind::Unavailable, "store.clickhouse.response"));
    }

    #[test]
    fn every_client_error_has_a_kind() {
        let of = |error: Client| {
            let error = Cause::from(error).into_error(Operation::Range);
            (error.kind(), error.retry().is_retryable())
        };
        let text = || Box::<dyn std::error::Error + Send + Sync>::from("no");
        assert_eq!(of(Client::Network(text())), (ErrorKind::Unavailable, true));
        assert_eq!(of(Client::Decompression(text())), (ErrorKind::Unavailable, true));
        assert_eq!(of(Client::TimedOut), (ErrorKind::Timeout, true));
        assert_eq!(of(Client::BadResponse("502 Bad Gateway".into())), (ErrorKind::Unavailable, true));
        assert_eq!(of(Client::InvalidParams(text())), (ErrorKind::Config, false));
        assert_eq!(of(Client::Unsupported("https".into())), (ErrorKind::Config, false));
        assert_eq!(of(Client::NotEnoughData), (ErrorKind::Internal, false));
    }

    #[test]
    fn every_adapter_error_has_a_kind() {
        let of = |cause: Cause| {
            let error = cause.into_error(Operation::Range);
            (error.kind(), error.retry().is_retryable())
        };
        assert_eq!(of(Cause::Busy { max_connections: 8 }), (ErrorKind::Overloaded, true));
        assert_eq!(of(Cause::Closed), (ErrorKind::Closed, false));
        assert_eq!(of(Cause::ConcurrentChange), (ErrorKind::Conflict, true));
        assert_eq!(of(Cause::TooLarge { limit: 1 }), (ErrorKind::CorruptData, false));
        assert_eq!(of(Cause::Schema { rule: String::new() }), (ErrorKind::SchemaMismatch, false));
        assert_eq!(of(Malformed(String::new()).into()), (ErrorKind::CorruptData, false));
    }

    #[test]
    fn errors_page_lists_every_server_code_under_its_kind() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let page = std::fs::read_to_string(page).unwrap();
        for (number, name, kind, _) in CODES {
            let row = format!("| `{kind:?}` |");
            let mut cells = page.lines().filter(|l| l.starts_with(&row)).filter_map(|l| l.split('|').nth(5));
            let listed = cells.any(|cell| {
                cell.split(|c: char| !c.is_ascii_digit()).any(|code| code.parse::<u16>() == Ok(*number))
            });
            assert!(listed, "docs/errors.md does not list {number} {name} as {kind:?}");
        }
    }

    #[test]
    fn codes_are_unique() {
        let numbers: std::collections::BTreeSet<_> = CODES.iter().map(|(number, ..)| number).collect();
        let codes: std::collections::BTreeSet<_> = CODES.iter().map(|(.., code)| code).collect();
        assert_eq!((numbers.len(), codes.len()), (CODES.len(), CODES.len()));
    }
}
