//! Role dispatch, parsing, logging, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = supervisor::run_if_role() {
        return code;
    }
    ExitCode::from(2)
}
