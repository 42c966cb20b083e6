//! What a client certificate is worth: whether it is the one with this thumbprint, or leads to this authority and bears this name.
//!
//! The handshake has proved that the client holds the key. The time is given by the caller: the simulator's clock may be another than the system's.

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::nid::Nid;
use openssl::stack::Stack;
use openssl::x509::store::{X509Store, X509StoreBuilder, X509StoreRef};
use openssl::x509::verify::{X509VerifyFlags, X509VerifyParam};
use openssl::x509::{X509, X509NameRef, X509PurposeId, X509StoreContext};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clients::ClientChain;
use crate::thumbprint::Thumbprint;

/// Why a certificate proves nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the client showed no certificate")]
    Missing,
    #[error("the client certificate cannot be read")]
    Malformed(#[source] ErrorStack),
    #[error("the client certificate {subject:?} is not accepted: {reason}")]
    Chain { subject: String, reason: String },
    #[error("the client certificate {subject:?} has the thumbprint {found}, which is not this identity's")]
    Thumbprint { subject: String, found: Thumbprint },
    #[error("the client certificate {subject:?} does not have the common name {expected:?}")]
    CommonName { subject: String, expected: String },
}

/// How a name in a certificate is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// As DPS takes registration ids.
    Ignored,
    /// As a hub takes device ids.
    Counts,
}

/// What a client showed in its handshake.
pub(crate) struct ClientCertificate {
    pub(crate) leaf: X509,
    issuers: Stack<X509>,
}

impl ClientCertificate {
    pub(crate) fn read(chain: Option<&ClientChain>) -> Result<Self, Error> {
        Self::from_der(chain.ok_or(Error::Missing)?.certificates())
    }

    /// Reads a chain of DER, the leaf first.
    pub(crate) fn from_der<'a>(mut chain: impl Iterator<Item = &'a [u8]>) -> Result<Self, Error> {
        let leaf = X509::from_der(chain.next().unwrap_or_default()).map_err(Error::Malformed)?;
        let mut issuers = Stack::new().map_err(Error::Malformed)?;
        for certificate in chain {
            let certificate = X509::from_der(certificate).map_err(Error::Malformed)?;
            issuers.push(certificate).map_err(Error::Malformed)?;
        }
        Ok(Self { leaf, issuers })
    }

    pub(crate) fn thumbprint(&self) -> Result<Thumbprint, Error> {
        self.leaf.to_der().map(|der| Thumbprint::sha256_of(&der)).map_err(Error::Malformed)
    }

    /// Accepts the certificate if it has one of the thumbprints and is valid at `now` (Unix seconds). Who issued it does not count: it may be itself.
    pub(crate) fn check_thumbprint(&self, expected: &[Thumbprint], now: i64) -> Result<(), Error> {
        let der = self.leaf.to_der().map_err(Error::Malformed)?;
        if !expected.iter().any(|thumbprint| thumbprint.is_of(&der)) {
            return Err(Error::Thumbprint { subject: self.subject(), found: self.thumbprint()? });
        }
        let now = Asn1Time::from_unix(now).map_err(Error::Malformed)?;
        match (self.leaf.not_before() > &*now, self.leaf.not_after() < &*now) {
            (true, _) => Err(self.refused("it is not yet valid")),
            (_, true) => Err(self.refused("it has expired")),
            _ => Ok(()),
        }
    }

    /// Accepts the certificate if it leads to one of the anchors at `now` (Unix seconds), through issuers that the client sent, and is for `name`.
    pub(crate) fn check_authority(
        &self,
        anchors: &TrustAnchors,
        name: &str,
        case: Case,
        now: i64,
    ) -> Result<(), Error> {
        let store = anchors.store(now).map_err(Error::Malformed)?;
        let anchor = self.verify(&store)?;
        if anchor == self.leaf {
            return Err(self.refused("it is the enrolled authority's own certificate"));
        }
        self.check_name(name, case)
    }

    /// Accepts the certificate if its one common name is `name`.
    pub(crate) fn check_name(&self, name: &str, case: Case) -> Result<(), Error> {
        let bears_name = self.common_name().is_some_and(|found| match case {
            Case::Ignored => found.eq_ignore_ascii_case(name),
            Case::Counts => found == name,
        });
        if bears_name { Ok(()) } else { Err(Error::CommonName { subject: self.subject(), expected: name.to_owned() }) }
    }

    /// Verifies the chain up to a certificate of `trusted`, with only those issuers that the client sent, and returns where it ends.
    pub(crate) fn verify(&self, trusted: &X509StoreRef) -> Result<X509, Error> {
        let verified = || {
            X509StoreContext::new()?.init(trusted, &self.leaf, &self.issuers, |context| {
                if !context.verify_cert()? {
                    return Ok(Err(context.error().error_string()));
                }
                let anchor = context.chain().and_then(|chain| chain.iter().last()).map(ToOwned::to_owned);
                Ok(Ok(anchor.unwrap_or_else(|| self.leaf.clone())))
            })
        };
        verified().map_err(Error::Malformed)?.map_err(|reason| self.refused(reason))
    }

    fn common_name(&self) -> Option<String> {
        let mut names = self.leaf.subject_name().entries_by_nid(Nid::COMMONNAME);
        // With two of them it would be a matter of taste whose certificate this is.
        let name = names.next().filter(|_| names.next().is_none())?;
        name.data().to_string().ok()
    }

    fn subject(&self) -> String {
        subject_text(self.leaf.subject_name())
    }

    fn refused(&self, reason: &str) -> Error {
        Error::Chain { subject: self.subject(), reason: reason.to_owned() }
    }
}

