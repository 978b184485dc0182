//! The library's front: control in the process of a program that embeds it.
//!
//! [`Supervisor`] is control for one state directory and one run directory, from [`Supervisor::builder`] to
//! [`Supervisor::stop_leaving_running`]. What it does it does through [`ControlHandle`], as the command line's own
//! control; nothing here decides anything.

mod exec;
mod services;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use exec::{ExecFailed, ExecOutput};
pub use services::Services;

use crate::api::{self, ServeError, ServeOptions};
use crate::container::ExecRequest;
use crate::registry::ClientOptions;
use crate::supervise::report::{Event, ServiceReport, Standing};
use crate::supervise::{
    Control, ControlError, ControlHandle, ControlOptions, LogTail, RequestError, StopOptions,
    StreamedLine,
};

/// Lines of output that wait for a slow reader; the task that reads them from the disk then waits, and nothing else.
const LINE_QUEUE: usize = 256;
/// Not everything that `status` shows is an event, so it is looked at this often while something is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Whether the command line can be used with an embedded control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiSocket {
    /// The API is served at `api.sock` in the run directory: `supervisor ps --run-dir …` works.
    Served,
    /// This process alone uses control.
    Absent,
}

/// Settings of a [`Supervisor`].
#[derive(Debug, Clone)]
pub struct Builder {
    options: ControlOptions,
    api: ApiSocket,
    socket_group: Option<u32>,
}

/// A supervisor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The other processes are this program again, and it would not know that it is one of them.
    #[error("`supervisor::run_if_role()` was not called at the top of this program's `main`")]
    HookMissing,
    /// Control could not start.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The API socket could not be made.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Services did not come to run.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The project is not known, or control ends.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// They will not without a change.
    #[error("services of `{project}` failed: {}", words(services))]
    Failed {
        /// Which project.
        project: String,
        /// Status of each service that failed, by name.
        services: BTreeMap<String, String>,
    },
    /// They may still, later.
    #[error("services of `{project}` do not run yet: {}", words(services))]
    TimedOut {
        /// Which project.
        project: String,
        /// Status of each service that does not run, by name.
        services: BTreeMap<String, String>,
    },
}

fn words(services: &BTreeMap<String, String>) -> String {
    let each: Vec<String> =
        services.iter().map(|(name, status)| format!("`{name}`: {status}")).collect();
    each.join("; ")
}

/// Status of the services that may still come to run, and of those that failed, by name.
fn not_up(reports: Vec<ServiceReport>) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let (mut rest, mut failed) = (BTreeMap::new(), BTreeMap::new());
    for report in reports {
        let group = match report.standing {
            Standing::Up | Standing::Done => continue,
            Standing::Failed => &mut failed,
            Standing::Coming | Standing::Stopped => &mut rest,
        };
        group.insert(report.service, report.status);
    }
    (rest, failed)
}

impl Builder {
    /// How registries are reached: credentials, mirrors, proxies, certificates.
    #[must_use]
    pub fn registry(mut self, registry: ClientOptions) -> Self {
        self.options.registry = registry;
        self
    }

    /// Log directives of the other processes, such as `info` or `warn,supervisor::fuse=debug`; default `warn`. Their
    /// logs are in the run directory. What this process logs is up to its own `tracing` subscriber.
    #[must_use]
    pub fn log_level(mut self, directives: impl Into<String>) -> Self {
        self.options.log_level = directives.into();
        self
    }

    /// Whether the command line can be used beside this process; by default it can.
    #[must_use]
    pub fn api(mut self, api: ApiSocket) -> Self {
        self.api = api;
        self
    }

    /// Members of this group may use the socket of the API too; by default only root may. They can become root by it:
    /// a service may have any folder of the host as a volume.
    #[must_use]
    pub fn socket_group(mut self, group: Option<u32>) -> Self {
        self.socket_group = group;
        self
    }

    /// Starts control in this process and takes over what runs already below the run directory. Must be called in a
    /// Tokio runtime, with several threads or only for this.
    ///
    /// # Errors
    /// When the hook is missing, another control uses one of the directories, or they cannot be used.
    pub fn start(self) -> Result<Supervisor, StartError> {
        if !crate::role::is_hooked() {
            return Err(StartError::HookMissing);
        }
        let Self { options, api, socket_group: group } = self;
        let (state_dir, run_dir) = (options.state_dir.clone(), options.run_dir.clone());
        let losses = options.features.losses().map(|(_, message)| message).collect();
        let control = Control::start(options)?;
        let serving = match api {
            ApiSocket::Absent => None,
            ApiSocket::Served => {
                let options = ServeOptions { run_dir: run_dir.clone(), state_dir, group };
                let serving = api::serve(control.handle(), options, control.ended())?;
                Some(tokio::spawn(serving))
            }
        };
        Ok(Supervisor { control, serving, run_dir, losses })
    }
}

/// Control in this process. Dropping it, or the death of the process, ends no container: the next start with the same
/// directories takes over what runs.
#[derive(Debug)]
pub struct Supervisor {
    control: Control,
    serving: Option<JoinHandle<()>>,
    run_dir: PathBuf,
    losses: Vec<String>,
}

