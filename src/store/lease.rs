//! Leases: what somebody is bringing here, or is about to use, is not collected.
//!
//! A lease is taken before the store is asked whether something is there, and held until a record or a mount says that
//! it is in use. They are of this process: roles that share the store use only what control has made ready.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Store;
use crate::image::Digest;

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// How many hold each blob or layer.
    counts: HashMap<Digest, usize>,
    /// How many look at what may go.
    looks: usize,
    /// What was let go since the first of them began: it may have come to be needed meanwhile, which they have not seen.
    released: HashSet<Digest>,
}

impl Leases {
    /// Does `remove`, unless somebody holds `digest`, or has held it since a look began. Nobody begins to, meanwhile.
    pub(super) fn unless_held<T>(&self, digest: Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let held = self.lock();
        let is_held = held.counts.contains_key(&digest) || held.released.contains(&digest);
        (!is_held).then(remove)
    }

    /// From here on what is let go is remembered, until the end of this look.
    pub(super) fn look(self: &Arc<Self>) -> Look {
        self.lock().looks += 1;
        Look(Arc::clone(self))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody looks at what may go.
#[derive(Debug)]
pub(super) struct Look(Arc<Leases>);

impl Drop for Look {
    fn drop(&mut self) {
        let mut held = self.0.lock();
        held.looks -= 1;
        if held.looks == 0 {
            held.released = HashSet::new();
        }
    }
}

/// Keeps blobs and layers from being collected until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    leases: Arc<Leases>,
    digests: Vec<Digest>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.leases.lock();
        let Held { counts, looks, released } = &mut *held;
        for digest in &self.digests {
            if *looks > 0 {
                released.insert(*digest);
            }
            if let Some(count) = counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(digest);
                }
            }
        }
    }
}

impl Store {
    /// Keeps blobs and layers, whether or not they are here yet, from being collected.
    pub fn lease(&self, digests: impl IntoIterator<Item = Digest>) -> Lease {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut held = self.leases.lock();
        for digest in &digests {
            *held.counts.entry(*digest).or_default() += 1;
        }
        drop(held);
        Lease { leases: Arc::clone(&self.leases), digests }
    }

    /// Everything that somebody holds.
    #[must_use]
    pub fn leased(&self) -> Vec<Digest> {
        self.leases.lock().counts.keys().copied().collect()
    }
}
