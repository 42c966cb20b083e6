//! Modules and their runtime.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aziot_certd_api::config::Method;
use aziot_certd_api::renewal::AutoRenew;
use aziot_edged_api::config::{Agent, AgentConfig, EDGE_CA, EngineUri, Image, Requests};
use url::Url;

use super::certificates::{self, Issuers};
use super::{cert_uri, key_uri, limit, url, warn_if_empty};
use crate::finding::Findings;
use crate::settings::{Edge, EdgeCa, EdgeCaSubject, EdgeUris, EstCredentials, IssuedEdgeCa, QUICKSTART_DAYS};
use crate::super_config::edge::{self, EdgeConfig};
use crate::super_config::{CertificateOptions, SuperConfig};

const DEFAULT_IMAGE: &str = "mcr.microsoft.com/azureiotedge-agent:1.6";
const DEFAULT_ENGINE: &str = "unix:///var/run/docker.sock";

pub(super) fn check(edge: EdgeConfig, config: &SuperConfig, findings: &mut Findings) -> Option<Edge> {
    if config.provisioning.source == "none" {
        let message = "modules have identities at a hub: without one the module runtime does not start";
        findings.warn(&["provisioning", "source"], message);
    }
    if edge.listen.min_tls_version.is_some() {
        findings.note(
            &["listen", "min_tls_version"],
            "is obsolete and ignored; the hub module has `SslProtocols` in its environment",
        );
    }
    let (elevated, host_access) =
        (edge.allow_elevated_docker_permissions.unwrap_or(true), edge.allow_host_access.unwrap_or(true));
    if elevated && !host_access {
        let message = "has no effect unless `allow_elevated_docker_permissions = false`";
        findings.warn(&["allow_host_access"], message);
    }
    let trust_bundle_cert = bundle("trust_bundle_cert", edge.trust_bundle_cert.as_deref(), findings);
    let manifest_trust_bundle_cert =
        bundle("manifest_trust_bundle_cert", edge.manifest_trust_bundle_cert.as_deref(), findings);
    warn_if_empty(findings, &["imported_master_encryption_key"], edge.imported_master_encryption_key.as_deref());
    let additional_info = edge.additional_info.as_deref().and_then(|uri| file("additional_info", uri, findings));
    let content_trust = content_trust(&edge.moby_runtime.content_trust.ca_certs, findings);
    let max_requests = Requests {
        management: limit(
            findings,
            &["iotedge_max_requests", "management"],
            edge.iotedge_max_requests.management,
            Requests::default().management,
        ),
        workload: limit(
            findings,
            &["iotedge_max_requests", "workload"],
            edge.iotedge_max_requests.workload,
            Requests::default().workload,
        ),
    };
    let edge_ca = edge_ca(edge.edge_ca.unwrap_or_default(), config, findings);
    Some(Edge {
        trust_bundle_cert,
        manifest_trust_bundle_cert,
        allow_elevated_docker_permissions: elevated,
        allow_host_access: host_access,
        auto_reprovisioning_mode: edge.auto_reprovisioning_mode,
        imported_master_encryption_key: edge.imported_master_encryption_key.map(PathBuf::from),
        additional_info,
        max_requests,
        agent: agent(edge.agent, findings),
        uris: EdgeUris {
            connect_workload: edge.connect.workload_uri,
            connect_management: edge.connect.management_uri,
            listen_workload: edge.listen.workload_uri,
            listen_management: edge.listen.management_uri,
        },
        watchdog: edge.watchdog,
        edge_ca: edge_ca?,
        engine: edge.moby_runtime.uri.unwrap_or_else(default_engine),
        network: edge.moby_runtime.network,
        content_trust,
        image_garbage_collection: edge.image_garbage_collection,
    })
}

fn default_engine() -> EngineUri {
    EngineUri::try_from(DEFAULT_ENGINE.to_owned()).expect("the usual engine has an address")
}

fn bundle(key: &str, uri: Option<&str>, findings: &mut Findings) -> Option<Url> {
    cert_uri(&[key], uri?, findings)
}

fn file(key: &str, uri: &str, findings: &mut Findings) -> Option<PathBuf> {
    let url = url(&[key], uri, findings)?;
    let path = if url.scheme() == "file" { url.to_file_path().ok() } else { None };
    if path.is_none() {
        findings.error(&[key], "expected a `file:` URI, such as `file:///etc/aziot/additional-info.toml`");
    }
    path
}

fn agent(agent: edge::Agent, findings: &mut Findings) -> Agent {
    for (key, is_given) in [("imageHash", agent.config.image_hash.is_some()), ("digest", agent.config.digest.is_some())]
    {
        if is_given {
            let message = "is not looked at; to pin an image, write `image = \"NAME@sha256:...\"`";
            findings.warn(&["agent", "config", key], message);
        }
    }
    let default_image = || Image::try_from(DEFAULT_IMAGE.to_owned()).expect("the usual image has a name");
    Agent {
        name: agent.name,
        r#type: agent.r#type,
        image_pull_policy: agent.image_pull_policy,
        config: AgentConfig {
            image: agent.config.image.unwrap_or_else(default_image),
            image_hash: agent.config.image_hash,
            digest: agent.config.digest,
            create_options: agent.config.create_options,
            auth: agent.config.auth,
        },
        env: agent.env,
    }
}

fn content_trust(certificates: &BTreeMap<String, String>, findings: &mut Findings) -> BTreeMap<String, Url> {
    const TABLE: [&str; 3] = ["moby_runtime", "content_trust", "ca_certs"];
    if !certificates.is_empty() {
        let message = "is written down and has no effect: the container engine has no content trust any more";
        findings.warn(&TABLE, message);
    }
    let uri = |(registry, uri): (&String, &String)| {
        cert_uri(&[&TABLE[..], &[registry]].concat(), uri, findings).map(|uri| (registry.clone(), uri))
    };
    certificates.iter().filter_map(uri).collect()
}

