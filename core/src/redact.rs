//! Limits the length of texts in errors, and hides secrets in them.

use std::borrow::Cow;
use std::ops::Range;

/// The longest text that an error keeps, in characters before control characters are escaped.
pub const MAX_CONTEXT_CHARS: usize = 200;

/// The longest text that is searched for secrets, in bytes. Longer texts are truncated before the search.
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

/// Words that follow a secret key in ordinary sentences: `password must not be empty`.
const PROSE: &str = " a an and are as at authentication based be been before but by can cannot change changed check \
    contains could did differs do does empty encryption error exceeds expire expired expires failed failure field file \
    for found from given had has hash have if in incorrect instead invalid is it length login matches may method \
    mismatch missing must needs never no nor not null of on only option or over policy prompt protected provided \
    refused rejected required reset rotation sent set shall should supplied that the then to too type until unset \
    using valid value verification via was were when which while will with without wrong ";
/// The schemes of an `Authorization` header.
const SCHEMES: [&str; 8] =
    ["bearer", "basic", "digest", "negotiate", "ntlm", "apikey", "token", "aws4-hmac-sha256"];

/// Truncates a text to [`MAX_CONTEXT_CHARS`], escapes control characters, and hides credentials in URLs and
/// the values of secret keys.
pub(crate) fn redact(value: &str) -> String {
    let end = value.floor_char_boundary(MAX_SEARCHED_BYTES);
    let mut hidden = hide_all(&value[..end], end < value.len());
    // Secrets are hidden before the text is unescaped, so an escaped quote in a secret cannot end the secret.
    if let Some(plain) = unescaped(&hidden) {
        let hidden_twice = hide_all(&plain, false);
        if hidden_twice != plain {
            hidden = hidden_twice;
        }
    }
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

fn hide_all(text: &str, cut: bool) -> String {
    let hidden = hide_pem(text);
    let hidden = hide_credentials(&hidden, cut);
    let hidden = hide_logins(&hidden);
    hide_values(&hidden).into_owned()
}

/// Returns whether a key names a secret: `db_Password`, `api-key`, `sasl.password`, `db_pass`.
pub(crate) fn names_secret(key: &str) -> bool {
    let word = alphanumeric(key);
    SECRETS.iter().any(|secret| word.contains(secret))
        || matches!(&*word, "pass" | "requirepass")
        || ["_pass", "-pass", ".pass", "Pass", "_PASS"].iter().any(|end| key.ends_with(end))
}

/// Returns the letters and digits of a key in lower case.
fn alphanumeric(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Replaces escaped letters and punctuation: `\u0077`, `\x3d`, `%3D`, `%253D`, `&quot;`, `&#61;`. Returns None if there
/// are none. White space stays escaped, because it would end a value.
fn unescaped(text: &str) -> Option<String> {
    let code = |digits: Option<&str>| {
        let code = u32::from_str_radix(digits?, 16).ok()?;
        char::from_u32(code).filter(char::is_ascii_graphic)
    };
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut changed) = (text, false);
    while let Some(at) = rest.find(['\\', '%', '&']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (found, length) = match rest.as_bytes()[0] {
            b'\\' => {
                let run = rest.len() - rest.trim_start_matches('\\').len();
                let found = match rest.as_bytes().get(run) {
                    Some(b'u') => code(rest.get(run + 1..run + 5)).map(|c| (c, run + 5)),
                    Some(b'x') => code(rest.get(run + 1..run + 3)).map(|c| (c, run + 3)),
                    _ => None,
                };
                // A quote stays escaped.
                if found.is_none_or(|(c, _)| is_quote(c) || c == '\\') {
                    out.push_str(&rest[..run]);
                }
                (found.map(|(c, _)| c), found.map_or(run, |(_, length)| length))
            }
            b'%' => {
                let mut from = 1;
                while rest[from..].starts_with("25") {
                    from += 2;
                }
                (code(rest.get(from..from + 2)), from + 2)
            }
            _ => {
                let names = [("&quot;", '"'), ("&apos;", '\''), ("&lt;", '<'), ("&gt;", '>'), ("&amp;", '&')];
                match names.iter().find(|(name, _)| rest.starts_with(name)) {
                    Some((name, c)) => (Some(*c), name.len()),
                    None => numeric_entity(rest),
                }
            }
        };
        let length = if found.is_none() && !rest.starts_with('\\') { 1 } else { length };
        match found {
            Some(c) => out.push(c),
            None if length == 1 && !rest.starts_with('\\') => out.push_str(&rest[..1]),
            None => {}
        }
        changed |= found.is_some();
        rest = &rest[length..];
    }
    out.push_str(rest);
    changed.then_some(out)
}

/// Parses `&#61;` or `&#x3d;`. Returns the character and the length of the entity.
fn numeric_entity(text: &str) -> (Option<char>, usize) {
    let parse = || {
        let digits = text.strip_prefix("&#")?;
        let end = digits.bytes().take(6).position(|b| b == b';')?;
        let digits = digits.get(..end)?;
        let code = match digits.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok()?,
            None => digits.parse().ok()?,
        };
        Some((char::from_u32(code).filter(char::is_ascii_graphic)?, end + 3))
    };
    parse().map_or((None, 1), |(c, length)| (Some(c), length))
}

