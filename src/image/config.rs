//! The image configuration: how its author wants it to be run, and what its layers inflate to.
//!
//! `oci-spec` has a type for it, which is not used here: it lacks Docker's health check, loses the order and the
//! determinism of maps, and refuses the `null`s and the missing fields that real images have.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Digest, DigestError, DocumentError, MAX_DOCUMENT_SIZE, Platform};

/// What an image says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// What it was built for.
    pub platform: Platform,
    /// Comes before the command.
    pub entrypoint: Vec<String>,
    /// The default command, or the default arguments of the entry point.
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// Where processes start; `None` is `/`.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` …; `None` is root.
    pub user: Option<String>,
    /// Name or number of the signal that asks for a clean stop.
    pub stop_signal: Option<String>,
    /// `port/protocol`, for information; sorted.
    pub exposed_ports: Vec<String>,
    /// Paths that the author wants to outlive the container; sorted.
    pub volumes: Vec<String>,
    /// Free-form.
    pub labels: BTreeMap<String, String>,
    /// Docker's extension; `None` also where the image switches it off.
    pub healthcheck: Option<ImageHealthcheck>,
    /// Digests of the inflated layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// RFC 3339, as written.
    pub created: Option<String>,
    /// How it was built, oldest step first.
    pub history: Vec<HistoryStep>,
}

/// A health check as an image carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHealthcheck {
    /// `["CMD", args…]` or `["CMD-SHELL", command]`.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: Option<Duration>,
    /// After which a check has failed.
    pub timeout: Option<Duration>,
    /// In which failures do not count.
    pub start_period: Option<Duration>,
    /// Between two checks in the start period.
    pub start_interval: Option<Duration>,
    /// Failures in a row until the container is unhealthy.
    pub retries: Option<u32>,
}

/// One step of an image's build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStep {
    /// RFC 3339, as written.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// Whether the step made no layer.
    pub empty_layer: bool,
}

#[derive(Deserialize)]
struct Raw {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: RawRootfs,
    history: Option<Vec<RawHistory>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawHistory {
    created: Option<String>,
    created_by: Option<String>,
    empty_layer: Option<bool>,
}

/// Go's sets are maps to empty objects.
type Set = BTreeMap<String, serde::de::IgnoredAny>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    exposed_ports: Option<Set>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<Set>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    stop_signal: Option<String>,
    healthcheck: Option<RawHealthcheck>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawHealthcheck {
    test: Option<Vec<String>>,
    interval: Option<i64>,
    timeout: Option<i64>,
    start_period: Option<i64>,
    start_interval: Option<i64>,
    retries: Option<i64>,
}

impl ImageConfig {
    /// Reads the configuration of an image.
    ///
    /// # Errors
    /// When it is too large, no JSON, no image configuration, names an inflated layer by a digest that cannot be
    /// checked, or holds a NUL byte in something that is handed to the kernel.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if size > MAX_DOCUMENT_SIZE {
            return Err(DocumentError::TooLarge(size));
        }
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { kind: "image configuration", source })?;
        let config = raw.config.unwrap_or_default();
        let diff_ids = raw
            .rootfs
            .diff_ids
            .unwrap_or_default()
            .iter()
            .enumerate()
            .map(|(number, text)| diff_id(number, text))
            .collect::<Result<_, _>>()?;
        let text = |text: Option<String>| text.filter(|text| !text.is_empty());
        let parsed = Self {
            // Old builders left both out and built for what everybody had.
            platform: Platform::new(
                text(raw.os).as_deref().unwrap_or("linux"),
                text(raw.architecture).as_deref().unwrap_or("amd64"),
                raw.variant.as_deref(),
            ),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            working_dir: text(config.working_dir),
            user: text(config.user),
            stop_signal: text(config.stop_signal),
            exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            labels: config
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.unwrap_or_default()))
                .collect(),
            healthcheck: config.healthcheck.and_then(healthcheck),
            diff_ids,
            created: text(raw.created),
            history: raw
                .history
                .unwrap_or_default()
                .into_iter()
                .map(|step| HistoryStep {
                    created: step.created,
                    created_by: step.created_by,
                    empty_layer: step.empty_layer.unwrap_or(false),
                })
                .collect(),
        };
        parsed.refuse_nul()?;
        Ok(parsed)
    }

    fn refuse_nul(&self) -> Result<(), DocumentError> {
        let single = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains('\0'));
        let many = |texts: &[String]| texts.iter().any(|text| text.contains('\0'));
        for (field, bad) in [
            ("Entrypoint", many(&self.entrypoint)),
            ("Cmd", many(&self.cmd)),
            ("Env", many(&self.env)),
            ("Volumes", many(&self.volumes)),
            ("WorkingDir", single(&self.working_dir)),
            ("User", single(&self.user)),
        ] {
            if bad {
                return Err(DocumentError::Nul(field));
            }
        }
        Ok(())
    }
}

