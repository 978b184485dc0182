//! `supervisor images`.

use std::process::ExitCode;

use hyper::Method;
use serde_json::json;

use super::args::{ImagesArguments, ListFormat};
use super::settings::Settings;
use super::{connect, output, ps};
use crate::supervise::report::ImageReport;

pub(super) fn run(settings: &Settings, arguments: &ImagesArguments) -> anyhow::Result<ExitCode> {
    let images: Vec<ImageReport> = connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        client.call(Method::GET, "/v1/images", &()).await.map_err(anyhow::Error::from)
    })?;
    match arguments.format {
        ListFormat::Json => {
            images.iter().for_each(|image| output::line(&json_line(image).to_string()))
        }
        ListFormat::Table => {
            let heading =
                ["IMAGE", "DIGEST", "PLATFORM", "SIZE", "PULLED", "LOCAL", "OFFLINE", "LAZY"];
            let row = |image: &ImageReport| {
                vec![
                    image.reference.clone(),
                    image.digest.short(),
                    image.platform.clone(),
                    output::bytes(image.size),
                    format!("{} ago", output::span(output::since(image.pulled_at)).to_lowercase()),
                    output::percent(image.content.local),
                    ps::offline(&image.content),
                    ps::lazy(&image.content),
                ]
            };
            output::table(&heading, images.iter().map(row));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json_line(image: &ImageReport) -> serde_json::Value {
    json!({
        "Image": image.reference,
        "Digest": image.digest,
        "Platform": image.platform,
        "Size": image.size,
        "PulledAt": image.pulled_at.to_string(),
        "ImageLocal": image.content.local,
        "OfflineReady": image.content.complete,
        "LazyLayers": image.content.lazy_layers,
        "Layers": image.content.layers,
        "NotLazyBecause": image.content.full_because,
    })
}
