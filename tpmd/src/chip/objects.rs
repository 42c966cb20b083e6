//! Objects in the TPM: found at their persistent handles, put there and taken away.

use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::structures::{MaxBuffer, Name, Public};

use super::Error;
use super::code::Code;
use super::session::{Encrypted, Library, authorized};

/// The object at a persistent handle; `None` if the TPM says that there is none, and only then.
pub(super) fn find(library: &mut Library, persistent: u32) -> Result<Option<KeyHandle>, Error> {
    let handle = TpmHandle::Persistent(PersistentTpmHandle::new(persistent)?);
    match library.tr_from_tpm_public(handle) {
        Ok(object) => Ok(Some(object.into())),
        // Keys are removed because of this: the wrapper has to agree.
        Err(tss_esapi::Error::Tss2Error(code))
            if Code::from_wrapper(code).is_absent() && code.kind() == Some(Tss2ResponseCodeKind::Handle) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// The public area of an object; `None` if it is of a kind that the library does not know.
pub(super) fn public_area(library: &mut Library, object: KeyHandle) -> Result<Option<Public>, Error> {
    match library.read_public(object).map_err(Error::from) {
        Ok((public, ..)) => Ok(Some(public)),
        Err(Error::Library(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What identifies an object among all others: a digest of its public area.
pub(super) fn name(library: &mut Library, object: KeyHandle) -> Result<Name, Error> {
    Ok(library.tr_get_name(object.into())?)
}

/// First bytes of a name that is a SHA-256 digest.
const SHA256: [u8; 2] = [0x00, 0x0b];

/// Whether an object lies directly below another, which its qualified name tells (TPM 2.0 Library, Part 1, "Qualified Name").
pub(super) fn is_child(library: &mut Library, parent: KeyHandle, object: KeyHandle) -> Result<bool, Error> {
    let (.., above) = library.read_public(parent)?;
    let (_, name, qualified) = library.read_public(object)?;
    let Some(found) = qualified.value().strip_prefix(&SHA256) else { return Ok(false) };
    let path = MaxBuffer::try_from([above.value(), name.value()].concat())?;
    let (digest, _) = library.hash(path, HashingAlgorithm::Sha256, Hierarchy::Null)?;
    Ok(digest.value() == found)
}

/// Keeps a loaded object at a persistent handle, which must be free. The owner's password is proven in a session that is salted with `salt`.
pub(super) fn persist(
    library: &mut Library,
    salt: KeyHandle,
    object: KeyHandle,
    persistent: u32,
) -> Result<KeyHandle, Error> {
    let place = PersistentTpmHandle::new(persistent)?;
    authorized(library, Some(salt), Encrypted::Nothing, |context| {
        Ok(context.evict_control(Provision::Owner, object.into(), place.into())?.into())
    })
}

/// Removes a persistent object from its handle.
pub(super) fn evict(library: &mut Library, salt: KeyHandle, object: KeyHandle, persistent: u32) -> Result<(), Error> {
    let place = PersistentTpmHandle::new(persistent)?;
    authorized(library, Some(salt), Encrypted::Nothing, |context| {
        context.evict_control(Provision::Owner, object.into(), place.into())?;
        Ok(())
    })
}
