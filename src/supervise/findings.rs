//! Tells what the store could not use: one event for each record that is not as it was written.

use std::path::{Path, PathBuf};

use super::events::{EventLog, Subject};
use super::report::EventLevel;
use crate::store::{Finding, Kept, Store};

/// Tells everything that was found since the last call.
pub(super) fn tell(store: &Store, events: &EventLog) {
    for finding in store.take_findings() {
        let project = project_of(store.root(), &finding.path);
        let subject = project.as_deref().map_or(Subject::Host, Subject::Project);
        let level = if finding.recovered { EventLevel::Warning } else { EventLevel::Error };
        let mut attributes = vec![
            ("path", finding.path.display().to_string()),
            ("reason", finding.reason.clone()),
            ("recovered", finding.recovered.to_string()),
        ];
        if let Some(aside) = &finding.aside {
            attributes.push(("aside", aside.display().to_string()));
        }
        let kind = match finding.kept {
            Kept::Aside | Kept::Nowhere => "record-set-aside",
            Kept::InPlace => "record-unusable",
        };
        let message = message(&finding, project.as_deref());
        events.emit(subject, level, kind, message, attributes);
    }
}

fn message(finding: &Finding, project: Option<&str>) -> String {
    let mut message =
        format!("could not use the record `{}`: {}", finding.path.display(), finding.reason);
    match (finding.kept, &finding.aside) {
        (Kept::Aside, Some(aside)) => {
            message.push_str(&format!("; it is kept as `{}`", aside.display()));
        }
        (Kept::InPlace, _) => message.push_str("; it stays where it is"),
        (Kept::Aside | Kept::Nowhere, _) => {}
    }
    // How earlier runs ended, which nothing depends on.
    let is_past = finding.path.ends_with("exits");
    match (finding.recovered, project) {
        (false, _) if is_past => {
            message.push_str("; how earlier runs of the service ended is forgotten");
        }
        (true, _) => message.push_str("; its previous copy is used"),
        (false, Some(project)) => message.push_str(&format!(
            "; what runs of the project `{project}` goes on, `up` or `down` takes it over"
        )),
        (false, None) => {}
    }
    message
}

/// The project whose record it is.
fn project_of(state_dir: &Path, record: &Path) -> Option<String> {
    let below = |folder: &str| record.strip_prefix(state_dir.join(folder)).ok();
    let below: PathBuf = below("services").or_else(|| below("logs"))?.to_path_buf();
    Some(below.components().next()?.as_os_str().to_str()?.to_owned())
}
