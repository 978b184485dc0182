//! What the API and library users hold of control: requests in, answers and events out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use super::collect::Wanted;
use super::lazy_link::Users;
use super::report::{
    Event, ExecTarget, ExitReport, ImageReport, LogSource, MountableImage, PlanReport,
    PullProgress, ServiceReport, UpRequest,
};
use crate::container::Signal;

/// Requests that wait while one is handled; handling one takes microseconds, so this is a burst of callers.
pub(super) const REQUEST_QUEUE: usize = 64;

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// What kind of failure it is.
    pub kind: RequestErrorKind,
    /// What failed, the whole chain.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Kinds of [`RequestError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// It does not fit the present state.
    Conflict,
    /// It was tried and failed.
    Failed,
    /// The caller may not do it.
    Forbidden,
}

impl RequestError {
    /// An error without a hint.
    pub fn new(kind: RequestErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }
}

/// Which services are brought to an end, and how fast.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOptions {
    /// Only these; the whole project when empty.
    pub services: Vec<String>,
    /// From the stop signal to the kill; each service's own period when `None`, at once when zero.
    pub grace: Option<Duration>,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, RequestError>>;

/// One request to the driver.
#[derive(Debug)]
pub(super) enum Request {
    Up(Box<UpRequest>, Reply<()>),
    Services {
        project: Option<String>,
        reply: Reply<Vec<ServiceReport>>,
    },
    Projects {
        reply: Reply<Vec<String>>,
    },
    Stop {
        project: String,
        options: StopOptions,
        reply: Reply<Vec<String>>,
    },
    Down {
        project: String,
        options: StopOptions,
        reply: Reply<Vec<String>>,
    },
    Start {
        project: String,
        services: Vec<String>,
        reply: Reply<Vec<String>>,
    },
    Restart {
        project: String,
        options: StopOptions,
        reply: Reply<Vec<String>>,
    },
    Wait {
        project: String,
        services: Vec<String>,
        reply: Reply<mpsc::Receiver<ExitReport>>,
    },
    /// What `up` would do.
    Plan(Box<UpRequest>, Reply<PlanReport>),
    Inspect {
        project: Option<String>,
        names: Vec<String>,
        reply: Reply<Vec<serde_json::Value>>,
    },
    /// Containers that run.
    Running {
        project: Option<String>,
        services: Vec<String>,
        reply: Reply<Vec<super::usage::Running>>,
    },
    Kill {
        project: String,
        services: Vec<String>,
        signal: Signal,
        reply: Reply<Vec<String>>,
    },
    Run {
        request: Box<UpRequest>,
        service: String,
        options: Box<super::run_settings::RunOptions>,
        reply: Reply<String>,
    },
    RunEnd {
        project: String,
        container: String,
        reply: Reply<super::report::RunEnd>,
    },
    StopRun {
        project: String,
        container: String,
        reply: Reply<()>,
    },
    /// Named volumes of a project.
    Volumes {
        project: String,
        reply: Reply<Vec<String>>,
    },
    /// Those of some volumes that no project has.
    UnusedVolumes {
        volumes: Vec<String>,
        reply: Reply<Vec<String>>,
    },
    HostShutdown {
        reply: Reply<Vec<String>>,
    },
    HostResume {
        reply: Reply<()>,
    },
    Logs {
        project: String,
        services: Vec<String>,
        reply: Reply<Vec<LogSource>>,
    },
    Exec {
        project: String,
        service: String,
        reply: Reply<ExecTarget>,
    },
    Wanted {
        reply: Reply<bool>,
    },
    /// Whether anything runs, or may, that is not the project's.
    OthersRun {
        project: String,
        reply: Reply<bool>,
    },
    /// Services files are to be read now.
    Reload(Reply<()>),
    /// The images that services files name, each with one of the services.
    ImagesWanted {
        reply: Reply<Wanted>,
    },
    /// An image was pulled by name.
    ImagesChanged,
    /// Somebody is about to ask for something.
    Visit,
    Shutdown {
        reply: Reply<()>,
    },
}

/// A handle of a running control; cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) events: super::events::EventLog,
    pub(super) images: Arc<super::images::Images>,
    pub(super) instance: Arc<str>,
    /// Whether control was started for one command, and ends by itself.
    pub(super) on_demand: bool,
}

