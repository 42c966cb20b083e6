//! Identities as callers see them. The order of the members is part of the contract.

use aziot_http::SecretBytes;
use aziot_keyd_api::key::KeyHandle;
use serde::{Deserialize, Serialize};

/// Who somebody is, and what proves it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", content = "spec", rename_all = "lowercase")]
pub enum Identity {
    /// A device or module of the hub.
    Aziot(AziotIdentity),
    /// A name within the local network.
    Local(LocalIdentity),
}

/// A device, or one of its modules, at the hub.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AziotIdentity {
    /// Host name of the hub.
    pub hub_name: String,
    /// Host to connect to: the hub's own name unless a parent gateway stands before it.
    pub gateway_host: String,
    /// Name of the device.
    pub device_id: String,
    /// Name of the module; absent for the device itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_id: Option<String>,
    /// The hub's generation id of the module; absent for the device itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_id: Option<String>,
    /// What proves the identity; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Authentication>,
    /// Who looks after the module, as the hub reports it. An addition of ours; public clients ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

/// What proves an identity of the hub. Private keys stay in the key service. Their handles change from time to time:
/// the same one may come again for about a second, and none is good for ever.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Authentication {
    /// Shared access signatures made with this key.
    Sas {
        /// Handle of a symmetric key in the key service.
        key_handle: KeyHandle,
    },
    /// A TLS client certificate.
    X509 {
        /// Handle of a key pair in the key service.
        key_handle: KeyHandle,
        /// Name of the certificate in the certificate service.
        cert_id: String,
    },
    /// Signatures made by the TPM service.
    Tpm,
}

/// A certificate for a name of the local network, and its private key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalIdentity {
    /// Name of the module.
    pub module_id: String,
    /// What proves it.
    pub auth: LocalAuthentication,
}

/// Certificate and private key of a local identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalAuthentication {
    /// PKCS#8, PEM.
    pub private_key: Pem,
    /// PEM, perhaps with its chain.
    pub certificate: String,
    /// End of the certificate's validity, RFC 3339 with `+00:00`.
    pub expiration: String,
}

/// PEM text of a private key: `Debug` prints `[redacted]`, dropping wipes it.
#[derive(Clone, Debug)]
pub struct Pem(pub SecretBytes);

impl Serialize for Pem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = std::str::from_utf8(self.0.expose()).map_err(|_| serde::ser::Error::custom("PEM is ASCII"))?;
        serializer.serialize_str(text)
    }
}

impl<'de> Deserialize<'de> for Pem {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(SecretBytes::new(String::deserialize(deserializer)?.into_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(auth: Option<Authentication>) -> AziotIdentity {
        AziotIdentity {
            hub_name: "h".into(),
            gateway_host: "g".into(),
            device_id: "d".into(),
            module_id: None,
            gen_id: None,
            auth,
            managed_by: None,
        }
    }

    fn json(spec: AziotIdentity) -> String {
        serde_json::to_string(&Identity::Aziot(spec)).unwrap()
    }

    #[test]
    fn the_json_is_the_public_packages() {
        let key_handle = || KeyHandle("k".into());
        assert_eq!(
            json(device(Some(Authentication::Sas { key_handle: key_handle() }))),
            r#"{"type":"aziot","spec":{"hubName":"h","gatewayHost":"g","deviceId":"d","auth":{"type":"sas","keyHandle":"k"}}}"#
        );
        assert_eq!(
            json(device(Some(Authentication::X509 { key_handle: key_handle(), cert_id: "c".into() }))),
            r#"{"type":"aziot","spec":{"hubName":"h","gatewayHost":"g","deviceId":"d","auth":{"type":"x509","keyHandle":"k","certId":"c"}}}"#
        );
        assert_eq!(
            json(device(Some(Authentication::Tpm))),
            r#"{"type":"aziot","spec":{"hubName":"h","gatewayHost":"g","deviceId":"d","auth":{"type":"tpm"}}}"#
        );
        let module = AziotIdentity {
            module_id: Some("m".into()),
            gen_id: Some("1".into()),
            managed_by: Some("iotedge".into()),
            ..device(None)
        };
        assert_eq!(
            json(module),
            r#"{"type":"aziot","spec":{"hubName":"h","gatewayHost":"g","deviceId":"d","moduleId":"m","genId":"1","managedBy":"iotedge"}}"#
        );
        let local = Identity::Local(LocalIdentity {
            module_id: "m".into(),
            auth: LocalAuthentication {
                private_key: Pem(SecretBytes::new(b"KEY".to_vec())),
                certificate: "CERT".into(),
                expiration: "2031-02-03T04:05:06+00:00".into(),
            },
        });
        assert_eq!(
            serde_json::to_string(&local).unwrap(),
            r#"{"type":"local","spec":{"moduleId":"m","auth":{"privateKey":"KEY","certificate":"CERT","expiration":"2031-02-03T04:05:06+00:00"}}}"#
        );
        assert!(!format!("{local:?}").contains("KEY\""));
    }
}
