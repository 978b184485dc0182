//! At which addresses a repository is asked for, in which order, and how: what containerd's `hosts.toml` trees and
//! Podman's `registries.conf` say, read as they are. Without either it is the registry itself.
//!
//! The first tree with a folder for the host decides, then the first file of `registries.conf` form with an entry for
//! the repository. Files are read again after some seconds, so that a change needs no restart. An address that failed
//! is asked last for a while, and the others meanwhile go on where it stopped.
//!
//! Formats: <https://github.com/containerd/containerd/blob/main/docs/hosts.md> and containers-registries.conf(5).

mod certificates;
mod containerd;
mod podman;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};

use super::ClientOptions;
use super::transport::is_loopback;

/// How long what the files say is believed.
const FRESH: Duration = Duration::from_secs(10);
/// How long an address that failed is asked last.
const TROUBLE: Duration = Duration::from_secs(30);
/// Repositories whose addresses are remembered.
const REMEMBERED: usize = 1024;

/// Why what the files say cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {problem}", .path.display())]
pub(super) struct HostsError {
    pub(super) path: PathBuf,
    pub(super) problem: String,
}

/// Whom to trust, and as whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Trust {
    /// PEM files with authorities, besides the host's own.
    pub(super) authorities: Vec<PathBuf>,
    /// A certificate of ours, and the file with its key if that is another one.
    pub(super) identity: Option<(PathBuf, Option<PathBuf>)>,
    pub(super) verification: Verification,
}

/// Whether the other side has to prove who it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) enum Verification {
    #[default]
    Full,
    /// Somebody wrote that down for this address.
    None,
}

/// What an address may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Content by its digest.
    pub(super) pull: bool,
    /// What a tag stands for.
    pub(super) resolve: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self { pull: true, resolve: true };
}

/// One address of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Of the API, without a slash at its end: `https://mirror.example/v2`.
    pub(super) base: String,
    /// Host and port under which credentials are looked for.
    pub(super) host: String,
    /// The repository's name there.
    pub(super) repository: String,
    /// The registry whose content is meant, told to one that stands for several.
    pub(super) namespace: Option<String>,
    pub(super) capabilities: Capabilities,
    pub(super) trust: Trust,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Endpoint {
    /// The registry's own address, as it is without any file.
    fn of_registry(host: &str, repository: &str, plain: &[String]) -> Self {
        let is_plain = is_loopback(host) || plain.iter().any(|plain| plain == host);
        let scheme = if is_plain { "http" } else { "https" };
        Self {
            base: format!("{scheme}://{}/v2", real_host(host)),
            host: host.to_owned(),
            repository: repository.to_owned(),
            namespace: None,
            capabilities: Capabilities::ALL,
            trust: Trust::default(),
            headers: Vec::new(),
        }
    }

    /// Whether it is reached in the clear.
    pub(super) fn is_plain(&self) -> bool {
        self.base.starts_with("http:")
    }

    /// Where it only says whether it is there, and who may come.
    pub(super) fn greeting(&self) -> Option<Url> {
        Url::parse(&format!("{}/", self.base)).ok()
    }

    /// The address of `path` below the repository.
    pub(super) fn url(&self, path: &str) -> Option<Url> {
        let mut url = Url::parse(&format!("{}/{}/{path}", self.base, self.repository)).ok()?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Some(url)
    }
}

/// Docker's hub answers under another name than its images have.
fn real_host(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

/// What an exchange is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Pull,
    Resolve,
}

type Known = HashMap<(String, String), (Instant, Arc<[Arc<Endpoint>]>)>;

/// The addresses of all repositories.
#[derive(Debug)]
pub(super) struct Hosts {
    sources: Arc<Sources>,
    known: Mutex<Known>,
    /// When each address that failed may be asked in its turn again.
    troubles: Mutex<HashMap<String, Instant>>,
}

/// Where it is written.
#[derive(Debug)]
struct Sources {
    trees: Vec<PathBuf>,
    files: Vec<PathBuf>,
    plain: Vec<String>,
}