/// Hides a PEM block and everything after it.
fn hide_pem(text: &str) -> Cow<'_, str> {
    match text.find("-----BEGIN") {
        Some(at) => Cow::Owned(format!("{}{HIDDEN}", &text[..at])),
        None => Cow::Borrowed(text),
    }
}

/// Hides the value of each secret key.
///
/// Recognised forms are `password=x`, `password = 'a b'`, `password: x`, `--password x`, `"password":"x"`,
/// `["password","x"]`, `password(x)`, `<password>x</password>`, `PASSWORD x` and `IDENTIFIED BY 'x'`. Further forms are
/// `"name":"password","value":"x"` in either order, and the escaped forms of JSON inside JSON.
fn hide_values(text: &str) -> Cow<'_, str> {
    let mut ranges = paired_values(text);
    let mut at = 0;
    while let Some(key) = next_key(text, at) {
        at = key.end;
        let found = if names_secret(&text[key.clone()]) {
            element(text, &key).or_else(|| value_start(text, key).map(|value| secret(text, value)))
        } else {
            bare_scheme(text, &key).or_else(|| identified_by(text, &key)).map(|value| secret(text, value))
        };
        let Some((from, to)) = found.filter(|(from, to)| from < to) else { continue };
        // The value may itself be a key: `pwd: token: x`. Only its last word can have a value after it.
        let last = text[from..to].trim_end_matches(|c| !is_part(c));
        at = at.max(from + last.rfind(|c| !is_part(c)).map_or(0, |at| last.ceil_char_boundary(at + 1)));
        // `password(x)` becomes `password(***)`.
        let from = if text[from..].starts_with(['(', '[', '{']) { from + 1 } else { from };
        ranges.push((from, to));
    }
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    ranges.sort_unstable();
    let (mut out, mut shown) = (String::new(), 0);
    for (from, to) in ranges {
        if from < to && from >= shown {
            out.push_str(&text[shown..from]);
            out.push_str(HIDDEN);
        }
        shown = shown.max(to);
    }
    out.push_str(&text[shown..]);
    Cow::Owned(out)
}

