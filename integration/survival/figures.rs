//! What a soak counts and measures, its table, and its random numbers.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use super::reader::Stalls;

/// What happened.
pub(super) struct Figures {
    seed: u64,
    killed: BTreeMap<String, u64>,
    replaced: BTreeMap<String, Vec<Duration>>,
    stalls: Stalls,
    /// Longest read of a file that is here, of the time around each kill.
    around: Vec<Duration>,
    /// Lines that services said and no log has.
    lost: u64,
}

impl Figures {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            killed: BTreeMap::new(),
            replaced: BTreeMap::new(),
            stalls: Stalls::default(),
            around: Vec::new(),
            lost: 0,
        }
    }

    pub(super) fn killed(&mut self, role: &str) {
        *self.killed.entry(role.to_owned()).or_default() += 1;
    }

    pub(super) fn replaced(&mut self, role: &str, after: Duration) {
        self.replaced.entry(role.to_owned()).or_default().push(after);
    }

    pub(super) fn stalls(&mut self, stalls: Stalls) {
        assert!(!stalls.first.is_empty() && !stalls.again.is_empty(), "something was read");
        self.stalls = stalls;
    }

    pub(super) fn around_kill(&mut self, longest: Option<Duration>) {
        self.around.extend(longest);
    }

    pub(super) fn lost(&mut self, lines: u64) {
        self.lost += lines;
    }

    /// What of a hundred kills 99 cost a reader of files that are here at most.
    pub(super) fn usual_stall(&mut self) -> Duration {
        at(&mut self.around, 99)
    }

    /// How many so far.
    pub(super) fn kills(&self) -> u64 {
        self.killed.values().sum()
    }

    /// The table, on standard output.
    pub(super) fn print(&mut self, codes: &BTreeMap<Option<i64>, u64>) {
        let mut text = format!("seed {}, {} kills\n", self.seed, self.kills());
        let head = ["", "count", "median ms", "p99 ms", "max ms"];
        text.push_str(&format!(
            "{:<24}{:>8}{:>12}{:>12}{:>12}\n",
            head[0], head[1], head[2], head[3], head[4]
        ));
        let mut rows: Vec<(String, &mut Vec<Duration>)> = Vec::new();
        for (role, times) in &mut self.replaced {
            rows.push((format!("{role} replaced in"), times));
        }
        rows.push(("first read of a file".to_owned(), &mut self.stalls.first));
        rows.push(("read of a local file".to_owned(), &mut self.stalls.again));
        rows.push(("longest around a kill".to_owned(), &mut self.around));
        for (name, times) in rows {
            text.push_str(&format!("{name:<24}{:>8}", times.len()));
            for share in [50, 99, 100] {
                text.push_str(&format!("{:>12.1}", at(times, share).as_secs_f64() * 1000.0));
            }
            text.push('\n');
        }
        text.push_str(&format!("lines lost: {}\n", self.lost));
        text.push_str(&format!("ends seen, by exit code: {codes:?} (None: unknown)\n"));
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
}

/// The time that so many of a hundred do not exceed.
fn at(times: &mut [Duration], share: usize) -> Duration {
    times.sort_unstable();
    let position = (times.len() * share / 100).min(times.len().saturating_sub(1));
    times.get(position).copied().unwrap_or_default()
}

/// Numbers that a seed decides.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Less than `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    /// One of them, by weight.
    pub(super) fn weighted(&mut self, choices: &[(&'static str, u64)]) -> &'static str {
        let mut left = self.below(choices.iter().map(|(_, weight)| weight).sum());
        for (choice, weight) in choices {
            if left < *weight {
                return choice;
            }
            left -= weight;
        }
        unreachable!("the weights have a sum")
    }

    /// Waits, at most so long.
    pub(super) fn pause(&mut self, most: Duration) {
        let most = u64::try_from(most.as_micros()).unwrap();
        std::thread::park_timeout(Duration::from_micros(self.below(most)));
    }
}
