//! `--disk-budget` and `--disk-reserve`: what a control that is started may occupy.

use clap::Args;

use crate::spec::size::{self, Base};
use crate::supervise::DiskLimits;

/// Bounds on the disk.
#[derive(Debug, Args)]
pub(super) struct DiskArguments {
    /// What images and their content may occupy, such as 20g; half of it is for content of lazy layers
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "SIZE",
        env = "SUPERVISOR_DISK_BUDGET",
        value_parser = bytes
    )]
    disk_budget: Option<u64>,
    /// What pulls and content of lazy layers leave free on the disk (default: 64m, on a small disk less)
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        value_name = "SIZE",
        env = "SUPERVISOR_DISK_RESERVE",
        value_parser = bytes
    )]
    disk_reserve: Option<u64>,
}

impl DiskArguments {
    /// What is meant.
    pub(super) fn limits(&self) -> DiskLimits {
        DiskLimits { budget: self.disk_budget, reserve: self.disk_reserve }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text, Base::Decimal).map_err(|error| error.to_string())
}
