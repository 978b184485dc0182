//! Role dispatch, then the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Roles fork and confine themselves, so they begin before any thread exists.
    supervisor::run_if_role().unwrap_or_else(supervisor::cli::main)
}
