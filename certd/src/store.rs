//! Certificate files: where each id's file is, and reading, writing and removing it as a whole.
//!
//! All but [`Store::run`] blocks on files. Who may do what, and what a certificate is, is not known here, but for one thing: a file in DER is read
//! as the PEM that callers need.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use aziot_certd_api::config::Preloaded;
use aziot_files::{Action, Mode, Owner};
use aziot_log::{RequestId, chain, fields};
use aziot_pki::certificate::{Chain, ChainError};

use crate::aliases;

/// Bytes of a file; the largest known bundle of trusted roots has a tenth of it.
const LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Why a certificate's file cannot be used. That it is not there is no error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The operating system refused.
    #[error(transparent)]
    Files(aziot_files::Error),
    /// What stands at the path of a preloaded certificate is a folder, a pipe or the like.
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// A preloaded certificate that is not on this machine.
    #[error("[preloaded_certs] has {uri} for {id:?}, which is no local file (file:///path)")]
    NotLocal { id: String, uri: String },
    /// Only single certificates can be written and removed.
    #[error("{0:?} is a list of certificates in [preloaded_certs]; write its members instead")]
    List(String),
    /// A list whose members are lists, and so on, comes to too many.
    #[error("the list {0:?} in [preloaded_certs] has more than {limit} members", limit = aliases::MEMBERS_LIMIT)]
    LongList(String),
    /// The file is no text, and no certificate in DER either.
    #[error("{} is neither text nor a certificate in DER", path.display())]
    NotText { path: PathBuf, source: ChainError },
    /// The service stopped before the work on files had begun.
    #[error("the service is stopping")]
    Stopping,
}

/// The files of one state of the configuration.
#[derive(Debug)]
pub(crate) struct Store {
    home: PathBuf,
    folder: PathBuf,
    preloaded: BTreeMap<String, Preloaded>,
}

enum Place {
    /// In the service's own folder.
    Own(PathBuf),
    /// Where the operator put it.
    Preloaded(PathBuf),
    /// Nowhere by itself: its members have files.
    List,
}

impl Store {
    pub(crate) fn new(homedir: &Path, preloaded: BTreeMap<String, Preloaded>) -> Self {
        Self { home: homedir.to_owned(), folder: homedir.join("certs"), preloaded }
    }

    /// Runs `work` on the files where it may wait for the disk. Once begun it runs to its end.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = Arc::clone(self);
        match tokio::task::spawn_blocking(RequestId::carry(move || work(&store))).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                // The server answers a panic, wherever it began.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Error::Stopping),
            },
        }
    }

    /// Makes the folder and clears what an earlier process left half-written in it.
    pub(crate) fn prepare(&self) -> Result<(), aziot_files::Error> {
        self.make_folder()?;
        aziot_files::remove_leftovers(&self.folder).map(|_| ())
    }

    fn make_folder(&self) -> Result<(), aziot_files::Error> {
        let _ = aziot_files::create_directory(&self.home, Mode::PRIVATE_DIRECTORY)?;
        let _ = aziot_files::create_directory(&self.folder, Mode::SHARED_DIRECTORY)?;
        Ok(())
    }

    /// Whether the id stands for a file or a list of the operator.
    pub(crate) fn is_preloaded(&self, id: &str) -> bool {
        self.preloaded.contains_key(id)
    }

    /// The text of the certificate, or of all members of a list that are there; `None` if there is nothing.
    pub(crate) fn read(&self, id: &str) -> Result<Option<String>, Error> {
        match self.place(id)? {
            Place::Own(path) | Place::Preloaded(path) => read_file(&path),
            Place::List => self.read_list(id),
        }
    }

    fn read_list(&self, id: &str) -> Result<Option<String>, Error> {
        let members = aliases::members(&self.preloaded, id).ok_or_else(|| Error::LongList(id.to_owned()))?;
        let mut joined = String::new();
        for member in members {
            let (Place::Own(path) | Place::Preloaded(path)) = self.place(member)? else { continue };
            if let Some(text) = read_file(&path)? {
                if !joined.is_empty() && !joined.ends_with('\n') {
                    joined.push('\n');
                }
                joined.push_str(&text);
            }
        }
        Ok((!joined.is_empty()).then_some(joined))
    }

    /// Puts `text` in the place of what is there. A preloaded file keeps its owner and mode.
    pub(crate) fn write(&self, id: &str, text: &str) -> Result<(), Error> {
        match self.place(id)? {
            Place::Own(path) => {
                self.make_folder().map_err(Error::Files)?;
                aziot_files::write(path, Mode::SHARED, text).map_err(Error::Files)
            }
            Place::Preloaded(path) => write_preloaded(path, text),
            Place::List => Err(Error::List(id.to_owned())),
        }
    }

    /// Removes the certificate; tells whether it was there.
    pub(crate) fn remove(&self, id: &str) -> Result<bool, Error> {
        match self.place(id)? {
            Place::Own(path) | Place::Preloaded(path) => aziot_files::remove(path).map_err(Error::Files),
            Place::List => Err(Error::List(id.to_owned())),
        }
    }

    fn place(&self, id: &str) -> Result<Place, Error> {
        match self.preloaded.get(id) {
            None => Ok(Place::Own(self.folder.join(file_name(id)))),
            Some(Preloaded::List(_)) => Ok(Place::List),
            Some(Preloaded::Uri(uri)) => {
                let path = if uri.scheme() == "file" { uri.to_file_path().ok() } else { None };
                path.map(Place::Preloaded).ok_or_else(|| Error::NotLocal { id: id.to_owned(), uri: uri.to_string() })
            }
        }
    }
}

