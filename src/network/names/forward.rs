//! Passing a question on as it came, and its answer back as it came: whatever both sides know about DNS that we do
//! not, they still can use.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::Transport;

/// A resolver that is there answers sooner, and programs give up after five seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often all are asked: a datagram may be lost.
const ROUNDS: usize = 2;

/// Asks `servers` one after another; `None` when none answers.
pub(super) async fn ask(
    servers: &[SocketAddr],
    question: &[u8],
    transport: Transport,
) -> Option<Vec<u8>> {
    for server in std::iter::repeat_n(servers, ROUNDS).flatten() {
        let asked = async {
            match transport {
                Transport::Datagram => by_datagram(*server, question).await,
                Transport::Stream => by_stream(*server, question).await,
            }
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver cannot be asked"),
            Err(_) => tracing::debug!(%server, "a resolver does not answer"),
        }
    }
    None
}

/// Whether `answer` is one to `question`: the same number, and the same question as far as it can be compared.
fn fits(question: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && answer.get(..2) == question.get(..2) && answer[2] & 0x80 != 0
}

async fn by_datagram(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    // A socket, and so a port, for each question: guessing the number alone does not help a forger.
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if fits(question, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn by_stream(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    match read_message(&mut stream).await? {
        answer if fits(question, &answer) => Ok(answer),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A message on a stream is preceded by its length.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// As [`read_message`].
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