impl ControlHandle {
    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, RequestError> {
        let gone = || RequestError::new(RequestErrorKind::Failed, "control is shutting down");
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// The instance that this control is: eight hex digits of the digest of its run directory.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Makes a services file the desired state of its project. Returns when it is accepted, not when all runs.
    ///
    /// # Errors
    /// When the file is not valid or names no such service.
    pub async fn up(&self, request: UpRequest) -> Result<(), RequestError> {
        self.ask(|reply| Request::Up(Box::new(request), reply)).await
    }

    /// The services of one project, or of all.
    ///
    /// # Errors
    /// When the project does not exist.
    pub async fn services(
        &self,
        project: Option<String>,
    ) -> Result<Vec<ServiceReport>, RequestError> {
        self.ask(|reply| Request::Services { project, reply }).await
    }

    /// The names of all projects.
    ///
    /// # Errors
    /// While control shuts down.
    pub async fn projects(&self) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::Projects { reply }).await
    }

    /// Whether any project should run.
    ///
    /// # Errors
    /// While control shuts down.
    pub async fn wants_anything(&self) -> Result<bool, RequestError> {
        self.ask(|reply| Request::Wanted { reply }).await
    }

    /// Ends the connection of lazy layers if nobody serves it, or nothing but `project` uses it and reads wait: before
    /// containers that wait for it are killed, which they cannot be otherwise. Only what is provably ours is touched.
    ///
    /// # Errors
    /// When something of it cannot be ended.
    pub async fn free_lazy(&self, project: &str) -> Result<(), RequestError> {
        // Nobody is asked who may hang: that is what this is for.
        let project = project.to_owned();
        let others = self.ask(|reply| Request::OthersRun { project, reply }).await?;
        let users = Users::of(others, crate::rootfs::image_mounts(&self.instance));
        let freed = self.images.lazy.free(users).await;
        freed.map(drop).map_err(|message| RequestError::new(RequestErrorKind::Failed, message))
    }

    /// Where the output of a project's services is; of all services when none is named.
    ///
    /// # Errors
    /// When project or service do not exist.
    pub async fn logs(
        &self,
        project: String,
        services: Vec<String>,
    ) -> Result<Vec<LogSource>, RequestError> {
        self.ask(|reply| Request::Logs { project, services, reply }).await
    }

    /// The container in which a command of `service` would run.
    ///
    /// # Errors
    /// When the service does not exist or does not run.
    pub async fn exec_target(
        &self,
        project: String,
        service: String,
    ) -> Result<ExecTarget, RequestError> {
        self.ask(|reply| Request::Exec { project, service, reply }).await
    }

    /// Keeps a control that was started on demand alive for a while, for requests that follow.
    ///
    /// # Errors
    /// When it is ending already.
    pub async fn visit(&self) -> Result<(), RequestError> {
        let ending = |_| RequestError::new(RequestErrorKind::Failed, "control is shutting down");
        self.requests.send(Request::Visit).await.map_err(ending)
    }

    /// Brings an image here; progress goes to `progress`, which ends with `Done` or `Failed`.
    pub async fn pull(
        &self,
        image: String,
        extent: super::images::Extent,
        progress: mpsc::Sender<PullProgress>,
    ) {
        let _working = self.images.work();
        self.images.pull_reporting(&image, extent, progress).await;
        let _ = self.requests.send(Request::ImagesChanged).await;
    }

    /// The images that are here.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn images(&self) -> Result<Vec<ImageReport>, RequestError> {
        self.images.list().await
    }

    /// Makes the layers of an image ready to be mounted by the caller, bringing the image here if need be.
    ///
    /// # Errors
    /// When the image cannot be had.
    pub async fn mountable(
        &self,
        image: String,
        extent: super::images::Extent,
        target: std::path::PathBuf,
    ) -> Result<MountableImage, RequestError> {
        let _working = self.images.work();
        let mounted = self.images.mountable(&image, extent, &target).await;
        // What had to wait until it was mounted.
        let _ = self.requests.send(Request::Visit).await;
        mounted
    }

    /// Forgets a mount that the caller has undone.
    ///
    /// # Errors
    /// When it is not one of ours.
    pub async fn unmounted(&self, target: std::path::PathBuf) -> Result<(), RequestError> {
        self.images.unmounted(&target).await
    }

    /// Everything that happens from now on. A receiver that falls far behind loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What happened before, as far as it is kept, and everything from now on.
    #[must_use]
    pub fn history(&self) -> super::events::EventHistory {
        self.events.history()
    }

    /// Ends a control that was started for one command, for one that is meant to stay. What runs goes on.
    ///
    /// # Errors
    /// When it was not started so, or ends already.
    pub async fn make_way(&self) -> Result<(), RequestError> {
        if !self.on_demand {
            let message = "this supervisor was started to stay";
            return Err(RequestError::new(RequestErrorKind::Conflict, message));
        }
        self.shutdown().await
    }

    /// Ends control and leaves everything running.
    ///
    /// # Errors
    /// When it ends already.
    pub async fn shutdown(&self) -> Result<(), RequestError> {
        self.ask(|reply| Request::Shutdown { reply }).await
    }
}
