//! Services with a network of their own, on a host that is a network namespace of the test: the machine's own network
//! is never touched.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;
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

/// Removes every rule of the test's host; never those of the machine.
fn empty_the_filter() {
    let [own, machine] = ["thread-self", "self"]
        .map(|whose| std::fs::read_link(format!("/proc/{whose}/ns/net")).unwrap());
    assert_ne!(own, machine, "this is the machine's own network");
    assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
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

/// What the container's resolver says to a question for the address of `name`.
fn ask(process: Pid, name: &str) -> Option<Vec<u8>> {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket.connect("127.0.0.11:53").unwrap();
        // One question, and recursion is asked for.
        let mut question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        question.push(u8::try_from(name.len()).unwrap());
        question.extend(name.as_bytes());
        question.extend(b"\0\0\x01\0\x01");
        let mut answer = vec![0; 512];
        let length = socket.send(&question).and_then(|_| socket.recv(&mut answer)).ok()?;
        answer.truncate(length);
        (length >= 12 && answer[..2] == question[..2]).then_some(answer)
    };
    netns::within(network_of(process).as_fd(), ask).unwrap()
}

/// Whether the container's resolver answers anything at all.
fn is_answered(process: Pid) -> bool {
    ask(process, "x").is_some()
}

/// The address that a container finds a name at, if it does.
fn found(process: Pid, name: &str) -> Option<Ipv4Addr> {
    let answer = ask(process, name)?;
    let has_one = answer[3] & 0xf == 0 && answer[6..8] == [0, 1];
    has_one.then(|| <[u8; 4]>::try_from(&answer[answer.len() - 4..]).unwrap().into())
}

/// Whether a container gets to a listener.
fn connects(process: Pid, to: (Ipv4Addr, u16)) -> bool {
    let connect =
        || TcpStream::connect_timeout(&SocketAddr::from(to), Duration::from_secs(2)).is_ok();
    netns::within(network_of(process).as_fd(), connect).unwrap()
}

/// The process of a service of one of several projects.
fn process_of(program: &Program, project: &str, service: &str) -> Pid {
    program.until(&format!("`{service}` of `{project}` runs"), || {
        let shown = program.ps();
        let is_it = |line: &&Value| line["Project"] == project && line["Service"] == service;
        let line = shown.iter().find(is_it).filter(|line| line["State"] == "running")?;
        Pid::from_raw(i32::try_from(line["Pid"].as_i64()?).unwrap())
    })
}

fn until_nothing_is_left(program: &Program) {
    program.until("nothing is left on the host", || {
        let links = listed("ip", &["-o", "link"]);
        let is_bare = links.lines().count() == 1 && listed("nft", &["list", "tables"]).is_empty();
        (is_bare && program.role("names", "").is_none()).then_some(())
    });
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
        assert!(program.ok(["port", "web", "80"]).starts_with("0.0.0.0:18080\n"));
        assert!(program.ok(["ps"]).contains("0.0.0.0:18080->80/tcp"));
        let listener = listen(process, 80);
        let mut client = program.until("the port is reached", || reach(18080));
        let (mut server, _) = listener.accept().unwrap();
        program.until("names are answered", || is_answered(process).then_some(()));

        let doctor = program.run(["doctor", "--json"]);
        let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(told.contains(r#""subject":"18080/tcp""#), "{told}");

        // Somebody empties the packet filter.
        empty_the_filter();
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
        until_nothing_is_left(&program);
    });
}

