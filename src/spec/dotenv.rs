//! `.env` and `env_file` texts: `NAME=VALUE` lines as compose reads them.
//!
//! * `export` in front, blank lines and lines of `#` are allowed; `NAME: VALUE` too.
//! * Unquoted values end at ` #` and lose blanks around them; their variables are replaced.
//! * `"…"` replaces variables and `\n \r \t \" \\ \$`; `'…'` takes everything as it is. Both may span lines.
//! * A name alone takes its value from outside; without one there it is left out.

use std::collections::BTreeMap;

use super::interpolate::{InterpolateError, Variables};

/// Longest text of such a file in bytes.
pub(crate) const MAX_FILE: usize = 1 << 20;

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DotenvError {
    #[error("`{0}` is not of the form `NAME=VALUE`")]
    Malformed(String),
    #[error("`{0}` cannot be the name of a variable")]
    Name(String),
    #[error("the quote that opens here is not closed")]
    Unclosed,
    #[error("`{0}` follows the closing quote")]
    AfterQuote(String),
    #[error("the value holds a NUL character")]
    Nul,
    #[error("the file has more than {MAX_FILE} bytes")]
    TooLong,
    #[error(transparent)]
    Variable(#[from] InterpolateError),
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// As described above.
    Compose,
    /// `format: raw`: everything behind `=` as it stands.
    Raw,
}

/// The variables of a text, the last one of a name counting; `Err` has the line, from 1.
///
/// Variables in values are those from outside first, as compose has it, then those above them.
pub(crate) fn parse(
    text: &str,
    format: Format,
    outside: &Variables<'_>,
    unset: &mut dyn FnMut(&str, u64),
) -> Result<BTreeMap<String, String>, (u64, DotenvError)> {
    if text.len() > MAX_FILE {
        return Err((1, DotenvError::TooLong));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let (mut rest, mut line) = (text, 1_u64);
    while !rest.is_empty() {
        let end = rest.find('\n').unwrap_or(rest.len());
        let (raw, at) = (rest[..end].trim_end_matches('\r'), line);
        let fail = |error: DotenvError| (at, error);
        let trimmed = raw.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            (rest, line) = (rest.get(end + 1..).unwrap_or(""), line + 1);
            continue;
        }
        let exported = match trimmed.strip_prefix("export") {
            Some(after) if format == Format::Compose && after.starts_with([' ', '\t']) => {
                after.trim_start()
            }
            _ => trimmed,
        };
        let separator = match format {
            Format::Compose => exported.find(['=', ':']),
            Format::Raw => exported.find('='),
        };
        let Some(separator) = separator else {
            let name = exported.split(" #").next().unwrap_or_default().trim();
            check_name(name).map_err(fail)?;
            if let Some(value) = outside.get(name) {
                found.insert(name.to_owned(), value);
            }
            (rest, line) = (rest.get(end + 1..).unwrap_or(""), line + 1);
            continue;
        };
        let name = exported[..separator].trim();
        check_name(name).map_err(fail)?;
        let value_text = &exported[separator + 1..];
        // Where the value begins in `rest`, so that a quoted one can go on behind the line.
        let value_at = raw.len() - value_text.len();
        let (value, consumed) = match format {
            Format::Raw => (value_text.to_owned(), end),
            Format::Compose => {
                let blanks = value_text.len() - value_text.trim_start_matches([' ', '\t']).len();
                let from = value_at + blanks;
                match rest[from..].chars().next() {
                    Some(quote @ ('"' | '\'')) => {
                        let (inside, len) = quoted(&rest[from + 1..], quote).map_err(fail)?;
                        let close = from + 1 + len;
                        let line_end = rest[close..].find('\n').map_or(rest.len(), |n| close + n);
                        let tail = rest[close..line_end].trim();
                        if !tail.is_empty() && !tail.starts_with('#') {
                            return Err(fail(DotenvError::AfterQuote(
                                tail.chars().take(40).collect(),
                            )));
                        }
                        let value = if quote == '"' {
                            replaced(&inside, outside, &found, at, unset).map_err(fail)?
                        } else {
                            inside
                        };
                        (value, line_end)
                    }
                    _ => {
                        let plain = unquoted(value_text);
                        (replaced(plain, outside, &found, at, unset).map_err(fail)?, end)
                    }
                }
            }
        };
        if value.contains('\0') {
            return Err(fail(DotenvError::Nul));
        }
        found.insert(name.to_owned(), value);
        line += rest[..consumed].matches('\n').count() as u64 + 1;
        rest = rest.get(consumed + 1..).unwrap_or("");
    }
    Ok(found)
}

fn check_name(name: &str) -> Result<(), DotenvError> {
    let shown = || name.chars().take(40).collect::<String>();
    if name.is_empty() || name.contains(['\0', '"', '\'']) {
        return Err(DotenvError::Name(shown()));
    }
    if name.contains(char::is_whitespace) {
        return Err(DotenvError::Malformed(shown()));
    }
    Ok(())
}

/// A value without quotes ends where a comment begins: at a `#` behind a blank.
fn unquoted(text: &str) -> &str {
    let comment = text
        .match_indices('#')
        .find(|(at, _)| *at == 0 || text[..*at].ends_with([' ', '\t']))
        .map_or(text.len(), |(at, _)| at);
    text[..comment].trim()
}

/// What stands up to the closing `quote`, and how much text that took, the quote included. In double quotes a
/// dollar sign that was escaped comes out doubled, for the interpolation that follows.
fn quoted(text: &str, quote: char) -> Result<(String, usize), DotenvError> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            _ if c == quote => return Ok((value, at + 1)),
            '\\' if quote == '"' => match chars.next().ok_or(DotenvError::Unclosed)?.1 {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                '$' => value.push_str("$$"),
                escaped @ ('"' | '\\') => value.push(escaped),
                other => value.extend(['\\', other]),
            },
            // As in a shell, a quote can be escaped in single quotes too; compose has it so.
            '\\' if text[at + 1..].starts_with('\'') && text[at + 2..].contains('\'') => {
                chars.next();
                value.push('\'');
            }
            other => value.push(other),
        }
    }
    Err(DotenvError::Unclosed)
}

