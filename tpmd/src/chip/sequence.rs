//! HMACs of more than one command takes: the only unsafe code of this crate, since the wrapper around the TSS library has no sequences.
//!
//! On a connection of its own, because the wrapper keeps the one it has to itself.

#![expect(unsafe_code, reason = "the wrapper has no HMAC sequences; these are eight calls of the C library")]

use std::ffi::CString;
use std::ptr::null_mut;
use std::time::Instant;

use tss_esapi::WrapperErrorKind;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::tss2_esys::{
    ESYS_CONTEXT, ESYS_TR, ESYS_TR_NONE, ESYS_TR_PASSWORD, ESYS_TR_RH_NULL, Esys_Finalize, Esys_FlushContext,
    Esys_Free, Esys_HMAC_Start, Esys_Initialize, Esys_SequenceComplete, Esys_SequenceUpdate, Esys_TR_FromTPMPublic,
    TPM2B_AUTH, TPM2B_DIGEST, TPM2B_MAX_BUFFER, TSS2_RC, TSS2_TCTI_CONTEXT, Tss2_TctiLdr_Finalize,
    Tss2_TctiLdr_Initialize,
};

use super::Error;
use super::code::Code;

/// Bytes that one command takes: `TPM2_MAX_DIGEST_BUFFER`.
pub(super) const BUFFER: usize = 1024;

/// HMAC-SHA256 of `data` by the key at a persistent handle that wants no password.
/// Given up at the deadline, between two commands.
pub(super) fn hmac(loader_text: &str, persistent: u32, data: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
    let mut esys = Esys::open(loader_text)?;
    let key = esys.object(persistent)?;
    let mut sequence = Sequence::start(&mut esys, key)?;
    let mut rest = data;
    while let Some((chunk, behind)) = rest.split_first_chunk::<BUFFER>().filter(|(_, behind)| !behind.is_empty()) {
        if Instant::now() >= deadline {
            return Err(Error::GivenUp);
        }
        sequence.update(chunk)?;
        rest = behind;
    }
    sequence.complete(rest)
}

fn check(code: TSS2_RC) -> Result<(), Code> {
    Code::of(code).map_or(Ok(()), Err)
}

/// A way to the TPM, closed when dropped.
struct Tcti(*mut TSS2_TCTI_CONTEXT);

impl Drop for Tcti {
    fn drop(&mut self) {
        // SAFETY: the loader made this context and checked that it did, nobody else has it, and the ESYS context that used it is gone:
        // it owns this one and drops it last.
        unsafe { Tss2_TctiLdr_Finalize(&raw mut self.0) }
    }
}

/// An ESYS context on its own way to the TPM.
struct Esys {
    context: *mut ESYS_CONTEXT,
    /// Dropped after the context is.
    _tcti: Tcti,
}

impl Drop for Esys {
    fn drop(&mut self) {
        // SAFETY: the library made this context and checked that it did; it is finalized once, before the TCTI below it.
        unsafe { Esys_Finalize(&raw mut self.context) }
    }
}

impl Esys {
    fn open(loader_text: &str) -> Result<Esys, Code> {
        let text = CString::new(loader_text).expect("a TCTI was checked to have no NUL");
        let mut tcti = null_mut();
        // SAFETY: the text ends with a NUL and outlives the call; `tcti` is written only on success, which is checked.
        check(unsafe { Tss2_TctiLdr_Initialize(text.as_ptr(), &raw mut tcti) })?;
        let tcti = Tcti(tcti);
        let mut context = null_mut();
        // SAFETY: the TCTI is open and lives as long as the context, which owns it below; no ABI version may be asked for.
        check(unsafe { Esys_Initialize(&raw mut context, tcti.0, null_mut()) })?;
        Ok(Esys { context, _tcti: tcti })
    }

    fn object(&mut self, persistent: u32) -> Result<ESYS_TR, Code> {
        let mut object = ESYS_TR_NONE;
        // SAFETY: the context is open, and `object` outlives the call.
        check(unsafe {
            Esys_TR_FromTPMPublic(self.context, persistent, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &raw mut object)
        })?;
        Ok(object)
    }
}

