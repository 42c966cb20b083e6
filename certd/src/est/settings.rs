//! What of `[cert_issuance]` is in force for EST: for each certificate the server, the credentials and the identity, and for each
//! identity how it is renewed (certs.md, 2.4 and 6.6).
//!
//! Nothing is refused here: what is missing is told when the configuration is loaded, and again when a certificate needs it.

use std::collections::BTreeMap;

use aziot_certd_api::{
    config::{Basic, Est, EstAuth, EstUrl, Issuance, KeyPair, Method, Options},
    renewal::AutoRenew,
};
use aziot_log::chain;
use aziot_pki::key::next_id;

use super::url::ServerUrl;
use crate::issuance;

/// Key of `urls` that stands for all certificates without one of their own.
const DEFAULT_URL: &str = "default";

/// How a server is called for one certificate or identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) url: ServerUrl,
    pub(crate) basic: Option<Basic>,
    /// Whether what replaces another certificate is asked for at `simplereenroll`.
    pub(crate) reenroll: bool,
}

/// How one certificate is enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) access: Access,
    pub(crate) identity: Option<KeyPair>,
}

/// Why a certificate cannot be enrolled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Missing {
    /// No complete credentials anywhere.
    #[error("neither its entry in [cert_issuance] nor [cert_issuance.est] has complete credentials for EST")]
    Credentials,
    /// No URL anywhere.
    #[error("no EST server is configured for it: give url in its entry, or in urls of [cert_issuance.est]")]
    Url,
    /// Another kind of URL.
    #[error("its EST server has a {0} URL, which is neither http nor https")]
    Scheme(String),
}

/// A TLS client identity: how it is obtained and renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdentitySettings {
    pub(crate) pair: KeyPair,
    pub(crate) bootstrap: Option<KeyPair>,
    /// Where it is renewed. `None`: nowhere, because no URL is configured.
    pub(crate) access: Option<Access>,
    /// Its subject in place of that of the certificate that needs it; attributes as the configuration has them.
    pub(crate) subject: Option<BTreeMap<String, String>>,
    pub(crate) policy: AutoRenew,
    /// Why its key pair is never replaced by a new one: something else needs it, or the name that the new one would have.
    pub(crate) key_conflict: Option<String>,
}

/// All settings of EST that hold together.
#[derive(Clone, Debug, Default)]
pub(crate) struct EstSettings {
    targets: BTreeMap<String, Result<Target, Missing>>,
    pub(crate) identities: Vec<IdentitySettings>,
    pub(crate) trusted_certs: Vec<String>,
    pub(crate) only_trusted_certs: bool,
}

impl EstSettings {
    pub(crate) fn new(issuance: &Issuance) -> Self {
        let default = Est::default();
        let est = issuance.est.as_ref().unwrap_or(&default);
        let targets = enrolled(issuance).map(|(id, options)| (id.clone(), target(est, id, options))).collect();
        Self {
            targets,
            identities: identities(issuance, est),
            trusted_certs: est.trusted_certs.clone(),
            only_trusted_certs: est.only_trusted_certs,
        }
    }

    /// Whether anything is to come over EST.
    pub(crate) fn is_used(&self) -> bool {
        !self.targets.is_empty() || !self.identities.is_empty()
    }

    /// How the certificate `id` is enrolled; it must be one with `method = "est"`.
    pub(crate) fn target(&self, id: &str) -> Result<&Target, Missing> {
        self.targets.get(id).map_or(Err(Missing::Url), |target| target.as_ref().map_err(Clone::clone))
    }
}

fn enrolled(issuance: &Issuance) -> impl Iterator<Item = (&String, &Options)> {
    issuance.certificates.iter().filter(|(_, options)| options.method == Method::Est)
}

fn target(est: &Est, id: &str, options: &Options) -> Result<Target, Missing> {
    // One block or the other, never a mixture of both.
    let auth = options.auth.as_ref().or(est.auth.as_ref()).ok_or(Missing::Credentials)?;
    let access = access(est, options, auth, url(est, id, options).ok_or(Missing::Url)?)?;
    Ok(Target { access, identity: auth.identity.clone() })
}

