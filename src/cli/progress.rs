//! How services come up, service by service: lines that change on a terminal, a line per change elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::supervise::report::{ServiceReport, Standing};

/// The display of one `up -d`, on standard error.
pub(super) struct Progress {
    bars: Option<MultiProgress>,
    services: BTreeMap<String, Shown>,
    width: usize,
}

struct Shown {
    bar: Option<ProgressBar>,
    /// What was said last of it.
    said: String,
}

impl Progress {
    pub(super) fn new(services: &[String]) -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        let width = services.iter().map(String::len).max().unwrap_or(0);
        let shown = |service: &String| {
            let bar = bars.as_ref().map(|bars| {
                let bar = bars.add(ProgressBar::new_spinner());
                bar.set_style(style(" {spinner} {msg}"));
                bar.set_message(format!("{service:width$}"));
                bar.enable_steady_tick(Duration::from_millis(100));
                bar
            });
            (service.clone(), Shown { bar, said: String::new() })
        };
        let services = services.iter().map(shown).collect();
        Self { bars, services, width }
    }

    /// Shows how far a service is.
    pub(super) fn show(&mut self, report: &ServiceReport) {
        let Some(shown) = self.services.get_mut(&report.service) else { return };
        let width = self.width;
        // Without a terminal a percentage that counts up would be a line each.
        let said = format!("{:?} {}", report.standing, report.state);
        let text = format!("{:width$}  {}", report.service, report.status);
        let mark = match report.standing {
            Standing::Up | Standing::Done => " ✔ ",
            Standing::Failed | Standing::Stopped => " ✘ ",
            Standing::Coming => " … ",
        };
        match &shown.bar {
            Some(bar) => {
                let template = match report.standing {
                    Standing::Coming => " {spinner} {msg}",
                    Standing::Up | Standing::Done => " {prefix:.green} {msg}",
                    Standing::Failed | Standing::Stopped => " {prefix:.red} {msg}",
                };
                if said != shown.said {
                    bar.set_prefix(mark.trim().to_owned());
                    bar.set_style(style(template));
                }
                bar.set_message(text);
            }
            None if said != shown.said => output::note(&format!("{mark}{text}")),
            None => {}
        }
        shown.said = said;
    }

    /// Prints something else above the lines that change.
    pub(super) fn suspend(&self, print: impl FnOnce()) {
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    /// Ends the display; what is shown stays.
    pub(super) fn clear(&self) {
        for bar in self.services.values().filter_map(|shown| shown.bar.as_ref()) {
            bar.abandon();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
