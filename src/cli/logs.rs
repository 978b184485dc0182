//! `supervisor logs`, and the printing of log lines that `up` shares.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use hyper::Method;

use super::args::LogsArguments;
use super::settings::Settings;
use super::{connect, project};
use crate::api::{LogLine, LogsQuery};

pub(super) fn run(settings: &Settings, arguments: &LogsArguments) -> anyhow::Result<ExitCode> {
    let tail = match arguments.tail.as_str() {
        "all" => None,
        number => Some(
            number
                .parse::<usize>()
                .with_context(|| format!("`{number}` is not a number of lines, or `all`"))?,
        ),
    };
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let (file, name) = (arguments.file.as_deref(), arguments.project_name.as_deref());
        let project = project::required(settings, &client, file, name).await?;
        let query = LogsQuery {
            project,
            services: arguments.services.join(","),
            follow: arguments.follow,
            tail,
            since: None,
        };
        let mut lines = client.lines(Method::GET, &path(&query), &()).await?;
        let mut printer = Printer::default();
        while let Some(line) = lines.next().await? {
            // A reader that has seen enough ends it, as it ends any filter.
            if printer.print(&line).is_err() {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The path that asks for these lines. Names of projects and services need no escaping.
pub(super) fn path(query: &LogsQuery) -> String {
    let tail = query.tail.map(|tail| format!("&tail={tail}")).unwrap_or_default();
    let since = query.since.map(|since| format!("&since={since}")).unwrap_or_default();
    format!(
        "/v1/logs?project={}&services={}&follow={}{tail}{since}",
        query.project, query.services, query.follow
    )
}

const COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
];

/// Prints log lines behind the name of their container, each name in a colour of its own.
#[derive(Debug, Default)]
pub(super) struct Printer {
    styles: HashMap<String, Style>,
    width: usize,
}

impl Printer {
    /// Prints one line; fails when nobody reads.
    pub(super) fn print(&mut self, line: &LogLine) -> std::io::Result<()> {
        let next = COLOURS[self.styles.len() % COLOURS.len()].on_default();
        let style = *self.styles.entry(line.container.clone()).or_insert(next);
        self.width = self.width.max(line.container.len());
        let width = self.width;
        let text = &line.text;
        writeln!(anstream::stdout(), "{style}{:width$}  | {style:#}{text}", line.container)
    }
}
