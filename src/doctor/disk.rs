//! The state directory and the run directory: space, file system, records.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Check;
use super::machine::RUN_AS_ROOT;
use crate::store;
use crate::sys::mount::{self, MountCall, Overlay, Upper};

/// With less, a pull of a usual image fails.
const LITTLE_SPACE: u64 = 1 << 30;
/// With less, not even records and logs are sure to be written.
const NO_SPACE: u64 = 64 << 20;
/// An unpacked image has some tens of thousands.
const FEW_INODES: u64 = 10_000;
/// With less, not even records are sure to be written.
const NO_INODES: u64 = 100;

pub(super) fn checks(state_dir: &Path, run_dir: &Path) -> Vec<Check> {
    // Whatever is missing is made at the first start, on the file system of what is there.
    let existing = state_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let mut checks = vec![
        directory("state-directory", state_dir, "--state-dir"),
        space(existing),
        writable_layers(existing),
    ];
    checks.extend(journal(existing));
    checks.push(records(state_dir));
    checks.push(directory("run-directory", run_dir, "--run-dir"));
    checks
}

fn directory(name: &str, dir: &Path, flag: &str) -> Check {
    let shown = dir.display();
    match fs::metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Check::ok(name, format!("`{shown}` is not there yet; the first start makes it"))
        }
        Err(error) => {
            let message = format!("`{shown}` cannot be read: {error}");
            Check::failed(name, message, advice(&error, flag))
        }
        // A byte is written: what is full can still make an empty file.
        Ok(_) => match tempfile::tempfile_in(dir)
            .and_then(|mut file| io::Write::write_all(&mut file, &[0; 4096]))
        {
            Ok(()) => Check::ok(name, format!("`{shown}` can be written")),
            Err(error) => {
                let message = format!("`{shown}` cannot be written: {error}");
                Check::failed(name, message, advice(&error, flag))
            }
        },
    }
}

/// What to do about a directory that cannot be used.
fn advice(error: &io::Error, flag: &str) -> String {
    let what = match error.kind() {
        io::ErrorKind::PermissionDenied => RUN_AS_ROOT,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
        io::ErrorKind::ReadOnlyFilesystem => "remount it writable (a damaged disk turns read-only)",
        io::ErrorKind::NotADirectory => "move away what is in its place",
        _ => "check the disk",
    };
    format!("{what}, or name another one with {flag}")
}

fn space(dir: &Path) -> Check {
    let name = "disk-space";
    let stat = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::failed(name, format!("`{}`: {error}", dir.display()), "check the disk");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    // Some file systems make inodes as they go and count none.
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    let room = match free / 1_000_000 {
        megabytes @ ..10_000 => format!("{megabytes} MB"),
        megabytes => format!("{} GB", megabytes / 1000),
    };
    let message = if stat.f_files == 0 {
        format!("{room} free at `{}`", dir.display())
    } else {
        format!("{room} and {inodes} inodes free at `{}`", dir.display())
    };
    let remedy = "free some space, or name a larger disk with --state-dir";
    if free < NO_SPACE || inodes < NO_INODES {
        Check::failed(name, message, remedy)
    } else if free < LITTLE_SPACE || inodes < FEW_INODES {
        Check::degraded(name, message, remedy)
    } else {
        Check::ok(name, message)
    }
}

fn writable_layers(dir: &Path) -> Check {
    let name = "writable-layers";
    let shown = dir.display();
    match try_overlay(dir) {
        Ok(()) => Check::ok(name, format!("the file system of `{shown}` can hold them")),
        Err(error) => {
            let message =
                format!("no overlay can be written on the file system of `{shown}`: {error}");
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => RUN_AS_ROOT,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
                io::ErrorKind::ReadOnlyFilesystem => "remount it writable",
                _ => {
                    "keep the state directory on ext4, xfs, btrfs or tmpfs, not on an overlay or a network"
                }
            };
            Check::failed(name, message, remedy)
        }
    }
}

