//! Writing and rotating a log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{LogEntry, Stream};

/// Appends entries to a log and rotates it. One writer a log.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    file: File,
    size: u64,
    buffer: Vec<u8>,
}

/// How much is collected before it is written.
const FLUSH_AT: usize = 64 * 1024;

impl LogWriter {
    /// Opens or creates the log at `path`, whose directory is made. It is rotated after `max_size` bytes;
    /// `max_files` includes the current file, and is at least one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, max_size: u64, max_files: u32) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let (file, size) = open_for_append(path)?;
        let max_files = max_files.max(1);
        Ok(Self { path: path.to_owned(), max_size, max_files, file, size, buffer: Vec::new() })
    }

    /// Adds one line as it was read now; it is written at the next [`LogWriter::flush`] or when enough has come
    /// together.
    ///
    /// # Errors
    /// Those of writing; what was collected is given up then, so that a full disk neither stops the workload nor
    /// fills the memory.
    pub fn append(&mut self, stream: Stream, time: Timestamp, line: &[u8]) -> io::Result<()> {
        let entry = LogEntry { log: String::from_utf8_lossy(line).into_owned(), stream, time };
        serde_json::to_writer(&mut self.buffer, &entry)?;
        self.buffer.push(b'\n');
        if self.buffer.len() >= FLUSH_AT { self.flush() } else { Ok(()) }
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// As [`LogWriter::append`].
    pub fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.max_size > 0 && self.size + length > self.max_size {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(&buffer) {
            // A part of it may be there: the next line must not be glued to it.
            self.size = self.file.seek(SeekFrom::End(0)).unwrap_or(self.size);
            let _ = end_line(&mut self.file, self.size);
            return Err(error);
        }
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.max_files == 1 {
            // With a single file there is nowhere to keep the old lines. A fresh inode, so that followers notice.
            fs::remove_file(&self.path)?;
        } else {
            for number in (1..self.max_files - 1).rev() {
                let older = rotated(&self.path, number + 1);
                match fs::rename(rotated(&self.path, number), older) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, rotated(&self.path, 1))?;
        }
        (self.file, self.size) = open_for_append(&self.path)?;
        Ok(())
    }
}

/// The name of the `number`th file before the current one.
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn open_for_append(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    let size = size + end_line(&mut file, size)?;
    Ok((file, size))
}

/// Ends a line that a killed writer or a full disk left unfinished; returns how many bytes that took.
fn end_line(file: &mut File, size: u64) -> io::Result<u64> {
    if size == 0 {
        return Ok(0);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(size - 1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(0);
    }
    file.write_all(b"\n")?;
    Ok(1)
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
    }
}
