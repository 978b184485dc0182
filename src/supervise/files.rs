//! Files of a project on this host: how both a command and the control read them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::report::UpRequest;
use crate::spec::{self, FileSource, Interpolation, LoadInput, ProjectName, Sources};

/// Longest file that is read; more than the parser takes, which then says so.
const MAX_FILE: u64 = 8 << 20;

/// The files of this host.
#[derive(Debug)]
pub struct HostFiles {
    below: Option<PathBuf>,
    kinds: FileKinds,
    /// Each file is read once: a pipe can be read no second time, and all of a project should be of one moment.
    known: RefCell<HashMap<PathBuf, Result<Option<String>, String>>>,
}

/// What may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKinds {
    /// Whatever can be opened: who asks can see that it takes long.
    Any,
    /// Regular files: anything else could be waited for without end.
    Regular,
}

impl HostFiles {
    /// Messages name files relative to `below`.
    #[must_use]
    pub fn new(below: Option<PathBuf>, kinds: FileKinds) -> Self {
        Self { below, kinds, known: RefCell::default() }
    }

    fn open(&self, path: &Path) -> io::Result<Option<String>> {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            return Err(io::Error::other("it is a folder"));
        }
        if self.kinds == FileKinds::Regular && !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        String::from_utf8(bytes).map(Some).map_err(|_| io::Error::other("it is not UTF-8"))
    }
}

impl FileSource for HostFiles {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        if let Some(known) = self.known.borrow().get(path) {
            return known.clone();
        }
        let read = self.open(path).map_err(|error| error.to_string());
        self.known.borrow_mut().insert(path.to_owned(), read.clone());
        read
    }

    fn display(&self, path: &Path) -> String {
        let below = self.below.as_deref().and_then(|below| path.strip_prefix(below).ok());
        below.unwrap_or(path).display().to_string()
    }
}

/// A project whose files were read again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reread {
    pub(super) text: String,
    pub(super) sources: Option<Sources>,
    pub(super) warnings: Vec<String>,
}

/// Why the last good state of a project stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RereadError {
    Unreadable(String),
    Invalid(String),
}

/// Reads the files of a project again. It blocks.
pub(super) fn reread(request: &UpRequest) -> Result<Reread, RereadError> {
    let files = HostFiles::new(None, FileKinds::Regular);
    let unreadable =
        |reason: &str| RereadError::Unreadable(format!("`{}`: {reason}", request.file.display()));
    let text = match files.read(&request.file) {
        Ok(Some(text)) => text,
        Ok(None) => return Err(unreadable("there is no such file")),
        Err(reason) => return Err(unreadable(&reason)),
    };
    let Some(sources) = &request.sources else {
        return Ok(Reread { text, sources: None, warnings: Vec::new() });
    };
    let invalid = |problem: &dyn ToString| RereadError::Invalid(problem.to_string());
    let project: ProjectName =
        request.project.parse().map_err(|error: spec::NameError| invalid(&error))?;
    let input = LoadInput {
        sources,
        project: Some(&project),
        environment: &request.environment,
        named: &request.services,
        interpolation: Interpolation::Replace,
    };
    let composition = spec::compose(&input, &files).map_err(|problems| invalid(&problems))?;
    // Here, where places in the user's files are known; the kept text has others.
    composition.check().map_err(|problems| invalid(&problems))?;
    Ok(Reread {
        text: composition.text(),
        warnings: composition.warnings.iter().map(ToString::to_string).collect(),
        sources: Some(composition.sources),
    })
}