/// The public service's rule: what of the id is ASCII letters and digits, then the SHA-256 digest of the whole id.
fn file_name(id: &str) -> String {
    use std::fmt::Write as _;

    let mut name: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    name.push('-');
    for byte in openssl::sha::sha256(id.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name + ".cer"
}

fn read_file(path: &Path) -> Result<Option<String>, Error> {
    // Opening a pipe would wait for a writer.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::NotRegular(path.to_owned()));
    }
    let bytes = match aziot_files::read_limited(path, LIMIT_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(Error::Files(error)),
    };
    let not_text = |source| Error::NotText { path: path.to_owned(), source };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => Chain::from_der(error.as_bytes()).and_then(|chain| chain.to_pem()).map(Some).map_err(not_text),
    }
}

fn write_preloaded(path: PathBuf, text: &str) -> Result<(), Error> {
    // The operator's link stays a link.
    let path = fs::canonicalize(&path).unwrap_or(path);
    let Ok(metadata) = fs::metadata(&path) else {
        return aziot_files::write(path, Mode::SHARED, text).map_err(Error::Files);
    };
    if !metadata.is_file() {
        return Err(Error::NotRegular(path));
    }
    let owner = Owner { uid: metadata.uid(), gid: metadata.gid() };
    let options = Mode::from_bits(metadata.permissions().mode()).owned_by(owner);
    match aziot_files::write(&path, options, text) {
        Err(error) if cannot_be_replaced(&error) => {
            tracing::debug!({ fields::FILE } = %path.display(), "{}; writing in place", chain(&error));
            aziot_files::overwrite_in_place(&path, text, LIMIT_BYTES).map_err(Error::Files)
        }
        outcome => outcome.map_err(Error::Files),
    }
}