/// Returns the values of pairs such as `"name":"password","value":"x"`. The two members may have either order
/// and other members between them.
fn paired_values(text: &str) -> Vec<(usize, usize)> {
    /// The first member of a pair whose other member was not found yet.
    #[derive(Clone, Copy)]
    enum PairMember {
        Name { is_secret: bool },
        Value(usize, usize),
    }
    let mut found = Vec::new();
    let mut scopes: Vec<Option<PairMember>> = vec![None];
    let mut at = 0;
    while let Some(key) = next_key(text, at) {
        for c in text[at..key.start].chars() {
            match c {
                '{' | '[' | '(' => scopes.push(None),
                '}' | ']' | ')' if scopes.len() > 1 => {
                    scopes.pop();
                }
                _ => {}
            }
        }
        at = key.end;
        let word = alphanumeric(&text[key.clone()]);
        let is_value = word.ends_with("value") || matches!(&*word, "val" | "given" | "v");
        let is_name = word.ends_with("name")
            || matches!(
                &*word,
                "key"
                    | "k"
                    | "field"
                    | "option"
                    | "setting"
                    | "property"
                    | "param"
                    | "parameter"
                    | "variable"
                    | "var"
                    | "header"
                    | "column"
            );
        if !is_value && !is_name {
            continue;
        }
        // A name is short. The limit keeps the search linear for nested names.
        let searched = if is_value { text } else { &text[..text.ceil_char_boundary(key.end + 100)] };
        // The limit of the depth keeps the search linear for nested values.
        let is_nested = |at: usize| searched[at..].starts_with(['{', '[', '(']);
        let value = |at: usize| (scopes.len() <= 16 || !is_nested(at)).then(|| secret(searched, at));
        let range = element(searched, &key).or_else(|| assigned(searched, key.end).and_then(value));
        let (Some((from, to)), Some(pending)) = (range, scopes.last_mut()) else { continue };
        if is_value {
            match pending.take() {
                Some(PairMember::Name { is_secret: true }) => found.push((from, to)),
                Some(PairMember::Name { is_secret: false }) => {}
                _ => *pending = Some(PairMember::Value(from, to)),
            }
            // The search also covers pairs inside the value.
            if !text[from..].starts_with(['{', '[', '(']) {
                at = at.max(to);
            }
        } else {
            let is_secret = names_secret(&text[from..to]);
            match pending.take() {
                Some(PairMember::Value(from, to)) if is_secret => found.push((from, to)),
                Some(PairMember::Value(..)) => {}
                _ => *pending = Some(PairMember::Name { is_secret }),
            }
        }
    }
    found
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}

fn skip(text: &str, from: usize, wanted: impl Fn(char) -> bool) -> usize {
    text[from..].find(|c| !wanted(c)).map_or(text.len(), |length| from + length)
}

/// Returns the end of white space, which may be escaped in JSON inside JSON.
fn skip_white_space(text: &str, from: usize) -> usize {
    let mut at = skip(text, from, char::is_whitespace);
    while let Some(escaped) = text[at..].strip_prefix('\\') {
        let escaped = escaped.trim_start_matches('\\');
        let Some(rest) = escaped.strip_prefix(['n', 't', 'r']) else { break };
        at = skip(text, text.len() - rest.len(), char::is_whitespace);
    }
    at
}

fn is_quote_or_escape(c: char) -> bool {
    c == '\\' || is_quote(c)
}

/// Returns the next key from `at` on: a run of letters, digits, `_`, `-` and `.`, plus a following word `key`.
fn next_key(text: &str, at: usize) -> Option<Range<usize>> {
    let start = at + text[at..].find(is_part)?;
    let end = skip(text, start, is_part);
    // `API key: x` is one key.
    let second = end + 1;
    if text[end..].starts_with(' ') && text[second..].get(..3).is_some_and(|w| w.eq_ignore_ascii_case("key"))
    {
        return Some(start..skip(text, second, is_part));
    }
    Some(start..end)
}

/// Returns the start of the value after a separator, if there is a separator.
fn assigned(text: &str, key_end: usize) -> Option<usize> {
    let mut end = skip(text, key_end, is_quote_or_escape);
    if end > key_end && text[end..].starts_with(']') {
        end += 1;
    }
    let space = skip(text, end, char::is_whitespace);
    let separator = ["=>", "->", ":=", "==", "=", ":"].iter().find(|s| text[space..].starts_with(**s))?;
    let value = skip_white_space(text, space + separator.len());
    // The value is a YAML block.
    if text[value..].starts_with(['|', '>']) {
        let block = skip(text, value + 1, |c| c.is_ascii_digit() || matches!(c, '+' | '-'));
        if skip_white_space(text, block) > block && !text[block..].starts_with(' ') {
            return Some(skip_white_space(text, block));
        }
    }
    Some(value)
}

