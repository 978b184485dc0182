//! What can be typed: commands, flags, and their help. What was typed is turned into what is meant in `settings`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::completion::CompletionArguments;
use super::config::ConfigArguments;
use super::cp::CpArguments;
use super::disk_arguments::DiskArguments;
use super::doctor::DoctorArguments;
use super::down::DownArguments;
use super::events::EventsArguments;
use super::image::ImageNamesArguments;
use super::image_write::{ImageConvertArguments, ImagePackArguments};
use super::inspect::InspectArguments;
use super::install::InstallArguments;
use super::kill::KillArguments;
use super::login::{LoginArguments, LogoutArguments};
use super::logs::LogsArguments;
use super::man::ManArguments;
use super::plan::PlanArguments;
use super::port::PortArguments;
use super::project;
use super::prune::PruneArguments;
use super::run_once::RunArguments;
use super::start::{RestartArguments, StartArguments};
use super::stats::StatsArguments;
use super::stop::StopArguments;
use super::system::SystemCommand;
use super::top::TopArguments;
use super::uninstall::UninstallArguments;
use super::up::UpArguments;
use super::wait::WaitArguments;

const EXAMPLES: &str = "\
Examples:
  supervisor up                          start what services.yaml describes, and follow its logs
  supervisor up -d                       the same in the background; returns when all services run
  supervisor up web worker               only these services
  supervisor ps                          what runs, and how much of its image is here
  supervisor logs -f -n 20 web           follow one service
  supervisor exec web -- sh              a shell in a running service
  supervisor restart web                 stop and start it; what it has written stays
  supervisor pull oci:./image            read an image without running it
  supervisor down                        stop and remove; images stay

Exit codes: 0 ok, 1 failed, 2 wrong use. `exec` passes the command's own code through
(125 supervisor failed, 126 not executable, 127 not found).";

/// Runs containers from lazily mounted images, as a services file describes them.
#[derive(Debug, Parser)]
#[command(name = "supervisor", version, about, after_help = EXAMPLES, max_term_width = 100)]
#[command(propagate_version = false, disable_version_flag = true, disable_help_subcommand = true)]
pub(super) struct Arguments {
    /// Global flags.
    #[command(flatten)]
    pub(super) global: GlobalArguments,
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(super) struct GlobalArguments {
    /// Where images, layers and writable data are kept
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "DIR",
        env = "SUPERVISOR_STATE_DIR",
        default_value = "/var/lib/supervisor"
    )]
    pub(super) state_dir: PathBuf,
    /// Where sockets and mounts are; emptied by a reboot
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "DIR",
        env = "SUPERVISOR_RUN_DIR",
        default_value = "/run/supervisor"
    )]
    pub(super) run_dir: PathBuf,
    /// Members of this group may use the supervisor that this command starts; they can become root by it
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "GROUP",
        env = "SUPERVISOR_SOCKET_GROUP"
    )]
    pub(super) socket_group: Option<String>,
    /// Services file, as behind the command; several are merged
    #[arg(short = 'f', long = "file", id = "leading_file", value_name = "FILE", hide = true)]
    pub(super) files: Vec<PathBuf>,
    /// Project name, as behind the command
    #[arg(
        short = 'p',
        long = "project-name",
        id = "leading_project_name",
        value_name = "NAME",
        value_parser = project::project_name,
        hide = true
    )]
    pub(super) project_name: Option<String>,
    /// Where relative paths in services files start (default: the directory of the first one)
    #[arg(long, global = true, help_heading = "Global options", value_name = "DIR")]
    pub(super) project_directory: Option<PathBuf>,
    /// File with variables for services files; several, later ones win (default: .env)
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Run the services of this profile too; several, or * for all
    #[arg(long, global = true, help_heading = "Global options", value_name = "NAME")]
    pub(super) profile: Vec<String>,
    /// Leave out what services files say and this version does not do, with a warning for each
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) allow_unsupported: bool,
    /// Folder with settings of registries, as containerd's certs.d; several (default: those of containerd, Docker and
    /// Podman below /etc)
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "DIR",
        env = "SUPERVISOR_HOSTS_DIR",
        value_delimiter = ':'
    )]
    pub(super) hosts_dir: Vec<PathBuf>,
    /// Bounds on the disk.
    #[command(flatten)]
    pub(super) disk: DiskArguments,
    /// error, warn, info, debug, trace, or directives such as info,supervisor::registry=debug
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "LEVEL",
        env = "SUPERVISOR_LOG_LEVEL"
    )]
    pub(super) log_level: Option<String>,
    /// Form of log lines on standard error
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "FORMAT",
        env = "SUPERVISOR_LOG_FORMAT",
        default_value = "text"
    )]
    pub(super) log_format: LogFormatArgument,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormatArgument {
    /// One readable line.
    Text,
    /// One JSON object a line.
    Json,
}

