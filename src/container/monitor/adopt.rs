//! Taking over from a dead monitor.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::super::finish::wait_ms;
use super::super::record::{self, RunEnd, RunRecord};
use super::super::{Outcome, Phase, Status};
use super::children::Child;
use super::run::{Init, Monitor};
use crate::boundary::Boundary;
use crate::sys::process::Ended;
use crate::sys::{child, mount, socket};

/// How long the end of a process that is nobody's child is asked for: whoever has to reap it may be busy.
const REAPING: Duration = Duration::from_secs(2);

/// Enters the life of a container where its files say that it is. `kept` is a pidfd of its first process that somebody
/// opened while it ran: the kernel answers for one who has ended only to who held such a descriptor before.
pub(super) fn adopt(mut monitor: Monitor, kept: Option<OwnedFd>) -> Monitor {
    let run: Option<RunRecord> = record::read_json(&monitor.paths.process).ok().flatten();
    let not_started = Outcome::NotStarted {
        reason: "its monitor died while it was starting".to_owned(),
        code: 125,
    };
    let Some(run) = run else {
        monitor.end_with(not_started);
        return monitor;
    };
    monitor.status = Status { writable: Some(run.writable.clone()), ..monitor.status };
    monitor.started_at = Some(run.started_at);
    monitor.stop_requested = run.stop_requested;
    monitor.status.health.clone_from(&run.health);
    if let Some(RunEnd { outcome, at }) = run.ended {
        monitor.ended_at = Some(at);
        monitor.end_with(outcome);
        return monitor;
    }
    let Some(pidfd) = run.process.open() else {
        let ended = child::exit_of_zombie(&run.process).or_else(|| exit_of(kept?));
        monitor.end_with(ended.map_or(Outcome::Unknown, Outcome::from));
        return monitor;
    };
    let init = Init { process: run.process.clone(), pidfd, is_child: false, ended: None };
    if !init.has_begun() {
        monitor.started_at = None;
        monitor.end_with(not_started);
        return monitor;
    }
    monitor.open_output();
    remount(&monitor, run.process.pid);
    Boundary::ROOT_TAKEN_OVER.reach(&monitor.launch.run_dir);
    monitor.init = Some(init);
    monitor.status.phase = Phase::Running { process: run.process, started_at: run.started_at };
    monitor.begin_health(run.started_at, run.health);
    info!(container = %monitor.launch.id, "adopted");
    Boundary::ADOPTED.reach(&monitor.launch.run_dir);
    monitor
}

fn exit_of(pidfd: OwnedFd) -> Option<Ended> {
    let until = Instant::now() + REAPING;
    loop {
        match child::exit_of(std::os::fd::AsFd::as_fd(&pidfd)) {
            Ok(None) if Instant::now() < until => wait_ms(10),
            told => return told.ok().flatten(),
        }
    }
}

/// The root file system was mounted in the dead monitor's namespace and went with it; the container still has it.
/// A copy of that mount is needed at the end, to see that nobody uses it any more and to keep the writable layer.
fn remount(monitor: &Monitor, init: i32) {
    let parent = monitor.identity.pid;
    let deadline = Instant::now() + Duration::from_secs(5);
    let forked = Child::fork(deadline, |socket| {
        let copy = child::die_with(parent).and_then(|()| child::copy_root_mount_of(init));
        match copy.and_then(|copy| socket::send(socket, b"0", &[std::os::fd::AsFd::as_fd(&copy)])) {
            Ok(()) => 0,
            Err(_) => 1,
        }
    });
    let attached = forked.and_then(|forked| {
        let mut polled = [rustix::event::PollFd::new(&forked, rustix::event::PollFlags::IN)];
        let patience = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&patience))?;
        let (_, descriptors) = forked
            .report::<u8>()
            .ok_or_else(|| std::io::Error::other("its mount cannot be copied"))?;
        let mount = descriptors
            .first()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?;
        mount::attach(std::os::fd::AsFd::as_fd(mount), &monitor.paths.rootfs)
    });
    if let Err(error) = attached {
        warn!(%error, "the writable layer will not be kept: its root file system is out of reach");
    }
}