impl Hosts {
    pub(super) fn new(options: &ClientOptions) -> Self {
        let sources = Sources {
            trees: options.host_trees.clone(),
            files: options.registries_conf.clone(),
            plain: options.plain_http.clone(),
        };
        Self { sources: Arc::new(sources), known: Mutex::default(), troubles: Mutex::default() }
    }

    /// The addresses of a repository for a purpose, those first that should be asked first; never none.
    pub(super) async fn of(
        &self,
        host: &str,
        repository: &str,
        purpose: Purpose,
    ) -> Result<Vec<Arc<Endpoint>>, HostsError> {
        let all = self.all(host, repository).await?;
        let fits = |endpoint: &&Arc<Endpoint>| match purpose {
            Purpose::Pull => endpoint.capabilities.pull,
            Purpose::Resolve => endpoint.capabilities.resolve,
        };
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        troubles.retain(|_, until| *until > now);
        let (last, mut first): (Vec<_>, Vec<_>) =
            all.iter().filter(fits).cloned().partition(|end| troubles.contains_key(&end.base));
        first.extend(last);
        if first.is_empty() {
            let path = self.sources.trees.first().cloned().unwrap_or_default();
            let problem = format!("no address of `{host}` may be used for this");
            return Err(HostsError { path, problem });
        }
        Ok(first)
    }

    async fn all(&self, host: &str, repository: &str) -> Result<Arc<[Arc<Endpoint>]>, HostsError> {
        let key = (host.to_owned(), repository.to_owned());
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, endpoints)) = known.get(&key)
                && at.elapsed() < FRESH
            {
                return Ok(Arc::clone(endpoints));
            }
        }
        let (sources, of) = (Arc::clone(&self.sources), key.clone());
        let read = tokio::task::spawn_blocking(move || sources.read(&of.0, &of.1)).await;
        let endpoints: Arc<[_]> = match read {
            Ok(endpoints) => endpoints?.into_iter().map(Arc::new).collect(),
            Err(error) => {
                let problem = format!("it could not be read: {error}");
                return Err(HostsError { path: PathBuf::from("hosts.toml"), problem });
            }
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        known.insert(key, (Instant::now(), Arc::clone(&endpoints)));
        Ok(endpoints)
    }

    /// Has the others asked first for a while.
    pub(super) fn failed(&self, endpoint: &Endpoint) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.insert(endpoint.base.clone(), Instant::now() + TROUBLE);
    }
}

impl Sources {
    /// What the files say of a repository. Blocks.
    fn read(&self, host: &str, repository: &str) -> Result<Vec<Endpoint>, HostsError> {
        let own = Endpoint::of_registry(host, repository, &self.plain);
        for tree in &self.trees {
            if let Some(endpoints) = containerd::read(tree, &own)? {
                return Ok(endpoints);
            }
        }
        let own = self.with_certificates(own)?;
        match podman::read(&self.files, &own)? {
            None => Ok(vec![own]),
            Some(endpoints) => {
                endpoints.into_iter().map(|endpoint| self.with_certificates(endpoint)).collect()
            }
        }
    }

    /// With what a folder without `hosts.toml` holds for the address, as Docker and Podman have them.
    fn with_certificates(&self, mut endpoint: Endpoint) -> Result<Endpoint, HostsError> {
        for tree in &self.trees {
            for folder in containerd::folders(tree, &endpoint.host) {
                certificates::add(&folder, &mut endpoint.trust)?;
            }
        }
        Ok(endpoint)
    }
}

/// What must stay readable for a process that gives up the rest of the file system: the files themselves, and the
/// certificates that they name now.
pub(crate) fn readable(options: &ClientOptions) -> Vec<PathBuf> {
    let mut paths = options.host_trees.clone();
    for file in &options.registries_conf {
        paths.push(file.clone());
        paths.push(podman::drop_ins(file));
    }
    for tree in &options.host_trees {
        for entry in fs::read_dir(tree).into_iter().flatten().flatten() {
            paths.extend(containerd::named_files(&entry.path()));
        }
    }
    paths
}

/// The text of a file; `None` if there is none.
fn text_of(path: &Path) -> Result<Option<String>, HostsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(HostsError { path: path.to_owned(), problem: error.to_string() }),
    }
}

#[cfg(test)]
mod tests;
