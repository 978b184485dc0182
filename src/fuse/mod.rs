//! From the kernel's FUSE protocol to [`crate::lazy`]; keeper, worker, take-over, connection state.
