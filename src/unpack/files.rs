//! Small files, written by several threads: creating one costs far more than its content, and the kernel creates
//! files of different directories at once.
//!
//! The files of one directory stay with one thread, which therefore creates them in the order of the archive, and no
//! two threads wait for a directory's lock. What depends on files of before (replacing one, removing a directory)
//! waits for all of them with [`Writers::settle`].

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::OFlags;

use super::attributes::{Attributes, Defaults};
use super::path::show;
use super::tree::{TreeError, failed};
use super::xattr::Xattrs;

/// A larger file is written while its content arrives.
pub(super) const SMALL_BYTES: u64 = 128 << 10;

/// Files go to a thread together, up to this many bytes or files.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_FILES: usize = 64;

/// Batches that wait for one thread.
const WAITING: usize = 16;

/// More threads than this wait for the file system's journal.
const MAX_WRITERS: usize = 4;

/// Files of one directory.
struct Batch {
    directory: Arc<OwnedFd>,
    /// Its path in the layer.
    path: Vec<u8>,
    content: Vec<u8>,
    files: Vec<SmallFile>,
}

struct SmallFile {
    name: Vec<u8>,
    /// Bytes of the batch's content.
    size: usize,
    attributes: Attributes,
}

/// The threads, and the batch in the making.
pub(super) struct Writers {
    threads: Vec<(SyncSender<Batch>, JoinHandle<()>)>,
    shared: Arc<Shared>,
    batch: Option<Batch>,
}

struct Shared {
    defaults: Defaults,
    state: Mutex<State>,
    settled: Condvar,
}

struct State {
    /// Batches that are not written.
    open: usize,
    failed: bool,
    error: Option<TreeError>,
    xattrs: Xattrs,
}

/// Counts a batch as written when it is dropped, also by a panic: whoever waits then finds the thread gone.
struct Written<'a>(&'a Shared);

impl Drop for Written<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.open -= 1;
        if state.open == 0 {
            self.0.settled.notify_all();
        }
    }
}

impl std::fmt::Debug for Writers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writers")
    }
}

impl Writers {
    /// Threads that leave to `xattrs` what they may not set.
    pub(super) fn start(defaults: Defaults, xattrs: Xattrs) -> std::io::Result<Self> {
        let state = Mutex::new(State { open: 0, failed: false, error: None, xattrs });
        let shared = Arc::new(Shared { defaults, state, settled: Condvar::new() });
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WRITERS);
        let start = || {
            let (batches, work) = sync_channel(WAITING);
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().spawn(move || shared.write_all(&work))?;
            Ok((batches, thread))
        };
        let threads = (0..count).map(|_| start()).collect::<std::io::Result<_>>()?;
        Ok(Self { threads, shared, batch: None })
    }

    /// Writes a file that is not there yet, some time before the next [`Writers::settle`].
    ///
    /// `read` puts the content, of `size` bytes, behind what is in its argument.
    ///
    /// # Errors
    /// Those of `read`, and of any file before.
    pub(super) fn write<E: From<TreeError>>(
        &mut self,
        (directory, path): (&Arc<OwnedFd>, &[u8]),
        name: &[u8],
        attributes: Attributes,
        size: usize,
        read: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let fits = |batch: &Batch| {
            Arc::ptr_eq(&batch.directory, directory)
                && batch.files.len() < BATCH_FILES
                && batch.content.len() + size <= BATCH_BYTES
        };
        if !self.batch.as_ref().is_some_and(fits) {
            self.send()?;
        }
        let batch = self.batch.get_or_insert_with(|| Batch {
            directory: Arc::clone(directory),
            path: path.to_vec(),
            content: Vec::new(),
            files: Vec::new(),
        });
        let before = batch.content.len();
        read(&mut batch.content)?;
        let size = batch.content.len() - before;
        batch.files.push(SmallFile { name: name.to_vec(), size, attributes });
        Ok(())
    }

    /// Waits until all files are written; gives what was noted about their attributes to `xattrs`.
    ///
    /// # Errors
    /// When one could not be written.
    pub(super) fn settle(&mut self, xattrs: &mut Xattrs) -> Result<(), TreeError> {
        self.send()?;
        let mut state = self.shared.lock();
        while state.open > 0 {
            state = self.shared.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        xattrs.absorb(&mut state.xattrs);
        state.error.take().map_or(Ok(()), Err)
    }

    /// Sends the batch in the making.
    fn send(&mut self) -> Result<(), TreeError> {
        let Some(batch) = self.batch.take() else { return Ok(()) };
        {
            let mut state = self.shared.lock();
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            state.open += 1;
        }
        let mut hasher = DefaultHasher::new();
        batch.path.hash(&mut hasher);
        let count = self.threads.len() as u64;
        let thread = usize::try_from(hasher.finish() % count).expect("there are few threads");
        self.threads[thread].0.send(batch).expect("a writing thread lives as long as its sender");
        Ok(())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for (sender, thread) in self.threads.drain(..) {
            drop(sender);
            if let Err(panic) = thread.join()
                && !std::thread::panicking()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, work: &Receiver<Batch>) {
        let mut xattrs = self.lock().xattrs.empty();
        while let Ok(batch) = work.recv() {
            // After an error nothing matters but the end.
            let _written = Written(self);
            if self.lock().failed {
                continue;
            }
            let written = self.write(&batch, &mut xattrs);
            let mut state = self.lock();
            state.xattrs.absorb(&mut xattrs);
            if let Err(error) = written {
                state.failed = true;
                state.error.get_or_insert(error);
            }
        }
    }

    fn write(&self, batch: &Batch, xattrs: &mut Xattrs) -> Result<(), TreeError> {
        let mut content = batch.content.as_slice();
        for file in &batch.files {
            let (own, rest) = content.split_at(file.size);
            content = rest;
            let path = match batch.path.as_slice() {
                b"" => file.name.clone(),
                directory => [directory, &file.name].join(&b'/'),
            };
            let flags = CREATE_FLAGS;
            let mode = file.attributes.first_mode(self.defaults);
            let made = rustix::fs::openat(&batch.directory, file.name.as_slice(), flags, mode)
                .map_err(failed("create the file", &path))?;
            let made = File::from(made);
            if !own.is_empty() {
                made.write_all_at(own, 0).map_err(|source| TreeError::Io {
                    action: "write",
                    name: show(&path),
                    source,
                })?;
            }
            file.attributes.set(made.as_fd(), &path, Some(mode), self.defaults, xattrs)?;
        }
        Ok(())
    }
}

/// A file is created, never opened.
pub(super) const CREATE_FLAGS: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
