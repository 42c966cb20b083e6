//! Stopping and starting the services through `systemctl`, in the order in which they need one another.
//!
//! Each service listens on a socket unit; stopping the service stops that too. The sockets are started again, and the identity service, whose
//! connections start the others.

use std::time::Duration;

use crate::layout::Service;
use crate::process::{self, ProcessError};

/// systemd kills a unit that takes 90 s to stop; this is a little more.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(150);

/// The order in which services are stopped and sockets started.
const ORDER: [Service; 3] = [Service::Identityd, Service::Keyd, Service::Certd];

/// A unit that could not be stopped or started.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// `systemctl` could not be run.
    #[error("could not {verb} {unit}")]
    Run {
        /// `stop` or `start`.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// Why.
        source: ProcessError,
    },
    /// `systemctl` said no.
    #[error("could not {verb} {unit}: {answer}")]
    Refused {
        /// `stop` or `start`.
        verb: &'static str,
        /// The unit.
        unit: String,
        /// How it ended, and what it printed.
        answer: String,
    },
}

/// What is to be done to one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `stop` or `start`.
    pub verb: &'static str,
    /// The unit.
    pub unit: String,
}

/// The steps that restart `services`. The identity service is started in any case: it is the one that nobody else starts.
#[must_use]
pub fn steps(services: &[Service]) -> Vec<Step> {
    let unit = |service: Service, kind: &str| format!("aziot-{}.{kind}", service.name());
    let chosen = || ORDER.into_iter().filter(|service| services.contains(service));
    let stops = chosen().map(|service| Step { verb: "stop", unit: unit(service, "service") });
    let sockets = chosen().map(|service| Step { verb: "start", unit: unit(service, "socket") });
    let root = Step { verb: "start", unit: unit(Service::Identityd, "service") };
    stops.chain(sockets).chain([root]).collect()
}

/// Does one step and waits until systemd has finished with it.
pub fn run(step: &Step) -> Result<(), RestartError> {
    let Step { verb, unit } = step;
    let output = process::run("systemctl", &[verb, unit], SYSTEMCTL_LIMIT).map_err(|source| RestartError::Run {
        verb,
        unit: unit.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    let answer = format!("{} {}", output.status, String::from_utf8_lossy(&printed).trim());
    Err(RestartError::Refused { verb, unit: unit.clone(), answer: answer.trim_end().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(services: &[Service]) -> Vec<String> {
        steps(services).into_iter().map(|step| format!("{} {}", step.verb, step.unit)).collect()
    }

    #[test]
    fn all_services_stop_before_the_first_socket_starts() {
        assert_eq!(
            words(&Service::ALL),
            [
                "stop aziot-identityd.service",
                "stop aziot-keyd.service",
                "stop aziot-certd.service",
                "start aziot-identityd.socket",
                "start aziot-keyd.socket",
                "start aziot-certd.socket",
                "start aziot-identityd.service",
            ]
        );
    }

    #[test]
    fn a_service_that_did_not_change_goes_on() {
        assert_eq!(
            words(&[Service::Certd]),
            ["stop aziot-certd.service", "start aziot-certd.socket", "start aziot-identityd.service"]
        );
    }
}
