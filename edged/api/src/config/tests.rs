use aziot_config::{Oddity, load_str};

use super::*;

/// The least that the public daemon takes.
const LEAST: &str = r#"
hostname = "gw-7"
homedir = "/var/lib/aziot/edged"

[agent]
name = "edgeAgent"
type = "docker"

[agent.config]
image = "mcr.example/agent:1.6"

[connect]
workload_uri = "unix:///var/run/iotedge/workload.sock"
management_uri = "unix:///var/run/iotedge/mgmt.sock"

[listen]
workload_uri = "fd://aziot-edged.workload.socket"
management_uri = "fd://aziot-edged.mgmt.socket"

[moby_runtime]
uri = "unix:///var/run/docker.sock"
network = "azure-iot-edge"
"#;

fn read(text: &str) -> Config {
    load_str("config.toml", text).unwrap().value
}

/// The error of a configuration in which `from` is `to`.
fn refused(from: &str, to: &str) -> String {
    assert!(LEAST.contains(from), "{from}");
    let error = load_str::<Config>("config.toml", &LEAST.replacen(from, to, 1)).unwrap_err();
    error.problem().unwrap().to_string()
}

#[test]
fn defaults_are_the_public_daemons() {
    let config = read(LEAST);
    assert_eq!(config.trust_bundle_cert, "aziot-edged-trust-bundle");
    assert_eq!(config.manifest_trust_bundle_cert, "aziot-edged-manifest-trust-bundle");
    assert_eq!(config.auto_reprovisioning_mode, ReprovisioningMode::Dynamic);
    assert!(config.allow_elevated_docker_permissions && config.allow_host_access);
    let requests = config.iotedge_max_requests;
    assert_eq!((u32::from(requests.management), u32::from(requests.workload)), (50, 10));
    assert_eq!(config.edge_ca, EdgeCa::default());
    assert_eq!((config.edge_ca.cert.as_str(), config.edge_ca.auto_renew), ("aziot-edged-ca", None));
    assert_eq!(config.agent.image_pull_policy, PullPolicy::OnCreate);
    assert_eq!(config.agent.config.auth, None);
    assert_eq!(config.watchdog.max_retries, MaxRetries::Infinite);
    assert_eq!(config.moby_runtime.network, Network::default());
    let collection = config.image_garbage_collection;
    assert_eq!((collection.enabled, collection.cleanup_recurrence.number()), (true, 1));
    assert_eq!(collection.image_age_cleanup_threshold.0.as_secs(), 7 * 86_400);
    assert_eq!(collection.cleanup_time.to_string(), "00:00");
    assert_eq!(config.endpoints.aziot_keyd_url.to_string(), "unix:///run/aziot/keyd.sock");
}

#[test]
fn every_key_of_the_schema_is_known_and_written_again() {
    let text = r#"
hostname = "gw-7"
homedir = "/var/lib/aziot/edged"
trust_bundle_cert = "roots"
manifest_trust_bundle_cert = "manifest"
auto_reprovisioning_mode = "AlwaysOnStartup"
allow_elevated_docker_permissions = false
allow_host_access = false

[iotedge_max_requests]
management = 5
workload = 6

[edge_ca]
cert = "ca"
key = "ca-key"
common_name = "gw-7 CA"

[edge_ca.subject]
CN = "gw-7"
L = "Here"

[edge_ca.auto_renew]
rotate_key = true
threshold = "80%"
retry = "4%"

[agent]
name = "edgeAgent"
type = "docker"
imagePullPolicy = "never"

[agent.config]
image = "$upstream:443/agent:1.6"
imageHash = "sha256:0"
digest = "sha256:1"

[agent.config.createOptions]
Unknown = 1

[agent.config.createOptions.HostConfig]
Binds = ["/a:/b"]

[agent.config.auth]
identitytoken = "hunter2"
password = "hunter2"

[agent.env]
TOKEN = "hunter2"

[connect]
workload_uri = "unix:///var/run/iotedge/workload.sock"
management_uri = "unix:///var/run/iotedge/mgmt.sock"

[listen]
workload_uri = "unix:///w.sock"
management_uri = "unix:///m.sock"

[watchdog]
max_retries = 3

[moby_runtime]
uri = "http://127.0.0.1:2375"

[moby_runtime.network]
name = "n"
ipv6 = true

[[moby_runtime.network.ipam.config]]
gateway = "172.18.0.1"
subnet = "172.18.0.0/16"
ip_range = "172.18.0.0/16"

[moby_runtime.content_trust.ca_certs]
"registry.example" = "content-trust-registry.example"

[image_garbage_collection]
enabled = false
cleanup_recurrence = "7d"
image_age_cleanup_threshold = "12h"
cleanup_time = "23:05"

[additional_info]
plant = "Lyon"

[endpoints]
aziot_certd_url = "unix:///d/certd.sock"
aziot_keyd_url = "unix:///d/keyd.sock"
aziot_identityd_url = "unix:///d/identityd.sock"
"#;
    let loaded = load_str::<Config>("config.toml", text).unwrap();
    assert!(loaded.findings.is_empty(), "{:?}", loaded.findings);
    let written = toml::to_string(&loaded.value).unwrap();
    assert_eq!(written.trim(), text.trim());
    assert!(!format!("{:?}", loaded.value).contains("hunter2"));
}

