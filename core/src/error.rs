//! The error type of the library, and the table of its kinds.
//!
//! Every operation of every port fails with [`Error`]. A program decides by [`Error::kind`], the category of the
//! failure, and by [`Error::retry`], the advice about a retry. A person reads the code, the operation, the context and
//! the chain of sources.
//!
//! ```
//! use qi_core::{Error, ErrorKind, RetryAdvice};
//!
//! let error = Error::new(ErrorKind::Unavailable, "feed.http.refused", "poll")
//!     .with_message("the exchange refused the connection")
//!     .with_context("exchange", "kraken");
//! assert_eq!(error.retry(), RetryAdvice::Backoff);
//! assert_eq!(
//!     error.to_string(),
//!     "poll: unavailable [feed.http.refused]: the exchange refused the connection (exchange=kraken)"
//! );
//! ```

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use crate::redact::MAX_CONTEXT_CHARS;
use crate::redact::{names_secret, redact};

/// The result of every operation of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest text that [`Error::report`] returns, in bytes.
pub const MAX_REPORT_BYTES: usize = 2048;
/// The largest number of sources that a report and `Debug` show.
const MAX_SOURCES: usize = 16;

/// The category of a failure, for decisions of the caller. The table in [`guide::errors`](crate::guide::errors) maps the error codes of each
/// backend to these kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's value breaks a rule of the domain or of the port. Nothing was sent.
    InvalidInput,
    /// A computed result, such as a sum or a product, exceeds the range of the domain.
    OutOfRange,
    /// The configuration is wrong, or refers to something that does not exist.
    Config,
    /// The backend rejected the credentials or the permissions of the caller.
    Unauthorized,
    /// The named object, for example a topic, does not exist.
    NotFound,
    /// The schema is absent, or differs from the schema that this code expects.
    SchemaMismatch,
    /// The backend, its edition, or this build does not support the operation.
    Unsupported,
    /// The backend cannot be reached, or is starting or stopping.
    Unavailable,
    /// No response arrived in time. The operation may still take effect.
    Timeout,
    /// The backend, a pool or a buffer is full.
    Overloaded,
    /// A conflict with another writer.
    Conflict,
    /// Stored or received data violates the rules of the domain.
    CorruptData,
    /// The store, the bus or another object is closed.
    Closed,
    /// An error of an application that uses the library; see [`ResultExt`].
    Application,
    /// A bug in this library.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the table.
    pub const ALL: [Self; 15] = [
        Self::InvalidInput,
        Self::OutOfRange,
        Self::Config,
        Self::Unauthorized,
        Self::NotFound,
        Self::SchemaMismatch,
        Self::Unsupported,
        Self::Unavailable,
        Self::Timeout,
        Self::Overloaded,
        Self::Conflict,
        Self::CorruptData,
        Self::Closed,
        Self::Application,
        Self::Internal,
    ];

    /// Returns the stable lower-case name that logs and metrics use: `invalid_input`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::OutOfRange => "out_of_range",
            Self::Config => "config",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::SchemaMismatch => "schema_mismatch",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::Conflict => "conflict",
            Self::CorruptData => "corrupt_data",
            Self::Closed => "closed",
            Self::Application => "application",
            Self::Internal => "internal",
        }
    }

    /// Returns the advice that an error of this kind has unless its creator sets another advice.
    ///
    /// A retry is advised only for failures that may pass with time: a server that is not available, a late response, a
    /// full queue, a conflict with another writer.
    pub const fn default_retry(self) -> RetryAdvice {
        match self {
            Self::Unavailable | Self::Timeout | Self::Overloaded | Self::Conflict => RetryAdvice::Backoff,
            Self::InvalidInput
            | Self::OutOfRange
            | Self::Config
            | Self::Unauthorized
            | Self::NotFound
            | Self::SchemaMismatch
            | Self::Unsupported
            | Self::CorruptData
            | Self::Closed
            | Self::Application
            | Self::Internal => RetryAdvice::Never,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid input",
            Self::OutOfRange => "out of range",
            Self::Config => "configuration",
            Self::NotFound => "not found",
            Self::SchemaMismatch => "schema mismatch",
            Self::CorruptData => "corrupt data",
            other => other.as_str(),
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Advice on whether the same call can succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryAdvice {
    /// The same call will fail again.
    Never,
    /// A retry with growing delays can succeed.
    Backoff,
    /// A retry can succeed, but not before this time has passed.
    After(Duration),
}

impl RetryAdvice {
    /// Returns whether a retry can succeed.
    pub const fn is_retryable(self) -> bool {
        !matches!(self, Self::Never)
    }
}

type Source = Arc<dyn std::error::Error + Send + Sync + 'static>;

/// The error of the library: its kind, its place, and the advice about a retry. Cloning it costs one reference count.
///
/// `Display` shows everything except the source, which [`std::error::Error::source`] returns. [`Error::report`] also
/// shows the chain of sources.
///
/// `Display`, `Debug` and the report are bounded. They hide credentials in URLs and the values of keys that name a
/// secret (`password = x`, `"token": "x"`). [`std::error::Error::source`] returns the unmodified source, which may
/// contain secrets, so do not show it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    code: Cow<'static, str>,
    operation: Cow<'static, str>,
    backend: Option<Cow<'static, str>>,
    message: Option<String>,
    context: Vec<(Cow<'static, str>, String)>,
    source: Option<Source>,
    retry: RetryAdvice,
    exhausted: Option<u32>,
}

impl Error {
    /// Creates an error of `kind` with a stable, dotted `code` (`store.timescale.deadlock`). `operation` is the name of
    /// the method that failed.
    pub fn new(
        kind: ErrorKind,
        code: impl Into<Cow<'static, str>>,
        operation: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            code: code.into(),
            operation: operation.into(),
            backend: None,
            message: None,
            context: Vec::new(),
            source: None,
            retry: kind.default_retry(),
            exhausted: None,
        }))
    }

    /// Creates an [`ErrorKind::InvalidInput`] error. It names the field, shows its value (cut to
    /// [`MAX_CONTEXT_CHARS`]), and states the broken rule.
    pub fn invalid(
        code: impl Into<Cow<'static, str>>,
        field: &'static str,
        value: impl fmt::Display,
        rule: impl fmt::Display,
    ) -> Self {
        let error = Self::new(ErrorKind::InvalidInput, code, "validate")
            .with_message(format_args!("{field} {rule}"))
            .with_context("field", field);
        if names_secret(field) {
            error.with_context("value", "***")
        } else {
            error.with_context("value", value)
        }
    }

    /// Creates an [`ErrorKind::Closed`] error: `operation` was called after `close`.
    pub fn closed(code: impl Into<Cow<'static, str>>, operation: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Closed, code, operation).with_message("already closed")
    }

    fn edit(mut self, edit: impl FnOnce(&mut Inner)) -> Self {
        edit(Arc::make_mut(&mut self.0));
        self
    }

    /// Sets the message, a sentence for people.
    #[must_use]
    pub fn with_message(self, message: impl fmt::Display) -> Self {
        self.edit(|e| e.message = Some(redact(&message.to_string())))
    }

    /// Adds a key and a value to the context. The value is cut to [`MAX_CONTEXT_CHARS`], and credentials in URLs are
    /// hidden. If the key names a secret (`password`, `token`, ...), the entire value is hidden.
    #[must_use]
    pub fn with_context(self, key: impl Into<Cow<'static, str>>, value: impl fmt::Display) -> Self {
        self.edit(|e| {
            let key = key.into();
            let value = if names_secret(&key) { "***".to_owned() } else { redact(&value.to_string()) };
            e.context.push((key, value));
        })
    }

    /// Sets the source, the error that caused this error.
    #[must_use]
    pub fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.edit(|e| e.source = Some(Arc::new(source)))
    }

    /// Sets the retry advice, in place of the default of the kind.
    #[must_use]
    pub fn with_retry(self, retry: RetryAdvice) -> Self {
        self.edit(|e| e.retry = retry)
    }

    /// Sets the operation that failed, if the creator of the error could not know it.
    #[must_use]
    pub fn with_operation(self, operation: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|e| e.operation = operation.into())
    }

    /// Sets the backend that returned the error: `memory`, `timescale`, ...
    #[must_use]
    pub fn with_backend(self, backend: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|e| e.backend = Some(backend.into()))
    }

    /// Marks the error as exhausted: a retry layer made all its `attempts`. An outer retry layer then does not multiply
    /// the attempts. [`Error::retry`] does not change.
    #[must_use]
    pub fn with_exhausted(self, attempts: u32) -> Self {
        self.edit(|e| e.exhausted = Some(attempts))
    }

    /// Returns the category of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the stable code that alerts and dashboards may match on.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// Returns the operation that failed.
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// Returns the backend that returned the error, if any.
    pub fn backend(&self) -> Option<&str> {
        self.0.backend.as_deref()
    }

    /// Returns the message, a sentence for people.
    pub fn message(&self) -> Option<&str> {
        self.0.message.as_deref()
    }

    /// Returns the keys and values of the context, in the order in which they were added.
    pub fn context(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.context.iter().map(|(key, value)| (key.as_ref(), value.as_str()))
    }

    /// Returns the value of the first context entry with this key.
    pub fn context_value(&self, key: &str) -> Option<&str> {
        self.context().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Returns the advice on whether the same call can succeed later.
    pub fn retry(&self) -> RetryAdvice {
        self.0.retry
    }

    /// Returns the number of attempts, if a retry layer has made all its attempts.
    pub fn exhausted(&self) -> Option<u32> {
        self.0.exhausted
    }

    /// Returns the first error of type `E` in the chain of sources. An application finds its own error with it.
    ///
    /// ```
    /// # use qi_core::Error;
    /// #[derive(Debug, PartialEq)]
    /// struct Halted;
    /// # impl std::fmt::Display for Halted {
    /// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("halted") }
    /// # }
    /// impl std::error::Error for Halted {}
    /// let error = Error::new(qi_core::ErrorKind::Application, "exchange.halted", "poll").with_source(Halted);
    /// assert_eq!(error.find_source::<Halted>(), Some(&Halted));
    /// ```
    pub fn find_source<E: std::error::Error + 'static>(&self) -> Option<&E> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(self);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<E>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// Returns the `Display` text of this error and of up to 16 sources, joined by `: `, in at most
    /// [`MAX_REPORT_BYTES`].
    ///
    /// Each source is bounded and redacted like a message.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        for source in self.sources() {
            if text.len() > MAX_REPORT_BYTES {
                break;
            }
            text.push_str(": ");
            text.push_str(&source);
        }
        if text.len() > MAX_REPORT_BYTES {
            text.truncate(text.floor_char_boundary(MAX_REPORT_BYTES - '…'.len_utf8()));
            text.push('…');
        }
        text
    }

    /// Returns the displayable texts of the sources. An [`Error`] among them has already
    /// bounded and redacted its parts.
    fn sources(&self) -> impl Iterator<Item = String> {
        let first = std::error::Error::source(self);
        std::iter::successors(first, |error| error.source()).take(MAX_SOURCES).map(|source| {
            match source.downcast_ref::<Self>() {
                Some(error) => error.to_string(),
                None => redact(&source.to_string()),
            }
        })
    }
}

