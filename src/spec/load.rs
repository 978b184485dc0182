//! From the files of a project to one tree: reading, variables, paths, `include`, `extends`, merging, `env_file`.
//!
//! Files come through [`FileSource`], so that a command and the control read them in the same way, and tests without
//! any. Every file that was looked at is told, for whoever watches them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dotenv::{self, Format};
use super::interpolate::{Report, Usage, Variables};
use super::raw::{self, Node};
use super::tag::{self, Tag, Tagged};
use super::{Position, Problem, ProblemKind, Unsupported, merge, place};

/// Most files of one project, those read twice counted twice: stops includes that double at every step.
const MAX_FILES: usize = 200;
/// Most nodes that all files and all extended services have together.
const MAX_NODES: usize = 400_000;

/// Gives texts of files.
pub trait FileSource {
    /// The text of a file; `None` when there is none.
    ///
    /// # Errors
    /// A reason for people, without the path.
    fn read(&self, path: &Path) -> Result<Option<String>, String>;

    /// How messages name a file.
    fn display(&self, path: &Path) -> String {
        path.display().to_string()
    }
}

/// Where a project comes from: what reading it again needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// Services files in the order of merging; absolute.
    pub files: Vec<PathBuf>,
    /// Where relative paths start; absolute.
    pub project_dir: PathBuf,
    /// Files with variables, later ones winning. `None`: `.env` of the project's folder, if there is one.
    #[serde(default)]
    pub env_files: Option<Vec<PathBuf>>,
    /// Active profiles. Empty: those of `COMPOSE_PROFILES`.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// What becomes of what this version does not do.
    #[serde(default, skip_serializing_if = "Unsupported::is_reject")]
    pub unsupported: Unsupported,
    /// Every file that was looked at, so that a change of any is noticed.
    #[serde(default)]
    pub read: Vec<PathBuf>,
}

/// A file while it is worked on.
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) root: Node,
    pub(super) tagged: Vec<Tagged>,
}

/// Where a file is read from and what its variables are.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a, 'v> {
    /// Relative paths start here.
    pub(super) folder: &'a Path,
    /// `None`: variables stay as they are written.
    pub(super) variables: Option<&'a Variables<'v>>,
}

/// Reads files and collects what is wrong with them.
pub(super) struct Loader<'a> {
    pub(super) source: &'a dyn FileSource,
    /// Names of the files that positions refer to.
    pub(super) shown: Vec<String>,
    pub(super) read: BTreeSet<PathBuf>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    warned: BTreeSet<String>,
    nodes: usize,
}

impl<'a> Loader<'a> {
    pub(super) fn new(source: &'a dyn FileSource) -> Self {
        Self {
            source,
            shown: Vec::new(),
            read: BTreeSet::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            warned: BTreeSet::new(),
            nodes: 0,
        }
    }

    pub(super) fn problem(&mut self, at: Position, path: &str, message: impl ToString) {
        let file = self.shown.get(usize::from(at.file)).cloned().unwrap_or_default();
        let message = message.to_string();
        self.problems.push(Problem {
            file,
            at: Some(at),
            path: path.to_owned(),
            message,
            kind: ProblemKind::Invalid,
        });
    }

    /// A problem of a whole file, or at the place that names it.
    pub(super) fn file_problem(&mut self, path: &Path, named_at: Option<Position>, message: &str) {
        let shown = self.source.display(path);
        match named_at {
            Some(at) => self.problem(at, "", format!("`{shown}`: {message}")),
            None => self.problems.push(Problem {
                kind: ProblemKind::Invalid,
                file: shown,
                at: None,
                path: String::new(),
                message: message.to_owned(),
            }),
        }
    }

    /// The text of a file that must be there.
    pub(super) fn text(&mut self, path: &Path, named_at: Option<Position>) -> Option<String> {
        self.read.insert(path.to_owned());
        match self.source.read(path) {
            Ok(Some(text)) => Some(text),
            Ok(None) => {
                self.file_problem(path, named_at, "there is no such file");
                None
            }
            Err(reason) => {
                self.file_problem(path, named_at, &format!("could not be read: {reason}"));
                None
            }
        }
    }

    /// Counts what is worked on; `None` when it is too much.
    pub(super) fn afford(&mut self, node: &Node) -> Option<()> {
        let before = self.nodes;
        self.nodes = before.saturating_add(node.count());
        if self.nodes <= MAX_NODES {
            return Some(());
        }
        if before <= MAX_NODES {
            let message = format!(
                "the project has more than {MAX_NODES} values, which is no project of people"
            );
            self.problem(node.at, "", message);
        }
        None
    }

