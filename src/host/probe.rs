//! The probes. Those that mount something do it in a thread with a mount namespace of its own, which ends with them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::feature::{Absence, Feature, FeatureName, Forced, State};
use super::{Features, Kernel, cgroup, module};
use crate::sys::fuse_device;
use crate::sys::mount::{self, MountCall, Overlay, Upper};
use crate::sys::probe as ask;

type Found = Result<String, Absence>;

/// The directory that is covered in the probing namespace; every host has one of them.
const COVERED: [&str; 4] = ["/tmp", "/run", "/mnt", "/var"];

struct Prober<'a> {
    forced: &'a Forced,
    state_dir: &'a Path,
}

pub(super) fn probe(forced: &Forced, state_dir: &Path) -> Features {
    let prober = Prober { forced, state_dir };
    let mounting = std::thread::scope(|scope| scope.spawn(|| prober.mounting()).join());
    let mut mounting = mounting.unwrap_or_default();
    let found = |name, probe: &dyn Fn() -> Found| prober.feature(name, probe);
    let mut mounted = |name| {
        let at = mounting.iter().position(|feature| feature.name == name);
        at.map_or_else(
            || prober.feature(name, &|| Err(missing("it could not be tried"))),
            |at| mounting.swap_remove(at),
        )
    };
    let (cgroups, hierarchies) = cgroup::look().unwrap_or_default();
    Features {
        kernel: Kernel::running(),
        fuse: mounted(FeatureName::Fuse),
        passthrough: mounted(FeatureName::Passthrough),
        resend: mounted(FeatureName::Resend),
        overlay: mounted(FeatureName::Overlay),
        overlay_lowerdir_plus: mounted(FeatureName::LowerdirPlus),
        mount_api: mounted(FeatureName::MountApi),
        user_namespace_overlay: mounted(FeatureName::UserNamespaceOverlay),
        cgroup: found(FeatureName::Cgroup, &|| {
            cgroup::make_one(&hierarchies).map_err(Absence::Missing)?;
            let controllers = match cgroups.controllers.as_slice() {
                [] => "no controllers".to_owned(),
                some => some.join(", "),
            };
            Ok(format!("{}: {controllers}", cgroups.version.as_str()))
        }),
        cgroups: cgroups.clone(),
        seccomp: found(FeatureName::Seccomp, &|| match ask::seccomp_filters() {
            Ok(()) => Ok("system calls can be filtered".to_owned()),
            Err(error) => Err(missing(format!("the kernel has no filters: {error}"))),
        }),
        landlock: found(FeatureName::Landlock, &|| match ask::landlock_version() {
            Ok(version) => Ok(format!("version {version}")),
            Err(error) => Err(missing(format!("the kernel does not have it: {error}"))),
        }),
        nftables: found(FeatureName::Nftables, &nftables),
        exit_codes: found(FeatureName::ExitCodes, &|| match ask::exit_codes_are_kept() {
            Ok(true) => Ok("the kernel keeps exit codes".to_owned()),
            Ok(false) => Err(missing("the kernel does not keep exit codes")),
            Err(error) => Err(missing(format!("the kernel does not keep exit codes: {error}"))),
        }),
        resource_limits: found(FeatureName::ResourceLimits, &|| {
            let set = caps::CapSet::Effective;
            match caps::has_cap(None, set, caps::Capability::CAP_SYS_RESOURCE) {
                Ok(true) => Ok("CAP_SYS_RESOURCE".to_owned()),
                Ok(false) => Err(missing("CAP_SYS_RESOURCE is not granted")),
                Err(error) => Err(missing(error.to_string())),
            }
        }),
    }
}

fn missing(reason: impl Into<String>) -> Absence {
    Absence::Missing(reason.into())
}

