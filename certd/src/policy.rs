//! Whether a certificate request stays within what the operator allows for its certificate. Where nothing is configured, all is
//! granted: nothing here has an opinion of its own.

use std::net::{Ipv4Addr, Ipv6Addr};

use aziot_certd_api::config::Policy;
use aziot_pki::{Extension, request::Request};
use x509_cert::{
    der::{Decode, Error as DerError, asn1::ObjectIdentifier, oid::AssociatedOid},
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName, name::GeneralName},
};

/// Why a request is not granted. The text goes to whoever sent it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It would be a certificate authority.
    #[error("the policy of this certificate does not allow a certificate authority")]
    Authority,
    /// It could be used for something else, or for anything.
    #[error("the policy of this certificate does not allow the extended key usage {usage}")]
    Usage { usage: String },
    /// It would be good for another name.
    #[error("the policy of this certificate does not allow the name {name:?}")]
    Name { name: String },
    /// Somebody else may read something else in it.
    #[error(
        "the policy of this certificate cannot be applied: the request asks for extensions more than once, or unreadably"
    )]
    Ambiguous,
    /// What it asks for cannot be read.
    #[error("the policy of this certificate cannot be applied: the extension {oid} is malformed")]
    Malformed { oid: ObjectIdentifier, source: DerError },
}

/// Refuses a request that asks for more than `policy` allows.
pub(crate) fn check(policy: &Policy, request: &Request) -> Result<(), Refused> {
    if *policy == Policy::default() {
        return Ok(());
    }
    // A server that gets the whole request may read what is not looked at here.
    if request.is_ambiguous() {
        return Err(Refused::Ambiguous);
    }
    if !policy.ca && (is_authority(request)? || may_sign_certificates(request)?) {
        return Err(Refused::Authority);
    }
    if let Some(allowed) = &policy.extended_key_usages {
        let asked = all::<ExtendedKeyUsage>(request)?;
        if asked.is_empty() {
            return Err(Refused::Usage { usage: "\"any\", which is meant by naming none".to_owned() });
        }
        for usage in asked.iter().flat_map(|usages| &usages.0) {
            let usage = usage.to_string();
            if !allowed.iter().any(|allowed| allowed.dotted() == usage) {
                return Err(Refused::Usage { usage });
            }
        }
    }
    if let Some(allowed) = &policy.names {
        for name in all::<SubjectAltName>(request)?.iter().flat_map(|names| &names.0) {
            let text = text(name);
            if !text.as_ref().is_some_and(|text| allowed.iter().any(|glob| glob.matches(text))) {
                return Err(Refused::Name { name: text.unwrap_or_else(|| format!("{name:?}")) });
            }
        }
    }
    Ok(())
}

fn is_authority(request: &Request) -> Result<bool, Refused> {
    Ok(all::<BasicConstraints>(request)?.iter().any(|constraints| constraints.ca))
}

fn may_sign_certificates(request: &Request) -> Result<bool, Refused> {
    Ok(all::<KeyUsage>(request)?.iter().any(|usage| usage.0.contains(KeyUsages::KeyCertSign)))
}

/// Each extension of a kind: one that is there twice is not hidden by the other.
fn all<E: AssociatedOid + for<'a> Decode<'a, Error = DerError>>(request: &Request) -> Result<Vec<E>, Refused> {
    let of_kind = |extension: &&Extension| extension.extn_id == E::OID;
    let decoded = |extension: &Extension| {
        E::from_der(extension.extn_value.as_bytes()).map_err(|source| Refused::Malformed { oid: E::OID, source })
    };
    request.extensions().iter().filter(of_kind).map(decoded).collect()
}

