//! The way of the bytes: blob → measured and hashed → inflated → hashed → tar. Each step is a thread of its own.
//!
//! ```text
//! reading ──parts──► inflating ──buffers──► hashing ──buffers──► the caller: tar, tree
//!    └────batches──► workers ─────┘
//! ```
//!
//! Only gzip streams of many members have work for the workers; all else is inflated as one stream, in order. The
//! steps meet in bounded channels, so that none runs ahead. When the content turns out to be wrong, the rest of the
//! blob is still measured: a wrong digest is what the caller must hear of first, because that is worth another try
//! and a malformed layer is not.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use super::measured::{Expected, Measured, StreamError};
use super::member::{Buffer, Members, Part, Splitter, fill};
use super::pieces::{Done, Piece, Pieces, Spares, Work};
use crate::image::{Compression, Digest, Hasher};

/// Inflated at once by the stream.
const BUFFER_BYTES: usize = 256 << 10;

/// Buffers between two steps: enough for the next to keep busy while a large one is made.
const BUFFERS: usize = 3;

/// More threads than this inflate faster than anything writes.
const MAX_WORKERS: usize = 8;

/// What the steps share.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// The layer cannot be unpacked, for reasons that have nothing to do with the blob.
    abandoned: AtomicBool,
    spares: Spares,
}

/// The threads of the steps.
pub(super) struct Running<'scope> {
    reading: ScopedJoinHandle<'scope, Result<Vec<u8>, StreamError>>,
    inflating: ScopedJoinHandle<'scope, Result<(), StreamError>>,
    hashing: ScopedJoinHandle<'scope, Digest>,
}

impl Steps {
    /// Starts all steps; what they make of `blob` is read from the second result.
    pub(super) fn start<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        blob: impl Read + Send + 'scope,
        expected: Expected,
    ) -> (Running<'scope>, Inflated<'env>) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        let (work_sender, work) = sync_channel(workers);
        let (piece_sender, pieces) = sync_channel(workers + 1);
        let (inflated_sender, inflated) = sync_channel(BUFFERS);
        let (hashed_sender, hashed) = sync_channel(BUFFERS);
        let work = Arc::new(Mutex::new(work));
        for _ in 0..workers {
            let work = Arc::clone(&work);
            scope.spawn(move || self.work(&work));
        }
        let running = Running {
            reading: scope.spawn(move || self.read(blob, expected, &piece_sender, &work_sender)),
            inflating: scope
                .spawn(move || self.inflate(pieces, expected.compression, &inflated_sender)),
            hashing: scope.spawn(move || hash(&inflated, &hashed_sender)),
        };
        (running, Inflated::new(hashed, &self.spares))
    }

    /// The blob's rest may be long in coming, and nobody wants it any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Reads all of the blob, whoever listens, and compares size and digest. Returns its last bytes.
    fn read(
        &self,
        blob: impl Read,
        expected: Expected,
        pieces: &SyncSender<Piece>,
        work: &SyncSender<Work>,
    ) -> Result<Vec<u8>, StreamError> {
        let mut blob = Measured::new(blob, &expected);
        let mut splitter = Splitter::default();
        // What fails here is noted in `blob`.
        while let Ok(Some(part)) = splitter.next_part(&mut blob, || self.spares.bytes()) {
            let piece = match part {
                Part::Plain(bytes) => Piece::Plain(bytes),
                Part::Members(batch) => {
                    let (answer, result) = sync_channel(1);
                    // Without workers the result does not come either, which is noticed where it is missed.
                    let _ = work.send(Work { batch, answer });
                    Piece::Members(result)
                }
            };
            if pieces.send(piece).is_err() {
                break;
            }
        }
        if self.abandoned.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        if blob.error.is_none() {
            // Also after an error of the decoder: then the digest decides whose fault it is.
            let _ = io::copy(&mut blob, &mut io::sink());
        }
        blob.outcome(&expected)
    }

    /// Inflates what the workers do not.
    fn inflate(
        &self,
        pieces: Receiver<Piece>,
        declared: Compression,
        output: &SyncSender<Buffer>,
    ) -> Result<(), StreamError> {
        let mut pieces = Pieces::new(pieces, &self.spares);
        let failed = |compression| move |source| StreamError::Decompress { compression, source };
        let compression = looks_like(pieces.fill_buf().map_err(failed(declared))?);
        if compression != declared {
            // Other runtimes go by the content too, so such images are in use.
            tracing::debug!(
                ?declared,
                ?compression,
                "the layer's media type names another compression"
            );
        }
        let failed = failed(compression);
        match compression {
            Compression::None => self.send_all(pieces, output).map(|_| ()),
            Compression::Gzip => self.send_members(pieces, output),
            Compression::Zstd => zstd::stream::read::Decoder::with_buffer(pieces)
                .and_then(|decoder| self.send_all(decoder, output).map(|_| ())),
        }
        .map_err(failed)
    }

    /// Member by member: those that were inflated already, and the others.
    fn send_members(&self, mut pieces: Pieces<'_>, output: &SyncSender<Buffer>) -> io::Result<()> {
        loop {
            if let Some(content) = pieces.inflated()? {
                if output.send(content).is_err() {
                    return Ok(());
                }
            } else if pieces.fill_buf()?.is_empty() {
                return Ok(());
            } else {
                let member = flate2::bufread::GzDecoder::new(&mut pieces);
                if self.send_all(member, output)? == Listener::Gone {
                    return Ok(());
                }
            }
        }
    }

    /// Reads until the end, or until nobody listens.
    fn send_all(&self, mut input: impl Read, output: &SyncSender<Buffer>) -> io::Result<Listener> {
        loop {
            let mut buffer = self.spares.buffer();
            let length = fill(&mut input, buffer.room(BUFFER_BYTES))?;
            buffer.filled(length);
            if length == 0 {
                return Ok(Listener::There);
            }
            if output.send(buffer).is_err() {
                return Ok(Listener::Gone);
            }
        }
    }

    /// Inflates batches until there are no more.
    fn work(&self, batches: &Mutex<Receiver<Work>>) {
        let mut members = Members::new();
        loop {
            let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(Work { batch, answer }) = next else { return };
            let mut content = self.spares.buffer();
            let resolved = members.inflate(&batch, &mut content);
            let _ = answer.send(Done { bytes: batch.bytes, resolved, content });
        }
    }
}

