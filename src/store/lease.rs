//! Leases: what somebody is bringing here, or is about to use, is not collected.
//!
//! A lease is taken before the store is asked whether something is there, and held until a record or a mount says that
//! it is in use. They are of this process: roles that share the store use only what control has made ready.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Store;
use crate::image::Digest;

/// How many hold each blob or layer.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<Digest, usize>>);

impl Leases {
    /// Does `remove`, unless somebody holds `digest`. Nobody begins to, meanwhile.
    pub(super) fn unless_held<T>(&self, digest: Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let held = self.lock();
        (!held.contains_key(&digest)).then(remove)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        for digest in &self.digests {
            if let Some(count) = held.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    held.remove(digest);
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
            *held.entry(*digest).or_default() += 1;
        }
        drop(held);
        Lease { leases: Arc::clone(&self.leases), digests }
    }

    /// Everything that somebody holds.
    #[must_use]
    pub fn leased(&self) -> Vec<Digest> {
        self.leases.lock().keys().copied().collect()
    }
}
