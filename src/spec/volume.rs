//! Volumes, folders and files of the host only: in the short form `SOURCE:TARGET[:OPTION[,OPTION…]]`, and in the long
//! one, a mapping with `type: bind`.

use std::path::Path;

use super::field::{Checker, normalize};
use super::raw::{Entry, Node, Value};
use super::{Access, Bind};

impl Checker<'_> {
    pub(super) fn long_volume(
        &mut self,
        path: &str,
        node: &Node,
        entries: &[Entry],
    ) -> Option<Bind> {
        let (mut source, mut target, mut access) = (None, None, Access::ReadWrite);
        let kind = node.get("type").and_then(Node::scalar);
        if let Some(message) = other_type(kind.as_deref(), node) {
            self.problem(Some(node.get("type").map_or(node.at, |kind| kind.at)), path, message);
            return None;
        }
        let before = self.problems.len();
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            match key.as_str() {
                "type" => {}
                _ if value.value == Value::Null || key.starts_with("x-") => {}
                "source" => source = self.text(path, value),
                "target" => target = self.absolute(path, value),
                "read_only" => {
                    if self.boolean(path, value)? {
                        access = Access::ReadOnly;
                    }
                }
                // For Docker Desktop only; it changes nothing here.
                "consistency" => {}
                "bind" => self.bind_options(path, value),
                "volume" | "tmpfs" | "image" => {
                    let message = format!("`{key}` has no meaning for a volume of type `bind`");
                    self.problem(Some(*at), path, message);
                }
                _ => self.problem(Some(*at), path, format!("unknown key `{key}` of a volume")),
            }
        }
        for (key, value) in [("source", &source), ("target", &target)] {
            if value.is_none() && node.get(key).is_none_or(|given| given.value == Value::Null) {
                self.problem(Some(node.at), path, format!("the volume has no `{key}:`"));
            }
        }
        let (source, target) = (source?, target?);
        if self.problems.len() > before {
            return None;
        }
        if source.starts_with('~') {
            let message = format!("`{source}`: `~` is not supported; write the absolute path");
            self.problem(Some(node.at), path, message);
            return None;
        }
        let target = normalize(Path::new(&target));
        if target == Path::new("/") {
            self.problem(Some(node.at), path, "a volume cannot be mounted at `/`");
            return None;
        }
        let source = normalize(&self.input.base_dir.join(source));
        Some(Bind { source, target: target.to_str()?.to_owned(), access })
    }

    fn bind_options(&mut self, path: &str, node: &Node) {
        let Value::Map(entries) = &node.value else {
            let message = format!("expected a mapping, found {}", node.value.kind());
            self.problem(Some(node.at), path, message);
            return;
        };
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            match key.as_str() {
                _ if value.value == Value::Null || key.starts_with("x-") => {}
                "create_host_path" => {
                    if self.boolean(path, value) == Some(false) {
                        let message = "`create_host_path: false` is not supported in this version; a missing folder is made";
                        self.problem(Some(value.at), path, message);
                    }
                }
                // A label of a security module that is not used here; accepted in the short form too.
                "selinux" => {}
                "propagation" | "recursive" => {
                    let message = format!("`{key}` is not supported in this version");
                    self.problem(Some(*at), path, message);
                }
                _ => self.problem(Some(*at), path, format!("unknown key `{key}` of `bind`")),
            }
        }
    }
}

/// What to say of a volume that is no folder of the host.
fn other_type(kind: Option<&str>, node: &Node) -> Option<String> {
    let field = |key: &str| node.get(key).and_then(Node::scalar);
    let target = field("target").unwrap_or_else(|| "/data".to_owned());
    Some(match kind {
        Some("bind") => return None,
        None => "the volume has no `type:`; it is `bind` for a folder of the host".to_owned(),
        Some("volume") => match field("source") {
            Some(source) => named(&source, &target),
            None => anonymous(&target),
        },
        Some(kind @ ("tmpfs" | "image" | "npipe" | "cluster")) => {
            format!("a volume of type `{kind}` is not supported in this version; use `bind`")
        }
        Some(kind) => format!("unknown type `{kind}` of a volume; use `bind`"),
    })
}

