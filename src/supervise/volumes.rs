//! Named volumes that the user gives up.

use std::collections::BTreeSet;

use super::driver::Driver;
use super::handle::{ControlHandle, Request, RequestError, RequestErrorKind, StopOptions};
use crate::container::{Mount, MountKind, launch_record};
use crate::store::remove_tree;

impl Driver {
    /// The named volumes of a project, by their names on this host.
    pub(super) fn volumes_of(&self, project: &str) -> Result<Vec<String>, RequestError> {
        let name = self.known(project)?;
        let services = self.projects[&name].desired.services.values();
        let mut volumes: Vec<String> = services
            .flat_map(|service| service.named_volumes.iter())
            .map(|named| named.volume.clone())
            .collect();
        volumes.sort();
        volumes.dedup();
        Ok(volumes)
    }

    /// Those of `volumes` that no project has any more, and no container that may run: one that is made like a service
    /// by `run`, or as its file was before, may have others than the file.
    pub(super) fn unused_volumes(
        &self,
        mut volumes: Vec<String>,
    ) -> Result<Vec<String>, RequestError> {
        let projects = self.projects.values().map(|project| &project.desired);
        let mut used: BTreeSet<String> = projects
            .flat_map(|desired| desired.services.values())
            .flat_map(|service| service.named_volumes.iter())
            .map(|named| named.volume.clone())
            .collect();
        // Of a run that is being made there may be no launch record yet.
        let asked = self.runs.settings().flat_map(|service| service.named_volumes.iter());
        used.extend(asked.map(|named| named.volume.clone()));
        for held in self.containers.values().filter(|held| held.may_run() || held.busy.is_some()) {
            let launch = launch_record(&self.host.run_dir, &held.id).map_err(|error| {
                let message = format!("it cannot be told which volumes `{}` has: {error}", held.id);
                RequestError::new(RequestErrorKind::Failed, message)
            })?;
            used.extend(launch.iter().flat_map(|launch| &launch.mounts).filter_map(volume_of));
        }
        volumes.retain(|name| !used.contains(name));
        Ok(volumes)
    }
}

/// The named volume that a mount is of: its content is in a folder below that of its name.
fn volume_of(mount: &Mount) -> Option<String> {
    let MountKind::Volume { source, .. } = &mount.kind else { return None };
    Some(source.parent()?.file_name()?.to_str()?.to_owned())
}

impl ControlHandle {
    /// As [`Self::down`] of a whole project, and removes its named volumes with all that is in them; `volumes` are
    /// removed too, which the file of a project that is down already may have named. One that another project has
    /// stays. Returns the containers and the volumes that are gone.
    ///
    /// # Errors
    /// As [`Self::down`], but that a project is down already is none; and when a volume cannot be removed.
    pub async fn down_with_volumes(
        &self,
        project: String,
        options: StopOptions,
        volumes: Vec<String>,
    ) -> Result<(Vec<String>, Vec<String>), RequestError> {
        let is_known = |error: &RequestError| error.kind != RequestErrorKind::NotFound;
        let named = project.clone();
        let mut all = match self.ask(|reply| Request::Volumes { project: named, reply }).await {
            Err(error) if is_known(&error) => return Err(error),
            of_project => of_project.unwrap_or_default(),
        };
        all.extend(volumes);
        all.sort();
        all.dedup();
        let containers = match self.down(project, options).await {
            Err(error) if is_known(&error) => return Err(error),
            gone => gone.unwrap_or_default(),
        };
        let unused = self.ask(|reply| Request::UnusedVolumes { volumes: all, reply }).await?;
        let folder = self.images.store().root().join("volumes");
        let removing = tokio::task::spawn_blocking(move || remove(&folder, unused));
        let failed = |error: tokio::task::JoinError| {
            RequestError::new(RequestErrorKind::Failed, error.to_string())
        };
        Ok((containers, removing.await.map_err(failed)??))
    }
}

/// Removes what is there of `volumes` and gives their names.
fn remove(folder: &std::path::Path, volumes: Vec<String>) -> Result<Vec<String>, RequestError> {
    use rustix::fs::{CWD, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Without the folder there is no volume.
    let Ok(directory) = rustix::fs::openat(CWD, folder, flags, Mode::empty()) else {
        return Ok(Vec::new());
    };
    let mut removed = Vec::with_capacity(volumes.len());
    for name in volumes {
        // A name is one component; what the file may call a volume was checked, what a caller says was not.
        let is_component = !name.contains('/') && !name.starts_with('.') && !name.is_empty();
        if !is_component || std::fs::symlink_metadata(folder.join(&name)).is_err() {
            continue;
        }
        if let Err(error) = remove_tree(&directory, name.as_str()) {
            let message = format!("could not remove the volume `{name}`: {error}");
            return Err(RequestError::new(RequestErrorKind::Failed, message));
        }
        removed.push(name);
    }
    Ok(removed)
}
