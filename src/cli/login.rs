//! `supervisor login` and `supervisor logout`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use super::settings::Settings;
use super::signals::Signals;
use super::{connect, output, run};
use crate::registry::keyring::{self, Keeper};
use crate::registry::{Client, FetchErrorKind, Welcome};

/// Arguments of `login`.
#[derive(Debug, Args)]
pub(super) struct LoginArguments {
    /// Name at the registry (asked for on a terminal)
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Registry, with its port
    #[arg(value_name = "HOST", default_value = "docker.io")]
    host: String,
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
pub(super) struct LogoutArguments {
    /// Registry, with its port
    #[arg(value_name = "HOST", default_value = "docker.io")]
    host: String,
}

pub(super) fn log_in(settings: &Settings, arguments: &LoginArguments) -> anyhow::Result<ExitCode> {
    let (host, file) = (registry(&arguments.host)?, file(settings)?);
    let user = match &arguments.username {
        Some(user) => user.clone(),
        None if arguments.password_stdin => bail!("give the name too: --username NAME"),
        None => ask("Username: ")?,
    };
    if user.is_empty() || user.contains(':') {
        bail!("a name is not empty and has no colon in it");
    }
    let password = if arguments.password_stdin {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("could not read the password")?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        let question = format!("Password of `{user}` at `{host}`: ");
        connect::runtime()?.block_on(ask_in_secret(question))?
    };
    if password.is_empty() {
        bail!("the password is empty");
    }
    let client = Client::new(run::registry(settings))?;
    let welcome = connect::runtime()?.block_on(client.check_login(&host, &user, &password));
    let welcome = match welcome {
        Ok(welcome) => welcome,
        Err(error) => {
            let is_refused = error.kind() == FetchErrorKind::Unauthorized;
            let remedy = if is_refused { "check name and password; " } else { "" };
            output::failure(
                &format!("could not log in at `{host}`: {}", error.reason()),
                Some(&format!("{remedy}nothing was kept")),
            );
            return Ok(ExitCode::FAILURE);
        }
    };
    let keeper = keyring::keep(file, &host, &user, &password)?;
    let kept = match keeper {
        Keeper::File(path) => format!("in `{}`, which only its owner can read", path.display()),
        Keeper::Helper(program) => format!("by `{program}`"),
    };
    match welcome {
        Welcome::Known => output::line(&format!("`{user}` is logged in at `{host}`; kept {kept}")),
        Welcome::NotAsked => output::line(&format!(
            "`{host}` lets everybody in, so nobody has checked the password; kept {kept}"
        )),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn log_out(
    settings: &Settings,
    arguments: &LogoutArguments,
) -> anyhow::Result<ExitCode> {
    let host = registry(&arguments.host)?;
    if keyring::forget(file(settings)?, &host)? {
        output::line(&format!("the login at `{host}` is forgotten"));
    } else {
        output::line(&format!("there was no login at `{host}`"));
    }
    Ok(ExitCode::SUCCESS)
}

fn file(settings: &Settings) -> anyhow::Result<&Path> {
    let none = "there is no place for logins: set HOME or DOCKER_CONFIG";
    settings.docker_config.as_deref().context(none)
}

/// The host that was meant: people paste addresses.
fn registry(given: &str) -> anyhow::Result<String> {
    let host = given.strip_prefix("https://").or_else(|| given.strip_prefix("http://"));
    let host = host.unwrap_or(given).trim_end_matches('/');
    let host = host.strip_suffix("/v2").or_else(|| host.strip_suffix("/v1")).unwrap_or(host);
    Ok(match host {
        "index.docker.io" | "registry-1.docker.io" | "hub.docker.com" => "docker.io".to_owned(),
        host if host.is_empty() || host.contains(['/', '@', ' ']) => {
            bail!("`{given}` is no registry: give its host, and its port if it has one")
        }
        host => host.to_owned(),
    })
}

fn ask(question: &str) -> anyhow::Result<String> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask: give --username NAME and --password-stdin");
    }
    let mut out = io::stderr();
    out.write_all(question.as_bytes())?;
    out.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks without showing what is typed; an error when a signal ends it. The terminal is as it was then.
async fn ask_in_secret(question: String) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)
        .context("there is no terminal to ask: give the password with --password-stdin")?;
    let mut signals = Signals::new()?;
    let mut silent = before.clone();
    // The end of the line is still shown.
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let (sender, answer) = tokio::sync::oneshot::channel();
    // Not one of the runtime's: nobody waits for it when a signal comes.
    std::thread::spawn(move || sender.send(ask(&question)));
    let answer = tokio::select! {
        // Both only wait.
        answer = answer => answer.map_err(anyhow::Error::from).flatten(),
        _ = signals.next() => Err(anyhow::anyhow!("interrupted; nothing was kept")),
    };
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_taken_as_people_give_them() {
        for (given, host) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("r.example:5000", "r.example:5000"),
            ("http://r.example:5000/v2/", "r.example:5000"),
        ] {
            assert_eq!(registry(given).unwrap(), host);
        }
        for given in ["", "r.example/app", "ann@r.example", "a b"] {
            assert!(registry(given).is_err(), "{given}");
        }
    }
}
