//! PAX extension records: `<length> <key>=<value>\n`, for one entry or for all that follow.

use super::header::decimal;

/// Begins the keys of extended attributes, as star wrote them first and all tools of images do.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// Records of global headers stay in memory; together they are no larger than one header may be.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Records that do not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// A length does not lead to the end of a record.
    #[error("a record has a wrong length")]
    Length,
    /// There is no `=`, or nothing before it.
    #[error("a record has no key")]
    Key,
    /// The global records are larger than any real ones.
    #[error("the records are larger than {MAX_RECORD_BYTES} bytes")]
    TooLarge,
}

/// Records in the order in which they were read.
#[derive(Debug, Default, Clone)]
pub(super) struct Pax {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl Pax {
    /// Adds the records of one header.
    pub(super) fn extend(&mut self, mut header: &[u8]) -> Result<(), PaxError> {
        while !header.is_empty() {
            let space =
                header.iter().take(21).position(|byte| *byte == b' ').ok_or(PaxError::Length)?;
            let length = decimal(&header[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| (space + 1..=header.len()).contains(length))
                .ok_or(PaxError::Length)?;
            let record = header[space + 1..length].strip_suffix(b"\n").ok_or(PaxError::Length)?;
            let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
            let equals = equals.ok_or(PaxError::Key)?;
            self.bytes += record.len();
            if self.bytes > 2 * MAX_RECORD_BYTES {
                return Err(PaxError::TooLarge);
            }
            self.records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            header = &header[length..];
        }
        Ok(())
    }

    /// These records before those of `globals`.
    pub(super) fn over(self, globals: &Self) -> Self {
        if globals.records.is_empty() {
            return self;
        }
        let mut records = globals.records.clone();
        records.extend(self.records);
        Self { records, bytes: globals.bytes + self.bytes }
    }

    /// The last value of `key`; an empty value takes back what was there before.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (_, value) = self.records.iter().rev().find(|(known, _)| known == key)?;
        Some(value.as_slice()).filter(|value| !value.is_empty())
    }

    /// Whether the entry is a sparse file in one of GNU tar's three PAX formats.
    pub(super) fn is_sparse(&self) -> bool {
        self.records.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."))
    }

    /// All records, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.records.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Extended attributes by name; the last of a name counts.
    pub(super) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in &self.records {
            let Some(name) = key.strip_prefix(XATTR_PREFIX).filter(|name| !name.is_empty()) else {
                continue;
            };
            xattrs.retain(|(known, _)| known != name);
            xattrs.push((name.to_vec(), value.clone()));
        }
        xattrs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_any_bytes_and_the_last_one_counts() {
        let mut pax = Pax::default();
        pax.extend(
            b"9 path=a\n9 path=b\n24 SCHILY.xattr.u.x=\n=\0\n12 size=123\n8 gid=7\n7 gid=\n",
        )
        .unwrap();
        assert_eq!(pax.get(b"path"), Some(&b"b"[..]));
        assert_eq!(pax.get(b"gid"), None);
        assert_eq!(pax.xattrs(), [(b"u.x".to_vec(), b"\n=\0".to_vec())]);
    }

    #[test]
    fn damaged_records_are_refused() {
        for records in [
            &b"9 path=a"[..],
            b"99 path=a\n",
            b"path=a\n",
            b"-5 a=b\n",
            b"5 a=b\n",
            b"1 a=b\n",
            b"5 =a\n",
            b"6 aaa\n",
            b"\n",
        ] {
            assert!(Pax::default().extend(records).is_err(), "{records:?}");
        }
    }
}
