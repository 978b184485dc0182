//! Where images come from: OCI distribution registries and image layout folders.