fn url<'a>(est: &'a Est, id: &str, options: &'a Options) -> Option<&'a EstUrl> {
    options.url.as_ref().or_else(|| est.urls.get(id)).or_else(|| est.urls.get(DEFAULT_URL))
}

fn access(est: &Est, options: &Options, auth: &EstAuth, url: &EstUrl) -> Result<Access, Missing> {
    let url = ServerUrl::new(url).ok_or_else(|| Missing::Scheme(url.expose().scheme().to_owned()))?;
    Ok(Access { url, basic: auth.basic.clone(), reenroll: options.simplereenroll.unwrap_or(est.simplereenroll) })
}

/// Each pair of certificate and key once. Of several that share one the last certificate, by name, says how it is renewed.
fn identities(issuance: &Issuance, est: &Est) -> Vec<IdentitySettings> {
    let policy = est.identity_auto_renew.unwrap_or_default();
    let mut found = BTreeMap::new();
    let mut add = |auth: &EstAuth, access: Option<Access>, subject: Option<&BTreeMap<String, String>>| {
        if let Some(pair) = auth.identity.clone() {
            let (bootstrap, subject) = (auth.bootstrap_identity.clone(), subject.cloned());
            let key = (pair.cert.clone(), pair.pk.clone());
            let key_conflict = None;
            found.insert(key, IdentitySettings { pair, bootstrap, access, subject, policy, key_conflict });
        }
    };
    if let Some(auth) = &est.auth {
        add(auth, shared_access(issuance, est, auth), est.identity_subject.as_ref());
    }
    for (id, options) in enrolled(issuance) {
        if let Some(auth) = &options.auth {
            let access = url(est, id, options).and_then(|url| access(est, options, auth, url).ok());
            add(auth, access, options.identity_subject.as_ref());
        }
    }
    let mut identities: Vec<_> = found.into_values().collect();
    let conflicts: Vec<_> =
        identities.iter().map(|identity| key_conflict(issuance, &identities, &identity.pair)).collect();
    for (identity, conflict) in identities.iter_mut().zip(conflicts) {
        identity.key_conflict = conflict;
    }
    identities
}

/// Who else needs the key pair of the identity `pair`, or what the next one is called until it takes its place.
fn key_conflict(issuance: &Issuance, identities: &[IdentitySettings], pair: &KeyPair) -> Option<String> {
    let next = next_id(&pair.pk);
    let is_taken = |pk: &str| pk == pair.pk || pk == next;
    for other in identities.iter().filter(|other| other.pair != *pair) {
        if is_taken(&other.pair.pk) || next_id(&other.pair.pk) == pair.pk {
            return Some(format!("the EST identity {:?} has the key pair {:?}", other.pair.cert, other.pair.pk));
        }
    }
    let bootstraps = identities.iter().filter_map(|identity| identity.bootstrap.as_ref());
    if let Some(bootstrap) = bootstraps.into_iter().find(|bootstrap| is_taken(&bootstrap.pk)) {
        return Some(format!("the bootstrap identity {:?} has the key pair {:?}", bootstrap.cert, bootstrap.pk));
    }
    if let Some(local_ca) = issuance.local_ca.as_ref().filter(|local_ca| is_taken(&local_ca.pk)) {
        return Some(format!("the local CA has the key pair {:?}", local_ca.pk));
    }
    let mut own_keys = issuance.certificates.iter().filter(|(_, options)| options.method == Method::SelfSigned);
    own_keys
        .find(|(id, _)| is_taken(id))
        .map(|(id, _)| format!("the self-signed certificate {id:?} has the key pair {id:?}"))
}

