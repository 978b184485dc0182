//! A host's lazy side in two temporary directories: layers made on the spot, keeper and worker as real processes.

use std::io::Cursor;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use supervisor::estargz::{self, Prefetch, Tail, WriterOptions};
use supervisor::fuse::{
    ConnectionEvent, LayerMount, Lazy, LazyError, LazyOptions, LazyStatus, LazyUnavailable, Stop,
    WorkerState,
};
use supervisor::image::Digest;
use supervisor::registry::BlobSource;
use supervisor::store::Store;
use supervisor::sys::process::{self, ProcessIdentity, SealedExe};
use supervisor::sys::{cgroup, mount};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;

use super::eventually;

/// The program under test.
pub(crate) fn program() -> Arc<SealedExe> {
    Arc::new(SealedExe::of_file(Path::new(env!("CARGO_BIN_EXE_supervisor"))).unwrap())
}

/// An eStargz layer.
pub(crate) struct TestLayer {
    pub(crate) blob: Vec<u8>,
    pub(crate) digest: Digest,
}

impl TestLayer {
    /// Packs a tar stream, in chunks of `chunk_size` bytes.
    pub(crate) fn pack(tar: Vec<u8>, chunk_size: u32) -> Self {
        let mut blob = Vec::new();
        let options =
            WriterOptions { level: 1, chunk_size, min_chunk_size: 0, prefetch: Prefetch::Nothing };
        let written = estargz::write_layer(&mut Cursor::new(tar), &options, &mut blob).unwrap();
        Self { blob, digest: written.digest }
    }

    /// A blob that somebody else made; `None` when it is no eStargz layer.
    pub(crate) fn of(blob: Vec<u8>) -> Option<Self> {
        index_of(&blob)?;
        let digest = Digest::of(&blob);
        Some(Self { blob, digest })
    }
}

fn index_of(blob: &[u8]) -> Option<Vec<u8>> {
    let size = blob.len() as u64;
    let mut from = size - estargz::tail::first_tail_len(size);
    loop {
        match estargz::tail::parse(&blob[from as usize..], size).ok()? {
            Tail::Complete(toc) => {
                return Some(estargz::index::build(&toc.json, &toc.index_input(size)).unwrap());
            }
            Tail::NeedFrom(earlier) => from = earlier,
            Tail::NotEstargz => return None,
        }
    }
}

/// Content that no compressor makes small and no two files share.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

/// The control group of a host's keeper and worker.
fn lazy_group(run: &Path) -> String {
    format!("/supervisor-{}", &Digest::of(run.as_os_str().as_encoded_bytes()).hex()[..8])
}

/// Two directories and what runs on them.
pub(crate) struct LazyHost {
    pub(crate) run: tempfile::TempDir,
    pub(crate) state: tempfile::TempDir,
    pub(crate) runtime: Runtime,
    pub(crate) store: Store,
    lazy: Option<Lazy>,
}