impl Supervisor {
    /// Settings for control with these directories: `state_dir` for what lasts (images, writable layers, logs,
    /// records), `run_dir`, best on a tmpfs, for sockets and mounts. Use absolute paths. Two programs with different
    /// directories do not disturb each other.
    #[must_use]
    pub fn builder(state_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Builder {
        Self::from_options(ControlOptions::new(state_dir.into(), run_dir.into()))
    }

    /// The same with every setting of control.
    #[must_use]
    pub fn from_options(options: ControlOptions) -> Builder {
        Builder { options, api: ApiSocket::Served, socket_group: None }
    }

    /// Makes `services` the desired state of its project and returns when it is accepted, not when all runs. Services
    /// that did not change go on undisturbed; those that the text no longer has are stopped and removed.
    ///
    /// # Errors
    /// When the text is not valid; the message has every problem with line and column, and nothing changes.
    pub async fn apply(&self, services: Services) -> Result<(), RequestError> {
        self.control.handle().up(services.into_request()).await
    }

    /// Waits until every service of a project runs or has ended with code 0.
    ///
    /// # Errors
    /// When one fails, or ends with another code and is not started again, or `limit` passes; the services go on being tried either way.
    pub async fn wait_until_running(
        &self,
        project: &str,
        limit: Duration,
    ) -> Result<(), WaitError> {
        // A timer and no moment: it takes any duration.
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let mut events = self.events();
        loop {
            let (rest, failed) = not_up(self.project_status(project).await?);
            let project = project.to_owned();
            if !failed.is_empty() {
                return Err(WaitError::Failed { project, services: failed });
            }
            if rest.is_empty() {
                return Ok(());
            }
            tokio::select! {
                // Cancel-safe: an event that is missed here shows in the next look.
                _ = events.next() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = &mut deadline => {
                    return Err(WaitError::TimedOut { project, services: rest });
                }
            }
        }
    }

    /// Every service of every project.
    ///
    /// # Errors
    /// While control ends.
    pub async fn status(&self) -> Result<Vec<ServiceReport>, RequestError> {
        self.control.handle().services(None).await
    }

    /// The services of one project.
    ///
    /// # Errors
    /// When it is not known.
    pub async fn project_status(&self, project: &str) -> Result<Vec<ServiceReport>, RequestError> {
        self.control.handle().services(Some(project.to_owned())).await
    }

    /// The names of the projects, also of those that an earlier process applied.
    ///
    /// # Errors
    /// While control ends.
    pub async fn projects(&self) -> Result<Vec<String>, RequestError> {
        self.control.handle().projects().await
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events { receiver: self.control.handle().events(), ended: self.control.ended() }
    }

    /// The output of some services of a project, of all when none is named.
    ///
    /// # Errors
    /// When project or service are not known.
    pub async fn logs(
        &self,
        project: &str,
        services: &[&str],
        tail: LogTail,
    ) -> Result<Logs, RequestError> {
        let (sender, lines) = mpsc::channel(LINE_QUEUE);
        let services = services.iter().map(|&name| name.to_owned()).collect();
        let project = project.to_owned();
        crate::supervise::read_logs(self.control.handle(), project, services, tail, sender).await?;
        Ok(Logs(lines))
    }

    /// Runs a program in the container of a service, without input, and waits for its end.
    ///
    /// # Errors
    /// When the service does not run, or the program cannot be started.
    pub async fn exec(
        &self,
        project: &str,
        service: &str,
        request: ExecRequest,
    ) -> Result<ExecOutput, ExecFailed> {
        let target =
            self.control.handle().exec_target(project.to_owned(), service.to_owned()).await?;
        exec::run(self.run_dir.clone(), &target.container, request).await
    }

    /// Stops the services of a project, which stay stopped until the next `apply`, also across a restart of the host;
    /// returns the names of their containers when they have. Single services, and other periods of grace, are to be
    /// had from [`Supervisor::control`].
    ///
    /// # Errors
    /// When it is not known, or a service cannot be stopped.
    pub async fn stop(&self, project: &str) -> Result<Vec<String>, RequestError> {
        self.control.handle().stop(project.to_owned(), StopOptions::default()).await
    }

    /// Stops and removes all of a project except its images, and returns the names of the containers that are gone.
    ///
    /// # Errors
    /// When it is not known, or something cannot be removed.
    pub async fn down(&self, project: &str) -> Result<Vec<String>, RequestError> {
        self.control.handle().down(project.to_owned(), StopOptions::default()).await
    }

    /// Waits until control has ended, whoever ends it.
    pub async fn wait(self) {
        self.control.wait().await;
        if let Some(serving) = self.serving {
            let _ = serving.await;
        }
    }

    /// What is not wrapped here: pulls, images, mounts.
    #[must_use]
    pub fn control(&self) -> ControlHandle {
        self.control.handle()
    }

    /// What this host lacks and what that costs, in sentences.
    #[must_use]
    pub fn losses(&self) -> &[String] {
        &self.losses
    }

    /// The run directory, as it was given.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Cancelled when control ends, whoever ended it.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.control.ended()
    }

    /// Ends control and leaves everything running; the next start with the same directories takes it over.
    pub async fn stop_leaving_running(self) {
        self.control.stop().await;
        if let Some(serving) = self.serving {
            let _ = serving.await;
        }
    }
}

/// What happens, as it happens.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    ended: CancellationToken,
}

impl Events {
    /// The next event; `None` when control has ended. A reader that is far behind loses the oldest.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let received = tokio::select! {
                biased;
                // Cancel-safe: receiving takes an event or none.
                received = self.receiver.recv() => received,
                // Not left to the closing of the channel, which every handle keeps open.
                () = self.ended.cancelled() => return None,
            };
            match received {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    tracing::debug!(lost, "a reader of events is too slow");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Lines of output, oldest first.
#[derive(Debug)]
pub struct Logs(mpsc::Receiver<StreamedLine>);

impl Logs {
    /// The next line; `None` at the end, which does not come while lines are followed.
    pub async fn next(&mut self) -> Option<StreamedLine> {
        self.0.recv().await
    }
}
