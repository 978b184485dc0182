//! The shell around the planner: driver loop, execution, events, and the handle that others hold.
//!
//! ```text
//! requests ─┐                       ┌─► monitors, layers, store
//! outcomes ─┼─► driver: observe ─► plan ─► begin steps ─► outcomes
//! timers  ──┘      (one task)
//! ```
//!
//! [`Control::start`] is control for one run directory. It holds the run directory's lock for as long as it lives;
//! ending it, in whichever way, ends nothing else. The next one finds what runs.

mod answer;
mod begin;
mod bridge_record;
mod bridge_task;
mod bridges;
mod changes;
mod clock;
mod collect;
mod complete;
mod control;
mod disk;
mod disk_report;
mod draft;
mod driver;
mod ends;
mod events;
mod execute;
mod exits;
mod files;
mod find;
mod findings;
mod first_reads;
mod handle;
mod handle_services;
mod health;
mod heartbeat;
mod held;
mod image_requests;
mod image_volumes;
mod images;
mod inspect;
mod joining;
mod journal;
mod kill;
mod launch;
mod layer_mounts;
mod lazy_content;
mod lazy_events;
mod lazy_link;
mod lazy_mounts;
mod lazy_side;
mod log_stream;
mod membership;
mod monitors;
mod outcome;
mod port_check;
mod preview;
mod project;
mod promise;
mod published;
mod pull_error;
pub mod report;
mod resolver;
mod room;
mod run_ends;
mod run_settings;
mod runs;
mod service_wish;
mod slots;
mod standing;
mod tally;
#[cfg(test)]
mod tests;
mod unused_content;
mod usage;
mod usage_report;
mod volumes;
mod waiters;
mod watch;
mod wishes;

pub use collect::{Contents, PruneManner, PruneOptions};
pub use control::{Control, ControlError, ControlOptions, instance_of};
pub use disk::Pin;
pub use events::EventHistory;
pub use files::{FileKinds, HostFiles};
pub use handle::{ControlHandle, RequestError, RequestErrorKind, StopOptions};
pub use images::Extent;
pub use log_stream::{LogTail, StreamedLine, read_logs};
pub use pull_error::PullError;
pub use room::{Bound, DiskLimits};
pub use run_settings::RunOptions;