/// `--format` of commands that print a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ListFormat {
    /// Columns for people.
    Table,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check services files and print what they mean together
    Config(ConfigArguments),
    /// Start the services of a file, keep them as it says, and follow their logs
    Up(UpArguments),
    /// Print what `up` would do, and why
    Plan(PlanArguments),
    /// Stop the project's services; remove their containers and mounts; keep images
    Down(DownArguments),
    /// Stop services and keep their containers
    Stop(StopArguments),
    /// Start services that were stopped or have ended
    Start(StartArguments),
    /// Stop services and start them again, in the same containers
    Restart(RestartArguments),
    /// Send a signal to services; KILL, unless another is named, stops them at once
    Kill(KillArguments),
    /// Show everything that is known of services and their containers
    Inspect(InspectArguments),
    /// Wait until services end, and print their exit codes
    Wait(WaitArguments),
    /// Stop all services because the host goes down; they start again with the next boot
    #[command(hide = true)]
    ShutdownServices,
    /// Start what `shutdown-services` stopped
    #[command(hide = true)]
    ResumeServices,
    /// List services: state, pid, uptime, restarts, and how much of the image is here
    Ps(PsArguments),
    /// Show the output of services
    Logs(LogsArguments),
    /// Show what happens to services and to the host, and what happened before
    Events(EventsArguments),
    /// Run a command in a running service
    Exec(ExecArguments),
    /// Print where the ports of a service are published
    Port(PortArguments),
    /// List the processes that run in services
    Top(TopArguments),
    /// Show what services use: processor, memory, network, disks
    Stats(StatsArguments),
    /// Run a command in a container like that of a service, once and beside it
    Run(RunArguments),
    /// Copy files between this host and a running service
    Cp(CpArguments),
    /// Bring images here: index and prefetch only, or everything with --full
    Pull(PullArguments),
    /// Log in at a registry, and keep the login as docker does
    Login(LoginArguments),
    /// Forget the login at a registry
    Logout(LogoutArguments),
    /// List the images that are here
    Images(ImagesArguments),
    /// Remove what nothing needs: leftovers of pulls, and images that were replaced
    Prune(PruneArguments),
    /// Show what is on the disk
    #[command(subcommand)]
    System(SystemCommand),
    /// Work with one image
    #[command(subcommand)]
    Image(ImageCommand),
    /// Run what was brought up before, and serve the other commands, until it is told to end
    Daemon(DaemonArguments),
    /// Check this host, and say what to do about what is wrong
    Doctor(DoctorArguments),
    /// Print a script that completes commands, flags and services in a shell
    Completion(CompletionArguments),
    /// Print the manual page, or write one per command
    #[command(hide = true)]
    Man(ManArguments),
    /// Place this program on the host, started at boot where systemd runs
    Install(InstallArguments),
    /// Remove what `install` placed
    Uninstall(UninstallArguments),
    /// Print the version
    Version,
}

/// Which project is meant.
#[derive(Debug, Args)]
pub(super) struct ProjectArguments {
    /// Services file; several are merged (default: services.yaml or compose.yaml here or in a parent directory)
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Vec<PathBuf>,
    /// Project name (default: the name in the file, else its directory's)
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "SUPERVISOR_PROJECT_NAME",
        value_parser = project::project_name
    )]
    pub(super) project_name: Option<String>,
}

/// `ps`.
#[derive(Debug, Args)]
pub(super) struct PsArguments {
    /// Services to list (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Which project; all projects when neither is given and no services file is here.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
    /// Form of the list; json is one object a line
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(super) format: ListFormat,
}

/// `exec`.
#[derive(Debug, Args)]
pub(super) struct ExecArguments {
    /// The service
    #[arg(value_parser = project::service_name)]
    pub(super) service: String,
    /// Which project.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
    /// No terminal, even when standard input is one
    #[arg(short = 'T', long)]
    pub(super) no_tty: bool,
    /// User, by name or id, optionally with :GROUP
    #[arg(short, long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// Environment, K=V
    #[arg(short, long, value_name = "K=V")]
    pub(super) env: Vec<String>,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub(super) command: Vec<String>,
}

/// `pull`.
#[derive(Debug, Args)]
pub(super) struct PullArguments {
    /// References: NAME[:TAG][@DIGEST], HOST/NAME…, oci:PATH[:TAG] (default: those of the services file)
    #[arg(value_name = "IMAGE")]
    pub(super) images: Vec<String>,
    /// Which services file, when no image is named.
    #[command(flatten)]
    pub(super) project: ProjectArguments,
    /// All content of lazy layers too, so that the image needs no network any more; they stay lazy
    #[arg(long)]
    pub(super) complete: bool,
    /// All layers unpacked, and none lazy
    #[arg(long, conflicts_with = "complete")]
    pub(super) full: bool,
    /// Print only the manifest digest
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// `images`.
#[derive(Debug, Args)]
pub(super) struct ImagesArguments {
    /// Form of the list; json is one object a line
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(super) format: ListFormat,
}

/// `image …`.
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Look into an image without running it
    Mount(ImageMountArguments),
    /// Undo `image mount`
    Umount {
        /// Where it is mounted
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Remove images that nothing uses, with what only they have
    #[command(visible_alias = "remove")]
    Rm(ImageNamesArguments),
    /// Keep images here whether or not anything uses them
    Pin(ImageNamesArguments),
    /// Let images go that were pinned
    Unpin(ImageNamesArguments),
    /// Make an image of a folder, as one layer that can be mounted lazily
    Pack(Box<ImagePackArguments>),
    /// Rewrite an image so that its layers can be mounted lazily
    Convert(Box<ImageConvertArguments>),
}

/// `image mount`.
#[derive(Debug, Args)]
pub(super) struct ImageMountArguments {
    /// The image
    #[arg(value_name = "REF")]
    pub(super) image: String,
    /// An empty directory
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,
    /// Bring all content first, and unpack it
    #[arg(long)]
    pub(super) full: bool,
}

/// `daemon`.
#[derive(Debug, Args)]
#[command(
    after_help = "It stays in the foreground. SIGTERM and SIGINT end it and leave all services running; the next one finds \
them again. It starts every project that was up, also after a reboot, without the services file. Commands start one \
by themselves when none runs; a boot unit or a service manager starts this one."
)]
pub(super) struct DaemonArguments {
    /// Exit when nothing is left to supervise
    #[arg(long, hide = true)]
    pub(super) on_demand: bool,
}
