//! `deploy` of a service: what of it has a meaning on one host.

use super::RestartPolicy;
use super::field::Checker;
use super::keys;
use super::limits::Limits;
use super::object::Found;
use super::raw::Node;

impl Checker<'_> {
    /// Reads `deploy`, whose limits are added to those of the service. The restart policy wins over `restart`.
    pub(super) fn deploy(
        &mut self,
        path: &str,
        node: &Node,
        limits: &mut Limits,
        restart: &mut Option<RestartPolicy>,
    ) {
        for found in self.entries(path, node, keys::DEPLOY) {
            match found.key.name {
                "replicas" => self.only(&found, &["1"]),
                "mode" => self.only(&found, &["replicated"]),
                "resources" => self.resources(&found, limits),
                "restart_policy" => {
                    *restart = self.deploy_restart(&found).or(*restart);
                }
                _ => self.leave(&found),
            }
        }
    }

    fn resources(&mut self, found: &Found<'_>, limits: &mut Limits) {
        for part in self.entries(&found.path, found.value, keys::RESOURCES) {
            let of_limits = part.key.name == "limits";
            let keys = if of_limits { keys::LIMITS } else { keys::RESERVATIONS };
            for found in self.entries(&part.path, part.value, keys) {
                let (path, value) = (found.path.as_str(), found.value);
                let place = (found.at, path);
                match (of_limits, found.key.name) {
                    (true, "memory") => {
                        let given = self.memory(path, value);
                        self.same(place, &mut limits.memory, given, "mem_limit");
                    }
                    (true, "cpus") => {
                        let given = self.cpus(path, value);
                        self.same(place, &mut limits.nano_cpus, given, "cpus");
                    }
                    (true, "pids") => {
                        let given = self.pids(path, value);
                        self.same(place, &mut limits.pids, given, "pids_limit");
                    }
                    (false, "memory") => {
                        let given = self.size(path, value);
                        let slot = &mut limits.memory_reservation;
                        self.same(place, slot, given, "mem_reservation");
                    }
                    _ => self.leave(&found),
                }
            }
        }
    }

    fn deploy_restart(&mut self, found: &Found<'_>) -> Option<RestartPolicy> {
        let (mut condition, mut max) = ("any".to_owned(), None);
        for found in self.entries(&found.path, found.value, keys::RESTART_POLICY) {
            let (path, value) = (found.path.as_str(), found.value);
            match found.key.name {
                "condition" => condition = self.text(path, value)?,
                "max_attempts" => {
                    let attempts = self.integer(path, value, 0, i64::from(u32::MAX))?;
                    max = u32::try_from(attempts).ok().filter(|attempts| *attempts > 0);
                }
                "delay" | "window" => drop(self.duration(path, value)),
                _ => self.leave(&found),
            }
        }
        let policy = match condition.as_str() {
            "none" | "no" => Ok(RestartPolicy::No),
            "on-failure" => Ok(RestartPolicy::OnFailure { max }),
            "any" | "always" => Ok(RestartPolicy::Always),
            "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
            _ => Err(format!("unknown condition `{condition}`; use `none`, `on-failure` or `any`")),
        };
        if max.is_some() && !matches!(policy, Ok(RestartPolicy::OnFailure { .. }) | Err(_)) {
            let message = "`max_attempts` is not supported without `condition: on-failure`";
            self.unsupported(found.value.at, &found.path, message);
        }
        self.checked(&found.path, found.value, policy)
    }
}
