//! A registry in the process: serves what a test puts in, misbehaves as told, and keeps count.
//!
//! Written by hand on sockets rather than on an HTTP library, because libraries refuse to misbehave. It runs on a
//! thread with a runtime of its own, so that tests of whole programs can use it without one.

mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use supervisor::image::Digest;
use tokio::net::TcpListener;
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
    gate: Option<Gate>,
}

/// Requests that are answered when all of them are here.
struct Gate {
    part: String,
    count: usize,
    arrived: usize,
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
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// An empty registry at this address.
    pub(crate) fn start_at(address: SocketAddr) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind(address).expect("a free port");
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
                            tokio::spawn(wire::serve(stream, Arc::clone(&served), address));
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

    /// Adds a blob under a digest that is not its own.
    pub(crate) fn put_wrong_blob(&self, digest: Digest, bytes: &[u8]) {
        self.state().blobs.insert(digest.to_string(), Arc::new(bytes.to_vec()));
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

    /// The first `count` requests whose path contains `part` are answered when all of them are here.
    pub(crate) fn gather(&self, part: &str, count: usize) {
        self.state().gate = Some(Gate { part: part.to_owned(), count, arrived: 0 });
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
