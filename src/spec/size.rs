//! Sizes as Docker writes them: `10m`, `1.5g`, `512k`, `4096`.

/// What `k`, `m` and `g` are multiples of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// 1000, as in sizes of files.
    Decimal,
    /// 1024, as in sizes of memory.
    Binary,
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("`{0}` is not a size (for example `10m`, `512k`, `1g`)")]
    Malformed(String),
    #[error("`{0}` is more than can be counted")]
    TooLarge(String),
}

/// Reads `text` as a number of bytes.
pub(crate) fn parse(text: &str, base: Base) -> Result<u64, SizeError> {
    let quoted = || text.chars().take(40).collect::<String>();
    let malformed = || SizeError::Malformed(quoted());
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let step: u128 = match base {
        Base::Decimal => 1000,
        Base::Binary => 1024,
    };
    let scale = match unit.trim_start() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => step,
        "m" | "mb" | "mib" => step.pow(2),
        "g" | "gb" | "gib" => step.pow(3),
        "t" | "tb" | "tib" => step.pow(4),
        _ => return Err(malformed()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return Err(malformed());
    }
    let too_large = || SizeError::TooLarge(quoted());
    let mut bytes =
        whole.parse::<u128>().map_err(|_| too_large())?.checked_mul(scale).ok_or_else(too_large)?;
    // Below a byte nothing is kept.
    let (mut digits, mut place) = (0, 1);
    for digit in fraction.bytes().take(12) {
        digits = digits * 10 + u128::from(digit - b'0');
        place *= 10;
    }
    bytes = bytes.saturating_add(digits * scale / place);
    u64::try_from(bytes).map_err(|_| too_large())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_writes_them() {
        for (text, decimal, binary) in [
            ("0", 0, 0),
            ("4096", 4096, 4096),
            ("10m", 10_000_000, 10 << 20),
            ("10M", 10_000_000, 10 << 20),
            ("1.5k", 1500, 1536),
            ("2 GB", 2_000_000_000, 2 << 30),
            ("1MiB", 1_000_000, 1 << 20),
            ("7b", 7, 7),
        ] {
            assert_eq!(parse(text, Base::Decimal), Ok(decimal), "{text}");
            assert_eq!(parse(text, Base::Binary), Ok(binary), "{text}");
        }
        for text in ["", "m", "-1", "10x", "1.2.3m", ".5m", "5.", "10mm", "ten"] {
            assert!(matches!(parse(text, Base::Decimal), Err(SizeError::Malformed(_))), "{text}");
        }
        for text in
            ["99999999999999999999", "99999999t", "9999999999999999999999999999999999999999999k"]
        {
            assert!(matches!(parse(text, Base::Decimal), Err(SizeError::TooLarge(_))), "{text}");
        }
    }
}
