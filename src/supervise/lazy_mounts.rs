//! Lazy layers from control's side: which of the two connections serves a layer. Each for itself is a [`LazySide`].
//!
//! The main connection answers once for all that no file has extended attributes, so that the kernel never asks again
//! (`fuse` says what that is worth). A layer that has some, it refuses to mount; that layer goes to the marked
//! connection, which is begun then and not before. Whoever has the layer's index open decides: here no index is read,
//! and a worker of an older build that serves all layers on the main connection goes on doing so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::ControlOptions;
use super::events::EventLog;
use super::lazy_link::{Generations, Users};
use super::lazy_side::{Home, LazySide, MountRefusal};
use crate::fuse::{LayerStatus, Side, Spare};
use crate::image::Digest;
use crate::lazy::Found;
use crate::spec;
use crate::store::LayerDir;
use crate::sys::process::SealedExe;

/// The lazy mounts of one run directory.
#[derive(Debug)]
pub(super) struct LazyMounts {
    instance: String,
    main: LazySide,
    marked: LazySide,
    generations: watch::Sender<Generations>,
    /// Layers that the main connection refused for their extended attributes.
    refused: Mutex<BTreeSet<Digest>>,
}

impl LazyMounts {
    pub(super) fn new(
        options: &ControlOptions,
        run_dir: &Path,
        state_dir: &Path,
        instance: &str,
        exe: Arc<SealedExe>,
        events: EventLog,
    ) -> Self {
        let generations = watch::Sender::new(Generations::default());
        let home = Home { run_dir, state_dir, instance };
        let side = |side| {
            let (exe, events) = (Arc::clone(&exe), events.clone());
            LazySide::new(options, &home, side, generations.clone(), exe, events)
        };
        Self {
            instance: instance.to_owned(),
            main: side(Side::Main),
            marked: side(Side::Marked),
            generations,
            refused: Mutex::default(),
        }
    }

    /// The instance whose mounts these are.
    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    fn side(&self, side: Side) -> &LazySide {
        match side {
            Side::Main => &self.main,
            Side::Marked => &self.marked,
        }
    }

    /// Which connection a layer that was mounted is on.
    fn side_of(&self, layer: &Digest) -> Side {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.contains(layer) { Side::Marked } else { Side::Main }
    }

    /// Tells the connections apart from every other of the run directory, as far as they are known.
    pub(super) fn generations(&self) -> Generations {
        *self.generations.borrow()
    }

    /// The same of those that serve `layers`, given what was known `before` these were mounted.
    pub(super) fn generations_of(&self, layers: &[Digest], before: Generations) -> Generations {
        let now = self.generations();
        let mut used = Generations::default();
        for side in layers.iter().map(|layer| self.side_of(layer)) {
            used.set(side, before.of(side).or(now.of(side)));
        }
        used
    }

    #[cfg(test)]
    pub(super) fn set_generation(&self, side: Side, generation: u64) {
        self.generations.send_modify(|known| known.set(side, Some(generation)));
    }

