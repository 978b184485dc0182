//! `supervisor events`: what happened and what happens, for people or one JSON object a line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::Args;
use hyper::Method;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::settings::Settings;
use super::{connect, moment, output, project};
use crate::api::{ApiClient, ClientError, EventsQuery, Lines};
use crate::supervise::report::{Event, EventLevel};

/// How long the successor of a control that has ended is looked for.
const SUCCESSOR: Duration = Duration::from_secs(3);

/// `events`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --since only what happens from now on is shown. Events are kept over restarts, up to 2 MB of \
them.\n\nExamples:\n  supervisor events\n  supervisor events --since 1h --no-follow web\n  supervisor events \
--json --since 2026-01-31"
)]
pub(super) struct EventsArguments {
    /// Services whose events are shown (default: all, and the host's)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    services: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Begin with what happened since: 10m (ago), 2026-01-31, 2026-01-31T08:00[Z], or seconds since 1970
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    since: Option<Timestamp>,
    /// End with what happened until then, written as for --since
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    until: Option<Timestamp>,
    /// Only what happened already
    #[arg(long)]
    no_follow: bool,
    /// Services file; several are merged (default: services.yaml or compose.yaml here or in a parent directory)
    #[arg(short, long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Only this project (default: the services file's, else all)
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "SUPERVISOR_PROJECT_NAME",
        value_parser = project::project_name
    )]
    project_name: Option<String>,
}

pub(super) fn run(settings: &Settings, arguments: &EventsArguments) -> anyhow::Result<ExitCode> {
    let project = project::name(settings, &arguments.file, arguments.project_name.as_deref())?;
    let mut query = EventsQuery {
        project,
        services: arguments.services.join(","),
        since: arguments.since,
        until: arguments.until,
        after: None,
        follow: !arguments.no_follow,
    };
    connect::runtime()?.block_on(async {
        let mut client = connect::connect_or_start(settings).await?;
        let mut printer = Printer { json: arguments.json, subject: 0 };
        loop {
            let mut lines = ask(&client, &query).await?;
            match printer.print_all(&mut lines, &mut query).await {
                End::Told | End::NobodyReads => return Ok(ExitCode::SUCCESS),
                End::Lost if !query.follow => anyhow::bail!("the supervisor ended meanwhile"),
                End::Lost => {}
            }
            let Some(next) = successor(settings).await? else {
                output::note("the supervisor has ended");
                return Ok(ExitCode::SUCCESS);
            };
            client = next;
        }
    })
}

/// Names of projects and services, which were checked, need no escaping, and neither do times in UTC.
async fn ask(client: &ApiClient, query: &EventsQuery) -> Result<Lines, ClientError> {
    let EventsQuery { project, services, since, until, after, follow } = query;
    let mut path = format!("/v1/events?follow={follow}&services={services}");
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={value}"));
        }
    };
    add("project", project.clone());
    add("since", since.map(|time| time.to_string()));
    add("until", until.map(|time| time.to_string()));
    add("after", after.map(|number| number.to_string()));
    client.lines(Method::GET, &path, &()).await
}

/// The control after one that has ended. None is started: who only looks on must not keep an idle one alive for ever.
async fn successor(settings: &Settings) -> anyhow::Result<Option<ApiClient>> {
    let deadline = tokio::time::Instant::now() + SUCCESSOR;
    loop {
        let found = connect::connect(settings).await?;
        if found.is_some() || tokio::time::Instant::now() > deadline {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

enum End {
    /// That was all.
    Told,
    NobodyReads,
    /// Control has gone.
    Lost,
}

struct Printer {
    json: bool,
    /// Width of the subjects so far.
    subject: usize,
}

impl Printer {
    /// Prints until the end, and notes in `query` where another control would have to go on.
    async fn print_all(&mut self, lines: &mut Lines, query: &mut EventsQuery) -> End {
        loop {
            match lines.next::<Event>().await {
                Ok(Some(event)) => {
                    if event.sequence > 0 {
                        query.after = Some(event.sequence);
                    }
                    if self.print(&event).is_err() {
                        return End::NobodyReads;
                    }
                }
                Ok(None)
                    if query.follow && query.until.is_none_or(|until| until > Timestamp::now()) =>
                {
                    return End::Lost;
                }
                Ok(None) => return End::Told,
                Err(_) => return End::Lost,
            }
        }
    }

    fn print(&mut self, event: &Event) -> std::io::Result<()> {
        let mut out = anstream::stdout();
        if self.json {
            let line = serde_json::to_string(event)?;
            return writeln!(out, "{line}");
        }
        const DIM: Style = Style::new().dimmed();
        let time = event.time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S");
        let (word, style) = match event.level {
            EventLevel::Info => ("info", Style::new()),
            EventLevel::Warning => ("warning", AnsiColor::Yellow.on_default()),
            EventLevel::Error => ("error", AnsiColor::Red.on_default().bold()),
        };
        let subject = match (event.project.as_str(), event.service.as_str()) {
            ("", _) => "-".to_owned(),
            (project, "") => project.to_owned(),
            (project, service) => format!("{project}/{service}"),
        };
        self.subject = self.subject.max(subject.len());
        let width = self.subject;
        let message = &event.message;
        writeln!(out, "{DIM}{time}{DIM:#}  {style}{word:7}{style:#}  {subject:width$}  {message}")?;
        if let Some(hint) = event.attributes.get("hint").filter(|hint| !hint.is_empty()) {
            writeln!(out, "{:21}hint: {hint}", "")?;
        }
        Ok(())
    }
}
