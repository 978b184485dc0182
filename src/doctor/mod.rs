//! Named checks of a host and of what of ours is on it, each with its remedy. Library code: nothing is printed, nothing
//! is started, and nothing is changed.

mod disk;
mod machine;
mod ports;
mod registries;
mod roles;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::host::Forced;
use crate::image::ImageRef;
use crate::registry::ClientOptions;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Degraded,
    /// Does not work.
    Failed,
}

/// One named check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked; stable, for programs.
    pub name: String,
    /// Which one, where there are several of a kind: a registry, an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// How it ended.
    pub health: Health,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, message: impl Into<String>) -> Self {
        let (name, message) = (name.into(), message.into());
        Self { name, subject: None, health: Health::Ok, message, remedy: None }
    }

    fn wrong(
        health: Health,
        name: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { health, remedy: Some(remedy.into()), ..Self::ok(name, message) }
    }

    fn degraded(
        name: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::wrong(Health::Degraded, name, message, remedy)
    }

    fn of(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }

    fn failed(
        name: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::wrong(Health::Failed, name, message, remedy)
    }
}

/// What is examined.
#[derive(Debug, Clone)]
pub struct Patient {
    /// Where images, layers and writable data are kept.
    pub state_dir: PathBuf,
    /// Where sockets and mounts are.
    pub run_dir: PathBuf,
    /// The instance of the run directory.
    pub instance: String,
    /// Features that are not used.
    pub forced: Forced,
    /// How registries are reached.
    pub registry: ClientOptions,
    /// Registries by host and port.
    pub hosts: Vec<String>,
    /// Images, for who may read them; their registries are checked too.
    pub images: Vec<ImageRef>,
}

/// Examines everything but control, which whoever can speak to it checks. Call it on a Tokio runtime.
pub async fn examine(patient: &Patient) -> Vec<Check> {
    let (forced, state_dir) = (patient.forced.clone(), patient.state_dir.clone());
    // Probes block: a module may be loaded.
    let probing = tokio::task::spawn_blocking(move || crate::host::probe(&forced, &state_dir));
    let mut checks = match probing.await {
        Ok(features) => machine::checks(&features),
        Err(error) => {
            let message = format!("they ended early: {error}");
            vec![Check::failed("probes", message, "report this as a bug")]
        }
    };
    let run_dir = patient.run_dir.clone();
    // It runs a program.
    checks.extend(
        tokio::task::spawn_blocking(move || ports::checks(&run_dir)).await.unwrap_or_default(),
    );
    checks.extend(disk::checks(&patient.state_dir, &patient.run_dir));
    checks.extend(roles::lazy(&patient.run_dir, &patient.instance).await);
    checks.extend(registries::checks(patient).await);
    checks
}