/// Conversions from errors of other libraries. The method states whether the same call can succeed later, and the code
/// is the stable code for alerts.
///
/// The converted error has the kind [`ErrorKind::Application`] and keeps the original error as its source. An agent
/// that returns a retryable error restarts, while a permanent error ends the agent.
///
/// ```
/// use qi_core::{Result, ResultExt, RetryAdvice};
///
/// fn poll() -> Result<u64> {
///     let text = std::fs::read_to_string("/no/such/file").retryable("feed.read", "poll")?;
///     text.trim().parse().permanent("feed.parse", "poll")
/// }
/// let error = poll().unwrap_err();
/// assert_eq!((error.code(), error.retry()), ("feed.read", RetryAdvice::Backoff));
/// ```
pub trait ResultExt<T> {
    /// Converts the error to a temporary error: the caller retries, and an agent restarts.
    fn retryable(
        self,
        code: impl Into<Cow<'static, str>>,
        operation: impl Into<Cow<'static, str>>,
    ) -> Result<T>;

    /// Converts the error to a permanent error: callers do not retry, and an agent fails.
    fn permanent(
        self,
        code: impl Into<Cow<'static, str>>,
        operation: impl Into<Cow<'static, str>>,
    ) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> ResultExt<T> for std::result::Result<T, E> {
    fn retryable(
        self,
        code: impl Into<Cow<'static, str>>,
        operation: impl Into<Cow<'static, str>>,
    ) -> Result<T> {
        self.permanent(code, operation).map_err(|error| error.with_retry(RetryAdvice::Backoff))
    }

    fn permanent(
        self,
        code: impl Into<Cow<'static, str>>,
        operation: impl Into<Cow<'static, str>>,
    ) -> Result<T> {
        self.map_err(|source| Error::new(ErrorKind::Application, code, operation).with_source(source))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        write!(f, "{}: {} [{}]", e.operation, e.kind.words(), e.code)?;
        if let Some(message) = &e.message {
            write!(f, ": {message}")?;
        }
        let mut separator = " (";
        let backend = e.backend.as_deref().map(|b| ("backend", b));
        for (key, value) in backend.into_iter().chain(self.context()) {
            write!(f, "{separator}{key}={value}")?;
            separator = ", ";
        }
        if let Some(attempts) = e.exhausted {
            write!(f, "{separator}attempts={attempts}, exhausted=true")?;
            separator = ", ";
        }
        if separator == ", " { f.write_str(")") } else { Ok(()) }
    }
}

/// Formats the text of [`Error::report`], which is what a `main` that returns this error prints. `{:#?}` formats all
/// fields.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return f.write_str(&self.report());
        }
        let e = &*self.0;
        f.debug_struct("Error")
            .field("kind", &e.kind)
            .field("code", &e.code)
            .field("operation", &e.operation)
            .field("backend", &e.backend)
            .field("message", &e.message)
            .field("context", &e.context)
            .field("retry", &e.retry)
            .field("exhausted", &e.exhausted)
            .field("sources", &self.sources().collect::<Vec<_>>())
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the "retry" column of the table in `docs/errors.md`, row by row.
    #[test]
    fn every_kind_has_a_name_and_advice() {
        use RetryAdvice::{Backoff, Never};
        let rows = [
            (ErrorKind::InvalidInput, "invalid_input", Never),
            (ErrorKind::OutOfRange, "out_of_range", Never),
            (ErrorKind::Config, "config", Never),
            (ErrorKind::Unauthorized, "unauthorized", Never),
            (ErrorKind::NotFound, "not_found", Never),
            (ErrorKind::SchemaMismatch, "schema_mismatch", Never),
            (ErrorKind::Unsupported, "unsupported", Never),
            (ErrorKind::Unavailable, "unavailable", Backoff),
            (ErrorKind::Timeout, "timeout", Backoff),
            (ErrorKind::Overloaded, "overloaded", Backoff),
            (ErrorKind::Conflict, "conflict", Backoff),
            (ErrorKind::CorruptData, "corrupt_data", Never),
            (ErrorKind::Closed, "closed", Never),
            (ErrorKind::Application, "application", Never),
            (ErrorKind::Internal, "internal", Never),
        ];
        assert_eq!(rows.map(|(kind, ..)| kind), ErrorKind::ALL);
        for (kind, name, retry) in rows {
            let error = Error::new(kind, "some.code", "some_operation");
            assert_eq!((error.kind(), error.kind().as_str(), error.retry()), (kind, name, retry));
            assert!(error.to_string().starts_with("some_operation: "), "{error}");
        }
    }

    #[test]
    fn retry_advice_overrides_the_default_of_the_kind() {
        let error = Error::new(ErrorKind::Conflict, "bus.topic.partitions", "create_topics")
            .with_retry(RetryAdvice::Never);
        assert!(!error.retry().is_retryable());
    }

    #[test]
    fn result_ext_sets_the_retry_advice_and_keeps_the_source() {
        let reset = || Err::<(), _>(std::io::Error::other("connection reset"));
        let retryable = reset().retryable("feed.http", "poll").unwrap_err();
        let permanent = reset().permanent("feed.http", "poll").unwrap_err();
        assert_eq!((retryable.retry(), permanent.retry()), (RetryAdvice::Backoff, RetryAdvice::Never));
        for error in [retryable, permanent] {
            assert_eq!((error.kind(), error.code()), (ErrorKind::Application, "feed.http"));
            assert_eq!(error.report(), "poll: application [feed.http]: connection reset");
            assert!(error.find_source::<std::io::Error>().is_some());
        }
        assert_eq!(Ok::<_, std::io::Error>(7).retryable("c", "op").unwrap(), 7);
    }

    #[test]
    fn result_ext_sets_the_retry_advice_of_qi_errors() {
        let inner = Err::<(), _>(Error::new(ErrorKind::Config, "inner", "open"));
        let error = inner.retryable("outer", "poll").unwrap_err();
        assert_eq!((error.code(), error.retry()), ("outer", RetryAdvice::Backoff));
        assert_eq!(error.find_source::<Error>().map(Error::code), Some("inner"));
    }

    #[test]
    fn exhaustion_adds_only_context() {
        let plain = Error::new(ErrorKind::Unavailable, "c", "op").with_context("k", "v");
        let spent = plain.clone().with_exhausted(5);
        assert_eq!((plain.exhausted(), spent.exhausted()), (None, Some(5)));
        assert_eq!(spent.retry(), RetryAdvice::Backoff);
        assert_eq!(spent.to_string(), "op: unavailable [c] (k=v, attempts=5, exhausted=true)");
    }

    #[test]
    fn display_does_not_repeat_the_source_and_report_shows_the_chain() {
        let error = Error::new(ErrorKind::Unavailable, "c", "ping")
            .with_source(std::io::Error::other("connection reset"));
        assert_eq!(error.to_string(), "ping: unavailable [c]");
        assert_eq!(error.report(), "ping: unavailable [c]: connection reset");
    }

    #[test]
    fn credentials_inside_urls_are_hidden() {
        for (given, shown) in [
            ("postgres://u:secret@h:5/db", "postgres://***@h:5/db"),
            (
                "cannot reach http://u:s@x and kafka://a:b@y/z",
                "cannot reach http://***@x and kafka://***@y/z",
            ),
            ("postgres://u:se/cr@t@h/db", "postgres://***@h/db"),
            ("http://host/path?mail=a@b", "http://host/path?mail=a@b"),
        ] {
            let error = Error::new(ErrorKind::Config, "c", "open").with_message(given);
            assert_eq!(error.message(), Some(shown));
        }
    }

    #[test]
    fn name_and_value_pairs_of_secrets_are_hidden() {
        let error = Error::new(ErrorKind::Config, "c", "open")
            .with_context("db_Password", "hunter2")
            .with_context("dsn", "host=h password=hunter2 user=u")
            .with_message("http://h/?token=hunter2&x=1");
        assert_eq!(error.context_value("dsn"), Some("host=h password=*** user=u"));
        assert_eq!(format!("{error:?}"), error.report());
        for shown in [error.to_string(), format!("{error:#?}")] {
            assert!(
                !shown.contains("hunter2") && shown.contains("user=u") && shown.contains("x=1"),
                "{shown}"
            );
        }
    }

    #[test]
    fn context_values_are_truncated_and_escaped() {
        let error = Error::invalid("domain.symbol", "symbol", "x\n".repeat(5_000), "is too long");
        let value = error.context_value("value").unwrap();
        assert!(value.chars().count() <= MAX_CONTEXT_CHARS * 2 && value.ends_with('…'), "{value}");
        assert!(!value.contains('\n'));
    }

    #[test]
    fn editing_a_clone_does_not_change_the_original() {
        let one = Error::new(ErrorKind::Timeout, "c", "op");
        let two = one.clone().with_backend("memory");
        assert_eq!((one.backend(), two.backend()), (None, Some("memory")));
    }
}
