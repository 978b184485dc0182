//! Watches the files that projects come from.
//!
//! Folders are watched, not files: editors replace a file instead of writing it. What counts is the content.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::driver::Driver;
use super::execute::{Outcome, Outcomes};
use super::files::{self, Glance, RereadError};
use super::handle::{ControlHandle, Reply, Request, RequestError};
use super::report::UpRequest;
use crate::spec::ProjectName;

/// Editors write in several steps; the file is read when none has come for so long.
const QUIET: Duration = Duration::from_millis(100);
/// A file that never comes to rest is read all the same.
const LONGEST_WRITE: Duration = Duration::from_secs(1);
/// Read this often also without a notification: network file systems send none.
const PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    /// Begins to watch the files of a project.
    pub(super) fn watch_file(&mut self, name: &ProjectName) {
        let Some(project) = self.projects.get_mut(name) else { return };
        if project.record.request.file.as_os_str().is_empty() {
            // A program gave the text, and gives the next one.
            project.watch = None;
            return;
        }
        let stop = CancellationToken::new();
        let request = project.record.request.clone();
        let watching = watch(name.to_string(), request, self.outcomes.clone(), stop.clone());
        project.watch = Some(stop.drop_guard());
        tokio::spawn(watching);
    }

    /// Reads every watched services file once, now.
    pub(super) fn reread_files(&self, reply: Reply<()>) {
        let watched = self.projects.iter().filter(|(_, project)| project.watch.is_some());
        let requests: Vec<(String, UpRequest)> = watched
            .map(|(name, project)| (name.to_string(), project.record.request.clone()))
            .collect();
        let outcomes = self.outcomes.clone();
        tokio::spawn(async move {
            for (project, request) in requests {
                let reading = tokio::task::spawn_blocking(move || files::reread(&request));
                let Ok(result) = reading.await else { continue };
                // A text that is known already changes nothing. Whoever ends has no use for it.
                let _ = outcomes.send(Outcome::FileChanged { project, result }).await;
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

/// The files that are watched now; shared with the thread that hears of changes.
type Watched = Arc<Mutex<BTreeSet<PathBuf>>>;

async fn watch(project: String, request: UpRequest, outcomes: Outcomes, stop: CancellationToken) {
    let (changes, mut changed) = mpsc::channel::<()>(1);
    let watched = Watched::default();
    let heard = Arc::clone(&watched);
    // One pending change says as much as many.
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let watched = heard.lock().unwrap_or_else(PoisonError::into_inner);
        if event.is_ok_and(|event| concerns(&event, &watched)) {
            let _ = changes.try_send(());
        }
    })
    .ok();
    let mut folders = BTreeSet::new();
    let mut request = Arc::new(request);
    follow(&request, &watched, &mut folders, watcher.as_mut());
    let mut last_error: Option<RereadError> = None;
    let mut known: Option<Glance> = None;
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
        // Of files with problems it is not known which else they need.
        let before = known.take().filter(|_| last_error.is_none());
        let asked = Arc::clone(&request);
        let looking =
            tokio::task::spawn_blocking(move || files::reread_since(before.as_ref(), &asked));
        let Ok((now, result)) = looking.await else { continue };
        known = Some(now);
        let Some(result) = result else {
            follow(&request, &watched, &mut folders, watcher.as_mut());
            continue;
        };
        let is_news = match &result {
            Ok(reread) => {
                let news = reread.text != request.text || last_error.is_some();
                last_error = None;
                news
            }
            Err(error) => {
                let news = last_error.as_ref() != Some(error);
                last_error = Some(error.clone());
                news
            }
        };
        if let Ok(reread) = &result {
            let request = Arc::make_mut(&mut request);
            request.text.clone_from(&reread.text);
            request.sources.clone_from(&reread.sources);
        }
        follow(&request, &watched, &mut folders, watcher.as_mut());
        if is_news {
            let outcome = Outcome::FileChanged { project: project.clone(), result };
            if outcomes.send(outcome).await.is_err() {
                return;
            }
        }
    }
}

/// Watches the folders of all files that the project was read from.
fn follow(
    request: &UpRequest,
    watched: &Watched,
    folders: &mut BTreeSet<PathBuf>,
    watcher: Option<&mut RecommendedWatcher>,
) {
    let files = request.sources.iter().flat_map(|sources| &sources.read).chain([&request.file]);
    let files: BTreeSet<PathBuf> = files.cloned().collect();
    let wanted: BTreeSet<PathBuf> =
        files.iter().map(|file| file.parent().unwrap_or(Path::new("/")).to_owned()).collect();
    *watched.lock().unwrap_or_else(PoisonError::into_inner) = files;
    let Some(watcher) = watcher else { return };
    for folder in folders.difference(&wanted) {
        let _ = watcher.unwatch(folder);
    }
    // A folder that cannot be watched, or is not there yet, is tried again at the next round.
    let is_watched = |folder: &PathBuf| {
        folders.contains(folder) || watcher.watch(folder, RecursiveMode::NonRecursive).is_ok()
    };
    *folders = wanted.into_iter().filter(is_watched).collect();
}

/// Whether an event may have changed one of the files. Reading one is an event, too, our own reading as well; and
/// their folders may hold files that are written all the time, such as logs.
fn concerns(event: &Event, files: &BTreeSet<PathBuf>) -> bool {
    let read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    // Without a path something was lost, or the folder itself has changed.
    let named = event.paths.is_empty() || event.paths.iter().any(|path| files.contains(path));
    !read && named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_of_the_files_themselves_count() {
        let event = |kind, path: &str| Event::new(kind).add_path(path.into());
        let modified = EventKind::Modify(notify::event::ModifyKind::Any);
        let files = BTreeSet::from(["/site/services.yaml".into(), "/site/.env".into()]);
        assert!(concerns(&event(modified, "/site/services.yaml"), &files));
        assert!(concerns(&event(modified, "/site/.env"), &files));
        assert!(!concerns(&event(modified, "/site/up.log"), &files));
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(!concerns(&event(opened, "/site/services.yaml"), &files));
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        assert!(concerns(&event(written, "/site/services.yaml"), &files));
        assert!(concerns(&Event::new(EventKind::Other), &files), "events were lost");
    }
}
