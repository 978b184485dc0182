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
use super::handle::{ControlHandle, Reply, Request, RequestError};
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
        if project.record.request.file.as_os_str().is_empty() {
            // A program gave the text, and gives the next one.
            project.watch = None;
            return;
        }
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

    /// Reads every watched services file once, now.
    pub(super) fn reread_files(&self, reply: Reply<()>) {
        let watched = self.projects.iter().filter(|(_, project)| project.watch.is_some());
        let files: Vec<(String, PathBuf)> = watched
            .map(|(name, project)| (name.to_string(), project.record.request.file.clone()))
            .collect();
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            for (project, file) in files {
                let text = read(&file).await;
                // A text that is known already changes nothing. Whoever ends has no use for it.
                let _ = outcomes.send(Outcome::FileChanged { project, text }).await;
            }
            let _ = reply.send(Ok(()));
        });
    }
}

impl ControlHandle {
    /// Reads the services files of all projects now, instead of when their folders report a change. Returns when they
    /// were read; what follows from them goes on. A file that cannot be read or is not valid is an event.
    ///
    /// # Errors
    /// When control ends.
    pub async fn reload(&self) -> Result<(), RequestError> {
        self.ask(Request::Reload).await
    }
}

async fn read(file: &Path) -> Result<String, String> {
    let read = tokio::fs::read_to_string(file).await;
    read.map_err(|error| format!("`{}`: {error}", file.display()))
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
        let text = read(&file).await;
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
