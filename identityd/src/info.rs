//! What anybody may know about how the device gets its identity.

use aziot_identityd_api::provisioning::{DpsAuthentication, ManualAuthentication, ProvisioningInfo};

use crate::{
    credentials::Credentials,
    error::Error,
    registration::payload,
    settings::{DpsSource, Proof, RegistrationId, Settings, Source},
};

/// What is so by these settings. The name of a registration that they leave to the certificate is read there.
pub(crate) async fn provisioning_info(
    settings: &Settings,
    credentials: &Credentials,
) -> Result<ProvisioningInfo, Error> {
    match &settings.source {
        Source::Off => Ok(ProvisioningInfo::None),
        Source::Manual { proof, .. } => {
            let auth = match proof {
                Proof::X509(_) => ManualAuthentication::X509,
                Proof::SymmetricKey { .. } | Proof::Tpm => ManualAuthentication::Sas,
            };
            Ok(ProvisioningInfo::Manual { auth })
        }
        Source::Dps(dps) => {
            let DpsSource { endpoint, scope_id, registration_id, proof, payload: file } = dps;
            let auth = match proof {
                Proof::SymmetricKey { .. } => DpsAuthentication::SymmetricKey,
                Proof::X509(_) => DpsAuthentication::X509,
                Proof::Tpm => DpsAuthentication::Tpm,
            };
            let registration_id = match registration_id {
                RegistrationId::Set(registration_id) => registration_id.clone(),
                RegistrationId::OfCertificate(id) => credentials.stored_common_name(id).await?,
            };
            Ok(ProvisioningInfo::Dps {
                auth,
                endpoint: endpoint.as_str().to_owned(),
                scope_id: scope_id.clone(),
                registration_id,
                payload: payload(file.as_ref()).await?,
            })
        }
    }
}
