//! The link emulator of `scripts/bench`: a slow link in front of a registry, with figures of what went through it.
//!
//! `link SERVER RTT_MS MBIT [LOG]` (0 Mbit: unlimited) prints its address, then answers lines on standard input:
//! `stats` with a line of JSON, `cut` and `repair` with `ok`. It ends with its standard input.

#[path = "http.rs"]
mod http;
#[path = "../support/link.rs"]
mod link;

use std::fs::File;
use std::io::{self, BufRead as _, Write as _};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HttpTap, Totals};
use link::{Link, LinkOptions, MakeTap};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "link: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> io::Result<()> {
    let wrong = || io::Error::other("usage: link SERVER RTT_MS MBIT [LOG]");
    let [server, rtt, megabits, log @ ..] = arguments else { return Err(wrong()) };
    let rtt: f64 = rtt.parse().map_err(|_| wrong())?;
    let megabits: u64 = megabits.parse().map_err(|_| wrong())?;
    let options = LinkOptions {
        bits_per_second: (megabits > 0).then_some(megabits * 1_000_000),
        delay: Duration::try_from_secs_f64(rtt / 2000.0).map_err(|_| wrong())?,
    };
    let log = log.first().map(File::create).transpose()?;
    let totals = Arc::new(Mutex::new(Totals::new(log)));
    let of_connections = Arc::clone(&totals);
    let make: Box<MakeTap> = Box::new(move || Box::new(HttpTap::new(&of_connections)));
    let link = Link::open(server.parse().map_err(|_| wrong())?, options, Some(make))?;

    let mut answers = io::stdout().lock();
    writeln!(answers, "{}", link.address())?;
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "stats" => {
                let totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                let Totals { requests, ranges, body_bytes, last, .. } = &*totals;
                let (sent, received, connections) =
                    (link.sent(), link.received(), link.connections());
                writeln!(
                    answers,
                    "{{\"requests\":{requests},\"ranges\":{ranges},\"body_bytes\":{body_bytes},\"last\":{last:.6},\
                     \"sent\":{sent},\"received\":{received},\"connections\":{connections}}}"
                )?;
            }
            "cut" => {
                link.cut();
                writeln!(answers, "ok")?;
            }
            "repair" => {
                link.repair();
                writeln!(answers, "ok")?;
            }
            _ => writeln!(answers, "unknown")?,
        }
        answers.flush()?;
    }
    Ok(())
}