/// Returns the start of the value of a secret key, in all forms.
fn value_start(text: &str, key: Range<usize>) -> Option<usize> {
    if let Some(value) = assigned(text, key.end) {
        return Some(value);
    }
    let (at, name) = (key.end, &text[key.clone()]);
    let blank = skip_white_space(text, at);
    let end = if blank > at { at } else { skip(text, at, is_quote_or_escape) };
    let space = skip_white_space(text, end);
    if text[space..].starts_with(',') {
        let next = skip_white_space(text, space + 1);
        let before = text[..key.start].trim_end_matches(is_quote_or_escape).trim_end();
        let first = before.ends_with(['[', '(', '{']);
        // `["password","x"]`, `["psql","--password","x"]`. A list without quotes is a pair if it has two elements.
        let two = || {
            let second = skip(text, next, |c| !matches!(c, ',' | ']' | ')' | '}'));
            !text[second..].starts_with(',')
        };
        let is_pair = if end > at { first || name.starts_with("--") } else { first && two() };
        return is_pair.then_some(next);
    }
    if end > at {
        return None;
    }
    // `password(x)`, but not `password(s)` and `passwords[0]`; `Password { inner: "x" }`
    let word = alphanumeric(name);
    let is_last = word.ends_with("pass") || SECRETS.iter().any(|secret| word.ends_with(secret));
    let braced = text[space..].starts_with('{') && !word.ends_with("token");
    if is_last && (text[at..].starts_with(['(', '[', '{']) || braced) {
        let inner = &text[space + 1..skip(text, space + 1, |c| !matches!(c, ')' | ']' | '}'))];
        let ordinary = matches!(inner, "s" | "es") || inner.bytes().all(|b| b.is_ascii_digit());
        return (!ordinary).then_some(space);
    }
    if space == end {
        return None;
    }
    // `ALTER ROLE u PASSWORD 'x'`, `--password x`
    if text[space..].starts_with(is_quote_or_escape) || name.starts_with("--") {
        return Some(space);
    }
    if !is_last {
        return None;
    }
    let next = next_word(text, space);
    if prefixed_quote(text, space).is_some() {
        return Some(space);
    }
    // `password is x`, `PASSWORD TO 'x'`
    if ["is", "was", "to", "as"].iter().any(|verb| next.eq_ignore_ascii_case(verb)) {
        let value = skip_white_space(text, space + next.len());
        let quoted =
            next.len() == 2 && !next.eq_ignore_ascii_case("is") && text[value..].starts_with(is_quote);
        return (quoted || looks_secret(next_word(text, value), &word)).then_some(value);
    }
    // `PASSWORD x`. An ordinary sentence has neither a digit nor a key in capital letters here.
    let is_upper_case = name.len() > 3 && !name.contains(|c: char| c.is_ascii_lowercase());
    let ordinary = PROSE.contains(&format!(" {} ", next.to_ascii_lowercase())) || next.is_empty();
    let is_secret = looks_secret(next, &word)
        || (!ordinary && !word.ends_with("token") && (is_upper_case || after_login(&text[..key.start])));
    is_secret.then_some(space)
}

/// Returns the word at `at` without trailing punctuation, of limited length.
fn next_word(text: &str, at: usize) -> &str {
    let end = skip(text, at, |c| !c.is_whitespace()).min(text.ceil_char_boundary(at + 100));
    text[at..end].trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '}', '"', '\''])
}

/// Returns whether the word after a key looks like a secret: it has a symbol, digits with other characters,
/// or is a long number.
fn looks_secret(word: &str, key: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let known = ["sha-256", "sha256", "sha1", "sha512", "md5", "base64", "utf-8", "utf8"];
    let lower = word.to_ascii_lowercase();
    let is_number = digits == word.len();
    let symbol = word.contains(['!', '@', '#', '$', '%', '^', '&', '*', '+', '~']);
    (symbol || (digits > 0 && (!is_number || (digits > 3 && !key.ends_with("token")))))
        && !known.iter().any(|name| lower.contains(name))
}

/// Returns whether the text before a key ends as in `login u password x` of a `.netrc` file.
fn after_login(before: &str) -> bool {
    let start = before.ceil_char_boundary(before.len().saturating_sub(100));
    let mut words = before[start..].split_whitespace().rev();
    words
        .nth(1)
        .is_some_and(|word| ["login", "user", "username"].iter().any(|w| word.eq_ignore_ascii_case(w)))
}

/// Returns the start of the value in `Bearer x`.
fn bare_scheme(text: &str, key: &Range<usize>) -> Option<usize> {
    let name = &text[key.clone()];
    if !["bearer", "basic"].iter().any(|scheme| name.eq_ignore_ascii_case(scheme)) {
        return None;
    }
    let value = skip_white_space(text, skip(text, key.end, |c| c.is_whitespace() || matches!(c, ':' | '=')));
    let word = next_word(text, value);
    let is_token = value > key.end && (looks_secret(word, "token") || word.len() >= 20);
    is_token.then_some(value)
}

