//! Names of tar entries, made harmless: relative, without `.` and `..`, of bounded length and depth.

/// Longest name or link target, in bytes: what the kernel takes as a path.
pub(super) const MAX_PATH_BYTES: usize = 4095;

/// Deepest nesting, the same as for lazy layers.
pub(super) const MAX_DEPTH: usize = 1024;

/// Begins the name of what hides something in the layers below.
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Begins the names that were bookkeeping of aufs and are no files, and the mark of an opaque directory.
const METADATA_PREFIX: &[u8] = b".wh..wh.";

/// What a name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An entry of this path; empty is the root.
    Entry(Vec<u8>),
    /// Hides this path in the layers below.
    Whiteout(Vec<u8>),
    /// Hides all that the layers below have in this directory.
    Opaque(Vec<u8>),
    /// Nothing that is ever shown.
    Hidden,
}

/// Why a name cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It holds a NUL byte.
    #[error("its name holds a NUL byte")]
    Nul,
    /// It is longer than the kernel takes.
    #[error("its name is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// It has too many components.
    #[error("its name has more than {MAX_DEPTH} components")]
    TooDeep,
    /// It is a symbolic link to nothing.
    #[error("its link has no target")]
    NoTarget,
}

/// `clean("/" + name)` without the leading `/`: `..` stops at the root, as in a chroot, and so never leads out.
pub(super) fn clean(name: &[u8]) -> Result<Vec<u8>, PathError> {
    if name.contains(&0) {
        return Err(PathError::Nul);
    }
    let mut components: Vec<&[u8]> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            component => components.push(component),
        }
    }
    if components.len() > MAX_DEPTH {
        return Err(PathError::TooDeep);
    }
    let path = components.join(&b'/');
    if path.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong);
    }
    Ok(path)
}

/// What the cleaned `path` means in a layer.
pub(super) fn meaning(path: Vec<u8>) -> Meaning {
    let (directory, name) = split(&path);
    let hidden_above = directory
        .split(|byte| *byte == b'/')
        .any(|component| component.starts_with(WHITEOUT_PREFIX));
    if hidden_above {
        return Meaning::Hidden;
    }
    if name == b".wh..wh..opq" {
        return Meaning::Opaque(directory.to_vec());
    }
    if name.starts_with(METADATA_PREFIX) {
        return Meaning::Hidden;
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        // What would hide the directory itself, or the one above, hides nothing.
        Some(b"" | b"." | b"..") => Meaning::Hidden,
        Some(hidden) => Meaning::Whiteout(join(directory, hidden)),
        None => Meaning::Entry(path),
    }
}

/// The directory and the last component; the directory of a name in the root is empty.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, name].join(&b'/') }
}

/// Whether `path` is below `directory`.
pub(super) fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// A path for people: lossy and short.
pub(super) fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_root() {
        for (name, cleaned) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("../../etc", "etc"),
            ("a/../../b", "b"),
            ("a/..", ""),
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("...", "..."),
        ] {
            assert_eq!(clean(name.as_bytes()).unwrap(), cleaned.as_bytes(), "{name}");
        }
        assert_eq!(clean(b"a\0b"), Err(PathError::Nul));
        assert_eq!(clean(&[b'a'; 5000]), Err(PathError::TooLong));
        assert_eq!(clean(&b"a/".repeat(1025)), Err(PathError::TooDeep));
    }

    #[test]
    fn whiteouts_mean_what_they_hide_and_other_marks_mean_nothing() {
        let meaning = |name: &str| meaning(name.as_bytes().to_vec());
        assert_eq!(meaning("a/b"), Meaning::Entry(b"a/b".to_vec()));
        assert_eq!(meaning("a/.wh.b"), Meaning::Whiteout(b"a/b".to_vec()));
        assert_eq!(meaning(".wh.b"), Meaning::Whiteout(b"b".to_vec()));
        assert_eq!(meaning("a/.wh..wh..opq"), Meaning::Opaque(b"a".to_vec()));
        assert_eq!(meaning(".wh..wh..opq"), Meaning::Opaque(Vec::new()));
        for name in
            [".wh.", ".wh..", ".wh...", "a/.wh...", ".wh..wh.plnk", ".wh..wh.plnk/1.2", ".wh.a/b"]
        {
            assert_eq!(meaning(name), Meaning::Hidden, "{name}");
        }
    }
}
