//! Registries: name, connection, encryption, authorization, and their clocks beside ours.

use jiff::{SignedDuration, Timestamp};

use super::{Check, Patient};
use crate::image::{ImageRef, Platform};
use crate::registry::{BlobSource, Client, FetchError, RetryPolicy};
use crate::telemetry::Chain;

/// More makes tokens and fresh certificates invalid.
const WRONG_CLOCK: SignedDuration = SignedDuration::from_mins(5);
/// A clock before this (2025) has not been set since the host was made.
const UNSET_CLOCK: i64 = 1_735_689_600;

pub(super) async fn checks(patient: &Patient) -> Vec<Check> {
    let mut options = patient.registry.clone();
    // Somebody waits for the answer, and a second attempt would only repeat the reason.
    options.retry = RetryPolicy { attempts: 1, ..options.retry };
    let client = match Client::new(options) {
        Ok(client) => client,
        Err(error) => {
            let message = Chain(&error).to_string();
            return vec![Check::failed("registry-client", message, "correct the settings")];
        }
    };
    let host_of = |image: &ImageRef| match BlobSource::of(image) {
        BlobSource::Registry { host, .. } => Some(host),
        BlobSource::Layout { .. } => None,
    };
    let mut hosts = patient.hosts.clone();
    hosts.extend(patient.images.iter().filter_map(host_of));
    hosts.sort_unstable();
    hosts.dedup();
    let (mut checks, mut offset, mut unreachable) = (Vec::new(), None, Vec::new());
    for host in hosts {
        let name = format!("registry {host}");
        match client.ping(&host).await {
            Ok(pong) => {
                offset = offset.or(pong.date.map(|date| Timestamp::now().duration_since(date)));
                let how = if pong.is_encrypted { "encrypted" } else { "in the clear" };
                checks.push(match pong.status {
                    200 => Check::ok(name, format!("answers, {how}")),
                    401 => Check::ok(name, format!("answers, {how}, and asks who we are")),
                    status => {
                        let message = format!("answers with status {status}, {how}");
                        Check::degraded(name, message, format!("check that `{host}` is a registry"))
                    }
                });
            }
            Err(error) => {
                checks.push(refused(name, &error));
                unreachable.push(host);
            }
        }
    }
    for image in &patient.images {
        if host_of(image).is_none_or(|host| !unreachable.contains(&host)) {
            checks.push(check_image(&client, image).await);
        }
    }
    checks.push(clock(offset));
    checks
}

async fn check_image(client: &Client, image: &ImageRef) -> Check {
    let name = format!("image {image}");
    match client.resolve(image, &Platform::host()).await {
        Ok(resolved) => Check::ok(name, format!("is {}", resolved.manifest_digest)),
        Err(error) => refused(name, &error),
    }
}

fn refused(name: String, error: &FetchError) -> Check {
    let remedy = error.hint().unwrap_or_else(|| "look at the registry's own log".to_owned());
    Check::failed(name, Chain(error).to_string(), remedy)
}

fn clock(offset: Option<SignedDuration>) -> Check {
    let name = "clock";
    let now = Timestamp::now();
    let remedy = "set the clock, and let something keep it (chrony, systemd-timesyncd)";
    if now.as_second() < UNSET_CLOCK {
        let message = format!("it says {now}, long ago; certificates will be refused");
        return Check::failed(name, message, remedy);
    }
    let Some(offset) = offset else {
        return Check::ok(name, format!("it says {now}; no registry told the time"));
    };
    let message = format!("{} s off a registry's", offset.as_secs());
    if offset.abs() > WRONG_CLOCK {
        let message = format!("{message}; certificates and tokens may be refused");
        Check::failed(name, message, remedy)
    } else {
        Check::ok(name, message)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_clock_far_from_the_registry_s_fails() {
        assert_eq!(clock(None).health, Health::Ok);
        assert_eq!(clock(Some(SignedDuration::from_secs(-2))).health, Health::Ok);
        for seconds in [-4000, 4000] {
            assert_eq!(clock(Some(SignedDuration::from_secs(seconds))).health, Health::Failed);
        }
    }
}
