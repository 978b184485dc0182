//! Watches services files.
//!
//! The folder is watched, not the file: editors replace a file instead of writing it. What counts is the content.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::driver::Driver;
use super::execute::{Outcome, Outcomes};
use crate::spec::ProjectName;

/// Editors write in several steps; the file is read when none has come for so long.
const QUIET: Duration = Duration::from_millis(100);
/// A file that never comes to rest is read all the same.
const LONGEST_WRITE: Duration = Duration::from_secs(1);
/// Read this often also without a notification: network file systems send none.
const PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    /// Begins to watch the services file of a project.
    pub(super) fn watch_file(&mut self, name: &ProjectName) {
        let Some(project) = self.projects.get_mut(name) else { return };
        let stop = CancellationToken::new();
        let watching = watch(
            name.to_string(),
            project.record.request.file.clone(),
            project.record.request.text.clone(),
            self.outcomes.clone(),
            stop.clone(),
        );
        project.watch = Some(stop.drop_guard());
        tokio::spawn(watching);
    }
}

async fn watch(
    project: String,
    file: PathBuf,
    known: String,
    outcomes: Outcomes,
    stop: CancellationToken,
) {
    let (changes, mut changed) = mpsc::channel::<()>(1);
    let name = file.file_name().map(OsStr::to_owned);
    // One pending change says as much as many.
    let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| concerns(&event, name.as_deref())) {
            let _ = changes.try_send(());
        }
    });
    let folder = file.parent().unwrap_or(Path::new("/")).to_path_buf();
    let _watching = watcher.and_then(|mut watcher| {
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    let mut last = Ok(known);
    loop {
        tokio::select! {
            // Cancel-safe: a change that is not taken here is read at the next round.
            () = stop.cancelled() => return,
            received = changed.recv() => {
                if received.is_none() {
                    tokio::time::sleep(PATIENCE).await;
                }
                let end = Instant::now() + LONGEST_WRITE;
                while Instant::now() < end
                    && let Ok(Some(())) = tokio::time::timeout(QUIET, changed.recv()).await
                {}
            }
            () = tokio::time::sleep(PATIENCE) => {}
        }
        let text = tokio::fs::read_to_string(&file)
            .await
            .map_err(|error| format!("`{}`: {error}", file.display()));
        if text != last {
            last.clone_from(&text);
            if outcomes.send(Outcome::FileChanged { project: project.clone(), text }).await.is_err()
            {
                return;
            }
        }
    }
}

/// Whether an event may have changed the file with this name. Reading it is an event, too, our own reading as well;
/// and the folder may hold files that are written all the time, such as logs.
fn concerns(event: &Event, name: Option<&OsStr>) -> bool {
    let read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    // Without a path something was lost, or the folder itself has changed.
    let named = event.paths.is_empty() || event.paths.iter().any(|path| path.file_name() == name);
    !read && named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_of_the_file_itself_count() {
        let event = |kind, path: &str| Event::new(kind).add_path(path.into());
        let modified = EventKind::Modify(notify::event::ModifyKind::Any);
        let name = Some(OsStr::new("services.yaml"));
        assert!(concerns(&event(modified, "/site/services.yaml"), name));
        assert!(!concerns(&event(modified, "/site/up.log"), name));
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(!concerns(&event(opened, "/site/services.yaml"), name));
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert!(concerns(&event(written, "/site/services.yaml"), name));
        assert!(concerns(&Event::new(EventKind::Other), name), "events were lost");
    }
}
