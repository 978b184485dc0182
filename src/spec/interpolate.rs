//! Variables in values: `$NAME`, `${NAME}`, and the operators `:-`, `-`, `:?`, `?`, `:+`, `+`, which nest; `$$` is a
//! literal dollar sign. Only values are interpolated, never keys; one that begins no variable stays, as in compose.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use super::problem::{Problem, ProblemKind};
use super::raw::{Node, Value};
use super::tree;

/// Most bytes that all substitutions of a project may make: a long variable in a long file would fill the memory.
const MAX_BYTES: usize = 32 << 20;
/// Deepest nesting of defaults in defaults.
const MAX_DEPTH: usize = 16;

/// Why a text cannot be interpolated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InterpolateError {
    #[error("`{0}` is not closed with `}}`; write `$$` for a dollar sign")]
    Unclosed(String),
    #[error(
        "`{0}` is no variable: a name of letters, digits and `_` must follow, and after it `}}` or one of `:-`, `-`, \
         `:?`, `?`, `:+`, `+`; write `$$` for a dollar sign"
    )]
    Malformed(String),
    #[error("the variable `{name}` is required and not set{}", explained(.message))]
    Required { name: String, message: String },
    #[error("`{0}` nests too deeply")]
    TooDeep(String),
    #[error("the variables make more than {MAX_BYTES} bytes")]
    TooMuch,
}

fn explained(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// What the files of a project can name: variables of the caller, and those of files, in the order in which they win.
#[derive(Debug)]
pub(crate) struct Variables<'a> {
    shell: &'a BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    used: &'a Usage,
}

/// What was asked for while files were read.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Names that were looked up.
    pub(crate) names: RefCell<BTreeSet<String>>,
    spent: Cell<usize>,
}

impl<'a> Variables<'a> {
    pub(crate) fn new(shell: &'a BTreeMap<String, String>, used: &'a Usage) -> Self {
        Self { shell, files: BTreeMap::new(), used }
    }

    /// The same with variables that give way to all that are known already.
    pub(crate) fn with_defaults(&self, more: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut files = self.files.clone();
        for (name, value) in more {
            files.entry(name).or_insert(value);
        }
        Self { shell: self.shell, files, used: self.used }
    }

    pub(crate) fn get(&self, name: &str) -> Option<String> {
        self.used.names.borrow_mut().insert(name.to_owned());
        self.shell.get(name).or_else(|| self.files.get(name)).cloned()
    }

    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        let mut all = self.files.clone();
        all.extend(self.shell.iter().map(|(name, value)| (name.clone(), value.clone())));
        all
    }

    /// `text` with its variables replaced; `unset` hears of each that has no value and no default.
    pub(crate) fn substitute(
        &self,
        text: &str,
        unset: &mut dyn FnMut(&str),
    ) -> Result<String, InterpolateError> {
        substitute(text, &|name| self.get(name), &self.used.spent, unset, 0)
    }

    /// As [`Self::substitute`]; names that nothing else knows are looked for in `more`.
    pub(crate) fn substitute_over(
        &self,
        text: &str,
        more: &BTreeMap<String, String>,
        unset: &mut dyn FnMut(&str),
    ) -> Result<String, InterpolateError> {
        let lookup = |name: &str| self.get(name).or_else(|| more.get(name).cloned());
        substitute(text, &lookup, &self.used.spent, unset, 0)
    }

    /// Replaces the variables in all values below `node`.
    pub(crate) fn apply(&self, node: &mut Node, report: &mut Report<'_>) {
        self.walk(node, &mut Vec::new(), report);
    }

    fn walk(&self, node: &mut Node, path: &mut Vec<String>, report: &mut Report<'_>) {
        let at = node.at;
        match &mut node.value {
            Value::Text(text) if text.contains('$') => {
                let mut unset = Vec::new();
                match self.substitute(text, &mut |name| unset.push(name.to_owned())) {
                    Ok(replaced) => *text = replaced,
                    Err(error) => report.problems.push(Problem {
                        kind: ProblemKind::Invalid,
                        file: report.file.to_owned(),
                        at: Some(at),
                        path: tree::shown(path),
                        message: error.to_string(),
                    }),
                }
                for name in unset {
                    // Once a variable, as compose does: a missing `.env` would say hundreds of things.
                    if report.warned.insert(name.clone()) {
                        report.warnings.push(Problem {
                            kind: ProblemKind::Invalid,
                            file: report.file.to_owned(),
                            at: Some(at),
                            path: tree::shown(path),
                            message: format!(
                                "the variable `{name}` is not set; it counts as blank"
                            ),
                        });
                    }
                }
            }
            Value::List(items) => {
                for (n, item) in items.iter_mut().enumerate() {
                    path.push(format!("[{n}]"));
                    self.walk(item, path, report);
                    path.pop();
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    path.push(entry.key.clone());
                    self.walk(&mut entry.value, path, report);
                    path.pop();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        }
    }
}

/// Where problems of one file go.
pub(crate) struct Report<'a> {
    pub(crate) file: &'a str,
    pub(crate) problems: &'a mut Vec<Problem>,
    pub(crate) warnings: &'a mut Vec<Problem>,
    pub(crate) warned: &'a mut BTreeSet<String>,
}