/// A name for people: `CN=pump, O=Contoso`.
pub(crate) fn subject_text(name: &X509NameRef) -> String {
    let entries = name.entries().map(|entry| {
        let value = entry.data().to_string().unwrap_or_default();
        format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    });
    entries.collect::<Vec<_>>().join(", ")
}

/// Certificates of authorities, roots or not, at which a chain may end; in files as PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrustAnchors(Vec<X509>);

impl TrustAnchors {
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, ErrorStack> {
        X509::stack_from_pem(pem).map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As the cloud trusts them: an enrolled intermediate authority is enough, its root need not be known.
    fn store(&self, now: i64) -> Result<X509Store, ErrorStack> {
        let mut store = X509StoreBuilder::new()?;
        for anchor in &self.0 {
            store.add_cert(anchor.clone())?;
        }
        let mut parameters = X509VerifyParam::new()?;
        parameters.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
        parameters.set_purpose(X509PurposeId::SSL_CLIENT)?;
        parameters.set_time(now);
        store.set_param(&parameters)?;
        Ok(store.build())
    }
}

impl Serialize for TrustAnchors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let pem: Result<Vec<_>, _> = self.0.iter().map(|anchor| anchor.to_pem()).collect();
        let pem = pem.map_err(serde::ser::Error::custom)?.concat();
        serializer.serialize_str(&String::from_utf8_lossy(&pem))
    }
}

impl<'de> Deserialize<'de> for TrustAnchors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pem = String::deserialize(deserializer)?;
        Self::from_pem(pem.as_bytes()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use openssl::hash::MessageDigest;
    use openssl::x509::X509NameBuilder;

    use super::*;
    use crate::certificates::{begin, new_authority, new_key};

    #[test]
    fn a_certificate_with_two_common_names_is_nobodys() {
        let authority = new_authority("test", None).unwrap();
        let anchors = TrustAnchors::from_pem(&authority.certificate.to_pem().unwrap()).unwrap();
        let now = jiff::Timestamp::now().as_second();
        let check = |names: &[&str], name: &str, case| {
            let key = new_key().unwrap();
            let mut builder = begin(&key, now - 60, now + 60).unwrap();
            let mut subject = X509NameBuilder::new().unwrap();
            for name in names {
                subject.append_entry_by_nid(Nid::COMMONNAME, name).unwrap();
            }
            builder.set_subject_name(&subject.build()).unwrap();
            builder.set_issuer_name(authority.certificate.subject_name()).unwrap();
            builder.sign(&authority.key, MessageDigest::sha256()).unwrap();
            let der = builder.build().to_der().unwrap();
            let client = ClientCertificate::from_der(std::iter::once(der.as_slice())).unwrap();
            client.check_authority(&anchors, name, case, now).is_ok()
        };
        assert!(check(&["pump"], "Pump", Case::Ignored) && !check(&["pump"], "Pump", Case::Counts));
        assert!(check(&["pump"], "pump", Case::Counts));
        for names in [&["pump", "pump"][..], &["valve", "pump"], &["pump", "valve"], &[]] {
            assert!(!check(names, "pump", Case::Ignored), "{names:?}");
        }
    }

    #[test]
    fn authorities_are_kept_as_pem() {
        let pem = new_authority("test", None).unwrap().certificate.to_pem().unwrap();
        let anchors = TrustAnchors::from_pem(&pem).unwrap();
        let kept = serde_json::to_string(&anchors).unwrap();
        assert!(kept.starts_with("\"-----BEGIN CERTIFICATE-----"));
        assert_eq!(serde_json::from_str::<TrustAnchors>(&kept).unwrap(), anchors);
        assert!(serde_json::from_str::<TrustAnchors>("\"\"").unwrap().is_empty());
    }
}
