//! The program that makes packet rules, and who can reach each published port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::Check;
use crate::network::{self, Published, rules};

const PROGRAM: &str = "nft";
const PORT: &str = "port";

/// Runs a program; blocks.
pub(super) fn checks(run_dir: &Path) -> Vec<Check> {
    let program = match rules::program_version() {
        Ok(version) => Check::ok(PROGRAM, version),
        Err(error) => {
            let remedy = "install the package `nftables`; until then, services with `network_mode: host` or `none` run";
            Check::degraded(PROGRAM, crate::telemetry::Chain(&error).to_string(), remedy)
        }
    };
    let ports = match network::published(run_dir) {
        Ok(published) => of(&published),
        Err(error) => {
            let message = format!("what is published cannot be read: {error}");
            vec![Check::degraded(PORT, message, "it is written anew when a service starts or ends")]
        }
    };
    std::iter::once(program).chain(ports).collect()
}

/// One for each port; the two families of one are the same port.
fn of(published: &[Published]) -> Vec<Check> {
    let shown: BTreeSet<(u16, String, String)> = published
        .iter()
        .map(|Published { service, publication }| {
            let address = publication.host_ip.filter(|ip| !ip.is_unspecified());
            let (port, transport) = (publication.host_port, publication.transport);
            let at = match address {
                Some(IpAddr::V6(ip)) => format!("[{ip}]:{port}/{transport}"),
                Some(ip) => format!("{ip}:{port}/{transport}"),
                None => format!("{port}/{transport}"),
            };
            let who = match address {
                Some(ip) if ip.is_loopback() => "programs of this host alone".to_owned(),
                Some(ip) => format!("whoever reaches this host at {ip}"),
                None => "whoever reaches this host at any of its addresses".to_owned(),
            };
            let firewall = match address {
                Some(ip) if ip.is_loopback() => "",
                _ => ", as far as its firewall forwards",
            };
            let to_port = publication.to_port;
            (port, at, format!("port {to_port} of `{service}` is reached by {who}{firewall}"))
        })
        .collect();
    shown.into_iter().map(|(_, at, message)| Check::ok(PORT, message).of(at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Publication, Transport};

    #[test]
    fn each_port_says_who_reaches_it() {
        let published = |host: &str, to: &str| Published {
            service: "shop/web-1".to_owned(),
            publication: Publication {
                host_ip: host.parse().ok(),
                host_port: 8080,
                transport: Transport::Tcp,
                to: to.parse().unwrap(),
                to_port: 80,
            },
        };
        let checks = of(&[
            published("", "10.0.0.2"),
            published("", "fd00::2"),
            published("127.0.0.1", "10.0.0.2"),
            published("2001:db8::1", "fd00::2"),
        ]);
        let shown: Vec<(&str, &str)> = checks
            .iter()
            .map(|check| (check.subject.as_deref().unwrap(), check.message.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "127.0.0.1:8080/tcp",
                    "port 80 of `shop/web-1` is reached by programs of this host alone"
                ),
                (
                    "8080/tcp",
                    "port 80 of `shop/web-1` is reached by whoever reaches this host at any of its addresses, as far \
                     as its firewall forwards"
                ),
                (
                    "[2001:db8::1]:8080/tcp",
                    "port 80 of `shop/web-1` is reached by whoever reaches this host at 2001:db8::1, as far as its \
                     firewall forwards"
                ),
            ]
        );
    }
}
