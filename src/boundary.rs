//! The moments between two steps of an action, by name, at which a test can hold the acting process up and kill it or
//! somebody else. In every build but those for tests (feature `testing`) reaching one does nothing.
//!
//! Owns the names and the waiting. Which step lies on which side of a boundary is said where it is reached.

use std::path::Path;

/// A moment between two steps. The name begins with the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Boundary(&'static str);

/// Declares the boundaries and lists them.
macro_rules! boundaries {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        impl Boundary {
            $($(#[$doc])* pub const $name: Self = Self($text);)*

            /// All of them, in the order in which an uneventful life reaches them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

boundaries! {
    /// Control is about to ask the registry.
    PULL_BEGINS = "pull-begins";
    /// The image is here; the driver does not know.
    PULLED = "pull-done";
    /// The container's folder in `$STATE` exists, without a record.
    FOLDER_MADE = "create-folder";
    /// The container's record is written; the driver does not know.
    CREATED = "create-done";
    /// The layers are mounted, nothing of the start is recorded.
    LAYERS_MOUNTED = "start-layers";
    /// The record says that it was started.
    START_RECORDED = "start-recorded";
    /// The launch is written, there is no monitor.
    LAUNCH_WRITTEN = "start-launch";
    /// The monitor has the container's lock; the records of the last run are gone, its launch is not taken.
    LAUNCH_TAKEN = "start-taken";
    /// The monitor has its place and has not begun to start the container.
    MONITOR_READY = "start-monitor";
    /// Control has a connection to the monitor; the driver does not know.
    LAUNCHED = "start-launched";
    /// The root file system is mounted.
    ROOT_MOUNTED = "start-root";
    /// The starting child is in the container's control group.
    GROUP_ENTERED = "start-group";
    /// The runtime's configuration is written.
    CONFIGURED = "start-configured";
    /// The first process exists and waits; nobody has written down who it is.
    PROCESS_MADE = "start-process";
    /// The first process is written down.
    PROCESS_RECORDED = "start-process-recorded";
    /// The first process was told to execute its program.
    RELEASED = "start-released";
    /// The program runs; the monitor does not know.
    EXECUTED = "start-executed";
    /// The monitor has said that the program runs.
    RUNNING = "start-done";
    /// Control is about to have a dead monitor replaced.
    ADOPTION_BEGINS = "adopt-begins";
    /// The next monitor has its place and does not know yet what there is.
    ADOPTER_READY = "adopt-monitor";
    /// The next monitor has the container's root file system.
    ROOT_TAKEN_OVER = "adopt-root";
    /// The next monitor is about to say what it found.
    ADOPTED = "adopt-done";
    /// The driver is about to ask the monitor to stop the container.
    STOP_BEGINS = "stop-begins";
    /// The monitor has sent the signal.
    STOP_ASKED = "stop-asked";
    /// How the first process ended is written down; nothing is cleaned up.
    END_NOTED = "stop-noted";
    /// Everything in the container is dead.
    ALL_DEAD = "stop-dead";
    /// The root file system is unmounted.
    ROOT_UNMOUNTED = "stop-root";
    /// The control group is gone.
    GROUP_REMOVED = "stop-group";
    /// Nothing of the run is left but its records.
    FINISHED = "stop-finished";
    /// The copy of the exit record is in `$STATE`.
    EXIT_COPIED = "stop-copied";
    /// The exit record is in `$RUN` too.
    EXIT_RECORDED = "stop-recorded";
    /// And the record of the process is gone.
    RUN_FORGOTTEN = "stop-forgotten";
    /// Control knows that it has ended; the driver does not.
    STOPPED = "stop-done";
    /// Control is about to remove the container.
    REMOVAL_BEGINS = "remove-begins";
    /// Its writable layer is gone.
    WRITABLE_REMOVED = "remove-writable";
    /// Its folder in `$RUN` is gone.
    RUN_FOLDER_REMOVED = "remove-run";
    /// Its folder in `$STATE` is gone; the driver does not know.
    REMOVED = "remove-done";
}

impl Boundary {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0
    }

    /// Called by the acting process. Does nothing.
    #[cfg(not(any(test, feature = "testing")))]
    #[inline(always)]
    pub(crate) fn reach(self, _run_dir: &Path) {}

    /// Called by the acting process. Where a file with the boundary's name is in `$RUN/boundary`, it is renamed to
    /// that name and the process's id, and the process waits until nothing has that name any more.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn reach(self, run_dir: &Path) {
        let folder = run_dir.join("boundary");
        let held = folder.join(format!("{}.{}", self.0, std::process::id()));
        if std::fs::rename(folder.join(self.0), &held).is_err() {
            return;
        }
        let wait = || {
            while held.exists() {
                let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                let _ = rustix::event::poll(&mut [], Some(&pause));
            }
        };
        // Control goes on with everything else meanwhile.
        match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            Ok(_) | Err(_) => wait(),
        }
    }
}
