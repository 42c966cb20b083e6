//! `[cert_issuance]`: EST servers and the device's own CA.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use aziot_certd_api::config::{Basic, EstUrl, Method, Options};
use aziot_certd_api::renewal::{AutoRenew, Period};

use super::{cert_uri, key_uri, url};
use crate::finding::Findings;
use crate::secret_text::SecretText;
use crate::settings::{Est, EstIdentity, LocalCa};
use crate::super_config::{self, EstAuthentication, UriOrOptions};

pub(super) fn est(est: super_config::Est, findings: &mut Findings) -> Est {
    const TRUSTED_CERTS: [&str; 3] = ["cert_issuance", "est", "trusted_certs"];
    let trusted_certs = est.trusted_certs.iter().filter_map(|uri| cert_uri(&TRUSTED_CERTS, uri, findings)).collect();
    let mut urls = BTreeMap::new();
    for (id, text) in &est.urls {
        urls.extend(est_url(&["cert_issuance", "est", "urls", id], text, findings).map(|url| (id.clone(), url)));
    }
    let identity_auto_renew = auto_renew(est.identity_auto_renew, findings);
    let identity = est_identity(&est.auth, findings);
    let basic = basic(est.auth.username, est.auth.password, findings);
    Est { trusted_certs, basic, identity, urls, identity_auto_renew }
}

fn est_url(key_path: &[&str], text: &str, findings: &mut Findings) -> Option<EstUrl> {
    let url = url(key_path, text, findings)?;
    if url.scheme() == "http" {
        findings.warn(key_path, "with `http:` anybody on the way can read and change what is sent; use `https:`");
    }
    Some(url.into())
}

fn basic(username: Option<String>, password: Option<SecretText>, findings: &mut Findings) -> Option<Basic> {
    let (given, missing) = match (&username, &password) {
        (Some(_), None) => ("username", "password"),
        (None, Some(_)) => ("password", "username"),
        _ => {
            let (username, password) = username.zip(password)?;
            return Some(Basic { username, password: password.expose().to_owned().into() });
        }
    };
    let message = format!("counts together with `{missing}` only and is ignored");
    findings.warn(&["cert_issuance", "est", "auth", given], message);
    None
}

fn est_identity(auth: &EstAuthentication, findings: &mut Findings) -> Option<EstIdentity> {
    let bootstrap = pair(
        ("bootstrap_identity_cert", auth.bootstrap_identity_cert.as_deref()),
        ("bootstrap_identity_pk", auth.bootstrap_identity_pk.as_ref()),
        findings,
    );
    let identity =
        pair(("identity_cert", auth.identity_cert.as_deref()), ("identity_pk", auth.identity_pk.as_ref()), findings);
    let (certificate_key, uri, key_key, key_uri_text, is_bootstrap) = match (bootstrap, identity) {
        (Some((cert, key)), identity) => {
            if identity.is_some() {
                let message = "is ignored with its key, because the bootstrap identity wins";
                findings.warn(&["cert_issuance", "est", "auth", "identity_cert"], message);
            }
            ("bootstrap_identity_cert", cert, "bootstrap_identity_pk", key, true)
        }
        (None, Some((cert, key))) => ("identity_cert", cert, "identity_pk", key, false),
        (None, None) => return None,
    };
    let cert = cert_uri(&["cert_issuance", "est", "auth", certificate_key], uri, findings);
    let key = key_uri(&["cert_issuance", "est", "auth", key_key], key_uri_text, findings);
    let (cert, key) = (cert?, key?);
    Some(if is_bootstrap { EstIdentity::Bootstrap { cert, key } } else { EstIdentity::Lasting { cert, key } })
}

