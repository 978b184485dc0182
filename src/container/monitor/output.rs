//! From a container's FIFOs to its log.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tracing::warn;

use super::super::image_root::make_fifo;
use super::super::launch::{LogKept, LogOverflow};
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
    /// `None` where nothing is kept.
    log: Option<LogWriter>,
    /// How much of a stream may wait after a turn before it is dropped; `None`: the container waits instead.
    limit: Option<u64>,
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
        let mut capacity = CAPACITY;
        for stream in Stream::ALL {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fifo = rustix::fs::openat(CWD, paths.fifo(stream), flags, Mode::empty())?;
            let _ = rustix::pipe::fcntl_setpipe_size(&fifo, CAPACITY);
            capacity = rustix::pipe::fcntl_getpipe_size(&fifo).unwrap_or(CAPACITY).min(capacity);
            streams.push(Reader { stream, fifo, lines: LineSplitter::default() });
        }
        let target = &launch.log;
        let new =
            || LogWriter::new(&target.path, target.max_size, target.max_files, &target.attributes);
        let log = (target.kept == LogKept::Files).then(new);
        // A container must find room all the time, so no more than half of a pipe can be waited for; and small
        // writes take a whole page each.
        let most = u64::try_from(capacity / 2).unwrap_or(u64::MAX);
        let limit = match target.overflow {
            LogOverflow::Wait => None,
            LogOverflow::Drop { buffer } => Some(buffer.min(most)),
        };
        Ok(Self { streams, log, limit, is_failing: false })
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().map(|reader| reader.fifo.as_fd())
    }

    /// Moves what one stream holds, at most a turn's worth; `true` when there is more.
    pub(super) fn pump(&mut self, number: usize) -> bool {
        let Self { streams, log, limit, is_failing } = self;
        let Some(reader) = streams.get_mut(number) else { return false };
        let mut result = Ok(());
        let has_more = reader.take(TURN, |lines, stream, bytes| {
            let Some(log) = log else { return };
            let time = Timestamp::now();
            lines.push(bytes, |line| keep_first(&mut result, log.append(stream, time, line)));
        });
        let Some(log) = log else { return has_more };
        keep_first(&mut result, log.flush());
        if let Some(limit) = *limit
            && has_more
            && rustix::io::ioctl_fionread(&reader.fifo).is_ok_and(|waiting| waiting > limit)
        {
            reader.drop_waiting(log);
        }
        report(is_failing, &result);
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
        let Self { streams, log: Some(log), .. } = self else { return };
        let mut result = Ok(());
        for reader in streams {
            reader.lines.finish(|line| {
                keep_first(&mut result, log.append(reader.stream, Timestamp::now(), line));
            });
        }
        keep_first(&mut result, log.flush());
        if let Err(error) = result {
            warn!(%error, "the last output of the container is lost");
        }
    }
}

impl Reader {
    /// Hands over what the stream holds, at least `most` bytes if there are; `true` when there may be more.
    fn take(
        &mut self,
        most: usize,
        mut each: impl FnMut(&mut LineSplitter, Stream, &[u8]),
    ) -> bool {
        let mut buffer = [0; 32 * 1024];
        let mut taken = 0;
        loop {
            match rustix::io::read(&self.fifo, &mut buffer) {
                Ok(0) => return false,
                Ok(read) => {
                    each(&mut self.lines, self.stream, &buffer[..read]);
                    taken += read;
                    if taken >= most {
                        return true;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Drops what waits, up to the end of a line as far as it is there.
    fn drop_waiting(&mut self, log: &mut LogWriter) {
        let mut lost = 0;
        let mut rest = Vec::new();
        let waiting = rustix::io::ioctl_fionread(&self.fifo).unwrap_or(0);
        self.take(usize::try_from(waiting).unwrap_or(usize::MAX), |_, _, bytes| {
            let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
            lost += u64::try_from(lines).unwrap_or(0);
            match bytes.iter().rposition(|&byte| byte == b'\n') {
                Some(end) => rest = bytes[end + 1..].to_vec(),
                None => rest.extend_from_slice(bytes),
            }
        });
        if lost == 0 {
            // A piece of one long line: it is no loss yet.
            let time = Timestamp::now();
            self.lines.push(&rest, |line| drop(log.append(self.stream, time, line)));
            return;
        }
        // The line that was being read is one of them.
        self.lines = LineSplitter::default();
        log.lose(lost, "they came faster than they could be written (`mode: non-blocking`)");
        // Of the line that begins behind them nothing is lost, however long it is already.
        let time = Timestamp::now();
        self.lines.push(&rest, |line| drop(log.append(self.stream, time, line)));
    }
}

/// Says once that the log fails, and once that it does not any more.
fn report(is_failing: &mut bool, result: &io::Result<()>) {
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
}

fn keep_first(result: &mut io::Result<()>, next: io::Result<()>) {
    if result.is_ok() {
        *result = next;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write as _;

    use super::*;
    use crate::logs::LogEntry;

    #[test]
    fn what_is_dropped_is_counted_and_the_line_behind_it_is_kept_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.json");
        let mut log = LogWriter::new(&path, 0, 1, &BTreeMap::new());
        let (fifo, writer) = std::io::pipe().unwrap();
        let (fifo, mut writer) = (OwnedFd::from(fifo), std::fs::File::from(OwnedFd::from(writer)));
        rustix::io::ioctl_fionbio(&fifo, true).unwrap();
        let mut reader = Reader { stream: Stream::Stdout, fifo, lines: LineSplitter::default() };
        // More than one entry of a line that has not ended.
        let long = "z".repeat(40_000);
        write!(writer, "first\nsecond\n{long}").unwrap();
        reader.drop_waiting(&mut log);
        writeln!(writer, "end").unwrap();
        reader.take(TURN, |lines, stream, bytes| {
            lines.push(bytes, |line| log.append(stream, Timestamp::now(), line).unwrap());
        });
        log.flush().unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        let entries: Vec<LogEntry> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(entries[0].log.starts_with("supervisor: 2 lines lost"), "{}", entries[0].log);
        let kept: String = entries[1..].iter().map(|entry| entry.log.as_str()).collect();
        assert_eq!(kept.len(), long.len() + "end\n".len(), "nothing is lost without a word");
        assert!(kept.starts_with(&long) && kept.ends_with("end\n"));
    }
}
