//! Which files are open, and how: cached through our replies, or passed through to a file of the cache.
//!
//! Rules of the kernel, each measured: all handles of an inode are open in one mode, and in passthrough mode with one
//! backing id, whatever worker answered the opens; a handle of the other kind is refused with an I/O error. So the
//! first open of an inode decides, and the decision stands until its last handle is released.
//!
//! Opens and releases that a worker answered no more are sent again to the next one. Both are idempotent here: an
//! open is recognized by its request number, a release by the generation in its handle. When the opener is killed
//! between the two, its record stays: the inode keeps its mode until the connection ends, which costs speed only.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::session::{HANDLES, HandleRecord, Session, SessionError};
use crate::sys::fuse_device;

/// The kernel sets this bit in the number of a request that it sends again.
pub(super) const RESENT: u64 = 1 << 63;

const CACHED: u32 = 1;
const PASSTHROUGH: u32 = 2;

/// Mode bit of a handle number, so that the mode travels with every request about it.
const PASSTHROUGH_BIT: u64 = 1 << 63;
/// Generations stay below the mode bit.
const GENERATIONS: u32 = 1 << 30;

/// How a file was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Reads come to us and stay in the page cache of the mount.
    Cached,
    /// The kernel reads the registered file itself.
    Passthrough {
        /// The kernel's id of the registered file.
        backing: u32,
    },
}

/// An open file: the number that the kernel gives back, and its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) number: u64,
    pub(super) mode: Mode,
}

/// What an inode without open handles is opened as.
#[derive(Debug)]
pub(super) enum Wanted<'a> {
    /// Cached.
    Cached,
    /// Passed through to this file.
    Passthrough(BorrowedFd<'a>),
}

#[derive(Debug)]
struct OpenInode {
    mode: Mode,
    handles: u32,
}

#[derive(Debug, Default)]
struct State {
    inodes: HashMap<u64, OpenInode>,
    /// Handle records by the request that opened them.
    by_request: HashMap<u64, u32>,
    free: Vec<u32>,
}

/// Registers files with the kernel; a fake in tests.
pub(super) trait Backing: Send + Sync {
    /// Registers `file`.
    fn open(&self, file: BorrowedFd<'_>) -> std::io::Result<u32>;
    /// Gives an id up.
    fn close(&self, id: u32) -> std::io::Result<()>;
}

/// The real registrations, through the device of the connection.
#[derive(Debug)]
pub(super) struct DeviceBacking(pub(super) OwnedFd);

impl Backing for DeviceBacking {
    fn open(&self, file: BorrowedFd<'_>) -> std::io::Result<u32> {
        fuse_device::open_backing(self.0.as_fd(), file)
    }

    fn close(&self, id: u32) -> std::io::Result<()> {
        fuse_device::close_backing(self.0.as_fd(), id)
    }
}

/// The open files of a connection, in memory and in its session file.
pub(super) struct Handles {
    session: Arc<Session>,
    backing: Box<dyn Backing>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handles").field("open", &self.count()).finish_non_exhaustive()
    }
}

impl Handles {
    /// Takes over what the session records.
    pub(super) fn new(session: Arc<Session>, backing: Box<dyn Backing>) -> Self {
        let mut state = State::default();
        for number in 0..session.handle_mark() {
            let record = session.handle(number);
            let mode = match record.mode {
                CACHED => Mode::Cached,
                PASSTHROUGH => Mode::Passthrough { backing: record.backing },
                _ => {
                    state.free.push(number);
                    continue;
                }
            };
            state.by_request.insert(record.unique, number);
            let inode = state.inodes.entry(record.ino).or_insert(OpenInode { mode, handles: 0 });
            inode.handles += 1;
        }
        Self { session, backing, state: Mutex::new(state) }
    }

    /// The mode in which `ino` is open, if it is.
    pub(super) fn mode_of(&self, ino: u64) -> Option<Mode> {
        self.lock().inodes.get(&ino).map(|inode| inode.mode)
    }

    /// The inodes that are open.
    pub(super) fn open_inodes(&self) -> Vec<u64> {
        self.lock().inodes.keys().copied().collect()
    }

    /// How many files are open.
    pub(super) fn count(&self) -> usize {
        self.lock().by_request.len()
    }

    /// Records an open by request `unique`. `wanted` counts only when the inode has no handle yet; a file that cannot
    /// be registered is opened cached, and the reason is returned beside the handle.
    pub(super) fn open(
        &self,
        ino: u64,
        unique: u64,
        wanted: Wanted<'_>,
    ) -> Result<(Handle, Option<std::io::Error>), SessionError> {
        let unique = unique & !RESENT;
        let mut state = self.lock();
        if let Some(&number) = state.by_request.get(&unique) {
            let record = self.session.handle(number);
            if record.ino == ino {
                let mode = mode_of_record(&record);
                return Ok((Handle { number: handle_number(number, &record), mode }, None));
            }
        }
        let number = self.take_record(&mut state)?;
        let mut refused = None;
        let mode = match (state.inodes.get(&ino), wanted) {
            (Some(inode), _) => inode.mode,
            (None, Wanted::Cached) => Mode::Cached,
            (None, Wanted::Passthrough(file)) => match self.backing.open(file) {
                Ok(backing) => Mode::Passthrough { backing },
                Err(error) => {
                    refused = Some(error);
                    Mode::Cached
                }
            },
        };
        let generation = (self.session.handle(number).generation + 1) % GENERATIONS;
        let (code, backing) = match mode {
            Mode::Cached => (CACHED, 0),
            Mode::Passthrough { backing } => (PASSTHROUGH, backing),
        };
        let record = HandleRecord { ino, unique, generation, mode: code, backing };
        self.session.write_handle(number, &record);
        state.by_request.insert(unique, number);
        state.inodes.entry(ino).or_insert(OpenInode { mode, handles: 0 }).handles += 1;
        Ok((Handle { number: handle_number(number, &record), mode }, refused))
    }

