//! A registry in the process: serves what a test puts in, misbehaves as told, and keeps count.
//!
//! Written by hand on sockets rather than on an HTTP library, because libraries refuse to misbehave. It runs on a
//! thread with a runtime of its own, so that tests of whole programs can use it without one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use supervisor::image::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What goes wrong with an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// This status, with these headers, and no body.
    Status(u16, Vec<(String, String)>),
    /// A correct 206 of only so many bytes.
    ShortRange(u64),
    /// The whole blob with status 200, whatever was asked for.
    RangeIgnored,
    /// The byte at this position of the body is another one.
    WrongByte(u64),
    /// The headers say that the part begins elsewhere.
    WrongContentRange,
    /// The connection is reset after so many bytes of the body.
    Reset(u64),
    /// The connection is closed after so many bytes of the body.
    Close(u64),
    /// After so many bytes of the body nothing comes any more.
    Stall(u64),
    /// The connection is closed before there is an answer.
    Hangup,
}

/// Who may read.
#[derive(Debug, Clone, Default)]
pub(crate) enum Access {
    /// Everybody.
    #[default]
    Open,
    /// This user with this password.
    Basic(String, String),
    /// Holders of a token; tokens are for this user, or for everybody.
    Bearer { user: Option<(String, String)>, expires_in: u64 },
    /// Holders of a token that an identity token was exchanged for.
    Identity(String),
}

/// One request as it came, and what was sent.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// With the query.
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) status: u16,
    /// Of the body.
    pub(crate) sent: u64,
}

struct Scripted {
    part: String,
    times: u32,
    fault: Fault,
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    /// By `repository/reference`: media type and content.
    manifests: HashMap<String, (String, Arc<Vec<u8>>)>,
    faults: Vec<Scripted>,
    access: Access,
    tokens: Vec<String>,
    issued: u32,
    storage: Option<String>,
    signature: u32,
    seen: Vec<Seen>,
    rate: Option<u64>,
    next_free: Option<Instant>,
}

/// The registry; stops when it is dropped.
pub(crate) struct FaultRegistry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FaultRegistry {
    /// An empty registry on a free port of 127.0.0.1.
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a non-blocking listener");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (served, stopped) = (Arc::clone(&state), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a Tokio listener");
                loop {
                    tokio::select! {
                        // Cancel-safe: no connection is taken from the queue until it is returned.
                        accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                            tokio::spawn(serve(stream, Arc::clone(&served), address));
                        },
                        // Cancel-safe: waiting changes nothing.
                        () = stopped.cancelled() => break,
                    }
                }
            });
        });
        Self { address, state, stop, thread: Some(thread) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Host and port, for references.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Adds a blob.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.state().blobs.insert(digest.to_string(), Arc::new(bytes.to_vec()));
        digest
    }

    /// Adds a document under its digest, and under a tag.
    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Digest {
        let digest = Digest::of(bytes);
        let content = Arc::new(bytes.to_vec());
        for name in [tag.to_owned(), digest.to_string()] {
            let value = (media_type.to_owned(), Arc::clone(&content));
            self.state().manifests.insert(format!("{repository}/{name}"), value);
        }
        digest
    }

    /// Adds everything in an image layout folder, under its own tags.
    pub(crate) fn put_layout(&self, repository: &str, folder: &Path) {
        let blobs = std::fs::read_dir(folder.join("blobs/sha256")).expect("a layout folder");
        for entry in blobs {
            let bytes = std::fs::read(entry.expect("an entry").path()).expect("a blob");
            let digest = self.put_blob(&bytes);
            if let Ok(document) = serde_json::from_slice::<serde_json::Value>(&bytes)
                && let Some(media_type) = document["mediaType"].as_str()
            {
                self.put_manifest(repository, &digest.to_string(), media_type, &bytes);
            }
        }
        let index = std::fs::read(folder.join("index.json")).expect("an index");
        let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
        for entry in index["manifests"].as_array().expect("a list") {
            let tag = entry["annotations"]["org.opencontainers.image.ref.name"]
                .as_str()
                .unwrap_or("latest");
            let digest = entry["digest"].as_str().expect("a digest");
            let media_type = entry["mediaType"].as_str().expect("a media type");
            let bytes = self.state().blobs[digest].to_vec();
            self.put_manifest(repository, tag, media_type, &bytes);
        }
    }

    /// The next `times` requests whose path contains `part` meet `fault`.
    pub(crate) fn fault(&self, part: &str, times: u32, fault: Fault) {
        self.state().faults.push(Scripted { part: part.to_owned(), times, fault });
    }

    /// From here on nothing goes wrong any more.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// Who may read from here on.
    pub(crate) fn require(&self, access: Access) {
        self.state().access = access;
    }

    /// No token that was issued so far is valid any more.
    pub(crate) fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    /// Blobs are redirected to signed addresses of `storage`, which has to hold them.
    pub(crate) fn redirect_blobs_to(&self, storage: &FaultRegistry) {
        self.state().storage = Some(format!("http://{}", storage.host()));
    }

    /// Bodies are sent with so many bytes a second, all connections together.
    pub(crate) fn limit_rate(&self, bytes_per_second: Option<u64>) {
        self.state().rate = bytes_per_second;
    }

    /// The requests whose path contains `part`, in the order in which they were answered.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }

    /// Bytes of bodies sent for paths that contain `part`.
    pub(crate) fn sent(&self, part: &str) -> u64 {
        self.seen(part).iter().map(|seen| seen.sent).sum()
    }
}

