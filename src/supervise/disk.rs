//! What a handle asks of the disk: what is where, what may go, which images stay.

use std::collections::BTreeSet;

use super::collect::{Contents, PruneManner, PruneOptions, Wanted, blocking, failed};
use super::driver::Driver;
use super::handle::{ControlHandle, Request, RequestError, RequestErrorKind};
use super::report::{DiskReport, DiskRow, PruneReport};
use super::unused_content::Content;
use crate::image::ImageRef;
use crate::store::{Inventory, Item, Pinned, Reach, Store, Usage, is_set_aside, usage};

impl Driver {
    /// The images that services files name, whether or not the services run.
    pub(super) fn images_wanted(&self) -> Wanted {
        let mut wanted = Wanted { unknown: self.unread_project(), ..Wanted::default() };
        for (project, held) in &self.projects {
            for (name, service) in &held.desired.services {
                for image in service.images() {
                    let user = || format!("{project}/{name}");
                    wanted.images.entry(image.clone()).or_insert_with(user);
                }
            }
        }
        wanted
    }

    /// Of a project that has a record, or what was set aside of one, and is not known, it cannot be told what it wants.
    fn unread_project(&self) -> Option<String> {
        let root = self.host.store.root();
        let entries = match std::fs::read_dir(root.join("services")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("the projects cannot be listed: {error}")),
        };
        for entry in entries {
            let name = match entry {
                Ok(entry) => entry.file_name().to_string_lossy().into_owned(),
                Err(error) => return Some(format!("the projects cannot be listed: {error}")),
            };
            let path = super::project::record_path(root, &name);
            if !self.projects.keys().any(|project| project.as_str() == name)
                && (path.exists() || is_set_aside(&path))
            {
                let path = path.display();
                return Some(format!(
                    "the record of project `{name}` cannot be used; take it up again, or give it up by removing `{path}*`"
                ));
            }
        }
        None
    }
}

impl ControlHandle {
    /// What the state directory holds.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn disk(&self) -> Result<DiskReport, RequestError> {
        let _working = self.images.work();
        let (store, uses) = (self.images.store().clone(), self.images.uses().await?);
        let looking = blocking(move || store.inventory(&uses, &Reach::Unused));
        let inventory = looking.await?.map_err(failed)?;
        let content = self.images.unused_content(&inventory.in_use, &inventory.leftovers).await;
        let content =
            content.map_err(|reason| RequestError::new(RequestErrorKind::Failed, reason))?;
        let store = self.images.store().clone();
        blocking(move || report(&store, &inventory, content)).await?
    }

    /// Removes what nothing needs, or tells what would be removed.
    ///
    /// # Errors
    /// When layers are being mounted all the time, or the file system refuses.
    pub async fn prune(&self, options: PruneOptions) -> Result<PruneReport, RequestError> {
        let _working = self.images.work();
        let report = self.images.collect(&options).await;
        // Somebody may have begun to want what has just gone.
        let _ = self.requests.send(Request::ImagesChanged).await;
        report
    }

    /// Removes an image and what only it has.
    ///
    /// # Errors
    /// When it is not here, is in use or pinned; otherwise as [`Self::prune`].
    pub async fn remove_image(&self, image: &str) -> Result<PruneReport, RequestError> {
        let reference = parse(image)?;
        let store = self.images.store();
        self.require_here(&reference)?;
        let record = store.image(&reference).map_err(failed)?;
        let conflict = |message: String, hint: &str| {
            let error = RequestError::new(RequestErrorKind::Conflict, message);
            Err(error.with_hint(Some(hint.to_owned())))
        };
        if store.pins().map_err(failed)?.contains(&reference) {
            let hint = format!("`supervisor image unpin {reference}` lets it go");
            return conflict(format!("image `{reference}` is pinned"), &hint);
        }
        let wanted = self.images.wanted().await?;
        if let Some(user) = wanted.images.get(&reference) {
            let message = format!("image `{reference}` is in use by service `{user}`");
            return conflict(message, "take the service down, or out of its services file");
        }
        let manifest = record.map(|record| record.manifest);
        let containers = self.images.of_containers().unwrap_or_default();
        if let Some(user) = containers.iter().find(|image| Some(image.manifest) == manifest) {
            let message = format!("image `{reference}` is in use by container `{}`", user.id);
            return conflict(message, "remove the container first");
        }
        let options = PruneOptions {
            reach: Reach::Image(reference.clone()),
            content: Contents::Orphans,
            manner: PruneManner::Remove,
        };
        let report = self.prune(options).await?;
        if self.images.store().image(&reference).map_err(failed)?.is_some() {
            let message = format!("image `{reference}` is in use since a moment ago");
            return conflict(message, "`supervisor ps` and `supervisor images` show what is");
        }
        Ok(report)
    }

    /// Keeps an image from being collected, or lets it go again. False if that was so already.
    ///
    /// # Errors
    /// When there is no such image, or the file system refuses.
    pub async fn pin_image(&self, image: &str, pin: Pin) -> Result<bool, RequestError> {
        let reference = parse(image)?;
        let store = self.images.store().clone();
        match pin {
            Pin::Keep => {
                let image = reference.clone();
                match blocking(move || store.pin(&image)).await?.map_err(failed)? {
                    Pinned::Now => Ok(true),
                    Pinned::Already => Ok(false),
                    Pinned::NoImage => Err(not_here(&reference)),
                }
            }
            Pin::LetGo => blocking(move || store.unpin(&reference)).await?.map_err(failed),
        }
    }

    fn require_here(&self, reference: &ImageRef) -> Result<(), RequestError> {
        if self.images.store().image(reference).map_err(failed)?.is_some() {
            return Ok(());
        }
        Err(not_here(reference))
    }
}

