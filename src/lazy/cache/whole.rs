//! Complete content, under the digest of all of it.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::epoch::stamp_of;
use super::{FileCache, LOCKS, Place, Verify};
use crate::image::{Digest, Hasher};
use crate::lazy::event::LazyEvent;
use crate::telemetry::Chain;

impl FileCache {
    /// Whether complete content is here that another boot left and nobody has verified since.
    pub(in crate::lazy) fn needs_verification(&self, place: &Place) -> bool {
        place.whole.is_some_and(|whole| {
            self.open_whole(&whole_name(&whole), place.size).is_some_and(|(_, trusted)| !trusted)
        })
    }

    /// The content with digest `whole`, if all of it is here and has `size` bytes.
    pub(super) fn find_whole(&self, whole: Digest, size: u64, verify: Verify) -> Option<Arc<File>> {
        let name = whole_name(&whole);
        let open = || {
            let _landing = self.landing();
            let (file, is_trusted) = self.open_whole(&name, size)?;
            let file = Arc::new(file);
            self.note_open(whole, &file);
            Some((file, is_trusted))
        };
        let (file, is_trusted) = open()?;
        if is_trusted {
            return Some(file);
        }
        if verify == Verify::Later {
            return None;
        }
        let _alone = self.verifying[usize::from(whole.as_bytes()[0]) % LOCKS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (file, is_trusted) = open()?;
        if is_trusted {
            return Some(file);
        }
        match hash(&file) {
            Ok(found) if found == whole => {
                if let Err(error) = self.epoch.begin().mark(&*file) {
                    tracing::debug!(error = %Chain(&error), "could not stamp verified content");
                }
                Some(file)
            }
            Ok(_) => {
                let _ = rustix::fs::unlinkat(&self.root, &*name, AtFlags::empty());
                self.events.send(LazyEvent::CacheRepaired { content: whole });
                None
            }
            Err(error) => {
                self.degrade(&error);
                None
            }
        }
    }

    fn open_whole(&self, name: &str, size: u64) -> Option<(File, bool)> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOATIME;
        let opened = rustix::fs::openat(&self.root, name, flags, Mode::empty())
            .and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        match opened {
            Ok((stat, file)) if u64::try_from(stat.st_size) == Ok(size) => {
                Some((file.into(), self.epoch.is_trusted(stamp_of(&stat))))
            }
            // A file that was cut short by a power cut is replaced when the content is here again.
            Ok(_) | Err(Errno::NOENT) => None,
            Err(error) => {
                self.degrade(&error.into());
                None
            }
        }
    }
}

/// Where it is kept.
pub(super) fn whole_name(whole: &Digest) -> String {
    let hex = whole.hex();
    format!("sha256/{}/{hex}", &hex[..2])
}

/// The digest of all that is in `file`.
pub(super) fn hash(file: &File) -> io::Result<Digest> {
    use std::os::unix::fs::FileExt as _;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
