//! The module runtime's own configuration.

use aziot_edged_api::config::{
    Config, Connect, ConnectUri, ContentTrust, EdgeCa, Endpoints, Listen, MANIFEST_TRUST_BUNDLE, MobyRuntime,
    TRUST_BUNDLE,
};
use aziot_http::Endpoint;

use super::Surroundings;
use super::material::edge::content_trust;
use crate::layout::{Layout, Service};
use crate::settings::{self, Edge, EdgeCaSubject};

/// `endpoints`: of the key service, the certificate service and the identity service.
pub(super) fn config(
    edge: &Edge,
    hostname: String,
    [keyd, certd, identityd]: [Endpoint; 3],
    surroundings: &Surroundings,
) -> Config {
    let Surroundings { layout, edge_uris, edge_files: files, .. } = surroundings;
    let uris = edge.uris.clone().or(edge_uris);
    let trusted = edge.content_trust.keys().map(|registry| (registry.clone(), content_trust(registry)));
    let content_trust = ContentTrust { ca_certs: trusted.collect() };
    Config {
        hostname,
        homedir: layout.home(Service::Edged),
        trust_bundle_cert: TRUST_BUNDLE.to_owned(),
        manifest_trust_bundle_cert: MANIFEST_TRUST_BUNDLE.to_owned(),
        auto_reprovisioning_mode: edge.auto_reprovisioning_mode,
        allow_elevated_docker_permissions: edge.allow_elevated_docker_permissions,
        allow_host_access: edge.allow_host_access,
        iotedge_max_requests: edge.max_requests,
        edge_ca: edge_ca(&edge.edge_ca),
        agent: edge.agent.clone(),
        connect: Connect {
            workload_uri: uris.connect_workload.unwrap_or_else(|| connect(layout, "workload")),
            management_uri: uris.connect_management.unwrap_or_else(|| connect(layout, "mgmt")),
        },
        listen: Listen {
            workload_uri: uris.listen_workload.unwrap_or_else(|| listen(layout, "workload")),
            management_uri: uris.listen_management.unwrap_or_else(|| listen(layout, "mgmt")),
        },
        watchdog: edge.watchdog,
        moby_runtime: MobyRuntime {
            uri: edge.engine.clone(),
            network: edge.network.clone(),
            content_trust: Some(content_trust).filter(|trust| !trust.ca_certs.is_empty()),
        },
        image_garbage_collection: edge.image_garbage_collection,
        additional_info: files.additional_info.clone(),
        endpoints: Endpoints { aziot_certd_url: certd, aziot_keyd_url: keyd, aziot_identityd_url: identityd },
    }
}

fn connect(layout: &Layout, socket: &str) -> ConnectUri {
    let path = layout.edge_sockets().join(format!("{socket}.sock"));
    ConnectUri::try_from(Endpoint::Unix(path).to_string()).expect("paths of layouts are absolute")
}

fn listen(layout: &Layout, socket: &str) -> Endpoint {
    match layout {
        Layout::Normal | Layout::Staged(_) => Endpoint::Descriptor(format!("aziot-edged.{socket}.socket")),
        // There is no service manager that would open them.
        Layout::Relocated(_) => Endpoint::Unix(layout.edge_sockets().join(format!("{socket}.sock"))),
    }
}

/// The ids are the built-in ones, which need not be written.
fn edge_ca(edge_ca: &settings::EdgeCa) -> EdgeCa {
    match edge_ca {
        settings::EdgeCa::Preloaded { .. } => EdgeCa::default(),
        settings::EdgeCa::Issued(issued) => {
            let (common_name, subject) = match issued.subject.clone() {
                None => (None, None),
                Some(EdgeCaSubject::CommonName(name)) => (Some(name), None),
                Some(EdgeCaSubject::Attributes(attributes)) => (None, Some(attributes)),
            };
            EdgeCa { common_name, subject, auto_renew: Some(issued.auto_renew), ..EdgeCa::default() }
        }
    }
}
