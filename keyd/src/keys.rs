//! Keys as callers see them: who may have one, what a handle is good for, and where the work runs. Knows no HTTP and no files.
//!
//! Creating, importing, loading and moving need a principal that allows the key; everything else needs its handle and nothing more,
//! as in the public service. One snapshot of the principals serves one call.

use std::ffi::CString;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aziot_http::Peer;
use aziot_keyd_api::key::KeyHandle;
use aziot_keyd_api::operation::{EncryptMechanism, SignMechanism};
use aziot_keys::{
    Failure, KeyLibrary, KeyPairAlgorithm, KeyUsage, NotKeyPair, PublicParameter, RsaPadding, Secret, SymmetricUse,
};
use aziot_log::fields;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::blocking::{self, Where};
use crate::compute_pool::ComputePool;
use crate::error::{Error, Reason};
use crate::handle::{HANDLE_KEY, Handles, Target};
use crate::principals::Principals;

/// More bytes than this are signed or encrypted on another thread: they would make other callers wait.
const SHORT: usize = 64 * 1024;

/// Bytes of an id, or of a list of algorithms.
const LONGEST_TEXT: usize = 1024;
/// Bytes that a key may be derived with.
const MOST_DERIVATION_DATA: usize = 16 * 1024;

/// The keys of the device for many callers at once.
pub(crate) struct Keys {
    library: Arc<dyn KeyLibrary>,
    handles: Handles,
    principals: ArcSwap<Principals>,
    compute_pool: ComputePool,
}

impl Keys {
    /// The keys of `library` for these principals.
    pub(crate) fn new(library: Arc<dyn KeyLibrary>, principals: Principals) -> Keys {
        let handles = Handles::new(Arc::clone(&library));
        Keys { library, handles, principals: ArcSwap::from_pointee(principals), compute_pool: ComputePool::new() }
    }

    /// Replaces the principals. Calls under way go on with the old ones, and handles stay good.
    pub(crate) fn set_principals(&self, principals: Principals) {
        self.principals.store(Arc::new(principals));
    }

    /// A handle of the symmetric key `id`, which is imported if there are bytes and otherwise made if it is missing.
    pub(crate) async fn create_key(
        &self,
        peer: &Peer,
        id: String,
        usage: KeyUsage,
        bytes: Option<Secret>,
    ) -> Result<KeyHandle, Error> {
        self.authorize(peer, &id)?;
        check_text("id", &id)?;
        audit(peer, if bytes.is_some() { "import" } else { "create" }, &id);
        // In memory, and its file is there: nothing is left to do. Making it anew would wait for the disk.
        if bytes.is_none() && self.library.is_ready(&id) && self.library.load_key(&id).is_ok() {
            return Ok(self.handles.of_key(id).await?);
        }
        let key_id = id.clone();
        let uid = peer.uid;
        self.run(Where::BlockingThread, move |library| match bytes {
            Some(bytes) => {
                // For the log alone: what is there and cannot be loaded is the import's to judge.
                let replaces = library.load_key(&key_id).is_ok();
                library.import_key(&key_id, usage, &bytes)?;
                if replaces {
                    tracing::info!({ fields::KEY_ID } = key_id, { fields::UID } = uid, "an import replaced a key");
                }
                Ok(())
            }
            None => library.create_key(&key_id, usage),
        })
        .await?;
        Ok(self.handles.of_key(id).await?)
    }

    /// A handle of the symmetric key `id`, which must exist.
    pub(crate) async fn load_key(&self, peer: &Peer, id: String) -> Result<KeyHandle, Error> {
        self.authorize(peer, &id)?;
        check_text("id", &id)?;
        audit(peer, "load", &id);
        let (place, key_id) = (Where::here_if(self.library.is_ready(&id)), id.clone());
        self.run(place, move |library| library.load_key(&key_id)).await?;
        Ok(self.handles.of_key(id).await?)
    }

    /// Deletes the symmetric key of a handle; one that is gone already is no error.
    pub(crate) async fn delete_key(&self, peer: &Peer, handle: &KeyHandle) -> Result<(), Error> {
        match self.open(peer, handle).await? {
            Target::Key(id) => {
                audit(peer, "delete", &id);
                self.run(Where::BlockingThread, move |library| library.delete_key(&id)).await
            }
            Target::KeyPair(_) | Target::Derived { .. } => Err(Error::handle(Reason::NotKey)),
        }
    }

