//! What is read of an image as soon as a container of it starts, whatever it does then. Pure.
//!
//! The users are looked up, and then the kernel reads the program, its loader, and that the C library: one after the
//! other, and each a round trip to the registry where nothing is here yet. Known beforehand, all are asked for at once,
//! while the container is made. What more a program needs is known only from its content: of a script, the worker reads
//! there who interprets it.

use crate::container::Process;
use crate::image::Platform;

/// Where programs are looked for without a `PATH`, as the container's own is then.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Folders of a `PATH` that are looked into.
const FOLDERS: usize = 16;
/// Bytes of a path. All paths fit into one message, with all that JSON escapes.
const PATH_LENGTH: usize = 256;

/// Loaders and C libraries of the usual distributions, with glibc and musl.
const AMD64: [&[&str]; 2] = [
    &["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"],
    &["/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"],
];
const ARM64: [&[&str]; 2] = [
    &["/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-aarch64.so.1"],
    &[
        "/lib/aarch64-linux-gnu/libc.so.6",
        "/usr/lib/aarch64-linux-gnu/libc.so.6",
        "/lib64/libc.so.6",
    ],
];

/// Files that are read first: of each list the first path that there is.
pub(super) fn of(process: &Process, platform: &Platform) -> Vec<Vec<String>> {
    let libraries: &[&[&str]] = match platform.architecture.as_str() {
        "amd64" => &AMD64,
        "arm64" => &ARM64,
        _ => &[],
    };
    let fixed = [&["/etc/passwd"][..], &["/etc/group"]];
    let fixed = fixed.iter().chain(libraries);
    let fixed = fixed.map(|list| list.iter().map(|path| (*path).to_owned()).collect());
    let mut reads: Vec<Vec<String>> = vec![program(process)];
    reads.extend(fixed);
    for list in &mut reads {
        list.retain(|path| path.len() <= PATH_LENGTH);
    }
    reads.retain(|list| !list.is_empty());
    reads
}

/// Where the program may be.
fn program(process: &Process) -> Vec<String> {
    let Some(name) = process.args.first() else { return Vec::new() };
    let cwd = process.cwd.as_deref().unwrap_or("/");
    if name.starts_with('/') {
        return vec![name.clone()];
    }
    if name.contains('/') {
        return vec![format!("{cwd}/{name}")];
    }
    // The last of several values of one name wins, as it does in the container.
    let path = process.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    let folders = path.unwrap_or(DEFAULT_PATH).split(':').take(FOLDERS);
    let place = |folder: &str| match folder {
        "" => format!("{cwd}/{name}"),
        absolute if absolute.starts_with('/') => format!("{absolute}/{name}"),
        relative => format!("{cwd}/{relative}/{name}"),
    };
    folders.map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str], env: &[&str], cwd: Option<&str>) -> Process {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Process {
            args: owned(args),
            env: owned(env),
            cwd: cwd.map(str::to_owned),
            user: None,
            groups: Vec::new(),
            no_new_privileges: false,
            first: Default::default(),
            input: Default::default(),
        }
    }

    fn first(process: &Process) -> Vec<String> {
        of(process, &Platform::new("linux", "s390x", None)).remove(0)
    }

    #[test]
    fn a_program_is_expected_where_the_container_looks_for_it() {
        let web = |env: &[&str], cwd| first(&process(&["web", "--port"], env, cwd));
        assert_eq!(
            web(&["PATH=/none", "A=b", "PATH=/a:b::/c"], Some("/srv")),
            ["/a/web", "/srv/b/web", "/srv/web", "/c/web"]
        );
        assert_eq!(web(&[], None)[3], "/usr/bin/web");
        assert_eq!(first(&process(&["bin/web"], &[], Some("/srv"))), ["/srv/bin/web"]);
        assert_eq!(first(&process(&["/web"], &[], None)), ["/web"]);
    }

    #[test]
    fn users_and_loader_are_expected_too_and_nothing_that_no_message_takes() {
        let long = "x".repeat(300);
        let lists = of(&process(&[&long], &[], None), &Platform::new("linux", "amd64", None));
        let firsts: Vec<&str> = lists.iter().map(|list| &*list[0]).collect();
        assert_eq!(
            firsts,
            [
                "/etc/passwd",
                "/etc/group",
                "/lib64/ld-linux-x86-64.so.2",
                "/lib/x86_64-linux-gnu/libc.so.6"
            ]
        );
        let lists = of(&process(&[], &[], None), &Platform::new("linux", "riscv64", None));
        assert_eq!(lists, [["/etc/passwd"], ["/etc/group"]]);
    }
}
