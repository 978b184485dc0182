//! Containers on one bridge that do not see each other: who keeps them apart.
//!
//! The bridge does it best, by isolating their ports. But where bridged packets are given to the packet filter
//! (br_netfilter, which Docker and Kubernetes switch on), what a container sends to a published port is translated within
//! the bridge and passed on there, to a port that is isolated or to the one that it came from: nobody on it would reach
//! what the others publish, nor what it publishes itself (measured, Linux 6.18). There the rules keep them apart, which see
//! all that passes: see [`crate::network::rules`].

use super::super::netlink::Netlink;
use super::super::{LinkKind, Neighbours, Owner, is_bridged_filtered};
use super::{LinkError, failed, request};

/// Who keeps them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// The bridge, whose ports are isolated.
    ByBridge,
    /// The rules.
    ByRules,
}

impl Apart {
    /// As the host is set up at present.
    #[must_use]
    pub fn now() -> Self {
        if is_bridged_filtered() { Self::ByRules } else { Self::ByBridge }
    }
}

/// Whether a new port is isolated.
pub(super) fn is_by_bridge(neighbours: Neighbours) -> bool {
    neighbours == Neighbours::Unseen && Apart::now() == Apart::ByBridge
}

/// Sees to it that those on `bridge` are kept apart, also those who are there already. The rules must be in place.
///
/// # Errors
/// When the kernel cannot be asked or refuses.
pub fn keep_apart(owner: &Owner, bridge: &str, apart: Apart) -> Result<(), LinkError> {
    let mut netlink = Netlink::open().map_err(LinkError::Netlink)?;
    let index = request::link(&mut netlink, bridge).map_err(failed("find", bridge))?.index;
    // At no moment by nobody.
    if apart == Apart::ByRules {
        request::filter_bridge(&mut netlink, index, true).map_err(failed("set up", bridge))?;
    }
    for link in request::links(&mut netlink).map_err(LinkError::Netlink)? {
        let is_ours = owner.owns(&link.name, link.alias.as_deref());
        if link.controller != Some(index) || !is_ours || owner.kind(&link.name) != LinkKind::Port {
            continue;
        }
        match request::isolate_port(&mut netlink, link.index, apart == Apart::ByBridge) {
            Err(error) if !request::is_gone(&error) => {
                return Err(failed("set up", &link.name)(error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    if apart == Apart::ByBridge {
        request::filter_bridge(&mut netlink, index, false).map_err(failed("set up", bridge))?;
    }
    Ok(())
}
