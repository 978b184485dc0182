//! Reading a log back, oldest entry first, over all of its files.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::LogEntry;
use super::write::rotated;

/// Which entries are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Only the last so many entries; all of them where `None`.
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
}

#[derive(Debug)]
struct OpenFile {
    reader: BufReader<File>,
    inode: u64,
    line: Vec<u8>,
}

/// More rotated files than anybody keeps; bounds the search for them.
const MAX_ROTATED: u32 = 1000;

impl LogReader {
    /// Begins to read the log at `path`, which need not exist yet.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, options: ReadOptions) -> io::Result<Self> {
        let mut reader = Self { path: path.to_owned(), options, current: None };
        reader.current = match options.tail {
            Some(tail) => reader.seek_tail(tail)?,
            None => reader.oldest()?,
        };
        Ok(reader)
    }

    /// The next entry; `None` at the end, for now. Lines that are no entries are skipped.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next_entry(&mut self) -> io::Result<Option<LogEntry>> {
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
        let mut files = Vec::new();
        for number in 0..MAX_ROTATED {
            let path = if number == 0 { self.path.clone() } else { rotated(&self.path, number) };
            match File::open(path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    files.push((file, inode));
                }
                // Between the two renames of a rotation the current file is missing for a moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
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
}
