//! Reading a container's files through its own root, and how long each read takes.
//!
//! The reading is done by a thread of the test, because it can tell milliseconds; it goes through the same overlay and
//! the same lazy mount as a read in the container. Every file is opened anew and its pages are dropped after it was
//! read, so that each round asks the worker.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long reads took.
#[derive(Default)]
pub(super) struct Stalls {
    /// Of files that were read for the first time: their content mostly is not here yet.
    pub(super) first: Vec<Duration>,
    /// Of files that are here.
    pub(super) again: Vec<Duration>,
}

/// The thread.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    errors: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<Stalls>,
}

impl Reader {
    /// Begins to read `/data` of the container whose first process this is.
    pub(super) fn start(pid: i32) -> Self {
        let root = PathBuf::from(format!("/proc/{pid}/root/data"));
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
        // From the end: the container begins at the other one.
        files.sort();
        files.reverse();
        let (stop, errors) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let (stopped, failed) = (Arc::clone(&stop), Arc::clone(&errors));
        let thread = std::thread::spawn(move || {
            let mut stalls = Stalls::default();
            let mut fresh = 0;
            let is_stopped = || stopped.load(Ordering::Relaxed);
            while !is_stopped() {
                // One new file, then some that were read before.
                if let Some(file) = files.get(fresh) {
                    stalls.first.push(timed(file, &failed));
                    fresh += 1;
                }
                for file in files[..fresh].iter().rev().take(12).filter(|_| !is_stopped()) {
                    stalls.again.push(timed(file, &failed));
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            }
            stalls
        });
        Self { stop, errors, thread }
    }

    /// What went wrong so far.
    pub(super) fn errors(&self) -> Vec<String> {
        self.errors.lock().unwrap().clone()
    }

    /// Stops.
    pub(super) fn end(self) -> Stalls {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn timed(path: &Path, failed: &Mutex<Vec<String>>) -> Duration {
    let start = Instant::now();
    let read = File::open(path).and_then(|mut file| {
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(content.len())
    });
    let took = start.elapsed();
    if !read.as_ref().is_ok_and(|length| *length > 0) {
        failed.lock().unwrap().push(format!("{}: {read:?}", path.display()));
    }
    took
}
