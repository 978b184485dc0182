//! `supervisor config`: what services files mean together, in one form.

use std::process::ExitCode;

use anyhow::ensure;
use clap::{Args, ValueEnum};

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{output, project};
use crate::spec::{self, Interpolation};

const EXAMPLES: &str = "\
Files are merged, variables replaced, short forms written out, keys sorted; the result is a services file again. It
holds the values of variables, so it may hold secrets. Nothing is started and no supervisor is asked.

Examples:
  supervisor config -q                          only check, exit code 1 when something is wrong
  supervisor config --services
  supervisor -f compose.yaml -f site.yaml config --format json | jq .services.web
  supervisor config --hash web
  supervisor config --schema > services.schema.json";

/// `config`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ConfigArguments {
    /// Services to print (default: all)
    #[arg(value_name = "SERVICE", value_parser = project::service_name)]
    services: Vec<String>,
    /// Print nothing, only check
    #[arg(short, long)]
    quiet: bool,
    /// Print names of services
    #[arg(long = "services", id = "only_services", group = "only")]
    names: bool,
    /// Print images
    #[arg(long, group = "only")]
    images: bool,
    /// Print names of volumes
    #[arg(long, group = "only")]
    volumes: bool,
    /// Print all profiles
    #[arg(long, group = "only")]
    profiles: bool,
    /// Print the digest of what is written for each of these services (`*`: all); another digest is another container
    #[arg(long, value_name = "SERVICE,…", group = "only")]
    hash: Option<String>,
    /// Print the variables that files can name
    #[arg(long, group = "only")]
    environment: bool,
    /// Print what becomes of each key of compose, in Markdown
    #[arg(long, group = "only")]
    keys: bool,
    /// Print the JSON schema of services files, for editors
    #[arg(long, group = "only")]
    schema: bool,
    /// Form of the output
    #[arg(long, value_name = "FORMAT", default_value = "yaml")]
    format: ConfigFormat,
    /// Leave variables as they are written, and check no values
    #[arg(long, conflicts_with = "hash")]
    no_interpolate: bool,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConfigFormat {
    /// A services file.
    Yaml,
    /// The same as JSON.
    Json,
}

pub(super) fn run(settings: &Settings, arguments: &ConfigArguments) -> anyhow::Result<ExitCode> {
    // No project is needed for what is the same for all.
    if arguments.keys {
        output::line(spec::keys_document().trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.schema {
        output::line(&serde_json::to_string_pretty(&spec::schema())?);
        return Ok(ExitCode::SUCCESS);
    }
    let selected = &arguments.project;
    let interpolation =
        if arguments.no_interpolate { Interpolation::Keep } else { Interpolation::Replace };
    let mut composition = project::compose(
        settings,
        &selected.file,
        selected.project_name.as_deref(),
        &arguments.services,
        interpolation,
    )?;
    composition.warnings.iter().for_each(|warning| output::warning(&warning.to_string()));
    let known = composition.services();
    for name in &arguments.services {
        ensure!(known.contains(name), "no such service: `{name}`");
    }
    // The whole is checked, as `up` does it.
    let desired = match interpolation {
        Interpolation::Replace => Some(project::check(&composition)?),
        Interpolation::Keep => None,
    };
    composition.keep(&arguments.services);
    if arguments.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    let lines = |lines: Vec<String>| lines.iter().for_each(|line| output::line(line));
    if arguments.names {
        lines(composition.services());
    } else if arguments.images {
        lines(composition.images());
    } else if arguments.volumes {
        lines(composition.volumes());
    } else if arguments.profiles {
        lines(composition.profiles());
    } else if let (Some(wanted), Some(desired)) = (&arguments.hash, &desired) {
        let kept = composition.services();
        let is_kept = |name: &str| kept.iter().any(|kept| kept == name);
        let wanted: Vec<&str> = wanted.split(',').filter(|name| *name != "*").collect();
        for name in &wanted {
            ensure!(
                desired.services.contains_key(*name) && is_kept(name),
                "no such service: `{name}`"
            );
        }
        for (name, service) in &desired.services {
            let name = name.as_str();
            if is_kept(name) && (wanted.is_empty() || wanted.contains(&name)) {
                output::line(&format!("{name} {}", service.config_hash()));
            }
        }
    } else if arguments.environment {
        for (name, value) in &composition.environment {
            output::line(&format!("{name}={value}"));
        }
    } else {
        match arguments.format {
            ConfigFormat::Yaml => output::line(composition.yaml().trim_end()),
            ConfigFormat::Json => output::line(&serde_json::to_string_pretty(&composition.json())?),
        }
    }
    Ok(ExitCode::SUCCESS)
}
