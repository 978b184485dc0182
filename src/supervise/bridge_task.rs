//! The task of [`super::bridges`]: what is asked of networks, done on the host. Blocks.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use rustix::io::Errno;
use tokio::sync::oneshot;

use super::bridge_record::{Loss, Written};
use super::bridges::{BridgesOptions, Command, FoundMembers, Joined, Work};
use super::events::{EventLog, Subject};
use super::published::Published;
use super::report::EventLevel;
use super::resolver::Resolver;
use crate::container::{self, Attached};
use crate::network::names::NamesError;
use crate::network::port;
use crate::network::rules::Change;
use crate::network::{HostNetwork, HostNetworkError, MemberWish, NetworkState, Owner, PortWish};
use crate::store::{Record, record};
use crate::sys::netns;
use crate::telemetry::Chain;

/// After so many times without an answer, of seconds each, the resolver is taken for hung.
const SILENCES: u32 = 2;
/// What is said where the kernel refuses bridges.
const NO_RIGHT: &str = "; services with networks of their own need the capability CAP_NET_ADMIN: give it, or write \
     `network_mode: host` in the services";

impl Record for NetworkState {
    const KIND: &'static str = "networks";
    const VERSION: u32 = 1;
}

/// All state of the task.
#[derive(Debug)]
pub(super) struct Task {
    options: BridgesOptions,
    path: PathBuf,
    network: HostNetwork,
    state: NetworkState,
    record: Written,
    resolver: Resolver,
    /// What went wrong last; told once.
    complaint: Option<String>,
    /// Whether there is anything of ours on the host.
    is_used: bool,
    /// Whether the host may not be what the state says.
    is_stale: bool,
    /// Whether there may be names that the resolver does not know.
    has_news: bool,
    /// How often in a row the resolver did not answer.
    silent: u32,
    published: Published,
}

/// Who waits for an answer to a wish.
type Joining = (Box<MemberWish>, oneshot::Sender<Result<Joined, String>>);

/// What a change needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    Nothing,
    /// The resolver to know it.
    Names,
    /// All of the host, and the record.
    All,
}

impl Task {
    /// Begins with what is on the disk.
    pub(super) fn new(options: BridgesOptions, owner: &Owner, published: Published) -> Self {
        let path = options.store.root().join("networks");
        let (state, record) = match options.store.load::<NetworkState>(&path) {
            Ok(Some(state)) => (state, Written::All),
            Ok(None) => (NetworkState::default(), Written::Nothing),
            Err(error) => {
                let (reason, found) = (Chain(&error).to_string(), FoundMembers::default());
                (NetworkState::default(), Written::Lost(Loss { reason, found }))
            }
        };
        let network = HostNetwork::new(owner.clone(), options.run_dir.join("network"));
        published.set(&state);
        Self {
            options,
            path,
            network,
            state,
            record,
            resolver: Resolver::default(),
            complaint: None,
            is_used: false,
            is_stale: false,
            has_news: true,
            silent: 0,
            published,
        }
    }

    pub(super) fn events(&self) -> &EventLog {
        &self.options.events
    }

    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    pub(super) fn is_lost(&self) -> bool {
        self.record != Written::All
    }

    pub(super) fn work(&mut self, work: Work) {
        match work {
            Work::Commands(commands) => self.obey(commands),
            Work::Rules | Work::Beat if !self.is_used => {}
            Work::Rules => self.apply_and_tell(),
            Work::Beat => {
                if self.is_stale {
                    self.apply_and_tell();
                } else {
                    self.look_after_names();
                }
            }
        }
    }

    /// Does all that was asked, and makes the host so once.
    fn obey(&mut self, commands: Vec<Command>) {
        let (mut joined, mut flushed, mut need) = (Vec::new(), Vec::new(), Need::Nothing);
        for command in commands {
            match command {
                Command::Join { wish, reply } => match self.admit(&wish) {
                    Ok(()) => {
                        need = Need::All;
                        joined.push((wish, reply));
                    }
                    Err(reason) => {
                        need = need.max(self.take_out(&wish.container));
                        let _ = reply.send(Err(reason));
                    }
                },
                Command::Ready(container, ready) => {
                    let is_new = self.state.set_ready(&container, ready);
                    need = need.max(if is_new { Need::Names } else { Need::Nothing });
                }
                Command::Left(container) => need = need.max(self.leaves(&container)),
                Command::Settle(running, members) => {
                    need = need.max(self.settle(&running, members))
                }
                Command::Flush(reply) => flushed.push(reply),
            }
        }
        match need {
            Need::Nothing => {}
            // What is to be done again is done wholly.
            Need::Names if !self.is_stale => {
                self.has_news = true;
                self.look_after_names();
            }
            Need::Names | Need::All => self.change(joined),
        }
        for reply in flushed {
            let _ = reply.send(());
        }
    }

    /// Keeps the state, makes the host so, and tells those who are in it now.
    fn change(&mut self, joined: Vec<Joining>) {
        self.save();
        if let Err(error) = self.apply() {
            return self.undo(joined, error);
        }
        // Names that are not answered for a moment are no reason not to start.
        self.look_after_names();
        for (MemberWish { container, .. }, reply) in joined.into_iter().map(|(w, r)| (*w, r)) {
            let attachments = self.network.attachments(&self.state, &container);
            let gateway = attachments.iter().find_map(|attachment| attachment.gateway4);
            let resolver = Some(self.network.directory().to_owned());
            let instance = self.options.instance.to_string();
            let attached = Attached { instance, attachments, resolver };
            let _ = reply.send(Ok(Joined { attached, gateway }));
        }
    }