    /// One file, with its variables replaced and its paths absolute.
    pub(super) fn document(
        &mut self,
        path: &Path,
        named_at: Option<Position>,
        scope: Scope<'_, '_>,
    ) -> Option<Document> {
        if self.shown.len() >= MAX_FILES {
            self.file_problem(path, named_at, &format!("more than {MAX_FILES} files are read"));
            return None;
        }
        let text = self.text(path, named_at)?;
        let file = u16::try_from(self.shown.len()).ok()?;
        let shown = self.source.display(path);
        self.shown.push(shown.clone());
        let (text, marks) = tag::take(&text, file);
        let mut root = match raw::read(&text, file) {
            Ok(root) => root,
            Err(error) => {
                self.problems.push(Problem {
                    kind: ProblemKind::Invalid,
                    file: shown,
                    at: error.at,
                    path: String::new(),
                    message: error.message,
                });
                return None;
            }
        };
        self.afford(&root)?;
        let tagged = match tag::locate(&marks, &root) {
            Ok(tagged) => tagged,
            Err(misplaced) => {
                let message = format!("`{}` stands only before the value of a key", misplaced.name);
                self.problem(misplaced.at, "", message);
                Vec::new()
            }
        };
        if let Some(variables) = scope.variables {
            let mut report = Report {
                file: &shown,
                problems: &mut self.problems,
                warnings: &mut self.warnings,
                warned: &mut self.warned,
            };
            variables.apply(&mut root, &mut report);
        }
        place::resolve(&mut root, scope.folder);
        Some(Document { path: path.to_owned(), root, tagged })
    }

    /// Several files as one, with what they include and extend.
    pub(super) fn merged(
        &mut self,
        files: &[PathBuf],
        named_at: Option<Position>,
        scope: Scope<'_, '_>,
        chain: &mut Vec<PathBuf>,
    ) -> Option<Node> {
        let mut merged: Option<Node> = None;
        for path in files {
            if chain.contains(path) {
                let cycle = chain.iter().chain([path]).map(|path| self.source.display(path));
                let message = format!(
                    "the files include each other: {}",
                    cycle.collect::<Vec<_>>().join(" → ")
                );
                self.file_problem(path, named_at, &message);
                continue;
            }
            let Some(mut document) = self.document(path, named_at, scope) else { continue };
            chain.push(path.clone());
            self.include(&mut document, scope, chain);
            chain.pop();
            self.extend_all(&mut document, scope, merged.as_ref());
            merge::clear(&document.tagged, merged.as_mut(), &mut document.root);
            merged = Some(match merged {
                None => document.root,
                Some(base) => {
                    let mut conflicts = Vec::new();
                    let node = merge::files(base, document.root, &mut conflicts);
                    self.conflicts(conflicts);
                    node
                }
            });
        }
        merged
    }

    pub(super) fn conflicts(&mut self, conflicts: Vec<merge::Conflict>) {
        for conflict in conflicts {
            self.problem(conflict.at, &conflict.path, conflict.message);
        }
    }

    /// The variables of a file.
    pub(super) fn env_file(
        &mut self,
        path: &Path,
        format: Format,
        text: &str,
        variables: &Variables<'_>,
    ) -> Option<BTreeMap<String, String>> {
        let shown = self.source.display(path);
        let place = |line| Some(Position { file: 0, line, column: 1 });
        let mut unset = Vec::new();
        let found = dotenv::parse(text, format, variables, &mut |name, line| {
            unset.push((name.to_owned(), line));
        });
        for (name, line) in unset {
            if self.warned.insert(name.clone()) {
                let message = format!("the variable `{name}` is not set; it counts as blank");
                self.warnings.push(Problem {
                    kind: ProblemKind::Invalid,
                    file: shown.clone(),
                    at: place(line),
                    path: String::new(),
                    message,
                });
            }
        }
        match found {
            Ok(found) => Some(found),
            Err((line, error)) => {
                let message = error.to_string();
                self.problems.push(Problem {
                    kind: ProblemKind::Invalid,
                    file: shown,
                    at: place(line),
                    path: String::new(),
                    message,
                });
                None
            }
        }
    }

    /// What the caller's variables are completed with: `--env-file`s, or the `.env` of a folder.
    pub(super) fn defaults<'v>(
        &mut self,
        env_files: Option<&[PathBuf]>,
        folder: &Path,
        named_at: Option<Position>,
        variables: &Variables<'v>,
    ) -> Variables<'v> {
        let mut found = BTreeMap::new();
        match env_files {
            Some(files) => {
                for path in files {
                    let Some(text) = self.text(path, named_at) else { continue };
                    let scope = variables.with_defaults(found.clone());
                    found.extend(
                        self.env_file(path, Format::Compose, &text, &scope).unwrap_or_default(),
                    );
                }
            }
            None => {
                let path = folder.join(".env");
                self.read.insert(path.clone());
                // A folder of this name, or one that cannot be looked into, is no `.env`.
                if let Ok(Some(text)) = self.source.read(&path) {
                    found =
                        self.env_file(&path, Format::Compose, &text, variables).unwrap_or_default();
                }
            }
        }
        variables.with_defaults(found)
    }
}

impl Document {
    /// Takes `!reset` and `!override` of a service out of what it extends.
    pub(super) fn clear(&self, service: &str, base: &mut Node) {
        merge::clear_service(service, &self.tagged, base);
    }

    /// Whether the file resets this key of a service.
    pub(super) fn resets(&self, service: &str, key: &str) -> bool {
        self.tagged
            .iter()
            .any(|tagged| tagged.tag == Tag::Reset && tagged.path == ["services", service, key])
    }
}

/// Names that were looked up while files were read.
pub(super) fn names(usage: Usage) -> BTreeSet<String> {
    usage.names.into_inner()
}
