//! Volumes, which are folders and files of the host, named ones, other images, and memory: in the short form
//! `SOURCE:TARGET[:OPTION[,OPTION…]]`, and in the long one, a mapping with `type`.

use std::path::{Component, Path, PathBuf};

use super::field::{Checker, Refusal, normalize};
use super::keys;
use super::raw::{Entry, Node, Value};
use super::{Access, Bind, CopyUp, ImageVolume, NamedVolume, Tmpfs};

/// What one item of `volumes` is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mounted {
    Bind(Bind),
    Tmpfs(Tmpfs),
    /// With the key of the file as its name, until it is looked up.
    Named(NamedVolume),
    Image(ImageVolume),
}

impl Mounted {
    pub(super) fn target(&self) -> &str {
        match self {
            Self::Bind(bind) => &bind.target,
            Self::Tmpfs(tmpfs) => &tmpfs.target,
            Self::Named(named) => &named.target,
            Self::Image(image) => &image.target,
        }
    }
}

impl Checker<'_> {
    pub(super) fn volumes(&mut self, path: &str, node: &Node) -> Vec<Mounted> {
        let items = match &node.value {
            Value::Null => return Vec::new(),
            Value::List(items) => items,
            _ => {
                self.mismatch(path, node, "a list of `SOURCE:TARGET[:ro]`");
                return Vec::new();
            }
        };
        let mut volumes: Vec<Mounted> = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let path = &format!("{path}[{n}]");
            let bind = if let Value::Map(entries) = &item.value {
                self.long_volume(path, item, entries)
            } else {
                self.text(path, item).and_then(|text| {
                    let parsed = parse(&text, self.input.base_dir);
                    self.refused(path, item, parsed)
                })
            };
            let bind = match bind {
                Some(Mounted::Named(named)) => {
                    self.declared(path, item.at, named).map(Mounted::Named)
                }
                other => other,
            };
            let Some(bind) = bind else { continue };
            if volumes.iter().any(|other| other.target() == bind.target()) {
                let message = format!("something is mounted at `{}` already", bind.target());
                self.problem(Some(item.at), path, message);
                continue;
            }
            volumes.push(bind);
        }
        volumes
    }

    pub(super) fn long_volume(
        &mut self,
        path: &str,
        node: &Node,
        entries: &[Entry],
    ) -> Option<Mounted> {
        let (mut source, mut target, mut access) = (None, None, Access::ReadWrite);
        let (mut size, mut mode, mut image, mut subpath) = (None, None, None, None);
        let kind = node.get("type").and_then(Node::scalar);
        if let Err(refusal) = check_type(kind.as_deref(), node) {
            let at = node.get("type").unwrap_or(node);
            return self.refused(path, at, Err(refusal));
        }
        let is_tmpfs = kind.as_deref() == Some("tmpfs");
        let is_named = kind.as_deref() == Some("volume");
        let is_image = kind.as_deref() == Some("image");
        let is_bind = !is_tmpfs && !is_named && !is_image;
        let mut copy_up = CopyUp::IfEmpty;
        let before = self.problems.len();
        for Entry { key, at, value } in entries {
            let path = &format!("{path}.{key}");
            match key.as_str() {
                "type" => {}
                _ if value.value == Value::Null || key.starts_with("x-") => {}
                "source" if is_image => {
                    image = self.image(path, value);
                    source = image.as_ref().map(ToString::to_string);
                }
                "source" if !is_tmpfs => source = self.text(path, value),
                "target" => target = self.absolute(path, value),
                "read_only" => {
                    if self.boolean(path, value)? {
                        access = Access::ReadOnly;
                    } else if is_image {
                        let message = "an image is mounted read-only";
                        self.problem(Some(value.at), path, message);
                    }
                }
                // For Docker Desktop only; it changes nothing here.
                "consistency" => {}
                "bind" if is_bind => self.bind_options(path, value),
                "image" if is_image => subpath = self.image_options(path, value),
                "volume" if is_named => copy_up = self.volume_options(path, value),
                "tmpfs" if is_tmpfs => (size, mode) = self.tmpfs_options(path, value),
                "bind" | "volume" | "tmpfs" | "image" | "source" => {
                    let kind = kind.as_deref().unwrap_or_default();
                    let message = format!("`{key}` has no meaning for a volume of type `{kind}`");
                    self.problem(Some(*at), path, message);
                }
                _ => self.problem(Some(*at), path, keys::unknown(key, keys::VOLUME)),
            }
        }
        for (key, value) in [("source", &source), ("target", &target)] {
            let needed = key == "target" || !is_tmpfs;
            let given = node.get(key).is_some_and(|given| given.value != Value::Null);
            if value.is_none() && needed && !given {
                self.problem(Some(node.at), path, format!("the volume has no `{key}:`"));
            }
        }
        let target = target?;
        if self.problems.len() > before {
            return None;
        }
        let target = match mount_point(&target) {
            Ok(target) => target,
            Err(message) => return self.checked(path, node, Err(message)),
        };
        if is_tmpfs {
            return Some(Mounted::Tmpfs(Tmpfs { target, size, mode, access }));
        }
        if let Some(image) = image {
            return Some(Mounted::Image(ImageVolume { image, target, subpath }));
        }
        let source = source?;
        if is_named {
            let volume = source;
            return Some(Mounted::Named(NamedVolume { volume, target, access, copy_up }));
        }
        if source.starts_with('~') {
            let message = format!("`{source}`: `~` is not supported; write the absolute path");
            self.problem(Some(node.at), path, message);
            return None;
        }
        let source = normalize(&self.input.base_dir.join(source));
        Some(Mounted::Bind(Bind { source, target, access }))
    }

    /// The folder or file of an image that is mounted: a path in it, without `..`; `None` is all of it.
    fn image_options(&mut self, path: &str, node: &Node) -> Option<String> {
        let mut subpath = None;
        for found in self.entries(path, node, keys::IMAGE_OPTIONS) {
            match found.key.name {
                "subpath" => {
                    let text = self.text(&found.path, found.value)?;
                    let parts = Path::new(&text).components();
                    let is_above = |part: &Component<'_>| matches!(part, Component::ParentDir);
                    let message = format!("`{text}` leads out of the image");
                    let inside = if parts.clone().any(|part| is_above(&part)) {
                        Err(message)
                    } else {
                        let names = parts.filter(|part| matches!(part, Component::Normal(_)));
                        let inside: PathBuf = names.collect();
                        Ok(inside.to_string_lossy().into_owned())
                    };
                    subpath = self.checked(&found.path, found.value, inside);
                }
                _ => self.leave(&found),
            }
        }
        subpath.filter(|path| !path.is_empty())
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
                        self.unsupported(value.at, path, message);
                    }
                }
                // A label of a security module that is not used here; accepted in the short form too.
                "selinux" => {}
                "propagation" | "recursive" => {
                    let message = format!("`{key}` is not supported in this version");
                    self.unsupported(*at, path, message);
                }
                _ => self.problem(Some(*at), path, format!("unknown key `{key}` of `bind`")),
            }
        }
    }
}

