//! Bytes of a stream to lines, and one line of a log file.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The longest piece of output that is one entry; what Docker splits at too.
pub const MAX_LINE: usize = 16 * 1024;

/// Which output of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both, standard output first.
    pub const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// `stdout` or `stderr`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The text, with its newline unless the line was split here or the stream ended. Bytes that are not UTF-8 have
    /// been replaced.
    pub log: String,
    /// Where it was written.
    pub stream: Stream,
    /// When it was read from the container.
    pub time: Timestamp,
}

impl LogEntry {
    /// The text without its newline.
    #[must_use]
    pub fn text(&self) -> &str {
        self.log.strip_suffix('\n').unwrap_or(&self.log)
    }

    /// Whether the line goes on in the next entry of the same stream.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.log.ends_with('\n')
    }
}

/// Cuts a stream of bytes into lines of at most [`MAX_LINE`] bytes.
#[derive(Debug, Default)]
pub struct LineSplitter {
    pending: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes and hands every line that they complete to `line`, newline included.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = bytes.split_at(end + 1);
            self.append(head, &mut line);
            if !self.pending.is_empty() {
                line(&self.pending);
                self.pending.clear();
            }
            bytes = tail;
        }
        self.append(bytes, &mut line);
    }

    /// Hands over what is left without a newline.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.pending.is_empty() {
            line(&self.pending);
        }
        // Gives the memory back: one long line must not cost a monitor 16 KiB for ever.
        self.pending = Vec::new();
    }

    fn append(&mut self, mut bytes: &[u8], line: &mut impl FnMut(&[u8])) {
        while self.pending.len() + bytes.len() > MAX_LINE {
            let room = cut(&self.pending, bytes);
            let (head, tail) = bytes.split_at(room);
            self.pending.extend_from_slice(head);
            line(&self.pending);
            self.pending.clear();
            bytes = tail;
        }
        self.pending.extend_from_slice(bytes);
    }
}

/// How many of `bytes` still fit, without cutting a UTF-8 character in two.
fn cut(pending: &[u8], bytes: &[u8]) -> usize {
    let room = MAX_LINE - pending.len();
    let is_continuation = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
    let mut at = room;
    while at > 0 && room - at < 3 && is_continuation(at) {
        at -= 1;
    }
    if is_continuation(at) || (at == 0 && pending.is_empty()) { room } else { at }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = LineSplitter::default();
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece, |line| lines.push(line.to_vec()));
        }
        splitter.finish(|line| lines.push(line.to_vec()));
        lines
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let lines = split(&[b"a", b"b\nc", b"\n\n", b"end"]);
        assert_eq!(lines, [&b"ab\n"[..], b"c\n", b"\n", b"end"]);
        assert!(split(&[b""]).is_empty());
    }

    #[test]
    fn a_long_line_is_split_and_nothing_is_lost() {
        let long = vec![b'x'; MAX_LINE * 2 + 10];
        let lines = split(&[&long[..100], &long[100..], b"\n"]);
        assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 11]);
        let exact = [vec![b'y'; MAX_LINE - 1], vec![b'\n']].concat();
        assert_eq!(split(&[&exact]), [exact]);
    }

    #[test]
    fn a_character_is_not_cut_in_two() {
        let text = format!("{}ü rest\n", "x".repeat(MAX_LINE - 1));
        let lines = split(&[text.as_bytes()]);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| std::str::from_utf8(line).is_ok()));
        // Bytes that are no text at all are cut anywhere.
        assert_eq!(split(&[&vec![0x80; MAX_LINE + 1]]).concat().len(), MAX_LINE + 1);
    }
}