impl Prober<'_> {
    fn feature(&self, name: FeatureName, probe: &dyn Fn() -> Found) -> Feature {
        let state = if self.forced.contains(name) {
            State::Absent(Absence::Forced)
        } else {
            probe().map_or_else(State::Absent, State::Present)
        };
        Feature { name, state }
    }

    /// Everything that mounts. Runs in a thread of its own, because the namespace is never left.
    fn mounting(&self) -> Vec<Feature> {
        // Before anything is covered.
        let backing = self.backing_file();
        let scratch = scratch();
        let mut features = Vec::with_capacity(7);
        let mut add = |name, probe: &dyn Fn(&Path) -> Found| {
            let feature = self.feature(name, &|| match &scratch {
                Ok(scratch) => probe(scratch),
                Err(error) => Err(Absence::Untried(format!("nothing can be mounted: {error}"))),
            });
            let is_present = feature.is_present();
            features.push(feature);
            is_present
        };
        let mount_api = add(FeatureName::MountApi, &|_| match mount::empty() {
            Ok(_) => Ok("mounts are made as descriptors".to_owned()),
            Err(error) => Err(missing(format!("the kernel does not have it: {error}"))),
        });
        let has_overlay = add(FeatureName::Overlay, &overlay);
        let needs =
            |has: bool, other: FeatureName| if has { Ok(()) } else { Err(Absence::Needs(other)) };
        add(FeatureName::LowerdirPlus, &|scratch| {
            needs(has_overlay, FeatureName::Overlay)?;
            needs(mount_api, FeatureName::MountApi)?;
            match try_overlay(scratch, "plus", MountCall::Newest) {
                Ok(()) => Ok("layers are named one by one".to_owned()),
                Err(error) => Err(missing(format!("the kernel does not have it: {error}"))),
            }
        });
        add(FeatureName::UserNamespaceOverlay, &|scratch| {
            needs(has_overlay, FeatureName::Overlay)?;
            let place = scratch.join("userns");
            let tried =
                std::fs::create_dir(&place).and_then(|()| ask::overlay_in_user_namespace(&place));
            match tried {
                Ok(()) => Ok("overlays can be mounted without root".to_owned()),
                Err(error) => Err(missing(error.to_string())),
            }
        });
        // One connection for the three.
        let connection = std::cell::OnceCell::new();
        let connect = |scratch: &Path| {
            let call = if mount_api { MountCall::Best } else { MountCall::Legacy };
            connection.get_or_init(|| self.connect(scratch, call)).as_ref()
        };
        let has_fuse = add(FeatureName::Fuse, &|scratch| match connect(scratch) {
            Ok(connection) => Ok(format!("protocol 7.{}", connection.offer.minor)),
            Err(reason) => Err(missing(reason)),
        });
        add(FeatureName::Resend, &|scratch| {
            needs(has_fuse, FeatureName::Fuse)?;
            let connection = connect(scratch).map_err(missing)?;
            if !connection.offer.resend {
                return Err(missing("the kernel does not offer it"));
            }
            match fuse_device::resend(connection.device.as_fd()) {
                Ok(()) => Ok("unanswered requests are sent again".to_owned()),
                Err(error) => Err(missing(format!("the kernel refuses it: {error}"))),
            }
        });
        add(FeatureName::Passthrough, &|scratch| {
            needs(has_fuse, FeatureName::Fuse)?;
            let connection = connect(scratch).map_err(missing)?;
            if !connection.offer.passthrough {
                return Err(missing("the kernel does not offer it"));
            }
            let (directory, file) = backing.as_ref().map_err(missing)?;
            match fuse_device::open_backing(connection.device.as_fd(), file.as_fd()) {
                Ok(id) => {
                    let _ = fuse_device::close_backing(connection.device.as_fd(), id);
                    Ok("complete files are read by the kernel".to_owned())
                }
                Err(error) => Err(missing(format!(
                    "the kernel refuses files of `{}`: {error}",
                    directory.display()
                ))),
            }
        });
        features
    }

    fn connect(&self, scratch: &Path, call: MountCall) -> Result<Connection, String> {
        let open = || fuse_device::open().map_err(|error| (error, fuse_device::DEVICE));
        let device = match open() {
            // No such file, device or driver: what a host looks like before the module is loaded.
            Err((error, _)) if matches!(error.raw_os_error(), Some(2 | 6 | 19)) => {
                match module::load_module("fuse") {
                    Ok(()) => open().map_err(|(error, path)| format!("`{path}`: {error}"))?,
                    Err(refused) => {
                        return Err(format!("`{}`: {error}; {refused}", fuse_device::DEVICE));
                    }
                }
            }
            other => other.map_err(|(error, path)| format!("`{path}`: {error}"))?,
        };
        let place = scratch.join("fuse");
        std::fs::create_dir(&place).map_err(|error| error.to_string())?;
        mount::fuse_at(device.as_fd(), "supervisor-probe", &place, call)
            .map_err(|error| format!("FUSE cannot be mounted: {error}"))?;
        let offer = ask::fuse_offer(device.as_fd())
            .and_then(|offer| ask::fuse_accept(device.as_fd(), &offer).map(|()| offer))
            .map_err(|error| format!("the kernel does not speak to a server: {error}"))?;
        Ok(Connection { device, offer })
    }

    /// An unnamed file on the file system of the state directory, which may not be there yet.
    fn backing_file(&self) -> Result<(PathBuf, File), String> {
        let existing =
            self.state_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        tempfile::tempfile_in(existing)
            .map(|file| (existing.to_path_buf(), file))
            .map_err(|error| format!("no file in `{}`: {error}", existing.display()))
    }
}

