//! From a container's FIFOs to its log.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tracing::warn;

use super::super::image_root::make_fifo;
use super::super::{Launch, RunPaths};
use crate::logs::{LineSplitter, LogWriter, Stream};

/// How much a stream may hold while nobody reads it: what a container can say between the death of a monitor and its
/// replacement without having to wait. Memory is taken only as it fills.
const CAPACITY: usize = 1024 * 1024;

/// How much is taken from one stream before everything else gets its turn.
const TURN: usize = 256 * 1024;

/// Both streams and the log.
#[derive(Debug)]
pub(super) struct Output {
    streams: Vec<Reader>,
    log: Option<LogWriter>,
    /// Whether the log's failure has been reported.
    is_failing: bool,
}

#[derive(Debug)]
struct Reader {
    stream: Stream,
    fifo: OwnedFd,
    lines: LineSplitter,
}

impl Output {
    /// Makes the FIFOs of a container that is to be started.
    pub(super) fn create(launch: &Launch, paths: &RunPaths) -> io::Result<Self> {
        for stream in Stream::ALL {
            make_fifo(&paths.fifo(stream))?;
        }
        Self::open(launch, paths)
    }

    /// Opens the FIFOs of a container. For writing too: its end is never seen, and never seen as an endless one.
    pub(super) fn open(launch: &Launch, paths: &RunPaths) -> io::Result<Self> {
        let mut streams = Vec::with_capacity(2);
        for stream in Stream::ALL {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fifo = rustix::fs::openat(CWD, paths.fifo(stream), flags, Mode::empty())?;
            let _ = rustix::pipe::fcntl_setpipe_size(&fifo, CAPACITY);
            streams.push(Reader { stream, fifo, lines: LineSplitter::default() });
        }
        let log = &launch.log;
        // A log that cannot be written neither keeps a container from starting nor stops it.
        let log = LogWriter::open(&log.path, log.max_size, log.max_files)
            .inspect_err(|error| warn!(%error, path = %log.path.display(), "no log is written"))
            .ok();
        Ok(Self { streams, log, is_failing: false })
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().map(|reader| reader.fifo.as_fd())
    }

    /// Moves what one stream holds, at most a turn's worth; `true` when there is more.
    pub(super) fn pump(&mut self, number: usize) -> bool {
        let Self { streams, log, is_failing } = self;
        let Some(reader) = streams.get_mut(number) else { return false };
        let mut buffer = [0; 32 * 1024];
        let mut taken = 0;
        let mut result = Ok(());
        let has_more = loop {
            match rustix::io::read(&reader.fifo, &mut buffer) {
                Ok(0) => break false,
                Ok(read) => {
                    let time = Timestamp::now();
                    reader.lines.push(&buffer[..read], |line| {
                        append(log, reader.stream, time, line, &mut result);
                    });
                    taken += read;
                    if taken >= TURN {
                        break true;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break false,
            }
        };
        if let Some(log) = log {
            keep_first(&mut result, log.flush());
        }
        match result {
            Err(error) if !*is_failing => {
                warn!(%error, "output of the container is lost: the log cannot be written");
                *is_failing = true;
            }
            Ok(()) if *is_failing => {
                warn!("the log is written again");
                *is_failing = false;
            }
            Ok(()) | Err(_) => {}
        }
        has_more
    }

    /// Moves everything, and what is left of unfinished lines; for when nobody writes any more.
    pub(super) fn finish(&mut self) {
        for number in 0..self.streams.len() {
            // Bounded by what the pipes hold: a writer that is still there (it could not be killed) cannot keep us.
            for _ in 0..=(CAPACITY / TURN) {
                if !self.pump(number) {
                    break;
                }
            }
        }
        let Self { streams, log, .. } = self;
        let mut result = Ok(());
        for reader in streams {
            reader.lines.finish(|line| {
                append(log, reader.stream, Timestamp::now(), line, &mut result);
            });
        }
        if let Some(log) = log {
            keep_first(&mut result, log.flush());
        }
        if let Err(error) = result {
            warn!(%error, "the last output of the container is lost");
        }
    }
}

fn append(
    log: &mut Option<LogWriter>,
    stream: Stream,
    time: Timestamp,
    line: &[u8],
    result: &mut io::Result<()>,
) {
    if let Some(log) = log {
        keep_first(result, log.append(stream, time, line));
    }
}

fn keep_first(result: &mut io::Result<()>, next: io::Result<()>) {
    if result.is_ok() {
        *result = next;
    }
}
