//! Control in this process: for `daemon`, and for `up` when none runs.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use hyper::Method;

use super::args::DaemonArguments;
use super::output;
use super::settings::{ServiceManager, Settings};
use super::signals::{Ended, Signals};
use crate::api::{self, ApiClient, ClientError};
use crate::host;
use crate::registry::{ClientOptions, ProxySettings};
use crate::store::StoreError;
use crate::supervise::{ControlError, ControlOptions};
use crate::sys::notify::Notifier;
use crate::{StartError, Supervisor};

/// A control that was started for one command ends when it has had nothing to do for so long.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// A predecessor that is ending has let go of its directories by then.
const PREDECESSOR: Duration = Duration::from_secs(3);

/// Starts control in this process, and its API: as any program does that embeds it.
pub(super) fn start(
    settings: &Settings,
    idle_limit: Option<Duration>,
    service_manager: &ServiceManager,
) -> anyhow::Result<Supervisor> {
    let options = ControlOptions {
        state_dir: settings.state_dir.clone(),
        run_dir: settings.run_dir.clone(),
        registry: registry(settings),
        lazy_cache_bytes: None,
        disk: settings.disk,
        log_level: settings.log.level.clone(),
        features: host::probe(&settings.forced()?, &settings.state_dir),
        idle_limit,
        service_manager: service_manager.notifier.clone(),
        watchdog: service_manager.watchdog,
        descriptors: service_manager.descriptors.clone(),
    };
    let builder = Supervisor::from_options(options).socket_group(settings.socket_group);
    Ok(builder.start()?)
}

/// A runtime for control: two threads, so that a slow answer holds nothing up.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("could not start the runtime")
}

fn control_error(error: &anyhow::Error) -> Option<&ControlError> {
    match error.downcast_ref::<StartError>()? {
        StartError::Control(error) => Some(error),
        StartError::HookMissing | StartError::Serve(_) => None,
    }
}

/// Whether control could not start because another one has the run directory.
pub(super) fn is_running(error: &anyhow::Error) -> bool {
    matches!(control_error(error), Some(ControlError::Running(_)))
}

/// Whether another control holds one of the directories.
fn is_taken(error: &anyhow::Error) -> bool {
    match control_error(error) {
        Some(ControlError::Running(_)) => true,
        Some(ControlError::Store(error)) => matches!(error, StoreError::Locked { .. }),
        _ => false,
    }
}

/// `supervisor daemon`: until a signal, or until there is nothing to do if it was started on demand.
pub(super) fn daemon(settings: &Settings, arguments: &DaemonArguments) -> anyhow::Result<ExitCode> {
    // One that a command started belongs to no service manager, also when the command does.
    let manager = if arguments.on_demand {
        ServiceManager::default()
    } else {
        ServiceManager::take(&settings.environment)
    };
    runtime()?.block_on(async {
        // Signals first, so that one that comes early ends it in order too.
        let mut signals = Signals::new()?;
        let supervisor = match start_patiently(settings, arguments, &manager).await {
            Ok(supervisor) => supervisor,
            Err(error) => {
                tell(&manager, |notifier| notifier.status(&format!("{error:#}")));
                return Err(error);
            }
        };
        // The socket takes calls from here on, which is what whoever starts after us relies on.
        tell(&manager, Notifier::ready);
        if !arguments.on_demand {
            let socket = settings.run_dir.join(api::SOCKET_NAME);
            output::note(&format!(
                "supervisor {} is ready at `{}`; SIGTERM ends it and leaves all services running",
                crate::version::versions().build,
                socket.display()
            ));
        }
        let ended = supervisor.ended();
        loop {
            tokio::select! {
                // Cancel-safe: each arm only waits.
                () = ended.cancelled() => {
                    tell(&manager, Notifier::stopping);
                    supervisor.wait().await;
                    break;
                }
                signal = signals.next() => match signal {
                    Ended::Interrupted | Ended::Terminated => {
                        tell(&manager, Notifier::stopping);
                        supervisor.stop_leaving_running().await;
                        break;
                    }
                    // Also of a terminal that was closed: services should not lose their supervisor by it.
                    Ended::HungUp => {
                        tell(&manager, Notifier::reloading);
                        // A file that cannot be read is an event, and control that ends needs none.
                        let _ = supervisor.control().reload().await;
                        tell(&manager, Notifier::ready);
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Says something to the service manager. One that does not hear it is its own problem, and no reason not to serve.
fn tell(manager: &ServiceManager, say: impl FnOnce(&Notifier) -> std::io::Result<()>) {
    if let Some(Err(error)) = manager.notifier.as_deref().map(say) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

/// A control that is started may be the successor of one that is just ending. One that was started for a command makes
/// way for one that is meant to stay.
async fn start_patiently(
    settings: &Settings,
    arguments: &DaemonArguments,
    manager: &ServiceManager,
) -> anyhow::Result<Supervisor> {
    let deadline = tokio::time::Instant::now() + PREDECESSOR;
    let mut asked = arguments.on_demand;
    loop {
        match start(settings, arguments.on_demand.then_some(IDLE_LIMIT), manager) {
            Err(error) if is_taken(&error) && tokio::time::Instant::now() < deadline => {
                if !asked {
                    asked = ask_to_make_way(settings, error).await?;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

/// Asks the control that holds the run directory to end, and gives whether it has heard it. `error` is what is said when
/// it does not.
async fn ask_to_make_way(settings: &Settings, error: anyhow::Error) -> anyhow::Result<bool> {
    let (client, hello) = match ApiClient::connect(&settings.run_dir).await {
        Ok(found) => found,
        // It is ending already; or it is so new that it does not listen yet.
        Err(ClientError::NotRunning { .. } | ClientError::Lost(_)) => return Ok(false),
        Err(_) => return Err(error),
    };
    match client.call::<_, ()>(Method::POST, "/v1/make-way", &()).await {
        Ok(()) => Ok(true),
        Err(ClientError::Lost(_)) => Ok(false),
        Err(_) => Err(error.context(format!(
            "process {} is the supervisor here, and it does not end for this one",
            hello.pid
        ))),
    }
}

pub(super) fn registry(settings: &Settings) -> ClientOptions {
    let variable =
        |names: [&str; 2]| names.iter().find_map(|name| settings.environment.get(*name)).cloned();
    ClientOptions {
        docker_config: settings.docker_config.clone(),
        host_trees: settings.host_trees.clone(),
        registries_conf: settings.registries_conf.clone(),
        proxy: ProxySettings {
            https: variable(["HTTPS_PROXY", "https_proxy"]),
            http: variable(["HTTP_PROXY", "http_proxy"]),
            except: variable(["NO_PROXY", "no_proxy"]),
        },
        ..ClientOptions::default()
    }
}
