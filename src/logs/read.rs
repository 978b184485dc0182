//! Reading a log back, oldest entry first, over all of its files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::LogEntry;
use super::write::{MAX_FILES, numbered};

/// Which entries are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Only the last so many of the entries before `until`, or of all; every one where `None`.
    pub tail: Option<usize>,
    /// Only entries of this moment or later.
    pub since: Option<Timestamp>,
    /// Only entries before this moment.
    pub until: Option<Timestamp>,
}

/// Reads a log. At its end it waits: a later call finds what was written meanwhile, also across rotations.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    options: ReadOptions,
    current: Option<OpenFile>,
    /// Found already, and next.
    found: VecDeque<LogEntry>,
}

#[derive(Debug)]
struct OpenFile {
    reader: BufReader<File>,
    inode: u64,
    line: Vec<u8>,
}

/// How often a rotation may come between.
const RACES: usize = 10;

impl LogReader {
    /// Begins to read the log at `path`, which need not exist yet.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, options: ReadOptions) -> io::Result<Self> {
        let mut reader =
            Self { path: path.to_owned(), options, current: None, found: VecDeque::new() };
        match (options.tail, options.until) {
            (Some(tail), None) => reader.current = reader.seek_tail(tail)?,
            // Where the entries before a moment end is known to who reads up to there.
            (Some(tail), Some(_)) => {
                reader.current = reader.oldest()?;
                while let Some(entry) = reader.next_entry_of_files()? {
                    if reader.found.len() == tail {
                        reader.found.pop_front();
                    }
                    if tail > 0 {
                        reader.found.push_back(entry);
                    }
                }
            }
            (None, _) => reader.current = reader.oldest()?,
        }
        Ok(reader)
    }

    /// The next entry; `None` at the end, for now. Lines that are no entries are skipped.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_entry(&mut self) -> io::Result<Option<LogEntry>> {
        match self.found.pop_front() {
            Some(entry) => Ok(Some(entry)),
            None => self.next_entry_of_files(),
        }
    }

    fn next_entry_of_files(&mut self) -> io::Result<Option<LogEntry>> {
        loop {
            let Some(open) = &mut self.current else {
                self.current = self.oldest()?;
                if self.current.is_none() {
                    return Ok(None);
                }
                continue;
            };
            if !open.fill_line()? {
                // Looked up before the second read: what was written before the rotation is then surely seen.
                let next = self.next_file()?;
                let Some(open) = &mut self.current else { continue };
                if !open.fill_line()? {
                    match next {
                        Some(next) => self.current = Some(next),
                        None if open.begin_again_if_cut()? => {}
                        None => return Ok(None),
                    }
                    continue;
                }
            }
            let Some(open) = &mut self.current else { continue };
            let entry = serde_json::from_slice::<LogEntry>(&open.line);
            open.line.clear();
            if let Ok(entry) = entry
                && self.options.since.is_none_or(|since| entry.time >= since)
                && self.options.until.is_none_or(|until| entry.time < until)
            {
                return Ok(Some(entry));
            }
        }
    }

    /// All files, the newest first.
    fn files(&self) -> io::Result<Vec<(File, u64)>> {
        // A rotation meanwhile moves what has been seen to names that are still to be looked at, and what is still
        // to be seen past them; it gives the log a new file, so it is noticed.
        for _ in 0..RACES {
            let files = self.files_at_once()?;
            let current = self.path.metadata().ok().map(|metadata| metadata.ino());
            if files.first().map(|(_, inode)| *inode) == current {
                return Ok(files);
            }
        }
        self.files_at_once()
    }

    fn files_at_once(&self) -> io::Result<Vec<(File, u64)>> {
        let mut files = Vec::new();
        let mut is_missing = false;
        for number in 0..=MAX_FILES {
            match File::open(numbered(&self.path, number)) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    files.push((file, inode));
                    is_missing = false;
                }
                // In the middle of a rotation one name is free: the file that had it has moved on, and the next
                // newer one has not yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !is_missing => {
                    is_missing = true;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        files.dedup_by_key(|(_, inode)| *inode);
        Ok(files)
    }

    fn oldest(&self) -> io::Result<Option<OpenFile>> {
        Ok(self.files()?.pop().map(|(file, inode)| OpenFile::new(file, inode)))
    }

    /// The file after the current one, when there is one.
    fn next_file(&self) -> io::Result<Option<OpenFile>> {
        let Some(current) = &self.current else { return Ok(None) };
        let mut files = self.files()?;
        let next = match files.iter().position(|(_, inode)| *inode == current.inode) {
            Some(0) => return Ok(None),
            Some(position) => files.swap_remove(position - 1),
            // Rotated away altogether while we read: go on with the oldest that is left.
            None => match files.pop() {
                Some(oldest) => oldest,
                None => return Ok(None),
            },
        };
        Ok(Some(OpenFile::new(next.0, next.1)))
    }

    /// The place from which `tail` lines are left.
    fn seek_tail(&self, tail: usize) -> io::Result<Option<OpenFile>> {
        let files = self.files()?;
        let mut wanted = tail;
        let mut found = None;
        for (mut file, inode) in files {
            let (offset, lines) = last_lines(&mut file, wanted)?;
            file.seek(SeekFrom::Start(offset))?;
            found = Some(OpenFile::new(file, inode));
            wanted -= lines.min(wanted);
            if wanted == 0 {
                break;
            }
        }
        Ok(found)
    }
}

impl OpenFile {
    fn new(file: File, inode: u64) -> Self {
        Self { reader: BufReader::new(file), inode, line: Vec::new() }
    }

