//! One project: what its user asked for, kept across restarts of control.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::handle::{Reply, RequestError, RequestErrorKind};
use super::report::UpRequest;
use super::service_wish::{Asker, ExitWaiter, ServiceWaiter, ServiceWish};
use crate::reconcile::{Goal, ServiceRecord};
use crate::spec::{self, Desired, ParseInput, ProjectChoice, ProjectName, Selection, ServiceName};
use crate::store::Record;

/// What the user wants of a project as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wish {
    /// Its services run.
    Up,
    /// Nothing runs, containers stay.
    Stop,
    /// There are no containers.
    Down,
}

/// A project as it is kept in `$STATE/services/<project>/project`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProjectRecord {
    /// The last request that was valid; its text is the last good state of the file.
    pub(super) request: UpRequest,
    pub(super) wish: Wish,
    /// How often the user asked for each service.
    pub(super) requests: BTreeMap<ServiceName, u64>,
    /// What else the user asked of single services.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) wishes: BTreeMap<ServiceName, ServiceWish>,
    /// Requests that are only carried out in the boot in which they were made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) in_boot: BTreeMap<ServiceName, RequestInBoot>,
}

/// A request for a job whose start is not synced before it runs. In a later boot nobody knows whether it ran if its
/// container does not say so: then it is not run, because it may have been, and who asked for it has heard nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RequestInBoot {
    pub(super) request: u64,
    /// The last request before it that holds in any boot.
    pub(super) before: u64,
    pub(super) boot: String,
}

impl Record for ProjectRecord {
    const KIND: &'static str = "project";
    const VERSION: u32 = 1;
}

/// A request that was understood.
pub(super) fn parse(request: &UpRequest) -> Result<Desired, RequestError> {
    let invalid = |message: String| RequestError::new(RequestErrorKind::Invalid, message);
    let project: ProjectName =
        request.project.parse().map_err(|error: spec::NameError| invalid(error.to_string()))?;
    let file = match request.file.as_os_str().is_empty() {
        // The text of a program.
        true => "services".to_owned(),
        false => request.file.display().to_string(),
    };
    let input = ParseInput {
        file: &file,
        project,
        // The caller has chosen already, by option, by the file's `name:` or by its folder.
        project_choice: ProjectChoice::Explicit,
        base_dir: &request.base_dir,
        environment: &request.environment,
    };
    let selection = Selection {
        profiles: request
            .sources
            .as_ref()
            .map(|sources| sources.profiles.clone())
            .unwrap_or_default(),
        named: request.services.clone(),
        unsupported: request.sources.as_ref().map(|s| s.unsupported).unwrap_or_default(),
    };
    let mut desired = spec::parse_selected(&request.text, &input, &selection)
        .map_err(|problems| invalid(problems.to_string()))?;
    for name in &request.services {
        if !desired.services.keys().any(|service| service.as_str() == name) {
            let known: Vec<&str> = desired.services.keys().map(ServiceName::as_str).collect();
            return Err(invalid(format!(
                "no such service: `{name}` (the file has {})",
                known.join(", ")
            )));
        }
    }
    for name in &request.independent {
        if let Some(service) = desired.services.get_mut(name.as_str()) {
            service.depends_on.clear();
        }
    }
    if !request.services.is_empty() {
        let is_named =
            |name: &&ServiceName| request.services.iter().any(|one| name.as_str() == one);
        let chosen = desired.with_dependencies(desired.services.keys().filter(is_named));
        desired.services.retain(|name, _| chosen.contains(name));
    }
    Ok(desired)
}

/// Someone who waits for a project to be gone, and the containers that it had.
#[derive(Debug)]
pub(super) struct GoneWaiter {
    pub(super) reply: Reply<Vec<String>>,
    pub(super) containers: Vec<String>,
}

/// A project in memory.
#[derive(Debug)]
pub(super) struct Project {
    pub(super) record: ProjectRecord,
    pub(super) desired: Arc<Desired>,
    pub(super) records: BTreeMap<ServiceName, ServiceRecord>,
    /// What asked for services to run, of this run of control.
    pub(super) askers: BTreeMap<ServiceName, Asker>,
    pub(super) waiters: Vec<GoneWaiter>,
    pub(super) service_waiters: Vec<ServiceWaiter>,
    pub(super) exit_waiters: Vec<ExitWaiter>,
    /// Becomes true when a record that was saved without a sync is on the disk; `None` before the first.
    pub(super) kept: Option<watch::Receiver<bool>>,
    /// Ends when the project does.
    pub(super) watch: Option<tokio_util::sync::DropGuard>,
}

