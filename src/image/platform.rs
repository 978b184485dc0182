//! Platforms: what an image is built for, and which builds a host can run.
//!
//! Does not choose: [`super::Index::select`] does, with the ranking from here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Operating system, architecture and variant, in Go's words, written `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// `linux`, for everything that we can run.
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `riscv64` …
    pub architecture: String,
    /// Kept only where it says more than the architecture: `v7` of `arm`, `v3` of `amd64`.
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform (expected `os/architecture` or `os/architecture/variant`)")]
pub struct PlatformError(String);

impl Platform {
    /// A platform in its usual spelling: `x86_64` becomes `amd64`, `arm64/v8` becomes `arm64`.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i686" | "x86", _) => ("386", None),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            other => other,
        };
        let variant = match (architecture, variant) {
            ("amd64", Some("v1")) | ("arm64", Some("v8" | "8" | "v8.0")) => None,
            ("arm", None | Some("7")) => Some("v7"),
            ("arm", Some("5")) => Some("v5"),
            ("arm", Some("6")) => Some("v6"),
            (_, variant) => variant,
        };
        Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// The platform that this program was built for, which is the one whose images it can start.
    #[must_use]
    pub fn host() -> Self {
        let architecture = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else if cfg!(target_arch = "aarch64") {
            "arm64"
        } else if cfg!(target_arch = "riscv64") {
            "riscv64"
        } else if cfg!(target_arch = "arm") {
            "arm"
        } else if cfg!(target_arch = "s390x") {
            "s390x"
        } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
            "ppc64le"
        } else if cfg!(target_arch = "loongarch64") {
            "loong64"
        } else {
            "386"
        };
        Self::new("linux", architecture, None)
    }

    /// How well an image for `offered` serves this platform: `None` if it cannot run here, and the higher the
    /// better otherwise. A lower variant of the same architecture runs on a higher one, never the reverse; but an
    /// `amd64` without variant does not say what the processor can do, so there a higher one is the last resort.
    #[must_use]
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        if self.variant == offered.variant {
            return Some(u32::MAX);
        }
        let level = |platform: &Self| match (platform.architecture.as_str(), &platform.variant) {
            ("amd64", None) => Some(1),
            ("arm64", None) => Some(8),
            ("amd64" | "arm64" | "arm", Some(variant)) => variant.strip_prefix('v')?.parse().ok(),
            _ => None,
        };
        let (own, other): (u32, u32) = (level(self)?, level(offered)?);
        if own < other && self.architecture == "amd64" && self.variant.is_none() {
            return Some(0);
        }
        (other <= own).then_some(other)
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |word: &str| {
            !word.is_empty()
                && word.len() <= 64
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if word(os) && word(architecture) => {
                Ok(Self::new(os, architecture, None))
            }
            [os, architecture, variant] if word(os) && word(architecture) && word(variant) => {
                Ok(Self::new(os, architecture, Some(variant)))
            }
            _ => Err(PlatformError(text.chars().take(100).collect())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn spellings_of_one_platform_are_equal() {
        assert_eq!(platform("linux/x86_64"), platform("linux/amd64/v1"));
        assert_eq!(platform("linux/aarch64"), platform("linux/arm64/v8"));
        assert_eq!(platform("linux/arm"), platform("linux/arm/v7"));
        assert_eq!(platform("linux/arm64/v8").to_string(), "linux/arm64");
        assert_eq!(platform("linux/arm/v6").to_string(), "linux/arm/v6");
    }

    #[test]
    fn what_is_not_a_platform_is_refused() {
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux/amd64/"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_lower_variant_runs_on_a_higher_one_and_not_the_reverse() {
        let rank = |host: &str, image: &str| platform(host).rank(&platform(image));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v7"), Some(u32::MAX));
        assert!(rank("linux/arm/v7", "linux/arm/v6") > rank("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), Some(0));
        assert_eq!(rank("linux/amd64/v2", "linux/amd64/v3"), None);
        assert!(rank("linux/amd64/v3", "linux/amd64").is_some());
        assert_eq!(rank("linux/arm64", "linux/arm64/v9"), None);
        assert_eq!(rank("linux/arm64", "linux/arm/v7"), None);
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
    }
}
