//! `supervisor image pack` and `image convert`: the command line of `tooling`. Needs no control.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use super::settings::Settings;
use super::{output, run};
use crate::estargz::{MissingPath, Prefetch, WriterOptions};
use crate::image::{ImageRef, Platform};
use crate::registry::Client;
use crate::tooling::{self, ConvertOptions, Converted, Made, PackOptions};

const PACK_EXAMPLES: &str = "\
Examples:
  supervisor image pack ./rootfs -o oci:./images:app --cmd '[\"/bin/app\", \"--serve\"]'
  SOURCE_DATE_EPOCH=0 supervisor image pack ./rootfs -o oci:./images:app --prefetch boot.txt

The same folder gives the same image, byte for byte, when no file is younger than SOURCE_DATE_EPOCH.";

const CONVERT_EXAMPLES: &str = "\
Examples:
  supervisor image convert oci:./plain:v1 oci:./lazy:v1
  supervisor image convert registry.example/app:1 oci:./lazy:v1 --prefetch boot.txt";

/// `image pack`.
#[derive(Debug, Args)]
#[command(after_help = PACK_EXAMPLES)]
pub(super) struct ImagePackArguments {
    /// Folder that becomes the root of the image; everything in it will belong to root
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,
    /// Image layout to write into: oci:DIR[:TAG]
    #[arg(short, long, value_name = "DST")]
    pub(super) output: ImageRef,
    /// What the content is built for (default: this machine)
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<Platform>,
    /// Program and first arguments: a JSON list, or text for /bin/sh
    #[arg(long, value_name = "WORDS")]
    pub(super) entrypoint: Option<String>,
    /// Default arguments, or command without an entry point: a JSON list, or text for /bin/sh
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub(super) cmd: Option<String>,
    /// Environment; may be repeated
    #[arg(long, value_name = "K=V")]
    pub(super) env: Vec<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// User, by name or id, optionally with :GROUP
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// Signal that asks for a clean stop
    #[arg(long, value_name = "SIGNAL")]
    pub(super) stop_signal: Option<String>,
    /// Label; may be repeated
    #[arg(long, value_name = "K=V")]
    pub(super) label: Vec<String>,
    /// Port that the program listens on, for information; may be repeated
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    pub(super) expose: Vec<String>,
    /// Time of the image, and the latest that a file's time can be, in seconds since 1970
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    pub(super) source_date_epoch: Option<u64>,
    /// How layers are written.
    #[command(flatten)]
    pub(super) layers: LayerArguments,
}

/// `image convert`.
#[derive(Debug, Args)]
#[command(after_help = CONVERT_EXAMPLES)]
pub(super) struct ImageConvertArguments {
    /// The image: in a registry, or oci:DIR[:TAG]
    #[arg(value_name = "SRC")]
    pub(super) source: ImageRef,
    /// Image layout to write into: oci:DIR[:TAG]
    #[arg(value_name = "DST")]
    pub(super) target: ImageRef,
    /// Which build of the image (default: this machine's)
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<Platform>,
    /// How layers are written.
    #[command(flatten)]
    pub(super) layers: LayerArguments,
}

/// Flags of commands that write layers.
#[derive(Debug, Args)]
pub(super) struct LayerArguments {
    /// File with one path a line: content to fetch before anything else, in this order
    #[arg(long, value_name = "LIST")]
    pub(super) prefetch: Option<PathBuf>,
    /// gzip level
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(0..=9))]
    pub(super) level: u32,
    /// Largest part in which a file is fetched, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = WriterOptions::default().chunk_size)]
    pub(super) chunk_size: u32,
    /// Pack small files together until they have this many compressed bytes; smaller layers, larger reads
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(super) min_chunk_size: u64,
}

impl LayerArguments {
    fn writer(&self) -> WriterOptions {
        WriterOptions {
            level: self.level,
            chunk_size: self.chunk_size,
            min_chunk_size: self.min_chunk_size,
            prefetch: Prefetch::Nothing,
        }
    }

