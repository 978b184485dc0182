//! The state of a FUSE connection, in a mapped file that survives `kill -9` of the process that serves it.
//!
//! The kernel keeps inode numbers, open modes and backing ids as long as the connection lives, which is longer than
//! any worker. What the next worker must know to answer consistently is written here before the kernel is told:
//!
//! ```text
//! 0         header: magic, layout version, how INIT was answered, number of slots, high-water mark of handles
//! 512       INIT: length and bytes of the kernel's request, length and bytes of our reply
//! 4096      slots: 4096 bytes each, append-only: state, length, JSON of the layer
//! 64 MiB+   handles: 32 bytes each (see `handles`)
//! ```
//!
//! The file is sparse; blocks are allocated before they are touched, because a mapped write that finds the file
//! system full kills its process. One worker at a time writes (it holds `worker.lock`); the keeper only reads.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Release};

use rustix::fs::FallocateFlags;
use serde::{Deserialize, Serialize};

use super::options::Xattrs;
use crate::image::Digest;
use crate::registry::BlobSource;
use crate::sys::MappedMut;

/// Name of the file below the lazy directory of the run directory.
pub(super) const FILE: &str = "session";

const MAGIC: u64 = u64::from_le_bytes(*b"svFUSEst");
/// Layouts of this file, which differ in what the kernel is told of extended attributes and in nothing else. A worker
/// that does not know the layout refuses before it touches the descriptor: one of a build that knows only the first
/// would mount layers with attributes on a connection whose kernel does not ask for them any more.
const LAYOUT_SERVED: u64 = 1;
const LAYOUT_ABSENT: u64 = 2;

const AT_MAGIC: usize = 0;
const AT_LAYOUT: usize = 8;
const AT_PHASE: usize = 16;
const AT_SLOTS: usize = 24;
const AT_HANDLES: usize = 32;
const AT_BORN: usize = 40;
const AT_REQUEST: usize = 512;
const AT_REPLY: usize = 1536;
const INIT_MAX: usize = 1000;

const SLOTS_AT: usize = 4096;
const SLOT_SIZE: usize = 4096;
const SLOT_BODY: usize = 16;
/// Slots of one connection, slot 0 (the root of the mount) included. They are never reused, so this bounds how many
/// times a layer is mounted between two starts of the connection.
pub(super) const SLOTS: u32 = 16 * 1024;

const HANDLES_AT: usize = SLOTS_AT + SLOT_SIZE * SLOTS as usize;
const HANDLE_SIZE: usize = 32;
/// Files that can be open on the mount at a time.
pub(super) const HANDLES: u32 = 512 * 1024;

const LENGTH: usize = HANDLES_AT + HANDLE_SIZE * HANDLES as usize;

/// Blocks are allocated in steps of this many bytes.
const ALLOCATION: usize = 64 * 1024;

const PHASE_ESTABLISHED: u64 = 1;

const SLOT_LIVE: u64 = 1;
const SLOT_RELEASED: u64 = 2;

/// A layer as it is mounted: everything that is needed to serve it again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMount {
    /// Digest of the layer's blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub blob_size: u64,
    /// The index file, an absolute path. The mounted layer keeps this very file: the order of its entries is part of
    /// the inode numbers that the kernel has.
    pub index: PathBuf,
    /// Where the blob's bytes come from.
    pub source: BlobSource,
}

/// Whether a slot serves its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotState {
    /// It does.
    Live,
    /// Its layer was released; the number stays taken.
    Released,
}

/// One slot that was given out.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) number: u32,
    pub(super) state: SlotState,
    pub(super) mount: LayerMount,
}

/// One open file, as it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HandleRecord {
    pub(super) ino: u64,
    /// Number of the request that opened it, without the kernel's resend bit.
    pub(super) unique: u64,
    pub(super) generation: u32,
    /// 0: free, else the open mode.
    pub(super) mode: u32,
    /// The raw backing id when the mode is passthrough.
    pub(super) backing: u32,
}

/// Why the state of a connection cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file cannot be made, opened, mapped or grown.
    #[error("could not use the connection's state at `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file is none of ours, or damaged.
    #[error("`{path}` is no connection state: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A build that this one does not know wrote the file.
    #[error("`{path}` has layout {found}, and this build knows none above {LAYOUT_ABSENT}")]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
    },
    /// Every slot of the connection was used.
    #[error("all {SLOTS} slots of the connection are used; it must be started anew")]
    SlotsUsed,
    /// The description of a layer does not fit its slot.
    #[error("the description of layer `{digest}` is too long to be recorded")]
    TooLong {
        /// The layer.
        digest: Digest,
    },
}

