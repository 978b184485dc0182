//! Signals by the names that people and images use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names of the classic signals; the number is the same on x86-64 and aarch64.
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The first real-time signal that programs may use: the C library keeps 32 and 33 for itself.
const RT_MIN: i32 = 34;
/// The last one.
const RT_MAX: i32 = 64;

/// A signal. Written as `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `RTMAX-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signal(i32);

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal `{0}`")]
pub struct SignalError(String);

impl Signal {
    /// What a container gets when neither the service nor the image says otherwise.
    pub const TERM: Self = Self(15);
    /// What nobody can refuse.
    pub const KILL: Self = Self(9);
    /// Interrupt from the keyboard.
    pub const INT: Self = Self(2);
    /// Hang-up.
    pub const HUP: Self = Self(1);

    /// The kernel's number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let unknown = || SignalError(text.to_owned());
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse::<i32>() {
            let exists = (1..32).contains(&number) || (RT_MIN..=RT_MAX).contains(&number);
            return exists.then_some(Self(number)).ok_or_else(unknown);
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Self(*number));
        }
        let offset = |rest: &str, sign: char| match rest {
            "" => Some(0),
            rest => rest.strip_prefix(sign)?.parse::<i32>().ok(),
        };
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            offset(rest, '+').map(|n| RT_MIN + n)
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            offset(rest, '-').map(|n| RT_MAX - n)
        } else {
            match name {
                "CLD" => Some(17),
                "POLL" => Some(29),
                "IOT" => Some(6),
                _ => None,
            }
        };
        number
            .filter(|n| (1..32).contains(n) || (RT_MIN..=RT_MAX).contains(n))
            .map(Self)
            .ok_or_else(unknown)
    }
}

impl TryFrom<String> for Signal {
    type Error = SignalError;

    fn try_from(text: String) -> Result<Self, SignalError> {
        text.parse()
    }
}

impl From<Signal> for String {
    fn from(signal: Signal) -> Self {
        signal.to_string()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "SIGRTMIN+{}", self.0 - RT_MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let table = [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMIN", Some(34)),
            ("RTMIN+31", None),
            ("0", None),
            ("32", None),
            ("65", None),
            ("SIGNOPE", None),
            ("", None),
        ];
        for (text, number) in table {
            assert_eq!(text.parse::<Signal>().ok().map(Signal::number), number, "{text}");
        }
    }

    #[test]
    fn a_signal_survives_being_written() {
        for signal in ["SIGTERM", "SIGRTMIN+3"] {
            assert_eq!(signal.parse::<Signal>().unwrap().to_string(), signal);
        }
    }
}
