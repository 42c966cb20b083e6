//! Shared access signatures: the tokens with which a device proves that it holds its symmetric key.
//!
//! Verified as the cloud does it: over the literal `sr` text that was sent, with the fields in any order. Which key and which resource count is
//! decided by the caller.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::key::SymmetricKey;

const SCHEME: &str = "SharedAccessSignature ";

/// What the public Identity Service encodes in a resource; `/`, `%`, `&`, `+` and `:` go out raw.
const RESOURCE: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'=').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}');

/// Why a token is refused. For the simulator's own log: the client only learns that it is unauthorized.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// There is no authorization header.
    #[error("the request has no authorization header")]
    Missing,
    /// The header is no shared access signature.
    #[error("the authorization header is malformed: {0}")]
    Malformed(&'static str),
    /// The token is for another resource.
    #[error("the token is for the resource {found:?}, expected {expected:?}")]
    Resource {
        /// The decoded, lower-case `sr` of the token.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The policy name (`skn`) is not the one that is wanted here.
    #[error("the token's policy name (skn) is {found:?}, expected {expected:?}")]
    Policy {
        /// The `skn` of the token.
        found: Option<String>,
        /// `registration` for DPS; none for a hub.
        expected: Option<&'static str>,
    },
    /// The token was valid once.
    #[error("the token expired {seconds_ago} s ago (se={expiry})")]
    Expired {
        /// Seconds since the end of its life.
        seconds_ago: i64,
        /// End of its life in Unix seconds.
        expiry: i64,
    },
    /// No key that counts here made this signature.
    #[error("the signature was not made with this identity's key")]
    Signature,
}

/// What a token must be to be accepted.
#[derive(Debug)]
pub struct Check<'a> {
    /// The resource it must be for, e.g. `hub/devices/d`; compared without regard to case.
    pub resource: &'a str,
    /// Keys of which one must have signed.
    pub keys: &'a [SymmetricKey],
    /// The policy that must be named.
    pub policy: Option<&'static str>,
    /// The present time in Unix seconds.
    pub now: i64,
    /// For how many seconds after its end a token is still taken.
    pub clock_skew: i64,
}

/// A token as it was sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    resource: String,
    expiry: String,
    expiry_seconds: i64,
    signature: Vec<u8>,
    policy: Option<String>,
}

