//! Networks of containers that have one of their own: who is in which, kept on disk, and the host made so.
//!
//! One task does everything, in the order in which it is asked: a container that left is out before it joins again.
//! What was asked meanwhile is done at once. As long as no service asks for a bridge nothing is run, read or changed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::bridge_task::Task;
use super::events::{EventLog, Subject};
use super::published::Published;
use super::report::EventLevel;
use crate::container::{self, Attached};
use crate::network::names::Ready;
use crate::network::rules::RulesWatch;
use crate::network::{MemberWish, Owner};
use crate::store::Store;
use crate::sys::process::SealedExe;

/// From a change of our rules, which may be our own, to the look at them: others come in bursts.
const SETTLE: Duration = Duration::from_millis(150);
/// Requests that wait; a project of a thousand services fits.
const QUEUE: usize = 2048;
/// How often the resolver is looked after.
const BEAT: Duration = Duration::from_secs(2);

/// Who is in which network, as far as what was launched tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FoundMembers {
    pub(super) members: Vec<MemberWish>,
    /// Containers that run and may be in networks, and why it cannot be told.
    pub(super) unknown: BTreeMap<String, String>,
}

/// What a container is launched with.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) attached: Attached,
    /// How it reaches the host.
    pub(super) gateway: Option<Ipv4Addr>,
}

#[derive(Debug)]
pub(super) enum Command {
    Join {
        wish: Box<MemberWish>,
        reply: oneshot::Sender<Result<Joined, String>>,
    },
    Ready(String, Ready),
    Left(String),
    /// These run, and no others; some are in these networks.
    Settle(Vec<String>, FoundMembers),
    Flush(oneshot::Sender<()>),
}

/// What the task has to do.
#[derive(Debug)]
pub(super) enum Work {
    Commands(Vec<Command>),
    /// Our table may have been changed.
    Rules,
    Beat,
}

/// The way to the task.
#[derive(Debug, Clone)]
pub(super) struct Bridges {
    commands: mpsc::Sender<Command>,
    pub(super) published: Published,
    /// Nobody is known to be in a network: none ever was, or the record of it cannot be read.
    pub(super) is_lost: bool,
}

/// What the task needs.
#[derive(Debug)]
pub(super) struct BridgesOptions {
    pub(super) store: Store,
    pub(super) run_dir: PathBuf,
    pub(super) instance: Arc<str>,
    pub(super) exe: Arc<SealedExe>,
    pub(super) log_level: String,
    pub(super) events: EventLog,
}

impl Bridges {
    /// Begins the task. Needs a runtime.
    pub(super) fn start(options: BridgesOptions) -> Self {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (mut is_lost, published) = (false, Published::default());
        match Owner::new(&options.instance) {
            Ok(owner) => {
                let task = Task::new(options, &owner, published.clone());
                is_lost = task.is_lost();
                tokio::spawn(run(task, owner, queue));
            }
            Err(error) => tracing::error!(%error, "services can have no networks"),
        }
        Self { commands, published, is_lost }
    }

    /// Puts a container into its networks.
    pub(super) async fn join(&self, wish: MemberWish) -> Result<Joined, String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "networks are not looked after any more".to_owned();
        let join = Command::Join { wish: Box::new(wish), reply };
        self.commands.send(join).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// A container runs, and can be used or not.
    pub(super) fn ready(&self, container: &str, ready: Ready) {
        self.tell(Command::Ready(container.to_owned(), ready));
    }

    /// A container has ended.
    pub(super) fn left(&self, container: &str) {
        self.tell(Command::Left(container.to_owned()));
    }

    /// Which containers run, of all that were there before; and, if it is lost, which networks they are in.
    pub(super) fn settle(&self, running: Vec<String>, members: FoundMembers) {
        self.tell(Command::Settle(running, members));
    }

    /// Waits until all that was said before is done.
    pub(super) async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Flush(reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    fn tell(&self, command: Command) {
        if let Err(error) = self.commands.try_send(command) {
            tracing::warn!(%error, "a change of networks is forgotten");
        }
    }
}

async fn run(mut task: Task, owner: Owner, mut queue: mpsc::Receiver<Command>) {
    let events = task.events().clone();
    let mut watch: Option<RulesWatch> = None;
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look_at: Option<Instant> = None;
    loop {
        if task.is_used() && watch.is_none() {
            watch = RulesWatch::open(&owner).ok();
        }
        let changed = async {
            match &watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let due = async {
            match look_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Each arm is cancel-safe: a message is taken or not, and a change that was read is told at once.
        let work = tokio::select! {
            command = queue.recv() => {
                let Some(first) = command else { return };
                // What came meanwhile is done with it: what a change costs grows with the number of containers.
                let rest = std::iter::from_fn(|| queue.try_recv().ok());
                Work::Commands(std::iter::once(first).chain(rest).collect())
            }
            result = changed, if look_at.is_none() => {
                if let Err(error) = result {
                    tracing::warn!(%error, "changes of rules are not seen any more");
                    watch = None;
                }
                look_at = Some(Instant::now() + SETTLE);
                continue;
            }
            () = due => {
                look_at = None;
                watch.as_ref().into_iter().for_each(RulesWatch::forget);
                Work::Rules
            }
            _ = beat.tick(), if task.is_used() => Work::Beat,
        };
        // It runs programs and waits for the kernel.
        let done = tokio::task::spawn_blocking(move || {
            task.work(work);
            task
        });
        match done.await {
            Ok(back) => task = back,
            Err(error) => {
                let message = format!("networks are not looked after any more: {error}");
                return events.emit(
                    Subject::Host,
                    EventLevel::Error,
                    "network-failed",
                    message,
                    [],
                );
            }
        }
    }
}

/// Whether a container runs, by its process.
pub(super) fn runs(run_dir: &std::path::Path, id: &container::ContainerId) -> bool {
    let process = container::running_process(run_dir, id).ok().flatten();
    process.is_some_and(|process| process.open().is_some())
}