/// The mapped state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    path: PathBuf,
    file: File,
    map: MappedMut,
}

impl Session {
    /// Makes the state of a connection that is about to begin, replacing an older one. `seed` are the slots of the
    /// connection before, so that a layer's directory keeps its name and no number is used for two layers.
    pub(super) fn create(
        directory: &Path,
        seed: &[Slot],
        xattrs: Xattrs,
    ) -> Result<Self, SessionError> {
        let path = directory.join(FILE);
        let fresh = directory.join(".session.new");
        let io = |source| SessionError::Io { path: path.clone(), source };
        let _ = std::fs::remove_file(&fresh);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(io)?;
        file.set_len(LENGTH as u64).map_err(io)?;
        let map = MappedMut::open(&file).map_err(io)?;
        let session = Self { path: path.clone(), file, map };
        session.allocate(0, SLOTS_AT)?;
        for slot in seed {
            session.write_slot(slot.number, slot.state, &slot.mount)?;
        }
        let next = seed.iter().map(|slot| slot.number + 1).max().unwrap_or(1);
        session.map.u64_at(AT_SLOTS).store(u64::from(next), Release);
        session.map.u64_at(AT_BORN).store(now(), Release);
        let layout = match xattrs {
            Xattrs::Served => LAYOUT_SERVED,
            Xattrs::Absent => LAYOUT_ABSENT,
        };
        session.map.u64_at(AT_LAYOUT).store(layout, Release);
        session.map.u64_at(AT_MAGIC).store(MAGIC, Release);
        std::fs::rename(&fresh, &path).map_err(io)?;
        Ok(session)
    }

    /// Opens the state of a living connection.
    pub(super) fn open(directory: &Path) -> Result<Self, SessionError> {
        let path = directory.join(FILE);
        let io = |source| SessionError::Io { path: path.clone(), source };
        let damaged =
            |reason: &str| SessionError::Damaged { path: path.clone(), reason: reason.to_owned() };
        let file = File::options().read(true).write(true).open(&path).map_err(io)?;
        if file.metadata().map_err(io)?.size() != LENGTH as u64 {
            return Err(damaged("wrong length"));
        }
        let map = MappedMut::open(&file).map_err(io)?;
        if map.u64_at(AT_MAGIC).load(Acquire) != MAGIC {
            return Err(damaged("wrong magic number"));
        }
        let found = map.u64_at(AT_LAYOUT).load(Acquire);
        if !(LAYOUT_SERVED..=LAYOUT_ABSENT).contains(&found) {
            return Err(SessionError::Layout { path, found });
        }
        if map.u64_at(AT_SLOTS).load(Acquire) > u64::from(SLOTS)
            || map.u64_at(AT_HANDLES).load(Acquire) > u64::from(HANDLES)
        {
            return Err(damaged("counts beyond the tables"));
        }
        Ok(Self { path, file, map })
    }

    /// What the kernel is told, for as long as the connection lives, when it asks for extended attributes.
    pub(super) fn xattrs(&self) -> Xattrs {
        let layout = self.map.u64_at(AT_LAYOUT).load(Acquire);
        if layout == LAYOUT_ABSENT { Xattrs::Absent } else { Xattrs::Served }
    }

    /// When the connection was made: tells it apart from any other of this run directory.
    pub(super) fn born(&self) -> u64 {
        self.map.u64_at(AT_BORN).load(Acquire)
    }

    /// The INIT request and our reply, when the kernel has been answered.
    pub(super) fn established(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        (self.map.u64_at(AT_PHASE).load(Acquire) == PHASE_ESTABLISHED)
            .then(|| (self.read_block(AT_REQUEST), self.read_block(AT_REPLY)))
    }

    /// Records how INIT was answered; called once the kernel has the reply.
    pub(super) fn establish(&self, request: &[u8], reply: &[u8]) -> Result<(), SessionError> {
        for (at, block) in [(AT_REQUEST, request), (AT_REPLY, reply)] {
            if block.len() > INIT_MAX {
                return Err(self.damaged("INIT is longer than any kernel's".to_owned()));
            }
            self.map.u64_at(at).store(block.len() as u64, Release);
            self.map.write_at(at + 8, block);
        }
        self.map.u64_at(AT_PHASE).store(PHASE_ESTABLISHED, Release);
        Ok(())
    }

