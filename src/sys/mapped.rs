//! Files mapped into memory: read-only for indexes, shared and writable for state that outlives a process.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{Mmap, MmapOptions, MmapRaw};

/// A file mapped read-only.
///
/// Only files that are published by rename and never changed in place may be mapped: a file that shrinks under a
/// mapping kills its reader with SIGBUS.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the whole of `file`.
    ///
    /// # Errors
    /// When the file is empty or cannot be mapped.
    pub fn open(file: &File) -> io::Result<Self> {
        // SAFETY: callers map only files of the 0700 state and run directories that are written once, under a
        // temporary name, and never truncated or written after their rename; so the bytes do not change.
        unsafe { MmapOptions::new().map(file) }.map(Self)
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A file mapped shared and writable: what is stored is seen by every process that maps it and survives `kill -9`
/// of any of them. Access is by atomic words and by copies, never by reference, so that concurrent writers are no
/// data race in this process.
#[derive(Debug)]
pub struct MappedMut {
    map: MmapRaw,
}

impl MappedMut {
    /// Maps the whole of `file`, whose length must stay as it is.
    ///
    /// # Errors
    /// When the file is empty or cannot be mapped.
    pub fn open(file: &File) -> io::Result<Self> {
        Ok(Self { map: MmapOptions::new().map_raw(file)? })
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word at byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of eight or beyond the mapping: layouts are constants of the caller.
    #[must_use]
    pub fn u64_at(&self, offset: usize) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8) && offset + 8 <= self.len(),
            "word {offset} of {}",
            self.len()
        );
        let word = self.map.as_mut_ptr().wrapping_add(offset).cast::<u64>();
        // SAFETY: aligned (mappings begin at a page, checked above) and inside the mapping, which lives as long as
        // `self`; all access to it is atomic or through the copies below.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// The half word at byte `offset`.
    ///
    /// # Panics
    /// When `offset` is not a multiple of four or beyond the mapping.
    #[must_use]
    pub fn u32_at(&self, offset: usize) -> &AtomicU32 {
        assert!(
            offset.is_multiple_of(4) && offset + 4 <= self.len(),
            "word {offset} of {}",
            self.len()
        );
        let word = self.map.as_mut_ptr().wrapping_add(offset).cast::<u32>();
        // SAFETY: as in `u64_at`.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// Copies `bytes` into the mapping at `offset`. The caller publishes them with an atomic word afterwards.
    ///
    /// # Panics
    /// When the bytes do not fit.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len()),
            "write beyond the mapping"
        );
        let target = self.map.as_mut_ptr().wrapping_add(offset);
        // SAFETY: the target range is inside the mapping (checked), the source is a slice, and they cannot overlap
        // because no reference into the mapping is ever handed out.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// A copy of `len` bytes at `offset`.
    ///
    /// # Panics
    /// When the range is not inside the mapping.
    #[must_use]
    pub fn read_at(&self, offset: usize, len: usize) -> Vec<u8> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len()),
            "read beyond the mapping"
        );
        let mut bytes = vec![0; len];
        let source = self.map.as_ptr().wrapping_add(offset);
        // SAFETY: the source range is inside the mapping (checked) and the target is a fresh vector.
        unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), len) };
        bytes
    }

    /// Writes changed pages to the file; needed only for files that must survive a power cut.
    ///
    /// # Errors
    /// When the kernel reports that the pages could not be written.
    pub fn sync(&self) -> io::Result<()> {
        self.map.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn what_one_mapping_stores_another_reads() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (one, other) = (MappedMut::open(&file).unwrap(), MappedMut::open(&file).unwrap());
        one.u64_at(8).store(7, Ordering::Release);
        one.write_at(100, b"layer");
        assert_eq!(other.u64_at(8).load(Ordering::Acquire), 7);
        assert_eq!(other.read_at(100, 5), b"layer");
        assert_eq!(&MappedFile::open(&file).unwrap().as_ref()[100..105], b"layer");
    }
}
