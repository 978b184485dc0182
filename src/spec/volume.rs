//! Volumes in the short form: `SOURCE:TARGET[:OPTION[,OPTION…]]`, folders and files of the host only.

use std::path::Path;

use super::field::normalize;
use super::{Access, Bind};

/// Reads `text`; a relative source is below `base_dir`, the folder of the services file.
///
/// The options `z` and `Z` (SELinux labels) and `cached`, `delegated`, `consistent` (Docker Desktop) are accepted and
/// change nothing here. `~` is refused: whose home it would be differs between the user and a daemon.
pub(super) fn parse(text: &str, base_dir: &Path) -> Result<Bind, String> {
    let mut parts = text.split(':');
    let (source, target, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(target), options, None) => (source, target, options),
        (Some(path), None, ..) => {
            return Err(format!(
                "`{path}` is an anonymous volume, which is not supported in this version; mount a folder of \
                 the host: `./data:{path}`"
            ));
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
            format!(
                "`{source}` is a named volume, which is not supported in this version; mount a folder of the \
                 host: `./{source}:{target}`"
            )
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