#[test]
fn a_port_that_somebody_has_is_told_before_anything_is_stopped() {
    on_a_host(|| {
        let program = Program::new();
        let web = |port: &str, text: &str| {
            let ports = format!("ports: ['{port}:80']");
            service("web", IDLE).bridged().key(&ports).key(&format!("environment: [A={text}]"))
        };
        program.services(&format!("name: one\n{}", file(&[web("18083", "1")])));
        program.ok(["up", "-d"]);
        let process = program.running("web");
        let refused = |arguments: &[&str], expected: &str| {
            let ran = program.run(arguments);
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert!(
                ran.status.code() == Some(1) && said.contains(expected),
                "{arguments:?}: {said}"
            );
            assert_eq!(
                program.running("web"),
                process,
                "it was stopped for a port that it cannot have"
            );
        };

        let taken = TcpListener::bind("0.0.0.0:18084").unwrap();
        program.services(&format!("name: one\n{}", file(&[web("18084", "1")])));
        for command in [&["up", "-d"][..], &["plan"]] {
            refused(command, "port `18084/tcp` is in use by `");
        }
        drop(taken);
        let twice =
            file(&[web("18083", "1"), service("more", IDLE).bridged().key("ports: ['18083:1']")]);
        program.services(&format!("name: one\n{twice}"));
        refused(&["up", "-d"], "`more` and `web` both publish port `18083/tcp`");
        let other = file(&[service("other", IDLE).key("ports: ['18083:18083']")]);
        std::fs::write(program.folder().join("two.yaml"), format!("name: two\n{other}")).unwrap();
        refused(
            &["up", "-d", "-f", "two.yaml"],
            "port `18083/tcp` is published by `one/web` already",
        );

        // What it has itself is in nobody's way.
        program.services(&format!("name: one\n{}", file(&[web("18083", "2")])));
        program.ok(["up", "-d"]);
        assert_ne!(program.running("web"), process);
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn services_of_a_project_find_each_other_and_those_of_others_do_not() {
    on_a_host(|| {
        let program = Program::new();
        let db = service("db", IDLE).bridged().key("container_name: store");
        for (project, services) in [
            ("one", vec![db, service("web", IDLE).bridged()]),
            ("two", vec![service("other", IDLE).bridged()]),
        ] {
            let text = format!("name: {project}\n{}", file(&services));
            std::fs::write(program.folder().join(format!("{project}.yaml")), text).unwrap();
            program.ok(["up", "-d", "-f", &format!("{project}.yaml")]);
        }
        let [db, web] = ["db", "web"].map(|name| process_of(&program, "one", name));
        let other = process_of(&program, "two", "other");
        let _listener = listen(db, 5432);
        let address = program.until("`web` finds `db`", || found(web, "db"));
        for name in ["one-db-1", "store", "DB"] {
            assert_eq!(found(web, name), Some(address), "{name}");
        }
        assert!(connects(web, (address, 5432)));

        program.until("`other` finds itself", || found(other, "other"));
        assert_eq!(found(other, "db"), None);
        assert!(!connects(other, (address, 5432)), "another project is reached");

        // What comes back has its address again.
        program.ok(["restart", "-p", "one", "db"]);
        assert_eq!(program.until("`web` finds `db` again", || found(web, "db")), address);
        program.ok(["down", "-p", "one"]);
        program.ok(["down", "-p", "two"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn networks_are_what_the_file_says() {
    on_a_host(|| {
        let program = Program::new();
        let networks = "networks: {front: , back: {internal: true, ipam: {config: [{subnet: 172.30.99.0/24}]}}}\n";
        let text = file(&[
            service("web", IDLE).key("networks: {front: , back: {aliases: [www]}}"),
            service("db", IDLE).key("networks: {back: {ipv4_address: 172.30.99.9}}"),
            service("edge", IDLE).key("networks: [front]"),
        ]);
        program.services(&format!("{text}{networks}"));
        program.ok(["up", "-d"]);
        let [web, db, edge] = ["web", "db", "edge"].map(|name| program.running(name));
        let fixed = Ipv4Addr::new(172, 30, 99, 9);
        program.until("`web` finds `db`", || found(web, "db").filter(|address| *address == fixed));
        let alias = program.until("`db` finds `web` by its alias", || found(db, "www"));
        assert_eq!(found(db, "web"), Some(alias));
        program.until("`edge` finds `web`", || found(edge, "web"));
        assert_eq!((found(edge, "www"), found(edge, "db")), (None, None));
        let _listener = listen(db, 80);
        assert!(connects(web, (fixed, 80)) && !connects(edge, (fixed, 80)));
        // Not even a way out.
        let routes = |process: Pid| {
            let routes = || listed("ip", &["-4", "route", "show", "default"]);
            netns::within(network_of(process).as_fd(), routes).unwrap()
        };
        assert!(routes(db).is_empty() && !routes(web).is_empty());
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn services_share_the_network_of_another_and_follow_it() {
    on_a_host(|| {
        let program = Program::new();
        let vpn = service("vpn", IDLE).bridged().key("ports: ['18082:80']").key("restart: always");
        let app = service("app", IDLE).key("network_mode: service:vpn");
        let side = service("side", IDLE).key("network_mode: container:tests-vpn-1");
        program.services(&format!("name: tests\n{}", file(&[vpn, app, side])));
        program.ok(["up", "-d"]);
        let [vpn, app, side] = ["vpn", "app", "side"].map(|name| program.running(name));
        let network = |process: Pid| {
            std::fs::read_link(format!("/proc/{}/ns/net", process.as_raw_nonzero())).unwrap()
        };
        assert_eq!((network(app), network(side)), (network(vpn), network(vpn)));
        let _listener = listen(app, 80);
        program.until("what the other one publishes is reached", || reach(18082));
        program.until("names are answered", || found(app, "vpn"));

        // It dies, and has another network; those that were in the old one are started again in the new one.
        signal(vpn, Signal::KILL);
        program.until("all are in one network again", || {
            let [again, others @ ..] = ["vpn", "app", "side"].map(|name| program.running(name));
            let read = |process: Pid| {
                std::fs::read_link(format!("/proc/{}/ns/net", process.as_raw_nonzero())).ok()
            };
            let new = read(again).filter(|_| again != vpn)?;
            others.iter().all(|other| read(*other).as_ref() == Some(&new)).then_some(())
        });
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn a_resolver_that_hangs_is_replaced() {
    on_a_host(|| {
        let program = Program::new();
        program.services(&file(&[service("web", IDLE).bridged()]));
        program.ok(["up", "-d"]);
        let web = program.running("web");
        program.until("names are answered", || found(web, "web"));
        let hung = program.role("names", "").unwrap();
        signal(hung, Signal::STOP);
        program.until("another one runs", || program.role("names", "").filter(|now| *now != hung));
        program.until("it answers", || found(web, "web"));
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn who_is_in_which_network_is_found_out_when_the_record_is_lost() {
    on_a_host(|| {
        let program = Program::new();
        let web = service("web", IDLE).bridged().key("ports: ['18085:80']");
        program.services(&file(std::slice::from_ref(&web)));
        let up = program.up_running();
        let process = program.running("web");
        let _listener = listen(process, 80);
        program.until("the port is reached", || reach(18085));
        crash(up);
        for name in ["networks", "networks.prev"] {
            std::fs::write(program.folder().join("state").join(name), "{").unwrap();
        }
        empty_the_filter();
        program.services(&file(&[web, service("db", IDLE).bridged()]));
        program.ok(["up", "-d"]);
        assert_eq!(program.running("web"), process, "it is the same container");
        program.until("the port is reached again", || reach(18085));
        let db = program.running("db");
        program.until("both find each other", || found(db, "web").and(found(process, "db")));
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn nobody_joins_while_it_cannot_be_told_who_is_in_which_network() {
    on_a_host(|| {
        let program = Program::new();
        let web = service("web", IDLE).bridged().key("ports: ['18086:80']");
        program.services(&file(std::slice::from_ref(&web)));
        let up = program.up_running();
        let process = program.running("web");
        let _listener = listen(process, 80);
        program.until("the port is reached", || reach(18086));
        let container = program.service("web").unwrap()["ID"].as_str().unwrap().to_owned();
        let launched = program.run_dir().join("containers").join(container).join("launch.json");
        let record = std::fs::read(&launched).unwrap();
        let lose = |launch: &[u8]| {
            for name in ["networks", "networks.prev"] {
                std::fs::write(program.folder().join("state").join(name), "{").unwrap();
            }
            std::fs::write(&launched, launch).unwrap();
        };
        crash(up);
        lose(b"{");
        program.services(&file(&[web, service("db", IDLE).bridged()]));
        let up = program.up();
        let said = "the networks of a running container cannot be made out";
        program.until("`db` is not let in", || {
            let shown = program.ps();
            let db = shown.iter().find(|line| line["Service"] == "db")?;
            db.to_string().contains(said).then_some(())
        });
        assert_eq!(program.running("web"), process);
        assert!(reach(18086).is_some(), "its interface was taken for left over");
        crash(up);
        lose(&record);
        program.ok(["up", "-d"]);
        assert_eq!(program.running("web"), process, "it is the same container");
        let db = program.running("db");
        program.until("both find each other", || found(db, "web").and(found(process, "db")));
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn a_container_whose_networks_cannot_be_told_keeps_others_out_until_it_ends() {
    on_a_host(|| {
        let program = Program::new();
        let [web, cache] =
            ["web", "cache"].map(|name| service(name, IDLE).bridged().key("restart: always"));
        program.services(&file(&[web.clone(), cache.clone()]));
        let up = program.up_running();
        let [old, kept] = ["web", "cache"].map(|name| program.running(name));
        let container = program.service("web").unwrap()["ID"].as_str().unwrap().to_owned();
        crash(up);
        for name in ["networks", "networks.prev"] {
            std::fs::write(program.folder().join("state").join(name), "{").unwrap();
        }
        let launched = program.run_dir().join("containers").join(&container).join("launch.json");
        std::fs::write(&launched, "{").unwrap();
        program.services(&file(&[web, cache, service("db", IDLE).bridged()]));
        let up = program.up();
        program.until("`db` is not let in, and it is said because of whom", || {
            let shown = program.ps();
            let db = shown.iter().find(|line| line["Service"] == "db")?;
            let text = db.to_string();
            (text.contains("cannot be made out") && text.contains(&container)).then_some(())
        });
        program.ok(["restart", "web"]);
        let [web, db] = ["web", "db"].map(|name| program.running(name));
        assert_ne!(web, old);
        assert_eq!(program.running("cache"), kept, "it is the same container");
        program.until("all find each other", || {
            found(db, "web").and(found(kept, "db")).and(found(web, "cache"))
        });
        crash(up);
        program.ok(["down"]);
        until_nothing_is_left(&program);
    });
}

#[test]
fn a_network_that_cannot_be_made_keeps_nobody_else_from_theirs() {
    on_a_host(|| {
        // Whoever wants addresses of this family cannot have one.
        for which in ["default", "all"] {
            let setting = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
            std::fs::write(setting, "1").unwrap();
        }
        let program = Program::new();
        let text = file(&[
            service("bad", IDLE).key("networks: [six]"),
            service("web", IDLE).bridged(),
            service("db", IDLE).bridged(),
        ]);
        program.services(&format!("{text}networks: {{six: {{enable_ipv6: true}}}}\n"));
        let up = program.up();
        let [web, db] = ["web", "db"].map(|name| program.running(name));
        program.until("both find each other", || found(web, "db").and(found(db, "web")));
        program.until("`bad` is refused", || {
            let shown = program.ps();
            let bad = shown.iter().find(|line| line["Service"] == "bad")?;
            let text = bad.to_string();
            (text.contains("could not") && !text.contains("CAP_NET_ADMIN")).then_some(())
        });
        program.ok(["down"]);
        until_nothing_is_left(&program);
        crash(up);
    });
}