    /// The host cannot be made so. Of several that wanted to join, one alone may be why: each is tried by itself.
    fn undo(&mut self, joined: Vec<Joining>, error: HostNetworkError) {
        if joined.is_empty() {
            return self.note(error);
        }
        for (wish, _) in &joined {
            let _ = self.take_out(&wish.container);
        }
        let is_permitted = !is_not_permitted(&error);
        if joined.len() > 1 && is_permitted {
            for (wish, reply) in joined {
                self.obey(vec![Command::Join { wish, reply }]);
            }
            return;
        }
        let reason = format!("{}{}", Chain(&error), if is_permitted { "" } else { NO_RIGHT });
        for (_, reply) in joined {
            let _ = reply.send(Err(reason.clone()));
        }
        self.save();
        self.apply_and_tell();
    }

    /// Notes that a container is in its networks, if it can have what it wants.
    fn admit(&mut self, wish: &MemberWish) -> Result<(), String> {
        let text = |error: &(dyn std::error::Error + 'static)| Chain(error).to_string();
        if let Written::Lost(loss) = &self.record {
            return Err(loss.to_string());
        }
        let surroundings = self.network.surroundings().map_err(|error| text(&error))?;
        let fixed: Vec<_> = wish.ports.iter().filter_map(PortWish::fixed).collect();
        let taken = port::taken(&fixed).map_err(|error| text(&error))?;
        if let Some(taken) = taken.first() {
            return Err(taken.to_string());
        }
        let is_free = |port| port::taken(&[port]).is_ok_and(|taken| taken.is_empty());
        self.state.join(wish, &surroundings, is_free).map_err(|error| text(&error))
    }

    fn take_out(&mut self, container: &str) -> Need {
        if !self.state.containers().any(|known| known == container) {
            return Need::Nothing;
        }
        self.state.keep(|known| known != container);
        Need::All
    }

    /// A container has ended.
    fn leaves(&mut self, container: &str) -> Need {
        let Written::Lost(loss) = &mut self.record else { return self.take_out(container) };
        if !loss.is_settled_without(container) {
            return Need::Nothing;
        }
        let loss = loss.clone();
        self.rebuild(loss)
    }

    /// Takes over what runs: `found` are in networks, where the record of that is lost.
    fn settle(&mut self, running: &[String], found: FoundMembers) -> Need {
        let reason = match &self.record {
            Written::All => {
                self.state.keep(|known| running.iter().any(|id| id == known));
                return Need::All;
            }
            // One that cannot be used is set aside, and reads as if there had never been one.
            Written::Nothing if found == FoundMembers::default() => return Need::Nothing,
            Written::Nothing => "the record of networks is lost".to_owned(),
            Written::Lost(loss) => loss.reason.clone(),
        };
        self.rebuild(Loss { reason, found })
    }

    /// Makes the record anew from those who are in networks, if all of them are known.
    fn rebuild(&mut self, loss: Loss) -> Need {
        let (reason, members) = (loss.reason.clone(), loss.found.members.len());
        match loss.rebuild() {
            Ok(state) => (self.state, self.record) = (state, Written::All),
            Err(loss) => {
                self.complain(&loss.to_string());
                self.record = Written::Lost(loss);
                return Need::Nothing;
            }
        }
        let message = format!(
            "{reason}; who is in which network was found out from {members} running containers"
        );
        self.events().emit(Subject::Host, EventLevel::Warning, "networks-rebuilt", message, []);
        Need::All
    }

    fn save(&mut self) {
        self.published.set(&self.state);
        if let Err(error) = record::save_with_copy(&self.path, &self.state) {
            self.complain(&Chain(&error));
        }
    }

    fn apply_and_tell(&mut self) {
        match self.apply() {
            Ok(()) => self.look_after_names(),
            Err(error) => self.note(error),
        }
    }

    fn apply(&mut self) -> Result<(), HostNetworkError> {
        (self.is_used, self.is_stale, self.has_news) = (true, true, true);
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

    /// Lets the resolver know the names, if there are any.
    fn look_after_names(&mut self) {
        if !self.is_used {
            return;
        }
        let told = if self.has_news { self.network.tell(&self.state) } else { Ok(()) };
        self.has_news = told.is_err();
        match told.and_then(|()| self.look_after_resolver()) {
            Ok(()) => self.silent = 0,
            Err(error) => self.note(error),
        }
    }

    /// Tells what went wrong. A resolver that hangs makes room for another.
    fn note(&mut self, error: HostNetworkError) {
        let is_silent = matches!(&error, HostNetworkError::Names(NamesError::Connection(_)));
        self.silent = if is_silent { self.silent + 1 } else { 0 };
        if self.silent >= SILENCES {
            self.silent = 0;
            if self.resolver.end(self.network.directory()) {
                let message = "the resolver of names did not answer, and is replaced";
                let level = EventLevel::Warning;
                self.events().emit(Subject::Host, level, "resolver-replaced", message, []);
            }
        }
        self.complain(&Chain(&error));
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

    fn complain(&mut self, what: &dyn std::fmt::Display) {
        let message = format!("networks of services: {what}");
        if self.complaint.as_ref() != Some(&message) {
            let events = &self.options.events;
            events.emit(Subject::Host, EventLevel::Error, "network-failed", message.clone(), []);
            self.complaint = Some(message);
        }
    }
}

/// Whether the kernel said that this is not ours to do: by `EPERM`. `EACCES` is about one thing, such as an address of a
/// family that was switched off.
fn is_not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.is_some_and(|cause| Errno::from_io_error(cause) == Some(Errno::PERM))
    })
}
