//! Peers of other versions and callers with tokens, each faked.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};

use super::caller::{Access, Caller, Connection, NoTokens, Scope, ScopeSource};
use super::client::{ApiClient, ClientError};
use super::{
    API_VERSION, ErrorKind, OLDEST_API_VERSION, SOCKET_NAME, ServeOptions, listen, version,
};
use crate::host::Features;
use crate::supervise::{Control, ControlOptions};
use crate::sys::socket::Peer;

/// Serves `app` as control does, in a run directory of its own.
fn serve(app: Router) -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    let listener = listen::bind(run.path(), None).unwrap();
    let app = app.into_make_service_with_connect_info::<Connection>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    run
}

/// A control that says this of itself.
fn control(hello: &Value) -> tempfile::TempDir {
    let text = hello.to_string();
    serve(Router::new().route("/hello", get(move || async move { text })))
}

fn hello(api: u32, oldest: Option<u32>) -> Value {
    let mut hello = json!({
        "api": api, "version": "7.7.7", "pid": 4242, "instance": "00000000", "state_dir": "/state",
        "a field of the future": { "of": "any form" },
    });
    if let Some(oldest) = oldest {
        hello["oldest_api"] = oldest.into();
    }
    hello
}

async fn refused(hello: Value) -> (String, String) {
    let run = control(&hello);
    let error = ApiClient::connect(run.path()).await.unwrap_err();
    assert!(!error.is_not_running(), "another one must not be started beside it: {error}");
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_control_that_still_speaks_our_version_is_used() {
    for hello in [
        hello(API_VERSION, None),
        hello(API_VERSION, Some(OLDEST_API_VERSION)),
        hello(API_VERSION + 5, Some(API_VERSION)),
    ] {
        let run = control(&hello);
        let (_, told) = ApiClient::connect(run.path()).await.unwrap();
        assert_eq!(told.version, "7.7.7");
    }
}

#[tokio::test]
async fn an_older_control_is_told_from_a_newer_one_and_each_has_its_remedy() {
    let own = format!("this program is version {} and speaks API 1", env!("CARGO_PKG_VERSION"));
    let (message, hint) = refused(hello(OLDEST_API_VERSION - 1, None)).await;
    assert_eq!(message, format!("the running supervisor is version 7.7.7 and speaks API 0; {own}"));
    assert!(hint.contains("`kill 4242`") && hint.contains("services go on"), "{hint}");

    let (message, hint) = refused(hello(API_VERSION + 5, Some(API_VERSION + 2))).await;
    assert_eq!(
        message,
        format!("the running supervisor is version 7.7.7 and speaks API 3 to 6; {own}")
    );
    assert!(hint.contains("use the program of the running one, version 7.7.7"), "{hint}");
}

#[tokio::test]
async fn a_control_that_answers_something_else_is_not_taken_for_none() {
    let (message, _) = refused(json!("welcome")).await;
    assert!(message.contains("does not understand"), "{message}");
}

/// Says a request and reads the whole answer: its status and its body.
async fn say(run: &Path, request: String) -> (u16, Value) {
    let path = run.join(SOCKET_NAME);
    tokio::task::spawn_blocking(move || {
        let mut connection = UnixStream::connect(path).unwrap();
        let head = request.replacen('\n', " HTTP/1.1\r\nhost: x\r\nconnection: close\r\n", 1);
        write!(connection, "{head}\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or_else(|_| body.into()))
    })
    .await
    .unwrap()
}

fn versioned() -> Router {
    let app = Router::new().route("/hello", get(|| async { "hello" }));
    version::versioned(app.route("/v1/known", get(|| async { "known" })))
}

#[tokio::test]
async fn a_caller_that_is_too_old_is_told_both_versions() {
    let run = serve(versioned());
    let caller = |path: &str, api: u32| {
        format!("GET {path}\nsupervisor-api: {api}\r\nsupervisor-version: 0.0.1\r\n")
    };
    let (status, error) = say(run.path(), caller("/v1/known", OLDEST_API_VERSION - 1)).await;
    assert_eq!((status, &error["kind"]), (426, &"version".into()), "{error}");
    let expected = format!(
        "the running supervisor is version {} and speaks API 1; the caller is version 0.0.1 and speaks API 0",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(error["message"], expected.as_str());
    // It may always ask, a newer one may always try, and who says no version is taken as it is.
    for request in [
        caller("/hello", 0),
        caller("/v1/known", API_VERSION),
        caller("/v1/known", API_VERSION + 9),
        "GET /v1/known\n".to_owned(),
    ] {
        assert_eq!(say(run.path(), request.clone()).await.0, 200, "{request}");
    }
}

/// The paths that the sources of this module name.
fn all_paths() -> Vec<String> {
    let sources = [
        include_str!("server.rs"),
        include_str!("event_routes.rs"),
        include_str!("service_routes.rs"),
    ];
    let routes = sources.iter().flat_map(|source| source.split(".route(").skip(1));
    let path = |route: &str| {
        let quoted = route.split('"').nth(1).filter(|path| path.starts_with('/'));
        quoted.unwrap_or_else(|| panic!("no path in `{route}`")).replace("{project}", "shop")
    };
    routes.map(path).collect()
}

#[tokio::test]
async fn every_call_of_control_but_hello_refuses_a_caller_that_is_too_old() {
    let folder = tempfile::tempdir().unwrap();
    let (state_dir, run_dir) = (folder.path().join("state"), folder.path().join("run"));
    let options =
        ControlOptions::with_features(state_dir.clone(), run_dir.clone(), Features::assumed());
    let control = Control::start(options).unwrap();
    let options = ServeOptions { run_dir: run_dir.clone(), state_dir, group: None };
    tokio::spawn(super::serve(control.handle(), options, control.ended()).unwrap());
    let paths = all_paths();
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths.iter().filter(|path| *path != "/hello") {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let request =
                format!("{method} {path}\nsupervisor-api: 0\r\nsupervisor-version: 0.0.1\r\n");
            let (status, error) = say(&run_dir, request).await;
            assert_eq!((status, &error["kind"]), (426, &"version".into()), "{method} {path}");
        }
    }
    control.stop().await;
}

#[tokio::test]
async fn a_call_that_does_not_exist_is_no_missing_thing() {
    let run = serve(versioned());
    for request in ["POST /v1/known\n", "GET /v2/new\nsupervisor-version: 9.9.9\r\n"] {
        let (status, error) = say(run.path(), request.to_owned()).await;
        assert_eq!((status, &error["kind"]), (404, &"unknown-call".into()), "{error}");
    }
    let (_, error) = say(run.path(), "GET /v2/new\nsupervisor-version: 9.9.9\r\n".to_owned()).await;
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("there is no call `GET /v2/new`: the running supervisor is version")
    );
    assert!(message.ends_with("the caller is version 9.9.9"), "{message}");

    let hello = hello(API_VERSION, None).to_string();
    let app = Router::new().route("/hello", get(move || async move { hello }));
    let run = serve(app.fallback(version::unknown_call));
    let client = ApiClient::connect(run.path()).await.unwrap().0;
    let error = client.call::<_, ()>(hyper::Method::GET, "/v1/none", &()).await.unwrap_err();
    assert!(error.is_kind(ErrorKind::UnknownCall) && !ApiClient::is_not_found(&error), "{error}");
}

#[derive(Debug)]
struct OneToken;

impl ScopeSource for OneToken {
    fn scope(&self, token: &str, _peer: Peer) -> Result<Scope, String> {
        let scope = Scope::Project { name: "shop".to_owned(), access: Access::Read };
        if token == "good" { Ok(scope) } else { Err("this token is not valid".to_owned()) }
    }
}

fn asking(tokens: Arc<dyn ScopeSource>) -> Router {
    let told = |caller: Caller| async move { format!("{} {}", caller.uid, caller.scope) };
    Router::new().route("/who", get(told)).with_state(tokens)
}

#[tokio::test]
async fn a_caller_is_the_process_at_the_other_end_and_a_token_narrows_it() {
    let run = serve(asking(Arc::new(OneToken)));
    let uid = rustix::process::geteuid().as_raw();
    let (status, body) = say(run.path(), "GET /who\n".to_owned()).await;
    assert_eq!((status, body), (200, Value::from(format!("{uid} everything"))));
    let with = |value: &str| format!("GET /who\nauthorization: {value}\r\n");
    let (status, body) = say(run.path(), with("Bearer good")).await;
    assert_eq!((status, body), (200, Value::from(format!("{uid} reading project `shop`"))));
    for (value, why) in [("Bearer bad", "not valid"), ("Basic Zm9v", "not `Bearer TOKEN`")] {
        let (status, error) = say(run.path(), with(value)).await;
        assert_eq!((status, &error["kind"]), (401, &"forbidden".into()), "{error}");
        assert!(error["message"].as_str().unwrap().contains(why), "{error}");
    }
}

#[tokio::test]
async fn no_token_is_known_yet_and_one_is_never_ignored() {
    let run = serve(asking(Arc::new(NoTokens)));
    let (status, error) = say(run.path(), "GET /who\nauthorization: Bearer x\r\n".to_owned()).await;
    assert_eq!(status, 401);
    assert!(error["message"].as_str().unwrap().contains("gives out no tokens"), "{error}");
}

#[tokio::test]
async fn nobody_listening_is_told_from_a_socket_that_may_not_be_used() {
    let run = tempfile::tempdir().unwrap();
    let error = ApiClient::connect(&run.path().join("none")).await.unwrap_err();
    assert!(error.is_not_running(), "{error}");
    std::fs::write(run.path().join("file"), "").unwrap();
    let error = ApiClient::connect(&run.path().join("file")).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert!(!error.is_kind(ErrorKind::Failed));
}