fn diff_id(number: usize, text: &str) -> Result<Digest, DocumentError> {
    text.parse().map_err(|source: DigestError| DocumentError::Digest {
        of: format!("inflated layer {}", number + 1),
        source,
    })
}

/// Docker writes nanoseconds, and zero for "the default".
fn healthcheck(raw: RawHealthcheck) -> Option<ImageHealthcheck> {
    let test = raw.test.unwrap_or_default();
    if matches!(test.first().map(String::as_str), None | Some("NONE")) {
        return None;
    }
    let nanos = |nanos: Option<i64>| {
        nanos
            .and_then(|nanos| u64::try_from(nanos).ok())
            .filter(|nanos| *nanos > 0)
            .map(Duration::from_nanos)
    };
    Some(ImageHealthcheck {
        test,
        interval: nanos(raw.interval),
        timeout: nanos(raw.timeout),
        start_period: nanos(raw.start_period),
        start_interval: nanos(raw.start_interval),
        retries: raw
            .retries
            .and_then(|retries| u32::try_from(retries).ok())
            .filter(|retries| *retries > 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{
      "architecture":"arm64","variant":"v8","os":"linux","created":"2026-01-01T00:00:00Z",
      "config":{"User":"app:web","ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Env":["PATH=/bin","A=b=c"],
        "Entrypoint":["/init"],"Cmd":["run","--now"],"Volumes":{"/data":{}},"WorkingDir":"/srv",
        "Labels":{"k":"v","n":null},"StopSignal":"SIGQUIT",
        "Healthcheck":{"Test":["CMD","/check"],"Interval":30000000000,"Timeout":0,"Retries":3}},
      "rootfs":{"type":"layers","diff_ids":["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]},
      "history":[{"created_by":"COPY . /"},{"created_by":"ENV A","empty_layer":true}]}"#;

    #[test]
    fn every_field_of_a_docker_image_is_read() {
        let config = ImageConfig::parse(FULL.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!(config.entrypoint, ["/init"]);
        assert_eq!(config.cmd, ["run", "--now"]);
        assert_eq!(config.env, ["PATH=/bin", "A=b=c"]);
        assert_eq!(config.user.as_deref(), Some("app:web"));
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.labels["n"], "");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        let check = config.healthcheck.as_ref().unwrap();
        assert_eq!(check.interval, Some(Duration::from_secs(30)));
        assert_eq!(check.timeout, None);
        assert_eq!(check.retries, Some(3));
        assert_eq!(config.diff_ids, [Digest::of(b"abc")]);
        assert!(config.history[1].empty_layer);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<ImageConfig>(&json).unwrap(), config);
    }

    #[test]
    fn nulls_and_missing_fields_are_empty() {
        let config = ImageConfig::parse(
            br#"{"config":{"Cmd":null,"Entrypoint":null,"Volumes":null,"User":"","Healthcheck":{"Test":["NONE"]}},
                 "rootfs":{"diff_ids":null},"history":null}"#,
        )
        .unwrap();
        assert_eq!((config.cmd.len(), config.entrypoint.len(), config.volumes.len()), (0, 0, 0));
        assert_eq!((config.user, config.healthcheck), (None, None));
        assert!(ImageConfig::parse(br#"{"rootfs":{}}"#).is_ok());
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_reason() {
        for (json, part) in [
            ("", "not a valid image configuration"),
            ("{}", "not a valid image configuration"),
            (r#"{"rootfs":{"diff_ids":["sha512:00"]}}"#, "inflated layer 1"),
            (r#"{"rootfs":{},"config":{"Env":["A=\u0000"]}}"#, "`Env` holds a NUL"),
            (r#"{"rootfs":{},"config":{"Cmd":"text"}}"#, "not a valid image configuration"),
        ] {
            let error = ImageConfig::parse(json.as_bytes()).expect_err(json).to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
