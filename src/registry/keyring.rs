//! Where logins are kept: docker's `config.json`, or the credential helper that it names for a registry.
//!
//! What else stands in the file stays as it is. Form of the file and of the helpers:
//! <https://docs.docker.com/reference/cli/docker/login/>, <https://github.com/docker/docker-credential-helpers>.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use serde_json::{Map, Value, json};

/// Where a login is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeper {
    /// In the file itself, encoded and not encrypted.
    File(PathBuf),
    /// By this program.
    Helper(String),
}

/// Why a login could not be kept or forgotten.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file, or its folder, cannot be read or written.
    #[error("could not use `{}`", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what docker writes.
    #[error("`{}` is no file of docker's: {problem}", .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The credential helper cannot be run, or failed.
    #[error("the credential helper `{program}` failed: {said}")]
    Helper {
        /// Its name, as it is looked for in `PATH`.
        program: String,
        /// What it said.
        said: String,
    },
}

/// Under which name docker keeps a registry's login.
fn key_of(host: &str) -> &str {
    if host == "docker.io" { "https://index.docker.io/v1/" } else { host }
}

/// Keeps the login of `user` at `host`, as the file `config` says. Blocks.
///
/// # Errors
/// When the file or the helper cannot be used; what was kept before is still there then.
pub fn keep(config: &Path, host: &str, user: &str, password: &str) -> Result<Keeper, KeyringError> {
    let mut content = read(config)?;
    let key = key_of(host);
    if let Some(program) = helper_of(&content, host) {
        let login = json!({ "ServerURL": key, "Username": user, "Secret": password });
        run(&program, "store", &login.to_string())?;
        return Ok(Keeper::Helper(program));
    }
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    table(&mut content, "auths", config)?.insert(key.to_owned(), json!({ "auth": pair }));
    write(config, &content)?;
    Ok(Keeper::File(config.to_owned()))
}

/// Forgets the login at `host`; false if there was none. Blocks.
///
/// # Errors
/// When the file or the helper cannot be used.
pub fn forget(config: &Path, host: &str) -> Result<bool, KeyringError> {
    let mut content = read(config)?;
    let key = key_of(host);
    let mut was_there = false;
    if let Some(program) = helper_of(&content, host) {
        was_there = match run(&program, "erase", key) {
            Ok(()) => true,
            // Helpers have no other way to say that they know nothing.
            Err(KeyringError::Helper { said, .. }) if said.contains("not found") => false,
            Err(error) => return Err(error),
        };
    }
    let auths = table(&mut content, "auths", config)?;
    // Docker accepts these spellings too.
    let spellings = [key.to_owned(), host.to_owned(), format!("https://{host}")];
    let in_file = spellings.iter().filter(|name| auths.remove(*name).is_some()).count() > 0;
    if in_file {
        write(config, &content)?;
    }
    Ok(was_there || in_file)
}

fn read(config: &Path) -> Result<Map<String, Value>, KeyringError> {
    let bytes = match fs::read(config) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(KeyringError::File { path: config.to_owned(), source }),
    };
    if bytes.trim_ascii().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| KeyringError::Form { path: config.to_owned(), problem: error.to_string() })
}

/// The helper for `host`: its own, else the one for all.
fn helper_of(content: &Map<String, Value>, host: &str) -> Option<String> {
    let own = content.get("credHelpers").and_then(|helpers| helpers.get(host));
    let name = own.or_else(|| content.get("credsStore"))?.as_str()?;
    (!name.is_empty()).then(|| format!("docker-credential-{name}"))
}

fn table<'a>(
    content: &'a mut Map<String, Value>,
    name: &str,
    config: &Path,
) -> Result<&'a mut Map<String, Value>, KeyringError> {
    let value = content.entry(name).or_insert_with(|| Value::Object(Map::new()));
    value.as_object_mut().ok_or_else(|| KeyringError::Form {
        path: config.to_owned(),
        problem: format!("`{name}` is no table"),
    })
}

/// Replaces the file as a whole; nobody else may read it.
fn write(config: &Path, content: &Map<String, Value>) -> Result<(), KeyringError> {
    let failed = |source| KeyringError::File { path: config.to_owned(), source };
    // A link stays one.
    let target = fs::canonicalize(config).unwrap_or_else(|_| config.to_owned());
    let folder = target.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let text = serde_json::to_string_pretty(content).map_err(io::Error::other).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.write_all(b"\n").map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&target).map_err(|error| failed(error.error))?;
    Ok(())
}

fn run(program: &str, verb: &str, input: &str) -> Result<(), KeyringError> {
    let failed = |said: String| KeyringError::Helper { program: program.to_owned(), said };
    let mut child = Command::new(program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if said.is_empty() {
            String::from_utf8_lossy(&output.stderr).trim().clone_into(&mut said);
        }
        return Err(failed(said.chars().take(200).collect()));
    }
    written.map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_login_is_kept_beside_what_else_is_in_the_file_and_forgotten_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        assert_eq!(
            keep(&path, "r.example:5000", "ann", "secret").unwrap(),
            Keeper::File(path.clone())
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(json_of(&path)["auths"]["r.example:5000"]["auth"], "YW5uOnNlY3JldA==");
        let other = json!({ "detachKeys": "x", "auths": { "other": { "auth": "eA==" } } });
        fs::write(&path, other.to_string()).unwrap();
        keep(&path, "docker.io", "ann", "secret").unwrap();
        let kept = json_of(&path);
        assert_eq!(kept["detachKeys"], "x");
        assert_eq!(kept["auths"]["https://index.docker.io/v1/"]["auth"], "YW5uOnNlY3JldA==");
        assert!(forget(&path, "docker.io").unwrap());
        assert!(!forget(&path, "docker.io").unwrap());
        assert_eq!(json_of(&path), other);
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, real) = (dir.path().join("config.json"), dir.path().join("real.json"));
        fs::write(&real, "{}").unwrap();
        std::os::unix::fs::symlink(&real, &path).unwrap();
        keep(&path, "r.example", "ann", "secret").unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(json_of(&real)["auths"]["r.example"].is_object());
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["[", "[]", r#"{"auths": 7}"#] {
            fs::write(&path, text).unwrap();
            let error = keep(&path, "r.example", "ann", "secret").unwrap_err();
            assert!(matches!(error, KeyringError::Form { .. }), "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, r#"{"credHelpers": {"r.example": "that-is-nowhere"}}"#).unwrap();
        let error = keep(&path, "r.example", "ann", "secret").unwrap_err().to_string();
        assert!(error.contains("docker-credential-that-is-nowhere"), "{error}");
    }
}
