//! How the key that DPS sends gets into the TPM: the credential is activated, which gives the key of the inner wrapper, and with that the
//! duplicate is imported. Only this TPM can do either (TPM 2.0 Library, Part 1, "Credential Protection" and "Duplication").

use aziot_tpmd_api::config::AuthKeyIndex;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest, EncryptedSecret, IdObject, Nonce, Private, Public, SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};

use super::Error;
use super::auth_key;
use super::connection::Connection;
use super::keys::RootKeys;
use super::session::{Encrypted, Library, authorized, authorized_with, with_object, with_session};
use crate::blob::{Malformed, Parts};

/// What the blob holds, in the library's types.
pub(super) struct Blob {
    credential: IdObject,
    credential_seed: EncryptedSecret,
    duplicate: Private,
    duplicate_seed: EncryptedSecret,
    public: Public,
}

impl Blob {
    /// All that can be said about a blob without a TPM.
    pub(super) fn new(blob: &[u8]) -> Result<Blob, Error> {
        let parts = Parts::split(blob)?;
        let public = Public::unmarshall(parts.public_area).map_err(unknown("public area"))?;
        let length = public.marshall().map_err(unknown("public area"))?.len();
        if length != parts.public_area.len() {
            return Err(Malformed::Trailing("public area", parts.public_area.len().abs_diff(length)).into());
        }
        if !auth_key::can_sign(&public) {
            return Err(Error::NoSigningKey);
        }
        Ok(Blob {
            credential: parts.credential.try_into().map_err(unknown("credential"))?,
            credential_seed: parts.credential_seed.try_into().map_err(unknown("credential's seed"))?,
            duplicate: parts.duplicate.try_into().map_err(unknown("duplicate"))?,
            duplicate_seed: parts.duplicate_seed.try_into().map_err(unknown("duplicate's seed"))?,
            public,
        })
    }
}

/// The library's own error would read as if a TPM had been asked.
fn unknown(part: &'static str) -> impl Fn(tss_esapi::Error) -> Malformed {
    move |_| Malformed::Unknown(part)
}

impl Connection {
    /// Imports the key and has it take the place of the one before. All that can fail by the blob's fault comes before anything is replaced.
    pub(super) fn import(&mut self, blob: &Blob, index: AuthKeyIndex) -> Result<(), Error> {
        let keys = self.root_keys()?;
        self.auth_key = None;
        let library = &mut self.library;
        let private = unwrap(library, keys, blob)?;
        let loaded = library.execute_with_session(Some(AuthSession::Password), |context| {
            context.load(keys.storage, private, blob.public.clone())
        })?;
        let replaced = with_object(library, loaded, |library, loaded| {
            // Proof that it signs; the key before it is still there.
            auth_key::hmac(library, loaded, b"")?;
            auth_key::replace(library, keys.storage, loaded, index)
        })?;
        self.auth_key = Some(replaced);
        Ok(())
    }
}

/// The key as this TPM's storage root key wraps it.
fn unwrap(library: &mut Library, keys: RootKeys, blob: &Blob) -> Result<Private, Error> {
    let Blob { credential, credential_seed, duplicate, duplicate_seed, public } = blob;
    let (duplicate, duplicate_seed, public) = (duplicate.clone(), duplicate_seed.clone(), public.clone());
    let inner_key = activate(library, keys, credential.clone(), credential_seed.clone())?;
    let inner_key = Data::try_from(inner_key.value())?;
    authorized(library, Some(keys.storage), Encrypted::BothWays, |context| {
        Ok(context.import(
            keys.storage.into(),
            Some(inner_key),
            public,
            duplicate,
            duplicate_seed,
            SymmetricDefinitionObject::AES_128_CFB,
        )?)
    })
}

/// The key of the inner wrapper. The endorsement key wants a policy session in which the password of its hierarchy was proven.
fn activate(
    library: &mut Library,
    RootKeys { endorsement, storage }: RootKeys,
    credential: IdObject,
    seed: EncryptedSecret,
) -> Result<Digest, Error> {
    with_session(library, None, SessionType::Policy, |library, policy| {
        prove_endorsement(library, storage, policy)?;
        authorized_with(library, Some(storage), Encrypted::BothWays, Some(policy), |context| {
            Ok(context.activate_credential(storage, endorsement, credential, seed)?)
        })
    })
}

fn prove_endorsement(library: &mut Library, salt: KeyHandle, policy: AuthSession) -> Result<(), Error> {
    authorized(library, Some(salt), Encrypted::Nothing, |context| {
        let (nonce, command, reference) = (Nonce::default(), Digest::default(), Nonce::default());
        context.policy_secret(policy.try_into()?, AuthHandle::Endorsement, nonce, command, reference, None)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TPMT_PUBLIC` of an HMAC key without a password, and two bytes.
    fn public_area() -> Vec<u8> {
        [&[0, 8, 0, 0x0b, 0, 4, 0, 0x40, 0, 0, 0, 5, 0, 0x0b, 0, 32][..], &[7; 34]].concat()
    }

    fn refusal(public_area: &[u8]) -> Option<Error> {
        let size = u16::try_from(public_area.len()).unwrap().to_be_bytes();
        Blob::new(&[b"\0\x02ab\0\x01c\0\x03def\0\x01g", &size[..], public_area].concat()).err()
    }

    #[test]
    fn a_public_area_that_is_none_is_the_blobs_fault_and_not_the_tpms() {
        let mut area = public_area();
        assert!(refusal(&area[..48]).is_none());
        for (area, expected) in [
            (&b"\0"[..], Malformed::Unknown("public area")),
            (&area[..40], Malformed::Unknown("public area")),
            (&area[..], Malformed::Trailing("public area", 2)),
        ] {
            let error = refusal(area).unwrap();
            assert!(matches!(error, Error::Blob(found) if found == expected), "{error:?}");
            assert!(error.is_harmless() && !error.is_stale(), "{error:?}");
        }
        // Neither may it be used with its authorization value.
        area[7] = 0;
        assert!(matches!(refusal(&area[..48]), Some(Error::NoSigningKey)));
    }
}
