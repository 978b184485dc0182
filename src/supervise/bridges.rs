//! Networks of containers that have one of their own: who is in which, kept on disk, and the host made so.
//!
//! One task does everything, in the order in which it is asked; while no service asks for a bridge, it does nothing.

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::events::{EventLog, Subject};
use super::published::Published;
use super::report::EventLevel;
use super::resolver::Resolver;
use crate::container::{self, Attached};
use crate::network::names::Ready;
use crate::network::port::{self, HostPort};
use crate::network::rules::{Change, RulesWatch};
use crate::network::{HostNetwork, HostNetworkError, MemberWish, NetworkState, Owner};
use crate::store::{Record, Store, record};
use crate::sys::netns;
use crate::sys::process::SealedExe;
use crate::telemetry::Chain;

/// Requests that wait; a project of a thousand services fits.
const QUEUE: usize = 2048;
/// How often the resolver is looked after.
const BEAT: Duration = Duration::from_secs(2);

/// What is said where the kernel refuses bridges.
const NO_RIGHT: &str = "; services with networks of their own need the capability CAP_NET_ADMIN: give it, or write \
     `network_mode: host` in the services";

impl Record for NetworkState {
    const KIND: &'static str = "networks";
    const VERSION: u32 = 1;
}

/// What a container is launched with.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) attached: Attached,
    /// How it reaches the host.
    pub(super) gateway: Option<Ipv4Addr>,
}

#[derive(Debug)]
enum Command {
    Join {
        wish: Box<MemberWish>,
        reply: oneshot::Sender<Result<Joined, String>>,
    },
    Ready(String, Ready),
    Left(String),
    /// These run, and no others.
    Settle(Vec<String>),
    Flush(oneshot::Sender<()>),
}

/// The way to the task.
#[derive(Debug, Clone)]
pub(super) struct Bridges {
    commands: mpsc::Sender<Command>,
    pub(super) published: Published,
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
        let published = Published::default();
        tokio::spawn(run(options, queue, published.clone()));
        Self { commands, published }
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

