//! Reads HTTP/1.1 along a link: counts requests and bytes of bodies, and logs each request.
//!
//! It understands what registries and their clients send to each other, and no more: bodies end by `content-length`,
//! and one in chunks is counted with its frame.

use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::link::{Tap, Way};

/// Longer headers are no registry's.
const LONGEST_HEADER: usize = 64 << 10;

/// What all connections of a link add up to.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    /// Requests for a part of a blob.
    pub(crate) ranges: u64,
    /// Bytes of answers that reached their client, without headers.
    pub(crate) body_bytes: u64,
    /// Seconds since 1970 at which the last byte arrived.
    pub(crate) last: f64,
    connections: u64,
    log: Option<File>,
}

impl Totals {
    pub(crate) fn new(log: Option<File>) -> Self {
        Self { log, ..Self::default() }
    }
}

/// The tap of one connection.
pub(crate) struct HttpTap {
    totals: Arc<Mutex<Totals>>,
    connection: u64,
    request: Header,
    /// Bytes of a request's body that are still to come.
    request_body: u64,
    answer: Header,
    /// Bytes of the answer's body that are still to come; `None` while its header comes.
    answer_body: Option<u64>,
    asked: Option<Asked>,
}

/// A request that is being answered.
#[derive(Default)]
struct Asked {
    at: f64,
    method: String,
    path: String,
    range: String,
    status: u16,
    bytes: u64,
    first: f64,
}

/// Collects bytes up to an empty line.
#[derive(Default)]
struct Header(Vec<u8>);

impl Header {
    /// Takes what belongs to the header; gives it once it is complete, and how much was taken.
    fn take(&mut self, bytes: &[u8]) -> (usize, Option<String>) {
        for (at, byte) in bytes.iter().enumerate() {
            if self.0.len() < LONGEST_HEADER {
                self.0.push(*byte);
            }
            if self.0.ends_with(b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.0).into_owned();
                self.0.clear();
                return (at + 1, Some(text));
            }
        }
        (bytes.len(), None)
    }
}

/// The value of a field, or nothing.
fn field<'h>(header: &'h str, name: &str) -> &'h str {
    let is_it = |line: &&str| line.split(':').next().is_some_and(|n| n.eq_ignore_ascii_case(name));
    header.lines().find(is_it).and_then(|line| line.split_once(':')).map_or("", |(_, v)| v.trim())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

impl HttpTap {
    pub(crate) fn new(totals: &Arc<Mutex<Totals>>) -> Self {
        let connection = {
            let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
            totals.connections += 1;
            totals.connections
        };
        Self {
            totals: Arc::clone(totals),
            connection,
            request: Header::default(),
            request_body: 0,
            answer: Header::default(),
            answer_body: None,
            asked: None,
        }
    }

    fn asks(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.request_body > 0 {
                let taken = length(bytes.len()).min(self.request_body);
                self.request_body -= taken;
                bytes = &bytes[usize::try_from(taken).unwrap_or(bytes.len())..];
                continue;
            }
            let (taken, header) = self.request.take(bytes);
            bytes = &bytes[taken..];
            let Some(header) = header else { continue };
            self.request_body = field(&header, "content-length").parse().unwrap_or(0);
            let mut words = header.split_whitespace().map(str::to_owned);
            let asked = Asked {
                at: now(),
                method: words.next().unwrap_or_default(),
                path: words.next().unwrap_or_default(),
                range: field(&header, "range").to_owned(),
                ..Asked::default()
            };
            let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
            totals.requests += 1;
            totals.ranges += u64::from(!asked.range.is_empty());
            drop(totals);
            // What came before is over, also where its end could not be seen.
            self.answer_body = None;
            self.asked = Some(asked);
        }
    }

    fn answers(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(rest) = self.answer_body else {
                let (taken, header) = self.answer.take(bytes);
                bytes = &bytes[taken..];
                if let Some(header) = header {
                    self.begins(&header);
                }
                continue;
            };
            let taken = length(bytes.len()).min(rest);
            bytes = &bytes[usize::try_from(taken).unwrap_or(bytes.len())..];
            if let Some(asked) = &mut self.asked {
                asked.bytes += taken;
            }
            {
                let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
                totals.body_bytes += taken;
                totals.last = now();
            }
            self.answer_body = (rest > taken).then_some(rest - taken);
            if self.answer_body.is_none() {
                self.log();
            }
        }
    }

    fn begins(&mut self, header: &str) {
        let status: u16 =
            header.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        if (100..200).contains(&status) {
            return;
        }
        let is_head = self.asked.as_ref().is_some_and(|asked| asked.method == "HEAD");
        if let Some(asked) = &mut self.asked {
            asked.status = status;
            asked.first = now();
        }
        let is_chunked = field(header, "transfer-encoding").eq_ignore_ascii_case("chunked");
        let body = match field(header, "content-length").parse() {
            _ if is_head || matches!(status, 204 | 304) => 0,
            Ok(length) => length,
            // To the end of the connection, which the registry then closes.
            Err(_) if is_chunked => u64::MAX,
            Err(_) => 0,
        };
        self.answer_body = (body > 0).then_some(body);
        if body == 0 {
            self.log();
        }
    }

    /// One line: the request that was answered, with the moments at which its client sent and got things.
    fn log(&mut self) {
        let Some(asked) = self.asked.take() else { return };
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(log) = &mut totals.log else { return };
        let Asked { at, method, path, range, status, bytes, first } = asked;
        let connection = self.connection;
        let end = now();
        // A log that cannot be written is missed by whoever reads it.
        let _ = writeln!(
            log,
            "{{\"connection\":{connection},\"at\":{at:.6},\"first\":{first:.6},\"end\":{end:.6},\
             \"method\":\"{method}\",\"path\":\"{path}\",\"range\":\"{range}\",\"status\":{status},\"bytes\":{bytes}}}"
        );
    }
}

impl Tap for HttpTap {
    fn pass(&mut self, way: Way, bytes: &[u8]) {
        match way {
            Way::ToServer => self.asks(bytes),
            Way::ToClient => self.answers(bytes),
        }
    }
}

impl Drop for HttpTap {
    fn drop(&mut self) {
        self.log();
    }
}
