//! Shared access signature tokens, built byte for byte as the public packages build them.
//!
//! The services hash the resource as the token spells it, so any encoding would do; this one is the public packages', except that `%`, `&`
//! and `+` are encoded too: raw, they would change what the token says.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{Error, Signer};

/// A token is made for one attempt of one request. It lasts much longer than that because device clocks are off by minutes.
pub const LIFETIME_SECONDS: u64 = 600;

const RESOURCE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'%')
    .add(b'&')
    .add(b'+');

/// What a token gives access to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    resource: String,
    policy: &'static str,
}

impl Audience {
    /// One registration at DPS.
    #[must_use]
    pub fn registration(scope_id: &str, registration_id: &str) -> Self {
        Self { resource: encode(&format!("{scope_id}/registrations/{registration_id}")), policy: "&skn=registration" }
    }

    /// The device at its hub; also when a gateway is asked in the hub's stead.
    #[must_use]
    pub fn device(hub_host: &str, device_id: &str) -> Self {
        Self { resource: encode(&format!("{hub_host}/devices/{device_id}")), policy: "" }
    }
}

fn encode(audience: &str) -> String {
    utf8_percent_encode(&audience.to_lowercase(), RESOURCE).to_string()
}

/// The value of an `Authorization` header that is good until `expiry`, in seconds since 1970.
pub async fn authorization(audience: &Audience, signer: &dyn Signer, expiry: u64) -> Result<String, Error> {
    let Audience { resource, policy } = audience;
    let signature = signer.sign(format!("{resource}\n{expiry}").into_bytes()).await.map_err(Error::Signing)?;
    let signature: String = form_urlencoded::byte_serialize(STANDARD.encode(signature).as_bytes()).collect();
    Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}{policy}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use openssl::{hash::MessageDigest, pkey::PKey, sign::Signer as OpensslSigner};

    use super::*;
    use crate::Signing;

    /// The key 00 01 .. 1f of the published vectors.
    pub(crate) struct VectorKey;

    impl Signer for VectorKey {
        fn sign(&self, message: Vec<u8>) -> Signing<'_> {
            Box::pin(async move {
                let key = PKey::hmac(&(0..32).collect::<Vec<u8>>())?;
                Ok(OpensslSigner::new(MessageDigest::sha256(), &key)?.sign_oneshot_to_vec(&message)?)
            })
        }
    }

    #[tokio::test]
    async fn tokens_are_those_of_the_specification() {
        const EXPIRY: u64 = 1_700_000_030;
        let dps = Audience::registration("0ne00ABCDEF", "Contoso-Device-01");
        assert_eq!(
            authorization(&dps, &VectorKey, EXPIRY).await.unwrap(),
            "SharedAccessSignature sr=0ne00abcdef/registrations/contoso-device-01\
             &sig=9hmCT1TsGns0sLOB78xOEEifTZRLkQjgXpi1Fjs45fY%3D&se=1700000030&skn=registration"
        );
        let hub = Audience::device("Example-Hub.azure-devices.net", "Contoso-Device-01");
        assert_eq!(
            authorization(&hub, &VectorKey, EXPIRY).await.unwrap(),
            "SharedAccessSignature sr=example-hub.azure-devices.net/devices/contoso-device-01\
             &sig=SSZqwvHpXWiaL%2Fz%2FMdEszkMMxJtRKHgKaVrOKsQJDRc%3D&se=1700000030"
        );
        let encoded = Audience::device("myhub.azure-devices.net", "dev=1#a");
        assert_eq!(encoded.resource, "myhub.azure-devices.net/devices/dev%3D1%23a");
        assert_eq!(
            authorization(&encoded, &VectorKey, EXPIRY).await.unwrap(),
            "SharedAccessSignature sr=myhub.azure-devices.net/devices/dev%3D1%23a\
             &sig=Ql0vK0nBZmUfqwrZHQeoIkNELTw3CxN4yubyikW5GKY%3D&se=1700000030"
        );
    }

    #[test]
    fn what_would_change_the_token_is_encoded() {
        assert_eq!(Audience::device("h", "a%b&c+d:e$f'é").resource, "h/devices/a%25b%26c%2Bd:e$f'%C3%A9");
    }
}
