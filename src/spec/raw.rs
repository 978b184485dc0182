//! The raw mirror of a services file: YAML as it stands, each node with its position.
//!
//! A tree instead of typed structs, since one value of a wrong type must not hide the other problems, and since
//! what compose does before it looks at types (merging files, interpolation) works on such a tree. Anchors,
//! aliases and `<<` are resolved here; nothing is validated and no default is applied.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, MessageFormatter, Spanned, UserMessageFormatter};

use super::problem::Position;

/// Longest services file in bytes: a hundred times the largest public compose file that was looked at.
const MAX_FILE: usize = 4 << 20;
/// Most nodes after the expansion of aliases: stops alias bombs, and is far above any file of people.
const MAX_NODES: usize = 200_000;
/// Deepest nesting; compose's deepest key is at nine. A level costs up to 45 kB of stack in a debug build (measured).
const MAX_DEPTH: usize = 24;

/// A value and where it is written. For an alias that is the anchored text, where a mistake must be mended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) at: Position,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// A plain scalar that reads as a number, spelled as in the file.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

impl Value {
    /// What this is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// One key of a mapping; keys are unique within it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Of the key.
    pub(crate) at: Position,
    pub(crate) value: Node,
}

/// Why a text is no YAML that we read.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) at: Option<Position>,
    pub(crate) message: String,
}

/// Reads the one document of `text`, which is the file with this index.
pub(crate) fn read(text: &str, file: u16) -> Result<Node, SyntaxError> {
    if text.len() > MAX_FILE {
        let message = format!("the file has {} bytes, more than {MAX_FILE}", text.len());
        return Err(SyntaxError { at: None, message });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_documents: 2,
            max_total_scalar_bytes: 4 * MAX_FILE,
            max_recorded_anchor_events: 2 * MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        duplicate_keys: DuplicateKeyPolicy::Error,
        // `yes`, `on` and the like stay texts, as in compose.
        strict_booleans: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
        emit_comments: false,
    };
    let document: Option<Spanned<Loose>> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| SyntaxError {
            at: error.location().and_then(|location| position(location, file)),
            message: message(error.without_snippet()),
        })?;
    Ok(match document {
        Some(loose) => node(loose, text, file),
        None => Node { value: Value::Null, at: Position { file, line: 1, column: 1 } },
    })
}

fn message(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("key `{key}` stands twice in this mapping")
        }
        serde_saphyr::Error::MultipleDocuments { .. } => {
            "the file holds more than one YAML document".to_owned()
        }
        other => UserMessageFormatter.format_message(other).into_owned(),
    }
}

fn position(location: Location, file: u16) -> Option<Position> {
    (location.line() > 0).then(|| Position {
        file,
        line: location.line(),
        column: location.column(),
    })
}

fn node(loose: Spanned<Loose>, text: &str, file: u16) -> Node {
    let at = position(loose.defined, file)
        .or_else(|| position(loose.referenced, file))
        .unwrap_or(Position { file, line: 1, column: 1 });
    let value = match loose.value {
        Loose::Null => Value::Null,
        Loose::Bool(value) => Value::Bool(value),
        Loose::Number(value) => {
            Value::Number(spelling(loose.defined, text).map_or(value, str::to_owned))
        }
        Loose::Text(value) => Value::Text(value),
        Loose::List(items) => {
            Value::List(items.into_iter().map(|item| node(item, text, file)).collect())
        }
        Loose::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Loose>)| {
                let value = node(value, text, file);
                let at = position(key.defined, file).unwrap_or(value.at);
                Entry { key: key.value, at, value }
            };
            Value::Map(entries.into_iter().map(entry).collect())
        }
    };
    Node { value, at }
}

/// The text of a number as it stands in the file, so that `1.10` and `022` stay what the user wrote.
fn spelling(location: Location, text: &str) -> Option<&str> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let len = usize::try_from(location.span().byte_len()?).ok()?;
    let spelled = text.get(start..start.checked_add(len)?)?.trim();
    spelled
        .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'))
        .then_some(spelled)
}

