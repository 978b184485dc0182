//! A folder as a tar stream: the input of `pack`.
//!
//! The stream depends on the folder's content alone: names are sorted, everything belongs to root, times are whole
//! seconds and can be clamped. Does not compress, and knows nothing of images.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

/// Why a folder could not be turned into a layer.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Something in the folder could not be read.
    #[error("could not read `{path}`")]
    Read {
        /// What.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A device or a socket: an image that carries one works nowhere else.
    #[error("`{path}` is a {kind}, which an image cannot carry")]
    Unsupported {
        /// Which one.
        path: PathBuf,
        /// `socket`, `block device` …
        kind: &'static str,
    },
    /// The file had another length when it was read than just before.
    #[error("`{0}` changed while it was read")]
    Changed(PathBuf),
    /// The tar stream could not be written on.
    #[error("could not write the layer's tar stream at `{path}`")]
    Write {
        /// Where in the folder.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Extended attributes that belong to the host and not to the file: labels of its security module, and what overlayfs
/// would obey.
const HOST_XATTRS: [&[u8]; 4] =
    [b"security.selinux", b"security.ima", b"trusted.overlay.", b"user.overlay."];
/// Longest name of an attribute and longest list of names that Linux has.
const XATTR_LIST_MAX: usize = 64 << 10;

/// Writes the content of `folder` as a tar stream to `out`; `latest` is the time in seconds since the epoch that no
/// entry may be younger than (`SOURCE_DATE_EPOCH`).
///
/// # Errors
/// When something cannot be read or carried, with its path, or `out` cannot be written.
pub fn write_tar(folder: &Path, latest: Option<u64>, out: impl Write) -> Result<(), FolderError> {
    let mut walk = Walk { tar: Builder::new(out), latest, links: HashMap::new() };
    let metadata = fs::metadata(folder).map_err(read_at(folder))?;
    // `read_dir` says clearly what is wrong with a path that is no folder.
    let children = sorted_children(folder)?;
    walk.entry(folder, Path::new("./"), &metadata)?;
    walk.children(folder, Path::new(""), children)?;
    walk.tar.into_inner().and_then(|mut out| out.flush()).map_err(write_at(folder))
}

fn read_at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + '_ {
    |source| FolderError::Read { path: path.to_owned(), source }
}

fn write_at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + '_ {
    |source| FolderError::Write { path: path.to_owned(), source }
}

fn sorted_children(folder: &Path) -> Result<Vec<OsString>, FolderError> {
    let mut names = fs::read_dir(folder)
        .and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()
        })
        .map_err(read_at(folder))?;
    // By bytes: a locale must not change the layer.
    names.sort();
    Ok(names)
}

struct Walk<W: Write> {
    tar: Builder<W>,
    latest: Option<u64>,
    /// Name in the layer of each file that has several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Walk<W> {
    fn children(
        &mut self,
        folder: &Path,
        name: &Path,
        children: Vec<OsString>,
    ) -> Result<(), FolderError> {
        for child in children {
            let path = folder.join(&child);
            let name = name.join(&child);
            let metadata = fs::symlink_metadata(&path).map_err(read_at(&path))?;
            self.entry(&path, &name, &metadata)?;
            if metadata.is_dir() {
                let children = sorted_children(&path)?;
                self.children(&path, &name, children)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), FolderError> {
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.time_of(metadata));
        header.set_size(0);
        let kind = metadata.file_type();
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(target) = self.links.get(&inode) {
                header.set_entry_type(EntryType::Link);
                return self.tar.append_link(&mut header, name, target).map_err(write_at(path));
            }
            self.links.insert(inode, name.to_owned());
        }
        self.xattrs(path)?;
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            // The slash is what older readers go by.
            let mut name = name.as_os_str().to_owned();
            if !name.as_bytes().ends_with(b"/") {
                name.push("/");
            }
            self.tar.append_data(&mut header, name, io::empty()).map_err(write_at(path))
        } else if kind.is_file() {
            self.file(path, name, header)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(read_at(path))?;
            header.set_entry_type(EntryType::Symlink);
            // The kernel ignores the mode of a symlink, and file systems disagree about it.
            header.set_mode(0o777);
            self.tar.append_link(&mut header, name, target).map_err(write_at(path))
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            self.tar.append_data(&mut header, name, io::empty()).map_err(write_at(path))
        } else {
            let kind = if kind.is_socket() {
                "socket"
            } else if kind.is_block_device() {
                "block device"
            } else {
                "character device"
            };
            Err(FolderError::Unsupported { path: path.to_owned(), kind })
        }
    }

    fn file(&mut self, path: &Path, name: &Path, mut header: Header) -> Result<(), FolderError> {
        // Should a link or a pipe have taken the file's place, it is neither followed nor waited for.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file =
            File::options().read(true).custom_flags(flags).open(path).map_err(read_at(path))?;
        let metadata = file.metadata().map_err(read_at(path))?;
        if !metadata.is_file() {
            return Err(FolderError::Changed(path.to_owned()));
        }
        let size = metadata.len();
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        let mut content = Counted { inner: file.take(size), read: 0 };
        self.tar.append_data(&mut header, name, &mut content).map_err(write_at(path))?;
        if content.read != size {
            return Err(FolderError::Changed(path.to_owned()));
        }
        Ok(())
    }

    fn time_of(&self, metadata: &Metadata) -> u64 {
        // Times before 1970 have no place in a tar header.
        let time = u64::try_from(metadata.mtime()).unwrap_or(0);
        self.latest.map_or(time, |latest| time.min(latest))
    }

    /// Writes the extended attributes of `path` as records for the entry that follows.
    fn xattrs(&mut self, path: &Path) -> Result<(), FolderError> {
        let mut names = vec![0; XATTR_LIST_MAX];
        let length = match rustix::fs::llistxattr(path, &mut names[..]) {
            Ok(length) => length,
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
            Err(error) => return Err(read_at(path)(error.into())),
        };
        let mut names: Vec<&[u8]> = names[..length]
            .split(|byte| *byte == 0)
            .filter(|name| {
                !name.is_empty() && !HOST_XATTRS.iter().any(|host| name.starts_with(host))
            })
            .collect();
        names.sort_unstable();
        let mut records = Vec::with_capacity(names.len());
        for name in names {
            let mut value = vec![0; XATTR_LIST_MAX];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..])
                .map_err(|error| read_at(path)(error.into()))?;
            value.truncate(length);
            let name = OsString::from_vec(name.to_vec());
            records.push((format!("SCHILY.xattr.{}", name.to_string_lossy()), value));
        }
        if records.is_empty() {
            return Ok(());
        }
        self.tar
            .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), &value[..])))
            .map_err(write_at(path))
    }
}

