//! The key that signs: where it is kept, how it signs, and how another one takes its place.
//!
//! A TPM has no way to put one persistent object in another's place, nor to move it. So that no power cut leaves the device without a key, the
//! new one is kept at a spare handle first; only then the old one goes, the new one is kept at the handle where the public service looks for it,
//! and the spare is freed. Should the power fail before that, the spare is what signs until the next import.

use std::fmt::Write as _;

use aziot_log::chain;
use aziot_tpmd_api::config::AuthKeyIndex;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{KeyedHashScheme, MaxBuffer, Public, PublicKeyedHashParameters};

use super::Error;
use super::code::Code;
use super::connection::Connection;
use super::objects;
use super::session::Library;

/// The key that signs.
#[derive(Clone, Copy)]
pub(super) struct AuthKey {
    /// Its persistent handle.
    pub(super) persistent: u32,
    object: KeyHandle,
}

impl Connection {
    /// The key that signs, as the TPM has it.
    pub(super) fn auth_key(&mut self, index: AuthKeyIndex) -> Result<AuthKey, Error> {
        if let Some(key) = self.auth_key {
            return Ok(key);
        }
        Ok(*self.auth_key.insert(find(&mut self.library, index)?))
    }

    /// HMAC-SHA256 of as much as one command takes.
    pub(super) fn hmac(&mut self, key: AuthKey, data: &[u8]) -> Result<Vec<u8>, Error> {
        hmac(&mut self.library, key.object, data)
    }
}

/// HMAC-SHA256 of as much as one command takes, by a key without a password.
pub(super) fn hmac(library: &mut Library, key: KeyHandle, data: &[u8]) -> Result<Vec<u8>, Error> {
    let data = MaxBuffer::try_from(data)?;
    let digest = library.execute_with_session(Some(AuthSession::Password), |context| {
        context.hmac(key.into(), data, HashingAlgorithm::Sha256)
    })?;
    Ok(digest.value().to_vec())
}

/// Whether this is a key such as DPS sends. Nothing else is signed with, or replaced.
pub(super) fn can_sign(public: &Public) -> bool {
    let Public::KeyedHash { object_attributes, parameters, .. } = public else { return false };
    *parameters == PublicKeyedHashParameters::new(KeyedHashScheme::HMAC_SHA_256)
        && object_attributes.sign_encrypt()
        && object_attributes.user_with_auth()
}

/// What is at a persistent handle.
#[derive(Clone, Copy)]
enum Place {
    Free,
    Key(KeyHandle),
    /// Somebody else's object.
    Foreign,
}

fn look(library: &mut Library, persistent: u32) -> Result<Place, Error> {
    let Some(object) = objects::find(library, persistent)? else { return Ok(Place::Free) };
    let public = objects::public_area(library, object)?;
    Ok(if public.is_some_and(|public| can_sign(&public)) { Place::Key(object) } else { Place::Foreign })
}

/// Where a key is kept while it takes the place of another: the index with its highest bit turned, far from where people put things.
fn spare(index: AuthKeyIndex) -> u32 {
    index.handle() ^ 0x0040_0000
}

fn find(library: &mut Library, index: AuthKeyIndex) -> Result<AuthKey, Error> {
    let (own, spare) = (index.handle(), spare(index));
    match look(library, own)? {
        Place::Key(object) => return Ok(AuthKey { persistent: own, object }),
        Place::Foreign => return Err(Error::Foreign { handle: own }),
        Place::Free => {}
    }
    match look(library, spare)? {
        Place::Key(object) => {
            let name = shown_name(library, object);
            tracing::warn!(
                "an import was interrupted: its key signs from {spare:#x} until the next import (its name is {name})"
            );
            Ok(AuthKey { persistent: spare, object })
        }
        Place::Free | Place::Foreign => Err(Error::NoAuthKey { handle: own }),
    }
}

/// Keeps the loaded key `new` as the one that signs, in the place of any other. When this fails, one of both is there to sign.
///
/// What the TPM answers is no proof of what it did: its answer may be lost, or be another one's, such as a resource manager's. After an error
/// the handles tell, and no key is removed before another one was seen.
pub(super) fn replace(
    library: &mut Library,
    storage: KeyHandle,
    new: KeyHandle,
    index: AuthKeyIndex,
) -> Result<AuthKey, Error> {
    let (own, spare) = (index.handle(), spare(index));
    let old = match look(library, own)? {
        Place::Foreign => return Err(Error::Foreign { handle: own }),
        Place::Key(old) => Some(old),
        Place::Free => None,
    };
    let mut beside = claim(library, storage, spare)?;
    if let Some(old) = old {
        beside = keep_beside(library, storage, new, spare, beside)?;
        if let Err(stayed) = remove(library, storage, old, own) {
            if let Stayed::There(_) = stayed {
                free(library, storage, beside, spare);
            }
            return Err(stayed.into());
        }
    }
    let mut kept = keep(library, storage, new, own);
    if let (Err(error), Place::Key(left), None) = (&kept, beside, old)
        && error.code().is_some_and(Code::is_no_room)
    {
        warn_of_no_room();
        remove(library, storage, left, spare)?;
        beside = Place::Free;
        kept = keep(library, storage, new, own);
    }
    match kept {
        Ok(object) => {
            free(library, storage, beside, spare);
            tracing::info!("imported a key to {own:#x}");
            Ok(AuthKey { persistent: own, object })
        }
        Err(error) => match (beside, look(library, own)) {
            // The new key is where the next start will find it as well.
            (Place::Key(object), Ok(Place::Free)) if old.is_some() => {
                tracing::warn!("could not keep the key at {own:#x}, it stays at {spare:#x}: {}", chain(&error));
                Ok(AuthKey { persistent: spare, object })
            }
            _ => Err(error),
        },
    }
}

