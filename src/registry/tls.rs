//! Why no trusted encrypted connection came about, in words, and what to do about it.

use std::error::Error;
use std::io;

use jiff::Timestamp;
use rustls::CertificateError as Bad;
use rustls::pki_types::UnixTime;

/// The TLS failure that an error came from.
pub(super) fn failure<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        error.downcast_ref().or_else(|| error.downcast_ref::<io::Error>().and_then(inside))
    })
}

/// The TLS failure that an `io::Error` carries. `source` does not show what is inside one, and the connector
/// puts one into another.
fn inside(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    match inner.downcast_ref::<io::Error>() {
        Some(nested) => inside(nested),
        None => inner.downcast_ref(),
    }
}

/// What is wrong, for an operator who can do something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Authority,
    SelfSigned,
    Clock,
    Name,
    NotTls,
    Other,
}

fn trouble(error: &rustls::Error) -> Trouble {
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer => Trouble::Authority,
            Bad::Expired
            | Bad::ExpiredContext { .. }
            | Bad::NotValidYet
            | Bad::NotValidYetContext { .. } => Trouble::Clock,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Trouble::Name,
            // What the verifier has no name of its own for is known by this word only.
            Bad::Other(other) if other.to_string() == "CaUsedAsEndEntity" => Trouble::SelfSigned,
            _ => Trouble::Other,
        },
        rustls::Error::InvalidMessage(_) => Trouble::NotTls,
        _ => Trouble::Other,
    }
}

/// One line on a failure.
pub(super) fn reason(error: &rustls::Error) -> String {
    match (trouble(error), error) {
        (Trouble::Authority, _) => {
            "its certificate is signed by an authority that this host does not trust".to_owned()
        }
        (Trouble::SelfSigned, _) => {
            "its certificate is that of an authority (signed by itself), not of a server".to_owned()
        }
        (
            Trouble::Clock,
            rustls::Error::InvalidCertificate(Bad::ExpiredContext { time, not_after }),
        ) => format!(
            "its certificate has expired on {}, and this host's clock says {}",
            day(*not_after),
            day(*time)
        ),
        (
            Trouble::Clock,
            rustls::Error::InvalidCertificate(Bad::NotValidYetContext { time, not_before }),
        ) => format!(
            "its certificate is not valid before {}, and this host's clock says {}",
            day(*not_before),
            day(*time)
        ),
        (Trouble::Clock, _) => {
            "its certificate is not valid at the time that this host's clock says".to_owned()
        }
        (
            Trouble::Name,
            rustls::Error::InvalidCertificate(Bad::NotValidForNameContext { presented, .. }),
        ) if !presented.is_empty() => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!("its certificate is for another name ({})", names.join(", "))
        }
        (Trouble::Name, _) => "its certificate is for another name".to_owned(),
        (Trouble::NotTls, _) => "it does not speak TLS on this port".to_owned(),
        (Trouble::Other, other) => format!("no encrypted connection could be made ({other})"),
    }
}

/// What to do about a TLS failure that `error` came from.
pub(super) fn remedy(error: Option<&(dyn Error + 'static)>, host: &str) -> String {
    match error.and_then(failure).map_or(Trouble::Other, trouble) {
        Trouble::Authority => format!(
            "put the certificate of its authority into `/etc/containerd/certs.d/{host}/ca.crt`, or install it in this \
             host's certificate store, which is read when supervisor starts"
        ),
        Trouble::SelfSigned => format!(
            "give `{host}` a certificate that an authority has signed; until then, `skip_verify = true` in \
             `/etc/containerd/certs.d/{host}/hosts.toml` takes any"
        ),
        Trouble::Clock => {
            format!("set this host's clock if it is wrong, else renew the certificate of `{host}`")
        }
        Trouble::Name => {
            format!(
                "use a name that the certificate is for, or give `{host}` one for this name; a mirror's name is \
                 mapped in `/etc/containerd/certs.d/{host}/hosts.toml`"
            )
        }
        Trouble::NotTls => format!(
            "check the port; if `{host}` speaks plain HTTP, say so: `server = \"http://{host}\"` in \
             `/etc/containerd/certs.d/{host}/hosts.toml`"
        ),
        Trouble::Other => {
            format!("compare with `openssl s_client -connect` to `{host}`; a proxy may interfere")
        }
    }
}

fn day(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%d").to_string()
}

/// The name in `DnsName("registry.example")`, which is how the verifier shows one.
fn bare(shown: &str) -> &str {
    let inner = shown.split_once('(').map_or(shown, |(_, rest)| rest.trim_end_matches(')'));
    inner.trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_a_person_writes_them() {
        assert_eq!(bare("DnsName(\"registry.example\")"), "registry.example");
        assert_eq!(bare("IpAddress(10.0.0.1)"), "10.0.0.1");
        assert_eq!(bare("registry.example"), "registry.example");
    }

    #[test]
    fn dates_are_days_whatever_the_certificate_says() {
        let at = |seconds| day(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)));
        assert_eq!(at(0), "1970-01-01");
        assert_eq!(at(u64::MAX), "9999-12-30");
    }
}