impl Project {
    pub(super) fn new(record: ProjectRecord, desired: impl Into<Arc<Desired>>) -> Self {
        let records = record
            .requests
            .iter()
            .map(|(name, &request)| {
                let wish = record.wishes.get(name).copied().unwrap_or_default();
                (name.clone(), wish.into_record(request))
            })
            .collect();
        Self {
            record,
            desired: desired.into(),
            records,
            askers: BTreeMap::new(),
            waiters: Vec::new(),
            service_waiters: Vec::new(),
            exit_waiters: Vec::new(),
            kept: None,
            watch: None,
        }
    }

    pub(super) fn goal(&self) -> Goal {
        let desired = Arc::clone(&self.desired);
        match self.record.wish {
            Wish::Up => Goal::Up(desired),
            Wish::Stop => Goal::Stop(desired),
            Wish::Down => Goal::Down(desired),
        }
    }

    /// Takes over a new request: an explicit one, which counts as the user asking for each service in it, but for
    /// those of `settled`, which have what they are asked for.
    pub(super) fn ask(
        &mut self,
        mut request: UpRequest,
        desired: Desired,
        settled: &BTreeSet<ServiceName>,
    ) {
        // It is about this request, and the record is about all that follow.
        let anew = std::mem::take(&mut request.recreate);
        for name in desired.services.keys() {
            if anew.iter().any(|one| name.as_str() == one) {
                self.want_anew(name);
            } else {
                self.want(name, settled, Asker::Up);
            }
        }
        self.record.request = request;
        self.record.wish = Wish::Up;
        self.note();
        self.desired = desired.into();
    }

    /// A project that nobody has asked for before.
    pub(super) fn asked(
        request: UpRequest,
        desired: Desired,
        settled: &BTreeSet<ServiceName>,
    ) -> Self {
        let record = ProjectRecord {
            request: request.clone(),
            wish: Wish::Up,
            requests: BTreeMap::new(),
            wishes: BTreeMap::new(),
            in_boot: BTreeMap::new(),
        };
        let mut project = Self::new(record, desired.clone());
        project.ask(request, desired, settled);
        project
    }

    /// Takes over a request that means `desired`. Services that it names join those of an earlier one of the same file.
    pub(super) fn join(
        &mut self,
        mut request: UpRequest,
        desired: Desired,
        settled: &BTreeSet<ServiceName>,
    ) -> Result<(), RequestError> {
        let earlier = &self.record.request;
        let goes_on = self.record.wish == Wish::Up && earlier.file == request.file;
        if !goes_on || request.services.is_empty() {
            self.ask(request, desired, settled);
            return Ok(());
        }
        // What is asked for now says for itself whether it starts alone.
        let others = earlier.independent.iter().filter(|name| !request.services.contains(name));
        request.independent.extend(others.cloned());
        request.services = if earlier.services.is_empty() {
            Vec::new()
        } else {
            earlier.services.iter().chain(&request.services).cloned().collect()
        };
        let all = parse(&request)?;
        self.ask(request, desired, settled);
        self.desired = all.into();
        Ok(())
    }

    /// Takes over a new text of the file, which asks for nothing to run again that has ended. Services that are new
    /// in it have not been asked for before, so they are now.
    pub(super) fn reread(&mut self, request: UpRequest, desired: Desired) {
        self.record.request = request;
        for name in desired.services.keys() {
            let record = self.records.entry(name.clone()).or_default();
            if record.request == 0 {
                record.request = 1;
            }
        }
        self.note();
        self.desired = desired.into();
    }
}

/// Where a project's record is.
pub(super) fn record_path(state_dir: &Path, project: &str) -> PathBuf {
    state_dir.join("services").join(project).join("project")
}

/// Makes the folder that a record is in.
pub(super) fn make_folder(record: &Path) -> Result<(), String> {
    let folder = record.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| format!("could not create `{}`: {error}", folder.display()))
}
