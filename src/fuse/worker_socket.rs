//! The worker's socket: what control asks of it while the kernel's requests go on beside.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{broadcast, mpsc, oneshot};

use super::channel::{Channel, Listener};
use super::connect::Granted;
use super::protocol::{Answer, ConnectionEvent, FailureKind, Request, WorkerStatus, hello_answer};
use super::served::Served;
use super::worker_layers::{Layers, LayersError};
use crate::lazy::{LazyEvent, LazyLayer};
use crate::sys::process::ProcessIdentity;
use crate::telemetry;

/// What every connection of the socket works on.
pub(super) struct Shared {
    pub(super) identity: ProcessIdentity,
    pub(super) build: String,
    pub(super) device: OwnedFd,
    pub(super) granted: Granted,
    pub(super) gaps: Vec<String>,
    pub(super) layers: Layers,
    pub(super) served: Arc<Served>,
    pub(super) events: broadcast::Sender<ConnectionEvent>,
}

/// Serves the socket until the connection to the kernel has ended.
pub(super) async fn serve(
    shared: Shared,
    listener: OwnedFd,
    mut engine_events: mpsc::Receiver<LazyEvent>,
    mut end: oneshot::Receiver<io::Result<()>>,
) -> io::Result<()> {
    let shared = Arc::new(shared);
    let listener = Listener::new(listener)?;
    loop {
        tokio::select! {
            // Cancel-safe: a oneshot receiver keeps its value.
            outcome = &mut end => return outcome.unwrap_or_else(|_| Err(io::Error::other("the FUSE threads panicked"))),
            // Cancel-safe: nothing is accepted unless this arm is taken.
            accepted = listener.accept() => match accepted {
                Ok(channel) => drop(tokio::spawn(converse(Arc::clone(&shared), channel))),
                // Out of descriptors, mostly: not a reason to stop serving files. But whoever asks in vain whether this
                // worker lives replaces it in the end.
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    shared.layers.close_idle_files();
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            // Cancel-safe: a receiver loses no message.
            Some(event) = engine_events.recv() => {
                tracing::info!(?event, "engine");
                let _ = shared.events.send(ConnectionEvent::Content { content: event });
            }
        }
    }
}

async fn converse(shared: Arc<Shared>, channel: Channel) {
    while let Ok(Some((request, descriptors))) = channel.receive::<Request>().await {
        let is_descriptor = matches!(request, Request::Descriptor);
        let wants_events = matches!(request, Request::Events);
        if matches!(request, Request::Ping) {
            // Here and not on a thread that may wait for a disk.
            let taken = shared.served.taken.load(Ordering::Relaxed);
            if channel.send(&Answer::Alive { taken }, &[]).await.is_err() {
                return;
            }
            continue;
        }
        // Before the answer, so that nothing that happens after it is missed.
        let events = shared.events.subscribe();
        let working = Arc::clone(&shared);
        // Mounting reads an index from the disk.
        let answer =
            tokio::task::spawn_blocking(move || answer(&working, request, descriptors)).await;
        let answer = answer.unwrap_or_else(|_| Answer::Failed {
            kind: FailureKind::Other,
            message: "the request panicked".to_owned(),
        });
        let copies: Vec<_> = is_descriptor.then(|| shared.device.as_fd()).into_iter().collect();
        if channel.send(&answer, &copies).await.is_err() {
            return;
        }
        if wants_events {
            return forward(events, &channel).await;
        }
    }
}

async fn forward(mut events: broadcast::Receiver<ConnectionEvent>, channel: &Channel) {
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            // A reader that does not keep up loses the oldest; the state can be asked for.
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if channel.send(&Answer::Event { event }, &[]).await.is_err() {
            return;
        }
    }
}

fn answer(shared: &Shared, request: Request, descriptors: Vec<OwnedFd>) -> Answer {
    let done = |outcome: Result<(), LayersError>| match outcome {
        Ok(()) => Answer::Done,
        Err(error) => refusal(&error),
    };
    match request {
        Request::Hello { protocol, oldest, .. } => {
            hello_answer(&shared.identity, &shared.build, (protocol, oldest))
        }
        Request::Status { after } => {
            let (layers, more) = shared.layers.status(after);
            let status = WorkerStatus {
                process: shared.identity.clone(),
                resend: shared.granted.resend,
                passthrough: shared.served.passthrough.load(Ordering::Relaxed),
                open_files: shared.served.handles.count() as u64,
                gaps: shared.gaps.clone(),
            };
            Answer::Worker { status, layers, more }
        }
        Request::Descriptor | Request::Events => Answer::Done,
        Request::Mount { layer } => {
            let blob = descriptors.into_iter().next().map(File::from);
            match shared.layers.mount(layer, blob) {
                Ok((slot, name)) => Answer::Mounted { slot, name },
                Err(error) => refusal(&error),
            }
        }
        Request::Release { digest } => done(shared.layers.release(digest)),
        Request::Prefetch { digest, paths } => done(shared.layers.find(digest).map(|layer| {
            let _ = match &*paths {
                [] => layer.start_prefetch(),
                paths => layer.prefetch_paths(paths),
            };
        })),
        Request::Begin { layers, wanted } => {
            // One that cannot be served tells so to who reads it.
            let found = layers.into_iter().filter_map(|digest| shared.layers.find(digest).ok());
            let layers: Vec<Arc<LazyLayer>> = found.collect();
            for layer in &layers {
                layer.start_prefetch();
            }
            LazyLayer::expect(layers, &wanted);
            Answer::Done
        }
        Request::Background { digest } => {
            done(shared.layers.find(digest).map(|layer| layer.start_background()))
        }
        Request::Evict { keep, stored, bytes } => match shared.layers.evict(keep, stored, bytes) {
            Ok(found) => Answer::Evicted { found },
            Err(error) => Answer::Failed {
                kind: FailureKind::Other,
                message: telemetry::Chain(&error).to_string(),
            },
        },
        Request::Ping | Request::Retry | Request::Stop { .. } | Request::Unknown => {
            Answer::Failed {
                kind: FailureKind::Unsupported,
                message: "the worker does not know this request".to_owned(),
            }
        }
    }
}

fn refusal(error: &LayersError) -> Answer {
    let kind = match error {
        LayersError::NotMounted(_) => FailureKind::NotMounted,
        LayersError::NewerIndex { .. } | LayersError::Index { .. } | LayersError::Open { .. } => {
            FailureKind::Index
        }
        LayersError::Session(_) => FailureKind::Session,
        LayersError::Xattrs(_) => FailureKind::Xattrs,
    };
    Answer::Failed { kind, message: telemetry::Chain(error).to_string() }
}
