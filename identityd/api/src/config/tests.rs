use super::*;

const DPS: &str = r#"
hostname = "edge"
homedir = "/var/lib/aziot/identityd"

[provisioning]
source = "dps"
global_endpoint = "https://localhost:8443"
scope_id = "0ne1"

[provisioning.attestation]
method = "symmetric_key"
registration_id = "dev-1"
symmetric_key = "device-id"
"#;

const NONE: &str = "hostname = 'edge'\nhomedir = '/h'\nprovisioning.source = 'none'\n";

fn read(text: &str) -> Result<aziot_config::Loaded<Config>, aziot_config::Error> {
    aziot_config::load_str("/etc/aziot/identityd/config.toml", text)
}

fn error(text: &str) -> String {
    let error = read(text).unwrap_err();
    let problem = error.problem().unwrap();
    format!("{:?} {}", problem.line_and_column().map(|(line, _)| line), problem.message())
}

fn contradiction(text: &str) -> Contradiction {
    read(text).unwrap().value.check().unwrap_err()
}

fn written(config: &Config) -> String {
    toml::to_string(config).unwrap()
}

#[test]
fn defaults_are_those_of_the_specification_and_are_not_written() {
    let config = read(DPS).unwrap();
    assert!(config.findings.is_empty(), "{:?}", config.findings);
    let config = config.value;
    assert_eq!(config.cloud_timeout_sec.duration(), Duration::from_secs(70));
    assert_eq!(config.cloud_retries.0, 1);
    assert!(!config.prefer_module_identity_cache);
    assert_eq!(config.endpoints.aziot_keyd.to_string(), "unix:///run/aziot/keyd.sock");
    config.check().unwrap();
    assert_eq!(
        written(&config),
        r#"hostname = "edge"
homedir = "/var/lib/aziot/identityd"
prefer_module_identity_cache = false

[provisioning]
source = "dps"
global_endpoint = "https://localhost:8443/"
scope_id = "0ne1"

[provisioning.attestation]
method = "symmetric_key"
registration_id = "dev-1"
symmetric_key = "device-id"
"#
    );
}

#[test]
fn only_sockets_that_are_elsewhere_are_written() {
    let config = read(&format!("{NONE}endpoints.aziot_keyd = 'unix:///k'")).unwrap().value;
    let written = written(&config);
    assert!(written.ends_with("\n[endpoints]\naziot_keyd = \"unix:///k\"\n"), "{written}");
}

#[test]
fn every_kind_is_read_and_written_back() {
    let manual = "hostname = 'e'\nhomedir = '/h'\n[provisioning]\nsource = 'manual'\niothub_hostname = 'h'\n\
        device_id = 'd'\nlocal_gateway_hostname = 'g'\n[provisioning.authentication]\n";
    let dps = "hostname = 'e'\nhomedir = '/h'\n[provisioning]\nsource = 'dps'\nscope_id = 's'\n\
        global_endpoint = 'https://g/'\npayload = { uri = 'file:///p.json' }\n[provisioning.attestation]\n";
    for text in [
        NONE.to_owned(),
        format!("{manual}method = 'sas'\ndevice_id_pk = 'device-id'"),
        format!(
            "{manual}method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'\ncsr_subject = {{ cn = 'd', O = 'Acme' }}"
        ),
        format!(
            "{manual}method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'\n\
             identity_auto_renew = {{ rotate_key = false, threshold = '10day', retry = '4%' }}"
        ),
        format!("{dps}method = 'tpm'\nregistration_id = 'r'"),
        format!("{dps}method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'"),
        format!(
            "{dps}method = 'x509'\nidentity_cert = 'c'\nidentity_pk = 'k'\nregistration_id = {{ CN = 'r' }}\n\
             identity_auto_renew = {{ rotate_key = true, threshold = '80%', retry = '10min' }}"
        ),
        format!(
            "{NONE}localid.domain = 'lan'\nendpoints.aziot_keyd = 'unix:///k'\n[[principal]]\nuid = 1\nname = 'p'\n\
             idtype = ['local']\nlocalid = {{ type = 'x509', attributes = 'server' }}\n[[principal]]\nuid = 2\nname = 'q'"
        ),
    ] {
        let config = read(&text).unwrap_or_else(|error| panic!("{text}\n{error}"));
        assert!(config.findings.is_empty(), "{:?}", config.findings);
        config.value.check().unwrap();
        assert_eq!(read(&written(&config.value)).unwrap().value, config.value, "{text}");
    }
}

#[test]
fn slips_are_told_with_their_line() {
    let slip = DPS.replace("registration_id", "registraton_id");
    assert!(error(&slip).contains("registration_id"), "{}", error(&slip));
    let unknown =
        read(&DPS.replace("[provisioning.attestation]", "dynamic_reprovisioning = true\n[provisioning.attestation]"));
    let findings = unknown.unwrap().findings;
    assert_eq!(findings[0].line_and_column().map(|(line, _)| line), Some(10), "{findings:?}");

    let timeout = error(&format!("cloud_timeout_sec = 69\n{NONE}"));
    assert!(timeout.starts_with("Some(1)") && timeout.contains("at least 70 seconds"), "{timeout}");
    let http = error(&DPS.replace("https://localhost", "http://localhost"));
    assert!(http.starts_with("Some(7)") && http.contains("https only"), "{http}");
    let string = error(&format!("{NONE}[[principal]]\nuid = 1\nname = 'p'\nidtype = 'module'"));
    assert!(string.starts_with("Some(7)"), "{string}");
    let method = error(&DPS.replace("symmetric_key\"", "password\""));
    assert!(method.starts_with("Some(11)") && method.contains("symmetric_key"), "{method}");
    let nested = error(&DPS.replace("scope_id", "local_gateway_hostname = 'g'\nscope_id"));
    assert!(nested.contains("DPS provisioning is not supported in nested mode"), "{nested}");
    assert!(error(&format!("max_requests = 0\n{NONE}")).starts_with("Some(1)"));
}

#[test]
fn contradictions_are_refused() {
    let principal = |more: &str| format!("{NONE}[[principal]]\nuid = 1\nname = 'p'\n{more}");
    let p = || "p".to_owned();
    assert_eq!(
        contradiction(&format!("{}\n[[principal]]\nuid = 2\nname = 'p'", principal(""))),
        Contradiction::DuplicateName(p())
    );
    assert_eq!(contradiction(&principal("idtype = ['local']")), Contradiction::NoLocalDomain(p()));
    assert_eq!(
        contradiction(&principal("idtype = []\nlocalid = { type = 'x509' }")),
        Contradiction::OptionsWithoutLocal(p())
    );
    assert_eq!(contradiction(&principal("idtype = ['device']")), Contradiction::NoHub(p()));
    assert_eq!(contradiction(&principal("idtype = ['module']")), Contradiction::NoHub(p()));
    assert_eq!(
        contradiction(&format!("{DPS}[[principal]]\nuid = 1\nname = 'a/b'\nidtype = ['module']")),
        Contradiction::NoModuleName("a/b".into())
    );
    read(&principal("localid = { type = 'x509' }")).unwrap().value.check().unwrap();
}

#[test]
fn module_names_are_the_hubs() {
    for good in ["$edgeAgent", "a", "a-:.+%_#*?!(),=@;$'", &"x".repeat(128), "..."] {
        assert!(module_name_is_valid(good), "{good}");
    }
    for bad in ["", " ", ".", "..", "a/b", "a b", "é", "a\\b", "a&b", &"x".repeat(129)] {
        assert!(!module_name_is_valid(bad), "{bad}");
    }
}
