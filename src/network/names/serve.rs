//! Serving the sockets of all containers on one thread.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener as StdListener, UdpSocket as StdUdp};
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::answer::{self, Transport, Verdict};
use super::upstream::{HostResolvers, at_port};
use super::{NameTable, forward};

/// Questions of all containers that wait for others; a socket each.
const WAITING: usize = 512;
/// Questions and connections of one container at a time, so that one cannot take the room of all.
const WAITING_OF_ONE: usize = 128;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// What every container's server uses.
#[derive(Debug)]
struct Shared {
    table: RwLock<Arc<NameTable>>,
    resolvers: HostResolvers,
    waiting: Semaphore,
}

/// The servers of all containers. Needs a runtime.
#[derive(Debug)]
pub(super) struct Server {
    shared: Arc<Shared>,
    clients: HashMap<String, AbortHandle>,
}

impl Server {
    pub(super) fn new(table: NameTable, resolvers: HostResolvers) -> Self {
        let table = RwLock::new(Arc::new(table));
        let waiting = Semaphore::new(WAITING);
        Self { shared: Arc::new(Shared { table, resolvers, waiting }), clients: HashMap::new() }
    }

    /// Answers from `table` from now on.
    pub(super) fn replace_table(&self, table: NameTable) {
        let mut current =
            self.shared.table.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *current = Arc::new(table);
    }

    /// Serves a container at these sockets; those that it had before are closed.
    pub(super) fn adopt(&mut self, client: String, udp: OwnedFd, tcp: OwnedFd) -> io::Result<()> {
        let (udp, tcp) = (StdUdp::from(udp), StdListener::from(tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let task = serve(client.clone(), Arc::clone(&self.shared), Arc::new(udp), tcp);
        let handle = tokio::spawn(task).abort_handle();
        if let Some(before) = self.clients.insert(client, handle) {
            before.abort();
        }
        Ok(())
    }

    /// Closes the sockets of a container: they keep its namespace alive.
    pub(super) fn release(&mut self, client: &str) {
        if let Some(task) = self.clients.remove(client) {
            task.abort();
        }
    }

    pub(super) fn clients(&self) -> Vec<String> {
        let mut all: Vec<String> = self.clients.keys().cloned().collect();
        all.sort();
        all
    }
}

/// Serves one container until it is aborted; everything that it began ends with it.
async fn serve(client: String, shared: Arc<Shared>, udp: Arc<UdpSocket>, tcp: TcpListener) {
    let client: Arc<str> = client.into();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let has_room = tasks.len() < WAITING_OF_ONE;
        // Each of these is cancel safe: what one has received or accepted it returns.
        tokio::select! {
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            received = udp.recv_from(&mut buffer), if has_room => {
                // An error is about a datagram that was sent before, to a port that is closed now.
                let Ok((length, from)) = received else { continue };
                let question = &buffer[..length];
                match decide(&shared, &client, question, Transport::Datagram) {
                    Verdict::Ignore => {}
                    Verdict::Answer(answer) => drop(udp.try_send_to(&answer, from)),
                    Verdict::Forward => {
                        let (shared, client) = (Arc::clone(&shared), Arc::clone(&client));
                        let (udp, question) = (Arc::clone(&udp), question.to_vec());
                        tasks.spawn(async move {
                            let answer = elsewhere(&shared, &client, &question, Transport::Datagram);
                            if let Some(answer) = answer.await {
                                let _ = udp.send_to(&answer, from).await;
                            }
                        });
                    }
                }
            }
            accepted = tcp.accept(), if has_room => match accepted {
                Ok((stream, _)) => {
                    let (shared, client) = (Arc::clone(&shared), Arc::clone(&client));
                    tasks.spawn(async move { converse(&shared, &client, stream).await });
                }
                // Descriptors are short, most likely; there are more when a connection ends.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
}

async fn converse(shared: &Shared, client: &str, mut stream: TcpStream) {
    while let Ok(Ok(question)) = timeout(SILENCE, forward::read_message(&mut stream)).await {
        let answer = match decide(shared, client, &question, Transport::Stream) {
            Verdict::Ignore => None,
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => elsewhere(shared, client, &question, Transport::Stream).await,
        };
        let Some(answer) = answer else { return };
        let written = timeout(SILENCE, forward::write_message(&mut stream, &answer)).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

fn table(shared: &Shared) -> Arc<NameTable> {
    Arc::clone(&shared.table.read().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn decide(shared: &Shared, client: &str, question: &[u8], transport: Transport) -> Verdict {
    answer::decide(&table(shared), client, question, transport)
}

async fn elsewhere(
    shared: &Shared,
    client: &str,
    question: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    let _permit = shared.waiting.acquire().await.ok()?;
    let own = table(shared).clients.get(client).map(|client| client.servers.clone());
    let servers = match own {
        Some(own) if !own.is_empty() => own.into_iter().map(at_port).collect(),
        _ => shared.resolvers.servers(),
    };
    match forward::ask(&servers, question, transport).await {
        Some(answer) => Some(answer),
        None => answer::failure(question, ResponseCode::ServFail),
    }
}
