//! Certificates that are there or issued: `[cert_issuance]` with EST servers and the device's own CA, and the device's own certificate.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use aziot_certd_api::config::{Basic, EstUrl, Method, Options};
use aziot_certd_api::renewal::{AutoRenew, Period};
use aziot_keys::KeyUri;

use super::{NEEDS_LIBRARY, cert_uri, key_uri, url};
use crate::finding::Findings;
use crate::settings::{DeviceCertificate, Est, EstCredentials, EstIdentity, Issued, LocalCa};
use crate::super_config::{self, CertificateOptions, EstAuthentication, SuperConfig, UriOrOptions};
use aziot_http::SecretText;

/// What the rest of the file offers to a certificate that is to be issued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Issuers {
    /// An EST server for it is named in `[cert_issuance.est.urls]`.
    has_est_url: bool,
    has_local_ca: bool,
}

impl Issuers {
    /// For the certificate `id`.
    pub(super) fn of(config: &SuperConfig, id: &str) -> Self {
        let urls = config.cert_issuance.est.as_ref().map(|est| &est.urls);
        Self {
            has_est_url: urls.is_some_and(|urls| urls.contains_key(id) || urls.contains_key("default")),
            has_local_ca: config.cert_issuance.local_ca.is_some(),
        }
    }
}

pub(super) fn est(est: &super_config::Est, findings: &mut Findings) -> Est {
    const TRUSTED_CERTS: [&str; 3] = ["cert_issuance", "est", "trusted_certs"];
    let trusted_certs = est.trusted_certs.iter().filter_map(|uri| cert_uri(&TRUSTED_CERTS, uri, findings)).collect();
    let mut urls = BTreeMap::new();
    for (id, text) in &est.urls {
        urls.extend(est_url(&["cert_issuance", "est", "urls", id], text, findings).map(|url| (id.clone(), url)));
    }
    let renewal = est.identity_auto_renew.as_ref();
    let identity_auto_renew = renewal
        .map(|written| auto_renew(&["cert_issuance", "est", "identity_auto_renew"], written, findings))
        .unwrap_or_default();
    let credentials = credentials(&["cert_issuance", "est", "auth"], &est.auth, findings);
    Est { trusted_certs, credentials, urls, identity_auto_renew }
}

fn est_url(key_path: &[&str], text: &str, findings: &mut Findings) -> Option<EstUrl> {
    let url = url(key_path, text, findings)?;
    if url.scheme() == "http" {
        findings.warn(key_path, "with `http:` anybody on the way can read and change what is sent; use `https:`");
    }
    Some(url.into())
}

/// `table`: where the keys stand.
pub(super) fn credentials(table: &[&str], auth: &EstAuthentication, findings: &mut Findings) -> EstCredentials {
    let identity = est_identity(table, auth, findings);
    let basic = both(table, ("username", auth.username.as_ref()), ("password", auth.password.as_ref()), findings);
    let basic = basic.map(|(username, password)| Basic {
        username: username.clone(),
        password: password.expose().to_owned().into(),
    });
    EstCredentials { basic, identity }
}

fn est_identity(table: &[&str], auth: &EstAuthentication, findings: &mut Findings) -> Option<EstIdentity> {
    let at = |key| [table, &[key]].concat();
    let bootstrap = both(
        table,
        ("bootstrap_identity_cert", auth.bootstrap_identity_cert.as_ref()),
        ("bootstrap_identity_pk", auth.bootstrap_identity_pk.as_ref()),
        findings,
    );
    let identity = both(
        table,
        ("identity_cert", auth.identity_cert.as_ref()),
        ("identity_pk", auth.identity_pk.as_ref()),
        findings,
    );
    let mut uris = |cert_key, cert: &str, key_key, key: &SecretText| {
        let cert = cert_uri(&at(cert_key), cert, findings);
        let key = key_uri(&at(key_key), key, findings);
        cert.zip(key)
    };
    match (bootstrap, identity) {
        (Some((cert, key)), identity) => {
            let pair = uris("bootstrap_identity_cert", cert, "bootstrap_identity_pk", key);
            if identity.is_some() {
                findings.warn(&at("identity_cert"), "is ignored with its key, because the bootstrap identity wins");
            }
            pair.map(|(cert, key)| EstIdentity::Bootstrap { cert, key })
        }
        (None, Some((cert, key))) => {
            uris("identity_cert", cert, "identity_pk", key).map(|(cert, key)| EstIdentity::Lasting { cert, key })
        }
        (None, None) => None,
    }
}

