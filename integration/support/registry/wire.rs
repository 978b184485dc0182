//! The registry's side of the protocol: requests, answers, and what goes wrong with them.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use supervisor::image::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Access, Fault, Seen, State, lock};

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

pub(super) async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>, address: SocketAddr) {
    // Head and body are written apart, and a client that delays its acknowledgement would wait 40 ms for the second.
    let _ = stream.set_nodelay(true);
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
        // The beginning of TLS, which other servers answer like this as well.
        if bytes[0] == 0x16 {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await?;
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
    gather(state, &head.path).await;
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

/// Waits for the others, if there is a gate for `path`.
async fn gather(state: &Mutex<State>, path: &str) {
    if let Some(gate) = &mut lock(state).gate
        && path.contains(&gate.part)
    {
        gate.arrived += 1;
    } else {
        return;
    }
    while lock(state).gate.as_ref().is_some_and(|gate| gate.arrived < gate.count) {
        tokio::time::sleep(Duration::from_millis(1)).await;
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
    if rest.is_empty() {
        return Answer::whole("application/json", Arc::new(b"{}".to_vec()));
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
