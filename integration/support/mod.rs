//! What integration tests share: stand-ins for networks and registries, and drivers of real ones.

pub(crate) mod cli;
pub(crate) mod docker_registry;
pub(crate) mod image;
pub(crate) mod lazy_host;
pub(crate) mod link;
pub(crate) mod program;
pub(crate) mod registry;
pub(crate) mod tar;
pub(crate) mod tiny_image;
pub(crate) mod tls_registry;

use std::time::{Duration, Instant};

/// How long a condition may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        // A timer without a sleep: nobody unparks this thread on purpose.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Runs `body` on a thread of its own whose mounts nobody else sees, and which go with it.
pub(crate) fn in_mount_namespace(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        supervisor::sys::mount::enter_private_namespace().expect("run as root: mounts need it");
        body();
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