/// Two values that count together only.
fn both<'v, A, B>(
    table: &[&str],
    (some_key, some): (&str, Option<&'v A>),
    (other_key, other): (&str, Option<&'v B>),
    findings: &mut Findings,
) -> Option<(&'v A, &'v B)> {
    let (given, missing) = match (some, other) {
        (Some(_), None) => (some_key, other_key),
        (None, Some(_)) => (other_key, some_key),
        _ => return some.zip(other),
    };
    let message = format!("counts together with `{missing}` only and is ignored");
    findings.warn(&[table, &[given]].concat(), message);
    None
}

pub(super) fn auto_renew(table: &[&str], written: &super_config::AutoRenew, findings: &mut Findings) -> AutoRenew {
    let default = AutoRenew::default();
    let mut period = |key: &str, text: Option<&str>, default: Period| {
        let key_path = [table, &[key]].concat();
        text.and_then(|text| findings.value(&key_path, text.parse())).unwrap_or(default)
    };
    AutoRenew {
        threshold: period("threshold", written.threshold.as_deref(), default.threshold),
        retry: period("retry", written.retry.as_deref(), default.retry),
        rotate_key: written.rotate_key.unwrap_or(default.rotate_key),
    }
}

/// By what the cloud is to know a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum CloudName<'v> {
    /// To DPS, for which `A` is `a`.
    RegistrationId(&'v str),
    /// To the hub, for which they differ.
    DeviceId(&'v str),
}

impl CloudName<'_> {
    fn is(self, name: &str) -> bool {
        match self {
            Self::RegistrationId(id) => id.eq_ignore_ascii_case(name),
            Self::DeviceId(id) => id == name,
        }
    }
}

impl fmt::Display for CloudName<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RegistrationId(id) => write!(formatter, "registration id `{id}`"),
            Self::DeviceId(id) => write!(formatter, "device id `{id}`"),
        }
    }
}

/// The device's own certificate. `table`: where `identity_cert` stands.
pub(super) fn device(
    table: [&str; 2],
    (cert, key): (Option<&UriOrOptions>, Option<&SecretText>),
    name: Option<CloudName<'_>>,
    config: &SuperConfig,
    findings: &mut Findings,
) -> Option<DeviceCertificate> {
    let [provisioning, method] = table;
    let (cert_path, key_path) = ([provisioning, method, "identity_cert"], [provisioning, method, "identity_pk"]);
    let Some(cert) = cert else {
        let message = "`method = \"x509\"` needs `identity_cert`: the URI of a certificate, or a table that says how it is issued";
        findings.error(&[provisioning, method, "method"], message);
        return None;
    };
    match cert {
        UriOrOptions::Uri(uri) => {
            let cert = cert_uri(&cert_path, uri, findings);
            let Some(key) = key else {
                findings
                    .error(&cert_path, "a certificate that is there already needs `identity_pk`, the URI of its key");
                return None;
            };
            let key = key_uri(&key_path, key, findings);
            if matches!(key, Some(KeyUri::Pkcs11(_))) && !config.aziot_keys.contains_key("pkcs11_lib_path") {
                findings.warn(&key_path, NEEDS_LIBRARY);
            }
            let (cert, key) = cert.zip(key)?;
            Some(DeviceCertificate::Preloaded { cert, key })
        }
        UriOrOptions::Options(options) => {
            if key.is_some() {
                findings.warn(&key_path, KEY_IS_MADE);
            }
            let issued = certificate_options(&cert_path, options, Issuers::of(config, "device-id"), findings)?;
            compare_names(&cert_path, options, name, findings);
            let renewal = options.auto_renew.as_ref();
            let auto_renew =
                renewal.map(|written| auto_renew(&[&cert_path[..], &["auto_renew"]].concat(), written, findings));
            if auto_renew.is_some() && issued.method == Method::SelfSigned {
                let message = "the cloud knows a self-signed certificate by its thumbprint, which each renewal changes";
                findings.warn(&[&cert_path[..], &["auto_renew"]].concat(), message);
            }
            let written = est_authentication(options);
            let est = if issued.method == Method::Est {
                credentials(&cert_path, &written, findings)
            } else {
                warn_about_est_keys(&cert_path, options, "acts with `method = \"est\"` only and is ignored", findings);
                EstCredentials::default()
            };
            Some(DeviceCertificate::Issued(Box::new(Issued { options: issued, est, auto_renew })))
        }
    }
}

/// The subject is put into the certificate whatever the device asks for, and the cloud looks for the device's name there.
fn compare_names(
    cert_path: &[&str],
    options: &CertificateOptions,
    name: Option<CloudName<'_>>,
    findings: &mut Findings,
) {
    let Some(name) = name else { return };
    let (key, common_name) = match (&options.common_name, &options.subject) {
        (Some(common_name), _) => ("common_name", Some(common_name)),
        (None, Some(subject)) => {
            let common_name = subject.iter().rfind(|(attribute, _)| attribute.eq_ignore_ascii_case("CN"));
            ("subject", common_name.map(|(_, common_name)| common_name))
        }
        (None, None) => return,
    };
    let message = match common_name {
        None => format!("the certificate has no `CN`, where the cloud looks for the {name}"),
        Some(common_name) if !name.is(common_name) => {
            format!("the certificate is for `{common_name}`, where the cloud looks for the {name}")
        }
        Some(_) => return,
    };
    findings.warn(&[cert_path, &[key]].concat(), message);
}

