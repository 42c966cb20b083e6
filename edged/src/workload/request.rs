//! The keys of modules' certificates, and the requests for them, as the public runtime makes them (RFC 2986, version 1).
//!
//! Blocks for as long as it takes to find two primes. What a certificate says beyond this is up to who issues it.

use std::net::IpAddr;

use aziot_http::SecretText;
use aziot_pki::name::cut_common_name;
use openssl::{
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
    stack::Stack,
    x509::{
        X509Name, X509Req,
        extension::{ExtendedKeyUsage, SubjectAlternativeName},
    },
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use super::{Device, Error};
use crate::identities::container_name;

/// Bits of the modulus.
const RSA_BITS: u32 = 2048;
/// Bytes of a host name (RFC 1035, section 2.3.4).
const LONGEST_HOST_NAME: usize = 253;
/// What a segment of a path needs no escape for (RFC 3986, section 3.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Whom a certificate names, and what for. Made only of names that a certificate can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// Cut; TLS clients look at the alternative names, which are whole.
    common_name: String,
    /// In their order.
    names: Vec<AlternativeName>,
    purpose: Purpose,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AlternativeName {
    Dns(String),
    Address(String),
    Uri(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Server,
    Client,
}

impl Subject {
    /// Of a TLS server of the module, reached as `common_name`.
    pub(super) fn server(module_id: &str, common_name: &str) -> Result<Self, Error> {
        let is_possible = (1..=LONGEST_HOST_NAME).contains(&common_name.len()) && is_visible(common_name);
        if !is_possible {
            return Err(Error::CommonName);
        }
        let module = container_name(module_id);
        if !is_visible(module) {
            return Err(Error::ModuleName);
        }
        let first = match common_name.parse::<IpAddr>() {
            Ok(address) => AlternativeName::Address(address.to_string()),
            Err(_) => AlternativeName::Dns(common_name.to_owned()),
        };
        let names = vec![first, AlternativeName::Dns(module.to_owned())];
        Ok(Self { common_name: cut_common_name(common_name).to_owned(), names, purpose: Purpose::Server })
    }

    /// Of the module as a client of TLS servers.
    ///
    /// Verifiers of the public runtime look for the URI as the text of a DNS name; others for a URI where URIs stand.
    pub(super) fn identity(module_id: &str, device: &Device) -> Result<Self, Error> {
        if module_id.is_empty() || !is_visible(module_id) {
            return Err(Error::ModuleName);
        }
        let Device { hub_name, device_id } = device;
        let segment = |text| utf8_percent_encode(text, SEGMENT);
        let names = vec![
            AlternativeName::Dns(format!("URI: azureiot://{hub_name}/devices/{device_id}/modules/{module_id}")),
            AlternativeName::Uri(format!(
                "azureiot://{hub_name}/devices/{}/modules/{}",
                segment(device_id),
                segment(module_id)
            )),
        ];
        Ok(Self { common_name: cut_common_name(module_id).to_owned(), names, purpose: Purpose::Client })
    }
}

/// Names in a certificate are ASCII (RFC 5280, section 4.2.1.6), and nobody's has a blank.
fn is_visible(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A new key, and the request that it signed.
pub(super) struct Request {
    /// The key.
    pub(super) key: PKey<Private>,
    /// The key in PKCS#8, PEM.
    pub(super) private_key: SecretText,
    /// PKCS #10, PEM.
    pub(super) text: String,
}

impl Request {
    /// Makes both.
    pub(super) fn new(subject: &Subject) -> Result<Self, ErrorStack> {
        let key = PKey::from_rsa(Rsa::generate(RSA_BITS)?)?;
        let private_key = Zeroizing::new(key.private_key_to_pem_pkcs8()?);
        let private_key = SecretText::new(String::from_utf8_lossy(&private_key).into_owned());

        let mut request = X509Req::builder()?;
        let mut name = X509Name::builder()?;
        name.append_entry_by_nid(Nid::COMMONNAME, &subject.common_name)?;
        request.set_subject_name(&name.build())?;
        request.set_pubkey(&key)?;

        let mut names = SubjectAlternativeName::new();
        for alternative in &subject.names {
            match alternative {
                AlternativeName::Dns(name) => names.dns(name),
                AlternativeName::Address(address) => names.ip(address),
                AlternativeName::Uri(uri) => names.uri(uri),
            };
        }
        let mut purposes = ExtendedKeyUsage::new();
        match subject.purpose {
            Purpose::Server => purposes.server_auth(),
            Purpose::Client => purposes.client_auth(),
        };
        let mut extensions = Stack::new()?;
        extensions.push(names.build(&request.x509v3_context(None))?)?;
        extensions.push(purposes.build()?)?;
        request.add_extensions(&extensions)?;
        request.sign(&key, MessageDigest::sha256())?;
        let text = request.build().to_pem()?;
        Ok(Self { key, private_key, text: String::from_utf8_lossy(&text).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device { hub_name: "h.example.net".to_owned(), device_id: "dev#1".to_owned() }
    }

    /// A request as OpenSSL's own program reads it.
    fn shown(subject: &Subject) -> String {
        let made = Request::new(subject).unwrap();
        let request = X509Req::from_pem(made.text.as_bytes()).unwrap();
        assert!(request.verify(&made.key).unwrap());
        assert_eq!(request.version(), 0, "version 1");
        assert!(made.private_key.expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(PKey::private_key_from_pem(made.private_key.expose().as_bytes()).unwrap().bits(), RSA_BITS);
        // OpenSSL's versions set blanks differently.
        let text = String::from_utf8(request.to_text().unwrap()).unwrap().replace(" = ", "=");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn requests_for_servers_are_those_of_the_specification() {
        let text = shown(&Subject::server("$edgeHub", "gateway.local").unwrap());
        for part in [
            "Subject: CN=gateway.local Subject",
            "X509v3 Subject Alternative Name: DNS:gateway.local, DNS:edgeHub X509v3 Extended Key Usage: \
             TLS Web Server Authentication Signature",
            "Signature Algorithm: sha256WithRSAEncryption",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("critical"), "{text}");
        let text = shown(&Subject::server("m", "10.1.2.3").unwrap());
        assert!(text.contains("Alternative Name: IP Address:10.1.2.3, DNS:m "), "{text}");
        let text = shown(&Subject::server("m", "fd00::1").unwrap());
        assert!(text.contains("Alternative Name: IP Address:FD00:0:0:0:0:0:0:1, DNS:m "), "{text}");
    }

    #[test]
    fn requests_for_clients_have_the_uri_in_both_forms() {
        let text = shown(&Subject::identity("$edge#Hub", &device()).unwrap());
        for part in [
            "Subject: CN=$edge#Hub Subject",
            "Alternative Name: DNS:URI: azureiot://h.example.net/devices/dev#1/modules/$edge#Hub, \
             URI:azureiot://h.example.net/devices/dev%231/modules/$edge%23Hub X509v3 Extended Key Usage: \
             TLS Web Client Authentication Signature",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("critical"), "{text}");
    }

    #[test]
    fn a_long_name_is_cut_in_the_subject_alone() {
        let name = format!("{}.example.com", "g".repeat(63));
        let text = shown(&Subject::server("m", &name).unwrap());
        assert!(text.contains(&format!("CN={}. Subject", "g".repeat(63))), "{text}");
        assert!(text.contains(&format!(" DNS:{name}, DNS:m ")), "{text}");
        let module = "m".repeat(128);
        let text = shown(&Subject::identity(&module, &device()).unwrap());
        assert!(text.contains(&format!("CN={} Subject", "m".repeat(64))), "{text}");
        assert!(text.contains(&format!("/modules/{module}, URI:")), "{text}");
    }

    #[test]
    fn what_no_certificate_can_say_is_refused() {
        for name in ["", "a b", "a\n", "a\0b", "é", &"x".repeat(254)] {
            assert!(matches!(Subject::server("m", name), Err(Error::CommonName)), "{name:?}");
        }
        assert!(matches!(Subject::server("é", "a"), Err(Error::ModuleName)));
        assert!(matches!(Subject::identity("", &device()), Err(Error::ModuleName)));
    }
}