fn named(source: &str, target: &str) -> String {
    format!(
        "`{source}` is a named volume, which is not supported in this version; mount a folder of the host: \
         `./{source}:{target}`"
    )
}

fn anonymous(target: &str) -> String {
    format!(
        "`{target}` is an anonymous volume, which is not supported in this version; mount a folder of the host: \
         `./data:{target}`"
    )
}

/// Reads `text`; a relative source is below `base_dir`, the folder of the services file.
///
/// The options `z` and `Z` (SELinux labels) and `cached`, `delegated`, `consistent` (Docker Desktop) are accepted and
/// change nothing here. `~` is refused: whose home it would be differs between the user and a daemon.
pub(super) fn parse(text: &str, base_dir: &Path) -> Result<Bind, String> {
    let mut parts = text.split(':');
    let (source, target, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(target), options, None) => (source, target, options),
        (Some(path), None, ..) => {
            return Err(anonymous(path));
        }
        _ => return Err(format!("`{text}` is not of the form `SOURCE:TARGET[:ro]`")),
    };
    if source.is_empty() || target.is_empty() {
        return Err(format!("`{text}` is not of the form `SOURCE:TARGET[:ro]`"));
    }
    if source.starts_with('~') {
        return Err(format!("`{source}`: `~` is not supported; write the absolute path"));
    }
    if !source.starts_with(['/', '.']) {
        return Err(if source.contains('/') {
            format!(
                "`{source}` is neither a path nor the name of a volume; did you mean `./{source}`?"
            )
        } else {
            named(source, target)
        });
    }
    if !target.starts_with('/') {
        return Err(format!("`{target}` is not an absolute path in the container"));
    }
    let target = normalize(Path::new(target));
    if target == Path::new("/") {
        return Err("a volume cannot be mounted at `/`".to_owned());
    }
    let mut access = Access::ReadWrite;
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => access = Access::ReadOnly,
            "rw" => access = Access::ReadWrite,
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "nocopy" => {
                return Err(format!("the option `{option}` is not supported in this version"));
            }
            _ => return Err(format!("unknown option `{option}`; use `ro` or `rw`")),
        }
    }
    let source = normalize(&base_dir.join(source));
    let target = target.to_str().map(str::to_owned).ok_or("the target is not UTF-8")?;
    Ok(Bind { source, target, access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_give_binds_below_the_folder_of_the_file() {
        for (text, source, target, access) in [
            ("./a:/b", "/base/a", "/b", Access::ReadWrite),
            ("../a:/b:ro", "/a", "/b", Access::ReadOnly),
            ("/x/./y/../z:/b//c/:rw", "/x/z", "/b/c", Access::ReadWrite),
            (".:/app:z", "/base", "/app", Access::ReadWrite),
            ("./a:/b:ro,Z", "/base/a", "/b", Access::ReadOnly),
            (".hidden:/b", "/base/.hidden", "/b", Access::ReadWrite),
        ] {
            let bind = Bind { source: source.into(), target: target.into(), access };
            assert_eq!(parse(text, Path::new("/base")), Ok(bind), "{text}");
        }
    }

    #[test]
    fn what_is_no_bind_says_what_to_write_instead() {
        for (text, expected) in [
            ("data:/data", "`./data:/data`"),
            ("/data", "anonymous"),
            ("~/x:/y", "`~`"),
            ("a/b:/y", "`./a/b`"),
            ("./a:b", "absolute"),
            ("./a:/", "at `/`"),
            ("./a:/..", "at `/`"),
            ("./a:/b:rx", "unknown option `rx`"),
            ("./a:/b:rshared", "not supported"),
            ("./a:/b:ro:z", "of the form"),
            (":/b", "of the form"),
            ("./a:", "of the form"),
        ] {
            let message = parse(text, Path::new("/base")).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