    /// As if somebody waited for a keeper that does not answer.
    #[cfg(test)]
    pub(super) async fn hold(&self) -> tokio::sync::MutexGuard<'_, impl Sized> {
        self.main.hold().await
    }

    /// Changes with each of the connections.
    pub(super) fn connections(&self) -> watch::Receiver<Generations> {
        self.generations.subscribe()
    }

    /// Makes sure that layers can be mounted, and does `work` meanwhile. The error is the reason why they cannot;
    /// `work` was dropped then, and was not even begun on a host that is known to be unable.
    pub(super) async fn ensure_during<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, String> {
        self.main.ensure_during(work).await
    }

    /// Mounts an indexed layer, or finds it mounted, and returns its directory.
    pub(super) async fn mount(&self, layer: &LayerDir) -> Result<PathBuf, String> {
        let reason = |refusal| match refusal {
            MountRefusal::Xattrs => "no connection takes its extended attributes".to_owned(),
            MountRefusal::Other(reason) => reason,
        };
        let digest = layer.digest();
        if self.side_of(&digest) == Side::Main {
            match self.main.mount(layer).await {
                Err(MountRefusal::Xattrs) => {}
                other => return other.map_err(reason),
            }
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
        }
        self.marked.mount(layer).await.map_err(reason)
    }

    /// Starts to fetch what the layer marks as needed first.
    pub(super) async fn prefetch(&self, layer: &LayerDir) -> Result<(), String> {
        self.mount(layer).await?;
        self.side(self.side_of(&layer.digest())).prefetch(layer.digest()).await
    }

    /// Fetches what a service reads first from mounted layers, as its file says; returns when it may start.
    /// `layers` are those of an image, the lowest first.
    pub(super) async fn prefetch_for(
        &self,
        layers: &[Digest],
        wish: &spec::Lazy,
        reads: Vec<Vec<String>>,
    ) {
        let (main, marked): (Vec<_>, Vec<_>) =
            layers.iter().rev().partition(|layer| self.side_of(layer) == Side::Main);
        tokio::join!(
            self.main.prefetch_for(&main, wish, reads.clone()),
            self.marked.prefetch_for(&marked, wish, reads)
        );
    }

    /// Share of the layer's content that is here, 0 to 1; zero where nothing can be mounted to find out.
    pub(super) async fn share(&self, layer: &LayerDir) -> f64 {
        let digest = layer.digest();
        if let Some(share) = self.side(self.side_of(&digest)).known_share(digest).await {
            return share;
        }
        // Not mounted, so only its reader can tell: the cache is shared between layers.
        if self.mount(layer).await.is_err() {
            return 0.0;
        }
        let side = self.side(self.side_of(&digest));
        side.forget_statuses().await;
        side.known_share(digest).await.unwrap_or(0.0)
    }

    /// Watches over connections that an earlier control left. Their keepers may have died with that control, and then
    /// the workers are the last ones that hold the descriptors. False if there is one and it cannot be done at present.
    pub(super) async fn resume(&self) -> bool {
        let (main, marked) = tokio::join!(self.main.resume(), self.marked.resume());
        main && marked
    }

    /// Whether there is a connection of a side, or was one that nobody took down.
    pub(super) fn is_there(&self, side: Side) -> bool {
        self.side(side).is_there()
    }

    /// Takes down the connections that nothing uses.
    pub(super) async fn stop_if_unused(&self) {
        tokio::join!(self.main.stop_if_unused(), self.marked.stop_if_unused());
    }

    /// Gives up the slots of mounted layers of which `is_needed` says no. The caller sees to it that nobody mounts one
    /// meanwhile.
    pub(super) async fn release_unless(&self, is_needed: impl Fn(&Digest) -> bool) {
        self.main.release_unless(&is_needed).await;
        self.marked.release_unless(&is_needed).await;
    }

    /// How a mounted layer is, asked now.
    pub(super) async fn layer_status(&self, layer: Digest) -> Option<LayerStatus> {
        self.side(self.side_of(&layer)).layer_status(layer).await
    }

    /// Has all of a mounted layer fetched.
    pub(super) async fn background(&self, layer: Digest) {
        if let Err(reason) = self.side(self.side_of(&layer)).background(layer).await {
            tracing::debug!(%layer, reason, "could not begin to fetch a layer");
        }
    }

    /// The layers that are mounted. The error is why nobody can say.
    pub(super) async fn mounted(&self) -> Result<Vec<Digest>, String> {
        let (main, marked) = tokio::join!(self.main.mounted(), self.marked.mounted());
        let mut mounted = main?;
        mounted.extend(marked?);
        Ok(mounted)
    }

    /// Has whoever writes the cache remove content that no layer of `keep` has, nor what `spare` says, as far as
    /// `bytes` need it. `None` when nobody does. All of it follows from `keep`: a connection does not know what is mounted on the other one.
    pub(super) async fn evict(
        &self,
        keep: &[Digest],
        spare: Spare,
        bytes: Option<u64>,
    ) -> Result<Option<Found>, String> {
        // Both forget what they know of layers that are gone; one of them has the cache.
        let (main, marked) = tokio::join!(
            self.main.evict(keep, spare, bytes),
            self.marked.evict(keep, spare, bytes)
        );
        Ok(main?.or(marked?))
    }

    /// Why reads of lazy layers wait for more than their content, if they do.
    pub(super) async fn trouble(&self) -> Option<String> {
        match self.main.trouble().await {
            Some(trouble) => Some(trouble),
            None => self.marked.trouble().await,
        }
    }

    /// Ends a connection by force if nobody serves those who wait for it, or if somebody waits and nothing but what is
    /// being taken down uses it. Says what was done, if anything.
    ///
    /// # Errors
    /// What could not be ended; the other connection is ended all the same, and what was done about it is said too.
    pub(super) async fn free(&self, users: Users) -> Result<Option<String>, String> {
        let (main, marked) = tokio::join!(self.main.free(users), self.marked.free(users));
        both([main, marked])
    }
}

/// What came of both connections, in one sentence.
fn both(freed: [Result<Option<String>, String>; 2]) -> Result<Option<String>, String> {
    let is_done = freed.iter().all(Result::is_ok);
    // Failures first: they are what somebody has to do something about.
    let (done, mut said): (Vec<_>, Vec<_>) = freed.into_iter().partition(Result::is_ok);
    said.extend(done);
    let said = said.into_iter().filter_map(|one| one.unwrap_or_else(Some));
    let said = Some(said.collect::<Vec<_>>().join("; ")).filter(|said| !said.is_empty());
    if is_done { Ok(said) } else { Err(said.unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_that_came_of_either_connection_is_lost() {
        let (ended, failed) = (Ok(Some("ended".to_owned())), Err("failed".to_owned()));
        let both = |main: &Result<_, String>, marked: &Result<_, String>| {
            super::both([main.clone(), marked.clone()])
        };
        assert_eq!(both(&Ok(None), &Ok(None)), Ok(None));
        assert_eq!(both(&ended, &Ok(None)), ended);
        assert_eq!(both(&Ok(None), &failed), failed);
        assert_eq!(both(&ended, &ended), Ok(Some("ended; ended".to_owned())));
        assert_eq!(both(&ended, &failed), Err("failed; ended".to_owned()));
        assert_eq!(both(&failed, &ended), Err("failed; ended".to_owned()));
        assert_eq!(both(&failed, &failed), Err("failed; failed".to_owned()));
    }
}