/// Counts what was read, so that a file that shrank is noticed.
struct Counted<R> {
    inner: R,
    read: u64,
}

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.read += u64::try_from(length).unwrap_or(0);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    fn packed(folder: &Path, latest: Option<u64>) -> Vec<u8> {
        let mut tar = Vec::new();
        write_tar(folder, latest, &mut tar).unwrap();
        tar
    }

    #[test]
    fn every_kind_of_entry_arrives_with_its_attributes_and_owned_by_root() {
        let folder = tempfile::tempdir().unwrap();
        let long = "n".repeat(150);
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b").join(&long), "content").unwrap();
        fs::set_permissions(
            folder.path().join("b").join(&long),
            fs::Permissions::from_mode(0o4750),
        )
        .unwrap();
        fs::hard_link(folder.path().join("b").join(&long), folder.path().join("c")).unwrap();
        symlink("/some/where", folder.path().join("a")).unwrap();
        let tar = packed(folder.path(), Some(1_000));
        let mut seen = Vec::new();
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 1_000);
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            seen.push((
                entry.path().unwrap().display().to_string(),
                header.entry_type(),
                header.mode().unwrap(),
                link,
                content,
            ));
        }
        let none = String::new;
        assert_eq!(seen.len(), 5, "{seen:?}");
        assert_eq!((seen[0].0.as_str(), seen[0].1), ("./", EntryType::Directory));
        assert_eq!(
            seen[1],
            ("a".into(), EntryType::Symlink, 0o777, Some("/some/where".into()), none())
        );
        assert_eq!(seen[2].0, "b/");
        let name = format!("b/{long}");
        assert_eq!(seen[3], (name.clone(), EntryType::Regular, 0o4750, None, "content".into()));
        assert_eq!(seen[4], ("c".into(), EntryType::Link, 0o4750, Some(name), none()));
    }

    #[test]
    fn extended_attributes_of_the_file_are_kept_and_those_of_the_host_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        fs::write(&file, "x").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        for (name, value) in [("user.note", b"a\nb\0"), ("user.overlay.x", b"evil")] {
            rustix::fs::setxattr(&file, name, value, flags).unwrap();
        }
        let tar = packed(folder.path(), None);
        let has = |text: &[u8]| tar.windows(text.len()).any(|window| window == text);
        assert!(has(b"SCHILY.xattr.user.note=a\nb\0\n"));
        assert!(!has(b"overlay"));
    }

    #[test]
    fn the_same_content_in_another_folder_gives_the_same_bytes() {
        let make = || {
            let folder = tempfile::tempdir().unwrap();
            for name in ["z", "a", "m"] {
                fs::write(folder.path().join(name), name).unwrap();
            }
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            packed(folder.path(), Some(0))
        };
        assert_eq!(make(), make());
    }

    #[test]
    fn what_an_image_cannot_carry_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let _socket = UnixListener::bind(folder.path().join("s")).unwrap();
        let error = write_tar(folder.path(), None, io::sink()).unwrap_err().to_string();
        assert!(error.contains("/s` is a socket"), "{error}");
        let error = write_tar(Path::new("/nonexistent"), None, io::sink()).unwrap_err().to_string();
        assert!(error.contains("could not read `/nonexistent`"), "{error}");
    }
}
