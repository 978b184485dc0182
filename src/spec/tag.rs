//! compose's own tags, `!reset` and `!override`: where they stand in a text, and the text without them.
//!
//! The reader of the tree keeps no tags, and these two say nothing about the value itself: they say what becomes of
//! the same key in the files before. So they are taken out first (blanks of the same width keep every position), and
//! found again in the tree by where they stood.

use granit_parser::{Scanner, StrInput, TokenType};

use super::Position;
use super::raw::{Node, Value};

/// What a tagged key does to the same key of earlier files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// It goes, and so does the tagged value.
    Reset,
    /// It is replaced instead of merged.
    Override,
}

/// A key that was tagged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tagged {
    /// Keys from the top of the file.
    pub(crate) path: Vec<String>,
    pub(crate) tag: Tag,
}

/// A tag that stands where it means nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    pub(crate) at: Position,
    pub(crate) name: &'static str,
}

/// A tag and its place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    at: Position,
    tag: Tag,
}

/// `text` without the tags, and where they were. A text that is no YAML comes back as far as it is understood; its
/// reader will say what is wrong.
pub(crate) fn take(text: &str, file: u16) -> (String, Vec<Mark>) {
    let mut marks = Vec::new();
    if !text.contains("!reset") && !text.contains("!override") {
        return (text.to_owned(), marks);
    }
    let mut blanked = text.to_owned();
    for token in Scanner::new(StrInput::new(text)).map_while(Result::ok) {
        let TokenType::Tag(handle, suffix) = token.token_type() else { continue };
        let tag = match (handle.as_ref(), suffix.as_ref()) {
            ("!", "reset") => Tag::Reset,
            ("!", "override") => Tag::Override,
            _ => continue,
        };
        let start = token.span().start;
        let Some(offset) = start.byte_offset() else { continue };
        let len = if tag == Tag::Reset { "!reset".len() } else { "!override".len() };
        if blanked.get(offset..offset + len).is_some_and(|spelled| spelled.starts_with('!')) {
            blanked.replace_range(offset..offset + len, &" ".repeat(len));
            let (line, column) = (start.line() as u64, start.col() as u64 + 1);
            marks.push(Mark { at: Position { file, line, column }, tag });
        }
    }
    (blanked, marks)
}

/// The keys that the marks belong to. A key that is seen in several places, by an alias, is tagged in all of them.
pub(crate) fn locate(marks: &[Mark], root: &Node) -> Result<Vec<Tagged>, Misplaced> {
    let mut located = Vec::new();
    for mark in marks {
        let mut nearest = Nearest { before: mark.at, key: None, paths: Vec::new() };
        nearest.search(root, &mut Vec::new());
        let on_its_line = nearest.key.is_some_and(|key| key.line == mark.at.line);
        if !on_its_line {
            let name = if mark.tag == Tag::Reset { "!reset" } else { "!override" };
            return Err(Misplaced { at: mark.at, name });
        }
        located.extend(nearest.paths.into_iter().map(|path| Tagged { path, tag: mark.tag }));
    }
    Ok(located)
}

/// The last key before a place.
struct Nearest {
    before: Position,
    key: Option<Position>,
    paths: Vec<Vec<String>>,
}

impl Nearest {
    fn search(&mut self, node: &Node, path: &mut Vec<String>) {
        match &node.value {
            Value::Map(entries) => {
                for entry in entries {
                    path.push(entry.key.clone());
                    if entry.at < self.before && self.key.is_none_or(|key| entry.at >= key) {
                        if self.key != Some(entry.at) {
                            self.paths.clear();
                        }
                        self.key = Some(entry.at);
                        self.paths.push(path.clone());
                    }
                    self.search(&entry.value, path);
                    path.pop();
                }
            }
            Value::List(items) => {
                for item in items {
                    path.push("[]".to_owned());
                    self.search(item, path);
                    path.pop();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw;
    use super::*;

    fn located(text: &str) -> Result<Vec<(String, Tag)>, Misplaced> {
        let (blanked, marks) = take(text, 0);
        assert_eq!(blanked.len(), text.len());
        let root = raw::read(&blanked, 0).unwrap_or_else(|error| panic!("{}", error.message));
        let tagged = locate(&marks, &root)?;
        Ok(tagged.into_iter().map(|tagged| (tagged.path.join("."), tagged.tag)).collect())
    }

    #[test]
    fn tags_are_found_at_their_keys() {
        for (text, expected) in [
            ("a: 1\n", vec![]),
            ("a:\n  b: !reset null\n  c: 1\n", vec![("a.b", Tag::Reset)]),
            ("a:\n  b: !reset []\n", vec![("a.b", Tag::Reset)]),
            ("a:\n  b: !reset\n  c: 1\n", vec![("a.b", Tag::Reset)]),
            (
                "a: {b: !override {c: 1}, d: !reset }\n",
                vec![("a.b", Tag::Override), ("a.d", Tag::Reset)],
            ),
            ("a: !override\n  - x\n", vec![("a", Tag::Override)]),
            ("a: \"!reset\" # !reset\nb: '!override x'\nc: |\n  !reset\n", vec![]),
        ] {
            let expected: Vec<_> =
                expected.into_iter().map(|(path, tag)| (path.to_owned(), tag)).collect();
            assert_eq!(located(text), Ok(expected), "{text}");
        }
        let misplaced = located("a:\n  - !reset x\n").unwrap_err();
        assert_eq!((misplaced.at.line, misplaced.at.column), (2, 5));
    }
}
