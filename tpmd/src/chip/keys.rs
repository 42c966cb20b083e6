//! The TPM's own keys: the endorsement key, by which DPS knows the TPM, and the storage root key, below which imported keys lie.
//!
//! They come from seeds in the TPM: made again from the same template they are the same keys, until somebody clears the TPM. So a template
//! must not differ in one bit from what the public service has.

use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::structures::{Public, PublicBuffer};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};

use super::Error;
use super::connection::Connection;
use super::objects;
use super::session::{Encrypted, Library, authorized, with_object};

/// Public parts of the TPM's own keys, each a marshaled `TPM2B_PUBLIC`.
#[derive(Debug)]
pub(crate) struct PublicKeys {
    pub(crate) endorsement_key: Vec<u8>,
    pub(crate) storage_root_key: Vec<u8>,
}

/// The TPM's own keys.
#[derive(Clone, Copy)]
pub(super) struct RootKeys {
    pub(super) endorsement: KeyHandle,
    pub(super) storage: KeyHandle,
}

/// One of these keys, as it should be.
struct Kind {
    name: &'static str,
    persistent: u32,
    hierarchy: Hierarchy,
    /// Marshaled `TPMT_PUBLIC` up to the modulus.
    template: &'static [u8],
}

/// TCG EK Credential Profile, template L-1.
const ENDORSEMENT_KEY: Kind = Kind {
    name: "endorsement key",
    persistent: 0x8101_0001,
    hierarchy: Hierarchy::Endorsement,
    template: &[
        0x00, 0x01, 0x00, 0x0b, 0x00, 0x03, 0x00, 0xb2, // RSA, SHA-256, attributes
        0x00, 0x20, // policy: PolicySecret of the endorsement hierarchy
        0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, //
        0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa, //
        0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, // AES-128-CFB, no scheme
        0x08, 0x00, 0x00, 0x00, 0x00, 0x00, // 2048 bits, exponent 65537
    ],
};

/// TCG TPM v2.0 Provisioning Guidance, storage root key.
const STORAGE_ROOT_KEY: Kind = Kind {
    name: "storage root key",
    persistent: 0x8100_0001,
    hierarchy: Hierarchy::Owner,
    template: &[
        0x00, 0x01, 0x00, 0x0b, 0x00, 0x03, 0x04, 0x72, // RSA, SHA-256, attributes
        0x00, 0x00, // no policy
        0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, // AES-128-CFB, no scheme
        0x08, 0x00, 0x00, 0x00, 0x00, 0x00, // 2048 bits, exponent 65537
    ],
};

/// The modulus in a template: as many zeros as the key will have bytes. With none the TPM would derive another key.
const UNIQUE: [u8; 256] = [0; 256];

impl Kind {
    fn template(&self) -> Result<Public, Error> {
        Ok(Public::unmarshall(&[self.template, &[1, 0], &UNIQUE].concat())?)
    }
}

impl PublicKeys {
    /// A key that somebody else put there works as long as DPS takes it. It is another key than the one that comes from the template, and
    /// after a clear of the TPM it will not come back.
    pub(super) fn warn_of_others(&self) {
        for (kind, key) in [(ENDORSEMENT_KEY, &self.endorsement_key), (STORAGE_ROOT_KEY, &self.storage_root_key)] {
            if !key.get(2..).is_some_and(|area| area.starts_with(kind.template)) {
                tracing::warn!(
                    "the {} at {:#x} was not made from the template of this service; it is used as it is",
                    kind.name,
                    kind.persistent
                );
            }
        }
    }
}

impl Connection {
    /// Public parts of the TPM's own keys, as the TPM has them now.
    pub(super) fn public_keys(&mut self) -> Result<PublicKeys, Error> {
        let keys = self.root_keys()?;
        Ok(PublicKeys {
            endorsement_key: marshaled(&mut self.library, keys.endorsement)?,
            storage_root_key: marshaled(&mut self.library, keys.storage)?,
        })
    }

    /// The TPM's own keys, made if there are none.
    pub(super) fn root_keys(&mut self) -> Result<RootKeys, Error> {
        if let Some(keys) = self.root_keys {
            return Ok(keys);
        }
        let endorsement = find_or_create(&mut self.library, &ENDORSEMENT_KEY)?;
        let storage = find_or_create(&mut self.library, &STORAGE_ROOT_KEY)?;
        Ok(*self.root_keys.insert(RootKeys { endorsement, storage }))
    }
}

fn marshaled(library: &mut Library, key: KeyHandle) -> Result<Vec<u8>, Error> {
    let (public, ..) = library.read_public(key)?;
    Ok(PublicBuffer::try_from(public)?.marshall()?)
}

fn find_or_create(library: &mut Library, kind: &Kind) -> Result<KeyHandle, Error> {
    let &Kind { name, persistent, hierarchy, .. } = kind;
    if let Some(key) = objects::find(library, persistent)? {
        return Ok(key);
    }
    tracing::info!("there is no {name} at {persistent:#x}: making one, which may take a minute");
    let template = kind.template()?;
    // No key is there yet that could salt the session; the password is not sent all the same.
    let created = authorized(library, None, Encrypted::Nothing, |context| {
        Ok(context.create_primary(hierarchy, template, None, None, None, None)?)
    })?;
    let key = with_object(library, created.key_handle, |library, loaded| {
        objects::persist(library, loaded, loaded, persistent)
    })?;
    tracing::info!("made the {name} at {persistent:#x}");
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_taken_by_the_library_as_they_are() {
        for (kind, size) in [(ENDORSEMENT_KEY, 314), (STORAGE_ROOT_KEY, 282)] {
            let marshaled = kind.template().unwrap().marshall().unwrap();
            assert_eq!(marshaled.len(), size, "{}", kind.name);
            assert!(marshaled.starts_with(kind.template));
        }
    }
}
