//! Registries: name, connection, encryption, authorization, and their clocks beside ours.

use std::error::Error as _;

use jiff::{SignedDuration, Timestamp};

use super::{Check, Patient};
use crate::image::{ImageRef, Platform};
use crate::registry::{BlobSource, Client, FetchError, FetchErrorKind, RetryPolicy};
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
        let name = "registry";
        match client.ping(&host).await {
            Ok(pong) => {
                offset = offset.or(pong.date.map(|date| Timestamp::now().duration_since(date)));
                let how = if pong.is_encrypted { "encrypted" } else { "in the clear" };
                let check = match pong.status {
                    200 => Check::ok(name, format!("answers, {how}")),
                    401 => Check::ok(name, format!("answers, {how}, and asks who we are")),
                    status => {
                        let message = format!("answers with status {status}, {how}");
                        Check::degraded(name, message, format!("check that `{host}` is a registry"))
                    }
                };
                checks.push(check.of(host));
            }
            Err(error) => {
                checks.push(refused(name, &error).of(&host));
                unreachable.push(host);
            }
        }
    }
    for image in &patient.images {
        if host_of(image).is_none_or(|host| !unreachable.contains(&host)) {
            checks.push(check_image(&client, image).await);
        }
    }
    checks.push(clock(Timestamp::now(), offset));
    checks
}

async fn check_image(client: &Client, image: &ImageRef) -> Check {
    let name = "image";
    let check = match client.resolve(image, &Platform::host()).await {
        Ok(resolved) => Check::ok(name, format!("is {}", resolved.manifest_digest)),
        Err(error) => refused(name, &error),
    };
    check.of(image.to_string())
}

fn refused(name: &str, error: &FetchError) -> Check {
    let remedy = error.hint().unwrap_or_else(|| "look at the registry's own log".to_owned());
    // These reasons are complete; what they came from repeats them in the words of three libraries.
    let is_complete = matches!(
        error.kind(),
        FetchErrorKind::Tls
            | FetchErrorKind::Dns
            | FetchErrorKind::Unreachable
            | FetchErrorKind::Timeout
    );
    let message = match error.source() {
        Some(source) if !is_complete => format!("{}: {}", error.reason(), Chain(source)),
        _ => error.reason().to_owned(),
    };
    Check::failed(name, message, remedy)
}

fn clock(now: Timestamp, offset: Option<SignedDuration>) -> Check {
    let name = "clock";
    let shown = now.strftime("%Y-%m-%d %H:%M:%S UTC");
    let remedy = "set the clock, and let something keep it (chrony, systemd-timesyncd)";
    if now.as_second() < UNSET_CLOCK {
        let message = format!("it says {shown}, long ago; certificates will be refused");
        return Check::failed(name, message, remedy);
    }
    let Some(offset) = offset else {
        return Check::ok(name, format!("it says {shown}; no registry told the time"));
    };
    let message = match offset.as_secs() {
        0 => format!("it says {shown}, as a registry's does"),
        1.. => format!("it is {} ahead of a registry's", span(offset)),
        _ => format!("it is {} behind a registry's", span(offset)),
    };
    if offset.abs() > WRONG_CLOCK {
        let message = format!("{message}; certificates and tokens may be refused");
        Check::failed(name, message, remedy)
    } else {
        Check::ok(name, message)
    }
}

fn span(offset: SignedDuration) -> String {
    match offset.as_secs().unsigned_abs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_clock_far_from_the_registry_s_fails() {
        let now: Timestamp = "2026-02-03T04:05:06.7Z".parse().unwrap();
        let clock = |seconds| super::clock(now, Some(SignedDuration::from_secs(seconds)));
        for (seconds, health, text) in [
            (0, Health::Ok, "2026-02-03 04:05:06 UTC, as a registry's does"),
            (-2, Health::Ok, "it is 2 s behind a registry's"),
            (299, Health::Ok, "it is 4 min ahead of"),
            (-4000, Health::Failed, "it is 66 min behind a registry's; certificates and tokens"),
            (400_000, Health::Failed, "it is 4 days ahead of"),
        ] {
            let check = clock(seconds);
            assert_eq!(check.health, health, "{seconds}");
            assert!(check.message.contains(text), "{}", check.message);
        }
    }

    #[test]
    fn a_clock_that_was_never_set_fails_whatever_registries_say() {
        let check = clock(Timestamp::UNIX_EPOCH, None);
        assert_eq!(check.health, Health::Failed);
        assert!(check.message.starts_with("it says 1970-01-01 00:00:00 UTC"), "{}", check.message);
        assert!(check.remedy.unwrap().contains("chrony"));
        assert_eq!(clock(Timestamp::now(), None).health, Health::Ok);
    }
}