    /// A handle of the key pair `id`, which is made if it is missing.
    pub(crate) async fn create_key_pair(
        &self,
        peer: &Peer,
        id: String,
        preferred_algorithms: Option<String>,
    ) -> Result<KeyHandle, Error> {
        self.authorize(peer, &id)?;
        check_text("id", &id)?;
        check_text("preferred_algorithms", preferred_algorithms.as_deref().unwrap_or_default())?;
        audit(peer, "create", &id);
        let key_id = id.clone();
        self.run(Where::BlockingThread, move |library| {
            library.create_key_pair(&key_id, preferred_algorithms.as_deref())
        })
        .await?;
        Ok(self.handles.of_key_pair(id).await?)
    }

    /// A handle of the key pair `id`, which must exist.
    pub(crate) async fn load_key_pair(&self, peer: &Peer, id: String) -> Result<KeyHandle, Error> {
        self.authorize(peer, &id)?;
        check_text("id", &id)?;
        audit(peer, "load", &id);
        let (place, key_id) = (Where::here_if(self.library.is_ready(&id)), id.clone());
        self.run(place, move |library| library.load_key_pair(&key_id)).await?;
        Ok(self.handles.of_key_pair(id).await?)
    }

    /// Gives the key pair `from` the id `to`, in place of the pair that has it.
    pub(crate) async fn move_key_pair(&self, peer: &Peer, from: String, to: String) -> Result<(), Error> {
        check_move(&from, &to)?;
        self.authorize(peer, &from)?;
        self.authorize(peer, &to)?;
        check_text("from", &from)?;
        check_text("to", &to)?;
        audit(peer, "move from", &from);
        audit(peer, "move to", &to);
        self.run(Where::BlockingThread, move |library| library.move_key_pair(&from, &to)).await
    }

    /// Refuses to move a symmetric key, as the public service does.
    pub(crate) fn move_key(from: &str, to: &str) -> Result<(), Error> {
        check_move(from, to)?;
        Err(Error::MoveOfKey)
    }

    /// Deletes the key pair of a handle; one that is gone already is no error.
    pub(crate) async fn delete_key_pair(&self, peer: &Peer, handle: &KeyHandle) -> Result<(), Error> {
        match self.open(peer, handle).await? {
            Target::KeyPair(id) => {
                audit(peer, "delete", &id);
                self.run(Where::BlockingThread, move |library| library.delete_key_pair(&id)).await
            }
            Target::Key(_) | Target::Derived { .. } => Err(Error::handle(Reason::NotKeyPair)),
        }
    }

    /// A public parameter of a key pair: `ECDSA` or `RSA` for `algorithm`, base64 of the bytes for the others.
    pub(crate) async fn parameter(&self, peer: &Peer, name: &str, handle: &KeyHandle) -> Result<String, Error> {
        let no_such_parameter = || Error::parameter("name", Reason::NoSuchParameter);
        let (id, is_pair) = match self.open(peer, handle).await? {
            Target::KeyPair(id) => (id, true),
            // The public service looks at the key, not at the kind of the handle.
            Target::Key(id) => (id, false),
            Target::Derived { .. } => return Err(Error::handle(Reason::NotKeyPair)),
        };
        let parameter = match name {
            "algorithm" => None,
            "ec-curve-oid" => Some(PublicParameter::EcCurveOid),
            "ec-point" => Some(PublicParameter::EcPoint),
            "rsa-modulus" => Some(PublicParameter::RsaModulus),
            "rsa-exponent" => Some(PublicParameter::RsaExponent),
            _ => return Err(no_such_parameter()),
        };
        audit(peer, "read parameter", &id);
        let place = Where::here_if(self.library.is_ready(&id));
        let value = blocking::run(&self.library, place, move |library| match parameter {
            None => library.key_pair_algorithm(&id).map(|algorithm| match algorithm {
                KeyPairAlgorithm::Ec => "ECDSA".to_owned(),
                KeyPairAlgorithm::Rsa => "RSA".to_owned(),
            }),
            Some(parameter) => library.public_parameter(&id, parameter).map(|bytes| STANDARD.encode(bytes)),
        });
        match value.await? {
            // A symmetric key: the caller's mistake, not a damaged key pair.
            Err(aziot_keys::Error::External { source: Failure::Damaged { source: NotKeyPair::NoPem, .. }, .. })
                if !is_pair =>
            {
                Err(no_such_parameter())
            }
            value => Ok(value?),
        }
    }