/// Where something is mounted, in a normal form.
pub(super) fn mount_point(target: &str) -> Result<String, String> {
    if !target.starts_with('/') {
        return Err(format!("`{target}` is not an absolute path in the container"));
    }
    let target = normalize(Path::new(target));
    if target == Path::new("/") {
        return Err("a volume cannot be mounted at `/`".to_owned());
    }
    target.to_str().map(str::to_owned).ok_or_else(|| "the target is not UTF-8".to_owned())
}

/// What to say of a volume that is none of ours.
fn check_type(kind: Option<&str>, node: &Node) -> Result<(), Refusal> {
    let field = |key: &str| node.get(key).and_then(Node::scalar);
    let target = field("target").unwrap_or_else(|| "/data".to_owned());
    Err(match kind {
        Some("bind" | "tmpfs" | "image") => return Ok(()),
        Some("volume") if field("source").is_some_and(|source| !source.is_empty()) => return Ok(()),
        None => {
            "the volume has no `type:`; it is `bind` for a folder of the host".to_owned().into()
        }
        Some("volume") => anonymous(&target),
        Some(kind @ ("npipe" | "cluster")) => Refusal::unsupported(format!(
            "a volume of type `{kind}` is not supported in this version; use `bind`"
        )),
        Some(kind) => {
            format!("unknown type `{kind}` of a volume; use `bind`, `volume`, `image` or `tmpfs`")
                .into()
        }
    })
}

fn anonymous(target: &str) -> Refusal {
    Refusal::unsupported(format!(
        "`{target}` is an anonymous volume, which is not supported in this version; give it a name, \
         `data:{target}`, and declare `data` under `volumes:`"
    ))
}