fn replaced(
    text: &str,
    outside: &Variables<'_>,
    above: &BTreeMap<String, String>,
    line: u64,
    unset: &mut dyn FnMut(&str, u64),
) -> Result<String, DotenvError> {
    if !text.contains('$') {
        return Ok(text.to_owned());
    }
    Ok(outside.substitute_over(text, above, &mut |name| unset(name, line))?)
}

#[cfg(test)]
mod tests {
    use super::super::interpolate::Usage;
    use super::*;

    fn read(text: &str, format: Format) -> Result<Vec<(String, String)>, (u64, DotenvError)> {
        let shell = BTreeMap::from([("HOME".to_owned(), "/root".to_owned())]);
        let usage = Usage::default();
        let found = parse(text, format, &Variables::new(&shell, &usage), &mut |_, _| {})?;
        Ok(found.into_iter().collect())
    }

    #[test]
    fn lines_are_read_as_compose_reads_them() {
        for (text, expected) in [
            ("A=1\n# c\n\n B = 2 \r\nexport C=3", vec![("A", "1"), ("B", "2"), ("C", "3")]),
            ("A=x # c\nB=x#y\nC=#\nD=", vec![("A", "x"), ("B", "x#y"), ("C", ""), ("D", "")]),
            ("A: 1\nB: \"2\"", vec![("A", "1"), ("B", "2")]),
            ("A=\"a\\nb \\\"c\\\" \\$HOME $HOME\" # c", vec![("A", "a\nb \"c\" $HOME /root")]),
            ("A='a\\nb $HOME'", vec![("A", "a\\nb $HOME")]),
            ("A=\"one\ntwo\"\nB=1", vec![("A", "one\ntwo"), ("B", "1")]),
            (
                "A=1\nB=${A}2\nC=${HOME}\nD=${NO:-d}",
                vec![("A", "1"), ("B", "12"), ("C", "/root"), ("D", "d")],
            ),
            ("HOME=/other\nX=$HOME", vec![("HOME", "/other"), ("X", "/root")]),
            ("HOME\nNO", vec![("HOME", "/root")]),
            ("A=1\nA=2", vec![("A", "2")]),
            ("A=x=y", vec![("A", "x=y")]),
            ("\u{feff}A=é", vec![("A", "é")]),
        ] {
            let expected: Vec<_> =
                expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(read(text, Format::Compose), Ok(expected), "{text:?}");
        }
        let raw = read("A=\"x\" # $HOME\nB:C=1\n", Format::Raw).unwrap();
        assert_eq!(raw[0].1, "\"x\" # $HOME");
        assert_eq!(raw[1].0, "B:C");
    }

    #[test]
    fn what_is_wrong_has_its_line() {
        for (text, line) in [
            ("A=1\n=2", 2),
            ("A=\"1\n2\n", 1),
            ("A='x\ny'\nB C", 3),
            ("A=\"x\" y", 1),
            ("\n\nA=${B", 3),
            ("A=${B:?need}", 1),
        ] {
            assert_eq!(read(text, Format::Compose).unwrap_err().0, line, "{text:?}");
        }
        assert!(read(&"#".repeat(MAX_FILE + 1), Format::Compose).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[A-C=:\"'\\\\$#{}é \n\r]{0,40}") {
            let _ = read(&text, Format::Compose);
            let _ = read(&text, Format::Raw);
        }
    }
}
