//! Where services files are looked for when none is named, and what goes with those that are found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::settings::{Settings, absolute};
use crate::spec::{self, Sources};

/// Names of services files, the first one found winning: ours, then compose's.
const NAMES: [&str; 6] = [
    "services.yaml",
    "services.yml",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
];
/// Names of files that are merged on top of ours, the first one found.
const OVERRIDES: [&str; 2] = ["services.override.yaml", "services.override.yml"];
/// The same for compose's.
const COMPOSE_OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// The files of the project that is meant: those that were named, by flag or variable, or what is found here or in
/// a folder above. `None` when there are none.
pub(super) fn sources(settings: &Settings, named: &[PathBuf]) -> anyhow::Result<Option<Sources>> {
    let choice = &settings.choice;
    let here = &settings.working_dir;
    let directory = choice.project_directory.as_deref().map(absolute).transpose()?;
    let start = directory.as_deref().unwrap_or(here);
    let named = if named.is_empty() { &choice.files } else { named };
    let files: Vec<PathBuf> = if named.is_empty() {
        match from_variable(&variables(settings, start)) {
            Some(files) => files.iter().map(|file| start.join(file)).collect(),
            None => found(start),
        }
    } else {
        named.iter().map(|file| absolute(file)).collect::<anyhow::Result<_>>()?
    };
    let Some(first) = files.first() else { return Ok(None) };
    let folder = first.parent().unwrap_or(Path::new("/")).to_owned();
    let env_files: Vec<PathBuf> =
        choice.env_files.iter().map(|file| absolute(file)).collect::<anyhow::Result<_>>()?;
    let env_files = if env_files.is_empty() {
        let variable =
            settings.environment.get("COMPOSE_ENV_FILES").filter(|list| !list.is_empty());
        variable.map(|list| list.split(',').map(|file| here.join(file.trim())).collect())
    } else {
        Some(env_files)
    };
    Ok(Some(Sources {
        project_dir: directory.unwrap_or(folder),
        files,
        env_files,
        profiles: choice.profiles.clone(),
        unsupported: choice.unsupported,
        read: Vec::new(),
    }))
}

/// The caller's variables over those of `.env`, which may name the services files.
fn variables(settings: &Settings, folder: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(folder.join(".env")).unwrap_or_default();
    let mut variables = spec::env_variables(&text, &settings.environment);
    variables.extend(settings.environment.clone());
    variables
}

fn from_variable(variables: &BTreeMap<String, String>) -> Option<Vec<PathBuf>> {
    let list = variables.get("COMPOSE_FILE").filter(|list| !list.is_empty())?;
    let separator = variables.get("COMPOSE_PATH_SEPARATOR").map_or(":", String::as_str);
    let separator = if separator.is_empty() { ":" } else { separator };
    Some(list.split(separator).filter(|file| !file.is_empty()).map(PathBuf::from).collect())
}

/// The file of `start` or of the nearest folder above that has one, and its override.
fn found(start: &Path) -> Vec<PathBuf> {
    let first = |folder: &Path, names: &[&str]| {
        names.iter().map(|name| folder.join(name)).find(|path| path.is_file())
    };
    let Some(file) = start.ancestors().find_map(|folder| first(folder, &NAMES)) else {
        return Vec::new();
    };
    let folder = file.parent().unwrap_or(Path::new("/"));
    let ours = file.file_stem().is_some_and(|stem| stem == "services");
    let over = if ours { first(folder, &OVERRIDES) } else { first(folder, &COMPOSE_OVERRIDES) };
    std::iter::once(file.clone()).chain(over).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_comes_before_composes_and_the_nearest_folder_before_all() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        let names = |start: &Path| -> Vec<String> {
            found(start)
                .iter()
                .map(|path| path.strip_prefix(root.path()).unwrap().display().to_string())
                .collect()
        };
        assert!(names(&below).is_empty());
        for (file, expected) in [
            ("docker-compose.yml", vec!["docker-compose.yml"]),
            ("compose.yaml", vec!["compose.yaml"]),
            ("services.override.yaml", vec!["compose.yaml"]),
            ("docker-compose.override.yml", vec!["compose.yaml", "docker-compose.override.yml"]),
            ("services.yml", vec!["services.yml", "services.override.yaml"]),
            ("a/compose.yml", vec!["a/compose.yml"]),
        ] {
            std::fs::write(root.path().join(file), "").unwrap();
            assert_eq!(names(&below), expected, "{file}");
        }
    }
}
