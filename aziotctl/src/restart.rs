//! Stopping and starting the services through `systemctl`, in the order in which they need one another.
//!
//! Each service listens on a socket unit; stopping the service stops that too. The sockets are started again, and the identity service, whose
//! connections start the others. What has been stopped and not yet started is noted on disk all the while, for the case that nobody gets to it.

use std::time::Duration;

use crate::layout::Service;
use crate::pending::Pending;
use crate::process::{self, ProcessError};

/// systemd kills a unit that takes 90 s to stop; this is a little more.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(150);

/// The order in which services are stopped and sockets started.
const ORDER: [Service; 4] = [Service::Identityd, Service::Keyd, Service::Certd, Service::Tpmd];

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

/// Why not all services run with their files.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// Nothing has been stopped, since it could not be noted that it is to be started again.
    #[error("the files are in place, but the services go on with their old ones: the restart could not be noted")]
    NotBegun(#[source] aziot_files::Error),
    /// Units that could not be stopped or started.
    #[error("the files are in place, but not all services run with them: {}", .0.join(", "))]
    Units(Vec<String>),
    /// All run, but the next `config apply` will restart them once more.
    #[error("the services run, but it could not be noted that their restart is done")]
    NotNoted(#[source] aziot_files::Error),
}

/// The steps that restart `services`. All sockets and the identity service are started in any case, which does nothing to those that run.
#[must_use]
pub fn steps(services: &[Service]) -> Vec<Step> {
    let unit = |service: Service, kind: &str| format!("aziot-{}.{kind}", service.name());
    let chosen = ORDER.into_iter().filter(|service| services.contains(service));
    let stops = chosen.map(|service| Step { verb: "stop", unit: unit(service, "service") });
    let sockets = ORDER.into_iter().map(|service| Step { verb: "start", unit: unit(service, "socket") });
    let root = Step { verb: "start", unit: unit(Service::Identityd, "service") };
    stops.chain(sockets).chain([root]).collect()
}

/// Restarts `services`, among them all that `pending` names, and sees to it that the others run. `run` does one step; one that fails stops no other.
pub fn restart(
    services: &[Service],
    pending: &Pending,
    mut run: impl FnMut(&Step) -> Result<(), RestartError>,
) -> Result<(), Unfinished> {
    pending.add(services).map_err(Unfinished::NotBegun)?;
    let mut failed: Vec<String> = Vec::new();
    for step in steps(services) {
        if run(&step).is_err() && !failed.contains(&step.unit) {
            failed.push(step.unit);
        }
    }
    if failed.is_empty() { pending.clear().map_err(Unfinished::NotNoted) } else { Err(Unfinished::Units(failed)) }
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
                "stop aziot-tpmd.service",
                "start aziot-identityd.socket",
                "start aziot-keyd.socket",
                "start aziot-certd.socket",
                "start aziot-tpmd.socket",
                "start aziot-identityd.service",
            ]
        );
    }

    const STARTS: [&str; 5] = [
        "start aziot-identityd.socket",
        "start aziot-keyd.socket",
        "start aziot-certd.socket",
        "start aziot-tpmd.socket",
        "start aziot-identityd.service",
    ];

    #[test]
    fn a_service_that_did_not_change_goes_on() {
        assert_eq!(words(&[Service::Certd]), [&["stop aziot-certd.service"], &STARTS[..]].concat());
    }

    #[test]
    fn with_nothing_changed_what_is_down_is_started() {
        assert_eq!(words(&[]), STARTS);
    }

    fn pending(folder: &tempfile::TempDir) -> Pending {
        Pending::at(folder.path().join("pending"))
    }

    fn refused(step: &Step) -> Result<(), RestartError> {
        Err(RestartError::Refused { verb: step.verb, unit: step.unit.clone(), answer: String::new() })
    }

    #[test]
    fn the_marker_is_there_from_the_first_stop_to_the_last_start() {
        let folder = tempfile::tempdir().unwrap();
        let pending = pending(&folder);
        let mut count = 0;
        restart(&Service::ALL, &pending, |_| {
            count += 1;
            assert_eq!(pending.services(), Service::ALL);
            Ok(())
        })
        .unwrap();
        assert_eq!((count, pending.services()), (9, vec![]));
    }

    #[test]
    fn a_step_that_fails_stops_no_other_and_leaves_the_marker() {
        for (failing, failed) in
            [("stop aziot-keyd.service", "aziot-keyd.service"), (STARTS[4], "aziot-identityd.service")]
        {
            let folder = tempfile::tempdir().unwrap();
            let pending = pending(&folder);
            let mut count = 0;
            let outcome = restart(&[Service::Keyd], &pending, |step| {
                count += 1;
                if format!("{} {}", step.verb, step.unit) == failing { refused(step) } else { Ok(()) }
            });
            assert!(matches!(outcome, Err(Unfinished::Units(units)) if units == [failed]));
            assert_eq!((count, pending.services()), (6, vec![Service::Keyd]));
        }
    }

    #[test]
    fn nothing_is_stopped_that_would_be_forgotten() {
        let pending = Pending::at("/nonexistent/pending");
        let outcome = restart(&[Service::Keyd], &pending, |step| panic!("{step:?}"));
        assert!(matches!(outcome, Err(Unfinished::NotBegun(_))));
    }
}
