//! Debian's `docker-registry` on a loopback port, filled by `skopeo`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The user of a registry with a password.
pub(crate) const USER: &str = "ann";
/// The user's password.
pub(crate) const PASSWORD: &str = "secret";
/// The password as `htpasswd -B` writes it, the only kind that the registry takes.
const PASSWORD_HASH: &str = "$2y$04$aivu9xF0NBSlV7ktPgavEezTKIg8mqVwuycjJtdhn/wiekeFenmv.";

/// A running registry with storage in a folder of its own; both go when it is dropped.
pub(crate) struct DockerRegistry {
    child: Child,
    host: String,
    _folder: tempfile::TempDir,
}

impl DockerRegistry {
    /// Starts a registry that is open to everybody, and waits until it listens.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(folder, "")
    }

    /// The same for [`USER`] with [`PASSWORD`] only.
    pub(crate) fn start_with_password() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let users = folder.path().join("htpasswd");
        std::fs::write(&users, format!("{USER}:{PASSWORD_HASH}\n")).expect("a file of users");
        let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display());
        Self::start_in(folder, &auth)
    }

    fn start_in(folder: tempfile::TempDir, auth: &str) -> Self {
        // The registry prints the port that the kernel chose, but only on the level `info`.
        let config = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: json\n  accesslog:\n    disabled: true\n\
             storage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{auth}",
            folder.path().join("data").display()
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).expect("a configuration file");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("`docker-registry` runs (Debian package docker-registry)");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let host = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on ")?;
                let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'))?;
                Some(rest[..end].to_owned())
            })
            .expect("the registry says where it listens");
        // A full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, host, _folder: folder }
    }

    /// Host and port, for references.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Copies an image from a layout folder, unchanged; `name` is `repository:tag`.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) {
        self.copy(layout, tag, name, &["--preserve-digests"]);
    }

    /// Copies an image and turns it into one of Docker's media types.
    pub(crate) fn push_as_docker(&self, layout: &Path, tag: &str, name: &str) {
        self.copy(layout, tag, name, &["--format", "v2s2"]);
    }

    /// Copies an image with options of `skopeo copy`.
    pub(crate) fn copy(&self, layout: &Path, tag: &str, name: &str, options: &[&str]) {
        let status = Command::new("skopeo")
            // A host without a signature policy of its own is the normal case in tests.
            .args(["--insecure-policy", "copy", "--quiet"])
            .args(options)
            .arg("--dest-tls-verify=false")
            .arg(format!("--dest-creds={USER}:{PASSWORD}"))
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{name}", self.host))
            .status()
            .expect("`skopeo` runs (Debian package skopeo)");
        assert!(status.success(), "skopeo could not push to {}/{name}", self.host);
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
