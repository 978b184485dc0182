//! Where log lines go and how they look: text for people, JSON for machines.
//!
//! Control logs to standard error; the other roles have a file there.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// A level (`info`) or directives (`info,supervisor::registry=debug`).
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// A level or format that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogOptionsError {
    /// Not `text` or `json`.
    #[error("unknown log format `{0}` (expected `text` or `json`)")]
    Format(String),
    /// Neither a level nor a list of directives.
    #[error("unknown log level `{0}` (expected `error`, `warn`, `info`, `debug`, `trace`)")]
    Level(String),
}

impl FromStr for LogFormat {
    type Err = LogOptionsError;

    fn from_str(text: &str) -> Result<Self, LogOptionsError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogOptionsError::Format(other.to_owned())),
        }
    }
}

/// Starts logging for this process. A second call changes nothing: the first logger stays.
///
/// # Errors
/// When the level is none.
pub fn init_logging(options: &LogOptions) -> Result<(), LogOptionsError> {
    // libcontainer logs each error before it returns it, in the container's own output; fuser warns of every request
    // that a read-only file system need not answer.
    let directives = format!("{},libcontainer=off,libcgroups=off,fuser=error", options.level);
    let filter = EnvFilter::try_new(directives)
        .map_err(|_| LogOptionsError::Level(options.level.clone()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let _ = match options.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