/// Reads `text`; a relative source is below `base_dir`, the folder of the services file.
///
/// The options `z` and `Z` (SELinux labels) and `cached`, `delegated`, `consistent` (Docker Desktop) are accepted and
/// change nothing here. `~` is refused: whose home it would be differs between the user and a daemon.
pub(super) fn parse(text: &str, base_dir: &Path) -> Result<Mounted, Refusal> {
    let mut parts = text.split(':');
    let (source, target, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(target), options, None) => (source, target, options),
        (Some(path), None, ..) => {
            return Err(anonymous(path));
        }
        _ => return Err(format!("`{text}` is not of the form `SOURCE:TARGET[:ro]`").into()),
    };
    if source.is_empty() || target.is_empty() {
        return Err(format!("`{text}` is not of the form `SOURCE:TARGET[:ro]`").into());
    }
    if source.starts_with('~') {
        return Err(format!("`{source}`: `~` is not supported; write the absolute path").into());
    }
    let is_named = !source.starts_with(['/', '.']);
    if is_named && source.contains('/') {
        return Err(format!(
            "`{source}` is neither a path nor the name of a volume; did you mean `./{source}`?"
        )
        .into());
    }
    let target = mount_point(target)?;
    let (mut access, mut copy_up) = (Access::ReadWrite, CopyUp::IfEmpty);
    for option in options.into_iter().flat_map(|options| options.split(',')) {
        match option {
            "ro" => access = Access::ReadOnly,
            "rw" => access = Access::ReadWrite,
            "nocopy" if is_named => copy_up = CopyUp::Never,
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "nocopy" => {
                return Err(Refusal::unsupported(format!(
                    "the option `{option}` is not supported in this version"
                )));
            }
            _ => return Err(format!("unknown option `{option}`; use `ro` or `rw`").into()),
        }
    }
    if is_named {
        let volume = source.to_owned();
        return Ok(Mounted::Named(NamedVolume { volume, target, access, copy_up }));
    }
    let source = normalize(&base_dir.join(source));
    Ok(Mounted::Bind(Bind { source, target, access }))
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
            assert_eq!(parse(text, Path::new("/base")), Ok(Mounted::Bind(bind)), "{text}");
        }
    }

    #[test]
    fn what_is_no_bind_says_what_to_write_instead() {
        for (text, expected) in [
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
            let message = parse(text, Path::new("/base")).unwrap_err().message;
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn images_are_volumes_with_a_path_in_them() {
        let parsed = |volume: &str| {
            let text = format!("services: {{web: {{image: i, volumes: [{volume}]}}}}");
            let environment = std::collections::BTreeMap::new();
            let input = crate::spec::ParseInput {
                file: "services.yaml",
                project: "p".parse().unwrap(),
                project_choice: crate::spec::ProjectChoice::Explicit,
                base_dir: Path::new("/base"),
                environment: &environment,
            };
            crate::spec::parse(&text, &input).map(|desired| desired.services["web"].clone())
        };
        for (volume, image, subpath) in [
            ("{type: image, source: code, target: /code}", "docker.io/library/code:latest", None),
            (
                "{type: image, source: 'oci:./code:v1', target: //code/, image: {subpath: /dist/./js/}}",
                "oci:/base/code:v1",
                Some("dist/js"),
            ),
            (
                "{type: image, source: r.example/a:1, target: /code, read_only: true, image: {subpath: .}}",
                "r.example/a:1",
                None,
            ),
        ] {
            let service = parsed(volume).unwrap();
            let [only] = service.image_volumes.as_slice() else { panic!("{volume}") };
            assert_eq!(only.image.to_string(), image);
            assert_eq!((only.target.as_str(), only.subpath.as_deref()), ("/code", subpath));
            assert_eq!(service.images().count(), 2);
        }
        for (volume, expected) in [
            ("{type: image, target: /code}", "the volume has no `source:`"),
            ("{type: image, source: ' ', target: /code}", "source"),
            ("{type: image, source: c, target: /code, read_only: false}", "mounted read-only"),
            (
                "{type: image, source: c, target: /c, image: {subpath: a/../../b}}",
                "out of the image",
            ),
            ("{type: image, source: c, target: /c, image: {path: a}}", "path"),
            ("{type: bind, source: /c, target: /c, image: {subpath: a}}", "no meaning"),
            ("{type: image, source: c, target: /c}, '/x:/c'", "is mounted at `/c` already"),
        ] {
            let error = parsed(volume).unwrap_err().to_string();
            assert!(error.contains(expected), "{volume}: {error}");
        }
    }
}