/// The first of the three kinds whose keys are there; the others' keys are told.
fn edge_ca(mut written: edge::EdgeCa, config: &SuperConfig, findings: &mut Findings) -> Option<EdgeCa> {
    if let Some(method) = written.method.take() {
        warn_about_other_keys(&written, &["cert", "pk"], "means nothing beside `method` and is ignored", findings);
        let message = "is for a CA that the device makes for itself, without `method`; use `expiry_days` here";
        warn_about_other_keys(&written, &["auto_generated_edge_ca_expiry_days"], message, findings);
        let expiry_days = written.expiry_days;
        return issued(&written.into_options(method, expiry_days), config, findings).map(EdgeCa::Issued);
    }
    match (&written.cert, &written.pk, written.auto_generated_edge_ca_expiry_days) {
        (Some(cert), Some(key), _) => {
            let message = "is ignored, because the CA's certificate and key are given";
            let keys = ["expiry_days", "common_name", "subject", "auto_generated_edge_ca_expiry_days", "url"];
            warn_about_other_keys(&written, &keys, message, findings);
            warn_about_other_keys(&written, &EST_KEYS, message, findings);
            let message = "is ignored, because a CA whose certificate and key are given is not renewed";
            warn_about_other_keys(&written, &["auto_renew"], message, findings);
            let cert = cert_uri(&["edge_ca", "cert"], cert, findings);
            let key = key_uri(&["edge_ca", "pk"], key, findings);
            let (cert, key) = cert.zip(key)?;
            return Some(EdgeCa::Preloaded { cert, key });
        }
        (Some(_), None, None) => findings.error(&["edge_ca", "cert"], "needs `pk` beside it, the URI of the CA's key"),
        (None, Some(_), None) => {
            findings.error(&["edge_ca", "pk"], "needs `cert` beside it, the URI of the CA's certificate");
        }
        (_, _, Some(_)) | (None, None, None) => {
            let message = "is ignored: the device makes the CA for itself, unless both `cert` and `pk` are given";
            warn_about_other_keys(&written, &["cert", "pk"], message, findings);
        }
    }
    let message = "acts with `method` only and is ignored; use `auto_generated_edge_ca_expiry_days`";
    warn_about_other_keys(&written, &["expiry_days"], message, findings);
    let days = written.auto_generated_edge_ca_expiry_days;
    if days == Some(0) {
        let key_path = ["edge_ca", "auto_generated_edge_ca_expiry_days"];
        findings.error(&key_path, "a certificate has to last at least 1 day");
    }
    let options = written.into_options("self_signed".to_owned(), days.filter(|days| *days > 0));
    let mut issued = issued(&options, config, findings)?;
    issued.options.expiry_days.get_or_insert(QUICKSTART_DAYS);
    Some(EdgeCa::Issued(issued))
}

const EST_KEYS: [&str; 6] =
    ["username", "password", "identity_cert", "identity_pk", "bootstrap_identity_cert", "bootstrap_identity_pk"];

fn warn_about_other_keys(written: &edge::EdgeCa, keys: &[&str], message: &str, findings: &mut Findings) {
    let given = [
        ("cert", written.cert.is_some()),
        ("pk", written.pk.is_some()),
        ("expiry_days", written.expiry_days.is_some()),
        ("common_name", written.common_name.is_some()),
        ("subject", written.subject.is_some()),
        ("auto_renew", written.auto_renew.is_some()),
        ("auto_generated_edge_ca_expiry_days", written.auto_generated_edge_ca_expiry_days.is_some()),
        ("url", written.url.is_some()),
        ("username", written.username.is_some()),
        ("password", written.password.is_some()),
        ("identity_cert", written.identity_cert.is_some()),
        ("identity_pk", written.identity_pk.is_some()),
        ("bootstrap_identity_cert", written.bootstrap_identity_cert.is_some()),
        ("bootstrap_identity_pk", written.bootstrap_identity_pk.is_some()),
    ];
    for (key, _) in given.iter().filter(|(key, is_given)| *is_given && keys.contains(key)) {
        findings.warn(&["edge_ca", key], message);
    }
}

fn issued(written: &CertificateOptions, config: &SuperConfig, findings: &mut Findings) -> Option<Box<IssuedEdgeCa>> {
    const TABLE: [&str; 1] = ["edge_ca"];
    let mut options = certificates::certificate_options(&TABLE, written, Issuers::of(config, EDGE_CA), findings)?;
    let renewal = written.auto_renew.as_ref();
    let auto_renew = renewal.map_or_else(AutoRenew::default, |renewal| {
        certificates::auto_renew(&["edge_ca", "auto_renew"], renewal, findings)
    });
    if options.method != Method::Est {
        let message = "acts with `method = \"est\"` only and is ignored";
        certificates::warn_about_est_keys(&TABLE, written, message, findings);
        let est = EstCredentials::default();
        return Some(Box::new(IssuedEdgeCa { options, subject: None, est, auto_renew }));
    }
    if written.expiry_days.is_some() {
        findings.warn(&["edge_ca", "expiry_days"], "is ignored: the EST server decides how long the certificate lasts");
    }
    options.expiry_days = None;
    let common_name = options.common_name.take().map(EdgeCaSubject::CommonName);
    let subject = common_name.or(options.subject.take().map(EdgeCaSubject::Attributes));
    let est = certificates::credentials(&TABLE, &certificates::est_authentication(written), findings);
    Some(Box::new(IssuedEdgeCa { options, subject, est, auto_renew }))
}
