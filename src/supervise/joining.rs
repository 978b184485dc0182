//! Gives a container that is launched the network that its service asks for.

use std::collections::BTreeMap;

use super::bridges::FoundMembers;
use super::driver::Driver;
use super::execute::Host;
use super::held::{ContainerRecord, Held};
use super::launch;
use super::membership::{self, Surroundings};
use crate::container::{self, ContainerId, Launch, Network};
use crate::network::{HostAccess, MemberWish};
use crate::reconcile::ServiceKey;
use crate::spec::{NetworkMode, Service, container_name};
use crate::telemetry::Chain;

impl Driver {
    /// The container whose network a container of `service` is to have, if that is another's.
    pub(super) fn network_owner(
        &self,
        service: &ServiceKey,
        settings: &Service,
    ) -> Option<ContainerId> {
        // How it is meant: the lower, the more it is its own name.
        let rank = |held: &Held| {
            let record = &held.record;
            match &settings.network_mode {
                Some(NetworkMode::Service(name)) => {
                    (record.project == service.project && record.service == *name).then_some(0)
                }
                Some(NetworkMode::Container(name)) => {
                    let project = self.projects.get(&record.project);
                    let theirs = project.and_then(|p| p.desired.services.get(&record.service));
                    let given = theirs.and_then(|service| service.container_name.as_ref());
                    let ordinal = || container_name(record.project.as_str(), &record.service);
                    let names = [held.id.as_str() == name, given == Some(name), ordinal() == *name];
                    names.iter().position(|is_it| *is_it)
                }
                _ => None,
            }
        };
        let ours = |held: &&Held| held.record.instance == *self.host.instance;
        let runs = |held: &&Held| held.pid().is_some() && held.record.one_off.is_none();
        let running = self.containers.values().filter(ours).filter(runs);
        let named = running.filter_map(|held| Some((rank(held)?, held)));
        // Of two of one name the newer one stays.
        let best = named.min_by_key(|(rank, held)| (*rank, std::cmp::Reverse(held.record.serial)));
        best.map(|(_, held)| held.id.clone())
    }
}

impl Driver {
    /// Who is in which network, by what was launched: for when the record of that is lost. What runs and has no
    /// service any more is in its networks without a name.
    pub(super) fn members_by_launch(&self, running: &[String]) -> FoundMembers {
        let mut unknown = BTreeMap::new();
        let member = |held: &Held| {
            let launched = match container::launch_record(&self.host.run_dir, &held.id) {
                Ok(launched) => launched?,
                Err(error) => {
                    unknown.insert(held.id.to_string(), Chain(&error).to_string());
                    return None;
                }
            };
            let Network::Attached(attached) = launched.network else { return None };
            let record = &held.record;
            let project = self.projects.get(&record.project);
            let service = project.and_then(|p| p.desired.services.get(&record.service));
            let mut wish = match service {
                Some(service) => Host::member(&held.id, record, service),
                None => MemberWish {
                    container: held.id.to_string(),
                    endpoint: membership::endpoint(
                        record.project.as_str(),
                        record.service.as_str(),
                    ),
                    networks: Vec::new(),
                    ports: Vec::new(),
                    host_access: HostAccess::Denied,
                    dns: Vec::new(),
                },
            };
            // A run beside the service publishes nothing of it, unless it was asked to; then it loses that.
            if record.one_off.is_some() {
                wish.ports.clear();
            }
            Some(wish.as_it_runs(&attached.attachments))
        };
        let runs = |held: &&Held| running.iter().any(|id| id == held.id.as_str());
        let members = self.containers.values().filter(runs).filter_map(member).collect();
        FoundMembers { members, unknown }
    }
}

impl Host {
    /// Sets the network of `launch`. `owner` is whose network it has, where that is another's.
    pub(super) async fn give_network(
        &self,
        launch: &mut Launch,
        record: &ContainerRecord,
        service: &Service,
        owner: Option<&ContainerId>,
    ) -> Result<(), String> {
        match membership::surroundings(service, record.implied_network) {
            Surroundings::Host => launch.network = Network::Host,
            Surroundings::Nothing => launch.network = Network::None,
            Surroundings::Bridges => {
                let nftables = &self.features.nftables;
                if nftables.is_forced_off() {
                    return Err(format!("no {}: {}", nftables.name, nftables.text()));
                }
                let wish = Self::member(&launch.id, record, service);
                launch::attach(launch, service, self.bridges.join(wish).await?);
            }
            Surroundings::Anothers => {
                let mode = service.network_mode.as_ref().map(ToString::to_string);
                let mode = mode.unwrap_or_default();
                let gone = || format!("there is no network to share: `{mode}` does not run");
                self.share_network(launch, owner.ok_or_else(gone)?).ok_or_else(gone)?;
            }
        }
        Ok(())
    }

    /// The network of `owner`, and with it how names are found there. `None` when it does not run.
    fn share_network(&self, launch: &mut Launch, owner: &ContainerId) -> Option<()> {
        let theirs = container::launch_record(&self.run_dir, owner).ok()??;
        let process = container::running_process(&self.run_dir, owner).ok()??;
        process.open()?;
        launch.network = match theirs.network {
            Network::Host => Network::Host,
            _ => Network::Of(process),
        };
        launch.resolv_conf = theirs.resolv_conf;
        launch.extra_hosts.extend(theirs.extra_hosts);
        Some(())
    }
}
