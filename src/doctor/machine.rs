//! Kernel and features.

use super::Check;
use crate::host::{Absence, FeatureName, Features, OLDEST_KERNEL};

pub(super) fn checks(features: &Features) -> Vec<Check> {
    let kernel = &features.kernel;
    let (major, minor) = OLDEST_KERNEL;
    let mut checks = vec![if kernel.version < OLDEST_KERNEL {
        let remedy = format!("use Linux {major}.{minor} or later; 6.9 or later has everything");
        Check::failed("kernel", format!("Linux {} is too old", kernel.release), remedy)
    } else {
        Check::ok("kernel", format!("Linux {}", kernel.release))
    }];
    for feature in features.all() {
        let name = feature.name;
        let Some(absence) = feature.absence() else {
            checks.push(Check::ok(name.as_str(), feature.text()));
            continue;
        };
        let message = format!("{absence}; lost: {}", name.loss());
        let remedy = match absence {
            Absence::Forced => {
                format!("take `{name}` out of SUPERVISOR_DISABLE (or out of its own variable)")
            }
            Absence::Missing(_) => name.remedy().to_owned(),
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
