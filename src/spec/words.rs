//! A command given as one text, split into words as compose does: quotes and backslashes, no shell.
//!
//! Own code rather than a crate: the crates at hand treat `#` as a comment, which compose does not.

/// Why a text cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SplitError {
    #[error("a `{0}` is opened and not closed")]
    Quote(char),
    #[error("nothing follows the last `\\`")]
    Backslash,
}

/// The words of `text`. Operators of a shell (`;`, `|`, `&&`, `$`) mean nothing and stay as they are.
pub(crate) fn split(text: &str) -> Result<Vec<String>, SplitError> {
    let mut words = Vec::new();
    // `Some` as soon as a word began, so that `''` is an empty word.
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or(SplitError::Quote('\''))? {
                        '\'' => break,
                        other => word.push(other),
                    }
                }
            }
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => {
                let escaped = chars.next().ok_or(SplitError::Backslash)?;
                // A backslash before a line break joins the lines.
                if escaped != '\n' {
                    word.get_or_insert_default().push(escaped);
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), SplitError> {
    loop {
        match chars.next().ok_or(SplitError::Quote('"'))? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(SplitError::Quote('"'))? {
                '\n' => {}
                escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                // Inside double quotes a backslash before anything else is itself, as in a shell.
                other => word.extend(['\\', other]),
            },
            other => word.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_make_words() {
        for (text, expected) in [
            ("", vec![]),
            ("  a  b\n c ", vec!["a", "b", "c"]),
            ("sh -c 'echo \"x y\" # z'", vec!["sh", "-c", "echo \"x y\" # z"]),
            ("a '' \"\"", vec!["a", "", ""]),
            ("a\\ b c\\'d", vec!["a b", "c'd"]),
            ("--x=\"1 \\\"2\\\" \\n\"", vec!["--x=1 \"2\" \\n"]),
            ("a \\\n b", vec!["a", "b"]),
            ("a; b | c && #d", vec!["a;", "b", "|", "c", "&&", "#d"]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text:?}");
        }
        assert_eq!(split("a 'b"), Err(SplitError::Quote('\'')));
        assert_eq!(split("a \"b"), Err(SplitError::Quote('"')));
        assert_eq!(split("a \\"), Err(SplitError::Backslash));
    }
}
