//! Where the device's identity comes from: the table `[provisioning]`.
//!
//! The tables are read into flat structs of all keys and checked afterwards, so that an error or an unknown key keeps its file and line. Keys of
//! another source or method are known and without effect.

use aziot_certd_api::renewal::AutoRenew;
use serde::{Deserialize, Serialize};
use url::Url;

use super::Subject;

/// Where the device's identity comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawProvisioning", into = "RawProvisioning")]
pub enum Provisioning {
    /// From these settings.
    Manual(Manual),
    /// From the Device Provisioning Service.
    Dps(Dps),
    /// From nowhere: the device has none.
    None,
}

/// An identity that is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manual {
    /// The parent gateway, where there is one.
    pub local_gateway_hostname: Option<String>,
    /// Host name of the hub.
    pub iothub_hostname: String,
    /// Name of the device there.
    pub device_id: String,
    /// How the device proves itself.
    pub authentication: ManualAuthentication,
}

/// How a device proves itself to the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawAuthentication", into = "RawAuthentication")]
pub enum ManualAuthentication {
    /// With a symmetric key.
    Sas {
        /// Its id in the key service.
        device_id_pk: String,
    },
    /// With a certificate.
    X509 {
        /// Its id in the certificate service.
        identity_cert: String,
        /// Id of its key pair in the key service.
        identity_pk: String,
        /// Attributes of its subject; the common name is always the device id.
        csr_subject: Option<Subject>,
        /// When it is renewed; absent: never. An addition of ours: the public service renews certificates for DPS only.
        identity_auto_renew: Option<AutoRenew>,
    },
}

/// An identity that DPS assigns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dps {
    /// Where DPS is.
    pub global_endpoint: DpsEndpoint,
    /// Scope of the DPS instance.
    pub scope_id: String,
    /// How the device proves itself.
    pub attestation: Attestation,
    /// What is told to the operator's custom allocation.
    pub payload: Option<Payload>,
}

/// How a device proves itself to DPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawAttestation", into = "RawAttestation")]
pub enum Attestation {
    /// With a symmetric key.
    SymmetricKey {
        /// Name of the registration.
        registration_id: String,
        /// Id of the device's own key in the key service.
        symmetric_key: String,
    },
    /// With a certificate.
    X509 {
        /// Name of the registration; absent: the certificate's common name.
        registration_id: Option<Subject>,
        /// Id of the certificate in the certificate service.
        identity_cert: String,
        /// Id of its key pair in the key service.
        identity_pk: String,
        /// When it is renewed; absent: never.
        identity_auto_renew: Option<AutoRenew>,
    },
    /// With the TPM.
    Tpm {
        /// Name of the registration.
        registration_id: String,
    },
}

/// A file for custom allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// `file:///` URI of a JSON file.
    pub uri: String,
}

/// URL of DPS: `https` and a host; path and query are dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DpsEndpoint(Url);

impl DpsEndpoint {
    /// The URL, normalized: `https://localhost:8443/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Host, with the port unless it is 443.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.0.authority()
    }
}

/// Settings of which no identity can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A key that this source or method needs.
    #[error("{with} needs the key `{key}` in [{table}]")]
    Missing {
        /// Name of the key.
        key: &'static str,
        /// Table in which it belongs.
        table: &'static str,
        /// The setting that needs it.
        with: &'static str,
    },
    /// DPS and a parent gateway.
    #[error(
        "DPS provisioning is not supported in nested mode: remove `local_gateway_hostname` or use source = \"manual\""
    )]
    NestedDps,
    /// A table where only a name can stand.
    #[error("`registration_id` must be a string with method = {0:?}")]
    RegistrationIdTable(&'static str),
    /// Not a URL of a service.
    #[error("{0:?} is no URL of a provisioning service: expected https://host")]
    Endpoint(String),
    /// DPS in clear text.
    #[error("{0:?}: tokens are sent over https only")]
    NotHttps(String),
}