fn substitute(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    spent: &Cell<usize>,
    unset: &mut dyn FnMut(&str),
    depth: usize,
) -> Result<String, InterpolateError> {
    let quoted = |text: &str| text.chars().take(80).collect::<String>();
    if depth > MAX_DEPTH {
        return Err(InterpolateError::TooDeep(quoted(text)));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let from = &rest[dollar..];
        let after = &from[1..];
        let value = if let Some(after) = after.strip_prefix('$') {
            rest = after;
            out.push('$');
            continue;
        } else if let Some(braced) = after.strip_prefix('{') {
            let end = closing(braced).ok_or_else(|| InterpolateError::Unclosed(quoted(from)))?;
            rest = &braced[end + 1..];
            let inside = &braced[..end];
            let name = &inside[..name_len(inside)];
            if name.is_empty() {
                return Err(InterpolateError::Malformed(format!("${{{}}}", quoted(inside))));
            }
            let (operator, argument) = operator(&inside[name.len()..])
                .ok_or_else(|| InterpolateError::Malformed(format!("${{{}}}", quoted(inside))))?;
            let mut nested = |text| substitute(text, lookup, spent, unset, depth + 1);
            let value = lookup(name);
            let counts = |value: &String| !operator.blank_is_unset || !value.is_empty();
            match (operator.kind, value.filter(counts)) {
                (Kind::Plain, Some(value)) | (Kind::Default | Kind::Required, Some(value)) => value,
                (Kind::Plain, None) => {
                    unset(name);
                    String::new()
                }
                (Kind::Default, None) | (Kind::Alternative, Some(_)) => nested(argument)?,
                (Kind::Alternative, None) => String::new(),
                (Kind::Required, None) => {
                    let message = nested(argument)?;
                    return Err(InterpolateError::Required { name: name.to_owned(), message });
                }
            }
        } else {
            let len = name_len(after);
            if len == 0 {
                out.push('$');
                rest = after;
                continue;
            }
            rest = &after[len..];
            lookup(&after[..len]).unwrap_or_else(|| {
                unset(&after[..len]);
                String::new()
            })
        };
        let total = spent.get().saturating_add(value.len());
        spent.set(total);
        if total > MAX_BYTES {
            return Err(InterpolateError::TooMuch);
        }
        out.push_str(&value);
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the brace is that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn name_len(text: &str) -> usize {
    let is_first = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    if !text.as_bytes().first().is_some_and(is_first) {
        return 0;
    }
    text.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count()
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Default,
    Required,
    Alternative,
}

#[derive(Clone, Copy)]
struct Operator {
    kind: Kind,
    blank_is_unset: bool,
}

fn operator(text: &str) -> Option<(Operator, &str)> {
    if text.is_empty() {
        return Some((Operator { kind: Kind::Plain, blank_is_unset: false }, ""));
    }
    let (blank_is_unset, text) = match text.strip_prefix(':') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut chars = text.chars();
    let kind = match chars.next()? {
        '-' => Kind::Default,
        '?' => Kind::Required,
        '+' => Kind::Alternative,
        _ => return None,
    };
    Some((Operator { kind, blank_is_unset }, chars.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<(String, Vec<String>), InterpolateError> {
        let shell = BTreeMap::from(
            [("A", "a"), ("EMPTY", ""), ("_x1", "x"), ("NAME", "n")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let usage = Usage::default();
        let mut unset = Vec::new();
        let text = Variables::new(&shell, &usage)
            .substitute(text, &mut |name| unset.push(name.to_owned()))?;
        Ok((text, unset))
    }

    #[test]
    fn every_operator_in_every_case() {
        for (text, expected) in [
            ("a", "a"),
            ("$A", "a"),
            ("${A}b", "ab"),
            ("$_x1-$A.", "x-a."),
            ("$$A $$$$", "$A $$"),
            ("$$$A", "$a"),
            ("5$ $1 $ é$", "5$ $1 $ é$"),
            ("${A:-d}${EMPTY:-d}${NO:-d}", "add"),
            ("${A-d}${EMPTY-d}${NO-d}", "ad"),
            ("${A:+r}${EMPTY:+r}${NO:+r}", "r"),
            ("${A+r}${EMPTY+r}${NO+r}", "rr"),
            ("${A:?e}${A?e}${EMPTY?e}", "aa"),
            ("${NO:-${NO2:-${A}}}", "a"),
            ("${NO:-$A-$$}", "a-$"),
            ("${NO-{\"k\": 1}}", "{\"k\": 1}"),
            ("${NO:-}", ""),
            ("${NO:-a:b-c?d}", "a:b-c?d"),
            ("${A:-${NO:?never asked}}", "a"),
        ] {
            assert_eq!(with(text), Ok((expected.to_owned(), vec![])), "{text}");
        }
        assert_eq!(with("$NO/${NO2}"), Ok(("/".into(), vec!["NO".into(), "NO2".into()])));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, expected) in [
            ("${NO:?it is $A}", "the variable `NO` is required and not set: it is a"),
            ("${EMPTY:?}", "the variable `EMPTY` is required and not set"),
            ("${NO?x}", "required"),
            ("${A", "not closed"),
            ("${}", "no variable"),
            ("${1}", "no variable"),
            ("${A!}", "no variable"),
            ("${A:}", "no variable"),
            ("${A b}", "no variable"),
        ] {
            let error = with(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let deep = format!("{}x{}", "${NO:-".repeat(100), "}".repeat(100));
        assert!(matches!(with(&deep), Err(InterpolateError::TooDeep(_))));
    }

    #[test]
    fn a_long_variable_in_a_long_text_is_refused() {
        let shell = BTreeMap::from([("A".to_owned(), "x".repeat(100_000))]);
        let usage = Usage::default();
        let text = "$A".repeat(1000);
        let result = Variables::new(&shell, &usage).substitute(&text, &mut |_| {});
        assert_eq!(result, Err(InterpolateError::TooMuch));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_escaping_is_undone(text in "[${}:?+A-Za-z_1é-]{0,40}") {
            let _ = with(&text);
            proptest::prop_assert_eq!(with(&text.replace('$', "$$")), Ok((text, vec![])));
        }
    }
}
