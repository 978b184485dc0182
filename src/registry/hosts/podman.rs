//! `registries.conf` as Podman, Buildah and Skopeo read it: addresses by prefixes of image names, mirrors before them.
//!
//! Short names are not looked up here: they mean Docker's hub, as in compose files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Capabilities, Endpoint, HostsError, Verification, text_of};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    registry: Vec<Registry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<Kinds>,
}

/// For which references a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kinds {
    All,
    DigestOnly,
    TagOnly,
}

impl Registry {
    fn prefix(&self) -> &str {
        if self.prefix.is_empty() { &self.location } else { &self.prefix }
    }

    /// The part of `name` (host, then repository) that the prefix stands for.
    fn matched<'a>(&self, name: &'a str) -> Option<&'a str> {
        let prefix = self.prefix();
        if let Some(suffix) = prefix.strip_prefix('*') {
            // `*.example.com`: a host below it, whole.
            let host = name.split('/').next().unwrap_or(name);
            let below = host.strip_suffix(suffix).is_some_and(|below| !below.is_empty());
            return (suffix.starts_with('.') && below).then_some(host);
        }
        let rest = name.strip_prefix(prefix)?;
        (!prefix.is_empty() && (rest.is_empty() || rest.starts_with('/')))
            .then_some(&name[..prefix.len()])
    }
}

/// Where the files are that come after `file`.
pub(super) fn drop_ins(file: &Path) -> PathBuf {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    folder.into()
}

/// What the first of `files` that exists says of the repository whose own address is `own`; `None` if nothing.
pub(super) fn read(files: &[PathBuf], own: &Endpoint) -> Result<Option<Vec<Endpoint>>, HostsError> {
    for file in files {
        let mut registries = BTreeMap::new();
        let is_there = add(file, &mut registries)?;
        let mut more: Vec<PathBuf> = fs::read_dir(drop_ins(file))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect();
        more.sort();
        for path in &more {
            add(path, &mut registries)?;
        }
        if is_there || !more.is_empty() {
            return choose(&registries, own);
        }
    }
    Ok(None)
}

type Registries = BTreeMap<String, (PathBuf, Registry)>;

/// Adds the entries of a file; a later one replaces that of the same prefix. False if there is no such file.
fn add(path: &Path, registries: &mut Registries) -> Result<bool, HostsError> {
    let Some(text) = text_of(path)? else { return Ok(false) };
    let wrong = |problem: String| HostsError { path: path.to_owned(), problem };
    let file: File = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for registry in file.registry {
        if registry.prefix().is_empty() {
            return Err(wrong("a `[[registry]]` has neither `prefix` nor `location`".to_owned()));
        }
        if let Some(mirror) = registry.mirror.iter().find(|mirror| mirror.location.is_empty()) {
            let problem =
                format!("a mirror of `{}` has no `location`: {mirror:?}", registry.prefix());
            return Err(wrong(problem));
        }
        registries.insert(registry.prefix().to_owned(), (path.to_owned(), registry));
    }
    Ok(true)
}

fn choose(registries: &Registries, own: &Endpoint) -> Result<Option<Vec<Endpoint>>, HostsError> {
    let name = format!("{}/{}", own.host, own.repository);
    let found = registries
        .values()
        .filter_map(|(path, registry)| Some((path, registry, registry.matched(&name)?)))
        .max_by_key(|(_, registry, _)| registry.prefix().len());
    let Some((path, registry, matched)) = found else { return Ok(None) };
    let wrong = |problem: String| HostsError { path: path.clone(), problem };
    if registry.blocked {
        return Err(wrong(format!("`{}` is blocked there", registry.prefix())));
    }
    let rest = &name[matched.len()..];
    let mut endpoints = Vec::new();
    for mirror in &registry.mirror {
        let kinds = match mirror.pull_from_mirror {
            Some(kinds) => kinds,
            None if registry.mirror_by_digest_only => Kinds::DigestOnly,
            None => Kinds::All,
        };
        let capabilities =
            Capabilities { pull: kinds != Kinds::TagOnly, resolve: kinds != Kinds::DigestOnly };
        let found =
            at(&format!("{}{rest}", mirror.location), mirror.insecure, own).map_err(wrong)?;
        endpoints.extend(found.into_iter().map(|endpoint| Endpoint { capabilities, ..endpoint }));
    }
    let location = if registry.location.is_empty() { matched } else { &registry.location };
    endpoints.extend(at(&format!("{location}{rest}"), registry.insecure, own).map_err(wrong)?);
    Ok(Some(endpoints))
}

/// The addresses of the repository that is called `name` with its host.
fn at(name: &str, insecure: bool, own: &Endpoint) -> Result<Vec<Endpoint>, String> {
    let (host, repository) = name
        .split_once('/')
        .filter(|(host, repository)| !host.is_empty() && !repository.is_empty())
        .ok_or_else(|| format!("`{name}` is no repository: its host or its name is missing"))?;
    let mut endpoint = match host == own.host {
        true => own.clone(),
        false => Endpoint::of_registry(host, repository, &[]),
    };
    repository.clone_into(&mut endpoint.repository);
    if !insecure || endpoint.is_plain() {
        return Ok(vec![endpoint]);
    }
    // Encrypted with whoever it is, or else in the clear.
    endpoint.trust.verification = Verification::None;
    let plain = endpoint.base.replacen("https:", "http:", 1);
    Ok(vec![endpoint.clone(), Endpoint { base: plain, ..endpoint }])
}