impl TryFrom<String> for DpsEndpoint {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let Ok(mut url) = Url::parse(&text) else { return Err(Invalid::Endpoint(text)) };
        match url.scheme() {
            "https" => {}
            "http" => return Err(Invalid::NotHttps(text)),
            _ => return Err(Invalid::Endpoint(text)),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Invalid::Endpoint(url.host_str().unwrap_or_default().to_owned()));
        }
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        Ok(Self(url))
    }
}

impl From<DpsEndpoint> for String {
    fn from(endpoint: DpsEndpoint) -> Self {
        endpoint.0.into()
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Manual,
    Dps,
    None,
}

#[derive(Serialize, Deserialize)]
struct RawProvisioning {
    source: Source,
    local_gateway_hostname: Option<String>,
    iothub_hostname: Option<String>,
    device_id: Option<String>,
    global_endpoint: Option<DpsEndpoint>,
    scope_id: Option<String>,
    authentication: Option<ManualAuthentication>,
    attestation: Option<Attestation>,
    payload: Option<Payload>,
}

impl TryFrom<RawProvisioning> for Provisioning {
    type Error = Invalid;

    fn try_from(raw: RawProvisioning) -> Result<Self, Self::Error> {
        let table = "provisioning";
        match raw.source {
            Source::None => Ok(Self::None),
            Source::Manual => {
                let missing = |key| Invalid::Missing { key, table, with: "source = \"manual\"" };
                Ok(Self::Manual(Manual {
                    local_gateway_hostname: raw.local_gateway_hostname,
                    iothub_hostname: raw.iothub_hostname.ok_or(missing("iothub_hostname"))?,
                    device_id: raw.device_id.ok_or(missing("device_id"))?,
                    authentication: raw.authentication.ok_or(missing("authentication"))?,
                }))
            }
            Source::Dps if raw.local_gateway_hostname.is_some() => Err(Invalid::NestedDps),
            Source::Dps => {
                let missing = |key| Invalid::Missing { key, table, with: "source = \"dps\"" };
                Ok(Self::Dps(Dps {
                    global_endpoint: raw.global_endpoint.ok_or(missing("global_endpoint"))?,
                    scope_id: raw.scope_id.ok_or(missing("scope_id"))?,
                    attestation: raw.attestation.ok_or(missing("attestation"))?,
                    payload: raw.payload,
                }))
            }
        }
    }
}

impl From<Provisioning> for RawProvisioning {
    fn from(provisioning: Provisioning) -> Self {
        let none = Self {
            source: Source::None,
            local_gateway_hostname: None,
            iothub_hostname: None,
            device_id: None,
            global_endpoint: None,
            scope_id: None,
            authentication: None,
            attestation: None,
            payload: None,
        };
        match provisioning {
            Provisioning::None => none,
            Provisioning::Manual(manual) => Self {
                source: Source::Manual,
                local_gateway_hostname: manual.local_gateway_hostname,
                iothub_hostname: Some(manual.iothub_hostname),
                device_id: Some(manual.device_id),
                authentication: Some(manual.authentication),
                ..none
            },
            Provisioning::Dps(dps) => Self {
                source: Source::Dps,
                global_endpoint: Some(dps.global_endpoint),
                scope_id: Some(dps.scope_id),
                attestation: Some(dps.attestation),
                payload: dps.payload,
                ..none
            },
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AuthenticationMethod {
    Sas,
    X509,
}

#[derive(Serialize, Deserialize)]
struct RawAuthentication {
    method: AuthenticationMethod,
    device_id_pk: Option<String>,
    identity_cert: Option<String>,
    identity_pk: Option<String>,
    csr_subject: Option<Subject>,
    identity_auto_renew: Option<AutoRenew>,
}

impl TryFrom<RawAuthentication> for ManualAuthentication {
    type Error = Invalid;

    fn try_from(raw: RawAuthentication) -> Result<Self, Self::Error> {
        let table = "provisioning.authentication";
        match raw.method {
            AuthenticationMethod::Sas => {
                let missing = |key| Invalid::Missing { key, table, with: "method = \"sas\"" };
                Ok(Self::Sas { device_id_pk: raw.device_id_pk.ok_or(missing("device_id_pk"))? })
            }
            AuthenticationMethod::X509 => {
                let missing = |key| Invalid::Missing { key, table, with: "method = \"x509\"" };
                Ok(Self::X509 {
                    identity_cert: raw.identity_cert.ok_or(missing("identity_cert"))?,
                    identity_pk: raw.identity_pk.ok_or(missing("identity_pk"))?,
                    csr_subject: raw.csr_subject,
                    identity_auto_renew: raw.identity_auto_renew,
                })
            }
        }
    }
}

impl From<ManualAuthentication> for RawAuthentication {
    fn from(authentication: ManualAuthentication) -> Self {
        match authentication {
            ManualAuthentication::Sas { device_id_pk } => Self {
                method: AuthenticationMethod::Sas,
                device_id_pk: Some(device_id_pk),
                identity_cert: None,
                identity_pk: None,
                csr_subject: None,
                identity_auto_renew: None,
            },
            ManualAuthentication::X509 { identity_cert, identity_pk, csr_subject, identity_auto_renew } => Self {
                method: AuthenticationMethod::X509,
                device_id_pk: None,
                identity_cert: Some(identity_cert),
                identity_pk: Some(identity_pk),
                csr_subject,
                identity_auto_renew,
            },
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AttestationMethod {
    SymmetricKey,
    X509,
    Tpm,
}

#[derive(Serialize, Deserialize)]
struct RawAttestation {
    method: AttestationMethod,
    registration_id: Option<Subject>,
    symmetric_key: Option<String>,
    identity_cert: Option<String>,
    identity_pk: Option<String>,
    identity_auto_renew: Option<AutoRenew>,
}

impl TryFrom<RawAttestation> for Attestation {
    type Error = Invalid;

    fn try_from(raw: RawAttestation) -> Result<Self, Self::Error> {
        let table = "provisioning.attestation";
        let plain = |id: Option<Subject>, method, with| match id {
            Some(Subject::CommonName(id)) => Ok(id),
            Some(Subject::Attributes(_)) => Err(Invalid::RegistrationIdTable(method)),
            None => Err(Invalid::Missing { key: "registration_id", table, with }),
        };
        match raw.method {
            AttestationMethod::SymmetricKey => {
                let with = "method = \"symmetric_key\"";
                let missing = |key| Invalid::Missing { key, table, with };
                Ok(Self::SymmetricKey {
                    registration_id: plain(raw.registration_id, "symmetric_key", with)?,
                    symmetric_key: raw.symmetric_key.ok_or(missing("symmetric_key"))?,
                })
            }
            AttestationMethod::X509 => {
                let missing = |key| Invalid::Missing { key, table, with: "method = \"x509\"" };
                Ok(Self::X509 {
                    registration_id: raw.registration_id,
                    identity_cert: raw.identity_cert.ok_or(missing("identity_cert"))?,
                    identity_pk: raw.identity_pk.ok_or(missing("identity_pk"))?,
                    identity_auto_renew: raw.identity_auto_renew,
                })
            }
            AttestationMethod::Tpm => {
                Ok(Self::Tpm { registration_id: plain(raw.registration_id, "tpm", "method = \"tpm\"")? })
            }
        }
    }
}

impl From<Attestation> for RawAttestation {
    fn from(attestation: Attestation) -> Self {
        let of = |method, registration_id| Self {
            method,
            registration_id,
            symmetric_key: None,
            identity_cert: None,
            identity_pk: None,
            identity_auto_renew: None,
        };
        match attestation {
            Attestation::SymmetricKey { registration_id, symmetric_key } => Self {
                symmetric_key: Some(symmetric_key),
                ..of(AttestationMethod::SymmetricKey, Some(Subject::CommonName(registration_id)))
            },
            Attestation::X509 { registration_id, identity_cert, identity_pk, identity_auto_renew } => Self {
                identity_cert: Some(identity_cert),
                identity_pk: Some(identity_pk),
                identity_auto_renew,
                ..of(AttestationMethod::X509, registration_id)
            },
            Attestation::Tpm { registration_id } => {
                of(AttestationMethod::Tpm, Some(Subject::CommonName(registration_id)))
            }
        }
    }
}
