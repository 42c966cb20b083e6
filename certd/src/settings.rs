//! What the configuration comes to while it holds: who may change what, how certificates are issued, where files are.
//!
//! Never changed, only replaced as a whole; a request uses the one that held when it began.

use std::{collections::HashMap, path::Path, sync::Arc};

use aziot_certd_api::config::{Config, Issuance, Method, Policy, Principal};
use aziot_http::Glob;

use crate::{
    aliases,
    est::{self, Plan, Surroundings},
    store::Store,
};

/// One state of the reloadable configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    principals: HashMap<u32, Vec<Glob>>,
    pub(crate) issuance: Issuance,
    pub(crate) store: Arc<Store>,
    pub(crate) est: Plan,
}

impl Settings {
    /// `homedir` is not taken from the configuration: it does not change while the service runs.
    pub(crate) fn new(homedir: &Path, config: Config, surroundings: &Surroundings) -> Self {
        for circle in aliases::circles(&config.preloaded_certs) {
            tracing::warn!(
                "lists in [preloaded_certs] contain themselves: {}; the repetition counts as missing",
                circle.join(" -> ")
            );
        }
        for oddity in est::settings::oddities(&config.cert_issuance) {
            tracing::warn!("{oddity}");
        }
        let store = Arc::new(Store::new(homedir, config.preloaded_certs));
        Self {
            principals: principals(config.principal),
            est: Plan::new(&config.cert_issuance, &store, surroundings),
            issuance: config.cert_issuance,
            store,
        }
    }

    /// How the certificate `id` is issued where the request names no issuer.
    pub(crate) fn method(&self, id: &str) -> Option<Method> {
        self.issuance.certificates.get(id).map(|options| options.method)
    }

    /// What requests for the certificate `id` may ask for, if that is limited.
    pub(crate) fn policy(&self, id: &str) -> Option<&Policy> {
        self.issuance.certificates.get(id).and_then(|options| options.policy.as_ref())
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
    use aziot_http::Retry;

    use super::*;
    use crate::est::servers::Limits;

    #[test]
    fn entries_of_one_user_add_up_and_others_get_nothing() {
        let entry = |uid, certs: &[&str]| Principal { uid, certs: certs.iter().map(|glob| Glob::new(*glob)).collect() };
        let mut config = Config::new("/home");
        config.principal = vec![entry(7, &["leaf-*"]), entry(8, &["*"]), entry(7, &["a?c"])];
        let keyd = aziot_keyd_api::client(&config.endpoints.aziot_keyd, Retry::local(0)).unwrap();
        let surroundings = Surroundings::new(keyd, None, Limits::default());
        let settings = Settings::new(Path::new("/home"), config, &surroundings);
        assert!(settings.allow(7, "leaf-x") && settings.allow(7, "a/c") && settings.allow(8, ""));
        assert!(!settings.allow(7, "ac") && !settings.allow(9, "leaf-x"));
        assert!(settings.allow(0, "anything"));
    }
}
