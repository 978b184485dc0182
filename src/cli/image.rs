//! `supervisor image mount|umount|convert`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use hyper::Method;

use super::args::{ImageCommand, ImageConvertArguments, ImageMountArguments};
use super::settings::{Settings, absolute};
use super::{connect, output, pull, run};
use crate::api::MountRequest;
use crate::image::{ImageRef, Platform};
use crate::registry::Client;
use crate::rootfs;
use crate::supervise::report::MountableImage;
use crate::sys;
use crate::tooling::{self, ConvertOptions};

pub(super) fn main(settings: &Settings, command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Mount(arguments) => mount(settings, &arguments),
        ImageCommand::Umount { directory } => umount(settings, &directory),
        ImageCommand::Convert(arguments) => convert(settings, &arguments),
    }
}

/// Control prepares the layers, and this process mounts them: it serves nothing, so it may wait for lazy content.
fn mount(settings: &Settings, arguments: &ImageMountArguments) -> anyhow::Result<ExitCode> {
    let target = absolute(&arguments.directory)?;
    let entries = std::fs::read_dir(&target)
        .with_context(|| format!("could not read `{}`", target.display()))?;
    ensure!(entries.count() == 0, "`{}` is not empty", target.display());
    let request = MountRequest {
        image: pull::absolute(&arguments.image)?,
        full: arguments.full,
        target: target.clone(),
    };
    let runtime = connect::runtime()?;
    runtime.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let image: MountableImage = client.call(Method::POST, "/v1/mounts", &request).await?;
        if let Err(error) = rootfs::mount_read_only(&image.layers, &target) {
            let _: Result<(), _> = client.call(Method::DELETE, "/v1/mounts", &request).await;
            return Err(error)
                .with_context(|| format!("could not mount the image at `{}`", target.display()));
        }
        output::note(&format!("{} is mounted at {}", image.digest, target.display()));
        Ok(ExitCode::SUCCESS)
    })
}

fn umount(settings: &Settings, directory: &Path) -> anyhow::Result<ExitCode> {
    let target = absolute(directory)?;
    let ours = rootfs::is_image_mount(&target)?;
    ensure!(ours, "`{}` is not an image that this program mounted", target.display());
    sys::mount::unmount(&target)
        .with_context(|| format!("could not unmount `{}`", target.display()))?;
    connect::runtime()?.block_on(async {
        if let Some(client) = connect::connect(settings).await? {
            let request = MountRequest { image: String::new(), full: false, target };
            let _: Result<(), _> = client.call(Method::DELETE, "/v1/mounts", &request).await;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Needs no control: nothing of it is kept in the store.
fn convert(settings: &Settings, arguments: &ImageConvertArguments) -> anyhow::Result<ExitCode> {
    let here = std::env::current_dir()?;
    let source = arguments.source.parse::<ImageRef>()?.below(&here);
    let target = arguments.target.parse::<ImageRef>()?.below(&here);
    let prefetch = match &arguments.prefetch {
        None => Vec::new(),
        Some(list) => std::fs::read_to_string(list)
            .with_context(|| format!("could not read `{}`", list.display()))?
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    let options = ConvertOptions { prefetch, ..ConvertOptions::default() };
    let client = Client::new(run::registry(settings))?;
    let converted = run::runtime()?.block_on(tooling::convert(
        &client,
        &source,
        &Platform::host(),
        &target,
        &options,
    ))?;
    for path in &converted.missing {
        output::warning(&format!("no layer has `{path}`"));
    }
    output::line(&converted.made.manifest.digest.to_string());
    Ok(ExitCode::SUCCESS)
}
