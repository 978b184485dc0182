//! Routes about the disk: what is where, what may go, which images stay.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};

use super::caller::{Caller, Permission};
use super::server::Context;
use super::wire::{ImageRequest, PinAnswer, PruneRequest};
use crate::store::Reach;
use crate::supervise::{Contents, Pin, PruneManner, PruneOptions, RequestError};

pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/disk", get(disk))
        .route("/v1/prune", post(prune))
        .route("/v1/images", delete(remove_image))
        .route("/v1/images/pin", post(pin))
}

async fn disk(caller: Caller, State(context): State<Context>) -> Result<Response, RequestError> {
    caller.require(Permission::ReadImages)?;
    Ok(Json(context.control.disk().await?).into_response())
}

async fn prune(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<PruneRequest>,
) -> Result<Response, RequestError> {
    caller.require(match request.dry_run {
        true => Permission::ReadImages,
        false => Permission::ChangeImages,
    })?;
    let (reach, content) = match request.all {
        true => (Reach::Unused, Contents::Idle),
        false => (Reach::Leftovers, Contents::Orphans),
    };
    let manner = if request.dry_run { PruneManner::DryRun } else { PruneManner::Remove };
    // On its own: a caller that goes away stops nothing half way.
    let pruning = tokio::spawn(async move {
        context.control.prune(PruneOptions { reach, content, manner }).await
    });
    Ok(Json(finished(pruning).await?).into_response())
}

async fn remove_image(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<ImageRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::ChangeImages)?;
    let removing = tokio::spawn(async move { context.control.remove_image(&request.image).await });
    Ok(Json(finished(removing).await?).into_response())
}

async fn pin(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<ImageRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::ChangeImages)?;
    let pin = if request.pin { Pin::Keep } else { Pin::LetGo };
    let changed = context.control.pin_image(&request.image, pin).await?;
    Ok(Json(PinAnswer { changed }).into_response())
}

async fn finished<T>(
    task: tokio::task::JoinHandle<Result<T, RequestError>>,
) -> Result<T, RequestError> {
    let failed = |error: tokio::task::JoinError| {
        RequestError::new(crate::supervise::RequestErrorKind::Failed, error.to_string())
    };
    task.await.map_err(failed)?
}
