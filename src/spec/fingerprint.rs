//! What a container was made from, as digests: the way to tell whether a service changed, and where.
//!
//! Only what the user wrote is in a fingerprint. A default of ours that changes therefore recreates nothing by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Access, Bind, CopyUp, Device, Dns, ExtraHost, FirstProcess, Grant, GrantContent, GrantKind,
    HealthTest, Healthcheck, HostAddress, ImageVolume, Kernel, Limits, NamedVolume, Port,
    Privileges, Probe, ProbeTarget, Service, Swap, SystemCalls, Tmpfs,
};
use crate::image::{Digest, Hasher};

/// Version of the encoding below. The encoding of a field never changes within a version; a key that is implemented
/// later is a new field, and no older container can have had it.
const SCHEMA: u32 = 1;

/// Digest of each field that the user wrote, by name (`image`, `environment.PORT`).
///
/// Kept in the record of a container. Variables have a digest each, so that a plan can name the one that changed
/// without the record holding its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    schema: u32,
    fields: BTreeMap<String, Digest>,
}

impl Fingerprint {
    /// Of nothing that anybody wrote; differs from that of every service, which has an image at least.
    #[must_use]
    pub fn none() -> Self {
        Self { schema: SCHEMA, fields: BTreeMap::new() }
    }

    /// One digest over the fingerprint.
    #[must_use]
    pub fn hash(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(format!("supervisor service {}\n", self.schema).as_bytes());
        for (field, digest) in &self.fields {
            // Lengths in front keep the encoding free of ambiguity, whatever a name holds.
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field.as_bytes());
            hasher.update(digest.as_bytes());
        }
        hasher.finish()
    }

    /// Names of the fields that differ, in order; empty when nothing changed. Schemas are not compared, so that an
    /// upgrade of this program is no change of a service.
    #[must_use]
    pub fn changed_fields(&self, other: &Self) -> Vec<String> {
        let names = self.fields.keys().chain(other.fields.keys());
        let mut changed: Vec<String> = names
            .filter(|name| self.fields.get(*name) != other.fields.get(*name))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

impl Service {
    /// The digests of what the user wrote for this service.
    ///
    /// `restart` is left out: the planner obeys it, the container does not hold it, so it applies at once.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        // Every field is named, so that a new one cannot be forgotten here.
        let Self {
            name: _,
            image,
            command,
            entrypoint,
            environment,
            working_dir,
            user,
            volumes,
            read_only,
            restart: _,
            stop_signal,
            stop_grace_period,
            network_mode,
            networks,
            // Accepted without effect by versions whose containers may still run; it applies from the next start.
            container_name: _,
            logging,
            named_volumes,
            image_volumes,
            grants,
            tmpfs,
            hostname,
            extra_hosts,
            dns,
            limits,
            privileges,
            kernel,
            first,
            ports,
            // The planner's, not the container's: it applies at once.
            depends_on: _,
            healthcheck,
            extensions,
        } = self;
        let mut fields = BTreeMap::new();
        let mut add = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                fields.insert(field.to_owned(), Digest::of(value.to_string().as_bytes()));
            }
        };
        add("image", Some(json!(image.to_string())));
        add("command", command.as_ref().map(|words| json!(words)));
        add("entrypoint", entrypoint.as_ref().map(|words| json!(words)));
        for (variable, value) in environment {
            add(&format!("environment.{variable}"), Some(json!(value)));
        }
        add("working_dir", working_dir.as_ref().map(|path| json!(path)));
        add("user", user.as_ref().map(|user| json!(user)));
        add("volumes", some(volumes).map(volumes_json));
        add("read_only", read_only.map(|value| json!(value)));
        add("stop_signal", stop_signal.map(|signal| json!(signal.number())));
        let grace = stop_grace_period.map(|grace| json!(grace.as_nanos().to_string()));
        add("stop_grace_period", grace);
        add("network_mode", network_mode.as_ref().map(|mode| json!(mode.to_string())));
        networks.iter().filter(|n| n.is_asked).for_each(|network| {
            add(&format!("networks.{}", network.key), Some(network.written()));
        });
        // The monitor of a container learns it at its start; compose recreates for it too.
        let logging = logging.as_ref().filter(|logging| **logging != super::Logging::default());
        add("logging", logging.map(super::Logging::written));
        add("named_volumes", some(named_volumes).map(named_volumes_json));
        add("image_volumes", some(image_volumes).map(image_volumes_json));
        for kind in GrantKind::ALL {
            let of_kind: Vec<&Grant> = grants.iter().filter(|grant| grant.kind == kind).collect();
            add(kind.key(), some(&of_kind).map(grants_json));
        }
        add("tmpfs", some(tmpfs).map(tmpfs_json));
        add("hostname", hostname.as_ref().map(|name| json!(name)));
        add("extra_hosts", some(extra_hosts).map(hosts_json));
        add("dns", (*dns != Dns::default()).then(|| dns_json(dns)));
        for (name, value) in limits_json(limits) {
            add(&name, Some(value));
        }
        add("privileges", privileges_json(privileges));
        for (name, value) in kernel_json(kernel, first, privileges) {
            add(&name, Some(value));
        }
        add("ports", some(ports).map(ports_json));
        add("healthcheck", healthcheck.as_ref().and_then(healthcheck_json));
        add("x-supervisor.probe", extensions.probe.as_ref().map(probe_json));
        Fingerprint { schema: SCHEMA, fields }
    }

    /// One digest over what the user wrote; equal for files that mean the same.
    #[must_use]
    pub fn config_hash(&self) -> Digest {
        self.fingerprint().hash()
    }
}

