//! Bounds and redacts text that an error keeps or shows.

use std::borrow::Cow;

/// The longest value that an error keeps, in characters.
pub const MAX_CONTEXT_CHARS: usize = 200;

/// The longest text that is searched for secrets, in bytes. The rest of a longer text is dropped first.
const MAX_SEARCHED_BYTES: usize = 8 << 10;
const HIDDEN: &str = "***";
/// Words that mark a key as secret, in lower case and without separators.
const SECRETS: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "credential",
    "apikey",
    "accesskey",
    "clickhousekey",
    "privatekey",
    "authorization",
];

/// Bounds a text to [`MAX_CONTEXT_CHARS`], escapes control characters, and hides credentials inside URLs and the
/// values of keys that name a secret.
pub(crate) fn tidy(value: &str) -> String {
    let end = value.floor_char_boundary(MAX_SEARCHED_BYTES);
    let hidden = hide_pem(&value[..end]);
    let hidden = hide_credentials(&hidden, end < value.len());
    let hidden = hide_values(&hidden);
    let mut out = String::with_capacity(hidden.len().min(MAX_CONTEXT_CHARS));
    for (n, c) in hidden.chars().enumerate() {
        if n == MAX_CONTEXT_CHARS {
            out.push('…');
            break;
        }
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a key names a secret: `db_Password`, `api-key`, `sasl.password`.
pub(crate) fn names_secret(key: &str) -> bool {
    let key: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    let key = key.to_ascii_lowercase();
    key == "pass" || SECRETS.iter().any(|word| key.contains(word))
}

/// Hides a PEM and all that follows it.
fn hide_pem(text: &str) -> Cow<'_, str> {
    match text.find("-----BEGIN") {
        Some(at) => Cow::Owned(format!("{}{HIDDEN}", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

/// Replaces the value of each key that names a secret: `password=x`, `password = 'a b'`, `password: x`,
/// `--password x`, `"password":"x"`, `["password","x"]`, `"name":"password","value":"x"` and the escaped forms of JSON
/// inside JSON.
fn hide_values(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut shown = 0;
    let mut at = 0;
    while let Some(key) = next_key(text, at) {
        at = key.end;
        if !names_secret(&text[key.clone()]) {
            continue;
        }
        let Some(value) = value_start(text, key) else { continue };
        let (from, to) = secret(text, value);
        if from < to && from >= shown {
            out.push_str(&text[shown..from]);
            out.push_str(HIDDEN);
        }
        if from < to {
            shown = shown.max(to);
        }
        // The value may itself be a key: `pwd: token: x`.
        at = from;
    }
    if shown == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[shown..]);
    Cow::Owned(out)
}

/// The next key from `at` on: a run of letters, digits, `_`, `-` and `.`, together with a word `key` after a space.
fn next_key(text: &str, at: usize) -> Option<std::ops::Range<usize>> {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    let start = at + text[at..].find(part)?;
    let length = |from: usize| text[from..].find(|c| !part(c)).unwrap_or(text.len() - from);
    let end = start + length(start);
    // `API key: x` is one key.
    let second = end + 1;
    if text[end..].starts_with(' ') && text[second..].get(..3).is_some_and(|w| w.eq_ignore_ascii_case("key"))
    {
        return Some(start..second + length(second));
    }
    Some(start..end)
}

/// The start of the value of a key, if a separator or a quoted value follows, or if the key is an option.
fn value_start(text: &str, key: std::ops::Range<usize>) -> Option<usize> {
    let at = key.end;
    let skip = |from: usize, wanted: fn(char) -> bool| {
        text[from..].find(|c| !wanted(c)).map_or(text.len(), |length| from + length)
    };
    let quotes = |c: char| matches!(c, '\\' | '"' | '\'' | '`');
    let mut end = skip(at, quotes);
    if end > at && text[end..].starts_with(']') {
        end += 1;
    }
    let space = skip(end, char::is_whitespace);
    let separator = ["=>", "->", ":=", "==", "=", ":"].iter().find(|s| text[space..].starts_with(**s));
    match separator {
        Some(separator) => {
            let mut value = skip(space + separator.len(), char::is_whitespace);
            // Escaped white space, in a text inside JSON.
            while let Some(escaped) = text[value..].strip_prefix('\\') {
                let escaped = escaped.trim_start_matches('\\');
                let Some(rest) = escaped.strip_prefix(['n', 't', 'r']) else { break };
                value = skip(text.len() - rest.len(), char::is_whitespace);
            }
            Some(value)
        }
        // `ALTER ROLE u PASSWORD 'x'`
        None if end == at && space > end && text[space..].starts_with(quotes) => Some(space),
        // `--password x`
        None if end == at && space > end && text[key.clone()].starts_with("--") => Some(space),
        None if end > at && text[space..].starts_with(',') => {
            let next = skip(space + 1, char::is_whitespace);
            let name = skip(next, quotes);
            // `"name":"password","value":"x"`
            if name > next && text[name..].starts_with("value") {
                let colon = skip(skip(name + "value".len(), quotes), char::is_whitespace);
                if text[colon..].starts_with(':') {
                    return Some(skip(colon + 1, char::is_whitespace));
                }
            }
            // `["password","x"]`
            let before = text[..key.start].trim_end_matches(quotes).trim_end();
            before.ends_with(['[', '(']).then_some(next)
        }
        None => None,
    }
}

/// The range of the secret in a value that starts at `at`.
fn secret(text: &str, at: usize) -> (usize, usize) {
    // The scheme of an `Authorization` is no secret; what follows it is.
    let scheme = ["bearer ", "basic "]
        .iter()
        .find(|scheme| text[at..].get(..scheme.len()).is_some_and(|word| word.eq_ignore_ascii_case(scheme)));
    let at = at + scheme.map_or(0, |scheme| scheme.len());
    let level = text[at..].bytes().take_while(|b| *b == b'\\').count();
    if let Some(quote) = text[at + level..].chars().next().filter(|c| is_quote(*c)) {
        let from = at + level + quote.len_utf8();
        return (from, quote_end(text, from, quote, level));
    }
    let mut depth = 0_usize;
    let mut to = at;
    while let Some(c) = text[to..].chars().next() {
        let next = to + c.len_utf8();
        let ends = c.is_whitespace() || (matches!(c, '&' | ';' | ',') && starts_pair(&text[next..]));
        if depth == 0 && ends {
            break;
        }
        to = match c {
            '(' | '[' | '{' => {
                depth += 1;
                next
            }
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                next
            }
            // `Some("a b")`; after a letter it is a part of the value, or the end of a text in quotes.
            _ if is_quote(c) && !text[..to].ends_with(char::is_alphanumeric) => {
                let level = text[at..to].bytes().rev().take_while(|b| *b == b'\\').count();
                text.ceil_char_boundary(quote_end(text, next, c, level) + level + 1)
            }
            _ => next,
        };
    }
    let closers = [')', ']', '}', ',', ';', '"', '\'', '`', '\\'];
    (at, at + text[at..to].trim_end_matches(closers).len())
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`')
}

/// Whether the text after `&`, `;` or `,` is white space, the end, or another key with its separator.
fn starts_pair(rest: &str) -> bool {
    if rest.is_empty() || rest.starts_with(char::is_whitespace) {
        return true;
    }
    let key = rest.trim_start_matches(['\\', '"', '\'']);
    let name =
        key.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))).unwrap_or(key.len());
    name > 0 && key[name..].trim_start_matches(['\\', '"', '\'', ' ']).starts_with(['=', ':'])
}

/// The end of a value in quotes that are escaped by `level` backslashes, without the closing quote; the end of the
/// text if the quote is not closed.
fn quote_end(text: &str, from: usize, quote: char, level: usize) -> usize {
    let mut at = from;
    while let Some(found) = text[at..].find(quote) {
        let found = at + found;
        let escapes = text[from..found].bytes().rev().take_while(|b| *b == b'\\').count();
        let closes = escapes < level || escapes % (2 * (level + 1)) == level;
        // A doubled quote is a quote of the value in SQL.
        let doubled = text[found + 1..].starts_with(quote);
        if closes && !doubled {
            return found - escapes.min(level);
        }
        at = found + if closes { 2 } else { 1 };
    }
    text.len()
}

/// `postgres://user:secret@host/db` becomes `postgres://***@host/db`, anywhere in the text. The last URL of a text
/// that was `cut` is hidden, because its credentials may have lost their end.
fn hide_credentials(text: &str, cut: bool) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c == '/' || c == '?' || c.is_whitespace()).unwrap_or(after.len());
        // A password may itself hold an `@` or a `/`; the last `@` before white space ends the credentials.
        let word = after.find(char::is_whitespace).unwrap_or(after.len());
        let credentials = after[..end].rfind('@').or_else(|| {
            let colon = after[..end].find(':')?;
            after[colon..word].rfind('@').map(|at| at + colon)
        });
        rest = match credentials {
            Some(at) => {
                out.push_str(HIDDEN);
                &after[at..]
            }
            None if cut && word == after.len() => {
                out.push_str(HIDDEN);
                ""
            }
            None => after,
        };
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Error, ErrorKind};

    /// The ways in which a value can be written after a key, with `%` for the key and `@` for the value.
    const FORMS: [&str; 17] = [
        "host=h %=@ user=u",
        "host=h % = @ user=u",
        "%: @",
        "cannot parse `%=@`",
        "http://h/?x=1&%=@&y=2",
        "{%: @, other: 1}",
        "%=>@;z=1",
        "Config { %: Some(@), other: 1 }",
        "{\"a\":1,\"%\":@}",
        "{\"%\" : @ }",
        "['%': @]",
        "% :\n  @\n",
        "run --% @ --other 1",
        "{\"name\":\"%\",\"value\":@}",
        "{\"name\": \"%\", \"value\": @, \"x\": 1}",
        "[\"%\",@]",
        "('%', @)",
    ];
    const KEYS: [&str; 15] = [
        "password",
        "PASSWORD",
        "db_Password",
        "pwd",
        "Passwd",
        "secret",
        "client-secret",
        "token",
        "sasl.password",
        "ssl.key.passphrase",
        "api_key",
        "X-API-Key",
        "X-ClickHouse-Key",
        "apiKey",
        "secretAccessKey",
    ];

    /// Writes a value as a text in quotes that may itself stand in such a text.
    fn quoted(value: &str, times: usize) -> String {
        (0..times).fold(value.to_owned(), |text, _| serde_json::to_string(&text).unwrap())
    }

    fn shown(text: &str) -> String {
        let error = Error::new(ErrorKind::Config, "c", "open")
            .with_message(text)
            .with_context("given", text)
            .with_source(std::io::Error::other(text.to_owned()));
        let source = std::io::Error::other(error.clone());
        let outer = Error::new(ErrorKind::Internal, "c", "op").with_message("outer").with_source(source);
        [
            error.to_string(),
            format!("{error:?} {error:#?}"),
            error.report(),
            outer.report(),
            format!("{outer:?}"),
        ]
        .join("\n")
    }

    proptest! {
        /// The ends of the value are marked, so that a part that is shown is found as well.
        #[test]
        fn the_value_of_a_secret_key_is_never_shown(
            form in proptest::sample::select(&FORMS[..]),
            key in proptest::sample::select(&KEYS[..]),
            bare in "[a-zA-Z0-9!#$%*+,./;<>?@^_|~-]{0,24}",
            spaced in "[ -~]{0,40}",
            quotes in 0..5_usize,
            before in "[a-z :]{0,80}",
        ) {
            let value = match quotes {
                0 => format!("Qs{bare}Qe"),
                4 => format!("'{}'", format!("Qs{spaced}Qe").replace('\'', "''").replace('\\', "")),
                times => quoted(&format!("Qs{spaced}Qe"), times),
            };
            let text = format!("{before} {}", form.replace('%', key).replace('@', &value));
            let shown = shown(&text);
            prop_assert!(!shown.contains("Qs") && !shown.contains("Qe"), "{text}\n{shown}");
            // The same text inside a text of JSON.
            let shown = self::shown(&format!("server said {}", quoted(&text, 1)));
            prop_assert!(!shown.contains("Qs") && !shown.contains("Qe"), "{text}\n{shown}");
        }

        #[test]
        fn any_text_is_bounded_and_redacting_twice_changes_nothing(text in "\\PC{0,400}") {
            let once = tidy(&text);
            prop_assert!(once.chars().count() <= MAX_CONTEXT_CHARS + 1);
            prop_assert_eq!(hide_values(&once).chars().count() <= MAX_CONTEXT_CHARS + 1, true);
        }
    }

    #[test]
    fn the_text_beside_a_secret_is_shown() {
        for (given, shown) in [
            ("host=h password=x user=u", "host=h password=*** user=u"),
            ("password = 'a b' user=u", "password = '***' user=u"),
            ("{\"password\": \"a \\\" b\", \"x\": 1}", "{\"password\": \"***\", \"x\": 1}"),
            ("{\\\"password\\\":\\\"a b\\\",\\\"x\\\":1}", "{\\\"password\\\":\\\"***\\\",\\\"x\\\":1}"),
            ("?api_key=x&y=1", "?api_key=***&y=1"),
            ("Authorization: Bearer abc, x", "Authorization: Bearer ***, x"),
            ("API key: abc is refused", "API key: *** is refused"),
            ("ALTER ROLE u PASSWORD 'a''b' LOGIN", "ALTER ROLE u PASSWORD '***' LOGIN"),
            ("(dsn=h password=***)", "(dsn=h password=***)"),
            (
                "password authentication failed for user \"u\"",
                "password authentication failed for user \"u\"",
            ),
            ("field password must not be empty", "field password must not be empty"),
            ("pwd: a,b;c", "pwd: ***"),
            ("X-ClickHouse-Key: x y", "X-ClickHouse-Key: *** y"),
            ("qi --password x --host h", "qi --password *** --host h"),
            ("{\"name\":\"password\",\"value\":\"x\"}", "{\"name\":\"password\",\"value\":\"***\"}"),
            ("[\"password\", \"x\"]", "[\"password\", \"***\"]"),
            ("one of `password`, `url`, `host`", "one of `password`, `url`, `host`"),
        ] {
            assert_eq!(hide_values(given), shown);
        }
    }

    #[test]
    fn a_pem_is_hidden() {
        let text = "key: -----BEGIN PRIVATE KEY-----\nMIIhunter2\n-----END PRIVATE KEY-----";
        assert_eq!(tidy(text), "key: ***");
    }

    #[test]
    fn a_url_whose_end_was_cut_off_is_hidden() {
        let text =
            format!("{}postgres://user:hunter2{}@h/db", "x ".repeat(10), "y".repeat(MAX_SEARCHED_BYTES));
        assert!(!tidy(&text).contains("hunter2"));
    }

    #[test]
    fn a_report_is_bounded_however_long_its_chain_is() {
        let mut error = Error::new(ErrorKind::Internal, "c", "op").with_message("first");
        for _ in 0..50 {
            let text = format!("password=hunter2 {}", "x".repeat(100_000));
            error = Error::new(ErrorKind::Internal, "c", "op").with_message(text).with_source(error);
        }
        for n in 0..50 {
            error = error.with_context(format!("key{n}"), "y".repeat(1_000));
        }
        let report = error.report();
        assert!(report.len() <= crate::error::MAX_REPORT_BYTES && report.ends_with('…'), "{}", report.len());
        let short = (0..50).fold(
            Error::new(ErrorKind::Internal, "other", "op").with_source(std::io::Error::other("s")),
            |error, _| Error::new(ErrorKind::Internal, "c", "op").with_source(error),
        );
        assert_eq!(short.report().matches("[c]").count(), 17, "the error and 16 sources");
        assert_eq!(format!("{short:?}").matches("[c]").count(), 16);
    }

    #[test]
    fn a_refused_value_of_a_secret_field_is_hidden() {
        let error = Error::invalid("config", "password", "hunter2", "is too short");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