/// The tree as serde hands it over; numbers have lost their spelling.
enum Loose {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Loose>>),
    Map(Vec<(Spanned<String>, Spanned<Loose>)>),
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Loose, E> {
        Ok(Loose::Null)
    }

    fn visit_none<E>(self) -> Result<Loose, E> {
        Ok(Loose::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Loose, D::Error> {
        Loose::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Loose, E> {
        Ok(Loose::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Loose, E> {
        Ok(Loose::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Loose, E> {
        Ok(Loose::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Loose, E> {
        Ok(Loose::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Loose, E> {
        Ok(Loose::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Loose, E> {
        Ok(Loose::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Loose, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Loose::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Loose, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Loose::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(node: &Node) -> &[Entry] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_keep_their_spelling_and_booleans_are_only_true_and_false() {
        let root = read(
            "a: 1.10\nb: 022\nc: 0x1F\nd: yes\ne: True\nf: \"7\"\ng: -3\nh: 99999999999999999999\n",
            0,
        )
        .unwrap();
        let values: Vec<_> = map(&root).iter().map(|entry| entry.value.value.clone()).collect();
        let number = |text: &str| Value::Number(text.into());
        assert_eq!(values[0], number("1.10"));
        assert!(
            matches!(&values[1], Value::Number(t) | Value::Text(t) if t == "022"),
            "{values:?}"
        );
        assert_eq!(values[2], number("0x1F"));
        assert_eq!(values[3], Value::Text("yes".into()));
        assert_eq!(values[4], Value::Bool(true));
        assert_eq!(values[5], Value::Text("7".into()));
        assert_eq!(values[6], number("-3"));
        assert_eq!(values[7], number("99999999999999999999"));
    }

    #[test]
    fn keys_and_values_know_where_they_stand() {
        let root = read("# é\nservices:\n  web: {image: é, x: [1, 2]}\n", 0).unwrap();
        let services = &map(&root)[0];
        assert_eq!((services.at.line, services.at.column), (2, 1));
        let web = &map(&services.value)[0];
        assert_eq!((web.at.line, web.at.column), (3, 3));
        let keys = map(&web.value);
        assert_eq!((keys[0].value.at.line, keys[0].value.at.column), (3, 16));
        let Value::List(list) = &keys[1].value.value else { panic!() };
        assert_eq!((list[1].at.line, list[1].at.column), (3, 26));
    }

    #[test]
    fn anchors_aliases_and_merge_keys_are_resolved_to_the_anchored_text() {
        let root = read("x: &a\n  k: 1\n  l: 2\ny:\n  <<: *a\n  l: 3\nz: *a\n", 0).unwrap();
        let y = map(&map(&root)[1].value);
        let mut pairs: Vec<_> = y.iter().map(|e| (e.key.as_str(), e.value.value.clone())).collect();
        pairs.sort_by_key(|(key, _)| *key);
        assert_eq!(pairs, [("k", Value::Number("1".into())), ("l", Value::Number("3".into()))]);
        let merged = y.iter().find(|entry| entry.key == "k").unwrap();
        assert_eq!(merged.value.at.line, 2);
        let z = map(&map(&root)[2].value);
        assert_eq!(z[0].value.at.line, 2);
    }

    #[test]
    fn what_is_no_yaml_for_us_is_refused_with_a_position() {
        for (text, line) in [
            ("a: 1\na: 2\n", 2),
            ("a: [1\nb: 2\n", 2),
            ("a: *nope\n", 1),
            ("a: 1\n---\nb: 2\n", 3),
            ("a: !foo 1\n", 1),
        ] {
            let error = read(text, 0).unwrap_err();
            assert!(!error.message.is_empty());
            assert_eq!(error.at.map(|at| at.line), Some(line), "{text:?}: {}", error.message);
        }
    }

    #[test]
    fn alias_bombs_and_bottomless_nesting_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let item = format!("*a{}", n - 1);
            let items = [item.as_str(); 9].join(",");
            bomb.push_str(&format!("a{n}: &a{n} [{items}]\n"));
        }
        assert!(read(&bomb, 0).is_err());
        assert!(read(&"[".repeat(10_000), 0).is_err());
        let deep: String = (0..1000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert!(read(&deep, 0).is_err());
        assert!(read(&" ".repeat(MAX_FILE + 1), 0).is_err());
    }

    #[test]
    fn an_empty_file_is_null() {
        for text in ["", "# nothing\n", "---\n", "~"] {
            assert_eq!(read(text, 0).unwrap().value, Value::Null, "{text:?}");
        }
    }
}
