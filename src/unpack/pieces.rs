//! A compressed stream in pieces, some of which were inflated before their turn.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};

use super::member::{Batch, Buffer};

/// What the reading step sends to the inflating one.
pub(super) enum Piece {
    Members(Receiver<Done>),
    Plain(Vec<u8>),
}

/// For a worker.
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) answer: SyncSender<Done>,
}

/// From a worker.
pub(super) struct Done {
    pub(super) bytes: Vec<u8>,
    /// Of the bytes, what the content is made of.
    pub(super) resolved: usize,
    pub(super) content: Buffer,
}

/// The pieces as the stream that they are, with what is inflated already beside it.
pub(super) struct Pieces<'a> {
    input: Receiver<Piece>,
    bytes: Vec<u8>,
    position: usize,
    /// The content of the first bytes.
    ready: Option<(usize, Buffer)>,
    spares: &'a Spares,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(input: Receiver<Piece>, spares: &'a Spares) -> Self {
        Self { input, bytes: Vec::new(), position: 0, ready: None, spares }
    }

    /// To be called where a member may begin: what a worker made of the members here.
    pub(super) fn inflated(&mut self) -> io::Result<Option<Buffer>> {
        self.fill_buf()?;
        if self.position > 0 {
            return Ok(None);
        }
        let Some((resolved, content)) = self.ready.take() else { return Ok(None) };
        self.position = resolved;
        if resolved == 0 {
            self.spares.give_buffer(content);
            return Ok(None);
        }
        Ok(Some(content))
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.bytes.len() {
            // An end is an end: whether it came too early, the reading step tells.
            let Ok(piece) = self.input.recv() else { return Ok(&[]) };
            if let Some((_, unused)) = self.ready.take() {
                self.spares.give_buffer(unused);
            }
            let bytes = match piece {
                Piece::Plain(bytes) => bytes,
                Piece::Members(result) => {
                    let done = result.recv().map_err(|_| io::Error::other("a worker is gone"))?;
                    self.ready = Some((done.resolved, done.content));
                    done.bytes
                }
            };
            self.spares.give_bytes(std::mem::replace(&mut self.bytes, bytes));
            self.position = 0;
        }
        Ok(&self.bytes[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

/// Memory that waits to be used again, instead of being mapped anew. There is no more of it than the channels hold.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Mutex<Vec<Buffer>>,
    bytes: Mutex<Vec<Vec<u8>>>,
}

impl Spares {
    /// An empty buffer.
    pub(super) fn buffer(&self) -> Buffer {
        let mut buffer = take(&self.buffers);
        buffer.clear();
        buffer
    }

    /// Memory that holds anything.
    pub(super) fn bytes(&self) -> Vec<u8> {
        take(&self.bytes)
    }

    pub(super) fn give_buffer(&self, buffer: Buffer) {
        give(&self.buffers, buffer);
    }

    fn give_bytes(&self, bytes: Vec<u8>) {
        give(&self.bytes, bytes);
    }
}

fn take<T: Default>(spares: &Mutex<Vec<T>>) -> T {
    spares.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
}

fn give<T>(spares: &Mutex<Vec<T>>, spare: T) {
    spares.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
}
