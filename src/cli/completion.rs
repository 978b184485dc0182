//! `supervisor completion`: scripts that complete commands, flags and the names of services.
//!
//! What clap generates knows nothing of services; names are asked for with `completion --services`, which prints
//! those of a control that runs and starts none.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{Shell as Generator, generate};

use super::args::Arguments;
use super::settings::Settings;
use super::{connect, output, project};

const EXAMPLES: &str = "\
Examples:
  supervisor completion bash > /usr/share/bash-completion/completions/supervisor
  supervisor completion zsh > /usr/local/share/zsh/site-functions/_supervisor
  supervisor completion fish > ~/.config/fish/completions/supervisor.fish";

/// `completion`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompletionArguments {
    /// For which shell
    #[arg(value_name = "SHELL", required_unless_present = "services")]
    pub(super) shell: Option<Shell>,
    /// Print the names of services instead
    #[arg(long, hide = true)]
    pub(super) services: bool,
}

/// A shell that can complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// fish.
    Fish,
}

impl Shell {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bash, Self::Zsh, Self::Fish];

    /// Name of the file that the shell looks for.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Bash => "supervisor",
            Self::Zsh => "_supervisor",
            Self::Fish => "supervisor.fish",
        }
    }
}

pub(super) fn run(
    settings: &Settings,
    arguments: &CompletionArguments,
) -> anyhow::Result<ExitCode> {
    match arguments.shell {
        Some(shell) if !arguments.services => write(shell, &mut io::stdout().lock())?,
        _ => print_services(settings),
    }
    Ok(ExitCode::SUCCESS)
}

/// Whatever goes wrong, somebody has only pressed the tabulator: nothing is said.
fn print_services(settings: &Settings) {
    let Ok(runtime) = connect::runtime() else { return };
    let reports = runtime.block_on(async {
        let client = connect::connect(settings).await.ok()??;
        project::reports(&client, None).await.ok()
    });
    let mut names: Vec<String> =
        reports.unwrap_or_default().into_iter().map(|report| report.service).collect();
    names.sort();
    names.dedup();
    for name in names {
        output::line(&name);
    }
}

/// Writes the script for `shell`.
///
/// # Errors
/// Those of `out`.
pub fn write(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut command = Arguments::command();
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    // The generator panics where its writer fails.
    let mut script = Vec::new();
    generate(generator, &mut command, "supervisor", &mut script);
    let script = String::from_utf8_lossy(&script);
    let names = takers(&command);
    let script = match shell {
        Shell::Bash => format!("{script}\n{}", bash(&names)),
        Shell::Zsh => zsh(&script),
        Shell::Fish => format!("{script}\n{}", fish(&names)),
    };
    out.write_all(script.as_bytes())
}

/// Commands that take names of services.
fn takers(command: &clap::Command) -> Vec<String> {
    let takes = |command: &&clap::Command| {
        command.get_positionals().any(|argument| {
            let names = argument.get_value_names().unwrap_or_default();
            names.iter().any(|name| name.contains("SERVICE"))
        })
    };
    let visible = command.get_subcommands().filter(|command| !command.is_hide_set());
    visible.filter(takes).map(|command| command.get_name().to_owned()).collect()
}

/// Around the generated function: names first, where the word can be one.
fn bash(names: &[String]) -> String {
    format!(
        r#"_supervisor_or_services() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="" each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$each" in
            -*) ;;
            *) command="$each"; break ;;
        esac
    done
    case "$command" in
        {})
            if [[ "$word" != -* && "${{COMP_WORDS[COMP_CWORD-1]}}" != -* ]]; then
                COMPREPLY=($(compgen -W "$(supervisor completion --services 2>/dev/null)" -- "$word"))
                [[ ${{#COMPREPLY[@]}} -gt 0 ]] && return 0
            fi
            ;;
    esac
    _supervisor "$@"
}}
complete -F _supervisor_or_services -o bashdefault -o default supervisor
"#,
        names.join("|")
    )
}

/// In the generated function: names of services in place of files.
fn zsh(script: &str) -> String {
    let function = "_supervisor_services() {\n    local -a names\n    \
        names=(${(f)\"$(supervisor completion --services 2>/dev/null)\"})\n    compadd -a names\n}\n";
    let mut out = String::with_capacity(script.len() + 1024);
    for (number, line) in script.lines().enumerate() {
        let is_service = ["service", "services", "targets"].iter().any(|name| {
            line.contains(&format!(":{name} -- ")) || line.contains(&format!(":{name}:"))
        });
        if is_service {
            out.push_str(&line.replace(":_default'", ":_supervisor_services'"));
        } else {
            out.push_str(line);
        }
        out.push('\n');
        // `#compdef` must be the first line.
        if number == 0 {
            out.push('\n');
            out.push_str(function);
        }
    }
    out
}

fn fish(names: &[String]) -> String {
    format!(
        "complete -c supervisor -n \"__fish_seen_subcommand_from {}\" -f -a \"(supervisor completion --services 2>/dev/null)\"\n",
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(shell: Shell) -> String {
        let mut out = Vec::new();
        write(shell, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_visible_command_is_completed_in_every_shell() {
        let command = Arguments::command();
        for shell in Shell::ALL {
            let script = script(shell);
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{shell:?}: {}", command.get_name());
            }
            assert!(script.contains("completion --services"), "{shell:?}");
        }
    }

    #[test]
    fn names_of_services_are_completed_where_they_belong() {
        let names = takers(&Arguments::command());
        assert!(names.iter().any(|name| name == "logs") && names.iter().any(|name| name == "exec"));
        assert!(names.iter().all(|name| name != "pull" && name != "version"));
        let zsh = script(Shell::Zsh);
        assert!(zsh.starts_with("#compdef supervisor\n"));
        assert!(zsh.matches(":_supervisor_services'").count() >= names.len(), "{zsh}");
    }

    #[test]
    fn a_writer_that_fails_is_an_error() {
        let mut full: &mut [u8] = &mut [0; 10];
        assert!(write(Shell::Bash, &mut full).is_err());
    }
}
