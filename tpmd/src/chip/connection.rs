//! One connection to the TPM: how it is opened, what is known about its handles, and room made where a killed program left none.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use aziot_tpmd_api::config::{AuthValue, HierarchyAuthorization, Tcti};
use rustix::fs::{Access, Mode, OFlags, access, open};
use rustix::io::Errno;
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::ObjectHandle;
use tss_esapi::structures::{Auth, CapabilityData};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::{Context, WrapperErrorKind};

use super::Error;
use super::auth_key::AuthKey;
use super::code::Code;
use super::keys::RootKeys;
use super::session::Library;

/// The devices of a kernel: with its resource manager, and without, for one program at a time.
const DEVICES: [&str; 2] = ["/dev/tpmrm0", "/dev/tpm0"];

/// A TPM that was opened.
pub(super) struct Connection {
    pub(super) library: Library,
    /// The TPM's own keys, once they were looked for.
    pub(super) root_keys: Option<RootKeys>,
    /// The key that signs, once it was looked for.
    pub(super) auth_key: Option<AuthKey>,
    /// Whether other programs may be using the TPM at this moment.
    is_shared: bool,
}

impl Connection {
    /// Opens the TPM. It is not asked anything yet.
    pub(super) fn open(tcti: &Tcti, authorization: &HierarchyAuthorization) -> Result<Connection, Error> {
        let text = loader_text(tcti)?;
        let name = TctiNameConf::from_str(&text).map_err(|source| Error::Tcti { tcti: text.clone(), source })?;
        let mut context = Context::new(name).map_err(|error| match Error::from(error) {
            Error::Tpm(source) => not_opened(text.clone(), source),
            other => other,
        })?;
        let HierarchyAuthorization { endorsement, owner } = authorization;
        // The library remembers them; whether they are right shows when they are first used.
        context.tr_set_auth(ObjectHandle::Endorsement, auth(endorsement)?)?;
        context.tr_set_auth(ObjectHandle::Owner, auth(owner)?)?;
        Ok(Connection { library: Library::new(context), root_keys: None, auth_key: None, is_shared: is_shared(&text) })
    }

    /// Whether something was left in the TPM that only closing the connection may remove.
    pub(super) fn is_untidy(&self) -> bool {
        self.library.is_untidy()
    }

    /// Removes loaded objects and sessions that a killed program left, and tells how many; with `saved`, sessions that it had stored outside
    /// the TPM as well, for which a TPM keeps a handle. Where no resource manager tidies up, a few of them fill a TPM until it is reset;
    /// nobody else can be using it at this moment.
    pub(super) fn make_room(&mut self, saved: bool) -> Result<usize, Error> {
        if self.is_shared {
            return Ok(0);
        }
        let mut removed = 0;
        for first in LOADED.into_iter().chain(saved.then_some(SAVED)) {
            match self.remove_all(first) {
                Ok(more) => removed += more,
                Err(error) if removed == 0 => return Err(error),
                Err(_) => break,
            }
        }
        if removed > 0 {
            tracing::warn!(
                "the TPM was full: removed {removed} loaded objects and sessions that a program had left in it"
            );
        }
        Ok(removed)
    }

    /// Removes all that has a handle from `first` on, and tells how many there were.
    fn remove_all(&mut self, first: u32) -> Result<usize, Error> {
        let (capability, _) = self.library.get_capability(CapabilityType::Handles, first, MANY)?;
        let CapabilityData::Handles(handles) = capability else {
            return Err(Error::Library(WrapperErrorKind::WrongValueFromTpm));
        };
        let mut removed = 0;
        for handle in handles.into_inner() {
            let Ok(object) = self.library.tr_from_tpm_public(handle) else { continue };
            // The wrapper takes policy sessions for what cannot be flushed, and says so after it has flushed them.
            let is_removed = !matches!(self.library.flush_context(object), Err(tss_esapi::Error::Tss2Error(_)));
            removed += usize::from(is_removed);
        }
        Ok(removed)
    }
}

/// First handles of loaded objects and of loaded sessions (TPM 2.0 Library, Part 2, 7.2).
const LOADED: [u32; 2] = [0x8000_0000, 0x0200_0000];
/// First handle of saved sessions.
const SAVED: u32 = 0x0300_0000;
/// More than any TPM has room for.
const MANY: u32 = 64;

