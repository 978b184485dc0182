//! `supervisor` turns a host with a kernel and a disk into a machine that runs containers.
//!
//! It pulls OCI images itself, mounts eStargz layers lazily through FUSE below overlayfs, starts containers
//! through libcontainer, and keeps them as a `services.yaml` file describes them.
//!
//! It is a program and a library. As a library, it is control in your process:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::time::Duration;
//! use supervisor::{Services, Supervisor};
//!
//! const SERVICES: &str = "
//! services:
//!   web:
//!     image: registry.example/web:1
//!     restart: always
//! ";
//!
//! fn main() -> ExitCode {
//!     // First of all, before any thread: the other processes of the runtime are this program, started again.
//!     if let Some(code) = supervisor::run_if_role() {
//!         return code;
//!     }
//!     match run() {
//!         Ok(()) => ExitCode::SUCCESS,
//!         Err(error) => {
//!             eprintln!("{error}");
//!             ExitCode::FAILURE
//!         }
//!     }
//! }
//!
//! #[tokio::main]
//! async fn run() -> Result<(), Box<dyn std::error::Error>> {
//!     let supervisor = Supervisor::builder("/var/lib/my-program", "/run/my-program").start()?;
//!     supervisor.apply(Services::from_text("shop", SERVICES)).await?;
//!     supervisor.wait_until_running("shop", Duration::from_secs(120)).await?;
//!     for service in supervisor.status().await? {
//!         println!("{}: {}", service.service, service.status);
//!     }
//!     // Containers go on without this process; a later start with the same directories takes them over.
//!     supervisor.stop_leaving_running().await;
//!     Ok(())
//! }
//! ```
//!
//! # What is stable
//!
//! [`run_if_role`] and what the root of this crate re-exports from [`embed`], with the types that those signatures name
//! (in [`supervise`], [`supervise::report`], [`registry::ClientOptions`] and [`container::ExecRequest`]), follow semver.
//! All other modules are public so that they can be read, tested and reused, and change with any version.
//!
//! # Processes
//!
//! One binary, several roles; each can be killed and is replaced while containers go on:
//!
//! * **control** decides and drives ([`supervise`], [`api`]): one per run directory.
//! * **keeper** mounts FUSE once for the host and holds its descriptor ([`fuse`]).
//! * **worker** serves every lazy layer of the host, confined ([`fuse`], [`lazy`]).
//! * **monitor**, one per container: overlay, libcontainer, stdio to log, exit record ([`container`]).
//! * **names** answers what services of a bridge are called ([`network::names`]).
//!
//! # Modules, in reading order
//!
//! Data flows down this list and a module imports only from above itself; `integration/tidy.rs` checks it.
//! [`image`], [`estargz`], [`spec`] and [`reconcile`] compute and do nothing else: no file, socket, clock,
//! random number, environment or runtime.
//!
//! # Glossary
//!
//! * *layer*: a tar of file-system changes; *lazy* when it is mounted before its content is here, *full* when
//!   it is unpacked into a directory.
//! * *blob*: bytes in a registry or store, named by their digest; *descriptor*: digest, size and media type of one.
//! * *chunk*: the unit in which the content of an eStargz file is compressed, fetched and verified.
//! * *TOC*: the table of contents of an eStargz layer; *index*: our mapped form of it.
//! * *whiteout*: an entry that hides a name of the layers below; *opaque*: a directory that hides all of them.
//! * *slot*: the place of a layer in the FUSE connection, high half of its inode numbers; never reused.
//! * *project*: one services file; *service*: one entry of it; *container*: one running instance of a service.
//! * *pass*: one round of observe, plan, execute; *action*: one step of a plan.

pub mod boundary;
pub mod version;

pub mod host;
pub mod sys;
pub mod telemetry;

pub mod estargz;
pub mod image;
pub mod reconcile;
pub mod spec;

pub mod logs;
pub mod network;
pub mod registry;
pub mod store;

pub mod lazy;
pub mod unpack;

pub mod container;
pub mod fuse;

pub mod layer;
pub mod rootfs;
pub mod tooling;

pub mod api;
pub mod cli;
pub mod doctor;
pub mod embed;
pub mod install;
pub mod supervise;

mod role;

pub use embed::{
    ApiSocket, Builder, Events, ExecFailed, ExecOutput, Logs, Services, StartError, Supervisor,
    WaitError,
};
pub use role::{ROLE_ARGUMENT, run_if_role};

#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// The program in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
