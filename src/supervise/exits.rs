//! How the last runs of each service ended, and what they said last. Kept beside the service's log, so it outlives its
//! containers and control; each file is bounded: [`EXITS_KEPT`] ends with [`LINES`] lines and [`TEXT`] bytes each.
//!
//! One task writes, in the order in which ends are told. A container starts again only when its last end is kept, so
//! that the lines are those of the run that ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::report::{LastExit, PastExit};
use crate::container::{ExitRecord, Outcome};
use crate::logs::{LogReader, ReadOptions};
use crate::reconcile::ServiceKey;
use crate::store::{Record, Store, record};
use crate::telemetry::Chain;

/// Ends that wait to be kept; a project of a thousand services may end at once.
const QUEUE: usize = 4096;
/// Ends of a service that are kept.
const EXITS_KEPT: usize = 10;
/// Lines of its output that are kept of each.
const LINES: usize = 50;
/// Bytes of them, over all lines.
const TEXT: usize = 16 * 1024;
/// Characters of one line.
const LINE: usize = 1000;

/// The file: the ends of a service's runs, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct History {
    exits: Vec<PastExit>,
}

impl Record for History {
    const KIND: &'static str = "exits";
    const VERSION: u32 = 1;
}

#[derive(Debug)]
enum Command {
    Keep(ServiceKey, Vec<ExitRecord>),
    Flush(oneshot::Sender<()>),
}

/// The way to the task, and what it knows.
#[derive(Debug, Clone)]
pub(super) struct Exits {
    commands: mpsc::Sender<Command>,
    files: Files,
}

/// The last end of each service, as far as it was asked for or has come since.
type Last = Arc<Mutex<BTreeMap<ServiceKey, Option<LastExit>>>>;

#[derive(Debug, Clone)]
struct Files {
    store: Store,
    last: Last,
}

impl Exits {
    /// Begins the task. Needs a runtime.
    pub(super) fn start(store: Store) -> Self {
        let (commands, mut queue) = mpsc::channel(QUEUE);
        let files = Files { store, last: Last::default() };
        let task = files.clone();
        tokio::spawn(async move {
            while let Some(command) = queue.recv().await {
                match command {
                    Command::Keep(service, exits) => {
                        let files = task.clone();
                        let kept =
                            tokio::task::spawn_blocking(move || files.keep(&service, exits)).await;
                        if let Err(error) = kept {
                            tracing::warn!(%error, "the end of a run is not kept");
                        }
                    }
                    Command::Flush(reply) => drop(reply.send(())),
                }
            }
        });
        Self { commands, files }
    }

    /// Keeps ends of a service's runs, oldest first; what is kept already is not kept twice.
    pub(super) fn keep(&self, service: ServiceKey, exits: Vec<ExitRecord>) {
        // One that is not kept now is in the record of its container, from which the next control keeps it.
        if let Err(error) = self.commands.try_send(Command::Keep(service, exits)) {
            tracing::warn!(%error, "the end of a run is not kept");
        }
    }

    /// Returns when all that was told before is on the disk.
    pub(super) async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Flush(reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// The kept ends of a service, oldest first. Reads the disk.
    pub(super) fn history(&self, service: &ServiceKey) -> Vec<PastExit> {
        self.files.load(service).exits
    }

    /// The last end of a service. Reads the disk if nobody has asked before.
    pub(super) fn last(&self, service: &ServiceKey) -> Option<LastExit> {
        self.files.last(service)
    }
}

impl Files {
    fn path(&self, service: &ServiceKey) -> PathBuf {
        log_folder(self.store.root(), service).join("exits")
    }

    fn load(&self, service: &ServiceKey) -> History {
        // One that cannot be read is told as a finding, and the next end begins a new one.
        self.store.load(&self.path(service)).unwrap_or_default().unwrap_or_default()
    }

    fn last(&self, service: &ServiceKey) -> Option<LastExit> {
        let known = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(service).cloned();
        known.unwrap_or_else(|| {
            let last = self.load(service).exits.last().map(LastExit::of);
            let mut known = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            // An end that came meanwhile is a later one.
            known.entry(service.clone()).or_insert(last).clone()
        })
    }

    fn keep(&self, service: &ServiceKey, ended: Vec<ExitRecord>) {
        let mut history = self.load(service);
        let is_known = |exit: &ExitRecord, history: &History| {
            let same =
                |past: &PastExit| past.exit.id == exit.id && past.exit.ended_at == exit.ended_at;
            history.exits.iter().any(same)
        };
        let log = log_folder(self.store.root(), service).join("log.json");
        let mut is_changed = false;
        let mut ended = ended.into_iter().peekable();
        while let Some(exit) = ended.next() {
            if is_known(&exit, &history) {
                continue;
            }
            let until = ended.peek().and_then(|next| next.started_at);
            let lines = last_words(&log, &exit, until);
            let last = LastExit::of_record(&exit);
            let place = history.exits.partition_point(|past| past.exit.ended_at <= exit.ended_at);
            history.exits.insert(place, PastExit { ran_ms: last.ran_ms, exit, log: lines });
            is_changed = true;
        }
        if !is_changed {
            return;
        }
        let surplus = history.exits.len().saturating_sub(EXITS_KEPT);
        history.exits.drain(..surplus);
        let last = history.exits.last().map(LastExit::of);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(service.clone(), last);
        let path = self.path(service);
        let saved = super::project::make_folder(&path).and_then(|()| {
            record::save(&path, &history).map_err(|error| Chain(&error).to_string())
        });
        if let Err(error) = saved {
            tracing::warn!(%service, error, "how it ended is not kept");
        }
    }
}

fn log_folder(state_dir: &Path, service: &ServiceKey) -> PathBuf {
    state_dir.join("logs").join(service.project.as_str()).join(service.service.as_str())
}

/// The last lines of the run that ended so; `until`: when the next one began.
fn last_words(log: &Path, exit: &ExitRecord, until: Option<jiff::Timestamp>) -> Vec<String> {
    // What never ran has said nothing.
    let Some(since) = exit.started_at else { return Vec::new() };
    let options = ReadOptions { tail: Some(LINES), since: Some(since), until };
    let Ok(mut reader) = LogReader::open(log, options) else { return Vec::new() };
    let mut lines = Vec::new();
    while let Ok(Some(entry)) = reader.next_entry() {
        lines.push(entry.text().trim_end().chars().take(LINE).collect::<String>());
    }
    // Somebody else may have gone on writing meanwhile.
    let surplus = lines.len().saturating_sub(LINES);
    lines.drain(..surplus);
    let mut room = TEXT;
    let kept = lines.iter().rev().take_while(|line| {
        let fits = line.len() <= room;
        room = room.saturating_sub(line.len());
        fits
    });
    let kept = kept.count();
    lines.split_off(lines.len() - kept)
}

impl LastExit {
    fn of(past: &PastExit) -> Self {
        Self::of_record(&past.exit)
    }