    fn read_block(&self, at: usize) -> Vec<u8> {
        let length = usize::try_from(self.map.u64_at(at).load(Acquire)).unwrap_or(usize::MAX);
        self.map.read_at(at + 8, length.min(INIT_MAX))
    }

    /// The slots that were given out.
    pub(super) fn slots(&self) -> Result<Vec<Slot>, SessionError> {
        let end = u32::try_from(self.map.u64_at(AT_SLOTS).load(Acquire)).unwrap_or(SLOTS);
        let mut slots = Vec::new();
        for number in 1..end.min(SLOTS) {
            let at = slot_at(number);
            let state = match self.map.u64_at(at).load(Acquire) {
                0 => continue,
                SLOT_LIVE => SlotState::Live,
                SLOT_RELEASED => SlotState::Released,
                other => return Err(self.damaged(format!("slot {number} has state {other}"))),
            };
            let length = usize::try_from(self.map.u64_at(at + 8).load(Acquire)).unwrap_or(0);
            let body = self.map.read_at(at + SLOT_BODY, length.min(SLOT_SIZE - SLOT_BODY));
            let mount = serde_json::from_slice(&body)
                .map_err(|error| self.damaged(format!("slot {number}: {error}")))?;
            slots.push(Slot { number, state, mount });
        }
        Ok(slots)
    }

    /// Gives the next number to a layer.
    pub(super) fn append_slot(&self, mount: &LayerMount) -> Result<u32, SessionError> {
        let number = u32::try_from(self.map.u64_at(AT_SLOTS).load(Acquire))
            .ok()
            .filter(|number| *number < SLOTS)
            .ok_or(SessionError::SlotsUsed)?;
        self.write_slot(number, SlotState::Live, mount)?;
        self.map.u64_at(AT_SLOTS).store(u64::from(number) + 1, Release);
        Ok(number)
    }

    /// Marks a slot as released.
    pub(super) fn release_slot(&self, number: u32) {
        self.map.u64_at(slot_at(number)).store(SLOT_RELEASED, Release);
    }

    fn write_slot(
        &self,
        number: u32,
        state: SlotState,
        mount: &LayerMount,
    ) -> Result<(), SessionError> {
        let too_long = || SessionError::TooLong { digest: mount.digest };
        let body = serde_json::to_vec(mount).map_err(|_| too_long())?;
        if body.len() > SLOT_SIZE - SLOT_BODY || number >= SLOTS {
            return Err(too_long());
        }
        let at = slot_at(number);
        self.allocate(at, SLOT_SIZE)?;
        self.map.write_at(at + SLOT_BODY, &body);
        self.map.u64_at(at + 8).store(body.len() as u64, Release);
        let state = match state {
            SlotState::Live => SLOT_LIVE,
            SlotState::Released => SLOT_RELEASED,
        };
        self.map.u64_at(at).store(state, Release);
        Ok(())
    }

