//! Watches services files.
//!
//! The folder is watched, not the file: editors replace a file instead of writing it. What counts is the content.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::driver::Driver;
use super::execute::{Outcome, Outcomes};
use crate::spec::ProjectName;

/// Editors write in several steps; the file is read when none has come for so long.
const QUIET: Duration = Duration::from_millis(100);
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
    // One pending change says as much as many.
    let watcher = notify::recommended_watcher(move |_| {
        let _ = changes.try_send(());
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
                while let Ok(Some(())) = tokio::time::timeout(QUIET, changed.recv()).await {}
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