    /// Forgets a handle. One that is unknown was forgotten by a worker that died before it could say so. True if `ino`
    /// is not open any more.
    pub(super) fn release(&self, ino: u64, handle: u64) -> bool {
        let Ok(number) = u32::try_from(handle & u64::from(u32::MAX)) else { return false };
        let mut state = self.lock();
        if number >= self.session.handle_mark() {
            return false;
        }
        let record = self.session.handle(number);
        if record.mode == 0 || record.ino != ino || handle_number(number, &record) != handle {
            return false;
        }
        state.by_request.remove(&record.unique);
        let is_last = state.inodes.get_mut(&ino).is_none_or(|inode| {
            inode.handles = inode.handles.saturating_sub(1);
            inode.handles == 0
        });
        // Recorded before the id is given up: dying in between leaks an id, the other order would open with a dead one.
        self.session.free_handle(number);
        state.free.push(number);
        if is_last
            && let Some(OpenInode { mode: Mode::Passthrough { backing }, .. }) =
                state.inodes.remove(&ino)
            && let Err(error) = self.backing.close(backing)
        {
            tracing::debug!(backing, %error, "could not give a backing id up");
        }
        is_last
    }

    fn take_record(&self, state: &mut State) -> Result<u32, SessionError> {
        if let Some(number) = state.free.pop() {
            return Ok(number);
        }
        let number = self.session.handle_mark();
        if number >= HANDLES {
            return Err(SessionError::SlotsUsed);
        }
        self.session.raise_handle_mark(number)?;
        Ok(number)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between two updates leaves at worst one record too many, which costs only speed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn mode_of_record(record: &HandleRecord) -> Mode {
    if record.mode == PASSTHROUGH {
        Mode::Passthrough { backing: record.backing }
    } else {
        Mode::Cached
    }
}

fn handle_number(number: u32, record: &HandleRecord) -> u64 {
    let mode = if record.mode == PASSTHROUGH { PASSTHROUGH_BIT } else { 0 };
    mode | u64::from(record.generation) << 32 | u64::from(number)
}

#[cfg(test)]
mod tests {
    use super::super::options::Xattrs;
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default, Clone)]
    struct Counting(Arc<(AtomicU32, AtomicU32)>);

    impl Backing for Counting {
        fn open(&self, _: BorrowedFd<'_>) -> std::io::Result<u32> {
            Ok(self.0.0.fetch_add(1, Ordering::SeqCst) + 1)
        }

        fn close(&self, _: u32) -> std::io::Result<()> {
            self.0.1.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn fixture(dir: &tempfile::TempDir) -> (Handles, Counting) {
        let session = Session::open(dir.path())
            .unwrap_or_else(|_| Session::create(dir.path(), &[], Xattrs::Served).unwrap());
        let backing = Counting::default();
        (Handles::new(Arc::new(session), Box::new(backing.clone())), backing)
    }

    #[test]
    fn the_first_open_decides_the_mode_until_the_last_release() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (handles, backing) = fixture(&dir);
        let one = handles.open(9, 1, Wanted::Cached).unwrap().0;
        let two = handles.open(9, 2, Wanted::Passthrough(file.as_fd())).unwrap().0;
        assert_eq!((one.mode, two.mode), (Mode::Cached, Mode::Cached));
        assert_eq!(handles.open_inodes(), [9]);
        assert!(!handles.release(9, one.number), "two is open");
        assert!(handles.release(9, two.number));
        let three = handles.open(9, 3, Wanted::Passthrough(file.as_fd())).unwrap().0;
        let four = handles.open(9, 4, Wanted::Cached).unwrap().0;
        assert_eq!(three.mode, Mode::Passthrough { backing: 1 });
        assert_eq!(four.mode, three.mode);
        handles.release(9, three.number);
        assert_eq!(backing.0.1.load(Ordering::SeqCst), 0);
        handles.release(9, four.number);
        assert_eq!(backing.0.1.load(Ordering::SeqCst), 1);
        assert_eq!(handles.mode_of(9), None);
    }

    #[test]
    fn the_next_worker_keeps_modes_and_ids() {
        let dir = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (handles, _) = fixture(&dir);
        let passed = handles.open(1, 10, Wanted::Passthrough(file.as_fd())).unwrap().0;
        let cached = handles.open(2, 11, Wanted::Cached).unwrap().0;
        drop(handles);
        let (next, _) = fixture(&dir);
        assert_eq!(next.mode_of(1), Some(passed.mode));
        let again = next.open(2, 12, Wanted::Passthrough(file.as_fd())).unwrap().0;
        assert_eq!(again.mode, Mode::Cached);
        next.release(2, cached.number);
        next.release(2, again.number);
        next.release(1, passed.number);
        assert_eq!(next.count(), 0);
    }

    #[test]
    fn requests_that_are_sent_again_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (handles, _) = fixture(&dir);
        let first = handles.open(5, 77, Wanted::Cached).unwrap().0;
        drop(handles);
        let (next, _) = fixture(&dir);
        let resent = next.open(5, 77 | RESENT, Wanted::Cached).unwrap().0;
        assert_eq!(resent, first);
        assert_eq!(next.count(), 1);
        next.release(5, first.number);
        let other = next.open(6, 78, Wanted::Cached).unwrap().0;
        // The record is the same one, and the late release of its former user must not touch it.
        next.release(5, first.number);
        assert_eq!(next.mode_of(6), Some(Mode::Cached));
        next.release(6, other.number);
        assert_eq!(next.count(), 0);
    }
}
