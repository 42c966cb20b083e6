//! What the Edge CA's certificate shall say: its subject and extensions, as the public runtime asks for them.

use std::collections::BTreeMap;

use aziot_edged_api::config;
use aziot_pki::{
    Extension, Name, OctetString,
    name::{self, NameError, cut_common_name},
};
use x509_cert::{
    der::{self, Encode, flagset::FlagSet, oid::AssociatedOid},
    ext::pkix::{BasicConstraints, KeyUsage, KeyUsages},
};

/// The configured subject, or the one that the public runtime gives a device's CA. A common name is cut where it is too long.
pub(super) fn subject(config: &config::EdgeCa, device_id: &str) -> Result<Name, NameError> {
    match config {
        config::EdgeCa { common_name: Some(name), .. } => name::from_entries([("CN", cut_common_name(name))]),
        config::EdgeCa { subject: Some(parts), .. } => {
            let is_common_name = |attribute: &str| ["CN", "commonName", "2.5.4.3"].contains(&attribute);
            let cut = |name, value| if is_common_name(name) { cut_common_name(value) } else { value };
            let parts: BTreeMap<&str, &str> =
                parts.iter().map(|(name, value)| (name.as_str(), cut(name, value))).collect();
            name::from_entries(parts)
        }
        _ => name::from_entries([("CN", cut_common_name(&format!("aziot-edge CA {device_id}")))]),
    }
}

/// Key usage and basic constraints, both critical: a CA whose certificates issue nothing.
pub(super) fn extensions() -> der::Result<Vec<Extension>> {
    let usage = KeyUsage(FlagSet::from(KeyUsages::DigitalSignature) | KeyUsages::KeyCertSign);
    let constraints = BasicConstraints { ca: true, path_len_constraint: Some(0) };
    Ok(vec![critical(&usage)?, critical(&constraints)?])
}

fn critical<E: AssociatedOid + Encode>(extension: &E) -> der::Result<Extension> {
    Ok(Extension { extn_id: E::OID, critical: true, extn_value: OctetString::new(extension.to_der()?)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(config: &config::EdgeCa, device_id: &str) -> String {
        subject(config, device_id).unwrap().to_string()
    }

    #[test]
    fn subjects_are_those_of_the_specification() {
        let mut config = config::EdgeCa::default();
        assert_eq!(shown(&config, "dev-1"), "CN=aziot-edge CA dev-1");
        assert_eq!(shown(&config, &"d".repeat(128)), format!("CN=aziot-edge CA {}", "d".repeat(50)));
        let parts = [("O", "Contoso"), ("L", "AQ"), ("CN", &"c".repeat(65))];
        config.subject = Some(parts.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        // RFC 4514 writes the last part first.
        assert_eq!(shown(&config, "dev-1"), format!("O=Contoso,L=AQ,CN={}", "c".repeat(64)));
        config.common_name = Some("é".repeat(65));
        assert_eq!(subject(&config, "dev-1").unwrap(), name::from_entries([("CN", "é".repeat(64).as_str())]).unwrap());
        config.common_name = None;
        config.subject = Some([("nonsense".to_owned(), "x".to_owned())].into());
        assert!(subject(&config, "dev-1").unwrap_err().to_string().contains("nonsense"));
    }

    #[test]
    fn extensions_are_those_of_the_specification() {
        let written: Vec<_> = extensions().unwrap().iter().map(|extension| extension.to_der().unwrap()).collect();
        // digitalSignature and keyCertSign; CA with path length 0.
        assert_eq!(written[0], b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x02\x84");
        assert_eq!(written[1], b"\x30\x12\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x08\x30\x06\x01\x01\xff\x02\x01\x00");
    }
}
