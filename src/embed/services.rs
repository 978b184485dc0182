//! A desired state as a program hands it over: text, and what the text refers to.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::supervise::report::UpRequest;

/// The services that a project should have, in the format of `services.yaml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services {
    request: UpRequest,
}

impl Services {
    /// The services that `text` describes, as the project `project`. Relative paths in it start at `/` unless
    /// [`Services::base_dir`] says otherwise.
    #[must_use]
    pub fn from_text(project: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            request: UpRequest {
                project: project.into(),
                file: PathBuf::new(),
                text: text.into(),
                base_dir: PathBuf::from("/"),
                environment: BTreeMap::new(),
                services: Vec::new(),
                independent: Vec::new(),
                recreate: Vec::new(),
                sources: None,
            },
        }
    }

    /// The services that a file describes. The file is watched from then on, also by later controls: an edit is
    /// applied by itself.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn from_file(project: impl Into<String>, file: &Path) -> io::Result<Self> {
        let file = std::path::absolute(file)?;
        let mut services = Self::from_text(project, std::fs::read_to_string(&file)?);
        services.request.base_dir = file.parent().unwrap_or(Path::new("/")).to_path_buf();
        services.request.file = file;
        Ok(services)
    }

    /// Where relative paths of volumes start.
    #[must_use]
    pub fn base_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.request.base_dir = folder.into();
        self
    }

    /// A variable that the text may take over by name. The environment of this process is not used.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.environment.insert(name.into(), value.into());
        self
    }

    /// Only this service of the text; may be called for several.
    #[must_use]
    pub fn only(mut self, service: impl Into<String>) -> Self {
        self.request.services.push(service.into());
        self
    }

    pub(super) fn into_request(self) -> UpRequest {
        self.request
    }
}
