//! The only unsafe code: mounts, namespaces, processes, descriptor passing, ioctls, mapped files.
//!
//! Nothing here knows a word of the domain. Functions are named for the intent, return `io::Result`, and keep
//! descriptors rather than paths. Whatever rustix offers safely needs no wrapper here unless it carries a rule of ours.
#![expect(
    unsafe_code,
    reason = "this module is where the unsafe code lives, each block with its SAFETY"
)]

pub mod cgroup;
pub mod child;
pub mod confine;
pub mod fuse_device;
pub mod heap;
mod identity;
mod mapped;
pub mod mount;
pub mod netns;
pub mod notify;
pub mod probe;
pub mod process;
pub mod process_info;
pub mod read_only_overlay;
pub mod readiness;
pub mod signal;
pub mod socket;
mod spawn;
pub mod usage;

pub use mapped::{MappedFile, MappedMut};
