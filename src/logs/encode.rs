//! One entry as a line of a log file, byte for byte what Docker's `json-file` driver means by it.
//!
//! Own code on top of serde_json's escaping: a workload can print millions of lines a second, and all lines that were
//! read together share their time and their attributes, which are encoded once.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Stream;

/// Encodes entries; remembers what does not change from one to the next.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    /// `,"attrs":{…}`, or nothing.
    attributes: Vec<u8>,
    time: Timestamp,
    encoded_time: String,
}

impl Encoder {
    /// Every entry carries `attributes`, unless there are none.
    pub(super) fn new(attributes: &BTreeMap<String, String>) -> Self {
        let mut encoded = Vec::new();
        if let Ok(map) = serde_json::to_vec(attributes)
            && !attributes.is_empty()
        {
            encoded.extend_from_slice(b",\"attrs\":");
            encoded.extend(map);
        }
        Self { attributes: encoded, ..Self::default() }
    }

    /// Appends one line to `out`.
    pub(super) fn encode(
        &mut self,
        out: &mut Vec<u8>,
        stream: Stream,
        time: Timestamp,
        log: &[u8],
    ) {
        if self.time != time || self.encoded_time.is_empty() {
            self.time = time;
            self.encoded_time = time.to_string();
        }
        out.extend_from_slice(b"{\"log\":");
        text(out, log);
        out.extend_from_slice(b",\"stream\":\"");
        out.extend_from_slice(stream.name().as_bytes());
        out.push(b'"');
        out.extend_from_slice(&self.attributes);
        out.extend_from_slice(b",\"time\":\"");
        out.extend_from_slice(self.encoded_time.as_bytes());
        out.extend_from_slice(b"\"}\n");
    }
}

/// A JSON string; each byte that is not UTF-8 becomes one replacement character, as under Docker.
fn text(out: &mut Vec<u8>, log: &[u8]) {
    let before = out.len();
    let written = match std::str::from_utf8(log) {
        Ok(text) => serde_json::to_writer(&mut *out, text),
        Err(_) => {
            let mut text = String::with_capacity(log.len() + 16);
            for chunk in log.utf8_chunks() {
                text.push_str(chunk.valid());
                text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
            }
            serde_json::to_writer(&mut *out, &text)
        }
    };
    if written.is_err() {
        // Memory does not refuse; but a line that is no JSON would cost its neighbours.
        out.truncate(before);
        out.extend_from_slice(b"\"\"");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(encoder: &mut Encoder, log: &[u8]) -> String {
        let mut out = Vec::new();
        encoder.encode(&mut out, Stream::Stdout, Timestamp::UNIX_EPOCH, log);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_what_scrapers_of_docker_s_files_expect() {
        let mut plain = Encoder::new(&BTreeMap::new());
        let expected = |log: &str| {
            format!(
                "{{\"log\":\"{log}\",\"stream\":\"stdout\",\"time\":\"1970-01-01T00:00:00Z\"}}\n"
            )
        };
        assert_eq!(line(&mut plain, b"hello\n"), expected("hello\\n"));
        assert_eq!(line(&mut plain, b"50%\r100%\r\n"), expected("50%\\r100%\\r\\n"));
        assert_eq!(
            line(&mut plain, b"a\"b\\c\x1b[0m\0\n"),
            expected("a\\\"b\\\\c\\u001b[0m\\u0000\\n")
        );
        // One replacement for each byte, as Go's decoder counts them.
        assert_eq!(line(&mut plain, b"\xff\xe2\x82x\n"), expected("\u{fffd}\u{fffd}\u{fffd}x\\n"));
        let mut out = Vec::new();
        let time: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        plain.encode(&mut out, Stream::Stderr, time, b"");
        let text =
            "{\"log\":\"\",\"stream\":\"stderr\",\"time\":\"2026-01-02T03:04:05.678901234Z\"}\n";
        assert_eq!(String::from_utf8(out).unwrap(), text);
    }

    #[test]
    fn attributes_stand_between_stream_and_time() {
        let attributes = BTreeMap::from([("tag".to_owned(), "a \"b\"".to_owned())]);
        assert_eq!(
            line(&mut Encoder::new(&attributes), b"x"),
            "{\"log\":\"x\",\"stream\":\"stdout\",\"attrs\":{\"tag\":\"a \\\"b\\\"\"},\"time\":\"1970-01-01T00:00:00Z\"}\n"
        );
    }
}
