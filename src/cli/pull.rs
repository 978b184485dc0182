//! `supervisor pull`, and the progress display that other commands share.

use std::collections::{BTreeSet, HashMap};
use std::io::IsTerminal as _;
use std::process::ExitCode;

use hyper::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::PullArguments;
use super::settings::Settings;
use super::{connect, output, project};
use crate::api::{ApiClient, ClientError, PullRequest};
use crate::image::{Digest, ImageRef};
use crate::spec::{Interpolation, Service};
use crate::supervise::report::PullProgress;

pub(super) fn run(settings: &Settings, arguments: &PullArguments) -> anyhow::Result<ExitCode> {
    let images = match &*arguments.images {
        [] => of_file(settings, arguments)?,
        named => named.iter().map(|image| absolute(image)).collect::<anyhow::Result<Vec<_>>>()?,
    };
    connect::runtime()?.block_on(async {
        let client = connect::connect_or_start(settings).await?;
        let mut code = ExitCode::SUCCESS;
        for image in images {
            let request = PullRequest { image, full: arguments.full, complete: arguments.complete };
            // What a control that died has brought is here; the next one goes on with it.
            let pull = async |_| pull(&client, &request, arguments.quiet).await;
            if !connect::again(settings, pull).await? {
                code = ExitCode::FAILURE;
            }
        }
        Ok(code)
    })
}

/// The images that the services file names, each once.
fn of_file(settings: &Settings, arguments: &PullArguments) -> anyhow::Result<Vec<String>> {
    let selected = &arguments.project;
    let name = selected.project_name.as_deref();
    let composition =
        project::compose(settings, &selected.file, name, &[], Interpolation::Replace)?;
    let desired = project::check(&composition)?;
    let images = desired.services.values().flat_map(Service::images);
    let images = images.map(ToString::to_string);
    Ok(images.collect::<BTreeSet<_>>().into_iter().collect())
}

/// The reference with the path of a layout made absolute: control has another working directory.
pub(super) fn absolute(image: &str) -> anyhow::Result<String> {
    let reference: ImageRef = image.parse()?;
    let here = std::env::current_dir()?;
    Ok(reference.below(&here).to_string())
}

/// Pulls one image and shows how. False when it failed; that has been printed then.
async fn pull(client: &ApiClient, request: &PullRequest, quiet: bool) -> Result<bool, ClientError> {
    let mut steps = client.lines(Method::POST, "/v1/pull", request).await?;
    let mut display = Display::new(quiet);
    while let Some(step) = steps.next::<PullProgress>().await? {
        match &step {
            PullProgress::Done { image, digest } => {
                display.clear();
                if quiet {
                    output::line(&digest.to_string());
                } else {
                    output::line(&format!("{image}: {digest}"));
                }
                return Ok(true);
            }
            PullProgress::Failed { image, message, hint } => {
                display.clear();
                output::failure(&format!("could not pull `{image}`: {message}"), hint.as_deref());
                return Ok(false);
            }
            other => display.show(other),
        }
    }
    let ended = format!("the supervisor ended while it pulled `{}`", request.image);
    Err(ClientError::Lost(ended.into()))
}

/// Bars on a terminal, a line per layer elsewhere.
struct Display {
    quiet: bool,
    bars: Option<MultiProgress>,
    layers: HashMap<Digest, ProgressBar>,
    order: Vec<Digest>,
}

impl Display {
    fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { quiet, bars, layers: HashMap::new(), order: Vec::new() }
    }

    fn show(&mut self, step: &PullProgress) {
        match step {
            PullProgress::Resolved { layers, .. } => {
                for layer in layers {
                    self.order.push(layer.digest);
                    if let Some(bars) = &self.bars {
                        let bar = bars.add(ProgressBar::new(layer.size));
                        bar.set_style(running_style());
                        bar.set_prefix(layer.digest.short());
                        self.layers.insert(layer.digest, bar);
                    }
                }
            }
            PullProgress::Layer { digest, done, total } => {
                if let Some(bar) = self.layers.get(digest) {
                    bar.set_length(*total);
                    bar.set_position(*done);
                }
            }
            PullProgress::LayerReady { digest, lazy, complete, why_full } => {
                let text = match (lazy, why_full) {
                    (true, _) if *complete => "lazy, complete".to_owned(),
                    (true, _) => "lazy".to_owned(),
                    (false, None) => "complete".to_owned(),
                    (false, Some(why)) => format!("complete, not lazy: {why}"),
                };
                if let Some(bar) = self.layers.get(digest) {
                    bar.set_style(done_style());
                    bar.finish_with_message(text);
                } else if !self.quiet {
                    output::note(&format!("{}: {text}", digest.short()));
                }
            }
            PullProgress::Done { .. } | PullProgress::Failed { .. } => {}
        }
    }

    fn clear(&self) {
        // The finished bars stay as the record of what happened.
        for bar in self.layers.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}

fn running_style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix}  {bar:24}  {bytes:>9} / {total_bytes:9}  {bytes_per_sec:>11}  {eta}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("━━╌")
}

fn done_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
}
