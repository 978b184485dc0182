//! Questions as a container asks them: in a namespace of its own, at `127.0.0.11`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::answer::{Transport, Verdict, decide};
use super::*;
use crate::network::link::{Bridge, attach, ensure_bridge};
use crate::network::{Attachment, Owner};
use crate::sys::{netns, socket};

fn host(name: &str, others: &[&str], last: u8, ready: Ready) -> NamedHost {
    NamedHost {
        canonical: format!("shop-{name}.shop_default"),
        names: others.iter().map(|other| (*other).to_owned()).chain([name.to_owned()]).collect(),
        v4: Some([10, 213, 7, last].into()),
        v6: Some(format!("fd00:7::{last}").parse().unwrap()),
        ready,
    }
}

fn table() -> NameTable {
    let key = |network: &str| NetworkKey::named(format!("shop_{network}"));
    let hosts = vec![
        host("web-1", &["web", "front.example"], 2, Ready::No),
        host("web-2", &["web"], 3, Ready::Yes),
        host("db-1", &["db"], 4, Ready::No),
    ];
    let subnets = vec!["10.213.7.0/24".parse().unwrap(), "fd00:7::/64".parse().unwrap()];
    let mut hidden = host("cache-1", &["cache"], 9, Ready::Yes);
    hidden.v6 = None;
    let client = |networks: &[&str], outside| NameClient {
        networks: networks.iter().map(|network| key(network)).collect(),
        servers: Vec::new(),
        outside,
    };
    NameTable {
        networks: BTreeMap::from([
            (key("default"), NamedNetwork { subnets, hosts }),
            (key("hidden"), NamedNetwork { subnets: Vec::new(), hosts: vec![hidden] }),
        ]),
        clients: BTreeMap::from([
            ("web-1".to_owned(), client(&["default"], Outside::Asked)),
            ("db-1".to_owned(), client(&["default", "hidden"], Outside::Asked)),
            ("cache-1".to_owned(), client(&["hidden"], Outside::Closed)),
        ]),
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The answer in words: code, then data.
fn shown(answer: &Message) -> String {
    let mut words = vec![answer.metadata.response_code.to_string()];
    words.extend(answer.answers.iter().map(|record| match &record.data {
        RData::A(address) => address.to_string(),
        RData::AAAA(address) => address.to_string(),
        RData::PTR(name) => name.to_string(),
        other => format!("{other:?}"),
    }));
    words.join(" ")
}

fn asked(client: &str, name: &str, kind: RecordType) -> String {
    let bytes = question(name, kind).to_vec().unwrap();
    match decide(&table(), client, &bytes, Transport::Datagram) {
        Verdict::Answer(answer) => shown(&Message::from_vec(&answer).unwrap()),
        other => format!("{other:?}"),
    }
}

#[test]
fn names_are_answered_to_those_who_may_know_them() {
    use RecordType::{A, AAAA, MX, PTR};
    for (client, name, kind, expected) in [
        // Ready ones, and others where none is.
        ("web-1", "web.", A, "No Error 10.213.7.3"),
        ("web-1", "WEB-1.", A, "No Error 10.213.7.2"),
        ("web-1", "front.example.", A, "No Error 10.213.7.2"),
        ("web-1", "web.", AAAA, "No Error fd00:7::3"),
        ("web-1", "db", A, "No Error 10.213.7.4"),
        ("web-1", "db.", MX, "No Error"),
        // Of its own networks only.
        ("web-1", "cache.", A, "Forward"),
        ("db-1", "cache.", A, "No Error 10.213.7.9"),
        ("db-1", "cache.", AAAA, "No Error"),
        ("nobody", "web.", A, "Query Refused"),
        // Backwards.
        ("web-1", "4.7.213.10.in-addr.arpa.", PTR, "No Error shop-db-1.shop_default."),
        ("web-1", "77.7.213.10.in-addr.arpa.", PTR, "Non-Existent Domain"),
        ("web-1", "1.2.0.192.in-addr.arpa.", PTR, "Forward"),
        ("web-1", "7.213.10.in-addr.arpa.", PTR, "Forward"),
        // Out of an internal network nobody is asked.
        ("web-1", "www.example.org.", A, "Forward"),
        ("cache-1", "www.example.org.", A, "Server Failure"),
        ("cache-1", "web.", A, "Non-Existent Domain"),
    ] {
        assert_eq!(asked(client, name, kind), expected, "{client}: {name} {kind}");
    }
}

#[test]
fn what_is_no_question_makes_no_harm() {
    let whole = question("web.", RecordType::A).to_vec().unwrap();
    for length in 0..whole.len() {
        let verdict = decide(&table(), "web-1", &whole[..length], Transport::Datagram);
        assert_ne!(verdict, Verdict::Forward, "{length}");
        assert_eq!(verdict == Verdict::Ignore, length < 12, "{length}");
    }
    let mut answer = whole;
    answer[2] |= 0x80;
    assert_eq!(decide(&table(), "web-1", &answer, Transport::Datagram), Verdict::Ignore);
}

#[test]
fn a_long_answer_is_cut_for_a_datagram_and_whole_on_a_stream() {
    let mut table = table();
    let network = table.networks.get_mut(&NetworkKey::named("shop_default")).unwrap();
    network.hosts =
        (0..200).map(|n| host(&format!("many-{n}"), &["many"], n, Ready::Yes)).collect();
    let mut asking = question("many.", RecordType::A);
    let mut lengths = Vec::new();
    for edns in [false, true] {
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(4096);
            asking.set_edns(edns);
        }
        let bytes = asking.to_vec().unwrap();
        let Verdict::Answer(answer) = decide(&table, "web-1", &bytes, Transport::Datagram) else {
            panic!("no answer");
        };
        let message = Message::from_vec(&answer).unwrap();
        assert!(message.metadata.truncation && !message.answers.is_empty());
        lengths.push(answer.len());
        let Verdict::Answer(answer) = decide(&table, "web-1", &bytes, Transport::Stream) else {
            panic!("no answer");
        };
        let message = Message::from_vec(&answer).unwrap();
        assert_eq!((message.metadata.truncation, message.answers.len()), (false, 200));
    }
    assert!(lengths[0] <= 512 && lengths[1] <= 1232, "{lengths:?}");
}

#[test]
fn a_container_is_told_where_to_ask() {
    assert_eq!(resolv_conf(&[], &[]), "nameserver 127.0.0.11\noptions ndots:0\n");
    let (search, options) = (["a.example".to_owned()], ["ndots:2".to_owned()]);
    let expected = "nameserver 127.0.0.11\nsearch a.example\noptions ndots:2\n";
    assert_eq!(resolv_conf(&search, &options), expected);
}

/// Runs a resolver in a namespace of its own, as the role does, until it is dropped.
struct Resolver {
    directory: tempfile::TempDir,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Resolver {
    fn start(host: &OwnedFd) -> Self {
        let directory = tempfile::tempdir().unwrap();
        NamesClient::write_table(directory.path(), &table()).unwrap();
        let folder = std::fs::File::open(directory.path()).unwrap();
        let listener = socket::listen(folder.as_fd(), NAMES_SOCKET).unwrap();
        let file = directory.path().join(NAMES_TABLE);
        let host = host.try_clone().unwrap();
        let (started, is_started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            netns::within(host.as_fd(), || {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build().unwrap();
                started.send(()).unwrap();
                runtime.block_on(role::serve(listener, file)).unwrap();
            })
            .unwrap();
        });
        is_started.recv().unwrap();
        Self { directory, thread: Some(thread) }
    }

    fn client(&self) -> NamesClient {
        NamesClient::connect(self.directory.path()).unwrap()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.client().stop().unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A host with a bridge, and a container on it.
fn world() -> (OwnedFd, OwnedFd) {
    let (host, container) = (netns::make().unwrap(), netns::make().unwrap());
    netns::within(host.as_fd(), || {
        let owner = Owner::new("0badcafe").unwrap();
        let network = NetworkKey::named("shop_default");
        let bridge = Bridge { network, v4: ([10, 213, 7, 1].into(), 24), v6: None };
        let attachment = Attachment {
            what: "web-1".to_owned(),
            bridge: ensure_bridge(&owner, &bridge).unwrap(),
            interface: "eth0".to_owned(),
            mac: Attachment::mac_for("web-1"),
            v4: Some(([10, 213, 7, 2].into(), 24)),
            v6: None,
            gateway4: Some([10, 213, 7, 1].into()),
            gateway6: None,
            neighbours: crate::network::Neighbours::Seen,
        };
        attach(&owner, container.as_fd(), &[attachment]).unwrap();
    })
    .unwrap();
    (host, container)
}

/// Asks at port 53 of the container's resolver.
fn ask(container: &OwnedFd, name: &str, transport: Transport) -> String {
    let bytes = question(name, RecordType::A).to_vec().unwrap();
    let to = SocketAddr::from((RESOLVER, 53));
    let answer = netns::within(container.as_fd(), || match transport {
        Transport::Datagram => {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            socket.connect(to).unwrap();
            socket.send(&bytes).unwrap();
            let mut buffer = vec![0; 2048];
            let length = socket.recv(&mut buffer).unwrap();
            buffer.truncate(length);
            buffer
        }
        Transport::Stream => {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(30)).unwrap();
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, bytes.as_slice()].concat()).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut buffer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut buffer).unwrap();
            buffer
        }
    })
    .unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.queries.len(), 1);
    shown(&answer)
}