    pub(super) fn of_record(exit: &ExitRecord) -> Self {
        let signal = match &exit.outcome {
            Outcome::Signaled { signal } => Some(*signal),
            Outcome::Exited { .. } | Outcome::Unknown | Outcome::NotStarted { .. } => None,
        };
        let ran = exit.started_at.map(|start| exit.ended_at.duration_since(start));
        let ran = ran.and_then(|ran| std::time::Duration::try_from(ran).ok()).unwrap_or_default();
        Self {
            container: exit.id.to_string(),
            code: exit.outcome.code(),
            signal,
            oom_killed: exit.oom_killed,
            asked: exit.stop_requested,
            ended_at: exit.ended_at,
            ran_ms: u64::try_from(ran.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::container::RECORD_VERSION;
    use crate::logs::{LogWriter, Stream};

    fn service() -> ServiceKey {
        ServiceKey { project: "shop".parse().unwrap(), service: "web".parse().unwrap() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn exit(started: i64, ended: i64) -> ExitRecord {
        ExitRecord {
            version: RECORD_VERSION,
            id: "shop-web-1-abc".parse().unwrap(),
            started_at: Some(at(started)),
            ended_at: at(ended),
            outcome: Outcome::Signaled { signal: 9 },
            oom_killed: true,
            stop_requested: false,
            health: None,
            left_behind: Vec::new(),
        }
    }

    fn files(state: &Path) -> Files {
        Files { store: Store::open(state).unwrap(), last: Last::default() }
    }

    fn write(state: &Path, lines: impl IntoIterator<Item = (i64, String)>) {
        let log = log_folder(state, &service()).join("log.json");
        let mut log = LogWriter::open(&log, 0, 1).unwrap();
        for (second, line) in lines {
            log.append(Stream::Stdout, at(second), line.as_bytes()).unwrap();
        }
        log.flush().unwrap();
    }

    #[test]
    fn each_end_is_kept_once_with_its_own_lines_and_only_the_last_ten() {
        let state = tempfile::tempdir().unwrap();
        let files = files(state.path());
        write(state.path(), (0..120).map(|second| (second, format!("line {second}"))));
        let ends: Vec<ExitRecord> = (0..12).map(|run| exit(run * 10, run * 10 + 9)).collect();
        files.keep(&service(), ends.clone());
        files.keep(&service(), ends[10..].to_vec());
        let kept = files.load(&service()).exits;
        assert_eq!(kept.len(), EXITS_KEPT);
        assert_eq!(kept[0].exit.ended_at, at(29));
        assert_eq!(kept[0].log.first().unwrap(), "line 20");
        assert_eq!(kept[0].log.len(), 10);
        assert_eq!((kept[9].ran_ms, kept[9].log.last().unwrap().as_str()), (9_000, "line 119"));
        let last = files.last(&service()).unwrap();
        assert_eq!((last.signal, last.code, last.oom_killed), (Some(9), Some(137), true));
        assert_eq!(Files { last: Last::default(), ..files }.last(&service()), Some(last));
    }

    #[test]
    fn lines_are_bounded_in_number_and_in_length() {
        let state = tempfile::tempdir().unwrap();
        let files = files(state.path());
        write(state.path(), (0..200).map(|number| (5, format!("{number} {}", "x".repeat(5000)))));
        files.keep(&service(), vec![exit(5, 6)]);
        let kept = files.load(&service()).exits.remove(0).log;
        assert!(kept.last().unwrap().starts_with("199 ") && kept.len() < LINES, "{}", kept.len());
        assert!(kept.iter().map(String::len).sum::<usize>() <= TEXT);
    }

    #[test]
    fn an_unreadable_file_is_set_aside_and_begun_anew() {
        let state = tempfile::tempdir().unwrap();
        let files = files(state.path());
        files.keep(&service(), vec![exit(1, 2)]);
        for name in ["exits", "exits.prev"] {
            let _ = std::fs::write(files.path(&service()).with_file_name(name), b"garbage");
        }
        files.keep(&service(), vec![exit(3, 4)]);
        let kept = files.load(&service()).exits;
        assert_eq!(kept.iter().map(|past| past.exit.ended_at).collect::<Vec<_>>(), [at(4)]);
        assert_eq!(files.store.take_findings().len(), 1);
        let aside = crate::store::set_aside_below(state.path());
        assert!(aside.iter().any(|aside| aside.record == files.path(&service())), "{aside:?}");
    }
}
