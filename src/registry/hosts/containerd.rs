//! containerd's tree of hosts: a folder for each registry, with a `hosts.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;

use super::{Capabilities, Endpoint, HostsError, Trust, Verification, text_of};
use crate::registry::transport::is_loopback;

/// Settings of one address, or at the top of the file of the registry itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    capabilities: Vec<String>,
    ca: OneOrMany,
    client: Client,
    skip_verify: bool,
    header: BTreeMap<String, OneOrMany>,
    override_path: bool,
}

/// One, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Several(Vec<String>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(several) => several,
        }
    }
}

/// Certificates of ours: one file, several, or pairs with their keys.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    Files(OneOrMany),
    Pairs(Vec<Vec<String>>),
}

impl Default for Client {
    fn default() -> Self {
        Self::Files(OneOrMany::default())
    }
}

/// The folders of `tree` that may be for `host`, the best one first.
pub(super) fn folders(tree: &Path, host: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((name, port)) = host.rsplit_once(':') {
        names.push(format!("{name}_{port}_"));
    }
    names.push(host.to_owned());
    names.into_iter().map(|name| tree.join(name)).collect()
}

/// What `tree` says of the repository whose own address is `own`; `None` if nothing.
pub(super) fn read(tree: &Path, own: &Endpoint) -> Result<Option<Vec<Endpoint>>, HostsError> {
    let mut folders = folders(tree, &own.host);
    folders.push(tree.join("_default"));
    for folder in folders {
        let path = folder.join("hosts.toml");
        if let Some(text) = text_of(&path)? {
            return parse(&text, &folder, own)
                .map(Some)
                .map_err(|problem| HostsError { path, problem });
        }
    }
    Ok(None)
}

fn parse(text: &str, folder: &Path, own: &Endpoint) -> Result<Vec<Endpoint>, String> {
    let mut file: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let hosts = match file.remove("host") {
        None => toml::Table::new(),
        Some(toml::Value::Table(hosts)) => hosts,
        Some(_) => return Err("`host` is no table of addresses".to_owned()),
    };
    let server = match file.remove("server") {
        None => None,
        Some(toml::Value::String(server)) if server.is_empty() => None,
        Some(toml::Value::String(server)) => Some(server),
        Some(_) => return Err("`server` is no address".to_owned()),
    };
    let mut endpoints = Vec::with_capacity(hosts.len() + 1);
    for (address, value) in hosts {
        let entry: Entry = value
            .try_into()
            .map_err(|error: toml::de::Error| format!("`{address}`: {}", error.message()))?;
        endpoints.push(endpoint(&address, &entry, folder, own)?);
    }
    let entry: Entry = toml::Value::Table(file)
        .try_into()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    let last = match server {
        Some(server) => endpoint(&server, &entry, folder, own)?,
        None => {
            let mut last = own.clone();
            last.trust = trust(&entry, folder)?;
            last
        }
    };
    if !endpoints.iter().any(|endpoint| endpoint.base == last.base) {
        endpoints.push(last);
    }
    Ok(endpoints)
}

fn endpoint(
    address: &str,
    entry: &Entry,
    folder: &Path,
    own: &Endpoint,
) -> Result<Endpoint, String> {
    let wrong = |why: &str| format!("`{address}` {why}");
    let text = match address.contains("://") {
        true => address.to_owned(),
        false if is_loopback(address) => format!("http://{address}"),
        false => format!("https://{address}"),
    };
    let url = Url::parse(&text).map_err(|error| wrong(&format!("is no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https")
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(wrong("is no address of a registry"));
    }
    let name = url.host_str().ok_or_else(|| wrong("has no host"))?;
    let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
    let mut base = url.as_str().trim_end_matches('/').to_owned();
    if !entry.override_path && !base.ends_with("/v2") {
        base.push_str("/v2");
    }
    let known = ["pull", "resolve", "push"];
    if let Some(other) = entry.capabilities.iter().find(|word| !known.contains(&word.as_str())) {
        return Err(wrong(&format!("has the unknown capability `{other}`")));
    }
    let can = |word: &str| {
        entry.capabilities.is_empty() || entry.capabilities.iter().any(|given| given == word)
    };
    let is_own = host == own.host || host == super::real_host(&own.host);
    Ok(Endpoint {
        base,
        host: if is_own { own.host.clone() } else { host },
        repository: own.repository.clone(),
        namespace: (!is_own).then(|| own.host.clone()),
        capabilities: Capabilities { pull: can("pull"), resolve: can("resolve") },
        trust: trust(entry, folder)?,
        headers: headers(entry).map_err(|why| wrong(&why))?,
    })
}

fn trust(entry: &Entry, folder: &Path) -> Result<Trust, String> {
    let identity = match &entry.client {
        Client::Files(files) => files.all().first().map(|file| (folder.join(file), None)),
        Client::Pairs(pairs) => match pairs.first().map(Vec::as_slice) {
            None | Some([]) => None,
            Some([certificate]) => Some((folder.join(certificate), None)),
            Some([certificate, key]) => {
                let key = (!key.is_empty()).then(|| folder.join(key));
                Some((folder.join(certificate), key))
            }
            Some(_) => {
                return Err("`client` has more than a certificate and its key".to_owned());
            }
        },
    };
    Ok(Trust {
        // Relative ones are beside the file; joining keeps an absolute one.
        authorities: entry.ca.all().iter().map(|file| folder.join(file)).collect(),
        identity,
        verification: if entry.skip_verify { Verification::None } else { Verification::Full },
    })
}

fn headers(entry: &Entry) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, values) in &entry.header {
        let key = HeaderName::from_bytes(name.as_bytes());
        let key = key.map_err(|_| format!("has the header `{name}`, which is no name"))?;
        for value in values.all() {
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| format!("has a value that cannot be sent for the header `{name}`"))?;
            // It may well be a key.
            value.set_sensitive(true);
            headers.push((key.clone(), value));
        }
    }
    Ok(headers)
}

/// The certificates that the file of a folder names, as far as it can be read.
pub(super) fn named_files(folder: &Path) -> Vec<PathBuf> {
    let own = Endpoint::of_registry("registry.example", "name", &[]);
    let path = folder.join("hosts.toml");
    let endpoints = text_of(&path).ok().flatten().and_then(|text| parse(&text, folder, &own).ok());
    let mut paths = Vec::new();
    for endpoint in endpoints.into_iter().flatten() {
        paths.extend(endpoint.trust.authorities);
        if let Some((certificate, key)) = endpoint.trust.identity {
            paths.push(certificate);
            paths.extend(key);
        }
    }
    paths
}
