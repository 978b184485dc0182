//! What integration tests share: stand-ins for networks and registries, and drivers of real ones.

pub(crate) mod link;
