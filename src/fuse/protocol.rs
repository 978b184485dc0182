//! Messages on the sockets of keeper and worker: JSON, one per packet, with descriptors beside it.
//!
//! Both sides begin with a hello that names protocol and build. The protocol is additive: unknown fields are
//! ignored, an unknown request is answered with an error, and a keeper or worker of an older build goes on serving.

use serde::{Deserialize, Serialize};

use super::session::LayerMount;
use crate::image::Digest;
use crate::lazy::{Found, LazyEvent};
use crate::sys::process::ProcessIdentity;
use crate::version::versions;

/// The oldest version of this protocol that this build still speaks. The newest is in [`crate::version`]: 2 added
/// `ping`, `retry` and what a hello says of versions.
pub(super) const OLDEST: u32 = 1;
/// The keeper's socket below the lazy directory.
pub(super) const KEEPER_SOCKET: &str = "keeper.sock";
/// The worker's.
pub(super) const WORKER_SOCKET: &str = "worker.sock";
/// Layers in one status message; a message has a limit.
pub(super) const STATUS_PAGE: usize = 200;

/// What a client asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    /// First message of a connection.
    Hello {
        protocol: u32,
        build: String,
        /// The oldest protocol that the sender speaks.
        #[serde(default = "first_protocol")]
        oldest: u32,
    },
    /// Whether the threads that take requests from the kernel do (since 2; an older worker refuses, and so is alive).
    Ping,
    /// Start the worker now, whatever pause is running (since 2).
    Retry,
    /// How it goes; of the worker, the layers after a slot.
    Status {
        #[serde(default)]
        after: u32,
    },
    /// A copy of the connection's descriptor.
    Descriptor,
    /// From here on the connection carries events, until it is closed.
    Events,
    /// Mount a layer; a layout's blob comes as a descriptor. Idempotent.
    Mount { layer: LayerMount },
    /// Give up a layer's slot.
    Release { digest: Digest },
    /// Fetch what the layer marks as needed first; or, when there are paths, what it has of these (since 2).
    Prefetch {
        digest: Digest,
        #[serde(default)]
        paths: Vec<String>,
    },
    /// Of an image with these layers, the uppermost first, fetch what they mark as needed first; of those that mark
    /// nothing, the beginning of what is read first: of each list the first path that is a file.
    Begin { layers: Vec<Digest>, wanted: Vec<Vec<String>> },
    /// Fetch everything.
    Background { digest: Digest },
    /// Remove content of the cache that neither an open layer nor one of these has (an older worker refuses).
    Evict {
        keep: Vec<Digest>,
        /// Also keep the content of every layer in the state directory.
        #[serde(default)]
        stored: bool,
        /// Only as much as is needed for these (an older worker removes all of it).
        #[serde(default)]
        bytes: Option<u64>,
    },
    /// End the connection and everybody who serves it.
    Stop { how: Stop },
    /// Something newer than this build.
    #[serde(other)]
    Unknown,
}

/// How the connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// Only when no file on the mount is open.
    IfUnused,
    /// Also then: whatever waits for content gets an error at once.
    Force,
}

/// What it is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    Hello {
        protocol: u32,
        build: String,
        process: ProcessIdentity,
        #[serde(default = "first_protocol")]
        oldest: u32,
    },
    /// Answer to a ping.
    Alive {
        /// Requests that were taken from the kernel so far.
        taken: u64,
    },
    Done,
    Mounted {
        slot: u32,
        name: String,
    },
    Keeper {
        status: KeeperStatus,
    },
    /// Content was removed; nothing was even looked for while another process has the cache.
    Evicted {
        #[serde(default)]
        found: Option<Found>,
    },
    Worker {
        status: WorkerStatus,
        layers: Vec<LayerStatus>,
        more: bool,
    },
    Event {
        event: ConnectionEvent,
    },
    Failed {
        kind: FailureKind,
        message: String,
    },
    #[serde(other)]
    Unknown,
}

/// Why a request failed, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// Files on the mount are open.
    Busy,
    /// There is no such layer.
    NotMounted,
    /// The layer's index cannot be used.
    Index,
    /// The connection's state cannot record it.
    Session,
    /// The layer has extended attributes, and the connection answers for none.
    Xattrs,
    /// The other side is older than the request.
    Unsupported,
    /// The two builds have no protocol in common.
    Version,
    /// Anything else, in the message.
    #[serde(other)]
    Other,
}

/// What a starting keeper tells control.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(super) enum Report {
    /// Layers can be mounted.
    Started,
    /// Another keeper serves this run directory.
    Locked,
    /// It gave up.
    Failed { step: FailedStep, message: String },
}

/// Where a keeper gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailedStep {
    Device,
    Mount,
    Worker,
    Keeper,
}

/// What a worker tells its keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "leash", rename_all = "snake_case")]
pub(super) enum Leash {
    /// It could serve, and waits for the place of the worker before it.
    Standby,
    /// It serves.
    Ready,
    /// It cannot.
    Failed { message: String },
}

/// The keeper, and what it knows of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperStatus {
    /// The keeper.
    pub process: ProcessIdentity,
    /// The worker.
    pub worker: WorkerState,
    /// How often a worker was started again.
    pub restarts: u64,
    /// Minor device number of the mount, which is the connection's number in fusectl.
    pub connection: u32,
    /// Tells this connection apart from every other of the run directory. A container that was started on another
    /// one has lost its lazy layers.
    #[serde(default)]
    pub generation: u64,
    /// Build of the keeper.
    #[serde(default)]
    pub build: String,
    /// Build of the worker, when it is known.
    #[serde(default)]
    pub worker_build: Option<String>,
    /// Why the worker is one of another build.
    #[serde(default)]
    pub worker_kept: Option<String>,
}

