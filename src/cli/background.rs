//! `supervisor up -d`: hands a project to control in the background, and waits until its services run.

use std::process::ExitCode;
use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;

use super::progress::Progress;
use super::settings::Settings;
use super::signals::Signals;
use super::{connect, output, project};
use crate::api::{ApiClient, ClientError, Lines, LogLine};
use crate::supervise::report::{Event, EventLevel, ServiceReport, Standing, UpRequest};

/// How often the services are looked at when nothing is told.
const LOOK: Duration = Duration::from_millis(200);
/// A service that has run for so long has not failed at once: a wrong option or a missing file shows earlier.
const SETTLED: Duration = Duration::from_millis(500);
/// Lines of its output that are shown of a service that did not come up.
const LAST_LINES: usize = 10;

/// How long the services are waited for; not at all when `None`.
pub(super) type Patience = Option<Duration>;

pub(super) async fn up(
    settings: &Settings,
    request: &UpRequest,
    services: Vec<String>,
    patience: Patience,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let client = connect::connect_or_start(settings).await?;
    let mut waiting = Waiting::begin(client, request, services).await?;
    let Some(patience) = patience else {
        output::note(&format!(
            "project {} starts in the background; `supervisor ps` shows how far it is",
            request.project
        ));
        return Ok(ExitCode::SUCCESS);
    };
    // A timer and no moment: it takes any number of seconds.
    let deadline = tokio::time::sleep(patience);
    tokio::pin!(deadline);
    loop {
        match waiting.look().await {
            Ok(true) => return waiting.end(None).await,
            Ok(false) => {}
            // The services go on without control; what they need is another one.
            Err(ClientError::Lost(_) | ClientError::NotRunning { .. }) => {
                let client = connect::connect_or_start(settings).await?;
                waiting.again(client).await?;
            }
            Err(error) if ApiClient::is_not_found(&error) => {
                anyhow::bail!("project `{}` was taken down meanwhile", request.project)
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            // Cancel-safe: a stream keeps what it has read of a line, and the others only wait.
            ended = signals.next() => {
                waiting.progress.clear();
                output::note(&format!(
                    "project {} goes on in the background; `supervisor ps` shows it, `supervisor down` ends it",
                    request.project
                ));
                return Ok(ExitCode::from(ended.code()));
            }
            () = waiting.told() => {}
            () = tokio::time::sleep(LOOK) => {}
            () = &mut deadline => return waiting.end(Some(patience)).await,
        }
    }
}

/// A project whose services are waited for.
struct Waiting<'a> {
    client: ApiClient,
    request: &'a UpRequest,
    services: Vec<String>,
    events: Lines,
    begin: Timestamp,
    reports: Vec<ServiceReport>,
    progress: Progress,
}

impl<'a> Waiting<'a> {
    async fn begin(
        client: ApiClient,
        request: &'a UpRequest,
        services: Vec<String>,
    ) -> anyhow::Result<Self> {
        // Before the request, so that nothing that it causes is missed.
        let events = client.lines(Method::GET, "/v1/events", &()).await?;
        let begin = Timestamp::now();
        let path = format!("/v1/projects/{}", request.project);
        client.call::<_, ()>(Method::PUT, &path, request).await?;
        let progress = Progress::new(&services);
        Ok(Self { client, request, services, events, begin, reports: Vec::new(), progress })
    }

    async fn again(&mut self, client: ApiClient) -> anyhow::Result<()> {
        self.events = client.lines(Method::GET, "/v1/events", &()).await?;
        self.client = client;
        Ok(())
    }

    /// Looks at the services and shows them; whether nothing is left to wait for.
    async fn look(&mut self) -> Result<bool, ClientError> {
        let all = project::reports(&self.client, Some(&self.request.project)).await?;
        self.reports =
            all.into_iter().filter(|report| self.services.contains(&report.service)).collect();
        let mut ended = true;
        for report in &self.reports {
            let settled = report.started_at.is_some_and(|start| output::since(start) >= SETTLED);
            match report.standing {
                // One that fails at once is never called up.
                Standing::Up if !settled => {
                    ended = false;
                    continue;
                }
                Standing::Coming => ended = false,
                Standing::Up | Standing::Done | Standing::Failed | Standing::Stopped => {}
            }
            self.progress.show(report);
        }
        Ok(ended && self.reports.len() == self.services.len())
    }

    /// Waits for an event, and shows it if it is a bad one.
    async fn told(&mut self) {
        let Ok(Some(event)) = self.events.next::<Event>().await else {
            // Control has gone; the next look finds out.
            return std::future::pending().await;
        };
        if event.project != self.request.project && !event.project.is_empty() {
            return;
        }
        let hint = event.attributes.get("hint").filter(|hint| !hint.is_empty()).map(String::as_str);
        self.progress.suspend(|| match event.level {
            EventLevel::Info => {}
            EventLevel::Warning => output::warning(&event.message),
            EventLevel::Error => output::failure(&event.message, hint),
        });
    }

    /// Says what has become of the services, and what to do about those that are not up.
    async fn end(&mut self, patience: Patience) -> anyhow::Result<ExitCode> {
        self.progress.clear();
        let project = &self.request.project;
        let mut failed = Vec::new();
        for service in &self.services {
            let report = self.reports.iter().find(|report| report.service == *service);
            let status = report.map_or("unknown", |report| report.status.as_str());
            let why = match (report.map(|report| report.standing), patience) {
                (Some(Standing::Up | Standing::Done), _) => continue,
                (Some(Standing::Failed | Standing::Stopped), _) | (_, None) => status.to_owned(),
                (Some(Standing::Coming) | None, Some(patience)) => {
                    format!("not up after {} s: {status}", patience.as_secs())
                }
            };
            output::failure(&format!("service `{service}`: {why}"), None);
            self.show_last_lines(service).await;
            failed.push(service.as_str());
        }
        if failed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        output::hint(&format!(
            "the project is left as it is; `supervisor logs -p {project} {}` shows more, `supervisor down -p {project}` \
             ends it, and `supervisor up -d` tries again",
            failed.join(" ")
        ));
        Ok(ExitCode::FAILURE)
    }

    async fn show_last_lines(&self, service: &str) {
        let path = format!(
            "/v1/logs?project={}&services={service}&tail={LAST_LINES}&since={}",
            self.request.project, self.begin
        );
        let Ok(mut lines) = self.client.lines(Method::GET, &path, &()).await else { return };
        while let Ok(Some(line)) = lines.next::<LogLine>().await {
            output::note(&format!("  {}  | {}", line.container, line.text));
        }
    }
}
