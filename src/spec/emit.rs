//! The tree as a text: YAML in one form, sorted, so that the same project always gives the same text; and JSON.

use super::raw::{Entry, Node, Value};

/// What becomes of dollar signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dollars {
    /// Doubled: the text will be interpolated again.
    Escape,
    /// As they are: nothing was interpolated.
    Keep,
}

/// First keys of a file, in this order; the others follow by name.
const FIRST: [&str; 6] = ["name", "services", "networks", "volumes", "configs", "secrets"];

fn sorted(entries: &[Entry], depth: usize) -> Vec<&Entry> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    let rank = |key: &str| {
        let place = FIRST.iter().position(|first| *first == key);
        place.filter(|_| depth == 0).unwrap_or(FIRST.len())
    };
    sorted.sort_by(|a, b| (rank(&a.key), &a.key).cmp(&(rank(&b.key), &b.key)));
    sorted
}

/// `root` as YAML.
pub(crate) fn yaml(root: &Node, dollars: Dollars) -> String {
    let mut out = String::new();
    block(root, 0, dollars, &mut out);
    out
}

fn block(node: &Node, depth: usize, dollars: Dollars, out: &mut String) {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            for (n, entry) in sorted(entries, depth).into_iter().enumerate() {
                if n > 0 || depth > 0 && out.ends_with('\n') {
                    out.push_str(&"  ".repeat(depth));
                }
                // A key is not interpolated, so its dollar signs stay.
                scalar(&entry.key, Dollars::Keep, out);
                out.push(':');
                below(&entry.value, depth, dollars, out);
            }
        }
        Value::List(items) if !items.is_empty() => {
            for (n, item) in items.iter().enumerate() {
                if n > 0 || depth > 0 && out.ends_with('\n') {
                    out.push_str(&"  ".repeat(depth));
                }
                out.push('-');
                match &item.value {
                    Value::Map(entries) if !entries.is_empty() => {
                        out.push(' ');
                        block(item, depth + 1, dollars, out);
                    }
                    _ => below(item, depth, dollars, out),
                }
            }
        }
        _ => {
            leaf(node, dollars, out);
            out.push('\n');
        }
    }
}

/// What follows a key or a dash.
fn below(node: &Node, depth: usize, dollars: Dollars, out: &mut String) {
    let is_block = match &node.value {
        Value::Map(entries) => !entries.is_empty(),
        Value::List(items) => !items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => false,
    };
    if is_block {
        out.push('\n');
        block(node, depth + 1, dollars, out);
    } else {
        out.push(' ');
        leaf(node, dollars, out);
        out.push('\n');
    }
}

fn leaf(node: &Node, dollars: Dollars, out: &mut String) {
    match &node.value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(text) => out.push_str(text),
        Value::Text(text) => scalar(text, dollars, out),
        Value::List(_) => out.push_str("[]"),
        Value::Map(_) => out.push_str("{}"),
    }
}

fn scalar(text: &str, dollars: Dollars, out: &mut String) {
    let escaped;
    let text = match dollars {
        Dollars::Escape if text.contains('$') => {
            escaped = text.replace('$', "$$");
            &escaped
        }
        Dollars::Escape | Dollars::Keep => text,
    };
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{20}'..='\u{7e}' | '\u{a1}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}'
                if !matches!(c, '\u{2028}' | '\u{2029}') =>
            {
                out.push(c);
            }
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
}

/// Whether a text needs no quotes; rather too few than too many, since readers differ in what else a text may be.
fn is_plain(text: &str) -> bool {
    let safe = |b: u8| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'_' | b'.' | b'/' | b'-' | b'$' | b'@' | b'+' | b'=')
    };
    let first = text.bytes().next();
    let word = text.to_ascii_lowercase();
    let reserved = [
        "null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity",
        "-inf", ".inf", ".nan",
    ];
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'/' || b == b'_')
        && text.bytes().all(|b| safe(b) || b == b':' || b == b' ')
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && !reserved.contains(&word.as_str())
        && !text.contains(" -")
}

/// `root` as JSON; keys are sorted. Numbers that JSON cannot spell become texts.
pub(crate) fn json(root: &Node) -> serde_json::Value {
    match &root.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(text) => match serde_json::from_str::<serde_json::Number>(text) {
            Ok(number) => number.into(),
            Err(_) => text.clone().into(),
        },
        Value::Text(text) => text.clone().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), json(&entry.value))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Position, raw};
    use super::*;
    use proptest::prelude::*;

    fn tree() -> impl Strategy<Value = Node> {
        let at = Position { file: 0, line: 1, column: 1 };
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            (0..100_000_u32).prop_map(|n| Value::Number(n.to_string())),
            "[ -~é\n\t#:\\-]{0,12}".prop_map(Value::Text),
            any::<String>().prop_map(Value::Text),
            prop::sample::select(vec![
                "no",
                "1e3",
                "0x1F",
                "~",
                "null",
                "- a",
                "1:2",
                "12:30:45",
                "=",
                "<<",
                "a: b",
                "0o7",
                "_1",
                "2001-01-01",
                "...",
                "---",
                "+1",
                "/a b"
            ])
            .prop_map(|text| Value::Text(text.to_owned())),
        ];
        leaf.prop_map(move |value| Node { value, at }).prop_recursive(4, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(move |items| Node { value: Value::List(items), at }),
                prop::collection::btree_map("[a-z$:\\- 0-9]{1,5}", inner, 0..4).prop_map(
                    move |map| {
                        let entry = |(key, value)| Entry { key, at, value };
                        Node { value: Value::Map(map.into_iter().map(entry).collect()), at }
                    }
                ),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(node in tree()) {
            let text = yaml(&node, Dollars::Keep);
            let back = raw::read(&text, 0)
                .map_err(|error| TestCaseError::fail(format!("{}\n{text}", error.message)))?;
            prop_assert_eq!(json(&back), json(&node), "{}", text);
            prop_assert_eq!(yaml(&back, Dollars::Keep), text);
        }
    }
}
