//! Log lines as people see them: `web-1  | text`. Shared by `logs` and an attached `up`.

use std::collections::HashMap;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::project;
use crate::api::{ApiClient, LogLine};

/// Compose's, in its order.
const COLOURS: [AnsiColor; 10] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightYellow,
    AnsiColor::BrightGreen,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightBlue,
];

/// What is shown of a line besides its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    /// Name of the container.
    pub(super) prefix: bool,
    /// When it was written.
    pub(super) timestamps: bool,
    /// The name in a colour of its own.
    pub(super) colour: bool,
}

impl Default for Shown {
    /// Names, in colours where somebody sees them.
    fn default() -> Self {
        let choice = anstream::AutoStream::choice(&io::stdout());
        Self { prefix: true, timestamps: false, colour: choice != anstream::ColorChoice::Never }
    }
}

/// Prints log lines to standard output.
///
/// What a container wrote is passed on as it is, its own colours too; only ours depend on what is at the other end.
#[derive(Debug, Default)]
pub(super) struct Printer {
    shown: Shown,
    styles: HashMap<String, Style>,
    width: usize,
    /// Whose line goes on: it was longer than an entry of the log can be.
    open: Option<(String, String)>,
}

impl Printer {
    pub(super) fn new(shown: Shown) -> Self {
        Self { shown, ..Self::default() }
    }

    /// Makes room for the names of a project's containers, so that all lines begin in the same column.
    pub(super) async fn learn(&mut self, client: &ApiClient, project: &str, services: &[String]) {
        for report in project::reports(client, Some(project)).await.unwrap_or_default() {
            if services.is_empty() || services.contains(&report.service) {
                self.width = self.width.max(report.service.len() + "-1".len());
            }
        }
    }

    /// Prints one line; fails when nobody reads.
    pub(super) fn print(&mut self, line: &LogLine) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(line.text.len() + 64);
        self.write(&mut bytes, line)?;
        io::stdout().lock().write_all(&bytes)
    }

    /// Ends a line that goes on nowhere.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.open.take().is_some() { io::stdout().lock().write_all(b"\n") } else { Ok(()) }
    }

    fn write(&mut self, out: &mut impl Write, line: &LogLine) -> io::Result<()> {
        let next = COLOURS[self.styles.len() % COLOURS.len()].on_default();
        let style = *self.styles.entry(line.container.clone()).or_insert(next);
        self.width = self.width.max(line.container.len());
        let source = (line.container.clone(), line.stream.clone());
        if self.open.as_ref() != Some(&source) {
            if self.open.take().is_some() {
                out.write_all(b"\n")?;
            }
            let width = self.width;
            match self.shown {
                Shown { prefix: false, .. } => {}
                Shown { colour: true, .. } => {
                    write!(out, "{style}{:width$}  | {style:#}", line.container)?;
                }
                Shown { colour: false, .. } => write!(out, "{:width$}  | ", line.container)?,
            }
            if self.shown.timestamps {
                write!(out, "{:.9} ", line.time)?;
            }
        }
        out.write_all(line.text.as_bytes())?;
        if line.partial {
            self.open = Some(source);
            return Ok(());
        }
        self.open = None;
        out.write_all(b"\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(container: &str, text: &str) -> LogLine {
        LogLine {
            container: container.to_owned(),
            service: container.to_owned(),
            stream: "stdout".to_owned(),
            time: "2026-01-02T03:04:05.6Z".parse().unwrap(),
            text: text.to_owned(),
            partial: false,
        }
    }

    fn printed(shown: Shown, lines: &[LogLine]) -> String {
        let mut printer = Printer::new(shown);
        let mut out = Vec::new();
        for line in lines {
            printer.write(&mut out, line).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    const PLAIN: Shown = Shown { prefix: true, timestamps: false, colour: false };

    #[test]
    fn names_are_padded_and_coloured_as_in_compose() {
        let lines = [line("worker-1", "a"), line("db-1", "b"), line("worker-1", "")];
        assert_eq!(printed(PLAIN, &lines), "worker-1  | a\ndb-1      | b\nworker-1  | \n");
        let coloured = printed(Shown { colour: true, ..PLAIN }, &lines);
        assert!(
            coloured.starts_with("\u{1b}[36mworker-1  | \u{1b}[0ma\n\u{1b}[33mdb-1"),
            "{coloured:?}"
        );
        let bare = Shown { prefix: false, timestamps: true, colour: true };
        assert_eq!(printed(bare, &lines[..1]), "2026-01-02T03:04:05.600000000Z a\n");
        // The container's own colours are its own business.
        let own = [line("a", "\u{1b}[31mred\u{1b}[0m\r50%")];
        assert_eq!(printed(PLAIN, &own), "a  | \u{1b}[31mred\u{1b}[0m\r50%\n");
    }

    #[test]
    fn pieces_of_a_long_line_are_put_together() {
        let piece =
            |container: &str, text: &str| LogLine { partial: true, ..line(container, text) };
        let lines = [piece("a", "one "), piece("a", "two "), line("a", "three"), line("a", "next")];
        assert_eq!(printed(PLAIN, &lines), "a  | one two three\na  | next\n");
        let mixed = [piece("a", "one "), line("b", "between"), line("a", "two")];
        assert_eq!(printed(PLAIN, &mixed), "a  | one \nb  | between\na  | two\n");
    }
}
