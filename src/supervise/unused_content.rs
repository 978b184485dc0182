//! Content of lazy layers that nothing needs: how much there is, and its end.

use std::collections::BTreeSet;
use std::io;

use super::collect::{Contents, PruneManner, PruneOptions, blocking};
use super::images::Images;
use super::report::PruneReport;
use crate::fuse::Spare;
use crate::image::Digest;
use crate::lazy::{Found, LayerSpec, Limits, Survey};
use crate::store::{Class, Inventory, Item, LayerDir, Leftover, Store};
use crate::sys::process::boot_id;
use crate::telemetry::Chain;

/// Content by who has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Content {
    /// No layer.
    pub(super) orphans: Found,
    /// Layers that do not count.
    pub(super) idle: Found,
    /// All of it.
    pub(super) all: Found,
}

impl Images {
    /// Removes content that nothing needs, or tells how much that is. The error is why it stays.
    pub(super) async fn collect_content(
        &self,
        inventory: &Inventory,
        options: &PruneOptions,
        report: &mut PruneReport,
    ) -> Result<(), String> {
        let busy = match options.content {
            Contents::Coldest(_) => &inventory.in_use | &inventory.needed,
            Contents::Orphans | Contents::Idle => inventory.in_use.clone(),
        };
        let unused = self.unused_content(&busy, &inventory.leftovers).await?;
        let idle = match options.content {
            Contents::Orphans => Found::default(),
            Contents::Idle | Contents::Coldest(_) => unused.idle,
        };
        let classes = [(Class::Orphan, unused.orphans), (Class::IdleContent, idle)];
        if options.manner == PruneManner::DryRun {
            classes.iter().for_each(|(class, found)| report.add_content(*class, *found));
            return Ok(());
        }
        if classes.iter().all(|(_, found)| found.files == 0) {
            return Ok(());
        }
        let (keep, spare, bytes) = match options.content {
            Contents::Orphans => (&inventory.kept, Spare::Stored, None),
            Contents::Idle => (&busy, Spare::Nothing, None),
            Contents::Coldest(bytes) => (&busy, Spare::Nothing, Some(bytes)),
        };
        let keep: Vec<Digest> = keep.iter().copied().collect();
        let mut found = self.evict(keep, spare, bytes).await?;
        // What went beyond the orphans was idle.
        let orphans = Found {
            files: found.files.min(unused.orphans.files),
            bytes: found.bytes.min(unused.orphans.bytes),
        };
        found.files -= orphans.files;
        found.bytes -= orphans.bytes;
        report.add_content(Class::Orphan, orphans);
        report.add_content(Class::IdleContent, found);
        Ok(())
    }

    /// Content by who has it: `busy` layers, others, or none that will be left without `gone`.
    pub(super) async fn unused_content(
        &self,
        busy: &BTreeSet<Digest>,
        gone: &[Leftover],
    ) -> Result<Content, String> {
        let (store, busy, gone) = (self.store().clone(), busy.clone(), gone.to_vec());
        let found = blocking(move || unused_content(&store, &busy, &gone)).await;
        found.map_err(|error| error.to_string())?
    }

    /// Whoever has the cache evicts; where nobody has, this process.
    async fn evict(
        &self,
        keep: Vec<Digest>,
        spare: Spare,
        bytes: Option<u64>,
    ) -> Result<Found, String> {
        if let Some(found) = self.lazy.evict(&keep, spare, bytes).await? {
            return Ok(found);
        }
        let store = self.store().clone();
        let evicting = tokio::task::spawn_blocking(move || {
            let boot_id = boot_id().map_err(|error| error.to_string())?;
            let mut keep: BTreeSet<Digest> = keep.into_iter().collect();
            if spare == Spare::Stored {
                let layers = store.layers().map_err(|error| Chain(&error).to_string())?;
                keep.extend(layers.iter().map(LayerDir::digest));
            }
            let mut kept = Vec::with_capacity(keep.len());
            for digest in keep {
                kept.extend(layer_spec(&store, digest)?);
            }
            let evicted = crate::lazy::evict_unused(&store.files_dir(), &boot_id, kept, bytes);
            let evicted = evicted.map_err(|error| error.to_string())?;
            evicted.ok_or_else(|| "another process has the cache".to_owned())
        });
        evicting.await.map_err(|error| error.to_string())?
    }
}

/// As [`Images::unused_content`]. Blocks.
pub(super) fn unused_content(
    store: &Store,
    busy: &BTreeSet<Digest>,
    gone: &[Leftover],
) -> Result<Content, String> {
    let gone: BTreeSet<Digest> = gone
        .iter()
        .filter_map(|leftover| match leftover.item {
            Item::Layer(digest) => Some(digest),
            Item::Image(_) | Item::Blob(_) => None,
        })
        .collect();
    let limits = Limits::default();
    let surveyed = crate::lazy::survey(&store.files_dir());
    let mut survey: Survey = surveyed
        .map_err(|source| format!("could not read `{}`: {source}", store.files_dir().display()))?;
    let mut content = Content { all: survey.rest(), ..Content::default() };
    let take = |survey: &mut Survey, digest| -> Result<Found, String> {
        let layer = layer_spec(store, digest)?;
        Ok(layer.map_or_else(Found::default, |layer| survey.take_layer(layer.index, &limits)))
    };
    for digest in busy {
        take(&mut survey, *digest)?;
    }
    for layer in store.layers().map_err(|error| Chain(&error).to_string())? {
        if !gone.contains(&layer.digest()) {
            content.idle += take(&mut survey, layer.digest())?;
        }
    }
    content.orphans = survey.rest();
    Ok(content)
}

/// What a layer has; `None` if it is none that is lazy. What cannot be told may be anything, so nothing goes then.
fn layer_spec(store: &Store, digest: Digest) -> Result<Option<LayerSpec>, String> {
    let path = store.layer(digest).index_path();
    LayerSpec::open(digest, &path).map_err(|error: io::Error| {
        format!("the index of layer {} cannot be read: {error}", digest.short())
    })
}
