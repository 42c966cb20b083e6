//! Key handles: bearer tokens that the service signs with a key of its own and understands again after any restart (`keys.md`, section 2).
//!
//! The format is the public service's to the byte, so that either service accepts the other's handles over the same home directory.
//! Handles never expire and are bound to nobody; who may get one is decided elsewhere.
//!
//! They die with the key that signs them: when it is deleted, replaced or emptied, at once where they were not used lately, and otherwise
//! within [`VERIFIED_FOR`], for which a handle that was verified is believed without another look.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aziot_keyd_api::key::KeyHandle;
use aziot_keys::{KeyLibrary, KeyUsage, SymmetricUse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lru::LruCache;
use openssl::error::ErrorStack;
use openssl::rand::rand_bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::blocking::{self, Interrupted, Where};

/// Id of the key that signs handles. It is made when the first handle is, and the API gives it to nobody.
pub(crate) const HANDLE_KEY: &str = "handle-validation-key";

const NONCE_LENGTH: usize = 64;

/// What a handle stands for.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(crate) enum Target {
    /// The symmetric key with this id.
    Key(String),
    /// The key pair with this id.
    KeyPair(String),
    /// A key derived from another; never stored.
    Derived {
        /// Id of the base key, of either kind.
        base: String,
        /// Derivation data.
        data: Vec<u8>,
    },
}

impl Target {
    /// The key on disk that this needs.
    pub(crate) fn id(&self) -> &str {
        let (Target::Key(id) | Target::KeyPair(id) | Target::Derived { base: id, .. }) = self;
        id
    }
}