    /// Goes to the beginning of a file that was emptied by somebody (`truncate`, `> log.json`).
    fn begin_again_if_cut(&mut self) -> io::Result<bool> {
        let length = self.reader.get_ref().metadata()?.len();
        let is_cut = length < self.reader.stream_position()?;
        if is_cut {
            self.reader.seek(SeekFrom::Start(0))?;
            self.line.clear();
        }
        Ok(is_cut)
    }

    /// Reads on in the current line; `true` when it is complete.
    fn fill_line(&mut self) -> io::Result<bool> {
        self.reader.read_until(b'\n', &mut self.line)?;
        Ok(self.line.last() == Some(&b'\n'))
    }
}

/// Where the last `wanted` lines of `file` begin, and how many there are from there.
fn last_lines(file: &mut File, wanted: usize) -> io::Result<(u64, usize)> {
    const BLOCK: u64 = 64 * 1024;
    let mut end = file.seek(SeekFrom::End(0))?;
    if wanted == 0 {
        return Ok((end, 0));
    }
    let mut lines = 0;
    let mut block = Vec::new();
    let length = end;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + u64::try_from(at).unwrap_or(0) + 1;
            // The newline at the very end closes the last line and begins none.
            if after == length {
                continue;
            }
            lines += 1;
            if lines == wanted {
                return Ok((after, lines));
            }
        }
        end = start;
    }
    Ok((0, if length > 0 { lines + 1 } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{LogWriter, Stream};

    fn write(log: &mut LogWriter, numbers: std::ops::Range<i64>) {
        for number in numbers {
            let time = Timestamp::from_second(number).unwrap();
            log.append(Stream::Stdout, time, format!("{number}\n").as_bytes()).unwrap();
            log.flush().unwrap();
        }
    }

    fn read(reader: &mut LogReader) -> Vec<i64> {
        std::iter::from_fn(|| reader.next_entry().unwrap())
            .map(|entry| entry.text().parse().unwrap())
            .collect()
    }

    #[test]
    fn a_reader_follows_across_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut reader = LogReader::open(&path, ReadOptions::default()).unwrap();
        assert!(read(&mut reader).is_empty());
        let mut log = LogWriter::open(&path, 500, 5).unwrap();
        write(&mut log, 0..3);
        assert_eq!(read(&mut reader), [0, 1, 2]);
        // Several rotations at once.
        write(&mut log, 3..20);
        assert_eq!(read(&mut reader), (3..20).collect::<Vec<_>>());
        write(&mut log, 20..21);
        assert_eq!(read(&mut reader), [20]);
    }

    #[test]
    fn a_tail_counts_over_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        write(&mut LogWriter::open(&path, 500, 9).unwrap(), 0..30);
        for tail in [0, 1, 5, 12, 29, 30, 100] {
            let options = ReadOptions { tail: Some(tail), ..ReadOptions::default() };
            let entries = read(&mut LogReader::open(&path, options).unwrap());
            let first = 30_i64.saturating_sub(i64::try_from(tail).unwrap()).max(0);
            assert_eq!(entries, (first..30).collect::<Vec<_>>(), "tail {tail}");
        }
    }

    #[test]
    fn entries_are_chosen_by_time_and_broken_lines_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "not json\n{\"log\":1}\n").unwrap();
        write(&mut LogWriter::open(&path, 0, 1).unwrap(), 0..10);
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let options = ReadOptions { tail: None, since: at(3), until: at(6) };
        assert_eq!(read(&mut LogReader::open(&path, options).unwrap()), [3, 4, 5]);
    }

    #[test]
    fn a_tail_before_a_moment_counts_back_from_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        write(&mut LogWriter::open(&path, 500, 9).unwrap(), 0..30);
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        for (tail, expected) in [(0, 20..20), (3, 17..20), (100, 5..20)] {
            let options = ReadOptions { tail: Some(tail), since: at(5), until: at(20) };
            let entries = read(&mut LogReader::open(&path, options).unwrap());
            assert_eq!(entries, expected.collect::<Vec<_>>(), "tail {tail}");
        }
    }

    #[test]
    fn a_file_that_somebody_emptied_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, 0, 1).unwrap();
        write(&mut log, 0..5);
        let mut reader = LogReader::open(&path, ReadOptions::default()).unwrap();
        assert_eq!(read(&mut reader), [0, 1, 2, 3, 4]);
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        write(&mut log, 5..7);
        assert_eq!(read(&mut reader), [5, 6]);
    }

    #[test]
    fn files_are_found_in_the_middle_of_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut reader = LogReader::open(&path, ReadOptions::default()).unwrap();
        for number in (0..3).rev() {
            write(
                &mut LogWriter::open(&numbered(&path, number), 0, 1).unwrap(),
                3 - i64::from(number)..4 - i64::from(number),
            );
        }
        assert_eq!(reader.next_entry().unwrap().unwrap().text(), "1");
        // `.2` has moved on, `.1` has taken its place, and the current file is still to follow.
        std::fs::rename(numbered(&path, 2), numbered(&path, 3)).unwrap();
        std::fs::rename(numbered(&path, 1), numbered(&path, 2)).unwrap();
        assert_eq!(read(&mut reader), [2, 3]);
    }

    #[test]
    fn no_line_is_lost_while_a_log_rotates_as_fast_as_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut reader = LogReader::open(&path, ReadOptions::default()).unwrap();
        let file = path.clone();
        let writer = std::thread::spawn(move || {
            write(&mut LogWriter::open(&file, 200, 100).unwrap(), 0..150);
        });
        let mut seen = Vec::new();
        while !writer.is_finished() {
            seen.extend(read(&mut reader));
        }
        writer.join().unwrap();
        seen.extend(read(&mut reader));
        assert_eq!(seen, (0..150).collect::<Vec<_>>());
    }
}
