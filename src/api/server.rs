//! Serves the API on a unix socket.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{FromRef, Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::caller::{Caller, Connection, NoTokens, Permission, ScopeSource};
use super::wire::{
    API_VERSION, ErrorKind, Hello, LogLine, LogsQuery, MountRequest, OLDEST_API_VERSION,
    ProjectQuery, PullRequest, SOCKET_NAME, Subject, WireError,
};
use super::{
    container_routes, disk_routes, event_routes, listen, run_routes, service_routes, version,
};
use crate::supervise::report::UpRequest;
use crate::supervise::{ControlHandle, Extent, LogTail, RequestError, RequestErrorKind};

/// Lines that wait for a slow reader of a stream; its writer then waits too, and nothing else does.
const STREAM_QUEUE: usize = 256;

/// The API socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("could not listen at `{}`", path.display())]
pub struct ServeError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where and for whom the API is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The run directory of control; the socket is in it.
    pub run_dir: PathBuf,
    /// The state directory of control, for callers that expect another one.
    pub state_dir: PathBuf,
    /// Members of this group may use the socket too. They can become root by it: a service may have any folder of
    /// the host as a volume.
    pub group: Option<u32>,
}

#[derive(Clone)]
pub(super) struct Context {
    pub(super) control: ControlHandle,
    state_dir: PathBuf,
    tokens: Arc<dyn ScopeSource>,
}

impl FromRef<Context> for Arc<dyn ScopeSource> {
    fn from_ref(context: &Context) -> Self {
        Self::clone(&context.tokens)
    }
}

/// Serves `control` at `$RUN/api.sock` until `stop`. The socket is there when this returns; the returned future
/// serves it.
///
/// # Errors
/// When the socket cannot be bound, or cannot be given to the group.
pub fn serve(
    control: ControlHandle,
    options: ServeOptions,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, ServeError> {
    let path = options.run_dir.join(SOCKET_NAME);
    let listener = listen::bind(&options.run_dir, options.group)
        .map_err(|source| ServeError { path, source })?;
    let tokens = Arc::new(NoTokens);
    let app = router(Context { control, state_dir: options.state_dir, tokens })
        .into_make_service_with_connect_info::<Connection>();
    Ok(async move {
        let ended = stop.clone();
        let serving = axum::serve(listener, app)
            .with_graceful_shutdown(async move { ended.cancelled().await });
        // Streams that follow something never end by themselves, so the graceful part gets a bound.
        tokio::select! {
            // Cancel-safe: both arms end the server.
            _ = serving => {}
            () = async { stop.cancelled().await; tokio::time::sleep(std::time::Duration::from_millis(300)).await } => {}
        }
    })
}

fn router(context: Context) -> Router {
    let own = Router::new()
        .route("/hello", get(hello))
        .route("/v1/projects", get(projects))
        .route("/v1/projects/{project}", put(up))
        .route("/v1/services", get(services))
        .route("/v1/logs", get(logs))
        .route("/v1/exec", post(exec))
        .route("/v1/pull", post(pull))
        .route("/v1/images", get(images))
        .route("/v1/mounts", post(mount))
        .route("/v1/mounts", delete(unmounted))
        .route("/v1/make-way", post(make_way));
    let all = own
        .merge(event_routes::routes())
        .merge(service_routes::routes())
        .merge(container_routes::routes())
        .merge(run_routes::routes())
        .merge(disk_routes::routes());
    version::versioned(all).with_state(context)
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let (status, kind) = match self.kind {
            RequestErrorKind::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, ErrorKind::Invalid),
            RequestErrorKind::NotFound => (StatusCode::NOT_FOUND, ErrorKind::NotFound),
            RequestErrorKind::Conflict => (StatusCode::CONFLICT, ErrorKind::Conflict),
            RequestErrorKind::Failed => (StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Failed),
            RequestErrorKind::Forbidden => (StatusCode::FORBIDDEN, ErrorKind::Forbidden),
        };
        (status, Json(WireError { message: self.message, hint: self.hint, kind })).into_response()
    }
}

/// One JSON object a line, until the stream ends.
pub(super) fn lines<T: Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let chunks = items.map(|item| {
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response()
}

pub(super) fn received<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

/// The one call without a version and for everybody who may connect: it tells which versions there are.
async fn hello(State(context): State<Context>) -> Result<Json<Hello>, RequestError> {
    context.control.visit().await?;
    Ok(Json(Hello {
        api: API_VERSION,
        oldest_api: OLDEST_API_VERSION,
        version: crate::version::versions().build.to_owned(),
        pid: std::process::id(),
        instance: context.control.instance().to_owned(),
        state_dir: context.state_dir,
    }))
}

async fn projects(
    caller: Caller,
    State(context): State<Context>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(None))?;
    Ok(Json(context.control.projects().await?).into_response())
}

async fn up(
    caller: Caller,
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(mut request): Json<UpRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Change(&project))?;
    request.project = project;
    context.control.up(request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn services(
    caller: Caller,
    State(context): State<Context>,
    Query(query): Query<ProjectQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(query.project.as_deref()))?;
    Ok(Json(context.control.services(query.project).await?).into_response())
}

async fn logs(
    caller: Caller,
    State(context): State<Context>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Read(Some(&query.project)))?;
    let services = super::wire::names(&query.services);
    let tail =
        LogTail { last: query.tail, since: query.since, until: query.until, follow: query.follow };
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    crate::supervise::read_logs(context.control, query.project, services, tail, sender).await?;
    Ok(lines(received(receiver).map(|line| LogLine {
        container: line.container,
        service: line.service,
        stream: line.stream.to_owned(),
        time: line.time,
        text: line.text,
        partial: line.partial,
    })))
}

async fn exec(
    caller: Caller,
    State(context): State<Context>,
    Json(subject): Json<Subject>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Execute(&subject.project))?;
    Ok(Json(context.control.exec_target(subject.project, subject.service).await?).into_response())
}

fn extent(full: bool) -> Extent {
    if full { Extent::Full } else { Extent::Lazy }
}

async fn pull(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<PullRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::ChangeImages)?;
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    let extent = if request.complete { Extent::Complete } else { extent(request.full) };
    tokio::spawn(async move { context.control.pull(request.image, extent, sender).await });
    Ok(lines(received(receiver)))
}

async fn images(caller: Caller, State(context): State<Context>) -> Result<Response, RequestError> {
    caller.require(Permission::ReadImages)?;
    Ok(Json(context.control.images().await?).into_response())
}

async fn mount(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<MountRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Host)?;
    let mountable =
        context.control.mountable(request.image, extent(request.full), request.target).await?;
    Ok(Json(mountable).into_response())
}

async fn unmounted(
    caller: Caller,
    State(context): State<Context>,
    Json(request): Json<MountRequest>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Host)?;
    context.control.unmounted(request.target).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn make_way(
    caller: Caller,
    State(context): State<Context>,
) -> Result<Response, RequestError> {
    caller.require(Permission::Host)?;
    context.control.make_way().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
