//! Networks of one host: bridges, addresses, published ports, and names between services.
//!
//! ```text
//!  what is wanted ──► address: AddressBook (durable) ── which subnet, which address; kept for good
//!                        │
//!                        ├──► link:  a bridge per network; a veth pair per container and network
//!                        ├──► rules: one nftables table of ours, replaced as a whole ──► watch: who changed it?
//!                        └──► names: what is called how, for the resolver of every container
//! ```
//!
//! [`NetworkState`] says who is in which network, durably; all else follows from it, and [`HostNetwork`] makes the host
//! so: after a start, a crash or somebody else's `nft flush ruleset` alike.
//!
//! What it owns: interfaces, one nftables table, two kinds of sysctl, and the durable [`AddressBook`] (which its
//! caller keeps). What it does not: namespaces. A container's namespace is made by whoever starts the container, lives
//! as long as its processes, and takes its end of every veth pair along when it goes; so there is nothing to collect
//! but bridges, rules, and pairs whose container never came to life.
//!
//! # Laws
//!
//! * **Names.** Everything is named for the instance: interfaces `s<instance><kind><hash>` (15 characters), the table
//!   `supervisor-<instance>`. See [`Owner`].
//! * **Ownership.** An interface is ours when its name says so and its alias does not say otherwise; a rule is ours
//!   when it is in our table. Nothing else is ever changed or removed, no policy of another chain included.
//! * **Idempotent.** Every operation states what should be, and does nothing where it is so already.
//! * **Leftovers** are what is ours and no longer wanted; [`link::collect`] removes it on every pass.
//! * **Closed by default.** From a bridge nothing can be reached but the outside, published ports, and what its
//!   containers were granted; nothing reaches a bridge but through a published port. Who shares a bridge reaches the
//!   others on it; `network_mode: bridge` is one for all who ask for it, of whatever project.
//! * Operations on links act in the network namespace of the calling thread; [`netns::within`](crate::sys::netns::within) is how one gets
//!   into another.

pub mod address;
mod attachment;
mod forwarding;
mod host;
pub mod link;
pub mod names;
mod netlink;
mod owner;
pub mod port;
pub mod rules;
mod state;
#[cfg(test)]
mod state_tests;
mod wish;

pub use address::{AddressBook, AddressError, Addresses, EndpointWish, SubnetError, Surroundings};
pub use attachment::{
    Attachment, HostAccess, Ipv6, Neighbours, NetworkKey, NetworkSpec, Publication, Published,
    Reach, Subnet, Transport,
};
pub use forwarding::{
    Closed, SettingError, ensure_forwarding, is_bridged_filtered, prepare_bridge,
};
pub use host::{Applied, HostNetwork, HostNetworkError, published};
pub use owner::{LinkKind, Owner, OwnerError};
pub use state::NetworkState;
pub use wish::{JoinError, MemberWish, MembershipWish, PortWish};
