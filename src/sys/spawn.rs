//! Starting a program without a copy of this process.
//!
//! `std::process::Command` forks when something has to be done between fork and exec, and a fork copies the page
//! tables: 2 ms for control, and every page that it writes to afterwards is copied too. posix_spawn(3) shares them
//! until the exec, and can do all that a role needs.

use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// What is started.
pub(super) struct Spawn {
    pub(super) program: PathBuf,
    /// The first is the program's name.
    pub(super) args: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Descriptors and their numbers in the program. None of the first is the second of another.
    pub(super) descriptors: Vec<(RawFd, RawFd)>,
}

impl Spawn {
    /// Starts it: own session, working directory `/`, no signal blocked or ignored. Returns its process id.
    pub(super) fn start(self) -> io::Result<i32> {
        let program = c_string(self.program.into_os_string())?;
        let args = self.args.into_iter().map(c_string).collect::<io::Result<Vec<_>>>()?;
        let variables = self.environment.into_iter().map(|(name, value)| {
            let mut variable = name;
            variable.push("=");
            variable.push(value);
            c_string(variable)
        });
        let variables = variables.collect::<io::Result<Vec<_>>>()?;
        let attributes = Attributes::new()?;
        let mut actions = Actions::new()?;
        for (from, to) in self.descriptors {
            actions.dup2(from, to)?;
        }
        let (argv, envp) = (pointers(&args), pointers(&variables));
        let mut pid = 0;
        // SAFETY: the strings end in NUL and the lists in a null pointer, attributes and actions are initialized, and
        // all of them outlive the call, which writes only to `pid`.
        let code = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                program.as_ptr(),
                actions.0.as_ptr(),
                attributes.0.as_ptr(),
                argv.as_ptr(),
                envp.as_ptr(),
            )
        };
        check(code).map(|()| pid)
    }
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings
        .iter()
        .map(|text| text.as_ptr().cast_mut())
        .chain(std::iter::once(std::ptr::null_mut()))
        .collect()
}

/// These functions return the error instead of leaving it in errno.
fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

struct Attributes(Box<MaybeUninit<libc::posix_spawnattr_t>>);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: the call initializes what it is given.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Self(attributes);
        let attr = attributes.0.as_mut_ptr();
        let flags = libc::POSIX_SPAWN_SETSID
            | libc::c_short::try_from(libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF)
                .map_err(|_| io::ErrorKind::InvalidInput)?;
        let (mut none, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the call initializes the set.
        unsafe { libc::sigemptyset(none.as_mut_ptr()) };
        // SAFETY: the call initializes the set.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: the attributes and the set were initialized above; the set is copied.
        check(unsafe { libc::posix_spawnattr_setsigmask(attr, none.as_ptr()) })?;
        // SAFETY: the attributes and the set were initialized above; the set is copied.
        check(unsafe { libc::posix_spawnattr_setsigdefault(attr, all.as_ptr()) })?;
        // SAFETY: the attributes were initialized above.
        check(unsafe { libc::posix_spawnattr_setflags(attr, flags) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: they were initialized, and nobody uses them any more.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

struct Actions(Box<MaybeUninit<libc::posix_spawn_file_actions_t>>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: the call initializes what it is given.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        let mut actions = Self(actions);
        // SAFETY: the actions were initialized above; the call copies the path.
        check(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(actions.0.as_mut_ptr(), c"/".as_ptr())
        })?;
        Ok(actions)
    }

    fn dup2(&mut self, from: RawFd, to: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialized; the numbers are only noted.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), from, to) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: they were initialized, and nobody uses them any more.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}
