//! Signals to services.

use super::driver::Driver;
use super::handle::{Reply, RequestError, RequestErrorKind, StopOptions};
use crate::container::Signal;
use crate::reconcile::ManualStop;
use crate::telemetry::Chain;

impl Driver {
    /// Sends a signal to the first process of each service. SIGKILL is the user wanting them not to run, as a stop
    /// without a grace period; what follows from another signal is for the program and its restart policy.
    pub(super) fn kill(
        &mut self,
        project: &str,
        services: Vec<String>,
        signal: Signal,
        reply: Reply<Vec<String>>,
    ) {
        if signal == Signal::KILL {
            let options = StopOptions { services, grace: Some(std::time::Duration::ZERO) };
            return self.stop(project, &options, ManualStop::Keep, reply);
        }
        let targets = match self.signalled(project, &services) {
            Ok(targets) => targets,
            Err(error) => return drop(reply.send(Err(error))),
        };
        tokio::spawn(async move {
            let mut told = Vec::with_capacity(targets.len());
            for (name, monitor) in targets {
                if let Err(error) = monitor.signal(signal).await {
                    let message =
                        format!("could not send {signal} to container `{name}`: {}", Chain(&error));
                    let error = RequestError::new(RequestErrorKind::Failed, message);
                    return drop(reply.send(Err(error)));
                }
                told.push(name);
            }
            let _ = reply.send(Ok(told));
        });
    }

    /// Containers that run, with their monitors. One that is named has to run.
    fn signalled(
        &self,
        project: &str,
        named: &[String],
    ) -> Result<Vec<(String, crate::container::MonitorHandle)>, RequestError> {
        let (name, services) = self.chosen(project, named)?;
        let mut targets = Vec::with_capacity(services.len());
        for service in services {
            let key = Self::service_key(&name, &service);
            let status = self.plan.services.get(&key);
            let held = status.and_then(|s| self.containers.get(s.container.as_ref()?));
            match held.and_then(|held| Some((held.pid()?, held))) {
                Some((_, held)) => {
                    let monitor = held.monitor.clone().ok_or_else(|| {
                        let message = format!(
                            "the monitor of container `{}` is being replaced; try again",
                            held.id
                        );
                        RequestError::new(RequestErrorKind::Conflict, message)
                    })?;
                    targets.push((held.id.to_string(), monitor));
                }
                None if named.is_empty() => {}
                None => {
                    let message = format!("service `{service}` does not run");
                    return Err(RequestError::new(RequestErrorKind::Conflict, message));
                }
            }
        }
        Ok(targets)
    }
}
