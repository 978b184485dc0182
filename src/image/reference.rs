//! Image references: `registry/repository:tag@digest`, and `oci:PATH[:TAG]` for image layout folders.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Digest, DigestError};

/// Where an image is and which one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageRef {
    /// In a registry that speaks the OCI distribution protocol.
    Registry {
        /// Host and optional port, `docker.io` for short names.
        host: String,
        /// Path of the repository; `library/` is added to one-word names of `docker.io`.
        repository: String,
        /// `latest` when neither tag nor digest was given.
        tag: Option<String>,
        /// Wins over the tag.
        digest: Option<Digest>,
    },
    /// In an OCI image layout folder of this host.
    Layout {
        /// The folder that holds `index.json`.
        path: PathBuf,
        /// Compared with `org.opencontainers.image.ref.name`; without it the folder must hold one image.
        tag: Option<String>,
    },
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// The text does not follow the grammar of references.
    #[error("`{text}` is not an image reference: {reason}")]
    Malformed {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Where a short name like `nginx` comes from.
const DEFAULT_HOST: &str = "docker.io";
/// Longest repository that registries accept; the distribution specification's own limit.
const MAX_REPOSITORY: usize = 255;

impl ImageRef {
    /// The same image with a relative layout path taken below `base`; the folder of a services file, say.
    #[must_use]
    pub fn below(self, base: &Path) -> Self {
        match self {
            Self::Layout { path, tag } => Self::Layout { path: base.join(path), tag },
            registry @ Self::Registry { .. } => registry,
        }
    }

    /// The tag, when the reference has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Registry { tag, .. } | Self::Layout { tag, .. } => tag.as_deref(),
        }
    }

    /// The digest that pins the image, when the reference has one.
    #[must_use]
    pub fn pinned(&self) -> Option<Digest> {
        match self {
            Self::Registry { digest, .. } => *digest,
            Self::Layout { .. } => None,
        }
    }
}

impl FromStr for ImageRef {
    type Err = RefError;

    /// Reads a reference as people write it. A text that begins with `oci:` names a layout folder: what follows
    /// the last `:` is the tag if it is a valid tag (so it holds no `/`), everything before it is the path.
    fn from_str(text: &str) -> Result<Self, RefError> {
        let parsed = match text.strip_prefix("oci:") {
            Some(rest) => parse_layout(rest),
            None => parse_registry(text),
        };
        parsed.map_err(|reason| RefError::Malformed {
            text: text.chars().take(300).collect(),
            reason,
        })
    }
}

fn parse_layout(rest: &str) -> Result<ImageRef, &'static str> {
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
        Some((_, "")) => return Err("the tag is empty"),
        _ => (rest, None),
    };
    if path.is_empty() {
        return Err("`oci:` needs the path of an image layout folder");
    }
    if path.contains('\0') {
        return Err("a path cannot hold a NUL byte");
    }
    if path.ends_with("@sha256") {
        return Err("an image in a layout folder is chosen by tag, not by digest");
    }
    Ok(ImageRef::Layout { path: PathBuf::from(path), tag })
}

fn parse_registry(text: &str) -> Result<ImageRef, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.contains("://") {
        return Err("leave out the scheme: a reference begins with the registry's host");
    }
    if Digest::from_hex(text).is_ok() {
        return Err("an image is named by repository, not by a bare hash");
    }
    let (name, digest) = match text.split_once('@') {
        None => (text, None),
        Some((name, digest)) => {
            let digest = digest.parse().map_err(|error| match error {
                DigestError::Algorithm(_) => {
                    "the digest uses an algorithm other than sha256, which we cannot check"
                }
                DigestError::Malformed(_) => {
                    "what follows `@` is not `sha256:` and 64 lower-case hex digits"
                }
            })?;
            (name, Some(digest))
        }
    };
    // A colon before the last slash belongs to the host's port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(
            "a tag is 1 to 128 letters, digits, `_`, `.` and `-`, and begins with neither of the last two",
        );
    }
    let (host, repository) = match name.split_once('/') {
        Some((host, repository)) if names_a_host(host) => (host, repository.to_owned()),
        _ => (DEFAULT_HOST, name.to_owned()),
    };
    check_host(host)?;
    // The names that Docker itself has used for its hub over the years.
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
        host => host,
    };
    let repository = if host == DEFAULT_HOST && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository
    };
    check_repository(&repository)?;
    let tag = match (tag, digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    // A capital letter may be all that tells the host from a repository, in what we print too.
    let lower = host.to_ascii_lowercase();
    let host = if names_a_host(&lower) { lower } else { host.to_owned() };
    Ok(ImageRef::Registry { host, repository, tag, digest })
}