    /// How many handle records have ever been in use: those beyond are free.
    pub(super) fn handle_mark(&self) -> u32 {
        u32::try_from(self.map.u64_at(AT_HANDLES).load(Acquire)).unwrap_or(HANDLES).min(HANDLES)
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> u32 {
        let open = (0..self.handle_mark()).filter(|number| self.handle(*number).mode != 0).count();
        u32::try_from(open).unwrap_or(u32::MAX)
    }

    /// Makes room for handle record `number` and raises the mark above it.
    pub(super) fn raise_handle_mark(&self, number: u32) -> Result<(), SessionError> {
        let at = handle_at(number);
        if number == 0 || at / ALLOCATION != (at - HANDLE_SIZE) / ALLOCATION {
            self.allocate(at / ALLOCATION * ALLOCATION, ALLOCATION)?;
        }
        self.map.u64_at(AT_HANDLES).store(u64::from(number) + 1, Release);
        Ok(())
    }

    /// The record of a handle below the mark.
    pub(super) fn handle(&self, number: u32) -> HandleRecord {
        let at = handle_at(number);
        HandleRecord {
            mode: self.map.u32_at(at + 16).load(Acquire),
            ino: self.map.u64_at(at).load(Acquire),
            unique: self.map.u64_at(at + 8).load(Acquire),
            backing: self.map.u32_at(at + 20).load(Acquire),
            generation: self.map.u32_at(at + 24).load(Acquire),
        }
    }

    /// Writes a record; the mode last, so that a record is never taken for valid before it is whole.
    pub(super) fn write_handle(&self, number: u32, record: &HandleRecord) {
        let at = handle_at(number);
        self.map.u64_at(at).store(record.ino, Release);
        self.map.u64_at(at + 8).store(record.unique, Release);
        self.map.u32_at(at + 20).store(record.backing, Release);
        self.map.u32_at(at + 24).store(record.generation, Release);
        self.map.u32_at(at + 16).store(record.mode, Release);
    }

    /// Frees a record; its generation stays, so that a late release of it is recognized.
    pub(super) fn free_handle(&self, number: u32) {
        self.map.u32_at(handle_at(number) + 16).store(0, Release);
    }

    fn allocate(&self, at: usize, length: usize) -> Result<(), SessionError> {
        let io = |source| SessionError::Io { path: self.path.clone(), source };
        let length = length.min(LENGTH - at);
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, at as u64, length as u64)
        {
            // A file system that cannot allocate ahead writes through as it did before there was such a call.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(io(error.into())),
        }
    }

    fn damaged(&self, reason: String) -> SessionError {
        SessionError::Damaged { path: self.path.clone(), reason }
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or_default()
}

fn slot_at(number: u32) -> usize {
    SLOTS_AT + SLOT_SIZE * number as usize
}

fn handle_at(number: u32) -> usize {
    HANDLES_AT + HANDLE_SIZE * number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> LayerMount {
        LayerMount {
            digest: Digest::of(text.as_bytes()),
            blob_size: 7,
            index: PathBuf::from("/state/index"),
            source: BlobSource::Registry {
                host: "registry.test".to_owned(),
                repository: "app".to_owned(),
            },
        }
    }

    #[test]
    fn slots_are_appended_released_and_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::create(dir.path(), &[], Xattrs::Served).unwrap();
        assert_eq!(session.append_slot(&mount("a")).unwrap(), 1);
        assert_eq!(session.append_slot(&mount("b")).unwrap(), 2);
        session.release_slot(1);
        drop(session);
        let session = Session::open(dir.path()).unwrap();
        assert_eq!(session.append_slot(&mount("a")).unwrap(), 3);
        let slots = session.slots().unwrap();
        assert_eq!(slots.iter().map(|slot| slot.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(slots[0].state, SlotState::Released);
        assert_eq!(slots[1].mount, mount("b"));

        let seeded = Session::create(dir.path(), &slots[1..2], Xattrs::Absent).unwrap();
        assert_eq!(seeded.append_slot(&mount("c")).unwrap(), 3);
        assert_eq!(seeded.slots().unwrap()[0].number, 2);
        assert_eq!((session.xattrs(), seeded.xattrs()), (Xattrs::Served, Xattrs::Absent));
        assert_eq!(Session::open(dir.path()).unwrap().xattrs(), Xattrs::Absent);
    }

    #[test]
    fn init_is_kept_word_for_word() {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::create(dir.path(), &[], Xattrs::Served).unwrap();
        assert!(session.established().is_none());
        session.establish(b"request", b"the reply").unwrap();
        let again = Session::open(dir.path()).unwrap();
        assert_eq!(again.established().unwrap(), (b"request".to_vec(), b"the reply".to_vec()));
    }

    #[test]
    fn a_foreign_or_newer_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"short").unwrap();
        assert!(matches!(Session::open(dir.path()), Err(SessionError::Damaged { .. })));
        let session = Session::create(dir.path(), &[], Xattrs::Served).unwrap();
        session.map.u64_at(AT_LAYOUT).store(99, Release);
        assert!(matches!(Session::open(dir.path()), Err(SessionError::Layout { found: 99, .. })));
    }

    #[test]
    fn only_touched_parts_of_the_file_take_space() {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::create(dir.path(), &[], Xattrs::Served).unwrap();
        session.append_slot(&mount("a")).unwrap();
        session.raise_handle_mark(0).unwrap();
        assert!(session.file.metadata().unwrap().blocks() * 512 < 256 * 1024);
    }
}
