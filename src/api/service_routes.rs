//! Routes about what the user asks of services, alone or with their project.

use std::time::Duration;

use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::caller::{Caller, Permission};
use super::server::{Context, lines, received};
use super::wire::{InspectQuery, ServicesQuery, StartRequest, StopRequest, names};
use crate::supervise::report::UpRequest;
use crate::supervise::{RequestError, StopOptions};

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/projects/{project}/stop", post(stop))
        .route("/v1/projects/{project}/down", post(down))
        .route("/v1/projects/{project}/start", post(start))
        .route("/v1/projects/{project}/restart", post(restart))
        .route("/v1/projects/{project}/wait", get(wait))
        .route("/v1/inspect", get(inspect))
        .route("/v1/plan", post(plan))
        .route("/v1/host/shutdown", post(host_shutdown).delete(host_resume))
}

pub(super) fn options(request: StopRequest) -> StopOptions {
    let timeout = request.timeout.map(Duration::from_secs);
    StopOptions {
        services: request.services,
        grace: if request.kill || request.force { Some(Duration::ZERO) } else { timeout },
    }
}

async fn stop(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<StopRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    Ok(Json(context.control.stop(project, options(request)).await?).into_response())
}

async fn down(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<StopRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    if request.force {
        context.control.free_lazy(&project).await?;
    }
    Ok(Json(context.control.down(project, options(request)).await?).into_response())
}

async fn start(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<StartRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    Ok(Json(context.control.start(project, request.services).await?).into_response())
}

async fn restart(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<StopRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    Ok(Json(context.control.restart(project, options(request)).await?).into_response())
}

async fn wait(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Query(query): Query<ServicesQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(Some(&project)))?;
    Ok(lines(received(context.control.wait(project, names(&query.services)).await?)))
}

async fn inspect(
    caller: Caller,
    State(context): State<Context>,
    Query(query): Query<InspectQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(query.project.as_deref()))?;
    Ok(Json(context.control.inspect(query.project, names(&query.names)).await?).into_response())
}

async fn plan(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<UpRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(Some(&request.project)))?;
    Ok(Json(context.control.plan(request).await?).into_response())
}

async fn host_shutdown(
    caller: Caller,
    State(context): State<Context>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Host)?;
    Ok(Json(context.control.host_shutdown().await?).into_response())
}

async fn host_resume(
    caller: Caller,
    State(context): State<Context>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Host)?;
    context.control.host_resume().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