/// Docker's rule: the first component is a host if it could not be a part of a repository.
fn names_a_host(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':', '['])
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            address
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| "what is between `[` and `]` is not an IPv6 address")?;
            match rest.strip_prefix(':') {
                None if rest.is_empty() => ("ip", None),
                None => return Err("after `]` only `:` and a port may follow"),
                Some(port) => ("ip", Some(port)),
            }
        }
        None => match host.split_once(':') {
            None => (host, None),
            Some((name, port)) => (name, Some(port)),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !name.split('.').all(label) {
        return Err("the registry's host is not a host name");
    }
    match port {
        Some(port)
            if !port.bytes().all(|byte| byte.is_ascii_digit())
                || !port.parse::<u16>().is_ok_and(|port| port != 0) =>
        {
            Err("the registry's port is not a number from 1 to 65535")
        }
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.len() > MAX_REPOSITORY {
        return Err("the repository is longer than 255 characters");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("repository names are lower case");
    }
    if repository.split('/').all(is_component) {
        Ok(())
    } else {
        Err(
            "each part of a repository is lower-case letters and digits, joined by `.`, `_`, `__` or `-`",
        )
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, the distribution specification's grammar.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric)
        || !bytes.last().copied().is_some_and(alphanumeric)
    {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl fmt::Display for ImageRef {
    /// The complete form, with host and tag; it reads back as the same reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, repository, tag, digest } => {
                write!(f, "{host}/{repository}")?;
                if let Some(tag) = tag {
                    write!(f, ":{tag}")?;
                }
                if let Some(digest) = digest {
                    write!(f, "@{digest}")?;
                }
                Ok(())
            }
            Self::Layout { path, tag } => {
                let path = path.display().to_string();
                write!(f, "oci:{path}")?;
                match tag {
                    Some(tag) => write!(f, ":{tag}"),
                    // A name that ends like a tag; the slash keeps it a path, and the same one.
                    None if path.rsplit_once(':').is_some_and(|(_, end)| is_tag(end)) => {
                        f.write_str("/")
                    }
                    None => Ok(()),
                }
            }
        }
    }
}

impl Serialize for ImageRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[::1]/app:x", "[::1]/app:x"),
            ("GHCR.io/owner/app", "ghcr.io/owner/app:latest"),
            ("gcr.io/a_b/c__d/e-f--g.h", "gcr.io/a_b/c__d/e-f--g.h:latest"),
            ("host:5000/app", "host:5000/app:latest"),
        ] {
            let image: ImageRef = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(image.to_string(), full, "{text}");
            assert_eq!(image.to_string().parse(), Ok(image), "{text}");
        }
    }

    #[test]
    fn a_digest_is_kept_beside_the_tag_and_replaces_the_default_one() {
        let image: ImageRef = format!("nginx@sha256:{HEX}").parse().unwrap();
        assert_eq!(image.tag(), None);
        assert_eq!(image.pinned(), Some(Digest::of(b"abc")));
        let image: ImageRef = format!("quay.io/a/b:v1@sha256:{HEX}").parse().unwrap();
        assert_eq!(image.to_string(), format!("quay.io/a/b:v1@sha256:{HEX}"));
    }

    #[test]
    fn what_is_not_a_reference_is_refused_with_its_reason() {
        for (text, part) in [
            ("", "empty"),
            ("Nginx", "lower case"),
            ("docker://nginx", "scheme"),
            ("https://host/x", "scheme"),
            (HEX, "bare hash"),
            ("nginx:", "a tag is"),
            ("nginx:-x", "a tag is"),
            ("nginx@sha256:12", "64 lower-case"),
            ("nginx@sha512:12", "algorithm"),
            ("a..b/c", "host name"),
            ("host:99999/c", "port"),
            ("host:/c", "port"),
            ("a//b", "each part"),
            ("a/../b", "each part"),
            ("x/a___b", "each part"),
            ("x/a._b", "each part"),
            ("x/-a", "each part"),
            ("[::1/x", "host name"),
            ("[zz]/x", "IPv6"),
            ("nginx latest", "each part"),
            ("oci:", "path"),
            ("oci:/x:", "tag is empty"),
        ] {
            let error = text.parse::<ImageRef>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = format!("oci:/x@sha256:{HEX}").parse::<ImageRef>().unwrap_err();
        assert!(error.to_string().contains("by tag"), "{error}");
    }

    #[test]
    fn the_tag_of_a_layout_is_what_follows_the_last_colon_if_it_is_one() {
        for (text, path, tag) in [
            ("oci:/srv/images", "/srv/images", None),
            ("oci:/srv/images:v1", "/srv/images", Some("v1")),
            ("oci:images:v1", "images", Some("v1")),
            ("oci:./a:b/c", "./a:b/c", None),
            ("oci:/a:b/c:d", "/a:b/c", Some("d")),
            ("oci:/a:b:c", "/a:b", Some("c")),
            ("oci:/a:b c", "/a:b c", None),
        ] {
            let image: ImageRef = text.parse().unwrap();
            let expected =
                ImageRef::Layout { path: PathBuf::from(path), tag: tag.map(str::to_owned) };
            assert_eq!(image, expected, "{text}");
            assert_eq!(image.to_string().parse(), Ok(image), "{text}");
        }
        let colon = ImageRef::Layout { path: "/a:b".into(), tag: None };
        assert_eq!(colon.to_string().parse(), Ok(colon));
    }

    #[test]
    fn a_relative_layout_is_taken_below_the_given_folder() {
        let image: ImageRef = "oci:images:v1".parse().unwrap();
        assert_eq!(image.below(Path::new("/srv")).to_string(), "oci:/srv/images:v1");
    }
}
