//! Configuration of the certificate service: `/etc/aziot/certd/config.toml` and its drop-ins.

mod est;
mod est_url;
mod issuance;
mod policy;
mod preloaded;

use std::{collections::BTreeMap, path::PathBuf};

use aziot_http::{Endpoint, Glob, endpoint::built_in, server::MaxRequests};
use serde::{Deserialize, Serialize};

pub use est::{Basic, Est, EstAuth, Ineffective, KeyPair, Password};
pub use est_url::EstUrl;
pub use issuance::{Issuance, LocalCa, Method, Options};
pub use policy::{ExtendedKeyUsage, Policy, UsageError};
pub use preloaded::Preloaded;

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The service's home; certificates lie in its folder `certs`. Read at start only.
    pub homedir_path: PathBuf,
    /// Requests of one uid that are worked on at once. Default 10. Read at start only.
    #[serde(default, skip_serializing_if = "MaxRequests::is_default")]
    pub max_requests: MaxRequests,
    /// How certificates are issued. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "Issuance::is_default")]
    pub cert_issuance: Issuance,
    /// Certificate id to a file or to other ids. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub preloaded_certs: BTreeMap<String, Preloaded>,
    /// Who may change which certificates. Reloaded when a file changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principal: Vec<Principal>,
    /// Where the services listen. Read at start only.
    #[serde(default, skip_serializing_if = "Endpoints::is_default")]
    pub endpoints: Endpoints,
}

impl Config {
    /// A configuration that names a home and leaves all else at its default.
    #[must_use]
    pub fn new(homedir_path: impl Into<PathBuf>) -> Self {
        Self {
            homedir_path: homedir_path.into(),
            max_requests: MaxRequests::default(),
            cert_issuance: Issuance::default(),
            preloaded_certs: BTreeMap::new(),
            principal: Vec::new(),
            endpoints: Endpoints::default(),
        }
    }
}

/// A user and the certificates that it may create, import and delete. Several entries of one uid add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Unix user id of the caller; 0 needs no entry.
    pub uid: u32,
    /// Patterns of certificate ids, with `*` and `?`.
    pub certs: Vec<Glob>,
}

/// The sockets that the certificate service knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Its own. Default `unix:///run/aziot/certd.sock`.
    #[serde(default = "built_in::certd", skip_serializing_if = "built_in::is_certd")]
    pub aziot_certd: Endpoint,
    /// The key service's. Default `unix:///run/aziot/keyd.sock`.
    #[serde(default = "built_in::keyd", skip_serializing_if = "built_in::is_keyd")]
    pub aziot_keyd: Endpoint,
}

impl Endpoints {
    /// Whether all sockets are where they always are.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { aziot_certd: built_in::certd(), aziot_keyd: built_in::keyd() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
homedir_path = "/var/lib/aziot/certd"
[cert_issuance]
module-server = { method = "local_ca" }
aziot-edged-ca = { method = "self_signed", expiry_days = 90 }
device-id = { method = "est", url = "https://est.example/.well-known/est/devices", username = "u", password = "p" }
[cert_issuance.local_ca]
cert = "local-ca"
pk = "local-ca"
[cert_issuance.est]
trusted_certs = ["est-server-ca-1"]
identity_cert = "est-id"
identity_pk = "est-id"
bootstrap_identity_cert = "est-bootstrap-id"
bootstrap_identity_pk = "est-bootstrap-id"
identity_auto_renew = { rotate_key = true, threshold = "80%", retry = "4%" }
urls = { default = "https://est.example/.well-known/est" }
[preloaded_certs]
est-server-ca-1 = "file:///var/secrets/est-ca.pem"
est-bootstrap-id = "file:///var/secrets/est-bootstrap.pem"
local-ca = "file:///var/secrets/local-ca.pem"
aziot-edged-trust-bundle = ["aziot-edged-ca", "trust-bundle-user"]
[[principal]]
uid = 1000
certs = ["module-*", "device-id", "device-id-temp"]
"#;