impl Drop for FaultRegistry {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Head {
    method: String,
    path: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Arc<Vec<u8>>,
    /// Of the body.
    first: u64,
    last: u64,
}

impl Answer {
    fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Arc::default(), first: 0, last: 0 }
    }

    fn whole(media_type: &str, body: Arc<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type".to_owned(), media_type.to_owned())];
        let last = body.len() as u64;
        Self { status: 200, headers, body, first: 0, last }
    }

    fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, address: SocketAddr) {
    while let Ok(Some(head)) = read_head(&mut stream).await {
        if !answer(&mut stream, &head, &state, address).await.unwrap_or(false) {
            break;
        }
    }
}

async fn read_head(stream: &mut TcpStream) -> io::Result<Option<Head>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await? == 0 || bytes.len() > 64 << 10 {
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = text.split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let method = request.next().unwrap_or_default().to_owned();
    let path = request.next().unwrap_or_default();
    // What a proxy is asked for begins with the host that is meant.
    let path =
        match path.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..])) {
            Some(path) => path.to_owned(),
            None => path.to_owned(),
        };
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(Head { method, path, headers, body }))
}

/// Whether the connection goes on.
async fn answer(
    stream: &mut TcpStream,
    head: &Head,
    state: &Mutex<State>,
    address: SocketAddr,
) -> io::Result<bool> {
    let (mut answer, fault) = {
        let mut state = lock(state);
        let fault = take_fault(&mut state, &head.path);
        (route(&mut state, head, address), fault)
    };
    apply_range(head, &mut answer, fault.as_ref());
    if let Some(Fault::Status(status, headers)) = &fault {
        answer = Answer { headers: headers.clone(), ..Answer::empty(*status) };
    }
    let number = {
        let mut state = lock(state);
        state.seen.push(Seen {
            path: head.path.clone(),
            range: head.headers.get("range").cloned(),
            authorization: head.headers.get("authorization").cloned(),
            status: answer.status,
            sent: 0,
        });
        state.seen.len() - 1
    };
    if matches!(fault, Some(Fault::Hangup)) {
        return Ok(false);
    }
    let mut text = format!("HTTP/1.1 {} Scripted\r\n", answer.status);
    for (name, value) in &answer.headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    let length = answer.last - answer.first;
    let _ = write!(text, "Content-Length: {length}\r\n\r\n");
    stream.write_all(text.as_bytes()).await?;
    if head.method == "HEAD" {
        return Ok(true);
    }
    let mut body = answer.body[index(answer.first)..index(answer.last)].to_vec();
    if let Some(Fault::WrongByte(position)) = fault
        && let Some(byte) = body.get_mut(index(position))
    {
        *byte ^= 0x55;
    }
    let stop = match fault {
        Some(Fault::Reset(after) | Fault::Close(after) | Fault::Stall(after)) => after.min(length),
        _ => length,
    };
    send_body(stream, &body[..index(stop)], state, number).await?;
    match fault {
        Some(Fault::Reset(_)) => {
            // With a linger time of zero, closing sends RST, and drops what the peer has not read.
            rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO))?;
            Ok(false)
        }
        Some(Fault::Close(_)) => Ok(false),
        Some(Fault::Stall(_)) => {
            // Until the client gives up.
            let _ = stream.read(&mut [0]).await;
            Ok(false)
        }
        _ => Ok(true),
    }
}

fn index(position: u64) -> usize {
    usize::try_from(position).expect("a position in memory")
}

async fn send_body(
    stream: &mut TcpStream,
    body: &[u8],
    state: &Mutex<State>,
    number: usize,
) -> io::Result<()> {
    for part in body.chunks(16 << 10) {
        let wait = {
            let mut state = lock(state);
            state.rate.map(|rate| {
                let now = Instant::now();
                let start = state.next_free.map_or(now, |free| free.max(now));
                let cost = Duration::from_secs_f64(part.len() as f64 / rate as f64);
                state.next_free = Some(start + cost);
                start + cost - now
            })
        };
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
        stream.write_all(part).await?;
        lock(state).seen[number].sent += part.len() as u64;
    }
    Ok(())
}

