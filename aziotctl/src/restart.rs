//! Stopping and starting the services through `systemctl`, in the order in which they need one another.
//!
//! Each service listens on a socket unit; stopping the service stops that too. The sockets are started again, and the service that calls all
//! others, whose connections start them: the identity service, or with IoT Edge the module runtime. What has been stopped and not yet started is
//! noted on disk all the while, for the case that nobody gets to it.

use std::time::Duration;

use crate::layout::Service;
use crate::pending::{Pending, united};
use crate::process::{self, ProcessError};
use crate::product::Product;

/// systemd kills a unit that takes 90 s to stop; this is a little more.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(150);

/// The order in which services are stopped and sockets started.
const ORDER: [Service; 5] = [Service::Edged, Service::Identityd, Service::Keyd, Service::Certd, Service::Tpmd];

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
    /// Whether systemd is waited for. The module runtime is ready only once the cloud has answered.
    pub waits: bool,
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

/// The services to restart if the files of `changed` are new: the module runtime learns at its start what keyd, certd and identityd have for it.
#[must_use]
pub fn affected(product: Product, changed: &[Service]) -> Vec<Service> {
    let is_asked = |service: &Service| matches!(service, Service::Keyd | Service::Certd | Service::Identityd);
    match product {
        Product::Edge if changed.iter().any(is_asked) => united(changed, &[Service::Edged]),
        Product::Edge | Product::IdentityService => changed.to_vec(),
    }
}

/// The steps that restart `services`. All sockets of the product and the service that calls the others are started in any case, which does
/// nothing to those that run.
#[must_use]
pub fn steps(product: Product, services: &[Service]) -> Vec<Step> {
    let step = |verb, unit: &str, waits| Step { verb, unit: format!("aziot-{unit}"), waits };
    let concerned = united(product.services(), services);
    let chosen = ORDER.into_iter().filter(|service| services.contains(service));
    let stops = chosen.map(|service| step("stop", &format!("{}.service", service.name()), true));
    let names = ORDER.into_iter().filter(|service| concerned.contains(service)).flat_map(|service| match service {
        Service::Edged => vec!["edged.mgmt".to_owned(), "edged.workload".to_owned()],
        _ => vec![service.name().to_owned()],
    });
    let sockets = names.map(|name| step("start", &format!("{name}.socket"), true));
    let caller = if concerned.contains(&Service::Edged) {
        step("start", "edged.service", false)
    } else {
        step("start", "identityd.service", true)
    };
    stops.chain(sockets).chain([caller]).collect()
}

/// Restarts `services`, among them all that `pending` names, and sees to it that the others run. `run` does one step; one that fails stops no other.
pub fn restart(
    product: Product,
    services: &[Service],
    pending: &Pending,
    mut run: impl FnMut(&Step) -> Result<(), RestartError>,
) -> Result<(), Unfinished> {
    pending.add(services).map_err(Unfinished::NotBegun)?;
    let mut failed: Vec<String> = Vec::new();
    for step in steps(product, services) {
        if run(&step).is_err() && !failed.contains(&step.unit) {
            failed.push(step.unit);
        }
    }
    if failed.is_empty() { pending.clear().map_err(Unfinished::NotNoted) } else { Err(Unfinished::Units(failed)) }
}

/// Does one step and waits until systemd has finished with it, or only taken it in.
pub fn run(step: &Step) -> Result<(), RestartError> {
    let Step { verb, unit, waits } = step;
    let arguments: &[&str] = if *waits { &[verb, unit] } else { &[verb, "--no-block", unit] };
    let output = process::run("systemctl", arguments, SYSTEMCTL_LIMIT).map_err(|source| RestartError::Run {
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

    const IDENTITY_SERVICE: Product = Product::IdentityService;

    fn words(product: Product, services: &[Service]) -> Vec<String> {
        steps(product, services).into_iter().map(|step| format!("{} {}", step.verb, step.unit)).collect()
    }

    #[test]
    fn all_services_stop_before_the_first_socket_starts() {
        assert_eq!(
            words(IDENTITY_SERVICE, IDENTITY_SERVICE.services()),
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
        assert_eq!(words(IDENTITY_SERVICE, &[Service::Certd]), [&["stop aziot-certd.service"], &STARTS[..]].concat());
    }

    #[test]
    fn with_nothing_changed_what_is_down_is_started() {
        assert_eq!(words(IDENTITY_SERVICE, &[]), STARTS);
    }

    const EDGE_STARTS: [&str; 7] = [
        "start aziot-edged.mgmt.socket",
        "start aziot-edged.workload.socket",
        "start aziot-identityd.socket",
        "start aziot-keyd.socket",
        "start aziot-certd.socket",
        "start aziot-tpmd.socket",
        "start aziot-edged.service",
    ];

    #[test]
    fn the_module_runtime_stops_first_and_starts_last() {
        let stops = ["stop aziot-edged.service", "stop aziot-certd.service"];
        let services = affected(Product::Edge, &[Service::Certd]);
        assert_eq!(words(Product::Edge, &services), [&stops[..], &EDGE_STARTS[..]].concat());
        assert_eq!(words(IDENTITY_SERVICE, &services), [&stops[..], &EDGE_STARTS[..]].concat(), "left by iotedge");
        assert_eq!(words(Product::Edge, &[]), EDGE_STARTS);
    }

    #[test]
    fn the_module_runtime_restarts_with_those_whom_it_asks() {
        for service in [Service::Keyd, Service::Certd, Service::Identityd] {
            assert_eq!(affected(Product::Edge, &[service]), [service, Service::Edged]);
            assert_eq!(affected(IDENTITY_SERVICE, &[service]), [service]);
        }
        assert_eq!(affected(Product::Edge, &[Service::Tpmd]), [Service::Tpmd]);
        assert_eq!(affected(Product::Edge, &[]), []);
    }

    fn pending(folder: &tempfile::TempDir) -> Pending {
        Pending::at(folder.path().join("pending"), IDENTITY_SERVICE)
    }

    fn refused(step: &Step) -> Result<(), RestartError> {
        Err(RestartError::Refused { verb: step.verb, unit: step.unit.clone(), answer: String::new() })
    }

    #[test]
    fn the_marker_is_there_from_the_first_stop_to_the_last_start() {
        let folder = tempfile::tempdir().unwrap();
        let pending = pending(&folder);
        let mut count = 0;
        restart(IDENTITY_SERVICE, IDENTITY_SERVICE.services(), &pending, |_| {
            count += 1;
            assert_eq!(pending.services(), IDENTITY_SERVICE.services());
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
            let outcome = restart(IDENTITY_SERVICE, &[Service::Keyd], &pending, |step| {
                count += 1;
                if format!("{} {}", step.verb, step.unit) == failing { refused(step) } else { Ok(()) }
            });
            assert!(matches!(outcome, Err(Unfinished::Units(units)) if units == [failed]));
            assert_eq!((count, pending.services()), (6, vec![Service::Keyd]));
        }
    }

    #[test]
    fn nothing_is_stopped_that_would_be_forgotten() {
        let pending = Pending::at("/nonexistent/pending", IDENTITY_SERVICE);
        let outcome = restart(IDENTITY_SERVICE, &[Service::Keyd], &pending, |step| panic!("{step:?}"));
        assert!(matches!(outcome, Err(Unfinished::NotBegun(_))));
    }
}
