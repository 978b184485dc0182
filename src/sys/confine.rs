//! Taking rights away from this process for good: paths (landlock), system calls (seccomp), capabilities.
//!
//! Call it before the process has a second thread: landlock restricts the calling thread and those that it starts
//! later. What the kernel cannot do is reported and skipped, because a host without landlock must still run
//! containers; the caller makes the gap visible.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// What a confined process may still do.
#[derive(Debug, Clone, Default)]
pub struct Rights {
    /// Files and directories that it may read, with all below; those that do not exist are skipped.
    pub read: Vec<PathBuf>,
    /// Directories in which it may also create, write, rename and remove.
    pub write: Vec<PathBuf>,
    /// Whether it keeps CAP_SYS_ADMIN; every other capability goes.
    pub admin: Admin,
    /// Means that are not used, as on a kernel that lacks them.
    pub without: Vec<Means>,
}

/// What the kernel may have to take rights away with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// For paths.
    Landlock,
    /// For system calls.
    Seccomp,
}

/// Whether CAP_SYS_ADMIN stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admin {
    /// No capability stays.
    #[default]
    Drop,
    /// It stays, for registering passthrough files.
    Keep,
}

/// What could not be taken away, in words; empty when everything was.
pub type Gaps = Vec<String>;

/// System calls that no confined role makes and that matter to an attacker.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_io_uring_setup,
    libc::SYS_personality,
];

/// Further ones that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[libc::c_long] =
    &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_mknod, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[libc::c_long] = &[];

/// Flags of clone(2) that make a namespace.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Takes everything away but `rights`.
///
/// # Errors
/// When capabilities cannot be dropped: a process that cannot even do that is not what its caller thinks it is.
pub fn confine(rights: &Rights) -> io::Result<Gaps> {
    let mut gaps = Gaps::new();
    rustix::thread::set_no_new_privs(true)?;
    // Paths first: opening the roots of the rules needs the capabilities that go next.
    let off = || Err("it is switched off".to_owned());
    let has = |means| !rights.without.contains(&means);
    if let Err(reason) = if has(Means::Landlock) { restrict_paths(rights) } else { off() } {
        gaps.push(format!("landlock: {reason}"));
    }
    drop_capabilities(rights.admin)?;
    if let Err(reason) = if has(Means::Seccomp) { filter_calls() } else { off() } {
        gaps.push(format!("seccomp: {reason}"));
    }
    Ok(gaps)
}

fn restrict_paths(rights: &Rights) -> Result<(), String> {
    let abi = ABI::V5;
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .map_err(|error| words(&error))?
        .create()
        .map_err(|error| words(&error))?;
    let read = AccessFs::from_read(abi) & !AccessFs::Execute;
    // With execution: the kernel opens a passthrough file with the credentials of who registered it, also when it is
    // opened to be executed. This process itself executes nothing, see `FORBIDDEN`.
    let write =
        AccessFs::from_all(abi) & !(AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev);
    for (paths, access) in [(&rights.read, read), (&rights.write, write)] {
        for path in paths {
            // What does not exist can be neither read nor named in a rule.
            let Ok(metadata) = std::fs::metadata(path) else { continue };
            let access = if metadata.is_dir() { access } else { access & AccessFs::from_file(abi) };
            let root = PathFd::new(path).map_err(|error| words(&error))?;
            rules =
                rules.add_rule(PathBeneath::new(root, access)).map_err(|error| words(&error))?;
        }
    }
    let status = rules.restrict_self().map_err(|error| words(&error))?;
    match status.ruleset {
        // Older kernels enforce what they know, which is all that matters here.
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err("this kernel does not have it".to_owned()),
    }
}

fn drop_capabilities(admin: Admin) -> io::Result<()> {
    let held = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let kept: CapsHashSet = match admin {
        Admin::Keep => {
            held.intersection(&CapsHashSet::from([Capability::CAP_SYS_ADMIN])).copied().collect()
        }
        Admin::Drop => CapsHashSet::new(),
    };
    // Needs CAP_SETPCAP; without it, nothing is executed any more from here on, so the bounding set does not matter.
    let _ = caps::clear(None, CapSet::Bounding);
    let _ = caps::clear(None, CapSet::Ambient);
    let none = CapsHashSet::new();
    for (set, wanted) in
        [(CapSet::Effective, &kept), (CapSet::Permitted, &kept), (CapSet::Inheritable, &none)]
    {
        caps::set(None, set, wanted).map_err(io::Error::other)?;
    }
    Ok(())
}

fn filter_calls() -> Result<(), String> {
    let mut forbidden: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().chain(FORBIDDEN_HERE).map(|call| (*call, Vec::new())).collect();
    let mut clone = Vec::new();
    for flag in NAMESPACE_FLAGS {
        let flag = u64::try_from(flag).map_err(|error| error.to_string())?;
        let condition =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag);
        let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
        clone.push(rule.map_err(|error| error.to_string())?);
    }
    forbidden.insert(libc::SYS_clone, clone);
    let perm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    install(forbidden, perm)?;
    // The flags of clone3 are behind a pointer, which a filter cannot follow; the C library falls back to clone.
    let nosys = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), nosys)
}

fn install(rules: BTreeMap<i64, Vec<SeccompRule>>, action: SeccompAction) -> Result<(), String> {
    let arch = std::env::consts::ARCH.try_into();
    let arch = arch.map_err(|error: seccompiler::BackendError| error.to_string())?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch)
        .map_err(|error| error.to_string())?;
    let program = BpfProgram::try_from(filter).map_err(|error| error.to_string())?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

/// Loads a compiled filter, an array of the kernel's `struct sock_filter`, into this thread and what it executes.
///
/// # Errors
/// `EINVAL` when it is no program, `EACCES` without CAP_SYS_ADMIN or no_new_privs.
pub fn load_filter(program: &[u8]) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    let operation = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    let flags: libc::c_ulong = 0;
    // SAFETY: the program describes memory that lives through the call, which copies it and writes nothing.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
