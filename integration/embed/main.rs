//! A program that runs containers by itself: the library of supervisor at work.
//!
//! ```sh
//! cargo build --example embed
//! target/debug/examples/embed FOLDER IMAGE              # until Ctrl-C, then everything is taken down
//! target/debug/examples/embed FOLDER IMAGE --leave      # ends, and leaves the containers running
//! ```
//!
//! `FOLDER` is where everything is kept, `IMAGE` one that has a shell. Kill the program in whichever way, even with
//! `kill -9`, and start it again: it finds its containers as they were. It must run as root.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is an example, and tells")]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use supervisor::container::ExecRequest;
use supervisor::supervise::LogTail;
use supervisor::{Services, Supervisor};

/// The project's name; containers, logs and events carry it.
const PROJECT: &str = "embedded";

fn main() -> ExitCode {
    // First of all, before any thread: the keeper, the worker and the monitors are this program, started again.
    if let Some(code) = supervisor::run_if_role() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, image, leave) = match arguments.as_slice() {
        [folder, image] => (folder, image, false),
        [folder, image, option] if option == "--leave" => (folder, image, true),
        _ => {
            eprintln!("usage: embed FOLDER IMAGE [--leave]");
            return ExitCode::from(2);
        }
    };
    match run(Path::new(folder), image, leave) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What failed, and on what; the reasons are its sources.
            eprintln!("error: {error}");
            let mut reason = error.source();
            while let Some(error) = reason {
                eprintln!("  because: {error}");
                reason = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// Two services, as in a `services.yaml`.
fn services(image: &str) -> String {
    format!(
        r#"
services:
  clock:
    image: "{image}"
    command: [sh, -c, "trap 'exit 0' TERM; n=0; while :; do echo tick $$n; n=$$((n+1)); sleep 0.1; done"]
    restart: always
    network_mode: host
  idle:
    image: "{image}"
    network_mode: host
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    environment: [GREETING]
"#
    )
}

#[tokio::main]
async fn run(folder: &Path, image: &str, leave: bool) -> Result<(), Box<dyn Error>> {
    // Takes over what an earlier process of this program left running.
    let supervisor = Supervisor::builder(folder.join("state"), folder.join("run")).start()?;

    // Everything that happens is told; here to the terminal.
    let mut events = supervisor.events();
    let telling = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            println!("event {} {} {}", event.kind, event.service, event.message);
        }
    });

    // The desired state. What runs already and did not change is left alone.
    let desired = Services::from_text(PROJECT, services(image)).variable("GREETING", "hello");
    supervisor.apply(desired).await?;
    supervisor.wait_until_running(PROJECT, Duration::from_secs(120)).await?;
    for service in supervisor.status().await? {
        println!("running {} {}", service.service, service.pid.unwrap_or_default());
    }

    // A program in a container, and what a service has written.
    let command = ["sh", "-c", "echo $GREETING"].map(str::to_owned).to_vec();
    let output = supervisor.exec(PROJECT, "idle", ExecRequest::new(command)).await?;
    print!("exec {} {}", output.code, String::from_utf8_lossy(&output.stdout));
    let tail = LogTail { follow: true, ..LogTail::default() };
    let mut lines = supervisor.logs(PROJECT, &["clock"], tail).await?;
    if let Some(line) = lines.next().await {
        println!("log {} {}", line.service, line.text);
    }
    println!("ready");

    if leave {
        supervisor.stop_leaving_running().await;
    } else {
        tokio::signal::ctrl_c().await?;
        for container in supervisor.down(PROJECT).await? {
            println!("gone {container}");
        }
        supervisor.stop_leaving_running().await;
    }
    telling.await?;
    Ok(())
}
