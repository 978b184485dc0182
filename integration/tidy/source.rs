//! A source file as the rules see it: comments and literals blanked, tests told from production code.

use std::path::{Path, PathBuf};

/// One file below `src/`.
pub(super) struct Source {
    /// Relative to `src/`: `fuse/keeper.rs`.
    pub(super) path: String,
    /// As it stands.
    pub(super) text: String,
    /// With comments and literals replaced by blanks; lines are kept.
    pub(super) code: String,
    /// `code` without what is compiled for tests only; lines are kept.
    pub(super) production: String,
    /// How many lines of `code` are in items that are compiled for tests only.
    test_lines: usize,
    /// The whole file is compiled for tests only.
    pub(super) is_test: bool,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = blank_comments_and_literals(text);
        let (production, test_lines) = blank_tests(&code, text);
        let (path, text) = (path.to_owned(), text.to_owned());
        Self { path, text, code, production, test_lines, is_test: false }
    }

    /// The top-level module that the file belongs to; empty for `lib.rs` and `main.rs`.
    pub(super) fn module(&self) -> &str {
        self.path.split_once('/').map_or("", |(module, _)| module)
    }

    /// Lines that are not in items for tests only; comments and empty lines count, they are read too.
    pub(super) fn production_lines(&self) -> usize {
        self.text.lines().count() - self.test_lines
    }

    /// Files that this one declares for tests only, without `.rs`: `spec/tests`.
    fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "mod.rs")) => format!("{folder}/"),
            Some((folder, file)) => format!("{folder}/{}/", file.trim_end_matches(".rs")),
            None => String::new(),
        };
        let mut found = Vec::new();
        let mut for_tests = false;
        for (line, raw) in self.code.lines().zip(self.text.lines()) {
            if is_test_attribute(raw) {
                for_tests = true;
            } else if let Some(name) = declared_module(line) {
                if for_tests {
                    found.push(format!("{folder}{name}"));
                }
                for_tests = false;
            } else if !line.trim().is_empty() && !line.trim().starts_with("#[") {
                for_tests = false;
            }
        }
        found
    }
}

/// Every file below `src/` of this crate.
pub(super) fn all() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    collect(&root, &mut paths);
    paths.sort();
    let mut sources: Vec<Source> = paths
        .iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).unwrap().to_str().unwrap();
            Source::new(relative, &std::fs::read_to_string(path).unwrap())
        })
        .collect();
    mark_tests(&mut sources);
    sources
}

/// Marks the files that are declared for tests only, and what is below them.
pub(super) fn mark_tests(sources: &mut [Source]) {
    let tests: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in sources {
        let is_below = |test: &String| {
            source.path == format!("{test}.rs") || source.path.starts_with(&format!("{test}/"))
        };
        if tests.iter().any(is_below) {
            source.is_test = true;
            source.production = blank(&source.code);
        }
    }
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// `mod name;`, public or not.
fn declared_module(line: &str) -> Option<&str> {
    let line = line.trim().strip_suffix(';')?;
    let line =
        line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) ")).unwrap_or(line);
    line.strip_prefix("mod ").map(str::trim)
}

fn is_test_attribute(raw: &str) -> bool {
    let raw = raw.trim();
    raw == "#[cfg(test)]" || raw == "#[cfg(any(test, feature = \"testing\"))]"
}

fn blank(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { c } else { ' ' }).collect()
}

/// Blanks each item that stands below a test attribute, up to the end of its braces or its semicolon; counts the lines.
fn blank_tests(code: &str, text: &str) -> (String, usize) {
    let mut result = String::new();
    let mut lines = 0;
    let mut depth: Option<i32> = None;
    for (line, raw) in code.lines().zip(text.lines()) {
        if depth.is_none() && is_test_attribute(raw) {
            depth = Some(0);
            lines += 1;
            result.push_str(&blank(line));
        } else if let Some(open) = depth {
            lines += 1;
            result.push_str(&blank(line));
            let opened = i32::try_from(line.matches('{').count()).unwrap();
            let closed = i32::try_from(line.matches('}').count()).unwrap();
            let now = open + opened - closed;
            let ended = now == 0 && (closed > 0 || line.trim_end().ends_with(';'));
            depth = if ended { None } else { Some(now) };
        } else {
            result.push_str(line);
        }
        result.push('\n');
    }
    (result, lines)
}

/// Blanks comments, texts and characters, so that what is left is code.
pub(super) fn blank_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut result = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            result.push(chars[at]);
            at += 1;
        } else {
            result.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    result
}

/// The end of the comment or literal that begins at `at`, or `at`.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |n: usize| chars.get(at + n).copied();
    match (chars[at], next(1)) {
        ('/', Some('/')) => find(chars, at, |rest| rest[0] == '\n'),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => quoted_end(chars, at + 1, '"'),
        ('r', Some('"' | '#')) if !is_word_before(chars, at) => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) != Some('"') {
                return at;
            }
            let ends = |rest: &[char]| {
                rest[0] == '"' && rest[1..].iter().take_while(|c| **c == '#').count() >= hashes
            };
            (find(chars, at + hashes + 2, ends) + 1 + hashes).min(chars.len())
        }
        // A lifetime has no quote behind its first character.
        ('\'', Some('\\')) => quoted_end(chars, at + 1, '\''),
        ('\'', Some(_)) if next(2) == Some('\'') => at + 3,
        _ => at,
    }
}

fn find(chars: &[char], from: usize, ends: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|at| ends(&chars[*at..])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut at = at;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    chars.len()
}

fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut at = from;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

fn is_word_before(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
        // `br"…"` is a literal too.
        && !(chars[at - 1] == 'b' && (at < 2 || !chars[at - 2].is_alphanumeric()))
}