/// What the worker does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum WorkerState {
    /// It is starting; reads wait.
    Starting,
    /// It serves.
    Running {
        /// The worker.
        process: ProcessIdentity,
    },
    /// It could not be started several times in a row; it is tried again with pauses, and reads wait meanwhile.
    Failing {
        /// Failures in a row.
        attempts: u32,
        /// The last one.
        reason: String,
    },
}

/// What the worker tells about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// The worker.
    pub process: ProcessIdentity,
    /// Whether the next worker gets the requests that this one leaves unanswered.
    pub resend: bool,
    /// Whether complete files are opened in passthrough mode.
    pub passthrough: bool,
    /// Files that are open on the mount.
    pub open_files: u64,
    /// What of its confinement this host does not have, in words.
    pub gaps: Vec<String>,
}

/// A mounted layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Its slot.
    pub slot: u32,
    /// Digest of its blob.
    pub digest: Digest,
    /// Name of its directory below the mount.
    pub name: String,
    /// Bytes of its contents that are in the cache.
    pub local_bytes: u64,
    /// Bytes of its contents.
    pub total_bytes: u64,
    /// Whether everything is in the cache.
    pub is_complete: bool,
    /// Whether a prefetch runs.
    #[serde(default)]
    pub is_prefetching: bool,
    /// Why the layer cannot be served, if it cannot; reads of it fail.
    pub error: Option<String>,
}

/// What happens on a connection: data for the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// A worker serves.
    WorkerStarted {
        /// How often one was started again.
        restarts: u64,
    },
    /// The worker ended; the next one is being started and gets what it left unanswered.
    WorkerEnded {
        /// How.
        reason: String,
    },
    /// The worker could not be started several times in a row. Reads wait.
    WorkerFailing {
        /// Failures in a row.
        attempts: u32,
        /// The last one.
        reason: String,
    },
    /// A worker of another build goes on, because this build's cannot take its place.
    WorkerKept {
        /// Why not.
        reason: String,
    },
    /// The connection is gone and another was made: mounts above the old one answer with errors, and containers on
    /// them must be started again.
    ConnectionLost {
        /// Why it could not be kept.
        reason: String,
    },
    /// The keeper ended and another took its place.
    KeeperReplaced,
    /// The keeper ended and no other could be started yet.
    KeeperFailing {
        /// The last reason.
        reason: String,
    },
    /// The kernel refuses passthrough; files are read through the worker, which is slower.
    PassthroughLost {
        /// What the kernel said.
        reason: String,
    },
    /// A layer of the connection cannot be served.
    LayerBroken {
        /// The layer.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// Something about the content of a layer.
    Content {
        /// What.
        content: LazyEvent,
    },
    /// Something newer than this build.
    #[serde(other)]
    Unknown,
}

/// The bytes of a message.
pub(super) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are plain data")
}

/// The message in a packet, if it is one.
pub(super) fn decode<T: for<'de> Deserialize<'de>>(packet: &[u8]) -> Option<T> {
    serde_json::from_slice(packet).ok()
}

fn first_protocol() -> u32 {
    1
}

/// The hello of `build`.
pub(super) fn hello(build: &str) -> Request {
    Request::Hello { protocol: versions().lazy, build: build.to_owned(), oldest: OLDEST }
}

/// The answer of `process` to the hello of a client, or why the two cannot talk.
pub(super) fn hello_answer(
    process: &ProcessIdentity,
    build: &str,
    (protocol, oldest): (u32, u32),
) -> Answer {
    match check_versions(protocol, oldest) {
        Ok(()) => Answer::Hello {
            protocol: versions().lazy,
            build: build.to_owned(),
            process: process.clone(),
            oldest: OLDEST,
        },
        Err(message) => Answer::Failed { kind: FailureKind::Version, message },
    }
}

/// Whether there is a protocol that this build and the other side speak; the error says which are spoken.
pub(super) fn check_versions(protocol: u32, oldest: u32) -> Result<(), String> {
    if protocol < OLDEST {
        return Err(format!(
            "the other side speaks protocol {protocol}, this build at least {OLDEST}: it is too old"
        ));
    }
    let newest = versions().lazy;
    if oldest > newest {
        return Err(format!(
            "the other side speaks protocol {oldest} and newer, this build up to {newest}: this build is too old"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_build_says_is_no_error() {
        assert!(matches!(decode(br#"{"op":"dance","x":1}"#), Some(Request::Unknown)));
        assert!(matches!(decode(br#"{"answer":"danced"}"#), Some(Answer::Unknown)));
        assert!(matches!(
            decode(br#"{"op":"hello","protocol":9,"build":"9","more":[]}"#),
            Some(Request::Hello { protocol: 9, oldest: 1, .. })
        ));
    }

    #[test]
    fn builds_without_a_common_protocol_say_which_they_speak() {
        assert_eq!(check_versions(versions().lazy, OLDEST), Ok(()));
        assert_eq!(
            check_versions(versions().lazy + 5, versions().lazy),
            Ok(()),
            "a newer build that is additive"
        );
        assert!(check_versions(OLDEST - 1, 0).unwrap_err().contains("too old"));
        let newer = check_versions(versions().lazy + 5, versions().lazy + 1).unwrap_err();
        assert!(newer.contains("this build is too old"), "{newer}");
    }
}
