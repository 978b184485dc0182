//! The 512 bytes before each entry of a tar, and the forms that numbers take in them.

use std::ops::Range;

/// Tar counts in blocks of this size.
pub(super) const BLOCK: usize = 512;

/// A header whose checksum fits.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// `None` when the checksum does not fit.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        header.check().map(|()| header)
    }

    /// The type byte.
    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The link field.
    pub(super) fn link(&self) -> &'a [u8] {
        until_nul(&self.0[157..257])
    }

    /// Permission bits.
    pub(super) fn mode(&self) -> Option<u32> {
        u32::try_from(self.number(100..108)? & 0o7777).ok()
    }

    /// A user or group id, from its PAX record if there is one.
    pub(super) fn owner(&self, field: Range<usize>, pax: Option<&[u8]>) -> Option<u32> {
        let id = u32::try_from(self.record_or(pax, field)?).ok()?;
        // The largest value means "leave as it is" to chown(2).
        (id != u32::MAX).then_some(id)
    }

    /// Whole seconds, rounded down.
    pub(super) fn mtime(&self, pax: Option<&[u8]>) -> Option<i64> {
        match pax {
            Some(text) => seconds(text),
            None => self.number(136..148),
        }
    }

    /// Bytes of data that follow.
    pub(super) fn size(&self, pax: Option<&[u8]>) -> Option<u64> {
        u64::try_from(self.record_or(pax, 124..136)?).ok()
    }

    /// Major and minor number; V7 has no field for them.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        if &self.0[257..262] != b"ustar" {
            return Some((0, 0));
        }
        let number = |field| u32::try_from(self.number(field)?).ok();
        Some((number(329..337)?, number(337..345)?))
    }

    /// The beginning of an old GNU sparse map, and whether more of it follows.
    pub(super) fn sparse_pairs(&self) -> (&'a [u8], bool) {
        (&self.0[386..482], self.0[482] != 0)
    }

    fn record_or(&self, pax: Option<&[u8]>, field: Range<usize>) -> Option<i64> {
        match pax {
            Some(text) => decimal(text),
            None => self.number(field),
        }
    }

    /// Compares the checksum, which old writers computed over signed bytes.
    fn check(&self) -> Option<()> {
        let expected = self.number(148..156)?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (index, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&index) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        (expected == unsigned || expected == signed).then_some(())
    }

    /// The name field, with the prefix that only USTAR has there.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix: &[u8] = match &self.0[257..263] {
            b"ustar\0" if &self.0[508..512] == b"tar\0" => until_nul(&self.0[345..476]),
            b"ustar\0" => until_nul(&self.0[345..500]),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    pub(super) fn number(&self, field: Range<usize>) -> Option<i64> {
        number(&self.0[field])
    }
}

/// A numeric field: octal digits, or base 256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement without the marker bit; the bit after it is the sign.
        let negative = first & 0x40 != 0;
        let mut value = i128::from(first & 0x7f);
        if negative {
            value -= 0x80;
        }
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let digits = field.trim_ascii_start();
    let digits = until_nul(&digits[digits.iter().take_while(|byte| **byte == 0).count()..]);
    let digits = digits.trim_ascii();
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// A decimal number of a PAX record.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whole seconds of a PAX time, rounded down: what a table of contents keeps of it.
fn seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let negative = whole.starts_with('-');
    let whole: i64 = if matches!(whole, "" | "-") { 0 } else { whole.parse().ok()? };
    let rounds_down = negative && fraction.bytes().any(|byte| byte != b'0');
    whole.checked_sub(i64::from(rounds_down))
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_fields_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"00009\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xbf; 12]), None);
    }

    #[test]
    fn times_are_rounded_down_to_seconds() {
        for (text, expected) in [
            ("1700000000.999", Some(1_700_000_000)),
            ("12", Some(12)),
            ("-1.5", Some(-2)),
            ("-1.0", Some(-1)),
            ("-0.5", Some(-1)),
            (".5", Some(0)),
            ("1e9", None),
            ("1.x", None),
        ] {
            assert_eq!(seconds(text.as_bytes()), expected, "{text}");
        }
    }
}
