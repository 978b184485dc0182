//! What this build calls itself, and which version of each protocol and file it writes: the one place for all of them.
//!
//! Owns the numbers, not their meaning: what a version can read and how it refuses another is decided where it is
//! read.
//!
//! A build for tests (feature `testing`) carries the numbers as text in the executable and reads them from there, so
//! that a test turns one build into another by overwriting that text in a copy of the file. Real second builds would
//! cost minutes, and would differ in nothing else that the tests of upgrades look at: bytes, names and numbers.

/// The versions of one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The program, as `--version` shows it.
    pub build: &'static str,
    /// The protocol of the monitors' sockets.
    pub monitor: u32,
    /// The protocol of keeper and worker.
    pub lazy: u32,
    /// Index files of lazy layers.
    pub index: u32,
    /// What is in the state directory, as a whole.
    pub state: u32,
}

/// The versions of this source.
const OWN: Versions =
    Versions { build: env!("CARGO_PKG_VERSION"), monitor: 1, lazy: 2, index: 1, state: 1 };

/// The versions of this build.
#[cfg(not(any(test, feature = "testing")))]
#[must_use]
pub fn versions() -> Versions {
    OWN
}

#[cfg(any(test, feature = "testing"))]
pub use patched::{patch, versions};

#[cfg(any(test, feature = "testing"))]
mod patched {
    //! Versions that stand in the executable as text: a length that never changes, and five words.

    use std::sync::OnceLock;

    use super::{OWN, Versions};

    const BEGIN: &[u8] = b"[supervisor-versions ";
    const LENGTH: usize = 128;

    /// The text; empty in what the compiler makes.
    #[used]
    static MARKER: [u8; LENGTH] = marker();

    const fn marker() -> [u8; LENGTH] {
        let mut marker = [b' '; LENGTH];
        let mut at = 0;
        while at < BEGIN.len() {
            marker[at] = BEGIN[at];
            at += 1;
        }
        // Nothing more: the source's own versions.
        marker[LENGTH - 1] = b']';
        marker
    }

    /// The versions of this build: the text's, or the source's where it is empty.
    #[must_use]
    pub fn versions() -> Versions {
        static READ: OnceLock<Versions> = OnceLock::new();
        // Not a constant to the compiler: the bytes of the file count.
        *READ.get_or_init(|| read(std::hint::black_box(&MARKER)).unwrap_or(OWN))
    }

    fn read(marker: &'static [u8; LENGTH]) -> Option<Versions> {
        let text = std::str::from_utf8(&marker[BEGIN.len()..LENGTH - 1]).ok()?;
        let mut words = text.split_ascii_whitespace();
        let build = words.next()?;
        let mut number = || words.next()?.parse().ok();
        Some(Versions {
            build,
            monitor: number()?,
            lazy: number()?,
            index: number()?,
            state: number()?,
        })
    }

    /// Turns the bytes of an executable into those of a build with other versions; `false` when it is no build for
    /// tests, or the name is too long.
    #[must_use]
    pub fn patch(executable: &mut [u8], versions: &Versions) -> bool {
        let Versions { build, monitor, lazy, index, state } = versions;
        let words = format!("{build} {monitor} {lazy} {index} {state}");
        let room = LENGTH - BEGIN.len() - 1;
        let mut places = executable
            .windows(LENGTH)
            .enumerate()
            .filter(|(_, part)| part.starts_with(BEGIN) && part.ends_with(b"]"))
            .map(|(at, _)| at)
            .collect::<Vec<_>>();
        let (Some(place), true) = (places.pop(), places.is_empty() && words.len() <= room) else {
            return false;
        };
        let text = &mut executable[place + BEGIN.len()..place + LENGTH - 1];
        text.fill(b' ');
        text[..words.len()].copy_from_slice(words.as_bytes());
        true
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_patched_copy_has_other_versions() {
            assert_eq!(versions(), OWN);
            let mut bytes = [&b"before"[..], &MARKER, b"after"].concat();
            let other = Versions { build: "9.9.9-test", monitor: 2, lazy: 3, index: 4, state: 5 };
            assert!(patch(&mut bytes, &other));
            let patched: [u8; LENGTH] = bytes[6..6 + LENGTH].try_into().unwrap();
            assert_eq!(read(Box::leak(Box::new(patched))), Some(other));
            assert!(bytes.starts_with(b"before") && bytes.ends_with(b"after"));
            // And once more.
            assert!(patch(&mut bytes, &OWN));
            assert!(!patch(
                &mut bytes.clone(),
                &Versions { build: &"x".repeat(120).leak()[..], ..other }
            ));
            assert!(!patch(&mut b"something else".to_vec(), &other));
        }
    }
}