/// What is at the spare handle. A key that does not lie below the storage root key is not of an import, and somebody else's.
fn claim(library: &mut Library, storage: KeyHandle, spare: u32) -> Result<Place, Error> {
    let there = look(library, spare)?;
    let Place::Key(object) = there else { return Ok(there) };
    if !objects::is_child(library, storage, object)? {
        return Ok(Place::Foreign);
    }
    let name = shown_name(library, object);
    tracing::warn!("an interrupted import left a key at {spare:#x}, which this one removes (its name is {name})");
    Ok(there)
}

/// Keeps the new key at the spare handle, where something may be already, if the TPM has room for two.
fn keep_beside(
    library: &mut Library,
    storage: KeyHandle,
    new: KeyHandle,
    spare: u32,
    there: Place,
) -> Result<Place, Error> {
    match there {
        // Of an interrupted import: while the old key is at its place, this one signs nothing.
        Place::Key(object) => remove(library, storage, object, spare)?,
        Place::Foreign => {
            tracing::warn!(
                "the object at {spare:#x} is in the way: a power cut at this moment would leave the device without a key"
            );
            return Ok(Place::Foreign);
        }
        Place::Free => {}
    }
    match keep(library, storage, new, spare) {
        Ok(object) => Ok(Place::Key(object)),
        Err(error) if error.code().is_some_and(Code::is_no_room) => {
            warn_of_no_room();
            Ok(Place::Free)
        }
        Err(error) => Err(error),
    }
}

fn warn_of_no_room() {
    tracing::warn!("the TPM has no room for two keys: a power cut at this moment would leave the device without one");
}

/// Keeps the loaded key `new` at a handle that is free.
fn keep(library: &mut Library, storage: KeyHandle, new: KeyHandle, persistent: u32) -> Result<KeyHandle, Error> {
    let error = match objects::persist(library, storage, new, persistent) {
        Ok(object) => return Ok(object),
        Err(error) => error,
    };
    let Ok(Place::Key(object)) = look(library, persistent) else { return Err(error) };
    if objects::name(library, object)? != objects::name(library, new)? {
        return Err(error);
    }
    tracing::warn!("the TPM kept the key at {persistent:#x} and answered: {}", chain(&error));
    Ok(object)
}

/// Why a key was not removed.
enum Stayed {
    /// It was seen at its handle afterwards.
    There(Error),
    /// Nobody knows whether it is still there.
    Unknown(Error),
}

impl From<Stayed> for Error {
    fn from(stayed: Stayed) -> Error {
        let (Stayed::There(error) | Stayed::Unknown(error)) = stayed;
        error
    }
}

/// Removes a key.
fn remove(library: &mut Library, storage: KeyHandle, object: KeyHandle, persistent: u32) -> Result<(), Stayed> {
    let Err(error) = objects::evict(library, storage, object, persistent) else { return Ok(()) };
    match look(library, persistent) {
        Ok(Place::Free) => {
            tracing::warn!("the TPM removed the key at {persistent:#x} and answered: {}", chain(&error));
            Ok(())
        }
        Ok(Place::Key(_)) => Err(Stayed::There(error)),
        Ok(Place::Foreign) | Err(_) => Err(Stayed::Unknown(error)),
    }
}

/// Frees the spare handle. What stays there does no harm: the next import removes it.
fn free(library: &mut Library, storage: KeyHandle, beside: Place, spare: u32) {
    let Place::Key(object) = beside else { return };
    if let Err(stayed) = remove(library, storage, object, spare) {
        tracing::warn!("could not remove the key at {spare:#x}: {}", chain(&Error::from(stayed)));
    }
}

/// The name of a key in hexadecimal, for the log.
fn shown_name(library: &mut Library, key: KeyHandle) -> String {
    let Ok(name) = objects::name(library, key) else { return "unknown".to_owned() };
    name.value().iter().fold(String::new(), |mut shown, byte| {
        let _ = write!(shown, "{byte:02x}");
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spare_handle_is_another_one_of_the_owner() {
        for offset in [0, 0x100, 0x40_0000, 0x7f_ffff] {
            let index = AuthKeyIndex::new(offset).unwrap();
            assert_ne!(spare(index), index.handle());
            assert!((0x8100_0000..=0x817f_ffff).contains(&spare(index)), "{:#x}", spare(index));
        }
    }
}