fn take_fault(state: &mut State, path: &str) -> Option<Fault> {
    let scripted = state
        .faults
        .iter_mut()
        .find(|scripted| scripted.times > 0 && path.contains(&scripted.part))?;
    scripted.times -= 1;
    Some(scripted.fault.clone())
}

fn apply_range(head: &Head, answer: &mut Answer, fault: Option<&Fault>) {
    if answer.status != 200 || matches!(fault, Some(Fault::RangeIgnored)) {
        return;
    }
    let Some(range) = head.headers.get("range").and_then(|text| text.strip_prefix("bytes=")) else {
        return;
    };
    let total = answer.body.len() as u64;
    let (first, last) = range.split_once('-').expect("a range");
    let first: u64 = first.parse().expect("a first byte");
    let last = last.parse::<u64>().map_or(total, |last| last + 1).min(total);
    if first >= last {
        *answer = Answer::empty(416).header("Content-Range", format!("bytes */{total}"));
        return;
    }
    let last = match fault {
        Some(Fault::ShortRange(length)) => last.min(first + length),
        _ => last,
    };
    let shown = if matches!(fault, Some(Fault::WrongContentRange)) { first + 1 } else { first };
    answer.status = 206;
    answer.headers.push((
        "Content-Range".to_owned(),
        format!("bytes {shown}-{}/{total}", shown + (last - first) - 1),
    ));
    (answer.first, answer.last) = (first, last);
}

fn route(state: &mut State, head: &Head, address: SocketAddr) -> Answer {
    let path = head.path.split('?').next().unwrap_or_default();
    if path == "/token" {
        return token(state, head);
    }
    if let Some(digest) = path.strip_prefix("/storage/") {
        return match state.blobs.get(digest) {
            Some(blob) => Answer::whole("application/octet-stream", Arc::clone(blob)),
            None => Answer::empty(404),
        };
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return Answer::empty(404);
    };
    if let Some(refusal) = refuse(state, head, rest, address) {
        return refusal;
    }
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        let Some(blob) = state.blobs.get(digest).cloned() else {
            return unknown("BLOB_UNKNOWN", "blob unknown to registry");
        };
        if let Some(storage) = &state.storage {
            state.signature += 1;
            let location = format!("{storage}/storage/{digest}?signature={}", state.signature);
            return Answer::empty(307).header("Location", location);
        }
        return Answer::whole("application/octet-stream", blob);
    }
    if let Some((repository, name)) = rest.split_once("/manifests/")
        && let Some((media_type, bytes)) = state.manifests.get(&format!("{repository}/{name}"))
    {
        let digest = Digest::of(bytes).to_string();
        return Answer::whole(media_type, Arc::clone(bytes))
            .header("Docker-Content-Digest", digest);
    }
    unknown("MANIFEST_UNKNOWN", "manifest unknown")
}

fn unknown(code: &str, message: &str) -> Answer {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    Answer { status: 404, ..Answer::whole("application/json", Arc::new(body.into_bytes())) }
}

fn basic(user: &str, password: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {pair}")
}

fn refuse(state: &State, head: &Head, rest: &str, address: SocketAddr) -> Option<Answer> {
    let given = head.headers.get("authorization").map(String::as_str);
    match &state.access {
        Access::Open => None,
        Access::Basic(user, password) => (given != Some(&basic(user, password)))
            .then(|| Answer::empty(401).header("WWW-Authenticate", r#"Basic realm="test""#)),
        Access::Bearer { .. } | Access::Identity(_) => {
            let known = given
                .and_then(|given| given.strip_prefix("Bearer "))
                .is_some_and(|token| state.tokens.iter().any(|known| known == token));
            let repository = rest.split("/blobs/").next()?.split("/manifests/").next()?;
            let challenge = format!(
                r#"Bearer realm="http://{address}/token",service="test",scope="repository:{repository}:pull""#
            );
            (!known).then(|| Answer::empty(401).header("WWW-Authenticate", challenge))
        }
    }
}

fn token(state: &mut State, head: &Head) -> Answer {
    let expires_in = match &state.access {
        Access::Bearer { user: Some((user, password)), .. }
            if head.headers.get("authorization") != Some(&basic(user, password)) =>
        {
            return Answer::empty(401);
        }
        Access::Identity(secret) => {
            let body = String::from_utf8_lossy(&head.body);
            if head.method != "POST" || !body.contains(&format!("refresh_token={secret}")) {
                return Answer::empty(401);
            }
            300
        }
        Access::Bearer { expires_in, .. } => *expires_in,
        Access::Open | Access::Basic(..) => 300,
    };
    state.issued += 1;
    let token = format!("token-{}", state.issued);
    state.tokens.push(token.clone());
    let body = serde_json::json!({"token": token, "expires_in": expires_in}).to_string();
    Answer::whole("application/json", Arc::new(body.into_bytes()))
}
