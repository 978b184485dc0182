//! Waiting for what a log gets next.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{LogEntry, LogReader, ReadOptions};

/// Looked at this often also without a notification: the directory may not exist yet, and inotify watches are a
/// scarce resource that a host can run out of.
const PATIENCE: Duration = Duration::from_secs(1);

/// A log without an end.
#[derive(Debug)]
pub struct LogFollower {
    reader: LogReader,
    dir: PathBuf,
    watch: Option<AsyncFd<OwnedFd>>,
}

impl LogFollower {
    /// Begins to follow the log at `path`, which need not exist yet.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, options: ReadOptions) -> io::Result<Self> {
        let dir = path.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { reader: LogReader::open(path, options)?, dir, watch: None })
    }

    /// The next entry, as soon as there is one. Cancel-safe: an entry is either returned or still to come.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn next_entry(&mut self) -> io::Result<LogEntry> {
        loop {
            if let Some(entry) = self.reader.next_entry()? {
                return Ok(entry);
            }
            if self.watch.is_none() {
                self.watch = watch(&self.dir).ok();
                // What was written before the watch began raises no notification.
                if let Some(entry) = self.reader.next_entry()? {
                    return Ok(entry);
                }
            }
            self.wait().await;
        }
    }

    /// The next entry that is already there.
    ///
    /// # Errors
    /// Those of reading.
    pub fn ready_entry(&mut self) -> io::Result<Option<LogEntry>> {
        self.reader.next_entry()
    }

    async fn wait(&self) {
        let Some(watch) = &self.watch else { return tokio::time::sleep(PATIENCE).await };
        if let Ok(Ok(mut ready)) = tokio::time::timeout(PATIENCE, watch.readable()).await {
            let mut events = [0; 4096];
            // What happened does not matter, only that something did.
            while matches!(rustix::io::read(watch.get_ref(), &mut events), Ok(1..)) {}
            ready.clear_ready();
        }
    }
}

fn watch(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let flags =
        inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, dir, flags)?;
    crate::sys::readiness::watch(watch, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{LogWriter, Stream};
    use jiff::Timestamp;

    #[tokio::test]
    async fn a_follower_sees_lines_as_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/log");
        let mut follower = LogFollower::open(&path, ReadOptions::default()).unwrap();
        let writer = std::thread::spawn(move || {
            let mut log = LogWriter::open(&path, 300, 9).unwrap();
            for number in 0..20 {
                let line = format!("{number}\n");
                log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, line.as_bytes()).unwrap();
                log.flush().unwrap();
            }
        });
        for number in 0..20 {
            let entry = follower.next_entry().await.unwrap();
            assert_eq!(entry.text(), number.to_string());
        }
        writer.join().unwrap();
    }
}
