//! The whole program as a user has it: services come up, change, die, and are found again.

mod adoption;
mod background;
mod boundaries;
mod bounds;
mod commands;
mod depend;
mod disk;
mod events;
mod exits;
mod files;
mod group;
mod health;
pub(crate) mod image;
mod instances;
mod jobs;
mod kernel;
mod lifecycle;
mod networks;
mod plan;
mod projects;
mod reconcile;
mod roles;
mod runs;
mod space;
mod volumes;
mod wishes;

use std::path::Path;

/// The shell image that another tool made.
pub(crate) fn shell_image() -> String {
    let layout = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-fixtures/golden/small-esgz");
    format!("oci:{}", layout.display())
}

/// Prints a counter ten times a second, and ends with code 0 when it is asked to.
pub(crate) const TICK: &str =
    "trap 'exit 0' TERM; n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.1; done";

/// Does nothing until it is asked to end.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";

/// One service of a services file.
#[derive(Clone)]
pub(crate) struct Service {
    name: String,
    image: String,
    script: String,
    keys: Vec<String>,
    /// Whether it says that it has the host's network.
    on_host: bool,
}

/// A service that runs `script` in the shell image, in the host's network unless another key says otherwise: a test
/// that is not about networks changes none.
pub(crate) fn service(name: &str, script: &str) -> Service {
    Service {
        name: name.to_owned(),
        image: shell_image(),
        script: script.to_owned(),
        keys: Vec::new(),
        on_host: true,
    }
}

impl Service {
    pub(crate) fn image(self, image: impl Into<String>) -> Self {
        Self { image: image.into(), ..self }
    }

    /// Another key, as one line of YAML.
    pub(crate) fn key(mut self, line: &str) -> Self {
        self.keys.push(line.to_owned());
        self
    }

    /// In the network that a service has whose file says nothing; for tests on a host of their own.
    pub(crate) fn bridged(self) -> Self {
        Self { on_host: false, ..self }
    }

    fn yaml(&self) -> String {
        // A JSON string is a YAML string, and a dollar that is no variable is written twice.
        let script = serde_json::to_string(&self.script).unwrap().replace('$', "$$");
        let mut text = format!(
            "  {}:\n    image: \"{}\"\n    command: [\"sh\", \"-c\", {script}]\n",
            self.name, self.image
        );
        for key in &self.keys {
            text.push_str(&format!("    {key}\n"));
        }
        // Behind them, so that they are where they would be without it.
        if self.on_host && !self.keys.iter().any(|key| key.starts_with("network")) {
            text.push_str("    network_mode: host\n");
        }
        text
    }
}

/// A services file.
pub(crate) fn file(services: &[Service]) -> String {
    let services: String = services.iter().map(Service::yaml).collect();
    format!("services:\n{services}")
}