#[test]
fn a_container_finds_its_neighbours_at_the_usual_address() {
    let (host, container) = world();
    let resolver = Resolver::start(&host);
    // The container is a DNS server itself.
    let own = netns::within(container.as_fd(), || UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    let entry = open_entry(container.as_fd()).unwrap();
    resolver.client().adopt("web-1", &entry).unwrap();
    drop(entry);
    for transport in [Transport::Datagram, Transport::Stream] {
        assert_eq!(ask(&container, "web.", transport), "No Error 10.213.7.3");
    }
    // A new table holds at once.
    let mut changed = table();
    let network = changed.networks.get_mut(&NetworkKey::named("shop_default")).unwrap();
    network.hosts[1].v4 = Some([10, 213, 7, 33].into());
    NamesClient::write_table(resolver.directory.path(), &changed).unwrap();
    resolver.client().reload().unwrap();
    assert_eq!(ask(&container, "web.", Transport::Datagram), "No Error 10.213.7.33");
    assert_eq!(resolver.client().clients().unwrap(), ["web-1"]);
    // Another resolver takes over what it is given anew.
    let entry = open_entry(container.as_fd()).unwrap();
    resolver.client().adopt("web-1", &entry).unwrap();
    assert_eq!(ask(&container, "web.", Transport::Stream), "No Error 10.213.7.33");
    resolver.client().release("web-1").unwrap();
    assert!(resolver.client().clients().unwrap().is_empty());
    drop(own);
}

#[test]
fn other_names_are_asked_of_the_resolver_that_the_service_names() {
    let (host, container) = world();
    // At a loopback address of the host, as a stub of systemd-resolved is: another namespace's for the container.
    let upstream = netns::within(host.as_fd(), || {
        let up = ["link", "set", "lo", "up"];
        assert!(std::process::Command::new("ip").args(up).status().unwrap().success());
        UdpSocket::bind("127.0.0.53:53").unwrap()
    })
    .unwrap();
    let answering = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, from) = upstream.recv_from(&mut buffer).unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(question.queries[0].name().to_string(), "www.example.org.");
        let mut answer = question.into_response();
        answer.metadata.response_code = ResponseCode::NXDomain;
        upstream.send_to(&answer.to_vec().unwrap(), from).unwrap();
    });
    let resolver = Resolver::start(&host);
    let mut own = table();
    own.clients.get_mut("web-1").unwrap().servers = vec!["127.0.0.53".parse().unwrap()];
    NamesClient::write_table(resolver.directory.path(), &own).unwrap();
    resolver.client().reload().unwrap();
    resolver.client().adopt("web-1", &open_entry(container.as_fd()).unwrap()).unwrap();
    let answer = ask(&container, "www.example.org.", Transport::Datagram);
    assert_eq!(answer, "Non-Existent Domain");
    answering.join().unwrap();
    // Nobody is there any more.
    assert_eq!(ask(&container, "www.example.org.", Transport::Datagram), "Server Failure");
}
