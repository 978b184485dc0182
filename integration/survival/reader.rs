//! Reading a container's files through its own root, and how long each read takes.
//!
//! The reading is done by a thread of the test, because it can tell milliseconds; it goes through the same overlay and
//! the same lazy mount as a read in the container. Every file is opened anew and its pages are dropped after it was
//! read, so that each round asks the worker.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use supervisor::image::Digest;

use crate::services::image::Readable;

/// How long reads took.
#[derive(Default)]
pub(super) struct Stalls {
    /// Of files that were read for the first time: their content mostly is not here yet.
    pub(super) first: Vec<Duration>,
    /// Of files that are here.
    pub(super) again: Vec<Duration>,
}

/// What the thread tells while it reads.
#[derive(Default)]
struct Told {
    errors: Mutex<Vec<String>>,
    /// Longest read of a file that is here since somebody asked.
    longest: Mutex<Option<Duration>>,
}

/// The thread.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    told: Arc<Told>,
    thread: JoinHandle<Stalls>,
}

/// A file and what is in it.
struct Known {
    path: PathBuf,
    digest: String,
}

impl Reader {
    /// Begins to read the files of `image` in the container whose first process this is.
    pub(super) fn start(pid: i32, image: &Readable) -> Self {
        let known = |sum: &String| {
            let (digest, path) = sum.split_once("  ").unwrap();
            let path = PathBuf::from(format!("/proc/{pid}/root{path}"));
            Known { path, digest: digest.to_owned() }
        };
        // From the end: the container begins at the other one.
        let files: Vec<Known> = image.sums.iter().rev().map(known).collect();
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Told::default()));
        let (stopped, tell) = (Arc::clone(&stop), Arc::clone(&told));
        let thread = std::thread::spawn(move || {
            let mut stalls = Stalls::default();
            let mut fresh = 0;
            let is_stopped = || stopped.load(Ordering::Relaxed);
            while !is_stopped() {
                // One new file, then some that were read before.
                if let Some(file) = files.get(fresh) {
                    stalls.first.push(timed(file, &tell));
                    fresh += 1;
                }
                for file in files[..fresh].iter().rev().take(12).filter(|_| !is_stopped()) {
                    let took = timed(file, &tell);
                    stalls.again.push(took);
                    let mut longest = tell.longest.lock().unwrap();
                    *longest = Some(took).max(*longest);
                    drop(longest);
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            }
            stalls
        });
        Self { stop, told, thread }
    }

    /// What went wrong so far.
    pub(super) fn errors(&self) -> Vec<String> {
        self.told.errors.lock().unwrap().clone()
    }

    /// How long a file that is here was waited for at most since the last call, if one was read.
    pub(super) fn longest(&self) -> Option<Duration> {
        std::mem::take(&mut *self.told.longest.lock().unwrap())
    }

    /// Stops.
    pub(super) fn end(self) -> Stalls {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn timed(file: &Known, told: &Told) -> Duration {
    let start = Instant::now();
    let mut content = Vec::new();
    let read = File::open(&file.path).and_then(|mut open| {
        open.read_to_end(&mut content)?;
        let _ = rustix::fs::fadvise(&open, 0, None, rustix::fs::Advice::DontNeed);
        Ok(())
    });
    let took = start.elapsed();
    let wrong = match read {
        Ok(()) if Digest::of(&content).hex() == file.digest => return took,
        Ok(()) => format!("other content, {} bytes", content.len()),
        Err(error) => error.to_string(),
    };
    told.errors.lock().unwrap().push(format!("{}: {wrong}", file.path.display()));
    took
}
