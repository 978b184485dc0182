//! What a container may use of the host and what it is allowed to do, as parts of the runtime configuration. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::PassedDevice;
use super::capability::{CgroupLayout, granted};

/// Length of the period that processor time is counted in, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

/// What differs from the defaults of every container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Most memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Most memory and swap together in bytes; -1 is any amount of swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// Memory in bytes that it keeps when the host has little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<u64>,
    /// Most processors, in billionths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Weight against other containers, 1024 where `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processors that it may run on, as a list of ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Most processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Size of `/dev/shm` in bytes, 64 MiB where `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// From -1000 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Limits of setrlimit(2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Capabilities besides the default ones, such as `CAP_NET_ADMIN`; `ALL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities that are taken away; `ALL`. What is added by name stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Which system calls are let through.
    #[serde(default, skip_serializing_if = "Filter::is_default")]
    pub filter: Filter,
    /// It may do what root of the host may: all capabilities and devices, and nothing of the kernel is hidden.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub privileged: bool,
    /// Devices of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<PassedDevice>,
    /// Settings of the kernel, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
}

/// A limit of setrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Such as `RLIMIT_NOFILE`.
    pub name: String,
    /// The one that holds.
    pub soft: u64,
    /// How far the container can raise it.
    pub hard: u64,
}

/// Which system calls are let through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Those of Docker's default profile.
    #[default]
    Default,
    /// All.
    None,
}

impl Filter {
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

impl Bounds {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The capabilities on such a host, where we have `ours` ourselves. One that is asked for by name is granted
    /// whatever guards the host has; *all* are those that there are to be had.
    pub(super) fn capabilities(&self, layout: CgroupLayout, ours: &[String]) -> Vec<String> {
        let has = |list: &[String], name: &str| list.iter().any(|other| other == name);
        let adds_all = self.privileged || has(&self.cap_add, "ALL");
        let mut set: Vec<String> = match (adds_all, has(&self.cap_drop, "ALL")) {
            (true, _) => {
                let all = crate::spec::Privileges::all().into_iter();
                all.filter(|name| has(ours, name)).collect()
            }
            (false, true) => Vec::new(),
            (false, false) => granted(layout).into_iter().map(str::to_owned).collect(),
        };
        set.retain(|name| !has(&self.cap_drop, name));
        for name in self.cap_add.iter().filter(|name| *name != "ALL") {
            if !has(&set, name) {
                set.push(name.clone());
            }
        }
        set
    }

    /// Limits that control groups enforce, without the rules for devices.
    pub(super) fn resources(&self) -> Map<String, Value> {
        let mut resources = Map::new();
        let mut memory = Map::new();
        memory.extend(self.memory.map(|bytes| ("limit".to_owned(), json!(bytes))));
        memory.extend(self.swap.map(|bytes| ("swap".to_owned(), json!(bytes))));
        let reservation = self.memory_reservation;
        memory.extend(reservation.map(|bytes| ("reservation".to_owned(), json!(bytes))));
        if !memory.is_empty() {
            resources.insert("memory".to_owned(), memory.into());
        }
        let mut cpu = Map::new();
        if let Some((quota, period)) = self.cpu_quota() {
            cpu.insert("period".to_owned(), json!(period));
            cpu.insert("quota".to_owned(), json!(quota));
        }
        cpu.extend(self.cpu_shares.map(|shares| ("shares".to_owned(), json!(shares))));
        cpu.extend(self.cpuset.as_ref().map(|cpus| ("cpus".to_owned(), json!(cpus))));
        if !cpu.is_empty() {
            resources.insert("cpu".to_owned(), cpu.into());
        }
        if let Some(pids) = self.pids {
            resources.insert("pids".to_owned(), json!({ "limit": pids }));
        }
        resources
    }

    /// How much processor time it may use in a period, and the period, in microseconds.
    pub(super) fn cpu_quota(&self) -> Option<(i64, u64)> {
        let nano = self.nano_cpus?;
        // The kernel takes no quota below a millisecond.
        let quota = (u128::from(nano) * u128::from(PERIOD) / 1_000_000_000).max(1000);
        Some((i64::try_from(quota).unwrap_or(i64::MAX), PERIOD))
    }

    /// The limits of setrlimit(2).
    pub(super) fn rlimits(&self) -> Value {
        let one = |rlimit: &Rlimit| json!({ "type": rlimit.name, "soft": rlimit.soft, "hard": rlimit.hard });
        self.rlimits.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str]) -> Vec<String> {
        let texts = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let bounds = Bounds { cap_add: texts(add), cap_drop: texts(drop), ..Bounds::default() };
        let ours: Vec<String> = crate::spec::Privileges::all().into_iter().collect();
        let same = bounds.capabilities(CgroupLayout::Unified, &ours);
        let fewer = bounds.capabilities(CgroupLayout::Unified, &ours[1..]);
        assert!(fewer == same || add.contains(&"ALL") && fewer.len() < same.len(), "{fewer:?}");
        same
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_under_docker() {
        assert_eq!(names(&[], &[]).len(), 13);
        assert!(!names(&[], &["CAP_CHOWN"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(names(&["CAP_CHOWN"], &["ALL"]), ["CAP_CHOWN"]);
        assert_eq!(names(&["ALL"], &[]).len(), 41);
        assert_eq!(names(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        assert!(names(&["CAP_MKNOD"], &[]).contains(&"CAP_MKNOD".to_owned()));
    }

    #[test]
    fn limits_are_those_of_the_runtime_specification() {
        let bounds = Bounds {
            memory: Some(64 << 20),
            nano_cpus: Some(500_000_000),
            cpuset: Some("0".to_owned()),
            pids: Some(20),
            ..Bounds::default()
        };
        let expected = json!({
            "memory": { "limit": 64 << 20 },
            "cpu": { "period": 100_000, "quota": 50_000, "cpus": "0" },
            "pids": { "limit": 20 },
        });
        assert_eq!(Value::from(bounds.resources()), expected);
        assert!(Bounds::default().resources().is_empty());
        let text = serde_json::to_string(&bounds).unwrap();
        assert_eq!(serde_json::from_str::<Bounds>(&text).unwrap(), bounds);
    }
}
