//! What a handle asks of services: their ends, their starts, how they end, all that is known of them.

use tokio::sync::mpsc;

use super::handle::{ControlHandle, Request, RequestError, StopOptions};
use super::report::{ExitReport, PlanReport, UpRequest};
use crate::container::Signal;

impl ControlHandle {
    /// Stops services and keeps their containers, until somebody asks for a start: also across a restart of control
    /// or of the host. Returns the names of the containers when they have stopped.
    ///
    /// # Errors
    /// When the project or a service does not exist, or a container could not be stopped (it is tried again).
    pub async fn stop(
        &self,
        project: String,
        options: StopOptions,
    ) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::Stop { project, options, reply }).await
    }

    /// Stops and removes a project, or some of its services; images stay. Returns the names of the containers that
    /// are gone.
    ///
    /// # Errors
    /// As [`Self::stop`].
    pub async fn down(
        &self,
        project: String,
        options: StopOptions,
    ) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::Down { project, options, reply }).await
    }

    /// Starts services that do not run, all of the project when none is named. Returns the names of their containers
    /// when each has been started. To stop waiting, drop the future; what was asked for holds.
    ///
    /// # Errors
    /// When the project or a service does not exist, or a service could not be started (it is tried again).
    pub async fn start(
        &self,
        project: String,
        services: Vec<String>,
    ) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::Start { project, services, reply }).await
    }

    /// Stops services and starts them in the same containers, also those that did not run. Returns as
    /// [`Self::start`]; control completes it whatever happens to this one.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(
        &self,
        project: String,
        options: StopOptions,
    ) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::Restart { project, options, reply }).await
    }

    /// Sends a signal to the first processes of services that run, of all of the project when none is named. SIGKILL
    /// is as [`Self::stop`] without a grace period; what follows from another one is for the program and its restart
    /// policy. Returns the names of the containers.
    ///
    /// # Errors
    /// When the project or a service does not exist, or a service that is named does not run.
    pub async fn kill(
        &self,
        project: String,
        services: Vec<String>,
        signal: Signal,
    ) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::Kill { project, services, signal, reply }).await
    }

    /// How the containers of services end, one by one; the list ends when all have, or when one that has not ended
    /// is no longer there. One that does not run counts as ended.
    ///
    /// # Errors
    /// When the project or a service does not exist.
    pub async fn wait(
        &self,
        project: String,
        services: Vec<String>,
    ) -> Result<mpsc::Receiver<ExitReport>, RequestError> {
        self.ask(|reply| Request::Wait { project, services, reply }).await
    }

    /// Everything that is known of services, by their names or their containers'; of all when none is named. The
    /// fields are those of [`ServiceReport`](super::report::ServiceReport) and more; they may grow.
    ///
    /// # Errors
    /// When the project, a service or a container does not exist.
    pub async fn inspect(
        &self,
        project: Option<String>,
        names: Vec<String>,
    ) -> Result<Vec<serde_json::Value>, RequestError> {
        self.ask(|reply| Request::Inspect { project, names, reply }).await
    }

    /// What [`Self::up`] with this request would do. Nothing is changed by asking.
    ///
    /// # Errors
    /// Those of [`Self::up`].
    pub async fn plan(&self, request: UpRequest) -> Result<PlanReport, RequestError> {
        self.ask(|reply| Request::Plan(Box::new(request), reply)).await
    }

    /// Stops everything because the host goes down, in reverse order, and starts nothing any more. Nobody's wishes
    /// are changed: the next control starts what should run. Returns the names of the containers that were stopped.
    ///
    /// # Errors
    /// While control shuts down.
    pub async fn host_shutdown(&self) -> Result<Vec<String>, RequestError> {
        self.ask(|reply| Request::HostShutdown { reply }).await
    }

    /// The host does not go down after all: what [`Self::host_shutdown`] stopped runs again.
    ///
    /// # Errors
    /// While control shuts down.
    pub async fn host_resume(&self) -> Result<(), RequestError> {
        self.ask(|reply| Request::HostResume { reply }).await
    }
}