/// Returns the start of the value in `IDENTIFIED BY 'x'` and `IDENTIFIED WITH sha256_hash BY 'x' SALT 'y'`.
fn identified_by(text: &str, key: &Range<usize>) -> Option<usize> {
    let name = &text[key.clone()];
    let value = skip_white_space(text, key.end);
    let quoted = || text[value..].starts_with(is_quote_or_escape) || prefixed_quote(text, value).is_some();
    if name.eq_ignore_ascii_case("salt") {
        return quoted().then_some(value);
    }
    if !name.eq_ignore_ascii_case("by") || value == key.end {
        return None;
    }
    let start = text.ceil_char_boundary(key.start.saturating_sub(100));
    let mut words = text[start..key.start].split_whitespace().rev().take(3);
    words.any(|word| alphanumeric(word).ends_with("identified")).then_some(value)
}

/// Returns the content of `<password>x</password>` and `<entry key="password">x</entry>`.
fn element(text: &str, key: &Range<usize>) -> Option<(usize, usize)> {
    let before = &text[..key.start];
    let space = before.strip_suffix(':').map_or(before, |before| before.trim_end_matches(is_part));
    let quote = skip(text, key.end, is_quote_or_escape);
    let is_attribute = quote > key.end && before.trim_end_matches(is_quote_or_escape).ends_with('=');
    let tag_end = if is_attribute {
        quote
    } else if space.ends_with('<') {
        skip(text, key.end, |c| !matches!(c, '<' | '>'))
    } else {
        return None;
    };
    if !text[tag_end..].starts_with('>') || text[..tag_end].ends_with('/') {
        return None;
    }
    let from = skip(text, tag_end + 1, char::is_whitespace);
    if let Some(data) = text[from..].strip_prefix("<![CDATA[") {
        let from = text.len() - data.len();
        return Some((from, from + data.find("]]>").unwrap_or(data.len())));
    }
    let content = &text[from..];
    // `usage: --password <password> --host <host>`
    if content.starts_with("--") && from > tag_end + 1 {
        return None;
    }
    let close = if content.starts_with('<') { content.find("</") } else { content.find('<') };
    Some((from, from + content[..close.unwrap_or(content.len())].trim_end().len()))
}

/// Returns the position of the quote in `E'x'`, `N'x'`, `U&'x'` and `b"x"`.
fn prefixed_quote(text: &str, at: usize) -> Option<usize> {
    let prefixes = ["E'", "e'", "N'", "n'", "U&'", "u&'", "b'", "b\""];
    let length = prefixes.iter().find(|prefix| text[at..].starts_with(**prefix))?.len();
    Some(at + length - 1)
}

