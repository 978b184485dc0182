//! Space that is promised to pulls before they write.
//!
//! Promised is only what is there, so that a pull which has no room takes none from others. A layer that several images
//! have comes once, and is promised once. What is written is not there any more for the next one who looks, so a layer's
//! promise ends when it is here: what is written of it before counts twice until then, and whoever does not fit only for
//! that waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::image::Digest;

/// Bytes by layer.
pub(super) type Needs = BTreeMap<Digest, u64>;

/// What is promised.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Bytes of layers, and how many pulls wait for each.
    layers: Mutex<BTreeMap<Digest, (u64, usize)>>,
    returned: Notify,
}

/// Room that a pull has for layers that are not here yet.
#[derive(Debug)]
pub(super) struct Promise<'a> {
    promises: &'a Promises,
    layers: Mutex<Vec<Digest>>,
}

impl Promises {
    /// Promises what is needed, if that fits into what is there and is not promised to others.
    pub(super) fn give(&self, needs: &Needs, there: u64) -> Option<Promise<'_>> {
        let mut layers = self.lock();
        let promised: u64 = layers.values().map(|(bytes, _)| *bytes).sum();
        let before = |layer| layers.get(layer).map_or(0, |(bytes, _)| *bytes);
        let beyond = needs.iter().map(|(layer, bytes)| bytes.saturating_sub(before(layer)));
        let beyond = beyond.fold(0, u64::saturating_add);
        if promised.saturating_add(beyond) > there {
            return None;
        }
        let needed = needs.iter().filter(|(_, bytes)| **bytes > 0);
        let needed: Vec<Digest> = needed
            .map(|(layer, bytes)| {
                let (promised, pulls) = layers.entry(*layer).or_default();
                *promised = (*promised).max(*bytes);
                *pulls += 1;
                *layer
            })
            .collect();
        Some(Promise { promises: self, layers: Mutex::new(needed) })
    }

    /// One of nothing, for who needs nothing or is not bounded.
    pub(super) fn unbounded(&self) -> Promise<'_> {
        Promise { promises: self, layers: Mutex::default() }
    }

    /// Comes when something that was promised is not any more.
    pub(super) fn returned(&self) -> Notified<'_> {
        self.returned.notified()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, (u64, usize)>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promise<'_> {
    /// A layer is here.
    pub(super) fn keep(&self, layer: Digest) {
        self.give_back(|promised| promised == layer);
    }

    fn give_back(&self, is_kept: impl Fn(Digest) -> bool) {
        let mut own = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, left) = std::mem::take(&mut *own).into_iter().partition(|one| is_kept(*one));
        *own = left;
        let kept: Vec<Digest> = kept;
        if kept.is_empty() {
            return;
        }
        let mut layers = self.promises.lock();
        for digest in kept {
            if let Some((_, pulls)) = layers.get_mut(&digest) {
                *pulls -= 1;
                if *pulls == 0 {
                    layers.remove(&digest);
                }
            }
        }
        drop(layers);
        self.promises.returned.notify_waiters();
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.give_back(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(layers: &[(&str, u64)]) -> Needs {
        layers.iter().map(|(name, bytes)| (Digest::of(name.as_bytes()), *bytes)).collect()
    }

    #[tokio::test]
    async fn what_is_there_is_promised_once_and_what_does_not_fit_takes_nothing() {
        let promises = Promises::default();
        let first = promises.give(&needs(&[("base", 50), ("one", 20)]), 100).unwrap();
        assert!(promises.give(&needs(&[("large", 1000)]), 100).is_none());
        // The base comes once.
        let second = promises.give(&needs(&[("base", 50), ("two", 20)]), 100).unwrap();
        let third = needs(&[("three", 20)]);
        assert!(promises.give(&third, 100).is_none());
        let returned = promises.returned();
        tokio::pin!(returned);
        returned.as_mut().enable();
        first.keep(Digest::of(b"one"));
        returned.await;
        drop(promises.give(&third, 100).unwrap());
        drop(first);
        assert!(
            promises.give(&needs(&[("four", 31)]), 100).is_none(),
            "another one needs the base"
        );
        drop(second);
        assert!(promises.lock().is_empty());
    }
}
