//! One look at a port of a container, in a forked child of its monitor: in the container's network namespace, without
//! anything of the container being run.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Launch, Network, Probe};
use crate::sys::{child, socket};

/// Bytes of an answer that are looked at: a status line.
const STATUS_LINE: usize = 256;

/// From a probing child to its monitor: why the probe failed, if it did.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Probed(pub(super) Option<String>);

/// The whole life of the child: its exit code. `init` is the container's first process.
pub(super) fn run(
    launch: &Launch,
    monitor: i32,
    init: i32,
    probe: &Probe,
    timeout: Duration,
    probed: BorrowedFd<'_>,
) -> u8 {
    if child::die_with(monitor).and_then(|()| child::close_all_except(&[probed])).is_err() {
        return 1;
    }
    let entered = match &launch.network {
        Network::Host => Ok(()),
        Network::None
        | Network::Of(_)
        | Network::Namespace(_)
        | Network::Attached(_)
        | Network::Other(_) => child::enter_network_of(init),
    };
    let outcome = entered.and_then(|()| look(probe, timeout));
    let failure = Probed(outcome.err().map(|error| error.to_string()));
    let bytes = serde_json::to_vec(&failure).unwrap_or_default();
    let _ = socket::send(probed, &bytes, &[]);
    0
}

fn look(probe: &Probe, timeout: Duration) -> io::Result<()> {
    let until = Instant::now() + timeout;
    match probe {
        Probe::Exec(_) => Err(io::Error::other("a program is not probed")),
        Probe::Tcp(port) => connect(*port, until).map(drop),
        Probe::Http { port, path } => ask(connect(*port, until)?, path, until),
    }
}

/// Either loopback: a program that listens on one of them only is reached all the same.
fn connect(port: u16, until: Instant) -> io::Result<TcpStream> {
    let connect = |address: IpAddr| {
        let address = SocketAddr::new(address, port);
        TcpStream::connect_timeout(&address, left(until)?)
            .map_err(|error| io::Error::new(error.kind(), format!("port {port}: {error}")))
    };
    connect(Ipv4Addr::LOCALHOST.into())
        .or_else(|first| connect(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    // A timeout of zero would be none.
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn ask(mut stream: TcpStream, path: &str, until: Instant) -> io::Result<()> {
    stream.set_write_timeout(Some(left(until)?))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: supervisor\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 256];
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => answer.extend_from_slice(&piece[..length]),
        }
    }
    judge(&answer)
}

/// Whether an answer begins with a status line that says that all is well.
fn judge(answer: &[u8]) -> io::Result<()> {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/"));
    match words.next().and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=399) if is_http => Ok(()),
        Some(_) if is_http => Err(io::Error::other(format!("answered `{}`", line.trim_end()))),
        _ => Err(io::Error::other("what answers does not speak HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn codes_from_200_to_399_are_well() {
        for (answer, well) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 302 Found\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n", false),
            ("HTTP/1.1\r\n", false),
            ("SSH-2.0-x\r\n", false),
            ("", false),
        ] {
            assert_eq!(judge(answer.as_bytes()).is_ok(), well, "{answer}");
        }
    }

    #[test]
    fn a_port_is_open_or_not_and_a_silent_one_takes_no_longer_than_it_may() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        look(&Probe::Tcp(port), Duration::from_secs(60)).unwrap();
        let http = Probe::Http { port, path: "/".to_owned() };
        let error = look(&http, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        drop(listener);
        let error = look(&Probe::Tcp(port), Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("port {port}: ")), "{error}");
    }
}
