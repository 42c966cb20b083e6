//! What a bundle holds, in the order of the public one: checks, logs and descriptions of modules, networks, logs of the services.

use std::{sync::Arc, time::Duration};

use aziot_edged_api::{config::AGENT, logs::LogOptions};
use aziot_log::chain;
use hyper::body::Bytes;
use jiff::{Timestamp, tz::TimeZone};
use tokio::{
    process::Command,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Query,
    archive::Archive,
    programs::{self, Names},
};
use crate::{docker::Docker, modules::Modules, specification::Name};

/// The other module that is always looked at.
const HUB: &str = "edgeHub";
/// The network of modules unless configured otherwise, for when the engine does not tell.
const NETWORK: &str = "azure-iot-edge";
/// Units whose logs are wanted.
const UNITS: [&str; 5] = ["aziot-keyd", "aziot-certd", "aziot-identityd", "aziot-edged", "docker"];
/// Bytes before the text of a frame.
const HEAD: usize = 8;

/// The checks connect to the cloud.
const CHECKS: Duration = Duration::from_secs(90);
const LIST: Duration = Duration::from_secs(30);
const LOG: Duration = Duration::from_secs(30);
const INSPECTION: Duration = Duration::from_secs(10);
const JOURNAL: Duration = Duration::from_secs(30);

/// Where the content comes from.
pub(super) struct Sources {
    modules: Arc<Modules>,
    docker: Docker,
    /// The engine's address, as its own program takes it.
    engine: String,
}

impl Sources {
    pub(super) fn new(modules: Arc<Modules>, docker: Docker, engine: &str) -> Self {
        let engine = engine.strip_prefix("http://").map_or_else(|| engine.to_owned(), |host| format!("tcp://{host}"));
        Self { modules, docker, engine }
    }

    /// Fills a bundle until `deadline`.
    pub(super) async fn fill(&self, archive: &mut Archive, query: &Query, deadline: Instant) {
        let mut clock = Clock(deadline);
        if let Some(limit) = clock.limit(archive, "check.json", CHECKS) {
            let names = Names { output: "check.json", complaint: None, not_run: "check.json" };
            programs::run(archive, check(query.hub.as_deref()), names, limit).await;
        }
        for module in self.module_names(query.edge_runtime_only).await {
            let entry = format!("logs/{module}_log.txt");
            if let Some(limit) = clock.limit(archive, &entry, LOG) {
                archive.entry(&entry).await;
                self.log(archive, &module, &query.logs, limit).await;
            }
            self.inspect(archive, &mut clock, &["inspect", module.as_str()], &format!("inspect/{module}")).await;
        }
        for network in self.network_names().await {
            let arguments = ["network", "inspect", "-v", "--", &network];
            self.inspect(archive, &mut clock, &arguments, &format!("network/{}", entry_name(&network))).await;
        }
        for unit in UNITS {
            let (output, complaint) = (format!("logs/{unit}.txt"), format!("logs/{unit}_err.txt"));
            if let Some(limit) = clock.limit(archive, &output, JOURNAL) {
                let names = Names { output: &output, complaint: Some(&complaint), not_run: &complaint };
                programs::run(archive, journal(unit, &query.logs), names, limit).await;
            }
        }
    }

    async fn module_names(&self, edge_runtime_only: bool) -> Vec<Name> {
        let listed = timeout(LIST, self.modules.names()).await;
        let names = match listed {
            Ok(Ok(names)) => names,
            Ok(Err(error)) => {
                tracing::warn!({ aziot_log::fields::ERROR } = %chain(&error), "the support bundle has no modules");
                return Vec::new();
            }
            Err(_) => {
                tracing::warn!(
                    "the support bundle has no modules: they could not be listed within {} s",
                    LIST.as_secs()
                );
                return Vec::new();
            }
        };
        let wanted = names.into_iter().filter(|name| !edge_runtime_only || [AGENT, HUB].contains(&name.as_str()));
        wanted.filter_map(|name| Name::new(&name).ok()).collect()
    }

    async fn network_names(&self) -> Vec<String> {
        match timeout(LIST, self.docker.networks()).await {
            Ok(Ok(networks)) => networks,
            Ok(Err(_)) | Err(_) => vec![NETWORK.to_owned()],
        }
    }