impl LazyHost {
    /// Directories, and nothing that runs.
    pub(crate) fn idle() -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        Self {
            run: tempfile::tempdir().unwrap(),
            state,
            runtime: Runtime::new().unwrap(),
            store,
            lazy: None,
        }
    }

    /// The usual one.
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// One with other options.
    pub(crate) fn with(change: impl FnOnce(&mut LazyOptions)) -> Self {
        let mut host = Self::idle();
        let mut options = host.options();
        change(&mut options);
        host.ensure(options).unwrap_or_else(|error| panic!("run as root, with /dev/fuse: {error}"));
        host
    }

    pub(crate) fn options(&self) -> LazyOptions {
        let group = lazy_group(self.run.path());
        let mut options = LazyOptions::new(group.trim_start_matches("/supervisor-"));
        options.log_level = "debug".to_owned();
        options.cgroup = Some(group);
        options
    }

    pub(crate) fn ensure(&mut self, options: LazyOptions) -> Result<(), LazyUnavailable> {
        self.ensure_with(options, None)
    }

    /// With a descriptor of the connection that somebody kept.
    pub(crate) fn ensure_with(
        &mut self,
        options: LazyOptions,
        stored: Option<OwnedFd>,
    ) -> Result<(), LazyUnavailable> {
        let ensured = Lazy::ensure(self.run.path(), self.state.path(), program(), options, stored);
        self.lazy = Some(self.runtime.block_on(ensured)?);
        Ok(())
    }

    pub(crate) fn lazy(&self) -> &Lazy {
        self.lazy.as_ref().unwrap()
    }

    /// Forgets the handle, as a control process that is killed does.
    pub(crate) fn forget(&mut self) {
        self.lazy = None;
    }

    /// Mounts a layer whose blob is at `source`.
    pub(crate) fn mount(&self, layer: &TestLayer, source: BlobSource) -> PathBuf {
        self.try_mount(layer, source).unwrap()
    }

    /// Tries to.
    pub(crate) fn try_mount(
        &self,
        layer: &TestLayer,
        source: BlobSource,
    ) -> Result<PathBuf, LazyError> {
        let place = self.store.layer(layer.digest);
        place.write_index(layer.digest, &index_of(&layer.blob).unwrap()).unwrap();
        let mount = LayerMount {
            digest: layer.digest,
            blob_size: layer.blob.len() as u64,
            index: place.index_path(),
            source,
        };
        self.runtime.block_on(self.lazy().mount_layer(mount)).map(|mounted| mounted.directory)
    }

    /// Writes the blob into a layout folder and mounts it from there.
    pub(crate) fn mount_local(&self, layer: &TestLayer) -> PathBuf {
        let layout = self.state.path().join("layout");
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(blobs.join(layer.digest.hex()), &layer.blob).unwrap();
        self.mount(layer, BlobSource::Layout { path: layout })
    }

    pub(crate) fn status(&self) -> LazyStatus {
        self.runtime.block_on(self.lazy().status()).unwrap()
    }

    /// The worker that serves, once one does.
    pub(crate) fn worker(&self) -> ProcessIdentity {
        let mut found = None;
        eventually("a worker serves", || {
            if let WorkerState::Running { process } = self.status().keeper.worker
                && self.status().worker.is_some_and(|worker| worker.process == process)
            {
                found = Some(process);
            }
            found.is_some()
        });
        found.unwrap()
    }

    /// Kills the worker and waits for the next.
    pub(crate) fn replace_worker(&self) {
        let worker = self.worker();
        kill(&worker);
        eventually("the next worker serves", || self.worker() != worker);
    }

    /// Whether a path is mounted here.
    pub(crate) fn is_mounted(&self) -> bool {
        let path = self.run.path().canonicalize().unwrap().join("lazy/layers");
        mount::mounts().unwrap().iter().any(|mount| mount.mount_point == path)
    }
}

impl Drop for LazyHost {
    #[expect(clippy::print_stderr, reason = "what the roles logged explains a failed test")]
    fn drop(&mut self) {
        let Some(lazy) = self.lazy.take() else { return };
        if std::thread::panicking() {
            for log in ["keeper.log", "worker.log"] {
                let text = std::fs::read_to_string(self.run.path().join("lazy").join(log));
                eprintln!("--- {log}\n{}", text.unwrap_or_default());
            }
        }
        let group = lazy_group(self.run.path());
        let stopped = self.runtime.block_on(lazy.stop(Stop::Force));
        if !std::thread::panicking() {
            stopped.unwrap();
            for hierarchy in cgroup::hierarchies().unwrap() {
                let path = hierarchy.mount_point.join(group.trim_start_matches('/'));
                assert!(!path.exists(), "{} is left", path.display());
            }
        }
    }
}

/// Kills a process.
pub(crate) fn kill(process: &ProcessIdentity) {
    let pidfd = process.open().expect("the process lives");
    process::send_signal(pidfd.as_fd(), 9).unwrap();
}

/// Waits for an event.
pub(crate) fn wait_for(
    runtime: &Runtime,
    events: &mut broadcast::Receiver<ConnectionEvent>,
    mut wanted: impl FnMut(&ConnectionEvent) -> bool,
) {
    let waiting = async {
        loop {
            match events.recv().await {
                Ok(event) if wanted(&event) => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let limited = async { tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await };
    runtime.block_on(limited).expect("the event comes");
}
