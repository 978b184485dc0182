//! Networks of one host. Containers use the host's network or none until bridges exist.