impl Token {
    /// Reads the value of an authorization header.
    pub fn parse(header: &str) -> Result<Self, Error> {
        let (scheme, fields) =
            header.split_at_checked(SCHEME.len()).ok_or(Error::Malformed("it is no SharedAccessSignature"))?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(Error::Malformed("it is no SharedAccessSignature"));
        }
        let (mut resource, mut expiry, mut signature, mut policy) = (None, None, None, None);
        for field in fields.trim().split('&') {
            let (name, value) = field.split_once('=').ok_or(Error::Malformed("a field has no value"))?;
            let slot = match name {
                "sr" => &mut resource,
                "se" => &mut expiry,
                "sig" => &mut signature,
                "skn" => &mut policy,
                _ => continue, // other fields are not signed and mean nothing to the service
            };
            if slot.replace(value).is_some() {
                return Err(Error::Malformed("a field stands there twice"));
            }
        }
        let resource = resource.ok_or(Error::Malformed("sr is missing"))?;
        let expiry = expiry.ok_or(Error::Malformed("se is missing"))?;
        let signature = signature.ok_or(Error::Malformed("sig is missing"))?;
        let signature = percent_decode_str(signature).decode_utf8().map_err(|_| Error::Malformed("sig is no text"))?;
        Ok(Self {
            resource: resource.to_owned(),
            expiry: expiry.to_owned(),
            expiry_seconds: expiry.parse().map_err(|_| Error::Malformed("se is no number"))?,
            signature: STANDARD.decode(signature.as_ref()).map_err(|_| Error::Malformed("sig is not base64"))?,
            policy: policy.filter(|policy| !policy.is_empty()).map(ToOwned::to_owned),
        })
    }

    /// Accepts the token, or says what is wrong with it.
    pub fn verify(&self, check: &Check<'_>) -> Result<(), Error> {
        let found = percent_decode_str(&self.resource)
            .decode_utf8()
            .map_err(|_| Error::Malformed("sr is no text"))?
            .to_lowercase();
        if check.resource.to_lowercase() != found {
            return Err(Error::Resource { found, expected: check.resource.to_owned() });
        }
        if self.policy.as_deref() != check.policy {
            return Err(Error::Policy { found: self.policy.clone(), expected: check.policy });
        }
        let seconds_ago = check.now.saturating_sub(self.expiry_seconds);
        if seconds_ago > check.clock_skew {
            return Err(Error::Expired { seconds_ago, expiry: self.expiry_seconds });
        }
        let message = format!("{}\n{}", self.resource, self.expiry);
        let signed_by = |key: &SymmetricKey| {
            let expected = key.hmac_sha256(message.as_bytes());
            expected.len() == self.signature.len() && openssl::memcmp::eq(&expected, &self.signature)
        };
        if check.keys.iter().any(signed_by) { Ok(()) } else { Err(Error::Signature) }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Token")
            .field("resource", &self.resource)
            .field("expiry", &self.expiry)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Makes the value of an authorization header as the public Identity Service does, for tests of programs that talk to the simulator.
///
/// `resource` is raw (`hub/devices/d`), `expiry` is in Unix seconds, `policy` is `registration` for DPS.
#[must_use]
pub fn sign(resource: &str, key: &SymmetricKey, expiry: i64, policy: Option<&str>) -> String {
    let resource = utf8_percent_encode(&resource.to_lowercase(), RESOURCE).to_string();
    let signature = STANDARD.encode(key.hmac_sha256(format!("{resource}\n{expiry}").as_bytes()));
    let signature: String = form_urlencoded::byte_serialize(signature.as_bytes()).collect();
    let policy = policy.map(|policy| format!("&skn={policy}")).unwrap_or_default();
    format!("{SCHEME}sr={resource}&sig={signature}&se={expiry}{policy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRY: i64 = 1_700_000_030;
    const DPS: &str = "SharedAccessSignature sr=0ne00abcdef/registrations/contoso-device-01&sig=9hmCT1TsGns0sLOB78xOEEifTZRLkQjgXpi1Fjs45fY%3D&se=1700000030&skn=registration";
    const HUB: &str = "SharedAccessSignature sr=example-hub.azure-devices.net/devices/contoso-device-01&sig=SSZqwvHpXWiaL%2Fz%2FMdEszkMMxJtRKHgKaVrOKsQJDRc%3D&se=1700000030";

    fn key() -> SymmetricKey {
        SymmetricKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap()
    }

    fn verify_at(now: i64, header: &str, resource: &str, policy: Option<&'static str>) -> Result<(), Error> {
        Token::parse(header)?.verify(&Check { resource, keys: &[key()], policy, now, clock_skew: 0 })
    }

    fn verify_hub(header: &str) -> Result<(), Error> {
        verify_at(EXPIRY, header, "Example-Hub.azure-devices.net/devices/Contoso-Device-01", None)
    }

    #[test]
    fn worked_examples_are_made() {
        assert_eq!(sign("0ne00ABCDEF/registrations/Contoso-Device-01", &key(), EXPIRY, Some("registration")), DPS);
        assert_eq!(sign("Example-Hub.azure-devices.net/devices/Contoso-Device-01", &key(), EXPIRY, None), HUB);
        let encoded = sign("myhub.azure-devices.net/devices/dev=1#a", &key(), EXPIRY, None);
        assert_eq!(
            encoded,
            "SharedAccessSignature sr=myhub.azure-devices.net/devices/dev%3D1%23a&sig=Ql0vK0nBZmUfqwrZHQeoIkNELTw3CxN4yubyikW5GKY%3D&se=1700000030"
        );
    }

    #[test]
    fn worked_examples_are_accepted() {
        verify_at(EXPIRY, DPS, "0ne00ABCDEF/registrations/Contoso-Device-01", Some("registration")).unwrap();
        verify_hub(HUB).unwrap();
        let module = SymmetricKey::from_base64("ArP6yO6YhEctUO0cYXITd/CT+5ae5EsjdWmG3Rsdrgg=").unwrap();
        let resource = "myhub.azure-devices.net/devices/mydevice/modules/testmodule";
        let header = format!(
            "SharedAccessSignature sr={resource}&se=1700000030&sig=YHpgdLDycdQm29KWK3DjpD3XO7fvfqLYholeQHXPi88%3D"
        );
        let check = Check { resource, keys: &[module], policy: None, now: EXPIRY, clock_skew: 0 };
        Token::parse(&header).unwrap().verify(&check).unwrap();
    }

    #[test]
    fn order_and_encoding_of_the_fields_are_free() {
        // The signature covers the text as sent, so the fully encoded resource has one of its own.
        let sr = "Example-Hub.azure-devices.net%2Fdevices%2fContoso-Device-01";
        let signature = STANDARD.encode(key().hmac_sha256(format!("{sr}\n{EXPIRY}").as_bytes()));
        verify_hub(&format!("sharedaccesssignature se={EXPIRY}&skn=&sig={signature}&sr={sr}")).unwrap();
        assert_eq!(verify_hub(&HUB.replace('/', "%2F")).unwrap_err(), Error::Signature);
    }

    #[test]
    fn every_flaw_is_refused_with_its_reason() {
        let other = sign("example-hub.azure-devices.net/devices/other", &key(), EXPIRY, None);
        assert!(matches!(verify_hub(&other).unwrap_err(), Error::Resource { .. }));
        let resource = "example-hub.azure-devices.net/devices/contoso-device-01";
        assert_eq!(verify_hub(&sign(resource, &SymmetricKey::random(), EXPIRY, None)).unwrap_err(), Error::Signature);
        assert_eq!(verify_hub(&HUB.replace("1700000030", "1700000031")).unwrap_err(), Error::Signature);
        assert_eq!(verify_hub(&HUB.replace("SSZq", "SSZr")).unwrap_err(), Error::Signature);
        assert_eq!(
            verify_at(EXPIRY + 7, HUB, resource, None).unwrap_err(),
            Error::Expired { seconds_ago: 7, expiry: EXPIRY }
        );
        assert_eq!(
            verify_at(EXPIRY, HUB, resource, Some("registration")).unwrap_err(),
            Error::Policy { found: None, expected: Some("registration") }
        );
        assert!(matches!(verify_hub(&format!("{HUB}&skn=iothubowner")).unwrap_err(), Error::Policy { .. }));
    }

    #[test]
    fn no_signature_at_all_is_malformed() {
        for header in [
            "",
            "Bearer x",
            "SharedAccessSignature ",
            "SharedAccessSignature sr=a&se=1",
            "SharedAccessSignature sig=AAAA&se=1",
            "SharedAccessSignature sr=a&sig=AAAA",
            "SharedAccessSignature sr=a&sig=AAAA&se=soon",
            "SharedAccessSignature sr=a&sig=!&se=1",
            "SharedAccessSignature sr=a&sr=b&sig=AAAA&se=1",
            "SharedAccessSignaturé",
        ] {
            assert!(matches!(Token::parse(header), Err(Error::Malformed(_))), "{header}");
        }
    }

    #[test]
    fn debug_hides_the_signature() {
        assert!(!format!("{:?}", Token::parse(HUB).unwrap()).contains("sig"));
    }
}
