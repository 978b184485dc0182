//! What is answered to a question. Computes only.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::{NameClient, NameTable, NamedHost, Outside, Ready};

/// Seconds that an answer may be kept: containers come and go.
const TTL: u32 = 2;
/// What fits into a datagram where nobody said otherwise, and the least that may be said (RFC 1035, RFC 6891).
const SMALL_DATAGRAM: usize = 512;
/// What passes every link in one piece.
const LARGE_DATAGRAM: u16 = 1232;

/// How a question came, and with it how long the answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Datagram,
    Stream,
}

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// It is for others.
    Forward,
    /// It is no question.
    Ignore,
}

/// What `client` gets for `question`.
pub(super) fn decide(
    table: &NameTable,
    client: &str,
    question: &[u8],
    transport: Transport,
) -> Verdict {
    let Some(id) = question.get(..2).map(|id| u16::from_be_bytes([id[0], id[1]])) else {
        return Verdict::Ignore;
    };
    // An answer that claims to be a question would make two resolvers talk to each other for ever.
    if question.len() < 12 || question[2] & 0x80 != 0 {
        return Verdict::Ignore;
    }
    let Ok(message) = Message::from_vec(question) else {
        let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return refusal.to_vec().map_or(Verdict::Ignore, Verdict::Answer);
    };
    let found = match message.queries.as_slice() {
        _ if message.metadata.op_code != OpCode::Query => Found::Code(ResponseCode::NotImp),
        [query] => match table.clients.get(client) {
            Some(client) => find(table, client, query, id),
            None => Found::Code(ResponseCode::Refused),
        },
        _ => Found::Code(ResponseCode::FormErr),
    };
    let (code, records) = match found {
        Found::Elsewhere => return Verdict::Forward,
        Found::Code(code) => (code, Vec::new()),
        Found::Records(records) => (ResponseCode::NoError, records),
    };
    reply(&message, code, records, transport).map_or(Verdict::Ignore, Verdict::Answer)
}

/// The answer that something went wrong on the way to others.
pub(super) fn failure(question: &[u8], code: ResponseCode) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    reply(&message, code, Vec::new(), Transport::Datagram)
}

enum Found {
    Records(Vec<Record>),
    Code(ResponseCode),
    Elsewhere,
}

fn reply(
    question: &Message,
    code: ResponseCode,
    records: Vec<Record>,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut message = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata = Metadata::response_from_request(&question.metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(question.queries.iter().cloned());
    message.add_answers(records);
    let mut room = usize::MAX;
    if transport == Transport::Datagram {
        room = SMALL_DATAGRAM;
    }
    if let Some(asked) = &question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGE_DATAGRAM);
        message.set_edns(edns);
        if transport == Transport::Datagram {
            let payload = asked.max_payload().min(LARGE_DATAGRAM);
            room = usize::from(payload).max(SMALL_DATAGRAM);
        }
    }
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= room {
        return Some(bytes);
    }
    // Whoever needs more asks again over TCP; the first addresses are enough for all others.
    let mut short = message;
    short.metadata.truncation = true;
    while !short.answers.is_empty() {
        let half = short.answers.len() / 2;
        short.answers.truncate(half);
        let bytes = short.to_vec().ok()?;
        if bytes.len() <= room {
            return Some(bytes);
        }
    }
    short.to_vec().ok()
}

fn find(table: &NameTable, client: &NameClient, query: &Query, id: u16) -> Found {
    let elsewhere = || match client.outside {
        Outside::Asked => Found::Elsewhere,
        Outside::Closed if query.name().num_labels() < 2 => Found::Code(ResponseCode::NXDomain),
        // Not that the name does not exist: nobody was asked.
        Outside::Closed => Found::Code(ResponseCode::ServFail),
    };
    if query.query_class() != DNSClass::IN {
        return elsewhere();
    }
    if query.query_type() == RecordType::PTR
        && let Some(address) = reverse(query.name())
    {
        return find_address(table, client, query, address).unwrap_or_else(elsewhere);
    }
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let networks = client.networks.iter().filter_map(|key| table.networks.get(key));
    let is_called =
        |host: &&NamedHost| host.names.iter().any(|other| other.eq_ignore_ascii_case(&name));
    // The first network that knows the name: the same container in two networks has two addresses, and the client
    // reaches it by either.
    let hosts = networks
        .map(|network| network.hosts.iter().filter(is_called).collect::<Vec<_>>())
        .find(|hosts| !hosts.is_empty());
    let Some(mut hosts) = hosts else { return elsewhere() };
    if hosts.iter().any(|host| host.ready == Ready::Yes) {
        hosts.retain(|host| host.ready == Ready::Yes);
    }
    // Most programs use the first address.
    let turn = usize::from(id) % hosts.len();
    hosts.rotate_left(turn);
    let data = |host: &&NamedHost| match query.query_type() {
        RecordType::A => host.v4.map(|address| RData::A(A(address))),
        RecordType::AAAA => host.v6.map(|address| RData::AAAA(AAAA(address))),
        // The name is ours, and it has no such record.
        _ => None,
    };
    let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
    Found::Records(hosts.iter().filter_map(data).map(record).collect())
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// `None`: the address is in none of the client's networks.
fn find_address(
    table: &NameTable,
    client: &NameClient,
    query: &Query,
    address: IpAddr,
) -> Option<Found> {
    let mut networks = client.networks.iter().filter_map(|key| table.networks.get(key));
    let network = networks.find(|network| network.subnets.iter().any(|n| n.contains(&address)))?;
    let is_it = |host: &&NamedHost| {
        host.v4.map(IpAddr::V4) == Some(address) || host.v6.map(IpAddr::V6) == Some(address)
    };
    let name = network.hosts.iter().find(is_it).and_then(|h| Name::from_ascii(&h.canonical).ok());
    Some(match name {
        Some(mut name) => {
            name.set_fqdn(true);
            let data = RData::PTR(PTR(name));
            Found::Records(vec![Record::from_rdata(query.name().clone(), TTL, data)])
        }
        None => Found::Code(ResponseCode::NXDomain),
    })
}