/// Whether the folder, not the file, is what cannot be written: not ours, read-only, or a bind mount of the file alone.
fn cannot_be_replaced(error: &aziot_files::Error) -> bool {
    let in_time = matches!(error.action(), Action::Write | Action::SetOwner | Action::SetMode | Action::Rename);
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::ResourceBusy];
    in_time && kinds.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    fn write(path: &Path, bytes: impl AsRef<[u8]>) {
        aziot_files::write(path, Mode::SHARED, bytes).unwrap();
    }

    fn uri(path: &Path) -> Preloaded {
        Preloaded::Uri(Url::from_file_path(path).unwrap())
    }

    fn store(folder: &Path, preloaded: &[(&str, Preloaded)]) -> Store {
        let preloaded = preloaded.iter().map(|(id, place)| ((*id).to_owned(), place.clone())).collect();
        Store::new(folder, preloaded)
    }

    fn list(ids: &[&str]) -> Preloaded {
        Preloaded::List(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    #[test]
    fn file_names_are_those_of_the_public_service() {
        for (id, name) in [
            ("device-id", "deviceid-bd732105ef89cf8edd2606a5309c8a26b7b5599a4e124a0fe6199b6b2f60e655.cer"),
            ("device-id-temp", "deviceidtemp-18529c9171bde94d93057c5ae38aa55de93bd188cf902aae402ccff020205f2b.cer"),
            ("est-id", "estid-c45f3e96a312cc524fecceddbc40dfc2aa789eae911d8bc7dd4eda19b93be900.cer"),
            ("local-ca", "localca-f71a8ad7034763bddef5cd1be2038a6b758374a08a83e88a979839841e5294d4.cer"),
            ("aziot-edged-ca", "aziotedgedca-86f154be7ff14480027f0d00c59c223db6d9e4ab0b559fc523cca36a7c973d6d.cer"),
            (
                "aziot-edged-ca-temp",
                "aziotedgedcatemp-ed813d17744064fc9d91ff2fda86284470de6c3f9a63d7b9ce987c5e978bbb39.cer",
            ),
            (
                "aziot-edged/module/edgeAgent:identity",
                "aziotedgedmoduleedgeAgentidentity-21389bcc8525907d45c9c4fba479c627d146903b9ba96acb7d9ae69830c54950.cer",
            ),
            ("a/b c", "abc-0af99a609169538538d589bf108a2131d8bc212c653d45ad44dedef60988ab9f.cer"),
            ("a\0b", "ab-59b271ae1bbcb1d31d41929817f4b16fb439eb4f31520b5ad1d5ce98920a7138.cer"),
            ("Üñí-中文", "-34c289b376f0393eff77ce2906d56f58fd3872bbc0c135560a66d0822838cd63.cer"),
            ("..", "-5ec1f7e700f37c3d0b2981d04855fc34b94aaa15457b05ca571817442d228f81.cer"),
            ("", "-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.cer"),
        ] {
            assert_eq!(file_name(id), name, "{id:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("certd");
        let store = store(&home, &[]);
        assert_eq!(store.read("a").unwrap(), None);
        assert!(!store.remove("a").unwrap());
        store.write("a", "text").unwrap();
        store.write("empty", "").unwrap();
        assert_eq!(store.read("a").unwrap().as_deref(), Some("text"));
        assert_eq!(store.read("empty").unwrap().as_deref(), Some(""));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&home), 0o700);
        assert_eq!(mode(&home.join("certs")), 0o755);
        assert_eq!(mode(&home.join("certs").join(file_name("a"))), 0o644);
        assert!(store.remove("a").unwrap());
        assert_eq!(store.read("a").unwrap(), None);
    }

    #[test]
    fn the_longest_id_has_186_letters() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path(), &[]);
        let (long, longer) = ("x".repeat(186), "x".repeat(187));
        store.write(&long, "text").unwrap();
        assert!(store.read(&long).unwrap().is_some() && store.remove(&long).unwrap());
        assert!(matches!(store.write(&longer, "text"), Err(Error::Files(_))));
        assert!(matches!(store.read(&longer), Err(Error::Files(_))));
        assert!(matches!(store.remove(&longer), Err(Error::Files(_))));
    }

    #[test]
    fn a_preloaded_file_counts_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.pem");
        store(folder.path(), &[]).write("a", "stored").unwrap();
        let store = store(folder.path(), &[("a", uri(&path))]);
        assert_eq!(store.read("a").unwrap(), None, "no fall-back to the stored file");
        store.write("a", "preloaded").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"preloaded");
        assert_eq!(store.read("a").unwrap().as_deref(), Some("preloaded"));
        assert!(store.remove("a").unwrap() && !path.exists());
    }

    #[test]
    fn a_preloaded_file_keeps_mode_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        aziot_files::write(&target, Mode::GROUP_READABLE, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        store(folder.path(), &[("a", uri(&link))]).write("a", "new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    }

    /// Root may write anywhere and replaces the file; everybody else overwrites it. Nobody can tell by the outcome.
    #[test]
    fn a_preloaded_file_in_a_folder_that_cannot_be_written_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let closed = folder.path().join("closed");
        let _ = aziot_files::create_directory(&closed, Mode::SHARED_DIRECTORY).unwrap();
        let path = closed.join("a.pem");
        aziot_files::write(&path, Mode::GROUP_READABLE, "old and longer").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
        let outcome = store(folder.path(), &[("a", uri(&path))]).write("a", "new");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
        outcome.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn only_local_regular_files_can_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let place = |text: &str| Preloaded::Uri(text.parse().unwrap());
        let store = store(
            folder.path(),
            &[
                ("web", place("https://example.com/a.pem")),
                ("host", place("file://example.com/a.pem")),
                ("here", place("file://localhost/nonexistent/a.pem?query#fragment")),
                ("null", place("file:///dev/null")),
            ],
        );
        for id in ["web", "host"] {
            assert!(matches!(store.read(id), Err(Error::NotLocal { .. })), "{id}");
            assert!(matches!(store.write(id, ""), Err(Error::NotLocal { .. })), "{id}");
            assert!(matches!(store.remove(id), Err(Error::NotLocal { .. })), "{id}");
        }
        assert_eq!(store.read("here").unwrap(), None);
        assert!(matches!(store.read("null"), Err(Error::NotRegular(_))));
        assert!(matches!(store.write("null", ""), Err(Error::NotRegular(_))));
    }

    #[test]
    fn lists_are_joined_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let [first, broken] = ["first", "broken"].map(|name| folder.path().join(name));
        write(&first, "one");
        write(&broken, [0xff, 0xfe]);
        let store = store(
            folder.path(),
            &[
                ("first", uri(&first)),
                ("broken", uri(&broken)),
                ("inner", list(&["absent", "stored", "empty"])),
                ("outer", list(&["first", "inner", "first"])),
                ("nothing", list(&["absent", "empty", "nobody"])),
                ("nobody", list(&[])),
                ("spoilt", list(&["first", "broken"])),
                ("circle", list(&["first", "back"])),
                ("back", list(&["circle", "stored"])),
            ],
        );
        store.write("stored", "two\n").unwrap();
        store.write("empty", "").unwrap();
        assert_eq!(store.read("outer").unwrap().as_deref(), Some("one\ntwo\none"));
        assert_eq!(store.read("nothing").unwrap(), None);
        assert_eq!(store.read("nobody").unwrap(), None);
        assert!(matches!(store.read("spoilt"), Err(Error::NotText { .. })));
        assert_eq!(store.read("circle").unwrap().as_deref(), Some("one\ntwo\n"));
        assert!(matches!(store.write("outer", ""), Err(Error::List(_))));
        assert!(matches!(store.remove("outer"), Err(Error::List(_))));
    }

    #[test]
    fn der_is_read_as_pem_and_other_bytes_are_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let [der, junk] = ["der", "junk"].map(|name| folder.path().join(name));
        let chain = Chain::from_pem(crate::test_vectors::CA).unwrap();
        write(&der, chain.leaf().unwrap().to_der().unwrap());
        write(&junk, [0x30, 0x82, 0xff]);
        let store = store(folder.path(), &[("der", uri(&der)), ("junk", uri(&junk))]);
        assert_eq!(store.read("der").unwrap().as_deref(), Some(crate::test_vectors::CA));
        assert!(matches!(store.read("junk"), Err(Error::NotText { .. })));
    }
}
