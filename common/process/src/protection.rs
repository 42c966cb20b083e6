//! Keeps what is in the memory of a daemon out of files and of other processes: no core dumps, no debuggers, memory wiped when freed.
//!
//! Not against root, nor against the kernel. Nothing is locked into memory: who needs that encrypts swap, or has none. The stack and the
//! kernel's socket buffers are not wiped.

use std::{alloc::System, io};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use zeroizing_alloc::ZeroAlloc;

/// Wipes all memory when it is freed. Types wipe what they know to be secret; a key also passes through buffers of the HTTP server and of
/// the JSON parser that know nothing. Costs some hundredths of a request.
#[global_allocator]
static WIPES_WHAT_IS_FREED: ZeroAlloc<System> = ZeroAlloc(System);

/// Nothing of this process ends in a core file.
pub(crate) fn no_core_dumps() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// No other process of the same user may trace this one or read its memory; only one with `CAP_SYS_PTRACE` still may.
///
/// Files below `/proc/PID` then belong to root: the owner sees how much memory is resident (`status`) and no longer how it is shared
/// (`smaps_rollup`).
pub fn no_debuggers() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

    #[test]
    fn memory_stays_in_the_process() {
        no_core_dumps().unwrap();
        no_debuggers().unwrap();
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }
}
