//! `supervisor man`: one manual page per command, from the same text as `--help`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

use super::args::Arguments;

/// `man`.
#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// Write one page per command into this directory (default: the main page to standard output)
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
}

/// For commands whose help shows no examples: lines of a shell and what they do.
const EXAMPLES: [(&str, &[(&str, &str)]); 7] = [
    (
        "ps",
        &[
            ("supervisor ps", "What runs here."),
            ("supervisor ps --format json", "The same, one JSON object a line."),
        ],
    ),
    (
        "exec",
        &[
            ("supervisor exec web -- sh", "A shell in the running service web."),
            (
                "supervisor exec -T -u 1000 db -- pg_dump app > app.sql",
                "A command without a terminal, as another user.",
            ),
        ],
    ),
    (
        "pull",
        &[
            ("supervisor pull registry.example/team/web:1.2", "Make the image ready to start."),
            ("supervisor pull --full oci:./image", "Bring all of its content."),
        ],
    ),
    ("images", &[("supervisor images", "What is here, and how much of it.")]),
    ("image mount", &[("supervisor image mount oci:./image /mnt", "See the files of an image.")]),
    ("image umount", &[("supervisor image umount /mnt", "Undo that.")]),
    ("version", &[("supervisor version", "Which version this is.")]),
];

pub(super) fn run(arguments: &ManArguments) -> anyhow::Result<ExitCode> {
    match &arguments.dir {
        Some(dir) => write(dir)
            .with_context(|| format!("could not write manual pages to `{}`", dir.display()))
            .map(drop)?,
        None => {
            let mut command = built();
            command = command.disable_help_subcommand(true);
            io::stdout().lock().write_all(&page(&command, "")?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a page for the program and for each of its visible commands into `dir`, which is made; returns their names
/// (`supervisor.1`, `supervisor-image-pack.1`).
///
/// # Errors
/// Those of the file system.
pub fn write(dir: &Path) -> io::Result<Vec<String>> {
    fs::create_dir_all(dir)?;
    let mut names = Vec::new();
    write_all(&built(), "", dir, &mut names)?;
    Ok(names)
}

/// With global flags in every command, as they can be given there.
fn built() -> Command {
    let mut command = Arguments::command();
    command.build();
    command
}

fn write_all(command: &Command, path: &str, dir: &Path, names: &mut Vec<String>) -> io::Result<()> {
    let name = file_name(path);
    fs::write(dir.join(&name), page(command, path)?)?;
    names.push(name);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let path = format!("{path} {}", sub.get_name());
        write_all(sub, path.trim_start(), dir, names)?;
    }
    Ok(())
}

fn file_name(path: &str) -> String {
    let words = std::iter::once("supervisor").chain(path.split_whitespace());
    format!("{}.1", words.collect::<Vec<_>>().join("-"))
}

fn page(command: &Command, path: &str) -> io::Result<Vec<u8>> {
    let title = file_name(path);
    let title = title.trim_end_matches(".1");
    let shown = command.clone().name(title.to_owned()).display_name(title.to_owned());
    // The date stays out, so that the same program writes the same pages.
    let man = Man::new(shown).source(format!("supervisor {}", crate::version::versions().build));
    let mut out = Vec::new();
    man.render(&mut out)?;
    let examples = EXAMPLES.iter().find(|(name, _)| *name == path);
    let mut roff = Roff::new();
    if let Some((_, examples)) = examples {
        roff.control("SH", ["EXAMPLES"]);
        for (line, what) in *examples {
            roff.control("TP", []);
            roff.text([bold(*line)]);
            roff.text([roman(*what)]);
        }
    }
    if !path.is_empty() {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([bold("supervisor"), Inline::Roman("(1)".to_owned())]);
    }
    roff.to_writer(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn visible(command: &Command, path: &str, all: &mut Vec<String>) {
        all.push(path.to_owned());
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            visible(sub, format!("{path} {}", sub.get_name()).trim(), all);
        }
    }

    #[test]
    fn every_visible_command_has_a_page_that_says_what_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let names = write(&dir.path().join("man1")).unwrap();
        let mut commands = Vec::new();
        visible(&built(), "", &mut commands);
        assert_eq!(names, commands.iter().map(|path| file_name(path)).collect::<Vec<_>>());
        assert!(names.contains(&"supervisor-image-pack.1".to_owned()), "{names:?}");
        for name in names {
            let text = fs::read_to_string(dir.path().join("man1").join(&name)).unwrap();
            for section in [".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH OPTIONS"] {
                assert!(text.contains(section), "{name}: {section}\n{text}");
            }
            assert!(text.contains("run\\-dir"), "{name} lacks the global flags");
        }
    }

    #[test]
    fn examples_can_be_typed() {
        let command = built();
        for (path, lines) in EXAMPLES {
            let mut at = &command;
            for word in path.split(' ') {
                at = at.find_subcommand(word).unwrap_or_else(|| panic!("no command `{path}`"));
            }
            assert!(at.get_after_help().is_none(), "the help of `{path}` has its own examples");
            for (line, _) in lines {
                let words = line.split(' ').take_while(|word| *word != ">");
                let parsed = Arguments::try_parse_from(words);
                assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
            }
        }
    }
}
