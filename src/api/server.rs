//! Serves the API on a unix socket.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use axum::body::{Body, Bytes};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::wire::{
    API_VERSION, Hello, LogLine, LogsQuery, MountRequest, ProjectQuery, PullRequest, SOCKET_NAME,
    StopRequest, Subject, WireError,
};
use crate::supervise::report::UpRequest;
use crate::supervise::{
    ControlHandle, Extent, LogTail, RequestError, RequestErrorKind, StopManner,
};

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

#[derive(Clone)]
struct Context {
    control: ControlHandle,
    state_dir: PathBuf,
}

/// Serves `control` at `$RUN/api.sock` until `stop`. The socket is there when this returns; the returned future
/// serves it.
///
/// # Errors
/// When the socket cannot be bound.
pub fn serve(
    control: ControlHandle,
    run_dir: &Path,
    state_dir: &Path,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, ServeError> {
    let path = run_dir.join(SOCKET_NAME);
    let listener = bind(run_dir).map_err(|source| ServeError { path, source })?;
    let app = router(Context { control, state_dir: state_dir.to_path_buf() });
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

/// Bound through the directory's descriptor because socket paths are short, and renamed over a dead one so that a
/// client never finds the name without a listener.
fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = File::open(run_dir)?;
    let within =
        |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
    let fresh = within(".api.sock.new");
    let _ = std::fs::remove_file(&fresh);
    let listener = std::os::unix::net::UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, within(SOCKET_NAME))?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn router(context: Context) -> Router {
    Router::new()
        .route("/hello", get(hello))
        .route("/v1/projects", get(projects))
        .route("/v1/projects/{project}", put(up))
        .route("/v1/projects/{project}/stop", post(stop_project))
        .route("/v1/projects/{project}/down", post(down))
        .route("/v1/services", get(services))
        .route("/v1/logs", get(logs))
        .route("/v1/events", get(events))
        .route("/v1/exec", post(exec))
        .route("/v1/pull", post(pull))
        .route("/v1/images", get(images))
        .route("/v1/mounts", post(mount))
        .route("/v1/mounts", delete(unmounted))
        .with_state(context)
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            RequestErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RequestErrorKind::NotFound => StatusCode::NOT_FOUND,
            RequestErrorKind::Conflict => StatusCode::CONFLICT,
            RequestErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(WireError { message: self.message, hint: self.hint })).into_response()
    }
}

/// One JSON object a line, until the stream ends.
fn lines<T: Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let chunks = items.map(|item| {
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(chunks)).into_response()
}

fn received<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

async fn hello(State(context): State<Context>) -> Result<Json<Hello>, RequestError> {
    context.control.visit().await?;
    Ok(Json(Hello {
        api: API_VERSION,
        version: crate::version::versions().build.to_owned(),
        pid: std::process::id(),
        instance: context.control.instance().to_owned(),
        state_dir: context.state_dir,
    }))
}

async fn projects(State(context): State<Context>) -> Result<Response, RequestError> {
    Ok(Json(context.control.projects().await?).into_response())
}

async fn up(
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(mut request): Json<UpRequest>,
) -> Result<Response, RequestError> {
    request.project = project;
    context.control.up(request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn manner(request: &StopRequest) -> StopManner {
    if request.kill { StopManner::Kill } else { StopManner::Graceful }
}

async fn stop_project(
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<StopRequest>,
) -> Result<Response, RequestError> {
    context.control.stop(project, manner(&request)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn down(
    State(context): State<Context>,
    UrlPath(project): UrlPath<String>,
    Json(request): Json<StopRequest>,
) -> Result<Response, RequestError> {
    Ok(Json(context.control.down(project, manner(&request)).await?).into_response())
}

async fn services(
    State(context): State<Context>,
    Query(query): Query<ProjectQuery>,
) -> Result<Response, RequestError> {
    Ok(Json(context.control.services(query.project).await?).into_response())
}

async fn logs(
    State(context): State<Context>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, RequestError> {
    let services: Vec<String> =
        query.services.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let tail = LogTail { last: query.tail, since: query.since, follow: query.follow };
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    crate::supervise::read_logs(context.control, query.project, services, tail, sender).await?;
    Ok(lines(received(receiver).map(|line| LogLine {
        container: line.container,
        service: line.service,
        stream: line.stream.to_owned(),
        time: line.time,
        text: line.text,
    })))
}

async fn events(State(context): State<Context>) -> Response {
    let events = stream::unfold(context.control.events(), |mut receiver| async {
        loop {
            match receiver.recv().await {
                Ok(event) => return Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    lines(events)
}

async fn exec(
    State(context): State<Context>,
    Json(subject): Json<Subject>,
) -> Result<Response, RequestError> {
    Ok(Json(context.control.exec_target(subject.project, subject.service).await?).into_response())
}

fn extent(full: bool) -> Extent {
    if full { Extent::Full } else { Extent::Lazy }
}

async fn pull(State(context): State<Context>, Json(request): Json<PullRequest>) -> Response {
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(
        async move { context.control.pull(request.image, extent(request.full), sender).await },
    );
    lines(received(receiver))
}

async fn images(State(context): State<Context>) -> Result<Response, RequestError> {
    Ok(Json(context.control.images().await?).into_response())
}

async fn mount(
    State(context): State<Context>,
    Json(request): Json<MountRequest>,
) -> Result<Response, RequestError> {
    let mountable =
        context.control.mountable(request.image, extent(request.full), request.target).await?;
    Ok(Json(mountable).into_response())
}

async fn unmounted(
    State(context): State<Context>,
    Json(request): Json<MountRequest>,
) -> Result<Response, RequestError> {
    context.control.unmounted(request.target).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