/// Where the identity that certificates share is renewed. Without a URL of its own it is one of those certificates' servers,
/// since it was enrolled at one of them.
fn shared_access(issuance: &Issuance, est: &Est, auth: &EstAuth) -> Option<Access> {
    let own = auth.identity.as_ref().and_then(|pair| est.urls.get(&pair.cert));
    let sharing = || {
        let mut sharing = enrolled(issuance).filter(|(_, options)| options.auth.is_none());
        sharing.find_map(|(id, options)| url(est, id, options))
    };
    let url = own.or_else(|| est.urls.get(DEFAULT_URL)).or_else(sharing)?;
    access(est, &Options::new(Method::Est), auth, url).ok()
}

/// What is written and acts otherwise than its author may think, or not at all. Values, which may be secret, are not in it.
pub(crate) fn oddities(issuance: &Issuance) -> Vec<String> {
    let mut odd = Vec::new();
    let default = Est::default();
    let est = issuance.est.as_ref().unwrap_or(&default);
    for slip in &est.ineffective {
        odd.push(format!("{} in [cert_issuance.est] has no effect: {}", slip.key, slip.because));
    }
    if est.only_trusted_certs && est.trusted_certs.is_empty() {
        odd.push("only_trusted_certs in [cert_issuance.est] without trusted_certs trusts no server".to_owned());
    }
    for (id, url) in &est.urls {
        odd.extend(url_oddities(&format!("{id:?} in [cert_issuance.est.urls]"), url));
    }
    odd.extend(subject_oddity("[cert_issuance.est]", est.identity_subject.as_ref()));
    for (id, options) in &issuance.certificates {
        let table = format!("[cert_issuance.{id:?}]");
        for slip in &options.ineffective {
            odd.push(format!("{} in {table} has no effect: {}", slip.key, slip.because));
        }
        if options.method != Method::Est {
            if options.url.is_some() || options.auth.is_some() {
                odd.push(format!("url and credentials in {table} have no effect: its method is not \"est\""));
            }
            continue;
        }
        if let Some(url) = &options.url {
            odd.extend(url_oddities(&format!("url in {table}"), url));
        }
        odd.extend(subject_oddity(&table, options.identity_subject.as_ref()));
        if options.common_name.is_some() || options.subject.is_some() {
            odd.push(format!(
                "common_name and subject in {table} do not change what the EST server issues; they name only the EST \
                 identity that is enrolled for it"
            ));
        }
        if let Err(missing) = target(est, id, options) {
            odd.push(format!("{table} cannot be issued: {missing}"));
        }
    }
    for identity in identities(issuance, est).iter().filter(|identity| identity.access.is_none()) {
        odd.push(format!("the EST identity {:?} has no usable URL and will not be renewed", identity.pair.cert));
    }
    odd.extend(sharing_oddities(&identities(issuance, est)));
    odd
}

/// Identities that get in each other's way. They are in the order of their certificates.
fn sharing_oddities(identities: &[IdentitySettings]) -> Vec<String> {
    let mut odd = Vec::new();
    for IdentitySettings { pair, key_conflict, .. } in identities {
        if let Some(conflict) = key_conflict {
            odd.push(format!(
                "the EST identity {:?} never gets a new key in place of {:?}: {conflict}",
                pair.cert, pair.pk
            ));
        }
    }
    for (one, other) in identities.iter().zip(identities.iter().skip(1)) {
        if one.pair.cert == other.pair.cert {
            odd.push(format!(
                "two EST identities have the certificate {:?}, with the key pairs {:?} and {:?}, and replace each other's",
                one.pair.cert, one.pair.pk, other.pair.pk
            ));
        }
    }
    odd
}

