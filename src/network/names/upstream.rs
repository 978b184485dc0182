//! The host's own resolvers: read from its `resolv.conf`, again when that changes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

/// Most resolvers that are asked; more are ignored by everyone (`MAXNS`).
const MAX_SERVERS: usize = 3;
const PORT: u16 = 53;

/// The resolvers of a file.
#[derive(Debug)]
pub(super) struct HostResolvers {
    file: PathBuf,
    read: Mutex<Option<(SystemTime, Vec<SocketAddr>)>>,
}

impl HostResolvers {
    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, read: Mutex::new(None) }
    }

    /// Those that the file names now.
    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        // Follows links: the file is one on most hosts, and its target is what changes.
        let changed = fs::metadata(&self.file).and_then(|is| is.modified());
        let changed = changed.unwrap_or(SystemTime::UNIX_EPOCH);
        let mut read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*read {
            Some((at, servers)) if *at == changed => servers.clone(),
            _ => {
                let servers = parse(&fs::read_to_string(&self.file).unwrap_or_default());
                *read = Some((changed, servers.clone()));
                servers
            }
        }
    }
}

/// With the port that resolvers have.
pub(super) fn at_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, PORT)
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            // A zone (`fe80::1%eth0`) cannot be had in an address; such a resolver is announced by others as well.
            words.next()?.parse().ok().map(at_port)
        })
        .take(MAX_SERVERS)
        .collect();
    if servers.is_empty() {
        // As resolv.conf(5) says.
        servers.push(at_port(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_again_when_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let resolvers = HostResolvers::new(file.clone());
        assert_eq!(resolvers.servers(), ["127.0.0.1:53".parse().unwrap()]);
        let text = "# stub\nsearch lan\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\n";
        fs::write(&file, text).unwrap();
        let expected: Vec<SocketAddr> =
            ["127.0.0.53:53", "[2001:db8::1]:53"].iter().map(|s| s.parse().unwrap()).collect();
        assert_eq!(resolvers.servers(), expected);
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let file = fs::File::options().write(true).open(&file).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9)).unwrap();
        assert_eq!(resolvers.servers(), ["192.0.2.1:53".parse().unwrap()]);
    }
}
