//! The route of events: the past from the journal, then what happens.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use jiff::Timestamp;
use tokio::sync::broadcast::{self, error::RecvError};

use super::caller::{Caller, Permission};
use super::server::{Context, lines};
use super::wire::EventsQuery;
use crate::supervise::report::{Event, EventLevel};
use crate::supervise::{RequestError, RequestErrorKind};

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/v1/events", get(events))
}

async fn events(
    caller: Caller,
    State(context): State<Context>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(query.project.as_deref()))?;
    let mut history = context.control.history();
    let replays =
        query.since.is_some() || query.after.is_some() || query.until.is_some() || !query.follow;
    let (past, coming) = if replays {
        let read = tokio::task::spawn_blocking(move || (history.read_past(), history.coming)).await;
        read.map_err(|error| RequestError::new(RequestErrorKind::Failed, error.to_string()))?
    } else {
        (Vec::new(), history.coming)
    };
    let left = query.until.map(|until| {
        Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default()
    });
    let follow = query.follow && left != Some(Duration::ZERO);
    let filter = Filter {
        services: super::wire::names(&query.services),
        // What happens to the host may concern every project.
        host: query.services.is_empty() && caller.require(Permission::Read(None)).is_ok(),
        query,
    };
    let wanted = move |event: &Event| std::future::ready(filter.takes(event));
    let past = stream::iter(past);
    Ok(match (follow, left) {
        (false, _) => lines(past.filter(wanted)),
        (true, None) => lines(past.chain(told(coming)).filter(wanted)),
        (true, Some(left)) => {
            let all = past.chain(told(coming).take_until(Box::pin(tokio::time::sleep(left))));
            lines(all.filter(wanted))
        }
    })
}

/// What happens from now on; who reads too slowly is told how much was missed.
fn told(receiver: broadcast::Receiver<Event>) -> impl Stream<Item = Event> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async {
        match receiver.recv().await {
            Ok(event) => Some((event, receiver)),
            Err(RecvError::Lagged(count)) => Some((missed(count), receiver)),
            Err(RecvError::Closed) => None,
        }
    })
}

fn missed(count: u64) -> Event {
    Event {
        sequence: 0,
        time: Timestamp::now(),
        project: String::new(),
        service: String::new(),
        kind: "events-missed".to_owned(),
        level: EventLevel::Warning,
        message: format!("this reader was too slow and has missed {count} events"),
        attributes: std::collections::BTreeMap::from([("count".to_owned(), count.to_string())]),
    }
}

struct Filter {
    query: EventsQuery,
    services: Vec<String>,
    host: bool,
}

impl Filter {
    fn takes(&self, event: &Event) -> bool {
        let EventsQuery { project, since, until, after, .. } = &self.query;
        let whose = match project {
            _ if event.project.is_empty() => self.host,
            Some(project) => event.project == *project,
            None => true,
        };
        whose
            && (self.services.is_empty() || self.services.contains(&event.service))
            && since.is_none_or(|since| event.time >= since)
            && until.is_none_or(|until| event.time <= until)
            && after.is_none_or(|after| event.sequence == 0 || event.sequence > after)
    }
}
