//! `supervisor logs`.

use std::io::IsTerminal as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use hyper::Method;
use jiff::Timestamp;
use tokio::io::Interest;

use super::log_printer::{Printer, Shown};
use super::settings::Settings;
use super::{connect, moment, project};
use crate::api::{LogLine, LogsQuery};

const EXAMPLES: &str = "\
Lines of several services are merged by time. Output is kept in files of JSON lines, as Docker keeps it, below the
state directory: logs/PROJECT/SERVICE/log.json, 10 MB x 3 per service unless `logging:` of the service says otherwise;
it outlives the container.

Examples:
  supervisor logs -f -n 20 web
  supervisor logs --since 10m -t
  supervisor logs --since 2026-01-31T08:00 --until 2026-01-31T09:30 web db
  supervisor logs --format json web | jq -r .text";

/// `logs`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LogsArguments {
    /// Services to show (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    pub(super) services: Vec<String>,
    /// Go on as lines arrive, also those of services that start later
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Lines to show from the end of each service, or `all`
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value = "all",
        allow_negative_numbers = true,
        value_parser = tail
    )]
    pub(super) tail: Tail,
    /// Only lines of this moment or later: 10m (ago), 2026-01-31, 2026-01-31T08:00[Z], or seconds since 1970
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    pub(super) since: Option<Timestamp>,
    /// Only lines before this moment, written as for --since; with --follow, ends then
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    pub(super) until: Option<Timestamp>,
    /// Put the time before each line
    #[arg(short, long)]
    pub(super) timestamps: bool,
    /// Do not put the name of the container before each line
    #[arg(long)]
    pub(super) no_log_prefix: bool,
    /// Names without colours; so do a pipe and NO_COLOR
    #[arg(long)]
    pub(super) no_color: bool,
    /// Form of the lines; json is one object a line, and is always complete
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) format: LogsFormat,
    /// Services file; several are merged (default: services.yaml or compose.yaml here or in a parent directory)
    #[arg(long, value_name = "FILE")]
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

/// `--tail`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    /// Every line.
    All,
    /// So many.
    Last(usize),
}

/// `--format` of `logs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogsFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

pub(super) fn run(settings: &Settings, arguments: &LogsArguments) -> anyhow::Result<ExitCode> {
    let shown = Shown {
        prefix: !arguments.no_log_prefix,
        timestamps: arguments.timestamps,
        colour: !arguments.no_color && Shown::default().colour,
    };
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let (file, name) = (&arguments.file, arguments.project_name.as_deref());
        let project = project::required(settings, &client, file, name).await?;
        let query = LogsQuery {
            project,
            services: arguments.services.join(","),
            follow: arguments.follow,
            tail: match arguments.tail {
                Tail::All => None,
                Tail::Last(count) => Some(count),
            },
            since: arguments.since,
            until: arguments.until,
        };
        let mut lines = client.lines(Method::GET, &path(&query), &()).await?;
        let mut printer = Printer::new(shown);
        printer.learn(&client, &query.project, &arguments.services).await;
        let mut gone = std::pin::pin!(reader_gone());
        loop {
            let line: LogLine = tokio::select! {
                biased;
                // Cancel-safe: a stream keeps what it has read of a line.
                line = lines.next() => match line? {
                    Some(line) => line,
                    None => break,
                },
                () = &mut gone => break,
            };
            let printed = match arguments.format {
                LogsFormat::Text => printer.print(&line),
                LogsFormat::Json => print_json(&line),
            };
            // A reader that has seen enough ends it, as it ends any filter.
            if printed.is_err() {
                return Ok(ExitCode::SUCCESS);
            }
        }
        let _ = printer.end();
        Ok(ExitCode::SUCCESS)
    })
}

fn tail(text: &str) -> anyhow::Result<Tail> {
    // As under Docker, less than nothing is everything.
    if text == "all" || text.strip_prefix('-').is_some_and(|rest| rest.parse::<u64>().is_ok()) {
        return Ok(Tail::All);
    }
    let number = text.parse::<usize>();
    Ok(Tail::Last(number.with_context(|| format!("`{text}` is not a number of lines, or `all`"))?))
}

fn print_json(line: &LogLine) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    std::io::stdout().lock().write_all(&text)
}

/// Ends when nobody can read standard output any more, so that `logs -f | head -1` ends without another line.
async fn reader_gone() {
    let stdout = std::io::stdout();
    // A file is never ready; a terminal that closes sends a signal.
    if !stdout.is_terminal()
        && let Ok(descriptor) = stdout.as_fd().try_clone_to_owned()
        && let Ok(watched) = crate::sys::readiness::watch(descriptor, Interest::ERROR)
        && watched.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// The path that asks for these lines. Names of projects and services, which were checked, need no escaping, nor does a
/// time in UTC.
pub(super) fn path(query: &LogsQuery) -> String {
    let tail = query.tail.map(|tail| format!("&tail={tail}")).unwrap_or_default();
    let since = query.since.map(|since| format!("&since={since}")).unwrap_or_default();
    let until = query.until.map(|until| format!("&until={until}")).unwrap_or_default();
    format!(
        "/v1/logs?project={}&services={}&follow={}{tail}{since}{until}",
        query.project, query.services, query.follow
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_a_number_or_everything() {
        assert_eq!(tail("20").unwrap(), Tail::Last(20));
        assert_eq!(tail("0").unwrap(), Tail::Last(0));
        assert_eq!(tail("all").unwrap(), Tail::All);
        assert_eq!(tail("-1").unwrap(), Tail::All);
        for text in ["", "-", "x", "1.5", "20k"] {
            assert!(tail(text).is_err(), "{text}");
        }
    }
}