#[test]
fn what_is_at_its_default_is_left_out() {
    let written = toml::to_string(&read(LEAST)).unwrap();
    for key in
        ["iotedge_max_requests", "image_garbage_collection", "endpoints", "additional_info", "content_trust", "auth"]
    {
        assert!(!written.contains(key), "{key}: {written}");
    }
    assert_eq!(read(&written), read(LEAST));
}

#[test]
fn errors_name_file_line_and_key() {
    for (from, to, expected) in [
        (
            r#"name = "edgeAgent""#,
            r#"name = "myAgent""#,
            r#"config.toml:6:8: `agent.name`: the agent must be called "edgeAgent": under the name "myAgent" it would have no rights in this runtime"#,
        ),
        (
            r#"type = "docker""#,
            r#"type = "kata""#,
            "config.toml:7:8: `agent.type`: unknown value `kata`, expected `docker`",
        ),
        (
            r#"image = "mcr.example/agent:1.6""#,
            r#"image = " ""#,
            "config.toml:10:9: `agent.config.image`: an image must be named, such as mcr.microsoft.com/azureiotedge-agent:1.6",
        ),
        (
            r#"workload_uri = "unix:///var/run/iotedge/workload.sock""#,
            r#"workload_uri = "http://10.0.0.1:80""#,
            r#"config.toml:13:16: `connect.workload_uri`: "http://10.0.0.1:80" is not unix:///path, which is where containers find the sockets of this runtime"#,
        ),
        (
            r#"uri = "unix:///var/run/docker.sock""#,
            r#"uri = "https://engine""#,
            r#"config.toml:21:7: `moby_runtime.uri`: "https://engine" is no address of a container engine: expected unix:///path or http://host:port, TLS is not understood"#,
        ),
        (r#"network = "azure-iot-edge""#, "", "config.toml:20:1: missing key `network` in [moby_runtime]"),
        (
            r#"network = "azure-iot-edge""#,
            "network = { nam = \"x\" }",
            "config.toml:22:11: missing key `name` in [moby_runtime.network]",
        ),
    ] {
        let problem = refused(from, to);
        assert_eq!(problem.lines().next().unwrap(), expected);
    }
}

#[test]
fn values_outside_their_range_are_refused() {
    for (addition, expected) in [
        ("[image_garbage_collection]\ncleanup_recurrence = \"0d\"", "at least one"),
        ("[image_garbage_collection]\ncleanup_recurrence = \"36h\"", "whole number of days"),
        ("[image_garbage_collection]\ncleanup_recurrence = \"soon\"", "no length of time"),
        ("[image_garbage_collection]\ncleanup_time = \"24:00\"", "no time of day"),
        ("[image_garbage_collection]\ncleanup_time = \"+1:00\"", "no time of day"),
        ("[watchdog]\nmax_retries = -1", "\"infinite\" or a whole number from 0 to 4294967295"),
        ("[watchdog]\nmax_retries = 4294967296", "\"infinite\" or a whole number"),
        ("[watchdog]\nmax_retries = \"never\"", "\"infinite\" or a whole number"),
        ("[iotedge_max_requests]\nmanagement = 1", "missing key `workload`"),
        ("[iotedge_max_requests]\nmanagement = 0\nworkload = 1", "at least 1"),
        ("[edge_ca.auto_renew]\nrotate_key = true", "missing key `threshold`"),
        ("[edge_ca.auto_renew]\nrotate_key = true\nthreshold = \"0%\"\nretry = \"4%\"", "0%"),
    ] {
        let error = load_str::<Config>("config.toml", &format!("{LEAST}\n{addition}\n")).unwrap_err();
        let problem = error.problem().unwrap().to_string();
        assert!(problem.contains(expected), "{addition}: {problem}");
    }
}

#[test]
fn other_spellings_are_understood() {
    let config = read(&format!(
        "{}\n[watchdog]\nmax_retries = \"Infinite\"\n[image_garbage_collection]\ncleanup_recurrence = \"1week\"\ncleanup_time = \"7:30\"\n",
        LEAST
            .replace("type = \"docker\"", "type = \"docker\"\nimagePullPolicy = \"On-Create\"")
            .replace("\"azure-iot-edge\"", "\"\"")
    ));
    assert_eq!(config.watchdog.max_retries, MaxRetries::Infinite);
    assert_eq!(config.image_garbage_collection.cleanup_recurrence.number(), 7);
    assert_eq!(config.image_garbage_collection.cleanup_time.to_string(), "07:30");
    assert_eq!(config.agent.image_pull_policy, PullPolicy::OnCreate);
    assert_eq!(config.moby_runtime.network.name, "azure-iot-edge");
}

#[test]
fn an_unknown_key_is_a_warning_with_the_nearest_name() {
    let text = LEAST.replace("[listen]", "[listen]\nmin_tls_version = \"tls1.2\"\nmanagment_uri = \"x\"");
    let loaded = load_str::<Config>("config.toml", &text).unwrap();
    let unknown = loaded.findings.iter().map(|finding| match finding.oddity() {
        Oddity::UnknownKey { key_path, suggestion, .. } => (key_path.as_str(), suggestion.as_deref()),
        other => panic!("{other}"),
    });
    let expected = [("listen.min_tls_version", None), ("listen.managment_uri", Some("management_uri"))];
    assert_eq!(unknown.collect::<Vec<_>>(), expected);
}
