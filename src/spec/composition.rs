//! A project put together from its files, before and after validation: what `up` sends and what `config` prints.

use std::collections::{BTreeMap, BTreeSet};

use super::emit::{self, Dollars};
use super::interpolate::{Usage, Variables};
use super::load::{self, FileSource, Loader, Scope, Sources};
use super::raw::Node;
use super::{
    Checked, Desired, GrantKind, ParseInput, Problem, ProblemKind, Problems, ProjectChoice,
    ProjectName, Selection, env_files, forms, validate,
};

/// Variables that give a project its name, the first one winning.
const NAME_VARIABLES: [&str; 2] = ["SUPERVISOR_PROJECT_NAME", "COMPOSE_PROJECT_NAME"];

/// What becomes of variables in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// They are replaced.
    Replace,
    /// They stay as they are written.
    Keep,
}

/// How a project is put together.
#[derive(Debug, Clone, Copy)]
pub struct LoadInput<'a> {
    /// Its files.
    pub sources: &'a Sources,
    /// The name that was chosen for it; else variables, `name:` and the folder tell.
    pub project: Option<&'a ProjectName>,
    /// Variables of the caller.
    pub environment: &'a BTreeMap<String, String>,
    /// Services that were named, which run whatever their profiles are.
    pub named: &'a [String],
    /// Whether variables are replaced.
    pub interpolation: Interpolation,
}

/// A project that was put together.
#[derive(Debug, Clone)]
pub struct Composition {
    root: Node,
    shown: Vec<String>,
    project: ProjectName,
    selection: Selection,
    dollars: Dollars,
    /// What compose would warn of: variables without a value.
    pub warnings: Vec<Problem>,
    /// With the profiles that are active, and every file that was looked at.
    pub sources: Sources,
    /// Names of variables that were looked up.
    pub used: BTreeSet<String>,
    /// The variables that files could name.
    pub environment: BTreeMap<String, String>,
}

/// Puts a project together from its files.
///
/// # Errors
/// All that keeps the files from being one project. What the keys mean is checked by [`Composition::check`].
pub fn compose(input: &LoadInput<'_>, source: &dyn FileSource) -> Result<Composition, Problems> {
    let usage = Usage::default();
    let composed = {
        let mut loader = Loader::new(source);
        let composed = put_together(input, &mut loader, &usage);
        match (Problems::new(std::mem::take(&mut loader.problems)), composed) {
            (Some(problems), _) => return Err(problems),
            (None, Some(composed)) => composed,
            // What keeps a file from being read was reported.
            (None, None) => return Err(Problems::no_file(&input.sources.project_dir)),
        }
    };
    Ok(Composition { used: load::names(usage), ..composed })
}

fn put_together(
    input: &LoadInput<'_>,
    loader: &mut Loader<'_>,
    usage: &Usage,
) -> Option<Composition> {
    let sources = input.sources;
    let folder = sources.project_dir.as_path();
    let shell = Variables::new(input.environment, usage);
    let variables = loader.defaults(sources.env_files.as_deref(), folder, None, &shell);
    let project = project_name(input, loader, &variables)?;
    // As in compose, files can name it.
    let named = [("COMPOSE_PROJECT_NAME".to_owned(), project.to_string())];
    let variables = variables.with_defaults(named);
    let scope = Scope {
        folder,
        variables: (input.interpolation == Interpolation::Replace).then_some(&variables),
    };
    let mut root = loader.merged(&sources.files, None, scope, &mut Vec::new());
    if let Some(root) = &mut root {
        root.remove("include");
    }
    let mut root = root?;
    let mut profiles = sources.profiles.clone();
    if profiles.is_empty() {
        let variable = variables.get("COMPOSE_PROFILES").unwrap_or_default();
        profiles.extend(
            variable.split(',').map(str::trim).filter(|p| !p.is_empty()).map(str::to_owned),
        );
    }
    let unsupported = sources.unsupported;
    let selection = Selection { profiles, named: input.named.to_vec(), unsupported };
    if let Some(variables) = scope.variables {
        env_files::resolve(&mut root, loader, variables, folder, &selection);
    }
    // What configs and secrets name is used too, though only the validation looks it up.
    for kind in GrantKind::ALL {
        for entry in root.get(kind.key()).and_then(Node::entries).unwrap_or_default() {
            if let Some(name) = entry.value.get("environment").and_then(Node::scalar) {
                variables.get(&name);
            }
        }
    }
    let dollars = match input.interpolation {
        Interpolation::Replace => Dollars::Escape,
        Interpolation::Keep => Dollars::Keep,
    };
    let sources = Sources {
        profiles: selection.profiles.clone(),
        read: std::mem::take(&mut loader.read).into_iter().collect(),
        ..sources.clone()
    };
    Some(Composition {
        root,
        shown: loader.shown.clone(),
        project,
        selection,
        dollars,
        warnings: std::mem::take(&mut loader.warnings),
        sources,
        used: BTreeSet::new(),
        environment: variables.all(),
    })
}

