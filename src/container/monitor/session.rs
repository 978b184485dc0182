//! Programs that clients run in the container.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::super::join::{self, Joined};
use super::super::wire::Message;
use super::super::{ExecRequest, Launch};
use super::children::Child;
use super::run::SIGKILL;
use crate::sys::process::{Ended, open_pidfd, send_signal};

/// One program, from the request until it has ended.
#[derive(Debug)]
pub(super) struct Session {
    /// Who asked.
    pub(super) client: u64,
    /// Starts it; `None` once that has reported.
    pub(super) child: Option<Child>,
    /// The program, once it runs.
    program: Option<(i32, OwnedFd)>,
    timeout: Option<Duration>,
    /// When the program is killed.
    pub(super) deadline: Option<Instant>,
    pub(super) is_over: bool,
}

impl Session {
    /// Begins to run `request`; the answer comes later.
    pub(super) fn begin(
        launch: &Launch,
        monitor: i32,
        init: i32,
        client: u64,
        request: &ExecRequest,
        streams: Vec<OwnedFd>,
    ) -> std::io::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(launch.start_timeout_secs);
        let child = Child::fork_inside(launch, deadline, |joined| {
            join::run(launch, monitor, init, request, streams, joined)
        })?;
        Ok(Self {
            client,
            child: Some(child),
            program: None,
            timeout: request.timeout_ms.map(Duration::from_millis),
            deadline: None,
            is_over: false,
        })
    }

    /// Takes the report of the child that starts the program, if it is there.
    pub(super) fn on_report(&mut self) -> Option<(Message, Vec<OwnedFd>)> {
        let (joined, mut descriptors) = self.child.as_ref()?.report::<Joined>()?;
        self.child = None;
        match joined {
            Joined::Started(pid) => {
                // A child, or about to become one: it cannot be reaped by anybody else.
                if let Ok(pidfd) = open_pidfd(pid) {
                    if let Ok(copy) = pidfd.try_clone() {
                        descriptors.insert(0, copy);
                    }
                    self.program = Some((pid, pidfd));
                }
                self.deadline = self.timeout.map(|timeout| Instant::now() + timeout);
                Some((Message::ExecStarted { pid }, descriptors))
            }
            Joined::Failed(failure) => {
                self.is_over = true;
                let message = Message::ExecFailed { reason: failure.reason, code: failure.code };
                Some((message, Vec::new()))
            }
        }
    }

    /// Whether `pid` is the child that starts the program, and has not said that it has.
    pub(super) fn is_joining(&self, pid: i32) -> bool {
        self.child.as_ref().is_some_and(|child| child.pid == pid)
    }

    /// The end of a child of the monitor; what to say when it is this session's.
    pub(super) fn on_ended(&mut self, pid: i32, ended: Ended) -> Option<Message> {
        if self.program.as_ref().is_some_and(|(program, _)| *program == pid) {
            self.is_over = true;
            return Some(Message::ExecEnded { code: ended.code() });
        }
        if self.child.as_ref().is_some_and(|child| child.pid == pid) {
            // It has reported nothing: it was killed, by the deadline or with the container.
            self.is_over = true;
            let reason = "the container ended, or the program did not start in time".to_owned();
            return Some(Message::ExecFailed { reason, code: 125 });
        }
        None
    }

    /// Kills what has run too long.
    pub(super) fn check_deadlines(&mut self, now: Instant) {
        if let Some(child) = &self.child
            && child.deadline <= now
        {
            child.kill();
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.kill_program();
        }
    }

    /// Ends it, whatever became of it.
    pub(super) fn kill(&mut self) {
        if let Some(child) = &self.child {
            child.kill();
        }
        self.kill_program();
    }

    /// Kills the program with all that it has started in its group: a shell that is killed alone leaves behind what it
    /// waits for.
    fn kill_program(&self) {
        let Some((pid, pidfd)) = &self.program else { return };
        // Its number is nobody else's as long as it is not reaped, and each program leads a group of its own.
        if let Some(group) = rustix::process::Pid::from_raw(*pid) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = send_signal(pidfd.as_fd(), SIGKILL);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.child.as_ref().map(|child| child.deadline).into_iter().chain(self.deadline).min()
    }
}
