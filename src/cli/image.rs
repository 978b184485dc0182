//! `supervisor image mount|umount`, and the way to the commands of `image_write`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use hyper::Method;

use super::args::{ImageCommand, ImageMountArguments};
use super::settings::{Settings, absolute};
use super::{connect, image_write, output, pull};
use crate::api::MountRequest;
use crate::rootfs;
use crate::supervise::report::MountableImage;
use crate::sys;

pub(super) fn main(settings: &Settings, command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Mount(arguments) => mount(settings, &arguments),
        ImageCommand::Umount { directory } => umount(settings, &directory),
        ImageCommand::Pack(arguments) => image_write::pack(&arguments),
        ImageCommand::Convert(arguments) => image_write::convert(settings, &arguments),
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
        let mounted = rootfs::mount_read_only(
            &image.layers,
            &target,
            &image.instance,
            settings.mount_call()?,
        );
        if let Err(error) = mounted {
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
    let ours = rootfs::is_image_mount(&target, &settings.instance()?)?;
    ensure!(ours, "`{}` is not an image that this program mounted", target.display());
    sys::mount::unmount(&target)
        .with_context(|| format!("could not unmount `{}`", target.display()))?;
    connect::runtime()?.block_on(async {
        // Started if it had nothing else to do and has ended: it is control that ends the lazy mount below the last one.
        let client = connect::connect_or_start(settings).await?;
        let request = MountRequest { image: String::new(), full: false, target };
        let _: Result<(), _> = client.call(Method::DELETE, "/v1/mounts", &request).await;
        Ok(ExitCode::SUCCESS)
    })
}