/// `-p`, then the variables, then `name:` of the last file that has one, then the folder.
fn project_name(
    input: &LoadInput<'_>,
    loader: &mut Loader<'_>,
    variables: &Variables<'_>,
) -> Option<ProjectName> {
    if let Some(name) = input.project {
        return Some(name.clone());
    }
    for variable in NAME_VARIABLES {
        if let Some(name) = variables.get(variable).filter(|name| !name.is_empty()) {
            return name
                .parse()
                .map_err(|error| {
                    loader.problems.push(Problem {
                        kind: ProblemKind::Invalid,
                        file: format!("${variable}"),
                        at: None,
                        path: String::new(),
                        message: format!("{error}"),
                    });
                })
                .ok();
        }
    }
    // What is wrong with a file is told when it is read in earnest.
    let named = input.sources.files.iter().rev().find_map(|path| {
        let text = loader.source.read(path).ok()??;
        let root = super::raw::read(&super::tag::take(&text, 0).0, 0).ok()?;
        let name = root.get("name")?.scalar()?;
        variables.substitute(&name, &mut |_| {}).ok()?.parse().ok()
    });
    let folder = || {
        let name = input.sources.project_dir.file_name()?;
        ProjectName::from_directory(&name.to_string_lossy())
    };
    // The root folder has no name, and one may have no usable letter.
    named.or_else(folder).or_else(|| "default".parse().ok())
}

impl Composition {
    /// The name of the project.
    #[must_use]
    pub fn project(&self) -> &ProjectName {
        &self.project
    }

    /// The first file, as messages name it.
    #[must_use]
    pub fn main_file(&self) -> &str {
        self.shown.first().map_or("", String::as_str)
    }

    /// Leaves out all services but these, unless there are none.
    pub fn keep(&mut self, services: &[String]) {
        if !services.is_empty()
            && let Some(entries) = self.root.get_mut("services").and_then(Node::entries_mut)
        {
            entries.retain(|entry| services.contains(&entry.key));
        }
    }

    /// What the files mean.
    ///
    /// # Errors
    /// Everything that is wrong with them, at once.
    pub fn check(&self) -> Result<Desired, Problems> {
        self.checked().map(|checked| checked.desired)
    }

    /// What the files mean, and what of them was left out.
    ///
    /// # Errors
    /// Those of [`Composition::check`].
    pub fn checked(&self) -> Result<Checked, Problems> {
        let file = self.shown.first().map_or("", String::as_str);
        let input = ParseInput {
            file,
            project: self.project.clone(),
            project_choice: ProjectChoice::Explicit,
            base_dir: &self.sources.project_dir,
            environment: &self.environment,
        };
        validate::check(&self.root, &input, &self.shown, &self.selection)
    }

    /// The project in its long forms, as YAML; reads back as the same project. All services are in it, those of
    /// profiles that are not active too.
    #[must_use]
    pub fn text(&self) -> String {
        emit::yaml(&self.canonical(Keep::All), self.dollars)
    }

