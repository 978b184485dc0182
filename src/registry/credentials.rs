//! Credentials as docker's `config.json` holds them: in the file, or behind a credential helper.
//!
//! Read again each time they are needed: they are rotated while we run.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};

/// A helper may ask a cloud service; one that waits for a person will never be answered.
const HELPER_PATIENCE: Duration = Duration::from_secs(30);

/// How to tell a registry who we are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A user with a password or access token.
    Password { user: String, password: String },
    /// Exchanged for access tokens at the registry's token server.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

/// What was found for a host.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) credential: Option<Credential>,
    /// Why something that is configured could not be used. We go on without it, because the image may be public,
    /// and show this when it is not.
    pub(super) problem: Option<String>,
}

/// Looks for credentials of `host` in the file `config`.
pub(super) async fn find(config: Option<&Path>, host: &str) -> Found {
    let Some(config) = config.map(Path::to_owned) else {
        return Found::default();
    };
    let host = host.to_owned();
    let shown = config.display().to_string();
    let lookup = tokio::task::spawn_blocking(move || look_up(&config, &host));
    match tokio::time::timeout(HELPER_PATIENCE, lookup).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => problem(format!("reading `{shown}` panicked")),
        Err(_) => problem(format!("a credential helper of `{shown}` did not answer in time")),
    }
}

fn problem(problem: String) -> Found {
    tracing::warn!(problem, "credentials are left out");
    Found { credential: None, problem: Some(problem) }
}

fn look_up(config: &Path, host: &str) -> Found {
    // Docker stores its hub's credentials under the address of an interface that nothing else uses.
    let names: &[&str] = match host {
        "docker.io" => &["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"],
        host => &[host],
    };
    for name in names {
        let file = match File::open(config) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Found::default(),
            Err(error) => return problem(format!("`{}`: {error}", config.display())),
        };
        match docker_credential::get_credential_from_reader(BufReader::new(file), name) {
            Ok(DockerCredential::IdentityToken(token)) => {
                let credential = Some(Credential::IdentityToken(token));
                return Found { credential, problem: None };
            }
            Ok(DockerCredential::UsernamePassword(user, password)) => {
                let credential = Some(Credential::Password { user, password });
                return Found { credential, problem: None };
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            // Helpers have no other way to say that they know nothing.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains("credentials not found") => {}
            Err(CredentialRetrievalError::HelperFailure { helper, stdout, .. }) => {
                let said: String = stdout.trim().chars().take(200).collect();
                return problem(format!("`{helper}` failed: {said}"));
            }
            Err(error) => return problem(format!("`{}`: {error}", config.display())),
        }
    }
    Found::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(json: &str, host: &str) -> Found {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        look_up(&path, host)
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn passwords_and_identity_tokens_are_found_by_host() {
        // base64 of `ann:secret`.
        let json = r#"{"auths":{"r.example:5000":{"auth":"YW5uOnNlY3JldA=="},
            "https://index.docker.io/v1/":{"auth":"YW5uOnNlY3JldA=="},"t.example":{"identitytoken":"tok"}}}"#;
        assert!(look(json, "r.example:5000").credential == password("ann", "secret"));
        assert!(look(json, "docker.io").credential == password("ann", "secret"));
        assert!(
            look(json, "t.example").credential == Some(Credential::IdentityToken("tok".to_owned()))
        );
        assert!(look(json, "other.example").credential.is_none());
    }

    #[test]
    fn an_unusable_file_is_a_problem_and_a_missing_one_is_not() {
        assert!(look("{", "r.example").problem.is_some());
        let helper = r#"{"credsStore":"does-not-exist-anywhere"}"#;
        assert!(look(helper, "r.example").problem.is_some());
        let found = look_up(Path::new("/nonexistent/config.json"), "r.example");
        assert!(found.problem.is_none() && found.credential.is_none());
    }
}
