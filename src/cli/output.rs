//! Printing: lines, lists, errors with their hints. Colours and widths follow what is at the other end.

use std::io::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};

use crate::api::ClientError;

const BOLD_RED: Style = AnsiColor::Red.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();

/// One line on standard output. A reader that has gone away is no error.
pub(super) fn line(text: &str) {
    let _ = writeln!(anstream::stdout(), "{text}");
}

/// Text on standard output as it is.
pub(super) fn bare(text: &str) {
    let _ = write!(std::io::stdout(), "{text}");
}

/// One line on standard error. That it cannot be written (the terminal has gone, the disk is full) must not end the
/// one who says it: `up` is control.
fn say(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A remark for people on standard error.
pub(super) fn note(text: &str) {
    say(text);
}

/// Something that was done.
pub(super) fn done(text: &str) {
    say(&format!(" {GREEN}✔{GREEN:#} {text}"));
}

/// What became of some containers.
pub(super) fn became(containers: &[String], what: &str) {
    for container in containers {
        done(&format!("Container {container}  {what}"));
    }
}

/// What became of the containers of a project.
pub(super) fn containers(project: &str, containers: &[String], what: &str) {
    became(containers, what);
    if containers.is_empty() {
        note(&format!("there is no container in project `{project}`"));
    }
}

/// Something that works less well than it might.
pub(super) fn warning(text: &str) {
    say(&format!("{YELLOW}warning{YELLOW:#}: {text}"));
}

/// An error with everything that caused it, and what to do about it.
pub(super) fn error(error: &anyhow::Error) {
    let chain: &(dyn std::error::Error + 'static) = error.as_ref();
    say(&format!("{BOLD_RED}error{BOLD_RED:#}: {}", crate::telemetry::Chain(chain)));
    let hint = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ClientError>()?.hint().map(str::to_owned));
    if let Some(text) = hint {
        self::hint(&text);
    }
}

/// What to do about what was said before.
pub(super) fn hint(text: &str) {
    say(&format!(" {CYAN}hint{CYAN:#}: {text}"));
}

/// A failure that does not end the command.
pub(super) fn failure(message: &str, hint: Option<&str>) {
    say(&format!("{BOLD_RED}error{BOLD_RED:#}: {message}"));
    if let Some(text) = hint {
        self::hint(text);
    }
}

/// Columns of the terminal that standard output is; `None` when it is none.
fn columns() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// The same, for counting characters.
pub(super) fn width() -> Option<usize> {
    columns().map(usize::from)
}

/// Columns with a heading, cut to the terminal's width; whole when nobody looks.
pub(super) fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = columns() {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    table.set_header(heading.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    for text in table.lines() {
        line(text.trim_end());
    }
}

/// A share of one as a percentage; only what is whole is called 100%.
pub(super) fn percent(share: f64) -> String {
    if share >= 1.0 { "100%".to_owned() } else { format!("{:.0}%", (share * 100.0).floor()) }
}

/// Bytes with a decimal unit, as registries and other tools show sizes.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let (mut scaled, mut unit) = (count / 100, 0);
    // `scaled` is in tenths of the unit, so that no float is needed.
    while scaled >= 10_000 && unit + 1 < UNITS.len() {
        scaled /= 1000;
        unit += 1;
    }
    if scaled >= 1000 {
        format!("{} {}", scaled / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", scaled / 10, scaled % 10, UNITS[unit])
    }
}

/// A span of time in its largest unit, as `ps` of other tools has it.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (count, unit) = match seconds {
        0 => return "Less than a second".to_owned(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        _ => (seconds / 604_800, "week"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// Time since `then`, zero if the clock was set back meanwhile.
pub(super) fn since(then: jiff::Timestamp) -> Duration {
    Duration::try_from(jiff::Timestamp::now().duration_since(then)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_at_most() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (123_456, "123 kB"),
            (7_400_000, "7.4 MB"),
            (2_000_000_000, "2.0 GB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn almost_all_is_not_all() {
        assert_eq!(
            (percent(0.9999), percent(1.0), percent(0.0)),
            ("99%".to_owned(), "100%".to_owned(), "0%".to_owned())
        );
    }

    #[test]
    fn spans_use_the_largest_unit() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "1 minute"),
            (7200, "2 hours"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