fn url_oddities(place: &str, url: &EstUrl) -> Vec<String> {
    let url = url.expose();
    let mut odd = Vec::new();
    if url.scheme() == "http" {
        odd.push(format!("{place} is an http URL: the server is not authenticated, and credentials go in clear"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        odd.push(format!("{place} names a user, who is ignored; give username and password"));
    }
    odd
}

fn subject_oddity(table: &str, subject: Option<&BTreeMap<String, String>>) -> Option<String> {
    let error = issuance::name_of(subject?).err()?;
    Some(format!("identity_subject in {table} is unusable: {}", chain(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: &str = "identity_cert = \"i\"\nidentity_pk = \"k\"\n";
    const BOOTSTRAP: &str = "bootstrap_identity_cert = \"b\"\nbootstrap_identity_pk = \"b\"\n";

    fn issuance(text: &str) -> Issuance {
        let text = format!("homedir_path = \"/h\"\n[cert_issuance]\n{text}");
        aziot_config::load_str::<aziot_certd_api::config::Config>("c", &text).unwrap().value.cert_issuance
    }

    fn url_of(settings: &EstSettings, id: &str) -> String {
        settings.target(id).unwrap().access.url.to_string()
    }

    #[test]
    fn the_nearest_url_and_one_whole_block_of_credentials_count() {
        let issuance = issuance(&format!(
            "a = {{ method = \"est\", url = \"https://a\", username = \"u\", password = \"p\" }}\n\
             b = {{ method = \"est\" }}\nc = {{ method = \"est\", username = \"u\" }}\nd = {{ method = \"local_ca\" }}\n\
             [cert_issuance.est]\n{PAIR}{BOOTSTRAP}urls = {{ default = \"https://default\", a = \"https://x\", b = \"https://b\" }}"
        ));
        let settings = EstSettings::new(&issuance);
        assert_eq!(url_of(&settings, "a"), "https://a/");
        assert_eq!(url_of(&settings, "b"), "https://b/");
        assert_eq!(url_of(&settings, "c"), "https://default/");
        let own = settings.target("a").unwrap();
        assert!(own.identity.is_none() && own.access.basic.is_some(), "never a mixture");
        let global = settings.target("c").unwrap();
        assert!(global.access.basic.is_none() && global.identity.as_ref().unwrap().cert == "i");
        assert!(settings.target("d").is_err());
        assert_eq!(settings.identities.len(), 1);
        assert_eq!(settings.identities[0].access.as_ref().unwrap().url.to_string(), "https://default/");
    }

    #[test]
    fn what_is_missing_is_named() {
        let no_url = issuance(&format!("a = {{ method = \"est\" }}\n[cert_issuance.est]\n{PAIR}"));
        assert_eq!(EstSettings::new(&no_url).target("a"), Err(Missing::Url));
        let nobody = issuance("a = { method = \"est\", url = \"https://a\" }");
        assert_eq!(EstSettings::new(&nobody).target("a"), Err(Missing::Credentials));
        let ftp = issuance("a = { method = \"est\", url = \"ftp://a\", username = \"u\", password = \"p\" }");
        assert_eq!(EstSettings::new(&ftp).target("a"), Err(Missing::Scheme("ftp".into())));
        for (issuance, part) in [(no_url, "no EST server"), (nobody, "credentials"), (ftp, "ftp")] {
            assert!(oddities(&issuance).iter().any(|line| line.contains(part)), "{:?}", oddities(&issuance));
        }
    }

    #[test]
    fn a_shared_identity_is_renewed_where_it_is_used() {
        // The public service starts once with this, and never again.
        let text = format!("b = {{ method = \"est\", url = \"https://b\" }}\n[cert_issuance.est]\n{PAIR}");
        let settings = EstSettings::new(&issuance(&text));
        assert_eq!(settings.identities[0].access.as_ref().unwrap().url.to_string(), "https://b/");
        let own =
            issuance(&format!("[cert_issuance.est]\n{PAIR}urls = {{ default = \"https://d\", i = \"https://i\" }}"));
        assert_eq!(EstSettings::new(&own).identities[0].access.as_ref().unwrap().url.to_string(), "https://i/");
        let nowhere = issuance(&format!("[cert_issuance.est]\n{PAIR}"));
        assert!(EstSettings::new(&nowhere).identities[0].access.is_none());
        assert!(oddities(&nowhere)[0].contains("will not be renewed"));
    }

    #[test]
    fn of_identities_that_are_shared_the_last_certificate_decides() {
        let inline = "identity_cert = \"i\", identity_pk = \"k\"";
        let issuance = issuance(&format!(
            "a = {{ method = \"est\", url = \"https://a\", {inline}, simplereenroll = true }}\n\
             b = {{ method = \"est\", url = \"https://b\", {inline} }}\n\
             c = {{ method = \"est\", url = \"https://c\", identity_cert = \"j\", identity_pk = \"k\" }}\n\
             d = {{ method = \"local_ca\", {inline} }}\n\
             [cert_issuance.est]\n{PAIR}{BOOTSTRAP}urls = {{ default = \"https://d\" }}"
        ));
        let identities = EstSettings::new(&issuance).identities;
        let urls: Vec<_> = identities.iter().map(|one| one.access.as_ref().unwrap().url.to_string()).collect();
        assert_eq!(urls, ["https://b/", "https://c/"]);
        assert!(identities[0].bootstrap.is_none() && !identities[0].access.as_ref().unwrap().reenroll);
        assert!(oddities(&issuance).iter().any(|line| line.contains("\"d\"") && line.contains("not \"est\"")));
    }

    #[test]
    fn what_acts_otherwise_is_told_without_secrets() {
        let issuance = issuance(
            "a = { method = \"est\", url = \"http://hunter2:hunter2@a/?x=hunter2\", username = \"u\", password = \"hunter2\", \
             identity_pk = \"k\", common_name = \"x\", identity_subject = { cn = \"x\" } }\n\
             [cert_issuance.est]\npassword = \"hunter2\"\nonly_trusted_certs = true",
        );
        let odd = oddities(&issuance);
        for part in [
            "password in [cert_issuance.est] has no effect",
            "identity_pk in [cert_issuance.\"a\"] has no effect",
            "is an http URL",
            "names a user",
            "name only the EST identity",
            "identity_subject",
            "trusts no server",
        ] {
            assert!(odd.iter().any(|line| line.contains(part)), "{part} in {odd:#?}");
        }
        assert_eq!(odd.len(), 7, "{odd:#?}");
        assert!(!odd.concat().contains("hunter2"));
    }

    #[test]
    fn a_key_pair_that_something_else_needs_is_kept() {
        let of = |cert: &str, pk: &str| {
            format!("method = \"est\", url = \"https://a\", identity_cert = \"{cert}\", identity_pk = \"{pk}\"")
        };
        let with_bootstrap = |pk: &str| format!("bootstrap_identity_cert = \"b\", bootstrap_identity_pk = \"{pk}\"");
        let conflicts = |text: &str| {
            let issuance = issuance(text);
            let identities = EstSettings::new(&issuance).identities;
            let told = oddities(&issuance).iter().filter(|line| line.contains("never gets a new key")).count();
            let kept: Vec<_> = identities.iter().map(|one| one.key_conflict.is_some()).collect();
            assert_eq!(told, kept.iter().filter(|kept| **kept).count());
            kept
        };
        let two = |one: &str, other: &str| format!("x = {{ {} }}\ny = {{ {} }}\n", of("i", one), of("j", other));
        assert_eq!(conflicts(&two("k", "l")), [false, false]);
        assert_eq!(conflicts(&two("k", "k")), [true, true]);
        assert_eq!(conflicts(&two("k", "k-temp")), [true, true]);
        for (pk, kept) in [("b", false), ("k", true), ("k-temp", true), ("k-tempest", false)] {
            let text = format!("x = {{ {}, {} }}", of("i", "k"), with_bootstrap(pk));
            assert_eq!(conflicts(&text), [kept], "{pk}");
        }
        let one = format!("x = {{ {} }}\n", of("i", "k"));
        assert_eq!(conflicts(&format!("{one}k-temp = {{ method = \"self_signed\" }}")), [true]);
        assert_eq!(conflicts(&format!("{one}[cert_issuance.local_ca]\ncert = \"c\"\npk = \"k\"")), [true]);
        let same = issuance(&format!("x = {{ {} }}\ny = {{ {} }}\n", of("i", "k"), of("i", "l")));
        assert!(oddities(&same).iter().any(|line| line.contains("replace each other's")));
    }
}
