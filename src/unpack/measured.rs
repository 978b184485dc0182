//! The blob as it comes: counted, hashed, compared with what the manifest says.

use std::io::{self, Read};

use crate::image::{Compression, Digest, Hasher};

/// The footers of lazy formats are in the last bytes; the longest is 51.
const TAIL_BYTES: usize = 64;

/// What the caller expects of the blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) compression: Compression,
    /// `None` where somebody else compares it.
    pub(super) digest: Option<Digest>,
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

/// Counts and hashes what is read, keeps the end of it, and stops one byte after the expected size.
pub(super) struct Measured<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: u64,
    limit: u64,
    tail: Vec<u8>,
    /// The source's own error, which must not be taken for one of the decoder.
    pub(super) error: Option<io::Error>,
}

impl<R: Read> Measured<R> {
    pub(super) fn new(inner: R, expected: &Expected) -> Self {
        let limit = expected.size.saturating_add(1);
        let hasher = expected.digest.map(|_| Hasher::new());
        Self { inner, hasher, count: 0, limit, tail: Vec::new(), error: None }
    }

    /// The last bytes, if all were as expected.
    pub(super) fn outcome(self, expected: &Expected) -> Result<Vec<u8>, StreamError> {
        if let Some(error) = self.error {
            return Err(StreamError::Read(error));
        }
        if self.count != expected.size {
            return Err(StreamError::Size { expected: expected.size, found: self.count });
        }
        match (expected.digest, self.hasher.map(Hasher::finish)) {
            (Some(expected), Some(found)) if found != expected => {
                Err(StreamError::Digest { expected, found })
            }
            _ => Ok(self.tail),
        }
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
        if let Some(hasher) = &mut self.hasher {
            hasher.update(new);
        }
        self.count += count as u64;
        self.tail.extend_from_slice(&new[count.saturating_sub(TAIL_BYTES)..]);
        self.tail.drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        Ok(count)
    }
}
