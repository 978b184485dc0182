//! What an attached `up` shows: the lines of the services and what happens to them.

use std::time::Duration;

use hyper::Method;
use jiff::Timestamp;

use super::log_printer::Printer;
use super::{logs, output, project};
use crate::api::{ApiClient, Lines, LogLine, LogsQuery};
use crate::supervise::report::{Event, EventLevel, UpRequest};

/// How long after the end of a project its last lines are waited for; they are written before it ends.
const LAST_LINES: Duration = Duration::from_millis(50);

/// Whether attaching asks for the project to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It does.
    Up,
    /// It was asked for before.
    Earlier,
}

/// What came.
pub(super) enum Seen {
    /// Something, and it was shown.
    Shown,
    /// The project is down.
    Down,
    /// Control is gone.
    Lost(anyhow::Error),
}

/// The output and the events of one project.
pub(super) struct Attached {
    project: String,
    lines: Lines,
    events: Lines,
    printer: Printer,
    last: Timestamp,
}

impl Attached {
    /// Begins to follow the project of `request`, which runs from then on.
    pub(super) async fn to(
        client: &ApiClient,
        request: &UpRequest,
        claim: Claim,
    ) -> anyhow::Result<Self> {
        Self::since(client, request, claim, Timestamp::now(), Printer::default()).await
    }

    /// Goes on with another control. It knows the project by its record, unless it lost it.
    pub(super) async fn again(
        &mut self,
        client: &ApiClient,
        request: &UpRequest,
    ) -> anyhow::Result<()> {
        let known = project::reports(client, Some(&request.project)).await;
        let claim = if known.is_ok() { Claim::Earlier } else { Claim::Up };
        let printer = std::mem::take(&mut self.printer);
        *self = Self::since(client, request, claim, self.last, printer).await?;
        Ok(())
    }

    async fn since(
        client: &ApiClient,
        request: &UpRequest,
        claim: Claim,
        since: Timestamp,
        mut printer: Printer,
    ) -> anyhow::Result<Self> {
        // Before the request, so that nothing that it causes is missed.
        let events = client.lines(Method::GET, "/v1/events", &()).await?;
        if claim == Claim::Up {
            let path = format!("/v1/projects/{}", request.project);
            client.call::<_, ()>(Method::PUT, &path, request).await?;
        }
        let query = LogsQuery {
            project: request.project.clone(),
            services: request.services.join(","),
            follow: true,
            tail: None,
            since: Some(since),
            until: None,
        };
        printer.learn(client, &request.project, &request.services).await;
        let lines = client.lines(Method::GET, &logs::path(&query), &()).await?;
        Ok(Self { project: request.project.clone(), lines, events, printer, last: since })
    }

    /// Waits for the next line or event and shows it. Cancel-safe: a stream keeps what it has read of a line.
    pub(super) async fn show_next(&mut self) -> Seen {
        tokio::select! {
            // Cancel-safe: see above.
            line = self.lines.next::<LogLine>() => match line {
                Ok(Some(line)) => {
                    self.print(&line);
                    Seen::Shown
                }
                Ok(None) => Seen::Lost(anyhow::anyhow!("the supervisor has ended")),
                Err(error) => Seen::Lost(error.into()),
            },
            event = self.events.next::<Event>() => match event {
                Ok(Some(event)) if event.kind == "project-down" && event.project == self.project => Seen::Down,
                Ok(Some(event)) => {
                    show(&event, &self.project);
                    Seen::Shown
                }
                Ok(None) => Seen::Lost(anyhow::anyhow!("the supervisor has ended")),
                Err(error) => Seen::Lost(error.into()),
            },
        }
    }

    /// Shows what the services said last.
    pub(super) async fn show_rest(&mut self) {
        while let Ok(Ok(Some(line))) =
            tokio::time::timeout(LAST_LINES, self.lines.next::<LogLine>()).await
        {
            self.print(&line);
        }
    }

    fn print(&mut self, line: &LogLine) {
        // The next moment, so that this line is not shown again by another control.
        self.last = line.time.checked_add(jiff::SignedDuration::from_nanos(1)).unwrap_or(line.time);
        // A line that nobody reads is in the log all the same.
        let _ = self.printer.print(line);
    }
}

/// Tells people what happens to the project, and to the host as far as it may concern it.
fn show(event: &Event, project: &str) {
    if event.project != project && !event.project.is_empty() {
        return;
    }
    let hint = event.attributes.get("hint").filter(|hint| !hint.is_empty()).map(String::as_str);
    match event.level {
        EventLevel::Error => output::failure(&event.message, hint),
        EventLevel::Warning => output::warning(&event.message),
        EventLevel::Info if event.kind.starts_with("project-") => {}
        EventLevel::Info if event.kind == "image-pulling" => {
            output::note(&format!(" … {}", event.message))
        }
        EventLevel::Info => output::done(&event.message),
    }
}
