//! Bridges, and the pairs of interfaces that connect containers to them.
//!
//! Everything acts in the network namespace of the calling thread, which is the host's; a container's is given as a
//! descriptor. A container's end of a pair is made in its namespace, under its final name, so that no half of a pair is
//! ever left over on the host: when the container's last process ends, the kernel removes both.

mod apart;
mod bridge;
mod port;
mod request;
mod surroundings;

#[cfg(test)]
mod tests;

use std::io;

pub use apart::{Apart, keep_apart};
pub use bridge::{Bridge, ensure_bridge};
pub use port::attach;
pub use surroundings::{HostLinks, look_around};

use super::netlink::Netlink;
use super::{LinkKind, Owner};

/// An interface of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurLink {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it exists for; `None` when it was only half made.
    pub what: Option<String>,
    /// What it is.
    pub kind: LinkKind,
}

/// An operation on links failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel cannot be asked.
    #[error("could not speak to the kernel about interfaces")]
    Netlink(#[source] io::Error),
    /// A bridge that a container needs does not exist.
    #[error("bridge `{0}` does not exist")]
    NoBridge(String),
    /// Every name that could be ours is someone else's.
    #[error("no name is free for the interface of `{0}`")]
    NoName(String),
    /// One step.
    #[error("could not {step} interface `{name}`")]
    Step {
        /// What was tried.
        step: &'static str,
        /// On which interface.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn failed(step: &'static str, name: &str) -> impl Fn(io::Error) -> LinkError {
    let name = name.to_owned();
    move |source| LinkError::Step { step, name: name.clone(), source }
}

/// All interfaces of ours.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn list(owner: &Owner) -> Result<Vec<OurLink>, LinkError> {
    let mut netlink = Netlink::open().map_err(LinkError::Netlink)?;
    list_with(&mut netlink, owner)
}

fn list_with(netlink: &mut Netlink, owner: &Owner) -> Result<Vec<OurLink>, LinkError> {
    let links = request::links(netlink).map_err(LinkError::Netlink)?;
    let ours = links.into_iter().filter(|link| owner.owns(&link.name, link.alias.as_deref()));
    Ok(ours
        .map(|link| OurLink {
            index: link.index,
            kind: owner.kind(&link.name),
            what: link.alias.as_deref().and_then(|alias| owner.what(alias)).map(str::to_owned),
            name: link.name,
        })
        .collect())
}

/// Removes what is ours and what `is_wanted` does not want; returns the names of what went.
///
/// # Errors
/// When the kernel cannot be asked, or the first failure once everything was tried.
pub fn collect(
    owner: &Owner,
    is_wanted: impl Fn(&OurLink) -> bool,
) -> Result<Vec<String>, LinkError> {
    let mut netlink = Netlink::open().map_err(LinkError::Netlink)?;
    let mut gone = Vec::new();
    let mut first = None;
    for link in list_with(&mut netlink, owner)? {
        if is_wanted(&link) {
            continue;
        }
        match request::delete(&mut netlink, link.index) {
            Ok(()) => gone.push(link.name),
            // Its container ended meanwhile, or its other end was removed just now.
            Err(error) if request::is_gone(&error) => {}
            Err(source) => drop(first.get_or_insert(failed("remove", &link.name)(source))),
        }
    }
    match first {
        None => Ok(gone),
        Some(error) => Err(error),
    }
}

/// The name that the interface for `what` has or can have: that of the one which is there for it, or the first that
/// is free.
fn name_for(
    netlink: &mut Netlink,
    owner: &Owner,
    kind: LinkKind,
    what: &str,
) -> Result<(String, Option<u32>), LinkError> {
    /// Names are hashes of 25 bits; two equal ones are rare and three a miracle.
    const ATTEMPTS: u32 = 8;
    let alias = owner.alias(what);
    for attempt in 0..ATTEMPTS {
        let name = owner.link(kind, what, attempt);
        match request::link(netlink, &name) {
            Ok(link) if link.alias.as_ref().is_none_or(|have| *have == alias) => {
                return Ok((name, Some(link.index)));
            }
            Ok(_) => {}
            Err(error) if request::is_gone(&error) => return Ok((name, None)),
            Err(error) => return Err(LinkError::Netlink(error)),
        }
    }
    Err(LinkError::NoName(what.to_owned()))
}
