//! Writing and rotating a log.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::Stream;
use super::encode::Encoder;

/// Most files that a log can have; bounds what a reader looks for.
pub const MAX_FILES: u32 = 100;

/// How much is collected before it is written.
const FLUSH_AT: usize = 64 * 1024;

/// Appends entries to a log and rotates it. One writer a log.
///
/// What cannot be written is given up and counted, so that a full disk neither stops the workload nor fills the
/// memory; as soon as something can be written again, a line says how many were lost.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    flush_at: usize,
    encoder: Encoder,
    file: Option<OpenFile>,
    buffer: Vec<u8>,
    /// Entries in `buffer`.
    waiting: u64,
    lost: Option<Lost>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    size: u64,
    /// The last line has no newline yet: only a part of it could be written.
    is_torn: bool,
}

/// Lines that are in no file.
#[derive(Debug)]
struct Lost {
    lines: u64,
    why: String,
}

impl LogWriter {
    /// A writer of the log at `path`; file and directory are made when the first line is written. It is rotated after
    /// `max_size` bytes, never if that is zero; `max_files` includes the current file, and is at least one. Every
    /// entry carries `attributes`.
    #[must_use]
    pub fn new(
        path: &Path,
        max_size: u64,
        max_files: u32,
        attributes: &BTreeMap<String, String>,
    ) -> Self {
        Self {
            path: path.to_owned(),
            max_size,
            max_files: max_files.clamp(1, MAX_FILES),
            // What is written at once is in one file, and that must not be much longer than it was asked to be.
            flush_at: match usize::try_from(max_size) {
                Ok(size @ 1..) => FLUSH_AT.min(size / 4),
                _ => FLUSH_AT,
            },
            encoder: Encoder::new(attributes),
            file: None,
            buffer: Vec::new(),
            waiting: 0,
            lost: None,
        }
    }