    /// The log as text. Whoever reads it later wants to know why there is no more of it.
    async fn log(&self, archive: &mut Archive, module: &Name, options: &LogOptions, limit: Duration) {
        let deadline = Instant::now() + limit;
        let read = async {
            let mut frames = self.modules.logs(module, options).await.map_err(|error| chain(&error).to_string())?;
            while let Some(frame) = frames.next().await.map_err(|error| chain(&error).to_string())? {
                archive.bytes(frame.slice(HEAD.min(frame.len())..)).await;
            }
            Ok::<(), String>(())
        };
        let problem = match timeout_at(deadline, read).await {
            Ok(Ok(())) => return,
            Ok(Err(problem)) => problem,
            Err(_) => format!("it was not there within {} s", limit.as_secs()),
        };
        archive.bytes(Bytes::from(format!("\n[cut: {problem}]\n"))).await;
    }

    async fn inspect(&self, archive: &mut Archive, clock: &mut Clock, arguments: &[&str], entry: &str) {
        let output = format!("{entry}.json");
        let Some(limit) = clock.limit(archive, &output, INSPECTION) else { return };
        let mut command = Command::new("docker");
        command.arg("--host").arg(&self.engine).args(arguments);
        let (complaint, not_run) = (format!("{entry}_err.json"), format!("{entry}_err_docker.txt"));
        let names = Names { output: &output, complaint: Some(&complaint), not_run: &not_run };
        programs::run(archive, command, names, limit).await;
    }
}

/// The time that is left.
struct Clock(Instant);

impl Clock {
    /// How long a part may take; without any time left it is left out, and said to be.
    fn limit(&mut self, archive: &mut Archive, entry: &str, wanted: Duration) -> Option<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() {
            archive.leave_out(entry, "there was no time left for it");
            return None;
        }
        Some(wanted.min(left))
    }
}

/// In one argument with its value, so that a name that begins with `-` is no option.
fn check(hub: Option<&str>) -> Command {
    let mut command = Command::new("iotedge");
    command.args(["check", "-o", "json"]);
    if let Some(hub) = hub {
        command.arg(format!("--iothub-hostname={hub}"));
    }
    command
}

fn journal(unit: &str, options: &LogOptions) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["-a", "-u", unit, "-S", &date(options.since.unwrap_or(0))]);
    if let Some(until) = options.until {
        command.args(["-U", &date(until)]);
    }
    command.arg("--no-pager");
    command
}

/// A time as journalctl takes it. Without the zone it would be taken for local time.
fn date(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds.max(0)).unwrap_or(Timestamp::MAX);
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A network may be called what no file should be.
fn entry_name(name: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    let plain: String = name.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    plain.trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(command: &Command) -> String {
        let command = command.as_std();
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn programs_are_called_as_by_the_public_daemon() {
        assert_eq!(line(&check(None)), "iotedge|check|-o|json");
        assert_eq!(line(&check(Some("-x"))), "iotedge|check|-o|json|--iothub-hostname=-x");
        let options = LogOptions { since: Some(1_714_557_600), ..LogOptions::default() };
        assert_eq!(line(&journal("docker", &options)), "journalctl|-a|-u|docker|-S|2024-05-01 10:00:00 UTC|--no-pager");
        let options = LogOptions { until: Some(1_714_557_600), ..LogOptions::default() };
        assert_eq!(
            line(&journal("aziot-edged", &options)),
            "journalctl|-a|-u|aziot-edged|-S|1970-01-01 00:00:00 UTC|-U|2024-05-01 10:00:00 UTC|--no-pager"
        );
    }

    #[test]
    fn names_of_networks_make_no_paths() {
        assert_eq!(entry_name("azure-iot-edge"), "azure-iot-edge");
        assert_eq!(entry_name("../../etc"), "_.._etc");
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_no_time_for_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Archive::create(folder.path(), super::super::archive::LIMITS).unwrap();
        let mut clock = Clock(Instant::now() + Duration::from_secs(5));
        assert_eq!(clock.limit(&mut archive, "a", LOG), Some(Duration::from_secs(5)));
        assert_eq!(clock.limit(&mut archive, "b", Duration::from_secs(2)), Some(Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.limit(&mut archive, "c", LOG), None);
        let entries = super::super::archive::tests::entries(archive).await;
        assert_eq!(entries["left_out.txt"], "c: there was no time left for it\n");
    }
}
