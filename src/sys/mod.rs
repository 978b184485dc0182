//! The only unsafe code: mounts, namespaces, processes, descriptor passing, ioctls, mapped files.
//!
//! Nothing here knows a word of the domain. Functions are named for the intent, return `io::Result`, and keep
//! descriptors rather than paths. Whatever rustix offers safely needs no wrapper here unless it carries a rule of ours.
