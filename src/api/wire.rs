//! What travels over the API socket besides the reports of [`crate::supervise::report`]. Fields are only added.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of the API, raised when something is added that a caller may need, removed, or changes its meaning. Fields
/// that are added with a default need no new one.
pub const API_VERSION: u32 = 1;

/// The oldest version that this program still speaks, as a caller and as the one who is called.
pub const OLDEST_API_VERSION: u32 = 1;

/// Request header with the caller's [`API_VERSION`]; a caller without it is taken as it is.
pub const API_HEADER: &str = "supervisor-api";

/// Request header with the version of the caller's program.
pub const VERSION_HEADER: &str = "supervisor-version";

/// Name of the socket in the run directory.
pub const SOCKET_NAME: &str = "api.sock";

/// The answer to `GET /hello`, the one path without a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`API_VERSION`] of control.
    pub api: u32,
    /// [`OLDEST_API_VERSION`] of control; 0 when it did not say, which means no older one than `api`.
    #[serde(default)]
    pub oldest_api: u32,
    /// Version of its program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Its instance.
    pub instance: String,
    /// Its state directory.
    pub state_dir: PathBuf,
}

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What failed, the whole chain.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What kind of failure it is.
    #[serde(default)]
    pub kind: ErrorKind,
}

/// Kinds of [`WireError`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
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
    /// There is no such call in this version.
    UnknownCall,
    /// The caller is too old.
    Version,
    /// One that this program does not know.
    #[default]
    #[serde(other)]
    Other,
}

/// `?project=`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectQuery {
    /// Only this project.
    pub project: Option<String>,
}

/// `POST …/stop`, `…/down` and `…/restart`. The answer is the containers' names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    /// At once instead of with the grace period.
    #[serde(default)]
    pub kill: bool,
    /// Also end the connection of lazy layers, where nobody serves it or nothing else uses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Only these services; the whole project when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Seconds from the stop signal to the kill; each service's own grace period when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// `POST …/kill`. The answer is the names of the containers that were told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillRequest {
    /// Only these services; all that run when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Which signal, by name or number. SIGKILL is a stop without a grace period.
    pub signal: String,
}

/// `POST …/down-with-volumes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownRequest {
    /// How the project ends; of all of its services.
    #[serde(flatten)]
    pub stop: StopRequest,
    /// Volumes by their names on this host, beside those of the project as it was brought up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

/// The answer to that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownAnswer {
    /// Containers that are gone.
    pub containers: Vec<String>,
    /// Volumes that are gone.
    pub volumes: Vec<String>,
}

/// `POST …/run`. The answer is the container's name, when it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The files that describe the service.
    pub up: crate::supervise::report::UpRequest,
    /// Like which service it is.
    pub service: String,
    /// What runs; the service's own when absent.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// What runs it.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, or `NAME` for none.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Volumes beside the service's, as in a file.
    #[serde(default)]
    pub volumes: Vec<String>,
    /// User.
    #[serde(default)]
    pub user: Option<String>,
    /// Working directory.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Name of the container.
    #[serde(default)]
    pub name: Option<String>,
    /// Publish the service's ports.
    #[serde(default)]
    pub ports: bool,
    /// Remove the container when it has ended.
    #[serde(default)]
    pub remove: bool,
    /// Descriptors of the caller's process that it gets; a log of its own when absent.
    #[serde(default)]
    pub streams: Option<RunStreams>,
    /// Tells this run from every other. Who lost the connection asks with the same one again, and it runs once.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// Standard streams of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStreams {
    /// Numbers of standard input, output and error.
    pub numbers: [i32; 3],
    /// They are a terminal that was made for this.
    #[serde(default)]
    pub terminal: bool,
}

/// `POST …/start`. The answer is the containers' names, when they have been started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    /// Only these services; the whole project when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}

/// `GET /v1/inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectQuery {
    /// Only of this project.
    #[serde(default)]
    pub project: Option<String>,
    /// Services or containers, separated by commas; all when empty.
    #[serde(default)]
    pub names: String,
}

/// `GET …/wait`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesQuery {
    /// Which services, separated by commas; all when empty.
    #[serde(default)]
    pub services: String,
}

/// `POST /v1/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    /// Which image.
    pub image: String,
    /// All layers unpacked, not only index and prefetch.
    #[serde(default)]
    pub full: bool,
    /// All content of lazy layers too; they stay lazy.
    #[serde(default)]
    pub complete: bool,
}

/// `POST /v1/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneRequest {
    /// Tell what would go, and remove nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Also images that nothing uses, and content of lazy layers that nothing uses at present.
    #[serde(default)]
    pub all: bool,
}

/// `DELETE /v1/images` and `POST /v1/images/pin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequest {
    /// Which image.
    pub image: String,
    /// Whether it is to be kept; unused when it is removed.
    #[serde(default)]
    pub pin: bool,
}

/// The answer to a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinAnswer {
    /// False when it was so already.
    pub changed: bool,
}

/// `POST /v1/mounts` and `DELETE /v1/mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// Which image; unused when a mount is undone.
    #[serde(default)]
    pub image: String,
    /// Unpack all content first.
    #[serde(default)]
    pub full: bool,
    /// Where the caller mounts it.
    pub target: PathBuf,
}

/// `GET /v1/logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsQuery {
    /// Which project.
    pub project: String,
    /// Which services, separated by commas; all when empty.
    #[serde(default)]
    pub services: String,
    /// Go on as lines arrive, also of services that start later.
    #[serde(default)]
    pub follow: bool,
    /// Lines from the end of each; all when absent.
    #[serde(default)]
    pub tail: Option<usize>,
    /// Only lines of this moment or later.
    #[serde(default)]
    pub since: Option<jiff::Timestamp>,
    /// Only lines before this moment.
    #[serde(default)]
    pub until: Option<jiff::Timestamp>,
}

/// `GET /v1/events`: what is kept, if any of the limits is given or nothing is followed; then what happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsQuery {
    /// Only events of this project and of the host.
    #[serde(default)]
    pub project: Option<String>,
    /// Only events of these services, separated by commas; all when empty.
    #[serde(default)]
    pub services: String,
    /// Only events of this moment or later.
    #[serde(default)]
    pub since: Option<jiff::Timestamp>,
    /// Only events up to this moment; the answer ends then.
    #[serde(default)]
    pub until: Option<jiff::Timestamp>,
    /// Only events after the one with this number.
    #[serde(default)]
    pub after: Option<u64>,
    /// Go on as things happen.
    #[serde(default = "yes")]
    pub follow: bool,
}

impl Default for EventsQuery {
    fn default() -> Self {
        Self {
            project: None,
            services: String::new(),
            since: None,
            until: None,
            after: None,
            follow: true,
        }
    }
}

fn yes() -> bool {
    true
}

/// The names of a list that is separated by commas.
pub(super) fn names(list: &str) -> Vec<String> {
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Container that wrote it.
    pub container: String,
    /// Its service.
    pub service: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was read.
    pub time: jiff::Timestamp,
    /// Without its newline.
    pub text: String,
    /// The next line of this stream goes on where this one ends: it was too long for one entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// `POST /v1/exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Which project.
    pub project: String,
    /// Which service.
    pub service: String,
}
