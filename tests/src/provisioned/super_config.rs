//! What the cloud and the device are told about each other: the enrolment and the super-config of each kind of device.

use anyhow::{Context as _, Result};

use super::{Certificate, DEVICE_CERTIFICATE, Kind, Proof, Provisioned, Setup};
use crate::{
    device::{ID_SCOPE, MANUAL_DEVICE_ID, REGISTRATION_ID, write_private},
    est,
};

/// The parent's name: it leads to this machine as `localhost` does, so that the cloud plays the parent too.
pub(super) const GATEWAY: &str = "127.0.0.1";

/// The cloud's file.
pub(super) fn enrolment(kind: Kind, proof: &Proof) -> String {
    let proof = &proof.of_the_cloud;
    match kind {
        Kind::None => String::new(),
        Kind::ConnectionString | Kind::ManualKey | Kind::ManualCertificate(_) | Kind::Nested => {
            format!("[[device]]\ndevice_id = {MANUAL_DEVICE_ID:?}\n{proof}\n")
        }
        Kind::DpsGroupKey
        | Kind::DpsCertificate(
            Certificate::LocalCa | Certificate::LocalCaOnToken | Certificate::Est | Certificate::EstOnToken,
        ) => format!("[[group]]\nname = \"pumps\"\n{proof}\n"),
        Kind::DpsKey | Kind::DpsCertificate(Certificate::Preloaded | Certificate::PreloadedOnToken) | Kind::DpsTpm => {
            format!("[[enrollment]]\nregistration_id = {REGISTRATION_ID:?}\n{proof}\n")
        }
    }
}

/// The device's file, but for its host name and its own CA.
pub(super) fn super_config(setup: &Setup, device: &Provisioned, proof: &Proof) -> Result<String> {
    let cloud = device.cloud()?;
    let parent = if setup.kind == Kind::Nested {
        let port = cloud.rsplit_once(':').context("the cloud has a port")?.1;
        format!("parent_hostname = \"{GATEWAY}:{port}\"\n\n")
    } else {
        String::new()
    };
    let key = &proof.of_the_device;
    let hub = format!("source = \"manual\"\niothub_hostname = \"{cloud}\"\ndevice_id = {MANUAL_DEVICE_ID:?}\n");
    let provisioning = match setup.kind {
        Kind::None => "source = \"none\"\n\n[localid]\ndomain = \"plant.example\"\n".to_owned(),
        Kind::ConnectionString => {
            let parts = format!("HostName={cloud};DeviceId={MANUAL_DEVICE_ID};SharedAccessKey={key}");
            format!("source = \"manual\"\nconnection_string = \"{parts}\"\n")
        }
        Kind::ManualKey | Kind::Nested => {
            let key = format!("device_id_pk = {{ value = \"{key}\" }}\n");
            format!("{hub}\n[provisioning.authentication]\nmethod = \"sas\"\n{key}")
        }
        Kind::ManualCertificate(kind) => {
            let certificate = certificate(setup, device, kind, "authentication", key)?;
            format!("{hub}\n[provisioning.authentication]\nmethod = \"x509\"\n{certificate}")
        }
        Kind::DpsKey | Kind::DpsGroupKey => {
            let key = format!("symmetric_key = {{ value = \"{key}\" }}\n");
            dps(setup, device, "symmetric_key", &key)?
        }
        Kind::DpsCertificate(kind) => {
            dps(setup, device, "x509", &certificate(setup, device, kind, "attestation", key)?)?
        }
        Kind::DpsTpm => dps(setup, device, "tpm", "")?,
    };
    let token = device.token.as_ref().map(|token| format!("\n[aziot_keys]\n{}", token.settings()));
    let tpm = device.tpm.as_ref().map(|tpm| format!("\n[tpm]\ntcti = {:?}\n", tpm.tcti()));
    let modules = setup.modules.as_ref();
    let keys = modules.map(|modules| format!("{}\n", modules.keys)).unwrap_or_default();
    let tables = modules.map(|modules| format!("\n{}\n", modules.tables)).unwrap_or_default();
    let hardware = [token, tpm].map(Option::unwrap_or_default).concat();
    Ok([keys, parent, "[provisioning]\n".to_owned(), provisioning, hardware, tables].concat())
}

fn dps(setup: &Setup, device: &Provisioned, method: &str, attestation: &str) -> Result<String> {
    let payload = match setup.payload {
        None => String::new(),
        Some(json) => {
            let path = device.path("etc/aziot/payload.json");
            write_private(&path, json)?;
            format!("payload = {{ uri = \"file://{}\" }}\n", path.display())
        }
    };
    let endpoint = format!("global_endpoint = \"https://{}\"\n", device.cloud()?);
    Ok(format!(
        "source = \"dps\"\n{endpoint}id_scope = \"{ID_SCOPE}\"\n{payload}\n[provisioning.attestation]\n\
         method = \"{method}\"\nregistration_id = \"{REGISTRATION_ID}\"\n{attestation}"
    ))
}

/// The lines of `[provisioning.TABLE]` about a certificate, and the tables that they need. `key`: URI of the key of a preloaded one.
fn certificate(
    setup: &Setup,
    device: &Provisioned,
    certificate: Certificate,
    table: &str,
    key: &str,
) -> Result<String> {
    let name = setup.kind.device_id().context("a device with a certificate has a name")?;
    let renewal = setup.auto_renew.map_or_else(String::new, |policy| format!("auto_renew = {policy}\n"));
    Ok(match certificate {
        Certificate::Preloaded | Certificate::PreloadedOnToken => {
            let path = device.path(DEVICE_CERTIFICATE);
            format!("identity_cert = \"file://{}\"\nidentity_pk = \"{key}\"\n", path.display())
        }
        Certificate::LocalCa | Certificate::LocalCaOnToken => {
            let method = format!("method = \"local_ca\"\ncommon_name = \"{name}\"\n{renewal}");
            format!("\n[provisioning.{table}.identity_cert]\n{method}")
        }
        Certificate::Est | Certificate::EstOnToken => {
            let method = format!("method = \"est\"\nsubject = {{ CN = \"{name}\", O = \"Contoso\" }}\n{renewal}");
            let auth = format!("username = {:?}\npassword = {:?}\n", est::USER, est::PASSWORD);
            format!(
                "\n[provisioning.{table}.identity_cert]\n{method}\n[cert_issuance.est.auth]\n{auth}\n\
                 [cert_issuance.est.urls]\ndefault = \"https://{}/.well-known/est\"\n",
                device.cloud()?
            )
        }
    })
}
