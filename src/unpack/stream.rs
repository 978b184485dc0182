//! The way of the bytes: blob → measured and hashed → inflated, on a thread of its own → hashed → tar.
//!
//! The two halves meet in a bounded channel of buffers, so that inflating and writing go on at once and neither
//! runs ahead. When the content turns out to be wrong, the rest of the blob is still measured: a wrong digest is
//! what the caller must hear of first, because that is worth another try and a malformed layer is not.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use crate::image::{Compression, Digest, Hasher};

/// Size of the buffers that go through the channel.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// Buffers on the way: enough for the writer to keep busy while a large one is inflated, 2 MiB in all.
pub(super) const BUFFERS: usize = 8;

/// The footers of lazy formats are in the last bytes; the longest is 51.
const TAIL_BYTES: usize = 64;

/// What the caller expects of the blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) compression: Compression,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// The blob is not the one that was asked for, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The source failed.
    #[error("could not read the layer")]
    Read(#[source] io::Error),
    /// More or fewer bytes than the manifest says.
    #[error("the layer has {found} bytes instead of {expected}")]
    Size {
        /// As the manifest says.
        expected: u64,
        /// What came; one more than expected stands for any larger size.
        found: u64,
    },
    /// Other bytes than the manifest names.
    #[error("the layer's digest is `{found}` instead of `{expected}`")]
    Digest {
        /// As the manifest says.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The right bytes, but they do not inflate.
    #[error("could not decompress the layer as {compression:?}")]
    Decompress {
        /// What the content looks like.
        compression: Compression,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
}

/// Inflates `blob` into the channel, then compares size and digest.
///
/// Returns the last bytes of the blob. Stops early, without an error, when `abandoned` is set.
pub(super) fn inflate(
    blob: impl Read,
    expected: Expected,
    output: SyncSender<Vec<u8>>,
    used: Receiver<Vec<u8>>,
    abandoned: &AtomicBool,
) -> Result<Vec<u8>, StreamError> {
    let mut measured = Measured::new(blob, expected.size);
    let sent = send_all(&mut measured, expected.compression, &output, &used);
    // The reader of the channel sees its end only when the outcome below is known to be right or wrong for
    // reasons that it cannot see; it waits for this function's result anyway.
    drop(output);
    if abandoned.load(Ordering::Acquire) {
        return Ok(Vec::new());
    }
    if measured.error.is_none() {
        // Also after an error of the decoder: then the digest decides whose fault it is.
        let _ = io::copy(&mut measured, &mut io::sink());
    }
    if let Some(error) = measured.error {
        return Err(StreamError::Read(error));
    }
    if measured.count != expected.size {
        return Err(StreamError::Size { expected: expected.size, found: measured.count });
    }
    let found = measured.hasher.finish();
    if found != expected.digest {
        return Err(StreamError::Digest { expected: expected.digest, found });
    }
    sent.map_err(|(compression, source)| StreamError::Decompress { compression, source })?;
    Ok(measured.tail)
}

/// Inflates until the end of the blob or until nobody listens.
fn send_all<R: Read>(
    measured: &mut Measured<R>,
    declared: Compression,
    output: &SyncSender<Vec<u8>>,
    used: &Receiver<Vec<u8>>,
) -> Result<(), (Compression, io::Error)> {
    let mut head = [0; 4];
    let length = fill(measured, &mut head).map_err(|error| (declared, error))?;
    let head = &head[..length];
    let compression = looks_like(head);
    if compression != declared {
        // Other runtimes go by the content too, so such images are in use.
        tracing::debug!(
            ?declared,
            ?compression,
            "the layer's media type names another compression"
        );
    }
    let input = BufReader::with_capacity(BUFFER_BYTES, head.chain(measured));
    let failed = |error| (compression, error);
    let mut decoder: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            Box::new(zstd::stream::read::Decoder::with_buffer(input).map_err(failed)?)
        }
    };
    loop {
        let mut buffer = used.try_recv().unwrap_or_default();
        buffer.resize(BUFFER_BYTES, 0);
        let length = fill(&mut decoder, &mut buffer).map_err(failed)?;
        buffer.truncate(length);
        if length == 0 || output.send(buffer).is_err() {
            return Ok(());
        }
    }
}

/// The compression that the first bytes of a layer show. No tar begins like the other two.
fn looks_like(head: &[u8]) -> Compression {
    match head {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Reads until `buffer` is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Counts and hashes what is read, keeps the end of it, and stops one byte after the expected size.
struct Measured<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
    limit: u64,
    tail: Vec<u8>,
    /// The source's own error, which must not be taken for one of the decoder.
    error: Option<io::Error>,
}

impl<R: Read> Measured<R> {
    fn new(inner: R, size: u64) -> Self {
        let limit = size.saturating_add(1);
        Self { inner, hasher: Hasher::new(), count: 0, limit, tail: Vec::new(), error: None }
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.limit - self.count).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        if length == 0 || self.error.is_some() {
            return Ok(0);
        }
        let count = loop {
            match self.inner.read(&mut buffer[..length]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    self.error = Some(error);
                    return Err(kind.into());
                }
                Ok(count) => break count,
            }
        };
        let new = &buffer[..count];
        self.hasher.update(new);
        self.count += count as u64;
        self.tail.extend_from_slice(&new[count.saturating_sub(TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        Ok(count)
    }
}

/// The other end of the channel: hashes the uncompressed layer while it is read.
pub(super) struct Inflated {
    input: Receiver<Vec<u8>>,
    used: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
    hasher: Hasher,
}

impl Inflated {
    pub(super) fn new(input: Receiver<Vec<u8>>, used: SyncSender<Vec<u8>>) -> Self {
        Self { input, used, buffer: Vec::new(), position: 0, hasher: Hasher::new() }
    }

    /// Reads what is left, and returns the digest of all of it.
    pub(super) fn finish(mut self) -> Digest {
        self.buffer.clear();
        while let Ok(buffer) = self.input.recv() {
            self.hasher.update(&buffer);
            let _ = self.used.try_send(buffer);
        }
        self.hasher.finish()
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let count = available.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.buffer.len() {
            // An end is an end: whether it came too early, the sending thread's result tells.
            let next = self.input.recv().unwrap_or_default();
            self.hasher.update(&next);
            // A full channel of used buffers only means that this one is freed instead.
            let _ = self.used.try_send(std::mem::replace(&mut self.buffer, next));
            self.position = 0;
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}