fn pair<'v>(
    (cert_key, cert): (&str, Option<&'v str>),
    (key_key, key): (&str, Option<&'v SecretText>),
    findings: &mut Findings,
) -> Option<(&'v str, &'v SecretText)> {
    let (given, missing) = match (cert, key) {
        (Some(_), None) => (cert_key, key_key),
        (None, Some(_)) => (key_key, cert_key),
        _ => return cert.zip(key),
    };
    let message = format!("counts together with `{missing}` only and is ignored");
    findings.warn(&["cert_issuance", "est", "auth", given], message);
    None
}

fn auto_renew(written: Option<super_config::AutoRenew>, findings: &mut Findings) -> AutoRenew {
    let default = AutoRenew::default();
    let Some(written) = written else { return default };
    let mut period = |key: &str, text: Option<String>, default: Period| {
        let key_path = ["cert_issuance", "est", "identity_auto_renew", key];
        text.and_then(|text| findings.value(&key_path, text.parse())).unwrap_or(default)
    };
    AutoRenew {
        threshold: period("threshold", written.threshold, default.threshold),
        retry: period("retry", written.retry, default.retry),
        rotate_key: written.rotate_key.unwrap_or(default.rotate_key),
    }
}

/// `has_est_url`: whether `[cert_issuance.est.urls]` names a server for the CA's certificate.
pub(super) fn local_ca(local_ca: super_config::LocalCa, has_est_url: bool, findings: &mut Findings) -> Option<LocalCa> {
    const CERT: [&str; 3] = ["cert_issuance", "local_ca", "cert"];
    const KEY: [&str; 3] = ["cert_issuance", "local_ca", "pk"];
    match local_ca.cert {
        UriOrOptions::Uri(uri) => {
            let cert = cert_uri(&CERT, &uri, findings);
            let Some(key) = &local_ca.pk else {
                findings.error(&CERT, "a CA certificate that is there already needs `pk`, the URI of its key");
                return None;
            };
            let key = key_uri(&KEY, key, findings);
            Some(LocalCa::Preloaded { cert: cert?, key: key? })
        }
        UriOrOptions::Options(options) => {
            if local_ca.pk.is_some() {
                findings.warn(&KEY, "is ignored, because the key of an issued certificate is made on the device");
            }
            let message = "nothing creates this certificate by itself: after applying, root has to request the certificate \
                           `local-ca` from the certificate service";
            findings.warn(&CERT, message);
            certificate_options(&CERT, *options, has_est_url, findings)
                .map(|options| LocalCa::Issued(Box::new(options)))
        }
    }
}

fn certificate_options(
    key_path: &[&str],
    options: super_config::CertificateOptions,
    has_est_url: bool,
    findings: &mut Findings,
) -> Option<Options> {
    let at = |key| [key_path, &[key]].concat();
    for (key, value) in [
        ("auto_renew", options.auto_renew),
        ("username", options.username),
        ("password", options.password),
        ("identity_cert", options.identity_cert),
        ("identity_pk", options.identity_pk),
        ("bootstrap_identity_cert", options.bootstrap_identity_cert),
        ("bootstrap_identity_pk", options.bootstrap_identity_pk),
    ] {
        if value.is_some() {
            findings.warn(&at(key), "acts on the device's own certificate only and is ignored here");
        }
    }
    let url = options.url.and_then(|text| est_url(&at("url"), &text, findings));
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
    if method == Method::Est && url.is_none() && !has_est_url {
        let message = "no EST server is named: give `url` here, or `default` in `[cert_issuance.est.urls]`";
        findings.warn(&at("method"), message);
    }
    if options.expiry_days == Some(0) {
        findings.error(&at("expiry_days"), "a certificate has to last at least 1 day");
    }
    if options.common_name.is_some() && options.subject.is_some() {
        findings.warn(&at("subject"), "is ignored, because `common_name` wins");
    }
    Some(Options {
        expiry_days: options.expiry_days.and_then(NonZeroU32::new),
        subject: if options.common_name.is_some() { None } else { options.subject },
        common_name: options.common_name,
        url: url.filter(|_| method == Method::Est),
        ..Options::new(method)
    })
}