    /// Which containers run, of all that were there before.
    pub(super) fn settle(&self, running: Vec<String>) {
        self.tell(Command::Settle(running));
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

async fn run(options: BridgesOptions, mut queue: mpsc::Receiver<Command>, published: Published) {
    let events = options.events.clone();
    let owner = match Owner::new(&options.instance) {
        Ok(owner) => owner,
        Err(error) => return tracing::error!(%error, "services can have no networks"),
    };
    let path = options.store.root().join("networks");
    let (state, has_record, refusal) = match options.store.load::<NetworkState>(&path) {
        Ok(state) => (state.clone().unwrap_or_default(), state.is_some(), None),
        // Whoever is in a network would be put out of it.
        Err(error) => (NetworkState::default(), false, Some(Chain(&error).to_string())),
    };
    let network = HostNetwork::new(owner.clone(), options.run_dir.join("network"));
    let mut task = Task {
        options,
        path,
        network,
        state,
        has_record,
        refusal,
        resolver: Resolver::default(),
        complaint: None,
        is_used: false,
        is_stale: false,
        published,
    };
    task.published.set(&task.state);
    let mut watch: Option<RulesWatch> = None;
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if task.is_used && watch.is_none() {
            watch = RulesWatch::open(&owner).ok();
        }
        let changed = async {
            match &watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        // Each arm is cancel-safe: a message is taken or not, and a change that was read is told at once.
        let work = tokio::select! {
            command = queue.recv() => match command {
                Some(command) => Work::Command(command),
                None => return,
            },
            result = changed => {
                if let Err(error) = result {
                    tracing::warn!(%error, "changes of rules are not seen any more");
                    watch = None;
                }
                Work::Rules
            }
            _ = beat.tick(), if task.is_used => Work::Beat,
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

#[derive(Debug)]
enum Work {
    Command(Command),
    /// Our table may have been changed.
    Rules,
    Beat,
}

/// All state of the task.
#[derive(Debug)]
struct Task {
    options: BridgesOptions,
    path: PathBuf,
    network: HostNetwork,
    state: NetworkState,
    /// Whether there were networks of ours at some time: what a crash left is looked for then.
    has_record: bool,
    /// Why nobody can join: who is in which network is written down, and cannot be read.
    refusal: Option<String>,
    resolver: Resolver,
    /// What went wrong last; told once.
    complaint: Option<String>,
    /// Whether there is anything of ours on the host.
    is_used: bool,
    /// Whether the host may not be what the state says.
    is_stale: bool,
    published: Published,
}

impl Task {
    fn work(&mut self, work: Work) {
        match work {
            Work::Command(Command::Join { wish, reply }) => {
                let joined = self.join(&wish);
                if joined.is_err() {
                    self.leave(&wish.container);
                }
                let _ = reply.send(joined);
            }
            Work::Command(Command::Ready(container, ready)) => {
                if self.state.set_ready(&container, ready) {
                    self.apply_and_tell();
                }
            }
            Work::Command(Command::Left(container)) => {
                self.leave(&container);
            }
            Work::Command(Command::Settle(running)) => {
                if self.has_record {
                    self.state.keep(|known| running.iter().any(|id| id == known));
                    self.save_and_apply();
                }
            }
            Work::Command(Command::Flush(reply)) => drop(reply.send(())),
            Work::Rules | Work::Beat if !self.is_used => {}
            Work::Rules => self.apply_and_tell(),
            Work::Beat => {
                if self.is_stale {
                    self.apply_and_tell();
                }
                if let Err(error) = self.look_after_resolver() {
                    self.complain(error);
                }
            }
        }
    }

    fn join(&mut self, wish: &MemberWish) -> Result<Joined, String> {
        let text = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
        if let Some(refusal) = &self.refusal {
            return Err(format!(
                "{refusal}; it says which containers are in which networks: put it right, or, when none of them \
                 runs, remove it"
            ));
        }
        let surroundings = self.network.surroundings().map_err(|error| text(&error))?;
        let fixed = wish.ports.iter().filter_map(|wanted| {
            let port = wanted.published.as_ref().filter(|range| range.start() == range.end())?;
            let address = wanted.host_ip.filter(|address| !address.is_unspecified());
            Some(HostPort { address, port: *port.start(), transport: wanted.transport })
        });
        let taken = port::taken(&fixed.collect::<Vec<_>>()).map_err(|error| text(&error))?;
        if let Some(taken) = taken.first() {
            return Err(taken.to_string());
        }
        let is_free = |port| port::taken(&[port]).is_ok_and(|taken| taken.is_empty());
        self.state.join(wish, &surroundings, is_free).map_err(|error| text(&error))?;
        self.save();
        self.apply().map_err(|error| {
            let hint = if is_not_permitted(&error) { NO_RIGHT } else { "" };
            format!("{}{hint}", text(&error))
        })?;
        // Names that are not answered for a moment are no reason not to start.
        if let Err(error) = self.look_after_resolver() {
            self.complain(error);
        }
        let attachments = self.network.attachments(&self.state, &wish.container);
        let gateway = attachments.iter().find_map(|attachment| attachment.gateway4);
        let resolver = Some(self.network.directory().to_owned());
        let instance = self.options.instance.to_string();
        Ok(Joined { attached: Attached { instance, attachments, resolver }, gateway })
    }

    fn leave(&mut self, container: &str) {
        if self.state.containers().any(|known| known == container) {
            self.state.keep(|known| known != container);
            self.save_and_apply();
        }
    }

    fn save(&mut self) {
        self.published.set(&self.state);
        if let Err(error) = record::save_with_copy(&self.path, &self.state) {
            self.complain(error);
        }
    }

    fn save_and_apply(&mut self) {
        self.save();
        self.apply_and_tell();
        if self.is_used
            && let Err(error) = self.look_after_resolver()
        {
            self.complain(error);
        }
    }

    fn apply_and_tell(&mut self) {
        if let Err(error) = self.apply() {
            self.complain(error);
        }
    }

    fn apply(&mut self) -> Result<(), HostNetworkError> {
        (self.is_used, self.is_stale) = (true, true);
        let applied = self.network.apply(&self.state)?;
        self.complaint = None;
        let emit = |kind: &str, message: String| {
            self.options.events.emit(Subject::Host, EventLevel::Warning, kind, message, []);
        };
        if !applied.settings.is_empty() {
            let settings = applied.settings.join(", ");
            emit("host-setting", format!("set for networks of services: {settings}"));
        }
        if applied.rules == Change::Restored {
            emit("rules-restored", "rules of networks were changed by others, and are back".into());
        }
        if !applied.collected.is_empty() {
            tracing::debug!(interfaces = ?applied.collected, "left over, and gone");
        }
        (self.is_used, self.is_stale) = (!self.state.bridges().is_empty(), false);
        if !self.is_used {
            self.resolver.wait();
        }
        Ok(())
    }

    /// Starts the resolver where none runs, and hands it the sockets of those that it does not serve.
    fn look_after_resolver(&mut self) -> Result<(), HostNetworkError> {
        let served = self.resolver.ensure(&self.network, &self.options)?.clients()?;
        let missing = self.state.containers().filter(|id| !served.iter().any(|s| s == id));
        for id in missing.map(str::to_owned).collect::<Vec<_>>() {
            let Ok(parsed) = id.parse() else { continue };
            let process = container::running_process(&self.options.run_dir, &parsed);
            // One that is about to start hands its sockets over itself.
            let Some(process) = process.ok().flatten() else { continue };
            let Some(_alive) = process.open() else { continue };
            let Ok(namespace) = netns::of_process(process.pid) else { continue };
            self.network.ensure_answered(&id, namespace.as_fd())?;
        }
        Ok(())
    }

    fn complain(&mut self, error: impl std::error::Error + 'static) {
        let message = format!("networks of services: {}", Chain(&error));
        if self.complaint.as_ref() != Some(&message) {
            let events = &self.options.events;
            events.emit(Subject::Host, EventLevel::Error, "network-failed", message.clone(), []);
            self.complaint = Some(message);
        }
    }
}

/// Whether the kernel said that this is not ours to do.
fn is_not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
    })
}

/// Whether a container runs, by its process.
pub(super) fn runs(run_dir: &std::path::Path, id: &container::ContainerId) -> bool {
    let process = container::running_process(run_dir, id).ok().flatten();
    process.is_some_and(|process| process.open().is_some())
}
