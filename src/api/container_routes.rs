//! Routes about containers that run: signals, counters, processes; and the end of a project with its volumes.

use axum::extract::{Path as UrlPath, Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::caller::{Caller, Permission};
use super::server::Context;
use super::service_routes::options;
use super::wire::{DownAnswer, DownRequest, InspectQuery, KillRequest, names};
use crate::supervise::{RequestError, RequestErrorKind};

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/projects/{project}/kill", post(kill))
        .route("/v1/projects/{project}/down-with-volumes", post(down))
        .route("/v1/stats", get(stats))
        .route("/v1/top", get(top))
}

async fn kill(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<KillRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    let invalid = |error: crate::container::SignalError| {
        RequestError::new(RequestErrorKind::Invalid, error.to_string())
    };
    let signal = request.signal.parse().map_err(invalid)?;
    let told = context.control.kill(project, request.services, signal).await?;
    Ok(Json(told).into_response())
}

async fn down(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<DownRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    // A volume is no project's alone by its name.
    if !request.volumes.is_empty() {
        caller.require(Permission::Host)?;
    }
    if !request.stop.services.is_empty() {
        let message = "volumes are removed with a whole project, and services are named";
        return Err(RequestError::new(RequestErrorKind::Invalid, message));
    }
    if request.stop.force {
        context.control.free_lazy(&project).await?;
    }
    let gone = context.control.down_with_volumes(project, options(request.stop), request.volumes);
    let (containers, volumes) = gone.await?;
    Ok(Json(DownAnswer { containers, volumes }).into_response())
}

async fn stats(
    caller: Caller,
    State(context): State<Context>,
    Query(query): Query<InspectQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(query.project.as_deref()))?;
    Ok(Json(context.control.usage(query.project, names(&query.names)).await?).into_response())
}

async fn top(
    caller: Caller,
    State(context): State<Context>,
    Query(query): Query<InspectQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(query.project.as_deref()))?;
    Ok(Json(context.control.processes(query.project, names(&query.names)).await?).into_response())
}