/// Why a handle could not be made or checked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Whatever is wrong with it; the caller is not told more.
    #[error("invalid handle")]
    Invalid,
    /// The key that signs handles is not usable.
    #[error("could not use the key that signs handles")]
    Key(#[from] aziot_keys::Error),
    /// No random bytes for the nonce.
    #[error("could not get random bytes")]
    Random(#[from] ErrorStack),
    /// The service is stopping.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The signed part, in the order in which it is written.
#[derive(Deserialize, Serialize)]
struct Signed {
    key_id: KeyId,
    nonce: String,
}

#[derive(Deserialize, Serialize)]
enum KeyId {
    Key(String),
    KeyPair(String),
    /// The whole handle of the base key, and the derivation data as a list of numbers.
    Derived(String, Vec<u8>),
}

/// Makes and checks handles.
pub(crate) struct Handles {
    library: Arc<dyn KeyLibrary>,
    /// Handles that were found genuine a moment ago: whoever uses a key steadily is spared everything but this look-up.
    genuine: Mutex<LruCache<String, Genuine>>,
}

/// What a handle that was verified stands for, and until when it is believed.
struct Genuine {
    target: Target,
    until: Instant,
}

/// How long a handle is believed after it was verified: one look at the handle key's file a second and handle. For as long a handle
/// may outlive that key.
const VERIFIED_FOR: Duration = Duration::from_secs(1);
/// Handles that are remembered, more than are in use at a time. What a handle stands for is shorter than the handle, so all of them take
/// half a megabyte at the most, and usually a quarter of that.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).expect("is not 0");
/// Bytes of a handle that is remembered; those with much derivation data are not.
const LONGEST_REMEMBERED: usize = 1024;

impl Handles {
    /// Handles signed by the key [`HANDLE_KEY`] of `library`.
    pub(crate) fn new(library: Arc<dyn KeyLibrary>) -> Handles {
        Handles { library, genuine: Mutex::new(LruCache::sparse(REMEMBERED)) }
    }

    /// A handle of the symmetric key `id`.
    pub(crate) async fn of_key(&self, id: String) -> Result<KeyHandle, Error> {
        self.make(KeyId::Key(id)).await
    }

    /// A handle of the key pair `id`.
    pub(crate) async fn of_key_pair(&self, id: String) -> Result<KeyHandle, Error> {
        self.make(KeyId::KeyPair(id)).await
    }

    /// A handle of the key derived from that of `base`, a handle that was checked.
    pub(crate) async fn of_derived(&self, base: KeyHandle, data: Vec<u8>) -> Result<KeyHandle, Error> {
        self.make(KeyId::Derived(base.0, data)).await
    }

    /// What `handle` stands for, if this service or the public one made it over this home directory.
    pub(crate) async fn check(&self, handle: &KeyHandle) -> Result<Target, Error> {
        let begun = Instant::now();
        if let Some(known) = self.genuine().get(&handle.0)
            && begun < known.until
        {
            return Ok(known.target.clone());
        }
        let outcome = self.examine(handle).await;
        match &outcome {
            Ok(target) if handle.0.len() <= LONGEST_REMEMBERED => {
                let known = Genuine { target: target.clone(), until: begun + VERIFIED_FOR };
                self.genuine().put(handle.0.clone(), known);
            }
            Ok(_) => {}
            Err(_) => {
                self.genuine().pop(&handle.0);
            }
        }
        outcome
    }

    fn genuine(&self) -> MutexGuard<'_, LruCache<String, Genuine>> {
        self.genuine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn examine(&self, handle: &KeyHandle) -> Result<Target, Error> {
        let base = match self.check_signature(&handle.0).await? {
            KeyId::Key(id) => return Ok(Target::Key(id)),
            KeyId::KeyPair(id) => return Ok(Target::KeyPair(id)),
            KeyId::Derived(base, data) => (self.check_signature(&base).await?, data),
        };
        match base {
            (KeyId::Key(base) | KeyId::KeyPair(base), data) => Ok(Target::Derived { base, data }),
            (KeyId::Derived(..), _) => Err(Error::Invalid),
        }
    }

    async fn make(&self, key_id: KeyId) -> Result<KeyHandle, Error> {
        let mut nonce = [0; NONCE_LENGTH];
        rand_bytes(&mut nonce)?;
        self.sign(&Signed { key_id, nonce: STANDARD.encode(nonce) }).await
    }

    async fn sign(&self, signed: &Signed) -> Result<KeyHandle, Error> {
        // Strings, numbers and known names: nothing that JSON cannot say.
        let json = serde_json::to_vec(signed).map_err(|_| Error::Invalid)?;
        let sr = STANDARD.encode(&json);
        let sig = self.with_key(move |library| library.sign_hmac(SymmetricUse::Stored(HANDLE_KEY), &json)).await?;
        Ok(KeyHandle(format!("sr={sr}&sig={}", STANDARD.encode(&*sig))))
    }

    async fn check_signature(&self, handle: &str) -> Result<KeyId, Error> {
        let (json, sig) = parts(handle).ok_or(Error::Invalid)?;
        let json = Arc::new(json);
        let signed = Arc::clone(&json);
        let genuine = self.with_key(move |library| library.verify_hmac(HANDLE_KEY, &signed, &sig)).await?;
        if !genuine {
            return Err(Error::Invalid);
        }
        // Only now: nothing of a stranger's reaches the parser.
        serde_json::from_slice(&json).map(|signed: Signed| signed.key_id).map_err(|_| Error::Invalid)
    }

    /// Runs `work`, on this thread if the key is in memory; if that fails makes sure that the handle key is there and runs it again.
    async fn with_key<T: Send + 'static>(
        &self,
        work: impl Fn(&dyn KeyLibrary) -> Result<T, aziot_keys::Error> + Send + 'static,
    ) -> Result<T, Error> {
        if self.library.is_ready(HANDLE_KEY)
            && let Ok(outcome) = work(&*self.library)
        {
            return Ok(outcome);
        }
        let outcome = blocking::run(&self.library, Where::BlockingThread, move |library| {
            work(library).or_else(|_| {
                // It does not exist yet, or its file is empty. Whatever else is wrong with it, making it fails likewise.
                library.create_key(HANDLE_KEY, KeyUsage::SIGN)?;
                work(library)
            })
        });
        Ok(outcome.await??)
    }
}

/// The two parts of a handle, decoded; of a repeated part the last one counts, and unknown parts do not.
fn parts(handle: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let last = |name: &str| handle.split('&').filter_map(|part| part.strip_prefix(name)).next_back();
    let decode = |text| STANDARD.decode(text).ok();
    Some((decode(last("sr=")?)?, decode(last("sig=")?)?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aziot_keys::{Keys as Library, Secret, Settings};
    use openssl::sha::sha256;
    use tempfile::TempDir;

    use super::*;
    use crate::test_vectors::{HK, PAIR};
    const DATA: &[u8] = b"modA:1:primary";

    /// The library with the handle key of the worked examples.
    fn handles() -> (TempDir, Handles) {
        let folder = tempfile::tempdir().unwrap();
        let library =
            Library::new(Settings { homedir_path: Some(folder.path().into()), ..Settings::default() }).unwrap();
        library.import_key(HANDLE_KEY, KeyUsage::SIGN, &Secret::new((0..32).collect())).unwrap();
        (folder, Handles::new(Arc::new(library)))
    }

    fn nz() -> String {
        format!("{}==", "A".repeat(86))
    }

    async fn sign(handles: &Handles, key_id: KeyId) -> String {
        handles.sign(&Signed { key_id, nonce: nz() }).await.unwrap().0
    }

    /// Any bytes as `sr`, truly signed.
    fn sign_raw(handles: &Handles, json: &str) -> String {
        let sig = handles.library.sign_hmac(SymmetricUse::Stored(HANDLE_KEY), json.as_bytes()).unwrap();
        format!("sr={}&sig={}", STANDARD.encode(json), STANDARD.encode(&*sig))
    }

    async fn check(handles: &Handles, handle: &str) -> Option<Target> {
        match handles.check(&KeyHandle(handle.to_owned())).await {
            Ok(target) => Some(target),
            Err(Error::Invalid) => None,
            Err(error) => panic!("{error:?}"),
        }
    }

    #[tokio::test]
    async fn the_worked_examples() {
        let (_folder, handles) = handles();
        assert_eq!(sign(&handles, KeyId::Key("k1".into())).await, HK);
        assert_eq!(HK.len(), 216);
        assert_eq!(sign(&handles, KeyId::KeyPair("device-id".into())).await, PAIR);
        let derived = sign(&handles, KeyId::Derived(HK.into(), DATA.into())).await;
        assert_eq!(derived.len(), 580);
        let hash: String = sha256(derived.as_bytes()).map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(hash, "7241bb92621a20578860edea53cb9e4a5c6c5b65661da117ddef386ec72d7857");

        assert_eq!(check(&handles, HK).await, Some(Target::Key("k1".into())));
        assert_eq!(check(&handles, PAIR).await, Some(Target::KeyPair("device-id".into())));
        let expected = Target::Derived { base: "k1".into(), data: DATA.into() };
        assert_eq!(check(&handles, &derived).await, Some(expected));
    }

    #[tokio::test]
    async fn accepted_variants() {
        let (_folder, handles) = handles();
        let (sr, sig) = HK.split_once('&').unwrap();
        let reordered = r#" { "nonce" : "x", "more": [1], "key_id": { "Key": "k1" } } "#;
        for variant in
            [format!("{sig}&{sr}"), format!("{HK}&se=1"), format!("sr=AAAA&{HK}"), sign_raw(&handles, reordered)]
        {
            assert_eq!(check(&handles, &variant).await, Some(Target::Key("k1".into())), "{variant}");
        }
    }

    #[tokio::test]
    async fn rejected_variants() {
        let (_folder, handles) = handles();
        let (sr, sig) = HK.split_once('&').unwrap();
        let mut rejected = vec![
            String::new(),
            sr.to_owned(),
            sig.to_owned(),
            format!("{sr}&sig=0t97"),
            HK.trim_end_matches('=').to_owned(),
            HK.replace('+', "-"),
            format!("{HK}&sr=AAAA"),
            sign_raw(&handles, r#"{"key_id":{"Key":"k1"}}"#),
            sign_raw(&handles, r#"{"key_id":{"Other":"k1"},"nonce":""}"#),
            sign_raw(&handles, "\u{fffd}"),
        ];
        for position in 0..HK.len() {
            let mut changed = HK.as_bytes().to_vec();
            changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
            rejected.push(String::from_utf8(changed).unwrap());
        }
        for handle in rejected {
            assert_eq!(check(&handles, &handle).await, None, "{handle}");
        }
    }

    /// A handle of the key `id` as it would be remembered, although nobody has signed it.
    fn plant(handles: &Handles, handle: &str, id: &str) {
        let known = Genuine { target: Target::Key(id.to_owned()), until: Instant::now() + VERIFIED_FOR };
        handles.genuine().put(handle.to_owned(), known);
    }

    #[tokio::test(start_paused = true)]
    async fn a_remembered_handle_is_believed_for_a_while() {
        let (_folder, handles) = handles();
        plant(&handles, "planted", "k");
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(check(&handles, "planted").await, Some(Target::Key("k".into())));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(check(&handles, "planted").await, None);
        assert!(!handles.genuine().contains("planted"), "what was found out is forgotten");

        // Verified anew, a genuine one is believed for as long again.
        for _ in 0..3 {
            assert_eq!(check(&handles, HK).await, Some(Target::Key("k1".into())));
            assert_eq!(handles.genuine().peek(HK).unwrap().until, Instant::now() + VERIFIED_FOR);
            tokio::time::advance(VERIFIED_FOR).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_handles_are_remembered_and_those_in_use_stay() {
        let (_folder, handles) = handles();
        plant(&handles, "in use", "k");
        for number in 0..REMEMBERED.get() * 2 {
            let handle = sign(&handles, KeyId::Key(number.to_string())).await;
            assert_eq!(check(&handles, &handle).await, Some(Target::Key(number.to_string())));
            assert_eq!(check(&handles, &handle.replace("sig=", "sig=A")).await, None);
            assert_eq!(check(&handles, "in use").await, Some(Target::Key("k".into())), "after {number}");
        }
        assert_eq!(handles.genuine().len(), REMEMBERED.get());
        let long = sign(&handles, KeyId::Derived(HK.into(), vec![0; LONGEST_REMEMBERED])).await;
        assert!(check(&handles, &long).await.is_some());
        assert!(!handles.genuine().contains(&long));
    }

    /// Deleted, replaced and emptied by somebody else: the handles that it signed die, those that are remembered a moment later.
    #[tokio::test(start_paused = true)]
    async fn a_remembered_handle_dies_with_the_handle_key() {
        let put = |path: &Path, bytes: &[u8]| aziot_files::write(path, aziot_files::Mode::PRIVATE, bytes).unwrap();
        let fates: [&dyn Fn(&Path); 3] =
            [&|path| std::fs::remove_file(path).unwrap(), &|path| put(path, &[7; 32]), &|path| put(path, b"")];
        for fate in fates {
            let (folder, handles) = handles();
            let derived = sign(&handles, KeyId::Derived(HK.into(), DATA.into())).await;
            assert!(check(&handles, HK).await.is_some() && check(&handles, &derived).await.is_some());
            fate(&folder.path().join("keys").join(aziot_keys::file_name(HANDLE_KEY).unwrap()));
            tokio::time::advance(VERIFIED_FOR).await;
            assert_eq!(check(&handles, HK).await, None);
            assert_eq!(check(&handles, &derived).await, None);
            let new = handles.of_key("k1".into()).await.unwrap();
            assert_eq!(check(&handles, &new.0).await, Some(Target::Key("k1".into())));
        }
    }

    #[tokio::test]
    async fn a_derived_handle_stands_on_a_genuine_plain_one() {
        let (_folder, handles) = handles();
        let derived = sign(&handles, KeyId::Derived(HK.into(), DATA.into())).await;
        for base in [&derived, "sr=&sig=", ""] {
            let nested = sign(&handles, KeyId::Derived(base.into(), vec![])).await;
            assert_eq!(check(&handles, &nested).await, None, "{base}");
        }
        let of_pair = sign(&handles, KeyId::Derived(PAIR.into(), vec![])).await;
        let expected = Target::Derived { base: "device-id".into(), data: vec![] };
        assert_eq!(check(&handles, &of_pair).await, Some(expected));
    }

    #[tokio::test]
    async fn escapes_are_those_of_the_public_service() {
        let (_folder, handles) = handles();
        let id = "\"\\\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}/é日";
        let handle = sign(&handles, KeyId::Key(id.into())).await;
        let (json, _) = parts(&handle).unwrap();
        let expected = format!(
            "{{\"key_id\":{{\"Key\":\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}/é日\"}},\"nonce\":\"{}\"}}",
            nz()
        );
        assert_eq!(String::from_utf8(json).unwrap(), expected);
        assert_eq!(check(&handles, &handle).await, Some(Target::Key(id.into())));
    }

    #[tokio::test]
    async fn each_handle_is_new_and_the_handle_key_is_made_when_first_needed() {
        let folder = tempfile::tempdir().unwrap();
        let settings = || Settings { homedir_path: Some(folder.path().into()), ..Settings::default() };
        let handles = Handles::new(Arc::new(Library::new(settings()).unwrap()));
        let file = folder.path().join("keys").join(aziot_keys::file_name(HANDLE_KEY).unwrap());
        assert!(!file.exists());
        let first = handles.of_key("k".into()).await.unwrap();
        assert!(file.exists());
        let second = handles.of_key("k".into()).await.unwrap();
        assert_ne!(first, second);
        let restarted = Handles::new(Arc::new(Library::new(settings()).unwrap()));
        assert_eq!(restarted.check(&first).await.unwrap(), Target::Key("k".into()));
    }

    #[tokio::test]
    async fn without_a_place_for_the_handle_key_no_handle_is_made_or_believed() {
        let handles = Handles::new(Arc::new(Library::new(Settings::default()).unwrap()));
        assert!(matches!(handles.of_key("k".into()).await, Err(Error::Key(_))));
        assert!(matches!(handles.check(&KeyHandle(HK.into())).await, Err(Error::Key(_))));
    }
}