    fn paths(&self) -> anyhow::Result<Vec<String>> {
        let Some(list) = &self.prefetch else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(list)
            .with_context(|| format!("could not read the prefetch list `{}`", list.display()))?;
        Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }
}

pub(super) fn pack(arguments: &ImagePackArguments) -> anyhow::Result<ExitCode> {
    let mut writer = arguments.layers.writer();
    let paths = arguments.layers.paths()?;
    if !paths.is_empty() {
        // Whoever packs a folder knows what is in it: a path that is missing is a mistake.
        writer.prefetch = Prefetch::Paths { paths, missing: MissingPath::Refuse };
    }
    let options = PackOptions {
        entrypoint: words(arguments.entrypoint.as_deref())?,
        cmd: words(arguments.cmd.as_deref())?,
        env: arguments
            .env
            .iter()
            .map(|pair| pair_of(pair).map(|_| pair.clone()))
            .collect::<anyhow::Result<_>>()?,
        working_dir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        stop_signal: arguments.stop_signal.clone(),
        exposed_ports: arguments.expose.iter().map(|port| with_protocol(port)).collect(),
        labels: arguments
            .label
            .iter()
            .map(|pair| pair_of(pair))
            .collect::<anyhow::Result<BTreeMap<_, _>>>()?,
        source_date_epoch: arguments.source_date_epoch,
        writer,
    };
    let platform = arguments.platform.clone().unwrap_or_else(Platform::host);
    let made = tooling::pack(&arguments.folder, &platform, &arguments.output, &options)
        .with_context(|| format!("could not pack `{}`", arguments.folder.display()))?;
    report(&made);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn convert(
    settings: &Settings,
    arguments: &ImageConvertArguments,
) -> anyhow::Result<ExitCode> {
    let options =
        ConvertOptions { prefetch: arguments.layers.paths()?, writer: arguments.layers.writer() };
    let platform = arguments.platform.clone().unwrap_or_else(Platform::host);
    let client = Client::new(run::registry(settings))?;
    let Converted { made, missing } = run::runtime()?
        .block_on(tooling::convert(
            &client,
            &arguments.source,
            &platform,
            &arguments.target,
            &options,
        ))
        .with_context(|| format!("could not convert `{}`", arguments.source))?;
    for path in missing {
        output::warning(&format!("no layer has `{path}`, which was to be fetched first"));
    }
    report(&made);
    Ok(ExitCode::SUCCESS)
}

/// The digest on standard output, for scripts; what people want to know beside it.
fn report(made: &Made) {
    let size = made.layers.iter().map(|layer| layer.size).sum();
    let layers = made.layers.len();
    let noun = if layers == 1 { "layer" } else { "layers" };
    output::note(&format!("{layers} lazy {noun}, {}", output::bytes(size)));
    output::line(&made.manifest.digest.to_string());
}

/// The two forms that a Dockerfile has: a JSON list is taken as it is, a text is for the shell.
fn words(text: Option<&str>) -> anyhow::Result<Vec<String>> {
    let Some(text) = text else { return Ok(Vec::new()) };
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text)
            .with_context(|| format!("`{text}` is not a JSON list of texts"));
    }
    Ok(["/bin/sh", "-c", text].map(str::to_owned).into())
}

fn pair_of(pair: &str) -> anyhow::Result<(String, String)> {
    match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => bail!("`{pair}` is not of the form NAME=VALUE"),
    }
}

fn with_protocol(port: &str) -> String {
    if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_a_json_list_or_a_text_for_the_shell() {
        assert_eq!(words(Some(r#"["a", "b c"]"#)).unwrap(), ["a", "b c"]);
        assert_eq!(words(Some("a && b")).unwrap(), ["/bin/sh", "-c", "a && b"]);
        assert!(words(Some("[1]")).is_err());
        assert!(words(None).unwrap().is_empty());
    }

    #[test]
    fn pairs_need_a_name() {
        assert_eq!(pair_of("A=b=c").unwrap(), ("A".to_owned(), "b=c".to_owned()));
        assert!(pair_of("=b").is_err() && pair_of("A").is_err());
        assert_eq!(with_protocol("80"), "80/tcp");
    }
}
