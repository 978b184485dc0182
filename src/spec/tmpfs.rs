//! Memory that is a folder of the container: `tmpfs`, as `PATH[:OPTION[,OPTION…]]`, and volumes of the type `tmpfs`.

use super::field::{Checker, Refusal};
use super::raw::{Entry, Node, Value};
use super::size::{self, Base};
use super::volume::{Mounted, mount_point};
use super::{Access, Tmpfs};

/// Permission bits of a folder.
const MODE: u32 = 0o7777;

impl Checker<'_> {
    pub(super) fn tmpfs(&mut self, path: &str, node: &Node) -> Vec<Mounted> {
        let mut mounted: Vec<Mounted> = Vec::new();
        for (path, text, item) in self.texts(path, node) {
            let Some(tmpfs) = self.refused(&path, item, parse(&text)) else { continue };
            if mounted.iter().any(|other| other.target() == tmpfs.target) {
                let message = format!("something is mounted at `{}` already", tmpfs.target);
                self.problem(Some(item.at), &path, message);
            } else {
                mounted.push(Mounted::Tmpfs(tmpfs));
            }
        }
        mounted
    }

    /// Size and mode.
    pub(super) fn tmpfs_options(&mut self, path: &str, node: &Node) -> (Option<u64>, Option<u32>) {
        let (mut size, mut mode) = (None, None);
        let Value::Map(entries) = &node.value else {
            self.mismatch(path, node, "a mapping");
            return (None, None);
        };
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            match key.as_str() {
                _ if value.value == Value::Null || key.starts_with("x-") => {}
                "size" => size = self.size(path, value),
                "mode" => mode = self.mode(path, value),
                _ => self.problem(Some(*at), path, format!("unknown key `{key}` of `tmpfs`")),
            }
        }
        (size, mode)
    }

    /// Permission bits, written in octal.
    pub(super) fn mode(&mut self, path: &str, node: &Node) -> Option<u32> {
        let text = self.text(path, node)?;
        self.checked(path, node, octal(&text))
    }
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .ok()
        .filter(|mode| *mode <= MODE)
        .ok_or_else(|| format!("`{text}` is no mode, such as `0700`"))
}

fn parse(text: &str) -> Result<Tmpfs, Refusal> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let mut tmpfs =
        Tmpfs { target: mount_point(target)?, size: None, mode: None, access: Access::ReadWrite };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => {
                let size = size::parse(value, Base::Binary).map_err(|error| error.to_string())?;
                tmpfs.size = Some(size);
            }
            ("mode", value) => tmpfs.mode = Some(octal(value)?),
            ("ro", "") => tmpfs.access = Access::ReadOnly,
            // As it is anyway.
            ("rw" | "noexec" | "nosuid" | "nodev", "") => {}
            ("exec" | "suid" | "dev", "") | ("uid" | "gid" | "nr_inodes" | "nr_blocks", _) => {
                return Err(Refusal::unsupported(format!(
                    "the option `{option}` is not supported in this version"
                )));
            }
            _ => return Err(format!("unknown option `{option}` of `tmpfs`").into()),
        }
    }
    Ok(tmpfs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_told() {
        let tmpfs = parse("/run//x/:size=64m,mode=0700,ro,noexec").unwrap();
        assert_eq!((tmpfs.target.as_str(), tmpfs.size), ("/run/x", Some(64 << 20)));
        assert_eq!((tmpfs.mode, tmpfs.access), (Some(0o700), Access::ReadOnly));
        for (text, expected) in [
            ("run", "absolute"),
            ("/", "at `/`"),
            ("/a:size=x", "not a size"),
            ("/a:mode=9", "no mode"),
            ("/a:exec", "not supported"),
            ("/a:size", "not a size"),
            ("/a:what", "unknown option"),
        ] {
            let message = parse(text).unwrap_err().message;
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
