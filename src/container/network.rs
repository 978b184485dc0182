//! Connecting a container that starts to its networks: in the child that starts it, so that it needs nobody else.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::start::StartError;
use super::{Launch, LaunchProblem};
use crate::network::names::{NamesClient, open_entry};
use crate::network::{Attachment, Owner, link};
use crate::sys::process::ProcessIdentity;
use crate::sys::{child, netns};

/// The interfaces of a container with a network of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Whose bridges they are.
    pub instance: String,
    /// One for each network.
    pub attachments: Vec<Attachment>,
    /// Folder of the socket of the resolver, if it has one.
    #[serde(default)]
    pub resolver: Option<PathBuf>,
}

/// Whose network a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The host's.
    Host,
    /// Its own, with nothing but a loopback interface.
    None,
    /// That of a process; a start fails when it has ended.
    Of(ProcessIdentity),
    /// An existing network namespace, by path; it is set up before the launch.
    Namespace(PathBuf),
    /// Its own, connected to bridges when the container starts.
    Attached(Attached),
    /// One that a newer program knows.
    #[serde(untagged)]
    Other(serde_json::Value),
}

/// The network namespace that is made for a container; `None` when it has one of others.
pub(super) fn make(launch: &Launch) -> Result<Option<OwnedFd>, StartError> {
    match &launch.network {
        Network::None => child::make_loopback_network().map_err(StartError::Network).map(Some),
        Network::Attached(attached) => connect(launch, attached).map(Some),
        Network::Of(process) => of(process).map_err(StartError::Shared).map(Some),
        Network::Host | Network::Namespace(_) => Ok(None),
        Network::Other(_) => Err(StartError::Network(io::Error::other(LaunchProblem::Newer))),
    }
}

/// The network namespace of `process`. Its number may be another's before the namespace is opened, so it is looked at
/// again after: who lives then had the number all the time.
fn of(process: &ProcessIdentity) -> io::Result<OwnedFd> {
    let namespace = netns::of_process(process.pid)?;
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the process has ended");
    process.open().map(|_| namespace).ok_or_else(gone)
}

/// A network namespace with the interfaces of `attached`. It ends with the container's last process, and its
/// interfaces with it.
fn connect(launch: &Launch, attached: &Attached) -> Result<OwnedFd, StartError> {
    let owner = Owner::new(&attached.instance)?;
    let namespace = netns::make().map_err(StartError::Network)?;
    link::attach(&owner, namespace.as_fd(), &attached.attachments).map_err(StartError::Attach)?;
    if let Some(resolver) = &attached.resolver {
        let entry = open_entry(namespace.as_fd()).map_err(StartError::Resolver)?;
        let handed = NamesClient::connect(resolver)
            .and_then(|client| client.adopt(launch.id.as_str(), &entry));
        if let Err(error) = handed {
            // Control starts it again and hands it every container's sockets; a start need not fail for that.
            let error = crate::telemetry::Chain(&error).to_string();
            tracing::warn!(error, "the container starts without a resolver");
        }
    }
    Ok(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_of_a_process_that_has_ended_is_not_joined() {
        let here = ProcessIdentity::current().unwrap();
        assert!(of(&here).is_ok());
        // Its number is another's now.
        let gone = ProcessIdentity { start_time: here.start_time + 1, ..here };
        assert_eq!(of(&gone).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
