//! Signals by name and number, as `stop_signal` and images write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Signals 1 to 31 as Linux numbers them on x86-64, arm64 and riscv64.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// First real-time signal that programs may use with glibc, which keeps 32 and 33 to itself.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal of Linux, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(u8);

/// The text names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a signal (a name like `SIGTERM`, or a number from 1 to 64)")]
pub struct SignalError(pub String);

impl Signal {
    /// Ends a program at once.
    pub const KILL: Self = Self(9);
    /// Asks a program to end; the default.
    pub const TERM: Self = Self(15);

    /// The number, 1 to 64.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let error = || SignalError(text.chars().take(40).collect());
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse::<u8>() {
            return if (1..=RTMAX).contains(&number) { Ok(Self(number)) } else { Err(error()) };
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let aliased = match name {
            "IOT" => "ABRT",
            "CLD" => "CHLD",
            "POLL" => "IO",
            other => other,
        };
        if let Some(number) =
            (1..).zip(NAMES).find_map(|(n, known)| (known == aliased).then_some(n))
        {
            return Ok(Self(number));
        }
        let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
            match rest {
                "" => Some(RTMIN),
                _ => rest.strip_prefix('+').and_then(|n| RTMIN.checked_add(n.parse().ok()?)),
            }
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            match rest {
                "" => Some(RTMAX),
                _ => rest.strip_prefix('-').and_then(|n| RTMAX.checked_sub(n.parse().ok()?)),
            }
        } else {
            None
        };
        real_time.filter(|number| (RTMIN..=RTMAX).contains(number)).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 < RTMIN => write!(f, "{}", self.0),
            None if self.0 == RTMIN => f.write_str("SIGRTMIN"),
            None => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
        }
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_by_name_and_number_and_print_so_that_they_read_back() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGINT", 2),
            ("WINCH", 28),
            ("SIGSYS", 31),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGIOT", 6),
        ] {
            assert_eq!(text.parse::<Signal>().map(Signal::number), Ok(number), "{text}");
        }
        for number in 1..=64 {
            assert_eq!(Signal(number).to_string().parse(), Ok(Signal(number)));
        }
        for text in ["", "0", "65", "256", "-1", "SIGFOO", "SIGRTMIN+31", "RTMIN+", "SIG"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
