//! Applying the table, and finding out whether it is still what was applied.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::super::Owner;
use super::Ruleset;

/// Where the program is, on hosts whose services do not have the administrator's search path.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];
/// More of what `nft` says is a listing of the text that was given to it.
const LONGEST_COMPLAINT: usize = 600;

/// The table could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no such program.
    #[error(
        "this host has no `nft`, which networks of services need: install the package `nftables`, or give services \
         `network_mode: host`"
    )]
    NoProgram,
    /// It could not be run.
    #[error("could not run `nft`")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("`nft` refused the rules: {0}")]
    Refused(String),
}

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Everything was as it should be.
    None,
    /// The rules that were wanted are others than before.
    Applied,
    /// Someone else had changed or removed them.
    Restored,
}

/// Our table, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Rules {
    owner: Owner,
    applied: Option<Applied>,
}

#[derive(Debug)]
struct Applied {
    wanted: String,
    /// What `nft` listed right after: it writes rules in its own way.
    listed: String,
}

impl Rules {
    /// Of `owner`. What an earlier process applied is replaced by the first [`Rules::ensure`], which no connection
    /// notices.
    #[must_use]
    pub fn new(owner: Owner) -> Self {
        Self { owner, applied: None }
    }

    /// Makes the table what `wanted` says, unless it is. Blocks for as long as `nft` runs, some milliseconds.
    ///
    /// # Errors
    /// When there is no `nft`, or it refuses; then the table is as it was before.
    pub fn ensure(&mut self, wanted: &Ruleset) -> Result<Change, NftError> {
        let wanted = wanted.text(&self.owner);
        let before = self.applied.take();
        let is_same = before.as_ref().is_some_and(|applied| applied.wanted == wanted);
        if let Some(applied) = before.filter(|_| is_same)
            && list(&self.owner)?.as_ref() == Some(&applied.listed)
        {
            self.applied = Some(applied);
            return Ok(Change::None);
        }
        check(run(&["-f", "-"], &wanted)?)?;
        let listed = list(&self.owner)?.unwrap_or_default();
        self.applied = Some(Applied { wanted, listed });
        Ok(if is_same { Change::Restored } else { Change::Applied })
    }

    /// Removes the table; it may be gone already.
    ///
    /// # Errors
    /// As [`Rules::ensure`].
    pub fn remove(&mut self) -> Result<(), NftError> {
        self.applied = None;
        let table = self.owner.table();
        let text = format!("table inet {table}\ndelete table inet {table}\n");
        check(run(&["-f", "-"], &text)?).map(drop)
    }
}

/// The table as it is; `None` when there is none.
fn list(owner: &Owner) -> Result<Option<String>, NftError> {
    // Stateless and numeric: nothing in it that changes by itself.
    let output = run(&["-s", "-n", "list", "table", "inet", &owner.table()], "")?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    if String::from_utf8_lossy(&output.stderr).contains("No such file or directory") {
        return Ok(None);
    }
    check(output).map(|_| None)
}

/// The version of the program, in its own words.
///
/// # Errors
/// When there is none, or it does not run.
pub fn program_version() -> Result<String, NftError> {
    let said = check(run(&["--version"], "")?)?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// Applies `text` to the tables of the calling thread's namespace, with nothing of ours remembered.
///
/// # Errors
/// As [`Rules::ensure`].
pub fn apply_text(text: &str) -> Result<(), NftError> {
    check(run(&["-f", "-"], text)?).map(drop)
}

fn run(arguments: &[&str], input: &str) -> Result<Output, NftError> {
    let program = PLACES.into_iter().find(|place| Path::new(place).exists()).unwrap_or("nft");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NftError::NoProgram,
            _ => NftError::Run(error),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // It reads all of its input before it writes anything; one that ends early says why.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(NftError::Run(error));
            }
            _ => {}
        }
    }
    child.wait_with_output().map_err(NftError::Run)
}

fn check(output: Output) -> Result<Output, NftError> {
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(LONGEST_COMPLAINT).collect();
    Err(NftError::Refused(if said.is_empty() { output.status.to_string() } else { said }))
}
