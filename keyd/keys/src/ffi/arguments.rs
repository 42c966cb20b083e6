//! What callers in C hand over, checked and turned into Rust: text, bytes, parameter structures and buffers for results.
//!
//! The only code that looks behind a caller's pointer. NULL, bad alignment and impossible lengths are refused; that a pointer which
//! passes leads to what the ABI says is the caller's promise, and each function here repeats it.

#![expect(unsafe_code, reason = "pointers from C")]

use std::ffi::{CStr, c_char, c_uchar, c_void};
use std::{ptr, slice};

use super::error::Error;

/// The text at `text`.
///
/// # Safety
///
/// `text` is NULL, or leads to a string that ends with a NUL byte and is not changed for as long as `'a`.
pub(super) unsafe fn text<'a>(name: &'static str, text: *const c_char) -> Result<&'a str, Error> {
    if text.is_null() {
        return Err(Error::Null(name));
    }
    // SAFETY: it is not NULL, and the caller promises the NUL byte at the end and that nobody changes it.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Error::NotUtf8(name))
}

/// The text at `text`, none if that is NULL.
///
/// # Safety
///
/// As for [`text`].
pub(super) unsafe fn optional_text<'a>(name: &'static str, text: *const c_char) -> Result<Option<&'a str>, Error> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the promise is the same.
    unsafe { self::text(name, text) }.map(Some)
}

/// The `length` bytes at `start`. NULL is refused even if there are none.
///
/// # Safety
///
/// `start` is NULL, or leads to `length` bytes that are not changed for as long as `'a`.
pub(super) unsafe fn bytes<'a>(name: &'static str, start: *const u8, length: usize) -> Result<&'a [u8], Error> {
    if start.is_null() {
        return Err(Error::Null(name));
    }
    if isize::try_from(length).is_err() {
        return Err(Error::Length(name));
    }
    // SAFETY: it is not NULL, bytes need no alignment, the length is one that a slice can have, and the caller promises that so many
    // bytes are there and that nobody changes them.
    Ok(unsafe { slice::from_raw_parts(start, length) })
}

/// The parameter structure at `start`.
///
/// # Safety
///
/// `start` is NULL, or leads to a `T` that is not changed for as long as `'a`.
pub(super) unsafe fn structure<'a, T>(start: *const c_void) -> Result<&'a T, Error> {
    let start = start.cast::<T>();
    check(start)?;
    // SAFETY: it is neither NULL nor misaligned, and the caller promises that a `T` is there and that nobody changes it.
    Ok(unsafe { &*start })
}

/// Puts `value` where the caller wants it.
///
/// # Safety
///
/// `place` is NULL, or a `T` can be written there.
pub(super) unsafe fn put<T: Copy>(place: *mut T, value: T) -> Result<(), Error> {
    check(place)?;
    // SAFETY: it is neither NULL nor misaligned, and the caller promises that a `T` can be written there.
    unsafe { ptr::write(place, value) };
    Ok(())
}

fn check<T>(pointer: *const T) -> Result<(), Error> {
    if pointer.is_null() {
        return Err(Error::Null("parameters or result"));
    }
    if pointer.is_aligned() { Ok(()) } else { Err(Error::Misaligned) }
}

/// A caller's buffer for a result of unknown length.
pub(super) struct Buffer {
    start: *mut c_uchar,
    length: *mut usize,
}

impl Buffer {
    /// Refuses a `length` that cannot be written before anything is done.
    ///
    /// # Safety
    ///
    /// For as long as the buffer is used: `length` is NULL or leads to a `usize` that can be read and written; `start` is NULL or leads
    /// to as many writable bytes as `*length` says.
    pub(super) unsafe fn new(start: *mut c_uchar, length: *mut usize) -> Result<Buffer, Error> {
        check(length)?;
        Ok(Buffer { start, length })
    }

    /// Gives the caller the result, or, if there is no buffer, what its length is at most. `bound` and `result` are called as needed, and
    /// the caller's memory is written only after both: the input may lie in the buffer.
    pub(super) fn answer<R: AsRef<[u8]>>(
        self,
        bound: impl FnOnce() -> Result<usize, Error>,
        result: impl FnOnce() -> Result<R, Error>,
    ) -> Result<(), Error> {
        if self.start.is_null() {
            let bound = bound()?;
            // SAFETY: `new` found it neither NULL nor misaligned, and its caller promised that it can be written.
            unsafe { ptr::write(self.length, bound) };
            return Ok(());
        }
        // SAFETY: `new` found it neither NULL nor misaligned, and its caller promised that it can be read.
        let capacity = unsafe { ptr::read(self.length) };
        let result = result()?;
        let result = result.as_ref();
        if result.len() > capacity {
            let bound = bound()?.max(result.len());
            // SAFETY: as above.
            unsafe { ptr::write(self.length, bound) };
            return Err(Error::BufferTooSmall);
        }
        // SAFETY: the caller of `new` promised `capacity` writable bytes, and the result is no longer. It is our own allocation, so the
        // two do not overlap.
        unsafe { ptr::copy_nonoverlapping(result.as_ptr(), self.start, result.len()) };
        // SAFETY: as above.
        unsafe { ptr::write(self.length, result.len()) };
        Ok(())
    }
}
