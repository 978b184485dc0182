//! Waiting for what a log gets next.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{LogEntry, LogReader, ReadOptions};

/// Looked at this often also without a notification: inotify watches are a scarce resource that a host can run out of.
const PATIENCE: Duration = Duration::from_secs(1);

/// A log without an end.
#[derive(Debug)]
pub struct LogFollower {
    reader: LogReader,
    dir: PathBuf,
    watch: Option<Watch>,
}

/// A watch of the log's directory, or of what is there of its path: the first container makes the rest.
#[derive(Debug)]
struct Watch {
    changes: AsyncFd<OwnedFd>,
    is_complete: bool,
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
            if !self.watch.as_ref().is_some_and(|watch| watch.is_complete) {
                self.watch = Watch::begin(&self.dir).ok();
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
        if let Ok(Ok(mut ready)) = tokio::time::timeout(PATIENCE, watch.changes.readable()).await {
            let mut events = [0; 4096];
            // What happened does not matter, only that something did.
            while matches!(rustix::io::read(watch.changes.get_ref(), &mut events), Ok(1..)) {}
            ready.clear_ready();
        }
    }
}

impl Watch {
    fn begin(dir: &Path) -> io::Result<Self> {
        let changes =
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        // Again until nothing was made in between: what is made before its parent is watched raises no notification.
        let mut deepest = None;
        loop {
            let watched = dir
                .ancestors()
                .map(|folder| (folder, inotify::add_watch(&changes, folder, flags)))
                .find(|(_, added)| !matches!(added, Err(Errno::NOENT)));
            let Some((folder, added)) = watched else { return Err(Errno::NOENT.into()) };
            added?;
            if deepest == Some(folder) {
                break;
            }
            deepest = Some(folder);
        }
        let is_complete = deepest == Some(dir);
        let changes = crate::sys::readiness::watch(changes, Interest::READABLE)?;
        Ok(Self { changes, is_complete })
    }
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
    #[tokio::test]
    async fn the_folder_of_a_log_that_is_made_later_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("project/service");
        let watch = Watch::begin(&log).unwrap();
        assert!(!watch.is_complete);
        std::fs::create_dir(dir.path().join("project")).unwrap();
        drop(watch.changes.readable().await.unwrap());
        let watch = Watch::begin(&log).unwrap();
        assert!(!watch.is_complete);
        std::fs::create_dir(&log).unwrap();
        drop(watch.changes.readable().await.unwrap());
        assert!(Watch::begin(&log).unwrap().is_complete);
    }
}
