//! Everything that needs the whole program, root, or another tool. Run by `scripts/test`.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a panic is how a test fails, also in the functions around the tests"
)]

mod container;
mod control_edges;
mod doctor;
mod faults;
mod golden;
mod holders;
mod large_image;
mod lazy_budget;
mod lazy_connection;
mod lazy_edges;
mod lazy_engine;
mod lazy_mount;
mod lazy_xattrs;
mod login;
mod logs;
mod registry;
mod service_manager;
mod services;
mod small_files;
mod state;
mod succession;
mod support;
mod survival;
mod takeover;
mod tidy;
mod unpack;
