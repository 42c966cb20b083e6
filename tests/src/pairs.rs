//! Certificates and key pairs of a device, as its services tell them and as they lie in their folders: whether they belong together, and what
//! is left of them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use openssl::{bn::BigNumContext, ec::PointConversionForm, pkey::Id, sha::sha256, x509::X509};
use serde_json::json;

use crate::{Daemon, Device, calls::VERSION, hex, raw};

impl Device {
    /// A certificate as the service has it; `None` if there is none.
    pub fn certificate(&self, id: &str) -> Result<Option<String>> {
        let target = format!("/certificates/{id}?{VERSION}");
        let reply = raw::call(&self.socket(Daemon::Certificates), "GET", &target, None)?;
        match reply.status {
            400 => Ok(None),
            _ => reply.expect(200)?.text("/pem").map(Some),
        }
    }

    /// Deletes a certificate if it is there.
    pub fn delete_certificate(&self, id: &str) -> Result<()> {
        if self.certificate(id)?.is_none() {
            return Ok(());
        }
        let target = format!("/certificates/{id}?{VERSION}");
        raw::call(&self.socket(Daemon::Certificates), "DELETE", &target, None)?.expect(204).map(|_| ())
    }

    /// Public half of a key pair as the key service tells it: a compressed point, or modulus and exponent. `None` if there is no such pair.
    pub fn public_key(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let Some(handle) = self.key_pair(id)? else { return Ok(None) };
        let parameter = |name: &str| -> Result<String> {
            let body = json!({ "keyHandle": handle }).to_string();
            let target = format!("/parameters/{name}?{VERSION}");
            raw::call(&self.socket(Daemon::Keys), "POST", &target, Some(&body))?.expect(200)?.text("/value")
        };
        let bytes = |name: &str| STANDARD.decode(parameter(name)?).with_context(|| format!("{name} is not base64"));
        if parameter("algorithm")? == "RSA" {
            return Ok(Some([bytes("rsa-modulus")?, bytes("rsa-exponent")?].concat()));
        }
        bytes("ec-point").map(Some)
    }

    fn key_pair(&self, id: &str) -> Result<Option<String>> {
        let reply = raw::call(&self.socket(Daemon::Keys), "GET", &format!("/keypair/{id}?{VERSION}"), None)?;
        match reply.status {
            400 => Ok(None),
            _ => reply.expect(200)?.text("/keyHandle").map(Some),
        }
    }

    /// Deletes a key pair if it is there.
    pub fn delete_key(&self, id: &str) -> Result<()> {
        let Some(handle) = self.key_pair(id)? else { return Ok(()) };
        let body = json!({ "keyHandle": handle }).to_string();
        let target = format!("/keypair?{VERSION}");
        raw::call(&self.socket(Daemon::Keys), "DELETE", &target, Some(&body))?.expect(204).map(|_| ())
    }

    /// Fails unless the stored certificate is for the key pair of the same id.
    pub fn check_pair(&self, id: &str) -> Result<()> {
        let pem = fs::read(self.certificate_file(id)).with_context(|| format!("no certificate {id}"))?;
        let leaf = X509::from_pem(&pem).with_context(|| format!("the certificate {id} is not PEM"))?;
        let key = leaf.public_key()?;
        let public = if key.id() == Id::RSA {
            let key = key.rsa()?;
            [key.n().to_vec(), key.e().to_vec()].concat()
        } else {
            let (key, mut context) = (key.ec_key().context("neither RSA nor EC")?, BigNumContext::new()?);
            key.public_key().to_bytes(key.group(), PointConversionForm::COMPRESSED, &mut context)?
        };
        let held = self.public_key(id)?.with_context(|| format!("no key pair {id}"))?;
        ensure!(public == held, "the certificate {id} is for another key than the key pair {id}");
        Ok(())
    }

    /// File of a stored certificate: certs.md, 3.2.
    #[must_use]
    pub fn certificate_file(&self, id: &str) -> PathBuf {
        self.certificates().join(file_name(id, "cer"))
    }

    /// Where certificates are stored.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.path("var/lib/aziot/certd/certs")
    }

    /// File of a key pair that is not on a token.
    #[must_use]
    pub fn key_file(&self, id: &str) -> PathBuf {
        self.path("var/lib/aziot/keyd/keys").join(file_name(id, "key"))
    }
}

fn file_name(id: &str, extension: &str) -> String {
    let letters: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{letters}-{}.{extension}", hex::encode(&sha256(id.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn file_names_are_those_of_the_public_service() {
        let expected = "estid-c45f3e96a312cc524fecceddbc40dfc2aa789eae911d8bc7dd4eda19b93be900.cer";
        assert_eq!(file_name("est-id", "cer"), expected);
    }
}