/// The kinds of names that can be matched.
fn text(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) | GeneralName::UniformResourceIdentifier(name) => {
            Some(name.as_str().to_owned())
        }
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let version_4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).to_string());
            version_4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).to_string())).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use openssl::{
        ec::{EcGroup, EcKey},
        hash::MessageDigest,
        nid::Nid,
        pkey::{PKey, Private},
        sign::Signer,
        stack::Stack,
        x509::{X509Extension, X509ReqBuilder, extension},
    };
    use x509_cert::{
        der::{
            Encode as _,
            asn1::{BitString, SetOfVec},
        },
        request::CertReq,
    };

    use super::*;

    fn new_key() -> PKey<Private> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
        PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
    }

    /// Asks for a server certificate of these names.
    fn request(is_authority: bool, usages: &[&str], names: &[&str]) -> Request {
        let key = new_key();
        let mut builder = X509ReqBuilder::new().unwrap();
        builder.set_pubkey(&key).unwrap();
        let mut extensions = Stack::new().unwrap();
        if is_authority {
            extensions.push(extension::BasicConstraints::new().ca().build().unwrap()).unwrap();
            extensions.push(extension::KeyUsage::new().key_cert_sign().build().unwrap()).unwrap();
        }
        if !usages.is_empty() {
            let mut all = extension::ExtendedKeyUsage::new();
            for usage in usages {
                all.other(usage);
            }
            extensions.push(all.build().unwrap()).unwrap();
        }
        if !names.is_empty() {
            let mut all = extension::SubjectAlternativeName::new();
            for name in names {
                match name.split_once(':').unwrap() {
                    ("dns", name) => all.dns(name),
                    ("ip", name) => all.ip(name),
                    (_, name) => all.rid(name),
                };
            }
            extensions.push(all.build(&builder.x509v3_context(None)).unwrap()).unwrap();
        }
        builder.add_extensions(&extensions).unwrap();
        builder.sign(&key, MessageDigest::sha256()).unwrap();
        Request::from_der(&builder.build().to_der().unwrap()).unwrap()
    }

    fn policy(text: &str) -> Policy {
        aziot_config::load_str("policy", text).unwrap().value
    }

    #[test]
    fn without_a_limit_everything_is_granted() {
        let request = request(true, &["serverAuth"], &["dns:anything", "rid:1.2.3"]);
        assert!(check(&policy(""), &request).is_ok());
    }

    #[test]
    fn an_authority_is_refused_where_it_is_not_allowed() {
        let policy = policy("ca = false");
        assert!(matches!(check(&policy, &request(true, &[], &[])), Err(Refused::Authority)));
        assert!(check(&policy, &request(false, &[], &["dns:x"])).is_ok());
    }

    #[test]
    fn usages_must_be_among_those_allowed() {
        let policy = policy("extended_key_usages = [\"serverAuth\", \"1.2.3.4\"]");
        assert!(check(&policy, &request(false, &["serverAuth", "1.2.3.4"], &[])).is_ok());
        for usages in [&["serverAuth", "clientAuth"][..], &["2.5.29.37.0"], &[]] {
            assert!(matches!(check(&policy, &request(false, usages, &[])), Err(Refused::Usage { .. })), "{usages:?}");
        }
    }

    #[test]
    fn names_must_match_a_pattern() {
        let policy = policy("names = [\"*.example\", \"10.0.0.?\", \"fd00::*\"]");
        let allowed = ["dns:a.example", "dns:a.b.example", "ip:10.0.0.7", "ip:fd00::1"];
        assert!(check(&policy, &request(false, &[], &allowed)).is_ok());
        assert!(check(&policy, &request(false, &[], &[])).is_ok());
        for name in ["dns:example", "dns:a.example.org", "ip:10.0.1.7", "rid:1.2.3"] {
            let refused = check(&policy, &request(false, &[], &["dns:a.example", name]));
            assert!(matches!(refused, Err(Refused::Name { .. })), "{name}");
        }
    }

    /// Asks twice: for what is harmless, and for a certificate authority.
    fn ambiguous(second: ObjectIdentifier) -> Request {
        let key = new_key();
        let asking_for = |extension: X509Extension| {
            let mut builder = X509ReqBuilder::new().unwrap();
            builder.set_pubkey(&key).unwrap();
            let mut extensions = Stack::new().unwrap();
            extensions.push(extension).unwrap();
            builder.add_extensions(&extensions).unwrap();
            builder.sign(&key, MessageDigest::sha256()).unwrap();
            CertReq::from_der(&builder.build().to_der().unwrap()).unwrap()
        };
        let mut request = asking_for(extension::KeyUsage::new().digital_signature().build().unwrap());
        let authority = asking_for(extension::BasicConstraints::new().ca().build().unwrap());
        let mut attribute = authority.info.attributes.iter().next().unwrap().clone();
        let mut attributes: Vec<_> = request.info.attributes.iter().cloned().collect();
        if attributes[0].oid == second {
            let values = attributes[0].values.iter().chain(attribute.values.iter()).cloned().collect::<Vec<_>>();
            attributes[0].values = SetOfVec::try_from(values).unwrap();
        } else {
            attribute.oid = second;
            attributes.push(attribute);
        }
        request.info.attributes = SetOfVec::try_from(attributes).unwrap();
        let mut signer = Signer::new(MessageDigest::sha256(), &key).unwrap();
        let signature = signer.sign_oneshot_to_vec(&request.info.to_der().unwrap()).unwrap();
        request.signature = BitString::from_bytes(&signature).unwrap();
        Request::from_der(&request.to_der().unwrap()).unwrap()
    }

    #[test]
    fn what_a_server_may_read_otherwise_is_refused_where_anything_is_limited() {
        for second in ["1.2.840.113549.1.9.14", "1.3.6.1.4.1.311.2.1.14"] {
            let request = ambiguous(ObjectIdentifier::new_unwrap(second));
            assert!(matches!(check(&policy("ca = false"), &request), Err(Refused::Ambiguous)), "{second}");
            assert!(check(&policy(""), &request).is_ok());
        }
    }
}