/// Mounts an overlay whose writable layer is in `dir`, in a namespace of a thread, and removes it again.
fn try_overlay(dir: &Path) -> io::Result<()> {
    let folder = tempfile::Builder::new().prefix(".doctor-").tempdir_in(dir)?;
    let at = |part: &str| folder.path().join(part);
    for part in ["lower", "upper", "work", "target"] {
        fs::create_dir(at(part))?;
    }
    let upper = Upper { dir: at("upper"), work: at("work"), volatile: true };
    let attempt = || {
        mount::enter_private_namespace()?;
        let lower = [at("lower")];
        let overlay = Overlay { source: "supervisor-doctor", lower: &lower, upper: Some(&upper) };
        mount::overlay(overlay, &at("target"), MountCall::Best)?;
        let written = fs::write(at("target").join("file"), "x");
        mount::unmount(&at("target"))?;
        written
    };
    std::thread::scope(|scope| scope.spawn(attempt).join())
        .unwrap_or_else(|_| Err(io::Error::other("the attempt panicked")))
}

/// Nothing to say of file systems that have no journal of this kind.
fn journal(dir: &Path) -> Option<Check> {
    let name = "journal";
    let canonical = fs::canonicalize(dir).ok()?;
    let mounts = mount::mounts().ok()?;
    let holding = mounts.iter().filter(|mount| canonical.starts_with(&mount.mount_point));
    // Of several at one place the last one is on top.
    let mount = holding.max_by_key(|mount| mount.mount_point.components().count())?;
    match mount.fs_type.as_str() {
        "tmpfs" | "ramfs" => {
            let message = format!("`{}` is in memory: nothing survives a reboot", dir.display());
            Some(Check::degraded(name, message, "keep the state directory on a disk (--state-dir)"))
        }
        "ext4" => {
            let link = fs::read_link(format!("/sys/dev/block/{}", mount.device)).ok()?;
            let device = link.file_name()?.to_str()?.to_owned();
            let journals = fs::read_dir("/proc/fs/jbd2").into_iter().flatten().flatten();
            let has = journals.into_iter().any(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name.rsplit_once('-').is_some_and(|(of, _)| of == device)
            });
            Some(if has {
                Check::ok(name, format!("`{device}` has one"))
            } else {
                let message = format!("the ext4 on `{device}` has none: a power cut may damage it");
                let remedy = "`tune2fs -O has_journal` while it is not mounted";
                Check::degraded(name, message, remedy)
            })
        }
        _ => None,
    }
}

/// Records are read as text: what is in them is known to their owners only.
fn records(state_dir: &Path) -> Check {
    let name = "records";
    if let Err(newer) = store::check_version(state_dir) {
        let store::NewerState { path, found, build, known } = newer;
        let message = format!(
            "`{}` has version {found}; this program knows version {known} at most",
            path.display()
        );
        let remedy = format!("use supervisor {build} or a later one, or another --state-dir");
        return Check::failed(name, message, remedy);
    }
    let mut unreadable = Vec::new();
    let mut count = 0_usize;
    for (folder, file) in [("services", "project"), ("containers", "container")] {
        for entry in fs::read_dir(state_dir.join(folder)).into_iter().flatten().flatten() {
            let path = entry.path().join(file);
            match fs::read(&path) {
                Ok(bytes) if is_record(&bytes) => count += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) | Err(_) => unreadable.push(path),
            }
        }
    }
    let shown = |paths: &[PathBuf]| {
        let names: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
        names.join(", ")
    };
    if !unreadable.is_empty() {
        let message = format!("unreadable: {}", shown(&unreadable));
        let remedy =
            "the next start sets them aside and uses their previous copies; check the disk";
        return Check::failed(name, message, remedy);
    }
    let aside: Vec<PathBuf> =
        store::set_aside_below(state_dir).into_iter().map(|aside| aside.path).collect();
    if aside.is_empty() {
        Check::ok(name, format!("{count} readable"))
    } else {
        let message = format!("{count} readable; set aside: {}", shown(&aside));
        Check::degraded(name, message, "look at them, then remove them")
    }
}

/// Two JSON documents, one a line.
fn is_record(bytes: &[u8]) -> bool {
    let mut documents =
        serde_json::Deserializer::from_slice(bytes).into_iter::<serde_json::Value>();
    let mut next = || documents.next().is_some_and(|document| document.is_ok());
    next() && next()
}