/// A check that is disabled is none: containers of versions that made none have no such field.
fn healthcheck_json(check: &Healthcheck) -> Option<Value> {
    let test = match &check.test {
        Some(HealthTest::Disabled) => return None,
        Some(HealthTest::Command(words)) => json!(["CMD", words]),
        Some(HealthTest::Shell(text)) => json!(["CMD-SHELL", text]),
        None => Value::Null,
    };
    let Healthcheck { test: _, interval, timeout, start_period, start_interval, retries } = check;
    let times = [interval, timeout, start_period, start_interval].map(|time| nanos(*time));
    Some(json!([test, times, retries]))
}

fn probe_json(probe: &Probe) -> Value {
    let Probe { target, interval, timeout, start_period, retries } = probe;
    let target = match target {
        ProbeTarget::Tcp(port) => json!(["tcp", port]),
        ProbeTarget::Http { port, path } => json!(["http", port, path]),
    };
    let times = [interval, timeout, start_period].map(|time| nanos(*time));
    json!([target, times, retries])
}

fn nanos(time: Option<Duration>) -> Option<String> {
    time.map(|time| time.as_nanos().to_string())
}

fn some<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

fn volumes_json(volumes: &[Bind]) -> Value {
    let one = |bind: &Bind| {
        // Bytes, since a path need not be UTF-8.
        let source = bind.source.as_os_str().as_encoded_bytes();
        json!([source, bind.target, matches!(bind.access, Access::ReadOnly)])
    };
    Value::Array(volumes.iter().map(one).collect())
}

fn image_volumes_json(volumes: &[ImageVolume]) -> Value {
    let one =
        |volume: &ImageVolume| json!([volume.image.to_string(), volume.target, volume.subpath]);
    Value::Array(volumes.iter().map(one).collect())
}

fn named_volumes_json(volumes: &[NamedVolume]) -> Value {
    let one = |named: &NamedVolume| {
        let read_only = named.access == Access::ReadOnly;
        json!([named.volume, named.target, read_only, named.copy_up == CopyUp::Never])
    };
    volumes.iter().map(one).collect()
}

fn grants_json(grants: &[&Grant]) -> Value {
    let one = |grant: &&Grant| {
        let content = match &grant.content {
            GrantContent::File(path) => json!(["file", path.as_os_str().as_encoded_bytes()]),
            GrantContent::Text(text) => json!(["text", text]),
        };
        json!([grant.target, content, grant.uid, grant.gid, grant.mode])
    };
    grants.iter().map(one).collect()
}

