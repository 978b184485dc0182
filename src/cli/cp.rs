//! `supervisor cp`: files between the host and a running service. The one who calls opens the container's root, so it
//! reaches what it may reach itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use super::args::ProjectArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::spec::ServiceName;
use crate::tooling::copy::{CopyError, Kind, Links, Owners, Root, place};

/// `cp`.
#[derive(Debug, Args)]
#[command(
    after_help = "One of the two is SERVICE:PATH, of a service that runs; volumes are seen as the service sees them. A \
folder goes into a folder that is there; FOLDER/. means only what is in it. With - an archive in tar form is read or \
written.\n\nExamples:\n  supervisor cp web:/etc/nginx ./nginx\n  supervisor cp index.html web:/srv/www/\n  supervisor cp \
db:/var/lib/db - > db.tar"
)]
pub(super) struct CpArguments {
    /// SERVICE:PATH, a path of this host, or - for an archive on standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The same; or - for an archive on standard output
    #[arg(value_name = "DESTINATION")]
    destination: String,
    /// Keep users and groups, by number
    #[arg(short, long)]
    archive: bool,
    /// Copy what SOURCE leads to, if it is a link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Which project.
    #[command(flatten)]
    project: ProjectArguments,
}

/// One side of a copy.
enum Side {
    Service(String, PathBuf),
    Host(PathBuf),
    Stream,
}

impl Side {
    fn read(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        let named = text.split_once(':').filter(|(name, _)| name.parse::<ServiceName>().is_ok());
        match named {
            Some((service, path)) => Self::Service(service.to_owned(), Path::new("/").join(path)),
            None => Self::Host(PathBuf::from(text)),
        }
    }
}

pub(super) fn run(settings: &Settings, arguments: &CpArguments) -> anyhow::Result<ExitCode> {
    let links = if arguments.follow_link { Links::Follow } else { Links::Keep };
    let owners = if arguments.archive { Owners::Same } else { Owners::Own };
    let sides = (Side::read(&arguments.source), Side::read(&arguments.destination));
    let left_out = match sides {
        (Side::Service(service, path), Side::Host(to)) => {
            let from = container(settings, arguments, &service)?;
            let host = Root::open(Path::new("/"))?;
            let whose = format!("service `{service}`");
            copy((&from, &whose), &path, (&host, "this host"), &absolute(&to)?, links, owners)?
        }
        (Side::Host(from), Side::Service(service, path)) => {
            let to = container(settings, arguments, &service)?;
            let (host, whose) = (Root::open(Path::new("/"))?, format!("service `{service}`"));
            let from = absolute(&from)?;
            copy((&host, "this host"), &from, (&to, &whose), &path, links, owners)?
        }
        (Side::Service(service, path), Side::Stream) => {
            let from = container(settings, arguments, &service)?;
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            let packed = from.pack(&path, &name, links, io::stdout().lock());
            packed.with_context(|| format!("could not copy from service `{service}`"))?
        }
        (Side::Stream, Side::Service(service, path)) => {
            let to = container(settings, arguments, &service)?;
            let is_folder = to.kind(&path)? == Kind::Folder;
            ensure!(is_folder, "`{}` is no folder of service `{service}`", path.display());
            to.unpack(&path, io::stdin().lock(), owners)?
        }
        (Side::Service(..), Side::Service(..)) => bail!("one of the two is a path of this host"),
        _ => bail!("one of the two is SERVICE:PATH"),
    };
    for path in left_out {
        output::warning(&format!(
            "`{}` is neither file, folder nor link; left out",
            path.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The root of the container of a service, as that sees it.
fn container(settings: &Settings, arguments: &CpArguments, service: &str) -> anyhow::Result<Root> {
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let project = project::selected(settings, &client, &arguments.project).await?;
        let pid = async || {
            let reports = project::reports(&client, Some(&project)).await?;
            let report = reports.into_iter().find(|report| report.service == service);
            let report = report.with_context(|| format!("no such service: `{service}`"))?;
            let state = report.status;
            report.pid.with_context(|| format!("service `{service}` does not run: {state}"))
        };
        let found = pid().await?;
        let opened = Root::open(Path::new(&format!("/proc/{found}/root")));
        // As long as it is the service's it is nobody else's, so what was opened before is the service's.
        ensure!(pid().await? == found, "service `{service}` was started again meanwhile");
        if let Err(CopyError::Io { source, .. }) = &opened
            && source.kind() == io::ErrorKind::PermissionDenied
        {
            output::hint("run it as root: `cp` opens the files of the container itself");
        }
        Ok(opened?)
    })
}

/// The end of a path that is written with `/` or `/.` says something, and is kept.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().context("there is no working directory")?;
    Ok(here.join(path))
}

fn copy(
    (from, whose_source): (&Root, &str),
    source: &Path,
    (to, whose): (&Root, &str),
    destination: &Path,
    links: Links,
    owners: Owners,
) -> anyhow::Result<Vec<PathBuf>> {
    let only_content = source.as_os_str().as_encoded_bytes().ends_with(b"/.");
    let kind = match from.kind(source) {
        // A link that leads nowhere can be copied all the same.
        Ok(Kind::Absent) if links == Links::Keep => Kind::File,
        other => other?,
    };
    let kinds = ((source, kind), (destination, to.kind(destination)?));
    let (folder, name) = place(kinds.0, only_content, kinds.1)?;
    ensure!(to.kind(&folder)? == Kind::Folder, "`{}` is no folder of {whose}", folder.display());
    let (reader, writer) = io::pipe().context("could not make a pipe")?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(|| from.pack(source, &name, links, writer));
        let unpacked = to.unpack(&folder, reader, owners);
        let packed = packing.join().expect("packing does not panic");
        // Of the two one finds only that the other has ended; what that one says is why.
        let (mut left_out, more) = match (packed, unpacked) {
            (_, Err(error)) if !matches!(error, CopyError::Stream(_)) => return Err(error.into()),
            (packed, unpacked) => {
                let packed = packed.with_context(|| format!("could not copy from {whose_source}"));
                (packed?, unpacked?)
            }
        };
        left_out.extend(more);
        Ok(left_out)
    })
}
