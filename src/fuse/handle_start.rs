//! Control finds the keeper of its run directory, or starts one; the control group of both goes when they are gone.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::channel::Channel;
use super::handle::{RETRY, Shared};
use super::handle_error::LazyUnavailable;
use super::keeper::{REPORT_FD, STORED_FD};
use super::keeper_worker::open_log;
use super::options::{Place, RoleConfig};
use super::protocol::{FailedStep, KEEPER_SOCKET, Report, encode};
use super::watch;
use crate::role::ROLE_ARGUMENT;
use crate::sys::process::{ProcessIdentity, RoleChild, RoleCommand};
use crate::sys::{cgroup, socket};

/// So many keepers that die before they report are no accident.
const WORDLESS_ENDS: u32 = 3;
/// How long the control group of processes that have ended may stay.
const CGROUP_PATIENCE: Duration = Duration::from_secs(3);

impl Shared {
    /// Finds the keeper or starts one. One of another build is succeeded by one of ours.
    pub(super) async fn find_or_start_keeper(
        &self,
        mut stored: Option<OwnedFd>,
    ) -> Result<(ProcessIdentity, Option<RoleChild>), LazyUnavailable> {
        let deadline = Instant::now() + self.options.start_timeout;
        let mut child = None;
        let mut may_succeed = true;
        let mut wordless = 0;
        loop {
            let mut place = Place::Free;
            if let Ok((_, peer)) = self.connect(KEEPER_SOCKET).await {
                if peer.build == self.options.build || !may_succeed {
                    return Ok((peer.process, child));
                }
                place = Place::Succeed;
                may_succeed = false;
            }
            let keeper = |message: String| LazyUnavailable::Keeper { message };
            if Instant::now() >= deadline {
                return Err(keeper(format!("no answer in {:?}", self.options.start_timeout)));
            }
            let kept = stored.as_ref().and_then(|stored| stored.try_clone().ok());
            let (started, report) =
                self.start_keeper(kept, place).map_err(|error| keeper(error.to_string()))?;
            match tokio::time::timeout_at(deadline, report.receive::<Report>()).await {
                Ok(Ok(Some((Report::Started, _)))) => {
                    child = Some(started);
                    stored = None;
                }
                Ok(Ok(Some((Report::Locked, _)))) => {
                    let _ = started.wait();
                    tokio::time::sleep(RETRY).await;
                }
                Ok(Ok(Some((Report::Failed { message, .. }, _)))) if place == Place::Succeed => {
                    watch::reap(started).await;
                    tracing::warn!(message, "a keeper of another build goes on");
                    *self.kept_keeper.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(message);
                }
                Ok(Ok(Some((Report::Failed { step, message }, _)))) => {
                    watch::reap(started).await;
                    self.remove_cgroup().await;
                    return Err(match step {
                        FailedStep::Device => LazyUnavailable::NoDevice { message },
                        FailedStep::Mount => LazyUnavailable::MountRefused { message },
                        FailedStep::Worker => LazyUnavailable::Worker { message },
                        FailedStep::Keeper => keeper(message),
                    });
                }
                Ok(_) => {
                    watch::reap(started).await;
                    wordless += 1;
                    // One that was killed says nothing of the next one.
                    if wordless >= WORDLESS_ENDS {
                        return Err(keeper("it ended without a word".to_owned()));
                    }
                }
                Err(_) => {
                    let _ = started.signal(9);
                    watch::reap(started).await;
                    return Err(keeper(format!("no report in {:?}", self.options.start_timeout)));
                }
            }
        }
    }

    /// A process that has ended may stay in its group for a moment, so this tries again.
    pub(super) async fn remove_cgroup(&self) {
        let Some(group) = &self.options.cgroup else { return };
        let deadline = Instant::now() + CGROUP_PATIENCE;
        loop {
            match cgroup::remove(group) {
                Ok(left) if left.is_empty() => return,
                Ok(left) if Instant::now() >= deadline => {
                    return tracing::warn!(?left, "could not remove the control group");
                }
                Ok(_) => tokio::time::sleep(RETRY).await,
                Err(error) => return tracing::warn!(%error, "could not list control groups"),
            }
        }
    }

    fn start_keeper(
        &self,
        stored: Option<OwnedFd>,
        place: Place,
    ) -> io::Result<(RoleChild, Channel)> {
        let config = RoleConfig {
            place,
            ..RoleConfig::new(&self.directory, &self.state_dir, &self.options)
        };
        let text = String::from_utf8(encode(&config)).map_err(io::Error::other)?;
        let (ours, theirs) = socket::pair()?;
        let log = open_log(&self.directory.join("keeper.log"))?;
        let mut command = RoleCommand::new([ROLE_ARGUMENT, "keeper", &text])
            .descriptor(theirs, REPORT_FD)
            .log_to(&log)?;
        if let Some(stored) = stored {
            command = command.descriptor(stored, STORED_FD);
        }
        Ok((command.spawn(&self.exe)?, Channel::new(ours)?))
    }
}
