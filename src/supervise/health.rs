//! From what file and image say of a service's health to the checks that its monitor makes, and back from what these
//! say to what the planner sees. Pure.

use std::time::Duration;

use super::clock::Clock;
use crate::container::{HealthCheck, HealthState, HealthStatus, Probe};
use crate::image::ImageConfig;
use crate::reconcile::{Health, Unhealthy};
use crate::spec::{HealthTest, ProbeTarget, Service};

/// Defaults of compose.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;
/// How often a service is checked until it is healthy, unless the file says. Compose's is the interval, and what depends
/// on a service would wait for so long.
const START_INTERVAL: Duration = Duration::from_secs(1);

/// How the health of a service is checked; `None`: not at all. The file's words come before the image's, and a probe
/// before a test.
pub(super) fn check(service: &Service, image: &ImageConfig) -> Option<HealthCheck> {
    let own = service.healthcheck.clone().unwrap_or_default();
    let of_image = image.healthcheck.as_ref();
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let positive = |duration: Option<Duration>| duration.filter(|duration| !duration.is_zero());
    if let Some(probe) = &service.extensions.probe {
        let interval = positive(probe.interval).unwrap_or(INTERVAL);
        return Some(HealthCheck {
            probe: match &probe.target {
                ProbeTarget::Tcp(port) => Probe::Tcp(*port),
                ProbeTarget::Http { port, path } => Probe::Http { port: *port, path: path.clone() },
            },
            interval_ms: millis(interval),
            start_interval_ms: millis(START_INTERVAL.min(interval)),
            timeout_ms: millis(positive(probe.timeout).unwrap_or(TIMEOUT)),
            start_period_ms: millis(probe.start_period.unwrap_or_default()),
            retries: probe.retries.unwrap_or(RETRIES).max(1),
        });
    }
    let words = match own.test {
        Some(HealthTest::Disabled) => return None,
        Some(HealthTest::Command(words)) => words,
        Some(HealthTest::Shell(text)) => shell(&text),
        None => match of_image?.test.split_first()? {
            (kind, rest) if kind == "CMD" && !rest.is_empty() => rest.to_vec(),
            (kind, [text]) if kind == "CMD-SHELL" => shell(text),
            _ => return None,
        },
    };
    let interval = positive(own.interval.or(of_image.and_then(|image| image.interval)));
    let interval = interval.unwrap_or(INTERVAL);
    let start_interval = own.start_interval.or(of_image.and_then(|image| image.start_interval));
    let timeout = own.timeout.or(of_image.and_then(|image| image.timeout));
    let start_period = own.start_period.or(of_image.and_then(|image| image.start_period));
    let retries = own.retries.or(of_image.and_then(|image| image.retries));
    Some(HealthCheck {
        probe: Probe::Exec(words),
        interval_ms: millis(interval),
        start_interval_ms: millis(positive(start_interval).unwrap_or(START_INTERVAL).min(interval)),
        timeout_ms: millis(positive(timeout).unwrap_or(TIMEOUT)),
        start_period_ms: millis(start_period.unwrap_or_default()),
        // None at all means the default, as under Docker.
        retries: retries.filter(|retries| *retries > 0).unwrap_or(RETRIES),
    })
}

fn shell(text: &str) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()]
}

/// What the planner sees.
pub(super) fn observed(status: Option<&HealthStatus>, clock: &Clock) -> Health {
    let Some(status) = status else { return Health::Unchecked };
    match status.state {
        HealthState::Starting => Health::Starting,
        HealthState::Healthy => Health::Healthy,
        HealthState::Unhealthy => Health::Unhealthy(Unhealthy {
            since: clock.at(status.since),
            was_healthy_since: status.healthy_since.map(|since| clock.at(since)),
            reason: status.reason.clone(),
        }),
    }
}

/// As `ps` and Docker call it; empty without checks.
pub(super) fn word(status: Option<&HealthStatus>) -> &'static str {
    match status.map(|status| status.state) {
        None => "",
        Some(HealthState::Starting) => "starting",
        Some(HealthState::Healthy) => "healthy",
        Some(HealthState::Unhealthy) => "unhealthy",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use crate::spec::{ParseInput, ProjectChoice};

    fn service(keys: &str) -> Service {
        let environment = BTreeMap::new();
        let input = ParseInput {
            file: "services.yaml",
            project: "p".parse().unwrap(),
            project_choice: ProjectChoice::Explicit,
            base_dir: Path::new("/"),
            environment: &environment,
        };
        let text = format!("services: {{web: {{image: i, {keys}}}}}");
        crate::spec::parse(&text, &input).unwrap().services["web"].clone()
    }

    fn image(healthcheck: &str) -> ImageConfig {
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},
            "config":{{"Healthcheck":{healthcheck}}}}}"#
        );
        ImageConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_file_comes_before_the_image_and_a_probe_before_both() {
        let with = r#"{"Test":["CMD-SHELL","look"],"Interval":7000000000,"Retries":5}"#;
        let of = |keys: &str| check(&service(keys), &image(with));
        let inherited = of("").unwrap();
        assert_eq!(inherited.probe, Probe::Exec(shell("look")));
        assert_eq!(
            (inherited.interval_ms, inherited.retries, inherited.timeout_ms),
            (7_000, 5, 30_000)
        );
        let timed = of("healthcheck: {interval: 2s, retries: 0}").unwrap();
        assert_eq!(
            (timed.probe, timed.interval_ms, timed.retries),
            (Probe::Exec(shell("look")), 2_000, 3)
        );
        let own =
            of("healthcheck: {test: [CMD, see], start_interval: 5s, start_period: 1m}").unwrap();
        assert_eq!(own.probe, Probe::Exec(vec!["see".to_owned()]));
        assert_eq!((own.start_interval_ms, own.start_period_ms), (5_000, 60_000));
        assert_eq!(of("healthcheck: {disable: true}"), None);
        let probed =
            of("healthcheck: {disable: true}, x-supervisor: {probe: {tcp: 80, interval: 500ms}}");
        let probed = probed.unwrap();
        assert_eq!((probed.probe, probed.start_interval_ms), (Probe::Tcp(80), 500));
        assert_eq!(check(&service("healthcheck: {interval: 2s}"), &image("null")), None);
    }
}
