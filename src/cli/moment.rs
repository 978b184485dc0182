//! Moments as people type them: `10m` (ago), a date, a time, seconds since 1970.

use anyhow::{Context as _, bail};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// Reads the value of an option; times without a zone are in the one of this host.
pub(super) fn parse(text: &str) -> anyhow::Result<Timestamp> {
    read(text, Timestamp::now(), &TimeZone::system())
}

fn read(text: &str, now: Timestamp, zone: &TimeZone) -> anyhow::Result<Timestamp> {
    let text = text.trim();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if is_number(whole) && is_number(fraction) {
        let nanos = format!("{:0<9.9}", fraction).parse::<i32>()?;
        let seconds = whole.parse::<i64>().ok();
        return seconds
            .and_then(|seconds| Timestamp::new(seconds, nanos).ok())
            .with_context(|| format!("`{text}` is no moment that can be written"));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local = text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from));
    if let Ok(local) = local {
        return Ok(zone.to_timestamp(local)?);
    }
    if let Some(ago) = duration(text) {
        return now
            .checked_sub(ago)
            .with_context(|| format!("`{text}` ago is before the beginning of time"));
    }
    bail!(
        "`{text}` is no moment; write for example `10m`, `2026-01-31`, `2026-01-31T08:00:00Z` or `1769846400`"
    )
}

fn duration(text: &str) -> Option<SignedDuration> {
    if !text.starts_with(|c: char| c.is_ascii_digit()) || text.contains("ago") {
        return None;
    }
    let span: Span = text.parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::Arguments;

    #[test]
    fn moments_are_read_as_docker_reads_them() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(5));
        let read = |text| read(text, now, &zone);
        for (text, expected) in [
            ("10m", "2026-01-31T11:50:00Z"),
            ("1h30m", "2026-01-31T10:30:00Z"),
            ("1.5h", "2026-01-31T10:30:00Z"),
            ("2d", "2026-01-29T12:00:00Z"),
            ("90s", "2026-01-31T11:58:30Z"),
            ("500ms", "2026-01-31T11:59:59.5Z"),
            ("0", "1970-01-01T00:00:00Z"),
            ("10", "1970-01-01T00:00:10Z"),
            ("1769846400", "2026-01-31T08:00:00Z"),
            ("1769846400.25", "2026-01-31T08:00:00.25Z"),
            ("2026-01-31T08:00:00Z", "2026-01-31T08:00:00Z"),
            ("2026-01-31T08:00:00.123456789Z", "2026-01-31T08:00:00.123456789Z"),
            ("2026-01-31T10:00:00+02:00", "2026-01-31T08:00:00Z"),
            ("2026-01-31", "2026-01-30T19:00:00Z"),
            ("2026-01-31T08:00", "2026-01-31T03:00:00Z"),
        ] {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(read(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "yesterday",
            "-10m",
            "10x",
            "2026-13-01",
            "1.2.3",
            "10m ago",
            "99999999999999999999",
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("is no moment"), "{text}: {message}");
        }
    }

    #[test]
    fn every_option_refuses_the_same_in_the_same_words() {
        for command in ["logs", "events"] {
            for option in ["--since", "--until"] {
                let typed = ["supervisor", command, option, "yesterday"];
                let error = Arguments::try_parse_from(typed).unwrap_err();
                assert_eq!(error.exit_code(), 2);
                let expected =
                    format!("'yesterday' for '{option} <WHEN>': `yesterday` is no moment; write");
                assert!(error.to_string().contains(&expected), "{error}");
            }
        }
    }
}