/// A sequence in the TPM; dropped before it is complete it is removed from there.
struct Sequence<'e> {
    esys: &'e mut Esys,
    handle: ESYS_TR,
}

impl Drop for Sequence<'_> {
    fn drop(&mut self) {
        if self.handle != ESYS_TR_NONE {
            // SAFETY: the context is open, and the handle is of a sequence that it started and the TPM has not completed. Should the TPM
            // refuse, there is nothing left to do.
            unsafe { Esys_FlushContext(self.esys.context, self.handle) };
        }
    }
}

impl<'e> Sequence<'e> {
    fn start(esys: &'e mut Esys, key: ESYS_TR) -> Result<Sequence<'e>, Code> {
        let empty = TPM2B_AUTH::default();
        let mut handle = ESYS_TR_NONE;
        // SAFETY: the context is open, the key is one of its objects, and both structures outlive the call.
        check(unsafe {
            Esys_HMAC_Start(
                esys.context,
                key,
                ESYS_TR_PASSWORD,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &raw const empty,
                HashingAlgorithm::Sha256.into(),
                &raw mut handle,
            )
        })?;
        Ok(Sequence { esys, handle })
    }

    fn update(&mut self, data: &[u8]) -> Result<(), Code> {
        let buffer = buffer(data);
        // SAFETY: the context is open, the sequence was started in it, and the buffer outlives the call.
        check(unsafe {
            Esys_SequenceUpdate(
                self.esys.context,
                self.handle,
                ESYS_TR_PASSWORD,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &raw const buffer,
            )
        })
    }

    fn complete(mut self, data: &[u8]) -> Result<Vec<u8>, Error> {
        let buffer = buffer(data);
        let (mut digest, mut ticket) = (Returned::nothing(), Returned::nothing());
        // SAFETY: the context is open, the sequence was started in it, and the buffer outlives the call. `digest` and `ticket` are
        // written only on success, which is checked.
        check(unsafe {
            Esys_SequenceComplete(
                self.esys.context,
                self.handle,
                ESYS_TR_PASSWORD,
                ESYS_TR_NONE,
                ESYS_TR_NONE,
                &raw const buffer,
                ESYS_TR_RH_NULL,
                &raw mut digest.0,
                &raw mut ticket.0,
            )
        })?;
        // The TPM has freed it.
        self.handle = ESYS_TR_NONE;
        digest.digest().ok_or(Error::Library(WrapperErrorKind::WrongValueFromTpm))
    }
}

/// What the library returned in memory that its caller frees. Null, or a whole structure that nobody else has: only calls of the library
/// write the pointer.
struct Returned<T>(*mut T);

impl<T> Returned<T> {
    fn nothing() -> Returned<T> {
        Returned(null_mut())
    }
}

impl Returned<TPM2B_DIGEST> {
    /// A copy of a SHA-256 digest; `None` if it is something else.
    fn digest(&self) -> Option<Vec<u8>> {
        // SAFETY: null, or a whole structure of the library, aligned as malloc does, which lives as long as this.
        let digest = unsafe { self.0.as_ref() }?;
        let bytes = digest.buffer.get(..usize::from(digest.size))?;
        (bytes.len() == DIGEST).then(|| bytes.to_vec())
    }
}

impl<T> Drop for Returned<T> {
    fn drop(&mut self) {
        // SAFETY: the library allocated it for its caller to free, or it is null; nothing points into it.
        unsafe { Esys_Free(self.0.cast()) }
    }
}

/// Bytes of a SHA-256 digest.
const DIGEST: usize = 32;

fn buffer(data: &[u8]) -> TPM2B_MAX_BUFFER {
    let size = u16::try_from(data.len()).expect("a part of a kilobyte");
    let mut buffer = TPM2B_MAX_BUFFER { size, ..Default::default() };
    buffer.buffer[..data.len()].copy_from_slice(data);
    buffer
}