    /// As [`Self::text`], with active services only: for people.
    #[must_use]
    pub fn yaml(&self) -> String {
        emit::yaml(&self.canonical(Keep::Active), self.dollars)
    }

    /// The active services as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let mut value = emit::json(&self.canonical(Keep::Active));
        if self.dollars == Dollars::Escape {
            escape(&mut value);
        }
        value
    }

    /// Names of the active services, in order.
    #[must_use]
    pub fn services(&self) -> Vec<String> {
        let services = self.root.get("services").and_then(Node::entries).unwrap_or_default();
        let active =
            services.iter().filter(|entry| self.selection.is_active(&entry.key, &entry.value));
        let names: BTreeSet<String> = active.map(|entry| entry.key.clone()).collect();
        names.into_iter().collect()
    }

    /// Images of the active services, also those that are mounted in them, each once, in order.
    #[must_use]
    pub fn images(&self) -> Vec<String> {
        let services = self.root.get("services").and_then(Node::entries).unwrap_or_default();
        let active =
            services.iter().filter(|entry| self.selection.is_active(&entry.key, &entry.value));
        let mut images = BTreeSet::new();
        for entry in active {
            images.extend(entry.value.get("image").and_then(Node::scalar));
            let volumes = entry.value.get("volumes").and_then(Node::items).unwrap_or_default();
            let of_image = |volume: &&Node| {
                volume.get("type").and_then(Node::scalar).as_deref() == Some("image")
            };
            let mounted = volumes.iter().filter(of_image);
            images.extend(mounted.filter_map(|volume| volume.get("source")?.scalar()));
        }
        images.into_iter().collect()
    }

    /// Names of the volumes at the top of the file, in order.
    #[must_use]
    pub fn volumes(&self) -> Vec<String> {
        let volumes = self.root.get("volumes").and_then(Node::entries).unwrap_or_default();
        let names: BTreeSet<String> = volumes.iter().map(|entry| entry.key.clone()).collect();
        names.into_iter().collect()
    }

    /// All profiles that services have, active or not, in order.
    #[must_use]
    pub fn profiles(&self) -> Vec<String> {
        let services = self.root.get("services").and_then(Node::entries).unwrap_or_default();
        let profiles = services.iter().flat_map(|entry| super::selection::profiles(&entry.value));
        profiles.collect::<BTreeSet<String>>().into_iter().collect()
    }

    /// Puts the values of variables into configs and secrets: who reads the text has no `.env`. People are not shown
    /// them.
    fn fill_grants(&self, root: &mut Node) {
        for kind in GrantKind::ALL {
            let entries = root.get_mut(kind.key()).and_then(Node::entries_mut);
            for entry in entries.into_iter().flatten() {
                let name = entry.value.get("environment").and_then(Node::scalar);
                let Some(value) = name.and_then(|name| self.environment.get(&name)) else {
                    continue;
                };
                if let Some(known) = entry.value.remove("environment") {
                    entry.value.set("content", known.at, Node::text(value.clone(), known.at));
                }
            }
        }
    }

    fn canonical(&self, keep: Keep) -> Node {
        let mut root = forms::canonical(&self.root);
        let at = root.at;
        root.remove("version");
        root.set("name", at, Node::text(self.project.to_string(), at));
        if keep == Keep::Active
            && let Some(services) = root.get_mut("services").and_then(Node::entries_mut)
        {
            services.retain(|entry| self.selection.is_active(&entry.key, &entry.value));
        }
        if keep == Keep::All {
            self.fill_grants(&mut root);
        }
        root
    }
}

/// Which services a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    All,
    Active,
}

fn escape(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = text.replace('$', "$$"),
        serde_json::Value::Array(items) => items.iter_mut().for_each(escape),
        serde_json::Value::Object(map) => map.values_mut().for_each(escape),
        _ => {}
    }
}
