//! The dollar sign in values: `$$` is a literal one; variables are refused until interpolation exists.
//!
//! Passing `${X}` on as it stands would start a service with a value that compose would never give it.

/// A text asks for a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` asks for a variable, which is not supported in this version; write the value, or `$$` for a dollar sign"
)]
pub(crate) struct VariableError(String);

/// `text` with `$$` made `$`. A dollar sign that begins no variable stays, as in compose.
pub(crate) fn plain(text: &str) -> Result<String, VariableError> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..=at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            rest = after;
            continue;
        }
        if after.starts_with(|c: char| c == '{' || c == '_' || c.is_ascii_alphabetic()) {
            let end = match after.strip_prefix('{') {
                Some(braced) => braced.find('}').map_or(after.len(), |end| end + 2),
                None => after
                    .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
                    .unwrap_or(after.len()),
            };
            return Err(VariableError(format!("${}", &after[..end]).chars().take(80).collect()));
        }
        rest = after;
    }
    plain.push_str(rest);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_dollars_become_one_and_variables_are_refused_by_name() {
        for (text, expected) in [
            ("a", "a"),
            ("$$HOME", "$HOME"),
            ("$$$$", "$$"),
            ("cost: 5$", "cost: 5$"),
            ("$1 $ é$$", "$1 $ é$"),
        ] {
            assert_eq!(plain(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, named) in
            [("x ${A:-b} y", "${A:-b}"), ("$HOME/x", "$HOME"), ("$$$A", "$A"), ("${open", "${open")]
        {
            assert_eq!(plain(text), Err(VariableError(named.into())), "{text}");
        }
    }
}
