//! Routes about containers that run once beside a service.

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::caller::{Caller, Permission};
use super::server::Context;
use super::wire::RunRequest;
use crate::container::CallerStreams;
use crate::supervise::{RequestError, RequestErrorKind, RunOptions};
use crate::sys::process::ProcessIdentity;

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/projects/{project}/run", post(run))
        .route("/v1/projects/{project}/runs/{container}/end", get(end))
        .route("/v1/projects/{project}/runs/{container}/stop", post(stop))
}

async fn run(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<RunRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    caller.require(Permission::Execute(&project))?;
    let RunRequest { mut up, service, streams, .. } = request;
    up.project = project;
    // The caller's own, whatever it says: the kernel tells who it is.
    let streams = streams.map(|streams| {
        let gone = |_| RequestError::new(RequestErrorKind::Failed, "the caller has gone");
        let process = ProcessIdentity::of(caller.pid).map_err(gone)?;
        Ok(CallerStreams { process, numbers: streams.numbers, terminal: streams.terminal })
    });
    let options = RunOptions {
        command: request.command,
        entrypoint: request.entrypoint,
        environment: request.environment,
        volumes: request.volumes,
        user: request.user,
        working_dir: request.working_dir,
        name: request.name,
        ports: request.ports,
        remove: request.remove,
        idempotency_key: request.idempotency_key,
        streams: streams.transpose()?,
    };
    Ok(Json(context.control.run(up, service, options).await?).into_response())
}

async fn end(
    caller: Caller,
    State(context): State<Context>,
    UrlPath((project, container)): UrlPath<(String, String)>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(Some(&project)))?;
    Ok(Json(context.control.run_end(project, container).await?).into_response())
}

async fn stop(
    caller: Caller,
    State(context): State<Context>,
    UrlPath((project, container)): UrlPath<(String, String)>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    context.control.stop_run(project, container).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
