//! What a service may use of the host: memory, processors, processes, and the limits of setrlimit(2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Position;
use super::field::Checker;
use super::object::Found;
use super::raw::{Entry, Node, Value};

/// Names of limits, in the order of `man setrlimit`.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Least memory that a container can start in, as in Docker.
const LEAST_MEMORY: u64 = 6 << 20;
const NANO: u64 = 1_000_000_000;

/// What the user wrote of limits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most memory in bytes.
    pub memory: Option<u64>,
    /// Most memory and swap together.
    pub swap: Option<Swap>,
    /// Memory in bytes that it keeps when the host has little.
    pub memory_reservation: Option<u64>,
    /// Most processors, in billionths.
    pub nano_cpus: Option<u64>,
    /// Weight against other containers, from 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Processors that it may run on, such as `0-2,4`.
    pub cpuset: Option<String>,
    /// Most processes and threads; zero is any number.
    pub pids: Option<u64>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Who is killed first when the host has no memory left, from -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// By name, such as `nofile`.
    pub ulimits: BTreeMap<String, Ulimit>,
}

/// Most memory and swap together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Swap {
    /// Any amount of swap.
    Unlimited,
    /// This many bytes.
    Bytes(u64),
}

/// A limit of setrlimit(2); [`u64::MAX`] is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// The one that holds.
    pub soft: u64,
    /// How far the container can raise it.
    pub hard: u64,
}