    /// A handle of the key that `data` makes of the key `base`. Nothing is stored, and the base key need not exist yet.
    pub(crate) async fn create_derived_key(
        &self,
        peer: &Peer,
        base: KeyHandle,
        data: Vec<u8>,
    ) -> Result<KeyHandle, Error> {
        let target = self.open(peer, &base).await?;
        if matches!(target, Target::Derived { .. }) {
            return Err(Error::handle(Reason::NestedDerived));
        }
        // It becomes part of the handle, which must fit into later requests.
        if data.len() > MOST_DERIVATION_DATA {
            return Err(Error::parameter("derivation_data", Reason::TooLong(MOST_DERIVATION_DATA)));
        }
        audit(peer, "derive", target.id());
        Ok(self.handles.of_derived(base, data).await?)
    }

    /// The bytes of a derived key.
    pub(crate) async fn export_derived_key(&self, peer: &Peer, handle: &KeyHandle) -> Result<Secret, Error> {
        match self.open(peer, handle).await? {
            Target::Derived { base, data } => {
                audit(peer, "export", &base);
                let place = Where::here_if(self.library.is_ready(&base));
                self.run(place, move |library| library.derive(&base, &data)).await
            }
            Target::Key(_) | Target::KeyPair(_) => Err(Error::handle(Reason::NotDerived)),
        }
    }

    /// A signature by a key pair (ECDSA) or a symmetric or derived key (HMAC).
    pub(crate) async fn sign(
        &self,
        peer: &Peer,
        handle: &KeyHandle,
        mechanism: SignMechanism,
    ) -> Result<Vec<u8>, Error> {
        let target = self.open(peer, handle).await?;
        match mechanism {
            SignMechanism::Ecdsa { digest } => {
                let Target::KeyPair(id) = target else { return Err(Error::mechanism()) };
                audit(peer, "sign", &id);
                // As quick as that, it costs all callers together less than the way to another thread and back.
                let is_quick = self.library.is_ready_to_sign_ecdsa(&id);
                let place = if is_quick { Where::Here } else { self.place_to_compute(&id) };
                self.run(place, move |library| library.sign_ecdsa(&id, &digest.0)).await
            }
            SignMechanism::HmacSha256 { message } => {
                let key = Symmetric::new(target)?;
                audit(peer, "sign", &key.id);
                let place = self.place_for(&key, message.0.len());
                let signature = self.run(place, move |library| library.sign_hmac(key.for_use(), &message.0)).await?;
                Ok(signature.to_vec())
            }
        }
    }

    /// Encrypts with a symmetric or derived key, or performs the RSA private operation of a key pair.
    pub(crate) async fn encrypt(
        &self,
        peer: &Peer,
        handle: &KeyHandle,
        mechanism: EncryptMechanism,
        plaintext: Secret,
    ) -> Result<Vec<u8>, Error> {
        let target = self.open(peer, handle).await?;
        let padding = match mechanism {
            EncryptMechanism::Aead { iv, aad } => {
                let key = Symmetric::new(target)?;
                audit(peer, "encrypt", &key.id);
                let place = self.place_for(&key, aad.0.len() + plaintext.len());
                let encrypt =
                    move |library: &dyn KeyLibrary| library.encrypt_aead(key.for_use(), &iv.0, &aad.0, &plaintext);
                return self.run(place, encrypt).await;
            }
            EncryptMechanism::RsaPkcs1 => RsaPadding::Pkcs1,
            EncryptMechanism::RsaNoPadding => RsaPadding::None,
        };
        let Target::KeyPair(id) = target else { return Err(Error::mechanism()) };
        audit(peer, "encrypt", &id);
        let place = self.place_to_compute(&id);
        self.run(place, move |library| library.encrypt_rsa(&id, padding, &plaintext)).await
    }