pub(super) fn est_authentication(options: &CertificateOptions) -> EstAuthentication {
    EstAuthentication {
        username: options.username.clone(),
        password: options.password.clone(),
        identity_cert: options.identity_cert.clone(),
        identity_pk: options.identity_pk.clone(),
        bootstrap_identity_cert: options.bootstrap_identity_cert.clone(),
        bootstrap_identity_pk: options.bootstrap_identity_pk.clone(),
    }
}

pub(super) fn warn_about_est_keys(
    cert_path: &[&str],
    options: &CertificateOptions,
    message: &str,
    findings: &mut Findings,
) {
    let keys = [
        ("username", options.username.is_some()),
        ("password", options.password.is_some()),
        ("identity_cert", options.identity_cert.is_some()),
        ("identity_pk", options.identity_pk.is_some()),
        ("bootstrap_identity_cert", options.bootstrap_identity_cert.is_some()),
        ("bootstrap_identity_pk", options.bootstrap_identity_pk.is_some()),
    ];
    for (key, _) in keys.into_iter().filter(|(_, is_given)| *is_given) {
        findings.warn(&[cert_path, &[key]].concat(), message);
    }
}

const KEY_IS_MADE: &str = "is ignored, because the key of an issued certificate is made on the device";

pub(super) fn local_ca(local_ca: &super_config::LocalCa, issuers: Issuers, findings: &mut Findings) -> Option<LocalCa> {
    const CERT: [&str; 3] = ["cert_issuance", "local_ca", "cert"];
    const KEY: [&str; 3] = ["cert_issuance", "local_ca", "pk"];
    match &local_ca.cert {
        UriOrOptions::Uri(uri) => {
            let cert = cert_uri(&CERT, uri, findings);
            let Some(key) = &local_ca.pk else {
                findings.error(&CERT, "a CA certificate that is there already needs `pk`, the URI of its key");
                return None;
            };
            let key = key_uri(&KEY, key, findings);
            Some(LocalCa::Preloaded { cert: cert?, key: key? })
        }
        UriOrOptions::Options(options) => {
            const NOT_HERE: &str = "acts on the device's own certificate only and is ignored here";
            if local_ca.pk.is_some() {
                findings.warn(&KEY, KEY_IS_MADE);
            }
            let message = "nothing creates this certificate by itself: after applying, root has to request the certificate \
                           `local-ca` from the certificate service";
            findings.warn(&CERT, message);
            if options.auto_renew.is_some() {
                findings.warn(&[&CERT[..], &["auto_renew"]].concat(), NOT_HERE);
            }
            warn_about_est_keys(&CERT, options, NOT_HERE, findings);
            certificate_options(&CERT, options, issuers, findings).map(|options| LocalCa::Issued(Box::new(options)))
        }
    }
}

pub(super) fn certificate_options(
    key_path: &[&str],
    options: &CertificateOptions,
    issuers: Issuers,
    findings: &mut Findings,
) -> Option<Options> {
    let at = |key| [key_path, &[key]].concat();
    let url = options.url.as_ref().and_then(|text| est_url(&at("url"), text, findings));
    if options.expiry_days == Some(0) {
        findings.error(&at("expiry_days"), "a certificate has to last at least 1 day");
    }
    if options.common_name.is_some() && options.subject.is_some() {
        findings.warn(&at("subject"), "is ignored, because `common_name` wins");
    }
    let method = match options.method.as_str() {
        "est" => Method::Est,
        "local_ca" => Method::LocalCa,
        "self_signed" => Method::SelfSigned,
        other => {
            let message = format!("`{other}` is no way to issue; there are `est`, `local_ca` and `self_signed`");
            findings.error(&at("method"), message);
            return None;
        }
    };
    if method == Method::Est && options.url.is_none() && !issuers.has_est_url {
        let message = "no EST server is named: give `url` here, or `default` in `[cert_issuance.est.urls]`";
        findings.warn(&at("method"), message);
    }
    if method == Method::LocalCa && !issuers.has_local_ca {
        findings
            .warn(&at("method"), "there is no local CA: its certificate and key belong in `[cert_issuance.local_ca]`");
    }
    if method != Method::Est && options.url.is_some() {
        findings.warn(&at("url"), "acts with `method = \"est\"` only and is ignored");
    }
    Some(Options {
        expiry_days: options.expiry_days.and_then(NonZeroU32::new),
        subject: if options.common_name.is_some() { None } else { options.subject.clone() },
        common_name: options.common_name.clone(),
        url: url.filter(|_| method == Method::Est),
        ..Options::new(method)
    })
}
