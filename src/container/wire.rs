//! What travels over a monitor's socket: one JSON object a packet, descriptors beside it.
//!
//! The client speaks first ([`Request::Hello`]). The protocol is additive: an unknown request is refused by name, an
//! unknown field is ignored, and control speaks to every monitor since version 1.

use serde::{Deserialize, Serialize};

use super::{ContainerId, Signal, Status};
use crate::version::versions;

/// The oldest protocol that is understood; there is none before the first.
pub(crate) const OLDEST_PROTOCOL: u32 = 1;

/// The first packet of a client.
pub(crate) fn hello() -> Request {
    Request::Hello { version: versions().monitor }
}

/// The number that the first connection of a monitor has when control starts it.
pub(crate) const CONNECTION_DESCRIPTOR: i32 = 3;

/// The number that a pidfd of the container's first process has, when whoever starts a monitor to adopt it has one.
pub(crate) const PROCESS_DESCRIPTOR: i32 = 4;

/// From a client to a monitor. Each is answered by one [`Message`], in order, besides the pushed statuses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub(crate) enum Request {
    /// First: what the client speaks.
    Hello { version: u32 },
    /// The status now.
    Status,
    /// The status now and after every change.
    Watch,
    /// End it: the signal now, everything killed after the grace time. Asking again may only shorten it.
    Stop { signal: Option<Signal>, grace_ms: Option<u64> },
    /// Send a signal to its first process.
    Signal { signal: Signal },
    /// Run a program in it. Three descriptors come along (standard input, output, error) unless it has a terminal.
    Exec { exec: super::ExecRequest },
}

/// From a monitor to a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub(crate) enum Message {
    /// Answer to a hello.
    Hello { version: u32, id: ContainerId, software: String },
    /// Answer to `status` and `watch`, then pushed.
    Status { status: Box<Status> },
    /// The request is accepted.
    Done,
    /// The request is not.
    Refused { reason: String },
    /// The program of an exec runs; its pidfd comes along, and the terminal's master where it has one.
    ExecStarted { pid: i32 },
    /// The program of an exec could not be run.
    ExecFailed { reason: String, code: i32 },
    /// The program of an exec has ended.
    ExecEnded { code: i32 },
}