/// A connection that nobody but the probes uses.
struct Connection {
    device: OwnedFd,
    offer: ask::FuseOffer,
}

/// A file system in memory that only this thread sees.
fn scratch() -> io::Result<PathBuf> {
    mount::enter_private_namespace()?;
    let place = COVERED.into_iter().map(Path::new).find(|path| path.is_dir());
    let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    mount::tmpfs_at(place)?;
    Ok(place.to_path_buf())
}

fn overlay(scratch: &Path) -> Found {
    let attempt = |name| try_overlay(scratch, name, MountCall::Legacy);
    let said = "root file systems can be put together".to_owned();
    match attempt("first") {
        Ok(()) => Ok(said),
        Err(error) if error.raw_os_error() == Some(19) => match module::load_module("overlay") {
            Ok(()) => attempt("second").map(|()| said).map_err(|error| missing(error.to_string())),
            Err(refused) => Err(missing(format!("{error}; {refused}"))),
        },
        Err(error) => Err(missing(format!("it cannot be mounted: {error}"))),
    }
}

fn try_overlay(scratch: &Path, name: &str, call: MountCall) -> io::Result<()> {
    let place = scratch.join(name);
    let at = |part: &str| place.join(part);
    for part in ["lower", "upper", "work", "target"] {
        std::fs::create_dir_all(at(part))?;
    }
    let upper = Upper { dir: at("upper"), work: at("work"), volatile: true };
    let overlay =
        Overlay { source: "supervisor-probe", lower: &[at("lower")], upper: Some(&upper) };
    mount::overlay(overlay, &at("target"), call)
}

/// Asks for the generation of the rules, which loads the module where the kernel may do so by itself.
fn nftables() -> Found {
    match generation() {
        Ok(()) => Ok("packet rules can be made".to_owned()),
        Err(error) if matches!(error.raw_os_error(), Some(1 | 13)) => {
            Err(Absence::Untried(format!("packet rules are not ours to make: {error}")))
        }
        Err(error) => match module::load_module("nf_tables") {
            Ok(()) => match generation() {
                Ok(()) => Ok("packet rules can be made".to_owned()),
                Err(error) => Err(missing(format!("the kernel does not answer: {error}"))),
            },
            Err(refused) => Err(missing(format!("{error}; {refused}"))),
        },
    }
}

fn generation() -> io::Result<()> {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with, sockopt,
    };
    let kind = SocketType::RAW;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(netlink::NETFILTER))?;
    let patience = Some(std::time::Duration::from_secs(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience)?;
    // A `nlmsghdr` of an `NFT_MSG_GETGEN` of the subsystem nf_tables, and an empty `nfgenmsg`.
    let mut request = [0; 20];
    request[0..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&(10_u16 << 8 | 16).to_ne_bytes());
    request[6..8].copy_from_slice(&1_u16.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let is_error = length >= 20 && answer[4..6] == 2_u16.to_ne_bytes();
    if is_error {
        let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        return Err(io::Error::from_raw_os_error(-code));
    }
    Ok(())
}
