//! Kernel and features.

use super::Check;
use crate::host::{Absence, FeatureName, Features, OLDEST_KERNEL};

pub(super) const RUN_AS_ROOT: &str = "run as root";

pub(super) fn checks(features: &Features) -> Vec<Check> {
    let kernel = &features.kernel;
    let (major, minor) = OLDEST_KERNEL;
    let mut checks = vec![if kernel.version < OLDEST_KERNEL {
        let remedy = format!("use Linux {major}.{minor} or later; 6.9 or later has everything");
        Check::failed("kernel", format!("Linux {} is too old", kernel.release), remedy)
    } else {
        Check::ok("kernel", format!("Linux {}", kernel.release))
    }];
    checks.push(privileges());
    for feature in features.all() {
        let name = feature.name;
        let Some(absence) = feature.absence() else {
            checks.push(Check::ok(name.as_str(), feature.text()));
            continue;
        };
        let message = format!("{absence}; lost: {}", name.loss());
        let remedy = match absence {
            Absence::Forced => {
                format!("take it out of {}", name.switches())
            }
            Absence::Missing(_) => name.remedy().to_owned(),
            Absence::Untried(_) => RUN_AS_ROOT.to_owned(),
            Absence::Needs(other) => other.remedy().to_owned(),
        };
        checks.push(if name == FeatureName::Overlay {
            Check::failed(name.as_str(), message, remedy)
        } else {
            Check::degraded(name.as_str(), message, remedy)
        });
    }
    checks
}

/// Without this one every other check says little.
fn privileges() -> Check {
    let name = "privileges";
    match caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN) {
        Ok(true) => Check::ok(name, "mounts, control groups and containers can be made"),
        Ok(false) if rustix::process::geteuid().is_root() => {
            let message = "CAP_SYS_ADMIN is not granted: nothing can be mounted";
            let remedy = "run outside the sandbox or container, or grant it (`--privileged`)";
            Check::failed(name, message, remedy)
        }
        Ok(false) => {
            let message = "not root: no container can be started, and little can be checked";
            Check::failed(name, message, RUN_AS_ROOT)
        }
        Err(error) => Check::failed(name, error.to_string(), RUN_AS_ROOT),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;
    use crate::host::Kernel;

    #[test]
    fn an_old_kernel_fails_and_names_the_one_that_is_needed() {
        let mut features = Features::assumed();
        assert!(checks(&features).iter().all(|check| check.health == Health::Ok));
        features.kernel = Kernel { release: "4.19.0".to_owned(), version: (4, 19) };
        let check = checks(&features).remove(0);
        assert_eq!((check.name.as_str(), check.health), ("kernel", Health::Failed));
        assert!(check.remedy.unwrap().contains("5.10"));
    }
}