/// Returns the range of the secret in a value that starts at `at`.
fn secret(text: &str, at: usize) -> (usize, usize) {
    // The scheme of an `Authorization` header is not secret; the text after it is.
    let mut at = at;
    loop {
        let end = skip(text, at, is_part);
        let value = skip_white_space(text, skip(text, end, |c| c.is_whitespace() || matches!(c, ':' | '=')));
        let is_scheme = SCHEMES.iter().any(|scheme| text[at..end].eq_ignore_ascii_case(scheme));
        if !is_scheme || value == end {
            break;
        }
        at = value;
    }
    let at = prefixed_quote(text, at).unwrap_or(at);
    // `$$a b$$`
    if let Some(rest) = text[at..].strip_prefix("$$") {
        return (at + 2, at + 2 + rest.find("$$").unwrap_or(rest.len()));
    }
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
            // `Some("a b")`. A quote after a letter belongs to the value, or ends a quoted text.
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

/// Returns whether the text after `&`, `;` or `,` is white space, the end, or another key with its separator.
fn starts_pair(rest: &str) -> bool {
    if rest.is_empty() || rest.starts_with(char::is_whitespace) {
        return true;
    }
    let key = rest.trim_start_matches(['\\', '"', '\'']);
    let name = skip(key, 0, is_part);
    name > 0 && key[name..].trim_start_matches(['\\', '"', '\'', ' ']).starts_with(['=', ':'])
}

/// Returns the end of a quoted value, excluding the closing quote. The quotes are escaped by `level` backslashes. If
/// the quote is not closed, returns the end of the text.
fn quote_end(text: &str, from: usize, quote: char, level: usize) -> usize {
    let mut at = from;
    while let Some(found) = text[at..].find(quote) {
        let found = at + found;
        let escapes = text[from..found].bytes().rev().take_while(|b| *b == b'\\').count();
        // A quote closes the value if it has fewer than `level` backslashes, or `level` plus a multiple of
        // `2 * (level + 1)`.
        let closes = escapes < level || escapes % (2 * (level + 1)) == level;
        // SQL represents a quote in the value by two quotes.
        let doubled = text[found + 1..].starts_with(quote);
        if closes && !doubled {
            return found - escapes.min(level);
        }
        at = found + if closes { 2 } else { 1 };
    }
    text.len()
}

/// Hides credentials in URLs: `postgres://user:secret@host/db` becomes `postgres://***@host/db`.
///
/// If the text was `cut`, its last URL is hidden, because the cut may have removed the end of its credentials.
fn hide_credentials(text: &str, cut: bool) -> Cow<'_, str> {
    if !text.contains("://") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        // The part ends at the next URL or line, so each part of the text is searched once.
        let part = &after[..after.find("://").unwrap_or(after.len())];
        let part = &part[..part.find(['\n', '\r']).unwrap_or(part.len())];
        let word = skip(part, 0, |c| !c.is_whitespace());
        let end = skip(&part[..word], 0, |c| !matches!(c, '/' | '?'));
        // The last `@` before `/`, `?` or white space ends the credentials. Without one, a password may contain `/`, so the
        // last `@` after the colon and before white space ends them.
        let credentials = part[..end].rfind('@').or_else(|| {
            let host = if part.starts_with('[') { part[..end].find(']')? } else { 0 };
            let colon = host + part[host..end].find(':')?;
            part[colon..word].rfind('@').map(|at| at + colon).or_else(|| spaced(part, colon, word))
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

/// Finds the `@` after a password with white space. If only digits follow the colon, they may be a port, so only the next
/// word is searched.
fn spaced(part: &str, colon: usize, word: usize) -> Option<usize> {
    let first = &part[colon + 1..word];
    let number = &first[..skip(first, 0, |c| c.is_ascii_digit())];
    let ends =
        first[number.len()..].is_empty() || first[number.len()..].starts_with(|c: char| !c.is_alphanumeric());
    let until = if ends {
        let next = skip(part, word, char::is_whitespace);
        skip(part, next, |c| !c.is_whitespace())
    } else {
        part.len()
    };
    part[word..until].rfind('@').map(|at| at + word)
}

/// Hides passwords of logins: `brokers=user:secret@host` becomes `brokers=user:***@host`.
fn hide_logins(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        // A quote next to punctuation ends a JSON text; any other quote belongs to the password.
        let mut from = 0;
        for (at, c) in word.char_indices().filter(|(_, c)| is_quote(*c)) {
            let beside = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
            let before = word[..at].trim_end_matches('\\').chars().next_back();
            if at >= from && (beside(before) || beside(word[at + c.len_utf8()..].chars().next())) {
                hide_login(&word[from..at], &mut out);
                out.push(c);
                from = at + c.len_utf8();
            }
        }
        hide_login(&word[from..], &mut out);
    }
    Cow::Owned(out)
}

fn hide_login(word: &str, out: &mut String) {
    /// Words before an address that is not a login: mail addresses, and Kafka's Kerberos principals.
    const ADDRESSES: [&str; 7] = ["mailto", "email", "mail", "from", "to", "contact", "User"];
    let login = || {
        let last = word.rfind('@').filter(|at| !word[at + 1..].starts_with("sha256:"))?;
        let is_time = word[..last].bytes().all(|b| b.is_ascii_digit() || b == b':');
        let mut colons = word[..last].match_indices(':').map(|(at, _)| at);
        let colon = colons.find(|at| {
            let name = &word
                [word[..*at].rfind(|c| !is_part(c)).map_or(0, |at| word.ceil_char_boundary(at + 1))..*at];
            let value = &word[at + 1..last];
            !name.is_empty()
                && !value.is_empty()
                && !value.starts_with("//")
                && !is_time
                && !ADDRESSES.contains(&name)
        })?;
        Some((colon + 1, last))
    };
    match login() {
        Some((from, to)) => {
            out.push_str(&word[..from]);
            out.push_str(HIDDEN);
            out.push_str(&word[to..]);
        }
        None => out.push_str(word),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Error, ErrorKind};

    /// Forms of a key with a value, with `%` for the key and `@` for the value.
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

    /// Quotes a value as a JSON text, `times` times.
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
        /// The ends of the value are marked, so the test also finds a partly shown value.
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
            // The same text as a JSON string.
            let shown = self::shown(&format!("server said {}", quoted(&text, 1)));
            prop_assert!(!shown.contains("Qs") && !shown.contains("Qe"), "{text}\n{shown}");
        }

        #[test]
        fn redaction_is_bounded(text in "\\PC{0,400}") {
            let once = redact(&text);
            prop_assert!(once.chars().count() <= MAX_CONTEXT_CHARS + 1);
            prop_assert_eq!(hide_values(&once).chars().count() <= MAX_CONTEXT_CHARS + 1, true);
        }
    }

    #[test]
    fn text_next_to_a_secret_is_kept() {
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
    fn a_secret_is_hidden_in_every_form() {
        let mut leaks = Vec::new();
        for text in [
            "Authorization: Bearer  hunter2",
            "Authorization:\tBearer\t hunter2",
            "authorization: Basic   hunter2==",
            "Authorization: ApiKey hunter2",
            "sent Bearer hunter2 to the proxy",
            "CREATE USER u IDENTIFIED BY 'hunter2'",
            "create user u identified by \"hunter2\"",
            "CREATE USER u IDENTIFIED WITH plaintext_password BY 'hunter2'",
            "CREATE USER u IDENTIFIED WITH sha256_hash BY 'hunter2' SALT 'hunter2'",
            "ALTER USER u IDENTIFIED BY hunter2",
            "ALTER ROLE u PASSWORD 'hunter2'",
            "ALTER ROLE u ENCRYPTED PASSWORD E'a hunter2'",
            "ALTER ROLE u PASSWORD $$a hunter2$$",
            "SELECT PASSWORD('hunter2')",
            "<password>hunter2</password>",
            "<password>\n  a hunter2\n</password>",
            "<db:password type=\"plain\">hunter2</db:password>",
            "<password><![CDATA[a<hunter2]]></password>",
            "&lt;password&gt;hunter2&lt;/password&gt;",
            "<password>hunter2",
            "<entry key=\"password\">a hunter2</entry>",
            "<property name=\"password\" value=\"hunter2\"/>",
            "<add value='hunter2' key='password'/>",
            "<property><name>password</name><value>hunter2</value></property>",
            r#"{"value":"hunter2","name":"password"}"#,
            r#"{"value":"a}hunter2", "x": [1, {"y": 2}], "name": "password"}"#,
            r#"{"name":"password","x":1,"value":"hunter2"}"#,
            r#"{"name":"password","x":{"value":1},"value":"hunter2"}"#,
            r#"{"value":"hunter2","x":{"name":"a","value":1},"name":"password"}"#,
            r#"{"a":"{\"value\":\"hunter2\",\"key\":\"sasl.password\"}"}"#,
            r#"ConfigEntry { name: "sasl.password", source: Static, value: Some("hunter2") }"#,
            "name=password x=1 value=hunter2",
            r#"{"pass\u0077ord":"hunter2"}"#,
            r#"{"pass\u0077ord":"a\u0022 hunter2"}"#,
            r#""{\"pass\\u0077ord\":\"hunter2\"}""#,
            r"{\u0022password\u0022:\u0022a hunter2\u0022}",
            r"password\u003dhunter2",
            r"\x70assword\x3dhunter2",
            "password%3Dhunter2",
            "password%253dhunter2",
            "x%3D1%26%70ass%3Dhunter2%26y%3D2",
            "q=%7B%22password%22%3A%22a%20hunter2%22%7D",
            "&quot;password&quot;: &quot;a hunter2&quot;",
            "password&#61;hunter2",
            "http%3A%2F%2Fu%3Ahunter2%40h",
            "password(hunter2)",
            "password(a hunter2), x",
            "Password { inner: \"a hunter2\" }",
            "password[hunter2]",
            "[password, hunter2]",
            "(password,hunter2)",
            "{password, hunter2}",
            "[\"psql\", \"--password\", \"hunter2\"]",
            "PASSWORD hunter2",
            "PASSWORD hunter_",
            "password hunter2",
            "password\thunter2",
            "machine h login u password hunter_",
            "requirepass hunter2",
            "the password is hunter2",
            "db_pass=hunter2",
            "password: |\n  hunter2",
            "http://u:hun ter2@h",
            "http://u:a hunter2 b@h/x",
            "http://u:12 hunter2@h",
            "http://u:hunter2/ x@h",
            "brokers=u:hunter2@127.0.0.1:9",
            "brokers: 127.0.0.1:9,u:hunter2@127.0.0.1:9",
            "{\"brokers\":\"u:hunter2@127.0.0.1:9\"}",
            "u:a\"hunter2@h",
        ] {
            for text in [text.to_owned(), format!("error: {text}\nend"), quoted(text, 1)] {
                let shown = shown(&text);
                if ["hunter", "ter2"].iter().any(|part| shown.contains(part)) {
                    leaks.push(format!("{text} -> {}", redact(&text)));
                }
            }
        }
        assert!(leaks.is_empty(), "{leaks:#?}");
    }

    #[test]
    fn ordinary_text_is_not_redacted() {
        for text in [
            "password must not be empty",
            "Password is too short",
            "the password is 8 characters or longer",
            "password authentication failed for user \"qi\"",
            "user qi password authentication failed",
            "no password supplied",
            "PASSWORD EXPIRE",
            "FATAL: PASSWORD AUTHENTICATION FAILED",
            "wrong password for user u at h",
            "password SCRAM-SHA-256 required",
            "invalid password(s)",
            "passwords[0] is empty",
            "read the password from the file /run/secrets/qi",
            "one of [password, url, host]",
            "expected one of `password`, `url`, `host`",
            "unexpected token 12 at line 3",
            "unexpected token { at line 3",
            "the token expired at 12:30",
            "Bearer token is missing",
            "Basic authentication is required",
            "sorted by 'ts', identified early",
            "{\"name\":\"port\",\"value\":\"1\"}",
            "[{\"name\":\"password\"},{\"name\":\"port\",\"value\":1}]",
            "{\"value\":1,\"name\":\"port\"},{\"name\":\"password\"}",
            "{\"a\":1,\"email\":\"a@b.c\"}",
            "usage: qi <password> --host <host>",
            "100%41 of \\u0041 &amp; %3D",
            "cannot connect to http://localhost:8123, ask ops@example.com",
            "http://[::1]:8123/db refused the user a@b.c",
            "http://h:8123: connection refused",
            "User:kafka@EXAMPLE.COM may not read topic ticks",
            "mailto:ops@example.com",
            "docker image qi:1.2@sha256:0a1b",
            "at 12:30@h",
            "kraken:BCH-EUR has 3 trades",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    /// Linear work takes much less than the limit. Quadratic work takes more.
    #[test]
    fn redaction_of_hostile_texts_is_fast() {
        let started = std::time::Instant::now();
        for part in [
            "://",
            "://a:b",
            "pwd:{",
            "pwd:\"'",
            "name:{",
            "value:[",
            "<password>",
            "<password",
            "password(",
            "@a:",
            "a:\"",
            "%25",
            "\\",
            "\\u0077",
            "&#",
            "[password,",
            "by ",
            "Bearer ",
            "password is ",
            "pwd:'",
        ] {
            redact(&part.repeat(MAX_SEARCHED_BYTES));
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn pem_blocks_are_hidden() {
        let text = "key: -----BEGIN PRIVATE KEY-----\nMIIhunter2\n-----END PRIVATE KEY-----";
        assert_eq!(redact(text), "key: ***");
    }

    #[test]
    fn truncated_urls_are_redacted() {
        let text =
            format!("{}postgres://user:hunter2{}@h/db", "x ".repeat(10), "y".repeat(MAX_SEARCHED_BYTES));
        assert!(!redact(&text).contains("hunter2"));
    }

    #[test]
    fn reports_of_long_error_chains_are_bounded() {
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
        assert_eq!(format!("{short:#?}").matches("[c]").count(), 16);
    }

    #[test]
    fn invalid_values_of_secret_fields_are_hidden() {
        let error = Error::invalid("config", "password", "hunter2", "is too short");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