    #[test]
    fn the_documented_example_is_read_and_survives_writing() {
        let config: Config = toml::from_str(EXAMPLE).unwrap();
        let issuance = &config.cert_issuance;
        assert_eq!(issuance.certificates["module-server"].method, Method::LocalCa);
        assert_eq!(issuance.certificates["aziot-edged-ca"].expiry_days.unwrap().get(), 90);
        assert_eq!(issuance.local_ca.as_ref().unwrap().pk, "local-ca");
        assert_eq!(issuance.certificates.len(), 3);
        let est = issuance.est.as_ref().unwrap();
        let auth = est.auth.as_ref().unwrap();
        assert_eq!(auth.identity.as_ref().unwrap().cert, "est-id");
        assert_eq!(auth.bootstrap_identity.as_ref().unwrap().pk, "est-bootstrap-id");
        assert_eq!(est.urls["default"].expose().as_str(), "https://est.example/.well-known/est");
        let own = issuance.certificates["device-id"].auth.as_ref().unwrap();
        assert_eq!(own.basic.as_ref().unwrap().password.expose(), "p");
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn secrets_in_urls_do_not_show_and_survive_writing() {
        let url = "https://user:hunter2@h/x?token=hunter2";
        let text = format!(
            "homedir_path = \"/h\"\n[cert_issuance]\na = {{ method = \"est\", url = \"{url}\" }}\n[cert_issuance.est.urls]\n\
             default = \"{url}\"\n"
        );
        let config: Config = toml::from_str(&text).unwrap();
        let issuance = &config.cert_issuance;
        let shown = format!("{config:?} {}", issuance.est.as_ref().unwrap().urls["default"]);
        assert!(!shown.contains("hunter2") && !shown.contains("user") && shown.ends_with(" https://h/x"), "{shown}");
        assert!(!format!("{:?} {:?}", issuance.est, issuance.certificates["a"]).contains("hunter2"));
        assert_eq!(toml::to_string(&config).unwrap().matches(url).count(), 2);
    }

    #[test]
    fn defaults_are_not_written() {
        assert_eq!(toml::to_string(&Config::new("/home")).unwrap(), "homedir_path = \"/home\"\n");
    }

    #[test]
    fn mistakes_are_refused() {
        for (table, part) in [
            ("[cert_issuance]\na = { method = \"acme\" }", "acme"),
            ("[cert_issuance]\na = { expiry_days = 3 }", "method"),
            ("[cert_issuance]\na = { method = \"local_ca\", expiry_days = 0 }", "0"),
            ("[cert_issuance]\na = { method = \"est\", url = \"not a url\" }", "relative URL"),
            ("[cert_issuance]\na = \"est\"", "string"),
            ("[cert_issuance.local_ca]\ncert = \"x\"", "pk"),
            ("[cert_issuance.est.identity_auto_renew]\nrotate_key = true\nthreshold = \"80%\"", "retry"),
            ("[cert_issuance.est.identity_auto_renew]\nrotate_key = true\nthreshold = \"0%\"\nretry = \"4%\"", "0%"),
            ("[preloaded_certs]\na = \"/var/x.pem\"", "relative URL"),
            ("[preloaded_certs]\na = [1]", "string"),
            ("[preloaded_certs]\na = 5", "file:// URI"),
            ("[[principal]]\nuid = 5", "certs"),
            ("[[principal]]\ncerts = []", "uid"),
            ("[endpoints]\naziot_keyd = \"http://localhost:1\"", "unix:// sockets only"),
        ] {
            let error = toml::from_str::<Config>(&format!("homedir_path = \"/h\"\n{table}")).unwrap_err().to_string();
            assert!(error.contains(part), "{table}\n{error}");
        }
        assert!(toml::from_str::<Config>("").unwrap_err().to_string().contains("homedir_path"));
    }

    #[test]
    fn slips_and_mistakes_have_their_line() {
        let slips = "\
homedir_path = \"/h\"
[cert_issuance]
a = { method = \"local_ca\", expiry_dayz = 3 }
[cert_issuance.est]
url = { default = \"https://est.example\" }
[preloaded_certs]
x = \"file:///x\"
[endpoint]
";
        let loaded = aziot_config::load_str::<Config>("c", slips).unwrap();
        let places: Vec<_> = loaded.findings.iter().map(|finding| finding.line_and_column().unwrap().0).collect();
        assert_eq!(places, [3, 5, 8], "{:?}", loaded.findings);
        assert!(loaded.findings[0].one_line().contains("expiry_days"), "{}", loaded.findings[0].one_line());

        for (mistake, line) in [
            ("homedir_path = \"/h\"\n[cert_issuance]\na = { method = \"est\" }\nb = { method = \"acme\" }\n", 4),
            ("homedir_path = \"/h\"\n[preloaded_certs]\na = [\"b\"]\nx = \"/x.pem\"\n", 4),
            ("homedir_path = \"/h\"\n[cert_issuance.est]\n[cert_issuance.est.urls]\ndefault = \"x\"\n", 4),
        ] {
            let error = aziot_http::with_causes(&aziot_config::load_str::<Config>("c", mistake).unwrap_err());
            assert!(error.contains(&format!("c:{line}:")), "{error}");
        }
    }
}
