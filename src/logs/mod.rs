//! Output of containers as files: JSON lines as Docker writes them, rotated, read back, followed.
//!
//! Written by monitors ([`LogWriter`]), read by control and by the command line ([`LogReader`], [`LogFollower`]).
//! Nothing here knows a container: a log is a path.
//!
//! One line of a file is `{"log":"text\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}`. A line of
//! output that is longer than 16 KiB is split; only its last part ends in a newline. Where a service asks for them,
//! `"attrs":{…}` stands before the time. A line that begins with `supervisor: ` and ends in `lost: …` is ours.

mod encode;
mod follow;
mod line;
mod read;
mod write;

pub use follow::LogFollower;
pub use line::{LineSplitter, LogEntry, MAX_LINE, Stream};
pub use read::{LogReader, ReadOptions};
pub use write::{LogWriter, MAX_FILES};