    /// Decrypts with a symmetric or derived key.
    pub(crate) async fn decrypt(
        &self,
        peer: &Peer,
        handle: &KeyHandle,
        mechanism: EncryptMechanism,
        ciphertext: Vec<u8>,
    ) -> Result<Secret, Error> {
        let target = self.open(peer, handle).await?;
        // RSA decryption is understood and never done.
        let EncryptMechanism::Aead { iv, aad } = mechanism else { return Err(Error::mechanism()) };
        let key = Symmetric::new(target)?;
        audit(peer, "decrypt", &key.id);
        let place = self.place_for(&key, aad.0.len() + ciphertext.len());
        self.run(place, move |library| library.decrypt_aead(key.for_use(), &iv.0, &aad.0, &ciphertext)).await
    }

    fn authorize(&self, peer: &Peer, id: &str) -> Result<(), Error> {
        if self.principals.load().allow(peer.uid, id) { Ok(()) } else { Err(refuse(peer, id)) }
    }

    /// What a handle stands for. One of the key that signs handles was forged or comes from the public service; it opens nothing here.
    async fn open(&self, peer: &Peer, handle: &KeyHandle) -> Result<Target, Error> {
        let target = self.handles.check(handle).await?;
        if target.id() == HANDLE_KEY { Err(refuse(peer, HANDLE_KEY)) } else { Ok(target) }
    }

    fn place_for(&self, key: &Symmetric, length: usize) -> Where<'_> {
        match self.place_to_compute(&key.id) {
            Where::ComputePool(_) if length <= SHORT => Where::Here,
            place => place,
        }
    }

    /// For a use of the key that computes for long.
    fn place_to_compute(&self, id: &str) -> Where<'_> {
        if self.library.is_ready(id) { Where::ComputePool(&self.compute_pool) } else { Where::BlockingThread }
    }

    async fn run<T: Send + 'static>(
        &self,
        place: Where<'_>,
        work: impl FnOnce(&dyn KeyLibrary) -> Result<T, aziot_keys::Error> + Send + 'static,
    ) -> Result<T, Error> {
        Ok(blocking::run(&self.library, place, work).await??)
    }
}

/// A symmetric key on disk, or one derived from it.
struct Symmetric {
    id: String,
    derivation_data: Option<Vec<u8>>,
}

impl Symmetric {
    fn new(target: Target) -> Result<Symmetric, Error> {
        match target {
            Target::Key(id) => Ok(Symmetric { id, derivation_data: None }),
            Target::Derived { base, data } => Ok(Symmetric { id: base, derivation_data: Some(data) }),
            Target::KeyPair(_) => Err(Error::mechanism()),
        }
    }

    fn for_use(&self) -> SymmetricUse<'_> {
        match &self.derivation_data {
            None => SymmetricUse::Stored(&self.id),
            Some(data) => SymmetricUse::Derived { base: &self.id, data },
        }
    }
}

/// What can be said about a move before anybody is authorized.
fn check_move(from: &str, to: &str) -> Result<(), Error> {
    if from == to { Err(Error::MoveOntoItself) } else { Ok(()) }
}

/// Texts go to the key library as C strings, and ids into handles and logs.
fn check_text(name: &'static str, text: &str) -> Result<(), Error> {
    if text.len() > LONGEST_TEXT {
        return Err(Error::parameter(name, Reason::TooLong(LONGEST_TEXT)));
    }
    CString::new(text).map(|_| ()).map_err(|error| Error::parameter(name, error.into()))
}

/// Every use of a key, for whoever turns this target on (`docs/hardening.md`).
fn audit(peer: &Peer, operation: &str, key_id: &str) {
    // The fields are worked out only where the target is on.
    tracing::debug!(
        target: "aziot_keyd::audit",
        {
            { fields::KEY_ID } = key_id,
            { fields::OPERATION } = operation,
            { fields::UID } = peer.uid,
            { fields::PID } = peer.pid,
        },
        "key used"
    );
}

fn refuse(peer: &Peer, key_id: &str) -> Error {
    tracing::warn!(
        target: "aziot_keyd::audit",
        { { fields::KEY_ID } = key_id, { fields::UID } = peer.uid, { fields::PID } = peer.pid },
        "refused a key to a user"
    );
    Error::Unauthorized { uid: peer.uid, id: key_id.to_owned() }
}
