//! Logging set-up and the printer of error chains.

mod chain;
mod logging;

pub use chain::Chain;
pub use logging::{LogFormat, LogOptions, LogOptionsError, init_logging};