impl Running<'_> {
    /// The last bytes of the blob, and the digest of what it holds.
    pub(super) fn finish(self) -> Result<(Vec<u8>, Digest), StreamError> {
        let read = joined(self.reading);
        let inflated = joined(self.inflating);
        let digest = joined(self.hashing);
        // The blob's own fault is the cause of what the inflater saw.
        let tail = read?;
        inflated.map(|()| (tail, digest))
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[derive(Debug, PartialEq, Eq)]
enum Listener {
    There,
    Gone,
}

/// Hashes what comes by.
fn hash(input: &Receiver<Buffer>, output: &SyncSender<Buffer>) -> Digest {
    let mut hasher = Hasher::new();
    while let Ok(buffer) = input.recv() {
        hasher.update(buffer.content());
        if output.send(buffer).is_err() {
            break;
        }
    }
    hasher.finish()
}

/// The compression that the first bytes of a layer show. No tar begins like the other two.
fn looks_like(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The end of the steps: the uncompressed layer.
pub(super) struct Inflated<'a> {
    input: Receiver<Buffer>,
    buffer: Buffer,
    position: usize,
    spares: &'a Spares,
}

impl<'a> Inflated<'a> {
    fn new(input: Receiver<Buffer>, spares: &'a Spares) -> Self {
        Self { input, buffer: Buffer::default(), position: 0, spares }
    }

    /// Takes what is left, so that it is hashed.
    pub(super) fn finish(self) {
        while let Ok(buffer) = self.input.recv() {
            self.spares.give_buffer(buffer);
        }
    }
}

impl Read for Inflated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Inflated<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.buffer.content().len() {
            // An end is an end: whether it came too early, the other steps tell.
            let Ok(next) = self.input.recv() else { return Ok(&[]) };
            self.spares.give_buffer(std::mem::replace(&mut self.buffer, next));
            self.position = 0;
        }
        Ok(&self.buffer.content()[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}
