//! How checks are shown to people: aligned, wrapped at the width of the terminal, with a summary.

use anstyle::{AnsiColor, Style};

use crate::doctor::{Check, Health};

/// A label that is longer gets a line of its own.
const LABEL_WIDTH: usize = 18;
/// A terminal that is narrower wraps by itself.
const LEAST_WIDTH: usize = 50;

/// Checks as people read them.
pub(super) struct Shown<'a> {
    checks: &'a [Check],
    label: usize,
}

impl<'a> Shown<'a> {
    pub(super) fn of(checks: &'a [Check]) -> Self {
        let widths = checks.iter().map(|check| label(check).chars().count());
        let label = widths.filter(|width| *width <= LABEL_WIDTH).max().unwrap_or(0);
        Self { checks, label }
    }

    /// One line each, without its end; styled. Nothing is broken beyond `width` columns but long words.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        // Mark and label, each with what follows it.
        let column = 2 + self.label + 2;
        let room = width.max(LEAST_WIDTH).saturating_sub(column);
        let indent = " ".repeat(column);
        let mut lines = Vec::new();
        for check in self.checks {
            let (mark, colour) = match check.health {
                Health::Ok => ("✔", AnsiColor::Green),
                Health::Degraded => ("!", AnsiColor::Yellow),
                Health::Failed => ("✘", AnsiColor::Red),
            };
            let style: Style = colour.on_default().bold();
            let (label, room_for_label) = (label(check), self.label);
            let mut message = wrapped(&check.message, room).into_iter();
            let mut first = format!("{style}{mark}{style:#} {label:room_for_label$}");
            if label.chars().count() <= self.label {
                first = format!("{first}  {}", message.next().unwrap_or_default());
            }
            lines.push(first);
            lines.extend(message.map(|text| format!("{indent}{text}")));
            let remedy = check.remedy.as_deref().map(|text| wrapped(text, room.saturating_sub(2)));
            for (number, text) in remedy.into_iter().flatten().enumerate() {
                let arrow = if number == 0 { "→" } else { " " };
                lines.push(format!("{indent}{arrow} {text}"));
            }
        }
        lines.push(self.summary());
        lines
    }

    fn summary(&self) -> String {
        let count = |health| self.checks.iter().filter(|check| check.health == health).count();
        match (count(Health::Failed), count(Health::Degraded)) {
            (0, 0) => "healthy".to_owned(),
            (0, 1) => "healthy, with 1 thing degraded".to_owned(),
            (0, degraded) => format!("healthy, with {degraded} things degraded"),
            (failed, 0) => format!("{failed} failed"),
            (failed, degraded) => format!("{failed} failed, {degraded} degraded"),
        }
    }
}

fn label(check: &Check) -> String {
    match &check.subject {
        Some(subject) => format!("{} {subject}", check.name),
        None => check.name.clone(),
    }
}

/// Broken between words; a word that is longer than `width` stays whole, so that it can be copied.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        // What is drawn with spaces (a mark below a place in a file) stays below it.
        let text = paragraph.trim_start_matches(' ');
        let mut line = " ".repeat(paragraph.len() - text.len());
        let mut length = line.len();
        let mut is_first = true;
        for word in text.split(' ') {
            let word_length = word.chars().count();
            if !is_first && length + 1 + word_length > width {
                lines.push(std::mem::take(&mut line));
                length = 0;
            } else if !is_first {
                line.push(' ');
                length += 1;
            }
            is_first = false;
            line.push_str(word);
            length += word_length;
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, health: Health, message: &str) -> Check {
        let (name, message) = (name.to_owned(), message.to_owned());
        Check { name, subject: None, health, message, remedy: None }
    }

    fn checks() -> Vec<Check> {
        let registry = Check {
            name: "registry".to_owned(),
            subject: Some("registry.example:5000".to_owned()),
            health: Health::Failed,
            message: "the connection was refused".to_owned(),
            remedy: Some(
                "check that the registry at `registry.example:5000` runs and is reached".to_owned(),
            ),
        };
        vec![check("kernel", Health::Ok, "Linux 6.9.0"), registry]
    }

    fn plain(checks: &[Check], width: usize) -> String {
        let styled = Shown::of(checks).lines(width).join("\n");
        anstream::adapter::strip_str(&styled).to_string()
    }

    #[test]
    fn a_narrow_terminal_gets_aligned_lines_and_nothing_is_cut() {
        insta::assert_snapshot!(plain(&checks(), 50), @r"
        ✔ kernel  Linux 6.9.0
        ✘ registry registry.example:5000
                  the connection was refused
                  → check that the registry at
                    `registry.example:5000` runs and is
                    reached
        1 failed
        ");
    }

    #[test]
    fn without_a_terminal_each_text_is_one_line() {
        let shown = plain(&checks(), usize::MAX);
        assert_eq!(shown.lines().count(), 5, "{shown}");
        assert!(shown.contains("→ check that the registry at `registry.example:5000` runs and is"));
    }

    #[test]
    fn what_is_degraded_is_counted() {
        let degraded = || check("fuse", Health::Degraded, "it is switched off");
        assert_eq!(Shown::of(&[]).summary(), "healthy");
        assert_eq!(Shown::of(&[degraded()]).summary(), "healthy, with 1 thing degraded");
        assert_eq!(
            Shown::of(&[degraded(), degraded()]).summary(),
            "healthy, with 2 things degraded"
        );
    }

    #[test]
    fn lines_and_long_words_stay_as_they_are() {
        assert_eq!(wrapped("one two\n  three", 4), ["one", "two", "  three"]);
        assert_eq!(wrapped("a bb `/a/long/path/here` c", 6), ["a bb", "`/a/long/path/here`", "c"]);
        assert_eq!(wrapped("", 6), Vec::<String>::new());
    }
}
