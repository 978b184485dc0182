//! The planner: what is wanted and what is observed go in, ordered actions come out. Computes only.
//!
//! ```text
//! Goal per project ─┐
//! Observed ─────────┼─► plan ─► Plan { steps in order, status per service, wake_at }
//! Moment ───────────┘
//! ```
//!
//! One planner decides `up`, boot, crash, change and `down`; it is called again after every event and at
//! [`Plan::wake_at`]. The shell that calls it (`supervise`) reads the host into [`Observed`] each time, carries the
//! steps out, and decides nothing.
//!
//! # Laws (each has a test)
//!
//! * Applying plans converges, and then the plan is empty.
//! * A container that runs what is wanted is never touched; so after a restart of control the first plan is empty.
//! * A container of another instance, or of a project without a [`Goal`], appears in no plan.
//! * Stops come before starts, and are in the opposite order. A restart keeps the container, and what runs is started
//!   only after it was stopped, by whichever control. What replaces a container is started only after that one was stopped *and* removed.
//! * A service starts only while every condition of its `depends_on` holds, whatever the start is for; what depends on
//!   a service is stopped before it where both are stopped.
//! * An image is here and verified before the container that it replaces is touched.
//! * The same input gives the same plan.
//!
//! # Words
//!
//! A *request* is the user asking for a service to run (`up`, `start`, `restart`); requests are counted per service,
//! and a container remembers the one that it was last started for. So a job with `restart: no` runs once for each request,
//! also when control or the host restarted in between, and a request ends a wait for the next restart.

mod action;
mod depend;
mod end;
mod gate;
mod observed;
mod phase;
mod plan;
mod restart;
mod service;
mod target;
mod want;

#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

pub use action::{Action, Cause, Plan, ServiceStatus, StartTarget, Step, StepNo};
pub use observed::{
    Container, ContainerKey, ContainerState, Content, CreateFailure, Exit, ExitStatus, Failure,
    Health, ImageState, ManualStop, Monitor, Observed, Operation, PullFault, Run, ServiceKey,
    ServiceRecord, Stamp, Unhealthy, WritableLayer,
};
pub use phase::{Phase, StoppedBy};
pub use plan::{Goal, Moment, plan};
pub use restart::{CRASH_LOOP, HEALTHY_RUN, LONGEST_DELAY, backoff};

/// Milliseconds of a monotonic clock; any origin, the same for all times of one call.
pub type Millis = u64;
