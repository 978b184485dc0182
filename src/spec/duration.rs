//! Durations as compose writes them: `1m30s`, `1.5s`, `500ms`.

use std::time::Duration;

/// Longest duration that is accepted, a year: beyond it a typing error is likelier than a wish.
const MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("`{0}` has no unit; write for example `{0}s`")]
    NoUnit(String),
    #[error("`{0}` is not a duration (for example `10s`, `1m30s`, `500ms`)")]
    Malformed(String),
    #[error("`{0}` is longer than a year")]
    TooLong(String),
}

/// Reads `text`; units are `w`, `d`, `h`, `m`, `s`, `ms`, `us` (`µs`) and `ns`.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let quoted = || text.chars().take(40).collect::<String>();
    let malformed = || DurationError::Malformed(quoted());
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(DurationError::NoUnit(quoted()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let nanos_per_unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 604_800_000_000_000,
            _ => return Err(malformed()),
        };
        let part = scaled(number, nanos_per_unit).ok_or_else(malformed)?;
        total = part
            .and_then(|part| total.checked_add(part))
            .filter(|total| *total <= MAX)
            .ok_or_else(|| DurationError::TooLong(quoted()))?;
        rest = tail;
    }
    Ok(total)
}

/// `number` times the unit. Outer `None`: no number; inner `None`: too large.
fn scaled(number: &str, nanos_per_unit: u64) -> Option<Option<Duration>> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let Ok(whole) = (if whole.is_empty() { Ok(0) } else { whole.parse::<u64>() }) else {
        return Some(None);
    };
    let mut nanos = u128::from(whole) * u128::from(nanos_per_unit);
    let mut scale = u128::from(nanos_per_unit);
    for digit in fraction.bytes().take(18) {
        // Below a nanosecond nothing is kept.
        scale /= 10;
        nanos += u128::from(digit - b'0') * scale;
    }
    Some(u64::try_from(nanos).ok().map(Duration::from_nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_compose_writes_them() {
        for (text, millis) in [
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
            (".5s", 500),
            ("0", 0),
            ("0s", 0),
            ("1000us", 1),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("10"), Err(DurationError::NoUnit("10".into())));
        for text in ["", "s", "1x", "-1s", "1s2", "1..2s", ".s", "1 s", "ten"] {
            assert!(matches!(parse(text), Err(DurationError::Malformed(_))), "{text}");
        }
        for text in ["53w", "99999999999999999999999s", "18446744073709551615h"] {
            assert!(matches!(parse(text), Err(DurationError::TooLong(_))), "{text}");
        }
    }
}
