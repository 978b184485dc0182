//! System call filters as programs that the kernel takes, compiled once and kept.
//!
//! Compiling the default profile takes libseccomp longer than everything else that a start computes (9 ms of
//! processor time for a thousand instructions), and the result is the same each time. So it is kept in
//! `$RUN/filters`, under a name made of all that it follows from: the profile, libseccomp's version and the kernel's.
//! What is kept is checked before it is used; what does not fit, or cannot be kept, is compiled again.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    ScmpVersion,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use serde::Deserialize as _;
use serde_json::Value;

use crate::image::Digest;

/// The version of what is in the files.
const FORMAT: u32 = 1;

/// Why there is no program for a profile.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("could not read the profile of system calls")]
    Profile(#[source] serde_json::Error),
    #[error("profile of system calls holds {0}, which is not supported")]
    Unsupported(String),
    #[error("could not compile the filter of system calls")]
    Compile(#[from] SeccompError),
    #[error("could not read the compiled filter of system calls")]
    Export(#[source] io::Error),
}

/// The program for `profile`, a filter of the runtime specification.
pub(super) fn program(run_dir: &Path, profile: &Value) -> Result<Vec<u8>, FilterError> {
    let dir = run_dir.join("filters");
    let path = dir.join(name(profile));
    if let Some(program) = read(&path) {
        return Ok(program);
    }
    let parsed = LinuxSeccomp::deserialize(profile).map_err(FilterError::Profile)?;
    let program = compile(&parsed)?;
    if let Err(error) = keep(&dir, &path, &program) {
        tracing::debug!(%error, "a compiled filter is not kept");
    }
    Ok(program)
}

/// Of the file for a profile: whatever may change the program changes it.
fn name(profile: &Value) -> String {
    let library =
        ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string());
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    let arch = std::env::consts::ARCH;
    Digest::of(format!("{FORMAT} {library} {kernel} {arch} {profile}").as_bytes()).hex()
}

/// The program in a file of ours: its digest stands before it, because a power cut may leave anything on a disk, and
/// `$RUN` may be on one.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let program = &bytes[end + 1..];
    (bytes[..end] == *Digest::of(program).hex().as_bytes()).then(|| program.to_vec())
}

fn keep(dir: &Path, path: &Path, program: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut bytes = Digest::of(program).hex().into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(program);
    // Those who start at the same moment write the same.
    let fresh = path.with_extension(std::process::id().to_string());
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, path)
}

/// As libcontainer builds it, rule by rule, so that the program is the one that it would load.
fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, FilterError> {
    if profile.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(FilterError::Unsupported("flags".to_owned()));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default)?;
    for arch in profile.architectures().iter().flatten() {
        context.add_arch(architecture(*arch)?)?;
    }
    // Who loads it says whether programs may gain privileges.
    context.set_ctl_nnp(false)?;
    for rule in profile.syscalls().iter().flatten() {
        add(&mut context, rule, default)?;
    }
    let mut file = tempfile_in_memory().map_err(FilterError::Export)?;
    context.export_bpf(&file)?;
    let mut program = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut program)).map_err(FilterError::Export)?;
    Ok(program)
}

fn add(
    context: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
) -> Result<(), FilterError> {
    let wanted = action(rule.action(), rule.errno_ret())?;
    if wanted == default {
        // The library refuses what is redundant.
        return Ok(());
    }
    let comparisons: Option<Vec<ScmpArgCompare>> =
        rule.args().as_ref().map(|args| args.iter().map(comparison).collect());
    for name in rule.names() {
        // One that this version of the library does not know.
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        match &comparisons {
            Some(comparisons) => context.add_rule_conditional(wanted, call, comparisons)?,
            None => context.add_rule(wanted, call)?,
        };
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    let eperm = rustix::io::Errno::PERM.raw_os_error();
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActErrno => Ok(ScmpAction::Errno(
            errno.and_then(|errno| i32::try_from(errno).ok()).unwrap_or(eperm),
        )),
        other => Err(FilterError::Unsupported(format!("the action `{other:?}`"))),
    }
}

fn architecture(arch: Arch) -> Result<ScmpArch, FilterError> {
    match arch {
        Arch::ScmpArchNative => Ok(ScmpArch::Native),
        Arch::ScmpArchX86 => Ok(ScmpArch::X86),
        Arch::ScmpArchX86_64 => Ok(ScmpArch::X8664),
        Arch::ScmpArchX32 => Ok(ScmpArch::X32),
        Arch::ScmpArchArm => Ok(ScmpArch::Arm),
        Arch::ScmpArchAarch64 => Ok(ScmpArch::Aarch64),
        other => Err(FilterError::Unsupported(format!("the architecture `{other:?}`"))),
    }
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let operator = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            ScmpCompareOp::MaskedEqual(arg.value_two().unwrap_or(0))
        }
    };
    let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
    ScmpArgCompare::new(index, operator, arg.value())
}

fn tempfile_in_memory() -> io::Result<fs::File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(rustix::fs::memfd_create("filter", flags)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{capability, seccomp};

    fn default() -> Value {
        seccomp::profile(&capability::DEFAULT, std::env::consts::ARCH)
    }

    #[test]
    fn a_program_is_compiled_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = program(dir.path(), &default()).unwrap();
        assert!(!first.is_empty() && first.len().is_multiple_of(8), "{}", first.len());
        let kept = dir.path().join("filters").join(name(&default()));
        assert_eq!(read(&kept).unwrap(), first);
        // What is kept is what is used.
        let other = b"12345678".as_slice();
        keep(&dir.path().join("filters"), &kept, other).unwrap();
        assert_eq!(program(dir.path(), &default()).unwrap(), other);
    }

    #[test]
    fn what_is_damaged_is_compiled_again() {
        let dir = tempfile::tempdir().unwrap();
        let first = program(dir.path(), &default()).unwrap();
        let kept = dir.path().join("filters").join(name(&default()));
        let whole = fs::read(&kept).unwrap();
        for damaged in [&b""[..], b"x", &whole[..whole.len() - 8], &[&whole[..], b"x"].concat()] {
            fs::write(&kept, damaged).unwrap();
            assert_eq!(program(dir.path(), &default()).unwrap(), first);
            assert_eq!(fs::read(&kept).unwrap(), whole);
        }
    }

    #[test]
    fn profiles_have_programs_of_their_own() {
        let all = seccomp::profile(&["CAP_SYS_ADMIN"], std::env::consts::ARCH);
        assert_ne!(name(&all), name(&default()));
        let dir = tempfile::tempdir().unwrap();
        assert_ne!(program(dir.path(), &all).unwrap(), program(dir.path(), &default()).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("filters")).unwrap().count(), 2);
    }

    #[test]
    fn a_program_does_not_need_a_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!program(file.path(), &default()).unwrap().is_empty());
    }
}
