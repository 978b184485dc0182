//! The command line: one file per subcommand; the only place that prints.
//!
//! Commands speak to control over its socket and start one in the background when none runs; `up` becomes control
//! itself when none runs.

mod args;
mod attach;
mod background;
pub mod completion;
mod config;
mod connect;
mod cp;
mod disk_arguments;
mod doctor;
mod doctor_view;
mod down;
mod events;
mod exec;
mod image;
mod image_write;
mod images;
mod inspect;
mod install;
mod kill;
mod log_printer;
mod login;
mod logs;
mod look_up;
pub mod man;
mod moment;
mod output;
mod plan;
mod port;
mod progress;
mod project;
mod prune;
mod ps;
mod pull;
mod run;
mod run_once;
mod settings;
mod signals;
mod start;
mod stats;
mod stop;
mod system;
mod top;
mod uninstall;
mod up;
mod wait;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Arguments, Command};
use settings::Settings;

use crate::sys::heap;
use crate::telemetry;

/// Exit code of a command that was used wrongly.
const WRONG_USE: u8 = 2;
/// Exit code of `exec` and `run` for a failure of ours.
const EXEC_FAILED: u8 = 125;

/// Runs the command line of this process and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    heap::bound();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { WRONG_USE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    // People read what a command prints; the log of what happens inside is for those who ask.
    let default_level = match arguments.command {
        Command::Daemon(_) => "info",
        // It prints the events itself.
        Command::Up(_) => "warn,supervisor::supervise::events=off",
        _ => "warn",
    };
    let failed = if matches!(arguments.command, Command::Exec(_) | Command::Run(_)) {
        EXEC_FAILED
    } else {
        1
    };
    let settings = match Settings::new(&arguments.global, default_level) {
        Ok(settings) => settings,
        Err(error) => {
            output::error(&error);
            return ExitCode::from(WRONG_USE);
        }
    };
    if let Err(error) = telemetry::init_logging(&settings.log) {
        output::error(&error.into());
        return ExitCode::from(WRONG_USE);
    }
    let result = match arguments.command {
        Command::Config(arguments) => config::run(&settings, &arguments),
        Command::Up(arguments) => up::run(&settings, arguments),
        Command::Plan(arguments) => plan::run(&settings, arguments),
        Command::Down(arguments) => down::run(&settings, arguments),
        Command::Stop(arguments) => stop::run(&settings, arguments),
        Command::Start(arguments) => start::run(&settings, arguments),
        Command::Restart(arguments) => start::restart(&settings, arguments),
        Command::Kill(arguments) => kill::run(&settings, arguments),
        Command::Inspect(arguments) => inspect::run(&settings, &arguments),
        Command::Wait(arguments) => wait::run(&settings, &arguments),
        Command::ShutdownServices => stop::for_shutdown(&settings),
        Command::ResumeServices => stop::after_shutdown(&settings),
        Command::Ps(arguments) => ps::run(&settings, &arguments),
        Command::Logs(arguments) => logs::run(&settings, &arguments),
        Command::Events(arguments) => events::run(&settings, &arguments),
        Command::Exec(arguments) => exec::run(&settings, arguments),
        Command::Port(arguments) => port::run(&settings, &arguments),
        Command::Top(arguments) => top::run(&settings, &arguments),
        Command::Stats(arguments) => stats::run(&settings, &arguments),
        Command::Run(arguments) => run_once::run(&settings, arguments),
        Command::Cp(arguments) => cp::run(&settings, &arguments),
        Command::Pull(arguments) => pull::run(&settings, &arguments),
        Command::Login(arguments) => login::log_in(&settings, &arguments),
        Command::Logout(arguments) => login::log_out(&settings, &arguments),
        Command::Images(arguments) => images::run(&settings, &arguments),
        Command::Prune(arguments) => prune::run(&settings, &arguments),
        Command::System(command) => system::run(&settings, &command),
        Command::Image(command) => image::main(&settings, command),
        Command::Daemon(arguments) => run::daemon(&settings, &arguments),
        Command::Doctor(arguments) => doctor::run(&settings, &arguments),
        Command::Completion(arguments) => completion::run(&settings, &arguments),
        Command::Man(arguments) => man::run(&arguments),
        Command::Install(arguments) => install::run(&settings, &arguments),
        Command::Uninstall(arguments) => uninstall::run(&settings, &arguments),
        Command::Version => {
            output::line(&format!("supervisor {}", crate::version::versions().build));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::from(failed)
    })
}
