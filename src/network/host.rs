//! Makes the host what the state says: settings, bridges, rules, names; and collects what is ours and not in it.
//!
//! Blocks for some milliseconds, so it is for a thread where that is no harm. Acts in the network namespace of the
//! calling thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::link::{self, Apart, LinkError};
use super::names::{self, EntryError, NameTable, NamesClient, NamesError};
use super::rules::{Change, NftError, Rules, Ruleset};
use super::{
    Attachment, Closed, Ipv6, LinkKind, NetworkKey, NetworkState, Owner, Published, SettingError,
    Surroundings, ensure_forwarding, prepare_bridge,
};

/// What is published, in the directory of networks.
const PORTS: &str = "ports.json";

/// What is published by the instance with this run directory; nothing where it has no networks.
///
/// # Errors
/// When it is written down and cannot be read.
pub fn published(run_dir: &Path) -> io::Result<Vec<Published>> {
    match fs::read(run_dir.join("network").join(PORTS)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The networks of the host that are ours.
#[derive(Debug)]
pub struct HostNetwork {
    owner: Owner,
    /// Where the resolver's socket and table are.
    directory: PathBuf,
    rules: Rules,
    bridges: BTreeMap<NetworkKey, String>,
    /// By whom those on the shared bridge are kept apart.
    apart: Option<Apart>,
    /// The table that the resolver was told last.
    told: Option<NameTable>,
    /// What was written down last of published ports.
    published: Option<Vec<Published>>,
}

/// The host cannot be made what it should be.
#[derive(Debug, thiserror::Error)]
pub enum HostNetworkError {
    /// Forwarding, or a setting of a bridge.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Bridges, and the interfaces of containers.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Rules.
    #[error(transparent)]
    Rules(#[from] NftError),
    /// Names.
    #[error(transparent)]
    Names(#[from] NamesError),
    /// A container's place to ask for names.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The folder of the resolver cannot be made.
    #[error("could not make the folder `{}`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What had to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Settings of the host that were changed, such as `net.ipv4.ip_forward=1`; to be told to the user.
    pub settings: Vec<String>,
    /// What became of the rules.
    pub rules: Change,
    /// Interfaces that were left over, and are gone.
    pub collected: Vec<String>,
}

impl HostNetwork {
    /// Of `owner`, with the resolver in `directory`. Nothing is done yet.
    #[must_use]
    pub fn new(owner: Owner, directory: PathBuf) -> Self {
        let rules = Rules::new(owner.clone());
        Self {
            owner,
            directory,
            rules,
            bridges: BTreeMap::new(),
            apart: None,
            told: None,
            published: None,
        }
    }

    /// Where the resolver's socket is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What there is on the host that networks must not collide with.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn surroundings(&self) -> Result<Surroundings, LinkError> {
        let links = link::look_around(&self.owner)?;
        let mut taken = links.taken;
        // Resolvers behind a default route are in nobody's subnet, and must be reached all the same.
        let resolvers = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let words = resolvers.lines().filter_map(|line| line.strip_prefix("nameserver"));
        let addresses = words.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
        taken.extend(addresses.filter(|a| !a.is_loopback()).map(IpNet::from));
        let seed = self.owner.instance().to_owned();
        Ok(Surroundings { taken, has_ipv6: links.has_ipv6, seed, pools: Vec::new() })
    }

    /// Makes the host what `state` says, but for names: see [`HostNetwork::tell`]. Does nothing where it is so already.
    ///
    /// # Errors
    /// The first step that fails; the steps after it wait for the next time.
    pub fn apply(&mut self, state: &NetworkState) -> Result<Applied, HostNetworkError> {
        let bridges = state.bridges();
        if bridges.is_empty() {
            return self.leave_nothing();
        }
        let mut names = BTreeMap::new();
        for bridge in &bridges {
            let name = link::ensure_bridge(&self.owner, bridge)?;
            names.insert(bridge.network.clone(), name);
        }
        self.bridges = names;
        // Before anything is let through: the rules are also what keeps others out.
        let ipv6 = if state.has_ipv6() { Ipv6::Always } else { Ipv6::Never };
        let folder = |source| HostNetworkError::Folder { path: self.directory.clone(), source };
        let closed =
            Closed::before_forwarding(&self.directory, &self.owner, ipv6).map_err(folder)?;
        let ruleset = Ruleset { closed, ..state.ruleset(|key| self.bridge(key)) };
        let rules = self.rules.ensure(&ruleset)?;
        for name in self.bridges.values() {
            prepare_bridge(name)?;
        }
        self.keep_apart()?;
        let settings = ensure_forwarding(ipv6)?;
        let wanted: BTreeSet<String> = state
            .containers()
            .flat_map(|container| self.attachments(state, container))
            .map(|attachment| attachment.what)
            .collect();
        let collected = link::collect(&self.owner, |link| match link.kind {
            LinkKind::Bridge => self.bridges.values().any(|name| *name == link.name),
            LinkKind::Port => link.what.as_ref().is_none_or(|what| wanted.contains(what)),
        })?;
        Ok(Applied { settings, rules, collected })
    }

    /// Looks by whom those on the shared bridge are to be kept apart: it is looked for each time, since whoever filters
    /// bridged packets may come later.
    fn keep_apart(&mut self) -> Result<(), LinkError> {
        let Some(bridge) = self.bridges.get(&NetworkKey::shared()) else {
            self.apart = None;
            return Ok(());
        };
        let now = Apart::now();
        if self.apart != Some(now) {
            link::keep_apart(&self.owner, bridge, now)?;
            self.apart = Some(now);
        }
        Ok(())
    }

    /// The interfaces of a container, once the state with it was applied.
    #[must_use]
    pub fn attachments(&self, state: &NetworkState, container: &str) -> Vec<Attachment> {
        state.attachments(container, |key| self.bridge(key))
    }

    /// Makes sure that the resolver answers a container whose network is `namespace`.
    ///
    /// # Errors
    /// When the resolver does not run, or the container's namespace is gone.
    pub fn ensure_answered(
        &self,
        container: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), HostNetworkError> {
        let client = NamesClient::connect(&self.directory)?;
        if !client.clients()?.iter().any(|served| served == container) {
            client.adopt(container, &names::open_entry(namespace)?)?;
        }
        Ok(())
    }

    fn bridge(&self, key: &NetworkKey) -> String {
        let name = || self.owner.link(LinkKind::Bridge, key.as_str(), 0);
        self.bridges.get(key).cloned().unwrap_or_else(name)
    }

    /// Lets the resolver know the names of `state`; one that does not run reads them when it starts.
    ///
    /// # Errors
    /// When they cannot be written, or the resolver runs and does not answer.
    pub fn tell(&mut self, state: &NetworkState) -> Result<(), HostNetworkError> {
        self.write_ports(state)?;
        let table = state.name_table();
        if self.told.as_ref() == Some(&table) {
            return Ok(());
        }
        let folder = |source| HostNetworkError::Folder { path: self.directory.clone(), source };
        fs::create_dir_all(&self.directory).map_err(folder)?;
        NamesClient::write_table(&self.directory, &table)?;
        match NamesClient::connect(&self.directory) {
            Ok(client) => {
                client.reload()?;
                // Sockets of containers that are gone keep their namespaces alive.
                for gone in client.clients()?.iter().filter(|c| !table.clients.contains_key(*c)) {
                    client.release(gone)?;
                }
            }
            // It reads the table when it starts.
            Err(NamesError::Absent(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.told = Some(table);
        Ok(())
    }

    /// Writes down what is published, for whoever looks without asking control.
    fn write_ports(&mut self, state: &NetworkState) -> Result<(), HostNetworkError> {
        let published = state.published();
        if self.published.as_ref() != Some(&published) {
            let write = || -> io::Result<()> {
                fs::create_dir_all(&self.directory)?;
                let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
                file.write_all(&serde_json::to_vec(&published)?)?;
                // Not synced: it is of this boot.
                file.persist(self.directory.join(PORTS)).map_err(|error| error.error)?;
                Ok(())
            };
            let folder = |source| HostNetworkError::Folder { path: self.directory.clone(), source };
            write().map_err(folder)?;
            self.published = Some(published);
        }
        Ok(())
    }

    /// Without any network: no bridge, no rule, no resolver.
    fn leave_nothing(&mut self) -> Result<Applied, HostNetworkError> {
        self.bridges.clear();
        self.apart = None;
        (self.told, self.published) = (None, None);
        // There may never have been one.
        let _ = fs::remove_file(self.directory.join(PORTS));
        match NamesClient::connect(&self.directory) {
            Ok(client) => client.stop()?,
            Err(NamesError::Absent(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let collected = link::collect(&self.owner, |_| false)?;
        let rules = match self.rules.remove() {
            // A host that never had networks of ours may lack the program.
            Ok(()) | Err(NftError::NoProgram) => Change::None,
            Err(error) => return Err(error.into()),
        };
        Ok(Applied { settings: Vec::new(), rules, collected })
    }
}
