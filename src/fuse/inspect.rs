//! Looking at the connection of a run directory without starting or changing anything: for the doctor.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use super::channel::Channel;
use super::keeper_mount;
use super::options::{MOUNT, Side};
use super::protocol::{Answer, KEEPER_SOCKET, KeeperStatus, Request, hello};
use crate::sys::socket;
use crate::version::versions;

/// A keeper that lives answers at once: it never waits for content.
const PATIENCE: Duration = Duration::from_secs(3);

/// What there is of the lazy side of a run directory.
#[derive(Debug)]
pub enum Inspected {
    /// Nothing: no layer is mounted lazily.
    Nothing,
    /// A keeper that answers.
    Kept(KeeperStatus),
    /// A mount whose keeper does not answer: reads of what is not here yet may wait for ever.
    Orphaned {
        /// What connecting to the keeper said.
        reason: String,
    },
}

/// Looks at a connection of `run_dir`, which `instance` may have mounted. Call it on a Tokio runtime.
///
/// # Errors
/// When the mount table cannot be read.
pub async fn inspect(run_dir: &Path, instance: &str, side: Side) -> io::Result<Inspected> {
    let directory = run_dir.join(side.directory());
    let reason = match tokio::time::timeout(PATIENCE, ask(&directory)).await {
        Ok(Ok(status)) => return Ok(Inspected::Kept(status)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it does not answer".to_owned(),
    };
    let source = format!("supervisor-{instance}");
    let mounted = keeper_mount::minor(&directory.join(MOUNT), &source)?;
    Ok(if mounted.is_some() { Inspected::Orphaned { reason } } else { Inspected::Nothing })
}

async fn ask(directory: &Path) -> io::Result<KeeperStatus> {
    let directory = File::open(directory)?;
    let channel = Channel::new(socket::connect_now(directory.as_fd(), KEEPER_SOCKET)?)?;
    let unexpected = || io::Error::from(io::ErrorKind::InvalidData);
    channel.send(&hello(versions().build), &[]).await?;
    match channel.receive::<Answer>().await?.ok_or_else(unexpected)?.0 {
        Answer::Hello { .. } => {}
        _ => return Err(unexpected()),
    }
    channel.send(&Request::Status { after: 0 }, &[]).await?;
    match channel.receive::<Answer>().await?.ok_or_else(unexpected)?.0 {
        Answer::Keeper { status } => Ok(status),
        _ => Err(unexpected()),
    }
}
