//! Content that nothing needs: how much there is, and its end. Which layers count is the caller's to say.
//!
//! Content is shared between layers, so what a layer that goes leaves behind is found from the other side: all that is
//! here, less what the indexes of the layers that stay name.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::cache::{FileCache, Found, Survey};
use super::engine::Engine;
use super::layer::partial_id;
use super::packing::Packing;
use super::{LayerSpec, Limits};
use crate::estargz::{ChunkNo, Index};
use crate::image::Digest;
use crate::sys::MappedFile;

/// All content in `files_dir`, whoever writes it at present. Blocks.
///
/// # Errors
/// When the folder cannot be read.
pub fn survey(files_dir: &Path) -> io::Result<Survey> {
    Survey::of(files_dir)
}

impl Survey {
    /// Takes out what a layer has, and says how much that was. False content is nobody's: an index that cannot be read
    /// takes nothing, and its layer is served from the network.
    pub fn take_layer(&mut self, index: MappedFile, limits: &Limits) -> Found {
        match Index::open(index) {
            Ok(index) => self.take_index(&index, limits),
            Err(error) => {
                tracing::warn!(error = %crate::telemetry::Chain(&error), "the index of a layer cannot be used");
                Found::default()
            }
        }
    }

    fn take_index(&mut self, index: &Index<MappedFile>, limits: &Limits) -> Found {
        let mut taken = Found::default();
        for number in 0..index.chunks() {
            let Some((entry, 0)) = index.chunk_by_number(ChunkNo(number)) else { continue };
            let chunks = index.chunk_count(entry);
            if chunks > 1 {
                taken += self.take(&partial_id(index, entry, chunks));
                if let Some(whole) = index.file_digest(entry) {
                    taken += self.take(&whole);
                }
            } else if let Some(chunk) = index.chunk(entry, 0) {
                taken += self.take(&chunk.digest);
            }
        }
        for segment in Packing::new(index, limits).ids(index) {
            taken += self.take(&segment);
        }
        taken
    }
}

impl Engine {
    /// Evicts what neither `kept` nor an open layer has; of that, given `bytes`, only so much as is needed for them, the
    /// coldest first. `None` while another process uses the cache, which then has to be asked instead. Blocks.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn evict_unused(
        &self,
        kept: Vec<LayerSpec>,
        bytes: Option<u64>,
    ) -> io::Result<Option<Found>> {
        let shared = self.shared();
        let layers = shared.open_layers();
        shared.close_idle_files(&layers);
        let open = layers.iter().map(|layer| layer.digest);
        let digests: HashSet<Digest> = kept.iter().map(|layer| layer.digest).chain(open).collect();
        shared.cache.evict_unused(&digests, bytes, |survey| {
            for layer in shared.open_layers() {
                survey.take_index(&layer.index, &shared.limits);
            }
            for layer in kept {
                survey.take_layer(layer.index, &shared.limits);
            }
        })
    }
}

/// As [`Engine::evict_unused`], where no engine runs.
///
/// # Errors
/// When the cache cannot be read.
pub fn evict_unused(
    files_dir: &Path,
    boot_id: &str,
    kept: Vec<LayerSpec>,
    bytes: Option<u64>,
) -> io::Result<Option<Found>> {
    let cache = FileCache::visit(files_dir, boot_id)?;
    let digests: HashSet<Digest> = kept.iter().map(|layer| layer.digest).collect();
    cache.evict_unused(&digests, bytes, |survey| {
        for layer in kept {
            survey.take_layer(layer.index, &Limits::default());
        }
    })
}
