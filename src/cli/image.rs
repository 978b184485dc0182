//! `supervisor image mount|umount|rm|pin|unpin`, and the way to the commands of `image_write`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use hyper::Method;

use super::args::{ImageCommand, ImageMountArguments};
use super::settings::{Settings, absolute};
use super::{connect, image_write, output, pull};
use crate::api::{ApiClient, ErrorKind, ImageRequest, MountRequest, PinAnswer};
use crate::rootfs;
use crate::supervise::report::{MountableImage, PruneReport};
use crate::sys;

/// `image rm`, `image pin` and `image unpin`.
#[derive(Debug, clap::Args)]
pub(super) struct ImageNamesArguments {
    /// The images, as `images` shows them
    #[arg(required = true, value_name = "IMAGE")]
    pub(super) images: Vec<String>,
}

pub(super) fn main(settings: &Settings, command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Mount(arguments) => mount(settings, &arguments),
        ImageCommand::Umount { directory } => umount(settings, &directory),
        ImageCommand::Rm(arguments) => remove(settings, &arguments.images),
        ImageCommand::Pin(arguments) => pin(settings, &arguments.images, true),
        ImageCommand::Unpin(arguments) => pin(settings, &arguments.images, false),
        ImageCommand::Pack(arguments) => image_write::pack(&arguments),
        ImageCommand::Convert(arguments) => image_write::convert(settings, &arguments),
    }
}

/// Each by itself: one that is in use does not keep the others.
fn remove(settings: &Settings, images: &[String]) -> anyhow::Result<ExitCode> {
    each(settings, images, async |client, image| {
        let request = ImageRequest { image: image.clone(), pin: false };
        let remove = async |died| match client.call(Method::DELETE, "/v1/images", &request).await {
            // By the one that died.
            Err(error) if died > 0 && error.is_kind(ErrorKind::NotFound) => {
                Ok(PruneReport::default())
            }
            answer => answer,
        };
        let report: PruneReport = connect::again(settings, remove).await?;
        output::line(&format!("{image}: removed, {} freed", output::bytes(report.bytes)));
        for reason in &report.kept_because {
            output::warning(&format!("something stays: {reason}"));
        }
        Ok(())
    })
}

fn pin(settings: &Settings, images: &[String], pin: bool) -> anyhow::Result<ExitCode> {
    each(settings, images, async |client, image| {
        let request = ImageRequest { image: image.clone(), pin };
        let path = "/v1/images/pin";
        let answer: PinAnswer = connect::call_again(settings, client, path, &request).await?;
        output::line(&match (pin, answer.changed) {
            (true, true) => format!("{image}: pinned"),
            (true, false) => format!("{image}: was pinned already"),
            (false, true) => format!("{image}: not pinned any more"),
            (false, false) => format!("{image}: was not pinned"),
        });
        Ok(())
    })
}

/// Does `work` for each image, and prints what fails.
fn each(
    settings: &Settings,
    images: &[String],
    work: impl AsyncFn(&ApiClient, &String) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let images = images.iter().map(|image| pull::absolute(image));
    let images = images.collect::<anyhow::Result<Vec<_>>>()?;
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let mut code = ExitCode::SUCCESS;
        for image in &images {
            if let Err(error) = work(&client, image).await {
                output::error(&error);
                code = ExitCode::FAILURE;
            }
        }
        Ok(code)
    })
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
