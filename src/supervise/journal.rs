//! The journal of events: what happened, kept over restarts of control.
//!
//! JSON lines in two files of bounded size, `$STATE/events/current` and `$STATE/events/previous`. It is written when
//! something happens and never synced: it is for people who ask what went on, and a power cut may cost its last
//! seconds. A line that a crash tore is skipped. A disk that is full costs the events of that time, and the journal
//! says how many.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::report::Event;

/// Size at which a file is set aside; two of them are kept.
const MAX_FILE: u64 = 1 << 20;

const CURRENT: &str = "current";
const PREVIOUS: &str = "previous";

/// The journal of one state directory. One writer at a time: the state directory is locked by its control.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    max_file: u64,
    /// `None` while it cannot be opened.
    file: Option<File>,
    size: u64,
    next: u64,
    /// Events since the last one that could be written.
    lost: u64,
}

impl Journal {
    /// Opens the journal in `folder`, or begins one. It need not be writable: then events are lost until it is.
    pub(super) fn open(folder: &Path) -> Self {
        Self::with_limit(folder, MAX_FILE)
    }

    fn with_limit(folder: &Path, max_file: u64) -> Self {
        let mut journal =
            Self { folder: folder.to_path_buf(), max_file, file: None, size: 0, next: 1, lost: 0 };
        let last = journal.files().into_iter().flat_map(events).map(|event| event.sequence).max();
        journal.next = last.unwrap_or(0) + 1;
        if let Err(error) = journal.reopen() {
            tracing::warn!(folder = %folder.display(), %error, "events are not kept");
        }
        journal
    }

    /// A number for an event, each once.
    pub(super) fn take_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// The number that the next event will get.
    pub(super) fn upcoming(&self) -> u64 {
        self.next
    }

    /// How many events could not be written since the last one that was.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes an event. One that cannot be written is counted, and said once in the log of control.
    pub(super) fn append(&mut self, event: &Event) -> io::Result<()> {
        let result = self.try_append(event);
        match &result {
            Ok(()) => self.lost = 0,
            Err(error) => {
                if self.lost == 0 {
                    let folder = self.folder.display();
                    tracing::warn!(%folder, %error, "events are not kept until this is mended");
                }
                self.lost += 1;
                // What was opened may have gone with its disk.
                self.file = None;
            }
        }
        result
    }

    fn try_append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.size > 0 && self.size.saturating_add(length) > self.max_file {
            fs::rename(self.folder.join(CURRENT), self.folder.join(PREVIOUS))?;
            self.reopen()?;
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(&line)?;
        self.size += length;
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.folder.join(CURRENT);
        let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let size = file.metadata()?.len();
        // What a crash or a full disk left of a line must not be glued to the next one.
        if size > 0 && !ends_with_newline(&path, size)? {
            file.write_all(b"\n")?;
        }
        self.size = size;
        self.file = Some(file);
        Ok(())
    }

    /// The files as they are now, the older one first; what is appended to them later is read too.
    pub(super) fn files(&self) -> Vec<File> {
        [PREVIOUS, CURRENT]
            .iter()
            .filter_map(|name| File::open(self.folder.join(name)).ok())
            .collect()
    }
}

fn ends_with_newline(path: &Path, size: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, size - 1)?;
    Ok(last == *b"\n")
}

/// The events of a file of the journal; lines that are none are skipped.
pub(super) fn events(file: File) -> impl Iterator<Item = Event> {
    let lines = BufReader::new(file).split(b'\n').map_while(Result::ok);
    lines.filter_map(|line| serde_json::from_slice(&line).ok())
}

#[cfg(test)]
mod tests {
    use super::super::report::EventLevel;
    use super::*;

    fn event(journal: &mut Journal, message: &str) -> Event {
        Event {
            sequence: journal.take_number(),
            time: jiff::Timestamp::UNIX_EPOCH,
            project: String::new(),
            service: String::new(),
            kind: "test".to_owned(),
            level: EventLevel::Info,
            message: message.to_owned(),
            attributes: std::collections::BTreeMap::new(),
        }
    }

    fn append(journal: &mut Journal, message: &str) {
        let event = event(journal, message);
        journal.append(&event).unwrap();
    }

    fn kept(journal: &Journal) -> Vec<(u64, String)> {
        let events = journal.files().into_iter().flat_map(events);
        events.map(|event| (event.sequence, event.message)).collect()
    }

    #[test]
    fn events_are_numbered_on_over_restarts_and_a_torn_line_is_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("events");
        let mut journal = Journal::open(&folder);
        append(&mut journal, "one");
        append(&mut journal, "two");
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(folder.join(CURRENT)).unwrap();
        file.write_all(b"{\"sequence\": 3, \"ti").unwrap();

        let mut journal = Journal::open(&folder);
        append(&mut journal, "three");
        let expected = [(1, "one"), (2, "two"), (3, "three")];
        assert_eq!(kept(&journal), expected.map(|(number, text)| (number, text.to_owned())));
    }

    #[test]
    fn two_files_of_bounded_size_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::with_limit(folder.path(), 1000);
        for number in 1..=100 {
            append(&mut journal, &number.to_string());
        }
        let kept = kept(&journal);
        assert!(kept.len() > 5 && kept.len() < 30, "{kept:?}");
        assert_eq!(kept.last().unwrap().0, 100);
        assert!(kept.is_sorted());
        for name in [CURRENT, PREVIOUS] {
            assert!(folder.path().join(name).metadata().unwrap().len() <= 1000, "{name}");
        }
        assert_eq!(Journal::with_limit(folder.path(), 1000).next, 101);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("events");
        // A file where the folder should be stands for a disk that takes nothing.
        fs::write(&folder, "").unwrap();
        let mut journal = Journal::open(&folder);
        for _ in 0..3 {
            let event = event(&mut journal, "lost");
            journal.append(&event).unwrap_err();
        }
        assert_eq!(journal.lost(), 3);
        fs::remove_file(&folder).unwrap();
        append(&mut journal, "kept");
        assert_eq!((journal.lost(), kept(&journal)), (0, vec![(4, "kept".to_owned())]));
    }

    #[test]
    fn a_file_full_of_something_else_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CURRENT), [0, 159, 146, 150, b'\n', b'7']).unwrap();
        fs::write(folder.path().join(PREVIOUS), "{}\n[]\n\n").unwrap();
        let mut journal = Journal::open(folder.path());
        append(&mut journal, "first");
        assert_eq!(kept(&journal), [(1, "first".to_owned())]);
    }
}