fn not_here(reference: &ImageRef) -> RequestError {
    let message = format!("image `{reference}` is not here");
    let error = RequestError::new(RequestErrorKind::NotFound, message);
    error.with_hint(Some("`supervisor images` lists those that are".to_owned()))
}

/// Whether an image is kept whatever uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// It is.
    Keep,
    /// It goes as others do.
    LetGo,
}

fn parse(image: &str) -> Result<ImageRef, RequestError> {
    image.parse().map_err(|error: crate::image::RefError| {
        RequestError::new(RequestErrorKind::Invalid, error.to_string())
    })
}

/// Blocks.
fn report(
    store: &Store,
    inventory: &Inventory,
    content: Content,
) -> Result<DiskReport, RequestError> {
    let root = store.root();
    let stat = rustix::fs::statvfs(root).map_err(|error| {
        let message = format!("could not ask for the space at `{}`: {error}", root.display());
        RequestError::new(RequestErrorKind::Failed, message)
    })?;
    let left = |is_kind: fn(&Item) -> bool| -> u64 {
        let of_kind = inventory.leftovers.iter().filter(|leftover| is_kind(&leftover.item));
        of_kind.map(|leftover| leftover.bytes).sum()
    };
    let layers: BTreeSet<_> =
        store.layers().map_err(failed)?.iter().map(crate::store::LayerDir::digest).collect();
    let images = store.images().map_err(failed)?;
    let below = |name: &str| usage(&root.join(name));
    let row = |kind: &str, (count, active): (usize, usize), bytes: u64, reclaimable_bytes: u64| {
        let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
        let (kind, count, active) = (kind.to_owned(), number(count), number(active));
        DiskRow { kind, count, active, bytes, reclaimable_bytes }
    };
    let of = |usage: Usage| usage.bytes;
    let folders = |name: &str| std::fs::read_dir(root.join(name)).map_or(0, Iterator::count);
    let containers = store.containers().map_err(failed)?.len();
    let (volumes, logs) = (folders("volumes"), folders("logs"));
    let layers_in_use = layers.intersection(&inventory.in_use).count();
    let mut rows = vec![
        row(
            "images",
            (images.len(), inventory.images_in_use.len()),
            of(below("blobs")) + of(below("images")),
            left(|item| matches!(item, Item::Blob(_) | Item::Image(_))),
        ),
        row(
            "layers",
            (layers.len(), layers_in_use),
            of(below("layers")),
            left(|item| matches!(item, Item::Layer(_))),
        ),
    ];
    let unused = content.orphans.bytes + content.idle.bytes;
    rows.push(DiskRow {
        kind: "lazy-content".to_owned(),
        count: content.all.files,
        active: content.all.files - content.orphans.files - content.idle.files,
        bytes: content.all.bytes,
        reclaimable_bytes: unused,
    });
    rows.extend([
        row("containers", (containers, containers), of(below("containers")), 0),
        row("volumes", (volumes, volumes), of(below("volumes")), 0),
        row("logs", (logs, logs), of(below("logs")), 0),
    ]);
    Ok(DiskReport {
        state_dir: root.to_path_buf(),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        rows,
    })
}
