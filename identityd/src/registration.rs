//! One registration with DPS: as what, by what proof, and what is told on that occasion.

use std::sync::Arc;

use aziot_identityd_api::config::{Config, Payload};
use aziot_identityd_cloud::{Assignment, Attestation, Exchange, Registration, dps};
use serde_json::Value;

use crate::{
    credentials::{CertificateError, Credentials, Shown},
    device::transport,
    error::{Error, Invalid},
    settings::{DpsSource, Proof, RegistrationId, Settings},
    state::DeviceInfo,
};

/// Registers with what these settings prove the device with.
pub(crate) async fn register(
    source: &DpsSource,
    settings: &Settings,
    credentials: &Credentials,
) -> Result<DeviceInfo, Error> {
    let config = &settings.config;
    let access = match &source.proof {
        Proof::X509(certificate) => {
            let certificate = credentials.certificate(certificate, settings);
            let turn = certificate.turn().await?;
            let registered = register_certificate(source, config, &turn.shown).await;
            let shown = Arc::clone(&turn.shown);
            drop(turn);
            if let Err(error) = &registered
                && certificate.is_worth_another_registration(&shown, error).await
            {
                tracing::info!("the device's certificate or key was replaced: it registers with what there is now");
                let turn = certificate.turn().await?;
                return register_certificate(source, config, &turn.shown).await;
            }
            return registered;
        }
        proof @ (Proof::SymmetricKey { .. } | Proof::Tpm) => credentials.access(proof, settings),
    };
    let name = match &source.registration_id {
        RegistrationId::Set(name) => name,
        RegistrationId::OfCertificate(id) => return Err(CertificateError::Nameless(id.clone()).into()),
    };
    match (&source.proof, &access.signer) {
        (Proof::Tpm, _) => run(source, name, config, &access.exchange, Attestation::Tpm(&credentials.tpm())).await,
        (_, Some(key)) => run(source, name, config, &access.exchange, Attestation::Key(&**key)).await,
        (_, None) => run(source, name, config, &access.exchange, Attestation::Certificate).await,
    }
}

/// Registers with this certificate.
pub(crate) async fn register_certificate(
    source: &DpsSource,
    config: &Config,
    shown: &Shown,
) -> Result<DeviceInfo, Error> {
    let name = match &source.registration_id {
        RegistrationId::Set(name) => name,
        RegistrationId::OfCertificate(id) => {
            shown.common_name.as_ref().ok_or_else(|| CertificateError::Nameless(id.clone()))?
        }
    };
    run(source, name, config, &shown.exchange, Attestation::Certificate).await
}

async fn run(
    source: &DpsSource,
    registration_id: &str,
    config: &Config,
    exchange: &Arc<dyn Exchange>,
    attestation: Attestation<'_>,
) -> Result<DeviceInfo, Error> {
    let registration = Registration {
        host: source.endpoint.authority().to_owned(),
        scope_id: source.scope_id.clone(),
        registration_id: registration_id.to_owned(),
        payload: payload(source.payload.as_ref()).await?,
    };
    let assigned = dps::register(&transport(exchange, config), &registration, attestation).await;
    let Assignment { hub, device_id } = assigned.map_err(Error::dps)?;
    tracing::info!(registration_id, device_id, hub, "DPS assigned this device to its hub");
    Ok(DeviceInfo { hub_name: hub.clone(), local_gateway_hostname: hub, device_id })
}

/// What is told to custom allocation; read at each use, as operators change the file.
pub(crate) async fn payload(file: Option<&Payload>) -> Result<Option<Value>, Error> {
    const LIMIT_BYTES: u64 = 1024 * 1024;
    let Some(payload) = file else { return Ok(None) };
    let invalid = |source| Error::invalid("provisioning.payload", source);
    let path = url::Url::parse(&payload.uri).ok().filter(|uri| uri.scheme() == "file");
    let Some(path) = path.and_then(|uri| uri.to_file_path().ok()) else {
        return Err(invalid(Invalid::PayloadUri(payload.uri.clone())));
    };
    let read = tokio::task::spawn_blocking(move || aziot_files::read_limited(path, LIMIT_BYTES)).await;
    let bytes = read.expect("reading a file does not panic");
    let bytes = bytes.map_err(|error| invalid(Invalid::PayloadFile(Arc::new(error))))?;
    let json = serde_json::from_slice(&bytes).map_err(|error| invalid(Invalid::PayloadJson(Arc::new(error))))?;
    Ok(Some(json))
}