/// What the library's loader takes. A device that is not there, or may not be used, is told here: the library says "IO failure" to both.
pub(super) fn loader_text(tcti: &Tcti) -> Result<String, Error> {
    match tcti {
        Tcti::AnyDevice => device(&DEVICES.map(PathBuf::from)),
        Tcti::Device(path) => device(&[PathBuf::from(path)]),
        Tcti::Swtpm(_) | Tcti::Mssim(_) | Tcti::Tabrmd(_) => Ok(tcti.to_string()),
    }
}

fn device(candidates: &[PathBuf]) -> Result<String, Error> {
    for path in candidates {
        match access(path, Access::READ_OK | Access::WRITE_OK) {
            Err(Errno::NOENT) => {}
            Err(Errno::ACCESS | Errno::PERM) => return Err(Error::NotPermitted { device: path.clone() }),
            // Other errors show again when it is opened.
            Ok(()) | Err(_) => return Ok(format!("{DEVICE}{}", path.display())),
        }
    }
    Err(Error::NoDevice { devices: candidates.to_vec() })
}

/// Why the library could not open the TPM. To everything that is wrong with a device it says "IO failure"; the kernel says more.
fn not_opened(tcti: String, source: Code) -> Error {
    let device = tcti.strip_prefix(DEVICE).map(PathBuf::from);
    match device.and_then(|device| Some((open(&device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).err()?, device)))
    {
        Some((errno, device)) => refused(device, errno),
        None => Error::Open { tcti, source },
    }
}

/// What it means that a device could not be opened.
fn refused(device: PathBuf, errno: Errno) -> Error {
    match errno {
        Errno::ACCESS | Errno::PERM => Error::NotPermitted { device },
        Errno::BUSY => Error::InUse { device },
        _ => Error::Device { device, source: errno.into() },
    }
}

/// How the library's loader is told about a device.
const DEVICE: &str = "device:";

/// Whether a resource manager keeps programs apart, and tidies up after each.
fn is_shared(loader_text: &str) -> bool {
    let device = loader_text.strip_prefix(DEVICE).and_then(|path| Path::new(path).file_name());
    device.is_some_and(|name| name.to_string_lossy().starts_with("tpmrm")) || loader_text.starts_with("tabrmd")
}

fn auth(value: &AuthValue) -> Result<Auth, Error> {
    Ok(Auth::try_from(value.expose())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_told_by_its_path() {
        let error = device(&["/nowhere/tpm0".into(), "/nowhere/tpm1".into()]).unwrap_err();
        assert!(error.to_string().ends_with("there is no /nowhere/tpm0 and no /nowhere/tpm1"), "{error}");
        assert!(!error.may_pass());
        assert_eq!(device(&["/nowhere/tpm0".into(), "/dev/null".into()]).unwrap(), "device:/dev/null");
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_told_as_the_kernel_tells_it() {
        let code = Code::of(0xa_000a).unwrap();
        // A folder cannot be opened for writing.
        let error = not_opened("device:/".to_owned(), code);
        assert!(matches!(&error, Error::Device { .. }) && error.may_pass(), "{error:?}");
        assert!(aziot_log::chain(&error).to_string().contains("Is a directory"), "{error:?}");
        assert!(matches!(not_opened("device:/dev/null".to_owned(), code), Error::Open { .. }), "it can be opened");
        assert!(matches!(not_opened("swtpm:host=localhost,port=1".to_owned(), code), Error::Open { .. }));
        let error = refused("/dev/tpm0".into(), Errno::BUSY);
        assert!(error.to_string().ends_with("/dev/tpm0 is in use by another program") && error.may_pass(), "{error}");
        for errno in [Errno::PERM, Errno::ACCESS] {
            let error = refused("/dev/tpm0".into(), errno);
            assert!(matches!(error, Error::NotPermitted { .. }) && !error.may_pass());
        }
    }

    #[test]
    fn the_library_takes_all_that_a_config_may_say() {
        for text in [
            "swtpm",
            "mssim:host=::1,port=1",
            "swtpm:host=tpm.example,port=2321",
            "tabrmd",
            "tabrmd:bus_type=session",
            "tabrmd:bus_name=a.b,bus_type=system",
            "device:/dev/null",
        ] {
            let text = loader_text(&text.parse().unwrap()).unwrap();
            assert!(TctiNameConf::from_str(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn resource_managers_are_known() {
        for (text, shared) in [
            ("device:/dev/tpmrm0", true),
            ("device:/dev/tpm0", false),
            ("swtpm:host=localhost,port=2321", false),
            ("tabrmd", true),
        ] {
            assert_eq!(is_shared(text), shared, "{text}");
        }
    }
}
