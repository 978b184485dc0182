//! Services with a network of their own, on a host that is a network namespace of the test: the machine's own network
//! is never touched.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use supervisor::sys::netns;

use super::{IDLE, file, service};
use crate::support::program::{Program, crash, signal};

/// Runs `test` with a host of its own; programs that it starts are on it too.
fn on_a_host(test: impl FnOnce() + Send) {
    let host = netns::make().unwrap();
    let work = || {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        test();
    };
    netns::within(host.as_fd(), work).unwrap();
}

fn network_of(process: Pid) -> OwnedFd {
    netns::of_process(process.as_raw_nonzero().get()).unwrap()
}

/// Listens in the container as its program would.
fn listen(process: Pid, port: u16) -> TcpListener {
    let listen = || TcpListener::bind(("0.0.0.0", port)).unwrap();
    netns::within(network_of(process).as_fd(), listen).unwrap()
}

fn reach(port: u16) -> Option<TcpStream> {
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()
}

/// Whether the container's resolver answers anything at all.
fn is_answered(process: Pid) -> bool {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect("127.0.0.11:53").unwrap();
        // `x`, as an address, and recursion is asked for.
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01x\0\0\x01\0\x01";
        let mut answer = [0; 64];
        let answered = socket.send(question).and_then(|_| socket.recv(&mut answer));
        answered.is_ok_and(|length| length >= 12 && answer[..2] == question[..2])
    };
    netns::within(network_of(process).as_fd(), ask).unwrap()
}

fn listed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_published_port_outlives_control_rules_and_resolver() {
    on_a_host(|| {
        let program = Program::new();
        let web = service("web", IDLE).key("network_mode: bridge").key("ports: ['18080:80']");
        program.services(&file(&[web]));
        let up = program.up_running();
        let process = program.running("web");
        let listener = listen(process, 80);
        let mut client = program.until("the port is reached", || reach(18080));
        let (mut server, _) = listener.accept().unwrap();
        program.until("names are answered", || is_answered(process).then_some(()));

        // Somebody empties the packet filter.
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
        program.until("the rules are back", || {
            listed("nft", &["list", "ruleset"]).contains("18080").then_some(())
        });
        assert!(reach(18080).is_some());

        // Control is killed: what was connected is, what is asked is answered, and what is new connects.
        crash(up);
        client.write_all(b"still").unwrap();
        let mut text = [0; 5];
        server.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"still");
        program.until("names are answered still", || is_answered(process).then_some(()));
        assert!(reach(18080).is_some());
        program.ok(["up", "-d"]);
        assert_eq!(program.running("web"), process, "it is the same container");

        // The resolver is killed, and is there again.
        let before = program.role("names", "").unwrap();
        signal(before, Signal::KILL);
        program.until("another resolver answers", || {
            let now = program.role("names", "").filter(|now| *now != before)?;
            is_answered(process).then_some(now)
        });

        program.ok(["down"]);
        program.until("nothing is left on the host", || {
            let links = listed("ip", &["-o", "link"]);
            let is_bare =
                links.lines().count() == 1 && listed("nft", &["list", "tables"]).is_empty();
            (is_bare && program.role("names", "").is_none()).then_some(())
        });
    });
}

#[test]
fn a_port_that_a_program_of_the_host_has_is_told_with_its_owner() {
    on_a_host(|| {
        let program = Program::new();
        let web = service("web", IDLE).key("network_mode: bridge").key("ports: ['18081:80']");
        program.services(&file(&[web.key("restart: \"no\"")]));
        let taken = TcpListener::bind("0.0.0.0:18081").unwrap();
        let up = program.up();
        program.said("port `18081/tcp` is in use by `");
        drop(taken);
        program.interrupt(up);
    });
}
