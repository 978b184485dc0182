//! The table of contents as JSON: read entry by entry, never held as a whole.
//!
//! Only the shape of the JSON is checked here; what its entries mean together is for `index::build`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::limit;
use crate::image::Digest;

/// Why a table of contents cannot be used. The layer may still be pulled in full.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// The footer has the right form and points outside the blob.
    #[error(
        "footer places the table of contents at `{offset}`, outside a blob of {blob_size} bytes"
    )]
    Footer {
        /// As written, in hex.
        offset: String,
        /// Size of the blob in bytes.
        blob_size: u64,
    },
    /// More than we are willing to hold.
    #[error("{what} of {size} exceeds the limit of {limit}")]
    TooLarge {
        /// The thing that is too large.
        what: &'static str,
        /// Its size or number.
        size: u64,
        /// Ours.
        limit: u64,
    },
    /// Compressed data is damaged.
    #[error("could not inflate the table of contents")]
    Inflate(#[source] std::io::Error),
    /// The blob ends before the table of contents does.
    #[error("table of contents is truncated")]
    Truncated,
    /// The tar entry at that place is another one.
    #[error("entry `{0}` stands where the table of contents should be")]
    Name(String),
    /// Not the digest that the manifest promises.
    #[error("table of contents has digest `{found}`, expected `{expected}`")]
    Digest {
        /// From the manifest.
        expected: Digest,
        /// Of the bytes in the blob.
        found: Digest,
    },
    /// Not JSON, or not of this shape.
    #[error("could not parse the table of contents")]
    Json(#[source] serde_json::Error),
    /// A format that did not exist when this was written.
    #[error("table of contents has version `{0}`, only `1` is known")]
    Version(i64),
    /// One entry is wrong; the layer is refused as a whole.
    #[error("entry `{name}`: {problem}")]
    Entry {
        /// Name of the entry, escaped and shortened.
        name: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

impl TocError {
    /// Whether the layer is sound and only the format of its table of contents cannot express it.
    #[must_use]
    pub fn is_unrepresentable(&self) -> bool {
        matches!(self, Self::Entry { problem: Problem::ReplacedName, .. })
    }
}

/// What is wrong with one entry of a table of contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The writer met a name that is no UTF-8 and lost it: not lazy, but sound as a tar.
    #[error("not lazy, its name contains U+FFFD, which stands for bytes that JSON cannot hold")]
    ReplacedName,
    /// Too long, too deep, or with bytes that no name has.
    #[error("name is not one that a file can have ({0})")]
    Name(&'static str),
    /// Unknown `type`.
    #[error("unknown type `{0}`")]
    Kind(String),
    /// A number that is negative or beyond what the kernel can show.
    #[error("field `{field}` has the value `{value}`, which is out of range")]
    Range {
        /// Name of the JSON field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// Unreadable `modtime`.
    #[error("`{0}` is not a time")]
    Time(String),
    /// Unreadable digest.
    #[error("`{0}` is not a sha256 digest")]
    Digest(String),
    /// Content that nothing vouches for.
    #[error("content has no digest, so it could not be verified")]
    Unverifiable,
    /// A `chunk` that follows no file, or not all of it, or overlaps.
    #[error("chunks do not cover the file from beginning to end, once ({0})")]
    Chunks(&'static str),
    /// Content lies outside the compressed part of the blob, or over other content.
    #[error("content has no valid place in the blob ({0})")]
    Place(&'static str),
    /// Bad link target.
    #[error("link target is not usable ({0})")]
    Link(&'static str),
    /// Extended attribute out of the kernel's limits, or unreadable.
    #[error("extended attribute `{0}` is not usable")]
    Xattr(String),
    /// A directory is needed here.
    #[error("not a directory, but other entries lie below it")]
    NotDirectory,
    /// The root can only be a directory.
    #[error("the root of a layer must be a directory")]
    Root,
}

impl Problem {
    /// The error that names the entry.
    pub(super) fn of(self, name: &str) -> TocError {
        TocError::Entry { name: name.escape_debug().take(200).collect(), problem: self }
    }
}

/// Compares the table of contents with the digest that the manifest gives it.
///
/// # Errors
/// When they differ.
pub fn verify(json: &[u8], expected: Digest) -> Result<(), TocError> {
    let found = Digest::of(json);
    if found == expected { Ok(()) } else { Err(TocError::Digest { expected, found }) }
}

/// One entry as written. Field names are those of the JSON; absent numbers are zero.
#[derive(Debug, Deserialize)]
pub(super) struct RawEntry<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    pub(super) kind: Cow<'a, str>,
    #[serde(default)]
    pub(super) size: i64,
    #[serde(borrow, default)]
    pub(super) modtime: Cow<'a, str>,
    #[serde(borrow, default, rename = "linkName")]
    pub(super) link_name: Cow<'a, str>,
    #[serde(default)]
    pub(super) mode: i64,
    #[serde(default)]
    pub(super) uid: i64,
    #[serde(default)]
    pub(super) gid: i64,
    #[serde(default)]
    pub(super) offset: i64,
    #[serde(default, rename = "innerOffset")]
    pub(super) inner_offset: i64,
    #[serde(default, rename = "devMajor")]
    pub(super) dev_major: i64,
    #[serde(default, rename = "devMinor")]
    pub(super) dev_minor: i64,
    /// Values are base64; the writer of the format leaves out nothing, but `null` is its empty value.
    #[serde(default)]
    pub(super) xattrs: Option<BTreeMap<String, Option<String>>>,
    #[serde(borrow, default)]
    pub(super) digest: Cow<'a, str>,
    #[serde(default, rename = "chunkOffset")]
    pub(super) chunk_offset: i64,
    #[serde(default, rename = "chunkSize")]
    pub(super) chunk_size: i64,
    #[serde(borrow, default, rename = "chunkDigest")]
    pub(super) chunk_digest: Cow<'a, str>,
}

/// Calls `visit` with each entry of `json`, in order.
///
/// # Errors
/// The first error of `visit`; or when the JSON is malformed, of another version or has too many entries.
pub(super) fn for_each<'a>(
    json: &'a [u8],
    visit: &mut dyn FnMut(RawEntry<'a>) -> Result<(), TocError>,
) -> Result<(), TocError> {
    let mut failure = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = Root { visit, failure: &mut failure }
        .deserialize(&mut deserializer)
        .and_then(|version| deserializer.end().map(|()| version));
    // An error of `visit` travels beside serde's, which could carry only its text.
    if let Some(failure) = failure {
        return Err(failure);
    }
    match parsed.map_err(TocError::Json)? {
        1 => Ok(()),
        other => Err(TocError::Version(other)),
    }
}

/// What to call with each entry.
type Visit<'v, 'a> = &'v mut (dyn FnMut(RawEntry<'a>) -> Result<(), TocError> + 'v);

/// The root object; gives the version.
struct Root<'v, 'a> {
    visit: Visit<'v, 'a>,
    failure: &'v mut Option<TocError>,
}

impl<'a> DeserializeSeed<'a> for Root<'_, 'a> {
    type Value = i64;

    fn deserialize<D: de::Deserializer<'a>>(self, deserializer: D) -> Result<i64, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Root<'_, 'a> {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<i64, M::Error> {
        let Self { visit, failure } = self;
        let (mut version, mut seen) = (0, false);
        while let Some(key) = map.next_key::<Cow<'a, str>>()? {
            match &*key {
                "version" => version = map.next_value()?,
                "entries" if seen => return Err(de::Error::duplicate_field("entries")),
                "entries" => {
                    seen = true;
                    map.next_value_seed(Entries { visit: &mut *visit, failure: &mut *failure })?;
                }
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(version)
    }
}

/// The array of entries, each given to `visit` as soon as it is read.
struct Entries<'v, 'a> {
    visit: Visit<'v, 'a>,
    failure: &'v mut Option<TocError>,
}

impl<'a> DeserializeSeed<'a> for Entries<'_, 'a> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Entries<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of entries")
    }

    /// How Go writes an empty list.
    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut sequence: S) -> Result<(), S::Error> {
        let mut count = 0;
        while let Some(entry) = sequence.next_element::<RawEntry<'a>>()? {
            count += 1;
            let result = if count > limit::ENTRIES {
                let limit = u64::from(limit::ENTRIES);
                Err(TocError::TooLarge { what: "number of entries", size: u64::from(count), limit })
            } else {
                (self.visit)(entry)
            };
            if let Err(failure) = result {
                *self.failure = Some(failure);
                return Err(de::Error::custom("an entry was refused"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str) -> Result<Vec<String>, TocError> {
        let mut names = Vec::new();
        for_each(json.as_bytes(), &mut |entry| {
            names.push(entry.name.into_owned());
            Ok(())
        })?;
        Ok(names)
    }

    #[test]
    fn entries_come_in_order_and_unknown_fields_are_ignored() {
        let json = r#"{"x":[1,{"y":2}],"entries":[{"name":"a\u0041","type":"reg","NumLink":0},
            {"type":"dir","name":"b"}],"version":1} "#;
        assert_eq!(names(json).unwrap(), ["aA", "b"]);
        assert!(names(r#"{"version":1,"entries":null}"#).unwrap().is_empty());
    }

    #[test]
    fn another_shape_or_version_is_an_error() {
        for json in [
            "",
            "[]",
            "{",
            r#"{"version":1,"entries":{}}"#,
            r#"{"version":1,"entries":[{"name":"a"}]}"#,
            r#"{"version":1,"entries":[{"name":"a","type":"reg","size":1.5}]}"#,
            r#"{"version":1,"entries":[{"name":"a","type":"reg","size":99999999999999999999}]}"#,
            r#"{"version":1,"entries":[],"entries":[]}"#,
            r#"{"version":1,"entries":[]} x"#,
        ] {
            assert!(matches!(names(json), Err(TocError::Json(_))), "{json}");
        }
        assert!(matches!(names(r#"{"entries":[]}"#), Err(TocError::Version(0))));
        assert!(matches!(names(r#"{"version":2,"entries":[]}"#), Err(TocError::Version(2))));
    }

    #[test]
    fn the_digest_is_that_of_the_stored_bytes() {
        assert!(verify(b"{}", Digest::of(b"{}")).is_ok());
        assert!(matches!(verify(b"{} ", Digest::of(b"{}")), Err(TocError::Digest { .. })));
    }
}
