//! What one worker serves: the tree, and how its files are opened.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use fuser::INodeNo;

use super::errno::Refusal;
use super::handles::{Handle, Handles, Mode, Wanted};
use super::tree::{Layer, Tree};
use crate::estargz::EntryKind;
use crate::lazy::Opened;

/// What the translator works on, shared with the worker's socket.
pub(super) struct Served {
    pub(super) tree: Tree,
    pub(super) handles: Handles,
    /// Whether files may be opened in passthrough mode.
    pub(super) passthrough: AtomicBool,
    /// Requests that were taken from the kernel: whoever watches sees whether that goes on.
    pub(super) taken: AtomicU64,
    /// Where the kernel is told what it did not ask for; from when the session runs.
    pub(super) notifier: OnceLock<fuser::Notifier>,
    /// Held while a file is opened, so that it is opened for the first time by one at a time.
    pub(super) opening: Stripes,
    /// Told once when the kernel refuses passthrough.
    pub(super) on_degraded: Box<dyn Fn(&io::Error) + Send + Sync>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Served").field("handles", &self.handles).finish_non_exhaustive()
    }
}

/// Locks for inodes, some of which share one.
#[derive(Debug, Default)]
pub(super) struct Stripes([Mutex<()>; 16]);

impl Stripes {
    fn lock(&self, ino: u64) -> MutexGuard<'_, ()> {
        let place = ino % self.0.len() as u64;
        let stripe = &self.0[usize::try_from(place).unwrap_or_default()];
        // It guards nothing that could be left half done.
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served {
    /// Opens `ino` in the mode of its open handles, or in the best one when there is none. `None` when content has to
    /// be fetched first.
    pub(super) fn open_local(&self, ino: u64, unique: u64) -> Result<Option<Handle>, Refusal> {
        let (layer, entry, attributes) = self.tree.entry(ino)?;
        if attributes.kind != EntryKind::Regular {
            return Err(Refusal::NotFile);
        }
        let _alone = self.opening.lock(ino);
        if !self.passthrough.load(Ordering::Relaxed) || self.handles.mode_of(ino).is_some() {
            return self.record_open(ino, unique, &Opened::Partial).map(Some);
        }
        match layer.open_local(entry)? {
            Some(opened) => {
                let handle = self.record_open(ino, unique, &opened)?;
                if handle.mode == Mode::Cached {
                    self.store(ino, &*layer, entry);
                }
                Ok(Some(handle))
            }
            None => Ok(None),
        }
    }

    /// Puts the content of a small file into the kernel's cache before its first open is answered, which saves the
    /// opener a round trip: half of all that it would wait for.
    ///
    /// The kernel takes it page by page, and waits for a page that is being read, which no signal ends: a process that is
    /// killed meanwhile stays, and with it the connection. So it is done while nobody has the file open, when every
    /// read of it was answered, and who opens it too is answered after that.
    fn store(&self, ino: u64, layer: &dyn Layer, entry: u32) {
        if let Some(notifier) = self.notifier.get()
            && let Some(content) = layer.first_content(entry)
            && let Err(error) = notifier.store(INodeNo(ino), 0, &content)
        {
            // It will be read.
            tracing::debug!(%error, "the kernel took no content");
        }
    }

    pub(super) async fn open(&self, ino: u64, unique: u64) -> Result<Handle, Refusal> {
        let (layer, entry, _) = self.tree.entry(ino)?;
        let opened = layer.open(entry).await?;
        self.record_open(ino, unique, &opened)
    }

    fn record_open(&self, ino: u64, unique: u64, opened: &Opened) -> Result<Handle, Refusal> {
        let wanted = match opened {
            Opened::Complete(file) => Wanted::Passthrough(file.as_fd()),
            Opened::Partial => Wanted::Cached,
        };
        let recorded = self.handles.open(ino, unique, wanted).map_err(|error| {
            tracing::error!(%error, "could not record an open file");
            Refusal::TooManyOpen
        });
        let (handle, refused) = recorded?;
        if let Some(error) = refused
            && self.passthrough.swap(false, Ordering::Relaxed)
        {
            (self.on_degraded)(&error);
        }
        Ok(handle)
    }
}
