//! What integration tests share: stand-ins for networks and registries, and drivers of real ones.

pub(crate) mod docker_registry;
pub(crate) mod link;
pub(crate) mod registry;
pub(crate) mod tiny_image;
pub(crate) mod tls_registry;
