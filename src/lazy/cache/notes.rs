//! Notes about layers: which of their chunks are local, as far as whoever wrote them knew.
//!
//! Counting may be late; it must not be wrong. So the notes go before content does, none is written while it goes, and
//! each carries the number of evictions (see `tenure`) that it knows of: one that another process wrote a moment
//! too late counts for nothing.

use std::fs::File;
use std::io::Read as _;
use std::sync::PoisonError;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};

use super::FileCache;
use super::epoch::stamp_of;
use super::files::is_dots;
use crate::image::Digest;
use crate::telemetry::Chain;

const MAGIC: &[u8; 8] = b"SVNOTE2\n";

impl FileCache {
    /// Notes `hint` about `layer`, except while content is being evicted that it may count.
    pub(in crate::lazy) fn save_hint(&self, layer: &Digest, hint: impl FnOnce() -> Vec<u8>) {
        let is_evicting = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_evicting {
            return;
        }
        let Some(evictions) = self.tenure.settled() else { return };
        let mut note = MAGIC.to_vec();
        note.extend(evictions.to_le_bytes());
        note.extend(hint());
        if let Err(error) = self.write_to(&format!("layers/{}", layer.hex()), &note) {
            tracing::debug!(error = %Chain(&error), "could not note what is local of a layer");
        }
    }

    /// The hint about `layer`, in the form that [`FileCache::save_hint`] was given.
    pub(in crate::lazy) fn load_hint(&self, layer: &Digest) -> Option<Vec<u8>> {
        let name = format!("layers/{}", layer.hex());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.root, &*name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        if !self.epoch.is_trusted(stamp_of(&stat)) {
            return None;
        }
        let mut note = Vec::new();
        File::from(file).read_to_end(&mut note).ok()?;
        // An earlier version of the program says nothing of evictions.
        let (evictions, hint) = match note.strip_prefix(MAGIC) {
            Some(rest) => {
                let (number, hint) = rest.split_first_chunk::<8>()?;
                (u64::from_le_bytes(*number), hint.to_vec())
            }
            None => (0, note),
        };
        (self.tenure.settled()? == evictions).then_some(hint)
    }

    /// Whether content went of which nobody told this process. True once for each time.
    pub(in crate::lazy) fn notices_eviction(&self) -> bool {
        let has_gone = self.tenure.notices_eviction();
        if has_gone {
            self.budget.doubt();
        }
        has_gone
    }

    /// Removes the notes about layers, and writes none until [`FileCache::end_without_hints`].
    pub(super) fn begin_without_hints(&self) {
        *self.hints.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.tenure.begin_eviction();
        self.remove_hints(|_| true);
    }

    pub(super) fn end_without_hints(&self) {
        if let Some(_leave) = self.tenure.leave() {
            self.tenure.end_eviction();
        }
        *self.hints.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Removes the notes about layers of which `goes` says yes.
    pub(super) fn remove_hints(&self, goes: impl Fn(&Digest) -> bool) {
        let _alone = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.directory("layers").and_then(|layers| {
            for entry in Dir::read_from(&layers)? {
                let entry = entry?;
                let name = entry.file_name();
                let layer = name.to_str().ok().and_then(|hex| Digest::from_hex(hex).ok());
                if !is_dots(name.to_bytes()) && layer.is_none_or(|layer| goes(&layer)) {
                    rustix::fs::unlinkat(&layers, name, AtFlags::empty())?;
                }
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::debug!(error = %Chain(&error), "notes about layers may count too much");
        }
    }
}
