//! Files of a project on this host: how both a command and the control read them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::report::UpRequest;
use crate::image::Digest;
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

/// What was in the files of a project at a moment, each as its digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Glance(BTreeMap<PathBuf, Result<Option<Digest>, String>>);

impl Glance {
    fn at(request: &UpRequest) -> Self {
        let files = HostFiles::new(None, FileKinds::Regular);
        let read = |path: &PathBuf| {
            let text = files.read(path);
            (path.clone(), text.map(|text| text.map(|text| Digest::of(text.as_bytes()))))
        };
        let sources = request.sources.iter().flat_map(|sources| &sources.read);
        Self(sources.chain([&request.file]).map(read).collect())
    }
}

/// As [`reread`], unless nothing has changed since `known`: to find that out costs much less. It blocks.
pub(super) fn reread_since(
    known: Option<&Glance>,
    request: &UpRequest,
) -> (Glance, Option<Result<Reread, RereadError>>) {
    // First, so that what is written meanwhile shows the next time.
    let now = Glance::at(request);
    let result = (known != Some(&now)).then(|| reread(request));
    (now, result)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_composed_again_when_a_file_has_changed_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("services.yaml");
        let write = |image: &str| {
            std::fs::write(&file, format!("services: {{web: {{image: '{image}'}}}}")).unwrap();
        };
        write("one");
        let mut request = UpRequest {
            project: "shop".to_owned(),
            file: file.clone(),
            text: String::new(),
            base_dir: folder.path().to_path_buf(),
            environment: BTreeMap::new(),
            services: Vec::new(),
            independent: Vec::new(),
            recreate: Vec::new(),
            sources: Some(Sources {
                files: vec![file.clone()],
                project_dir: folder.path().to_path_buf(),
                ..Sources::default()
            }),
        };
        let mut known = None;
        let mut look = || {
            let (now, result) = reread_since(known.as_ref(), &request);
            known = Some(now);
            let reread = result?.unwrap();
            request.sources = reread.sources;
            Some(reread.text)
        };
        assert!(look().unwrap().contains("one"));
        // Which files there are has become known.
        look();
        assert_eq!(look(), None);
        write("two");
        assert!(look().unwrap().contains("two"));
        assert_eq!(look(), None);
        // One that was looked for and was not there.
        std::fs::write(folder.path().join(".env"), "A=b").unwrap();
        assert!(look().is_some());
        assert_eq!(look(), None);
    }
}