fn tmpfs_json(tmpfs: &[Tmpfs]) -> Value {
    let one = |t: &Tmpfs| json!([t.target, t.size, t.mode, t.access == Access::ReadOnly]);
    tmpfs.iter().map(one).collect()
}

fn hosts_json(hosts: &[ExtraHost]) -> Value {
    let one = |host: &ExtraHost| match host.address {
        HostAddress::Ip(ip) => json!([host.name, ip.to_string()]),
        HostAddress::Gateway => json!([host.name, "host-gateway"]),
    };
    hosts.iter().map(one).collect()
}

fn dns_json(dns: &Dns) -> Value {
    let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
    json!([servers, dns.search, dns.options])
}

fn limits_json(limits: &Limits) -> Vec<(String, Value)> {
    // Every field is named, so that a new one cannot be forgotten here.
    let Limits {
        memory,
        swap,
        memory_reservation,
        nano_cpus,
        cpu_shares,
        cpuset,
        pids,
        shm_size,
        oom_score_adj,
        ulimits,
    } = limits;
    let swap = swap.map(|swap| match swap {
        Swap::Unlimited => json!(-1),
        Swap::Bytes(bytes) => json!(bytes),
    });
    let mut fields: Vec<(String, Value)> = [
        ("mem_limit", memory.map(Value::from)),
        ("memswap_limit", swap),
        ("mem_reservation", memory_reservation.map(Value::from)),
        ("cpus", nano_cpus.map(Value::from)),
        ("cpu_shares", cpu_shares.map(Value::from)),
        ("cpuset", cpuset.clone().map(Value::from)),
        ("pids_limit", pids.map(Value::from)),
        ("shm_size", shm_size.map(Value::from)),
        ("oom_score_adj", oom_score_adj.map(Value::from)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    fields.extend(
        ulimits.iter().map(|(name, u)| (format!("ulimits.{name}"), json!([u.soft, u.hard]))),
    );
    fields
}

fn privileges_json(privileges: &Privileges) -> Option<Value> {
    // A field of its own.
    let others = Privileges { privileged: None, ..privileges.clone() };
    if others == Privileges::default() {
        return None;
    }
    let Privileges { cap_add, cap_drop, no_new_privileges, system_calls, privileged: _ } = others;
    Some(json!([cap_add, cap_drop, no_new_privileges, system_calls == SystemCalls::Unconfined]))
}

fn kernel_json(
    kernel: &Kernel,
    first: &FirstProcess,
    privileges: &Privileges,
) -> Vec<(String, Value)> {
    // Every field is named, so that a new one cannot be forgotten here.
    let Kernel { devices, sysctls, domainname } = kernel;
    let FirstProcess { groups, init, stdin_open } = first;
    // `false` is what older versions took and kept nothing of.
    let is_true = |value: &Option<bool>| (*value == Some(true)).then_some(json!(true));
    let mut fields: Vec<(String, Value)> = [
        ("privileged", is_true(&privileges.privileged)),
        ("init", is_true(init)),
        ("stdin_open", is_true(stdin_open)),
        ("group_add", some(groups).map(|groups| json!(groups))),
        ("devices", some(devices).map(devices_json)),
        ("domainname", domainname.as_ref().map(|name| json!(name))),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?)))
    .collect();
    fields.extend(sysctls.iter().map(|(name, value)| (format!("sysctls.{name}"), json!(value))));
    fields
}

fn devices_json(devices: &[Device]) -> Value {
    let one = |device: &Device| {
        let source = device.source.as_os_str().as_encoded_bytes();
        json!([source, device.target, device.permissions])
    };
    devices.iter().map(one).collect()
}

fn ports_json(ports: &[Port]) -> Value {
    let one = |port: &Port| {
        let ip = port.host_ip.map(|ip| ip.to_string());
        json!([ip, port.published, port.target, port.protocol.as_str()])
    };
    ports.iter().map(one).collect()
}