    /// As [`LogWriter::new`] without attributes, and opens the file at once.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        let mut log = Self::new(path, max_size, max_files, &BTreeMap::new());
        log.file()?;
        Ok(log)
    }

    /// Adds one line as it was read at `time`; it is written at the next [`LogWriter::flush`] or when enough has come
    /// together.
    ///
    /// # Errors
    /// Those of writing; what was collected is lost then.
    pub fn append(&mut self, stream: Stream, time: Timestamp, line: &[u8]) -> io::Result<()> {
        self.encoder.encode(&mut self.buffer, stream, time, line);
        self.waiting += 1;
        if self.buffer.len() >= self.flush_at { self.flush() } else { Ok(()) }
    }

    /// Counts lines that never got here, and says why.
    pub fn lose(&mut self, lines: u64, why: &str) {
        match &mut self.lost {
            Some(lost) => lost.lines += lines,
            None => self.lost = Some(Lost { lines, why: why.to_owned() }),
        }
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() && self.lost.is_none() {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.buffer);
        let waiting = std::mem::take(&mut self.waiting);
        let mut bytes = Vec::new();
        if let Some(Lost { lines, why }) = &self.lost {
            let s = if *lines == 1 { "" } else { "s" };
            let text = format!("supervisor: {lines} line{s} lost: {why}\n");
            self.encoder.encode(&mut bytes, Stream::Stderr, Timestamp::now(), text.as_bytes());
        }
        let notice = bytes.len();
        bytes.extend_from_slice(&entries);
        let (written, result) = self.write(&bytes);
        if written >= notice {
            self.lost = None;
        }
        if let Err(error) = &result {
            let rest = bytes.get(written.max(notice)..).unwrap_or_default();
            let lines = u64::try_from(bytecount(rest)).unwrap_or(waiting).min(waiting);
            self.lose(lines, &error.to_string());
        }
        result
    }

    /// Writes lines to the file that they belong to; says how many bytes are in it for good: whole lines.
    fn write(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let max_size = self.max_size;
        let is_full = match self.file() {
            Ok(open) => {
                max_size > 0 && open.size > 0 && open.size.saturating_add(length) > max_size
            }
            Err(error) => return (0, Err(error)),
        };
        if is_full && let Err(error) = self.rotate() {
            return (0, Err(error));
        }
        let open = match self.file() {
            Ok(open) => open,
            Err(error) => return (0, Err(error)),
        };
        match open.append(bytes) {
            Ok(()) => (bytes.len(), Ok(())),
            Err((written, error)) => {
                let whole = bytes[..written].iter().rposition(|&byte| byte == b'\n');
                (whole.map_or(0, |at| at + 1), Err(error))
            }
        }
    }

    fn file(&mut self) -> io::Result<&mut OpenFile> {
        let open = match self.file.take() {
            Some(open) => open,
            None => {
                if let Some(dir) = self.path.parent() {
                    fs::create_dir_all(dir)?;
                }
                OpenFile::open(&self.path)?
            }
        };
        Ok(self.file.insert(open))
    }

    fn rotate(&mut self) -> io::Result<()> {
        // Also where a rotation could not make its new file, and where somebody took the file away: shifting the
        // older ones would then only throw the oldest away.
        if self.path.symlink_metadata().is_ok() {
            if self.max_files == 1 {
                // There is nowhere to keep the old lines. A fresh inode, so that followers notice.
                fs::remove_file(&self.path)?;
            }
            for number in (0..self.max_files - 1).rev() {
                match fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            // Left by a log that kept more files.
            for number in self.max_files..MAX_FILES {
                if fs::remove_file(numbered(&self.path, number)).is_err() {
                    break;
                }
            }
        }
        self.file = None;
        self.file().map(drop)
    }
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        // A line that a killed writer or a full disk left unfinished is ended before the next one. It is not cut
        // away: who reads along would take a file that shrinks for a new one, and read it all again.
        let mut last = *b"\n";
        if size > 0 {
            file.seek(SeekFrom::Start(size - 1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Self { file, size, is_torn: last != *b"\n" })
    }

    /// Appends `bytes`; where that fails, says how many of them are there.
    fn append(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        if self.is_torn {
            self.file.write_all(b"\n").map_err(|error| (0, error))?;
            self.size += 1;
            self.is_torn = false;
        }
        let mut written = 0;
        while written < bytes.len() {
            match self.file.write(&bytes[written..]) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    written += count;
                    self.size += u64::try_from(count).unwrap_or(0);
                    self.is_torn = bytes[written - 1] != b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }
}

fn bytecount(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// The name of the `number`th file before the current one, which is number zero.
pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_rotated_and_the_oldest_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/web.json");
        let mut log = LogWriter::open(&path, 300, 3).unwrap();
        for number in 0..40 {
            let line = format!("line {number:02}\n");
            log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, line.as_bytes()).unwrap();
            log.flush().unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["web.json", "web.json.1", "web.json.2"]);
        for name in names {
            assert!(fs::metadata(path.with_file_name(name)).unwrap().len() <= 300);
        }
    }

    #[test]
    fn an_unfinished_line_of_a_killed_writer_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, r#"{"log":"cut"#).unwrap();
        let mut log = LogWriter::open(&path, 0, 1).unwrap();
        log.append(Stream::Stderr, Timestamp::UNIX_EPOCH, b"next\n").unwrap();
        log.flush().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let line = r#"{"log":"next\n","stream":"stderr","time":"1970-01-01T00:00:00Z"}"#;
        assert_eq!(text.lines().nth(1), Some(line));
    }

    #[test]
    fn a_full_disk_is_an_error_and_not_a_growing_buffer() {
        let mut log = LogWriter::open(Path::new("/dev/full"), 0, 1).unwrap();
        for _ in 0..3 {
            log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, b"x\n").unwrap();
            assert!(log.flush().is_err());
        }
        assert!(log.buffer.is_empty());
        assert_eq!(log.lost.as_ref().unwrap().lines, 3);
    }

    #[test]
    fn lost_lines_are_counted_in_the_log_as_soon_as_it_can_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // A directory in the place of the file: nothing can be written.
        fs::create_dir(&path).unwrap();
        let mut log = LogWriter::new(&path, 0, 1, &BTreeMap::new());
        for _ in 0..3 {
            log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, b"a\n").unwrap();
            log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, b"b\n").unwrap();
            log.flush().unwrap_err();
        }
        fs::remove_dir(&path).unwrap();
        log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, b"again\n").unwrap();
        log.flush().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\"log\":\"supervisor: 6 lines lost: Is a directory"), "{text}");
        assert!(text.contains("again"), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn a_line_that_was_cut_by_a_full_disk_is_ended_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut open = OpenFile::open(&path).unwrap();
        open.append(b"one\ntw").unwrap();
        open.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntw\nthree\n");
        assert_eq!(open.size, 13);
    }

    #[test]
    fn a_rotation_without_a_current_file_throws_no_older_one_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogWriter::open(&path, 100, 3).unwrap();
        for text in ["first\n", "second\n", "third\n", "fourth\n"] {
            if text == "third\n" {
                // Taken away by somebody, or never made because the disk was full.
                fs::remove_file(&path).unwrap();
            }
            log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, text.as_bytes()).unwrap();
            log.flush().unwrap();
        }
        let has =
            |number, text| fs::read_to_string(numbered(&path, number)).unwrap().contains(text);
        assert!(has(0, "fourth") && has(1, "third") && has(2, "first"));
    }

    #[test]
    fn files_of_a_log_that_kept_more_go_at_the_next_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (files, left) in [(5, 5), (2, 2)] {
            let mut log = LogWriter::open(&path, 100, files).unwrap();
            for _ in 0..10 {
                log.append(Stream::Stdout, Timestamp::UNIX_EPOCH, b"0123456789\n").unwrap();
                log.flush().unwrap();
            }
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), left);
        }
    }
}
