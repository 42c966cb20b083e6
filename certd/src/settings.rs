//! What the configuration comes to while it holds: who may change what, how certificates are issued, where files are.
//!
//! Never changed, only replaced as a whole; a request uses the one that held when it began.

use std::{collections::HashMap, path::Path, sync::Arc};

use aziot_certd_api::config::{Config, Issuance, Method, Principal};
use aziot_http::Glob;
use aziot_log::fields;

use crate::{aliases, store::Store};

/// One state of the reloadable configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    principals: HashMap<u32, Vec<Glob>>,
    pub(crate) issuance: Issuance,
    pub(crate) store: Arc<Store>,
}

impl Settings {
    /// `homedir` is not taken from the configuration: it does not change while the service runs.
    pub(crate) fn new(homedir: &Path, config: Config) -> Self {
        for circle in aliases::circles(&config.preloaded_certs) {
            tracing::warn!(
                "lists in [preloaded_certs] contain themselves: {}; the repetition counts as missing",
                circle.join(" -> ")
            );
        }
        for (id, _) in config.cert_issuance.certificates.iter().filter(|(_, options)| options.method == Method::Est) {
            tracing::warn!(
                { fields::CERTIFICATE_ID } = id,
                "[cert_issuance] wants a certificate over EST, which this version cannot obtain yet"
            );
        }
        Self {
            principals: principals(config.principal),
            issuance: config.cert_issuance,
            store: Arc::new(Store::new(homedir, config.preloaded_certs)),
        }
    }

    /// Whether `uid` may create, import and delete the certificate `id`.
    pub(crate) fn allow(&self, uid: u32, id: &str) -> bool {
        uid == 0 || self.principals.get(&uid).is_some_and(|globs| globs.iter().any(|glob| glob.matches(id)))
    }
}

/// Several entries of one uid add up.
fn principals(entries: Vec<Principal>) -> HashMap<u32, Vec<Glob>> {
    let mut principals: HashMap<u32, Vec<Glob>> = HashMap::new();
    for Principal { uid, certs } in entries {
        principals.entry(uid).or_default().extend(certs);
    }
    principals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_user_add_up_and_others_get_nothing() {
        let entry = |uid, certs: &[&str]| Principal { uid, certs: certs.iter().map(|glob| Glob::new(*glob)).collect() };
        let mut config = Config::new("/home");
        config.principal = vec![entry(7, &["leaf-*"]), entry(8, &["*"]), entry(7, &["a?c"])];
        let settings = Settings::new(Path::new("/home"), config);
        assert!(settings.allow(7, "leaf-x") && settings.allow(7, "a/c") && settings.allow(8, ""));
        assert!(!settings.allow(7, "ac") && !settings.allow(9, "leaf-x"));
        assert!(settings.allow(0, "anything"));
    }
}