impl Checker<'_> {
    /// Reads a key of limits; false if it is none.
    pub(super) fn limit(&mut self, found: &Found<'_>, limits: &mut Limits) -> bool {
        let (path, value) = (found.path.as_str(), found.value);
        match found.key.name {
            "mem_limit" => limits.memory = self.memory(path, value),
            "mem_reservation" => limits.memory_reservation = self.size(path, value),
            "memswap_limit" => limits.swap = self.swap(path, value),
            "cpus" => limits.nano_cpus = self.cpus(path, value),
            "cpu_shares" => {
                let shares = self.integer(path, value, 2, 262_144);
                limits.cpu_shares = shares.and_then(|shares| u64::try_from(shares).ok());
            }
            "cpuset" => limits.cpuset = self.cpuset(path, value),
            "pids_limit" => limits.pids = self.pids(path, value),
            "shm_size" => limits.shm_size = self.size(path, value),
            "oom_score_adj" => {
                let score = self.integer(path, value, -1000, 1000);
                limits.oom_score_adj = score.and_then(|score| i32::try_from(score).ok());
            }
            "ulimits" => limits.ulimits = self.ulimits(path, value),
            _ => return false,
        }
        true
    }

    pub(super) fn memory(&mut self, path: &str, node: &Node) -> Option<u64> {
        let size = self.size(path, node)?;
        // As in Docker.
        if size == 0 {
            return None;
        }
        if size < LEAST_MEMORY {
            self.problem(Some(node.at), path, "no container can start in less than 6 MiB");
            return None;
        }
        Some(size)
    }

    fn swap(&mut self, path: &str, node: &Node) -> Option<Swap> {
        match node.scalar().as_deref() {
            Some("-1") => Some(Swap::Unlimited),
            _ => self.size(path, node).filter(|size| *size > 0).map(Swap::Bytes),
        }
    }

    pub(super) fn cpus(&mut self, path: &str, node: &Node) -> Option<u64> {
        let text = self.text(path, node)?;
        let nano = nano(&text).filter(|nano| *nano == 0 || *nano >= NANO / 100);
        if nano.is_none() {
            let message = format!("`{text}` is no number of processors from 0.01");
            self.problem(Some(node.at), path, message);
        }
        nano.filter(|nano| *nano > 0)
    }

    fn cpuset(&mut self, path: &str, node: &Node) -> Option<String> {
        let text = self.text(path, node)?;
        let number = |text: &str| text.parse::<u16>().ok();
        let is_range = |range: &str| match range.split_once('-') {
            Some((first, last)) => {
                matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
            }
            None => number(range).is_some(),
        };
        if !text.split(',').all(is_range) {
            let message = format!("`{text}` is no list of processors such as `0-2,4`");
            self.problem(Some(node.at), path, message);
            return None;
        }
        Some(text)
    }

    pub(super) fn pids(&mut self, path: &str, node: &Node) -> Option<u64> {
        let pids = self.integer(path, node, -1, 4_194_304)?;
        Some(u64::try_from(pids).unwrap_or(0))
    }

    fn ulimits(&mut self, path: &str, node: &Node) -> BTreeMap<String, Ulimit> {
        let mut ulimits = BTreeMap::new();
        let Value::Map(entries) = &node.value else {
            self.mismatch(path, node, "a mapping from names such as `nofile`");
            return ulimits;
        };
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            if key.starts_with("x-") || value.value == Value::Null {
                continue;
            }
            if !ULIMITS.contains(&key.as_str()) {
                let message = format!("unknown limit `{key}`; there are {}", ULIMITS.join(", "));
                self.problem(Some(*at), path, message);
                continue;
            }
            let one = |checker: &mut Self, path: &str, node: &Node| {
                let number = checker.integer(path, node, -1, i64::MAX)?;
                Some(u64::try_from(number).unwrap_or(u64::MAX))
            };
            let limit = if let Value::Map(_) = value.value {
                let mut side = |name: &str| {
                    let Some(given) = value.get(name) else {
                        self.problem(Some(value.at), path, format!("there is no `{name}:`"));
                        return None;
                    };
                    one(self, &format!("{path}.{name}"), given)
                };
                let (soft, hard) = (side("soft"), side("hard"));
                soft.zip(hard)
            } else {
                one(self, path, value).map(|limit| (limit, limit))
            };
            match limit {
                Some((soft, hard)) if soft > hard => {
                    self.problem(Some(value.at), path, "`soft` is more than `hard`");
                }
                Some((soft, hard)) => drop(ulimits.insert(key.clone(), Ulimit { soft, hard })),
                None => {}
            }
        }
        ulimits
    }

    /// Takes over what `deploy` says, which may not be something else than what the service says.
    pub(super) fn same<T: PartialEq>(
        &mut self,
        (at, path): (Position, &str),
        slot: &mut Option<T>,
        given: Option<T>,
        other: &str,
    ) {
        if slot.is_some() && given.is_some() && *slot != given {
            let message = format!("it is not the same as `{other}` of the service; leave one out");
            self.problem(Some(at), path, message);
        } else if given.is_some() {
            *slot = given;
        }
    }

    /// What only all limits together can tell.
    pub(super) fn check_limits(&mut self, at: Position, path: &str, limits: &Limits) {
        match (limits.swap, limits.memory) {
            (Some(_), None) => {
                self.problem(Some(at), path, "`memswap_limit` has no meaning without `mem_limit`");
            }
            (Some(Swap::Bytes(both)), Some(memory)) if both < memory => {
                let message = "`memswap_limit` counts memory too, so it is at least `mem_limit`";
                self.problem(Some(at), path, message);
            }
            _ => {}
        }
        if limits.memory.zip(limits.memory_reservation).is_some_and(|(most, least)| least > most) {
            self.problem(Some(at), path, "more memory is reserved than `mem_limit` allows");
        }
    }
}

/// Billionths of a decimal number.
fn nano(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Anything finer than a billionth says nothing.
    let fraction: u64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    whole.checked_mul(NANO)?.checked_add(fraction).filter(|nano| *nano <= 100_000 * NANO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_processors_are_exact() {
        for (text, expected) in [
            ("0.5", Some(500_000_000)),
            (".25", Some(250_000_000)),
            ("2", Some(2 * NANO)),
            ("1.1234567891", Some(1_123_456_789)),
            ("1.", Some(NANO)),
            (".", None),
            ("", None),
            ("-1", None),
            ("1e3", None),
            ("99999999999", None),
        ] {
            assert_eq!(nano(text), expected, "{text}");
        }
    }
}
