//! Who may do what with a new file or folder: its permission bits and its owner.

use std::fmt;
use std::fs::{File, Permissions};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::Path;

use crate::{Action, Error};

/// Permission bits of a file or folder, as in `chmod`. The umask does not apply: a file gets exactly these bits.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Mode(u32);

impl Mode {
    /// 0600: the owner reads and writes, nobody else does anything.
    pub const PRIVATE: Mode = Mode(0o600);
    /// 0400: the owner reads, nobody else does anything.
    pub const PRIVATE_READ_ONLY: Mode = Mode(0o400);
    /// 0640: the owner reads and writes, the group reads.
    pub const GROUP_READABLE: Mode = Mode(0o640);
    /// 0644: everybody reads, the owner writes.
    pub const SHARED: Mode = Mode(0o644);
    /// 0700: a folder that only its owner may enter.
    pub const PRIVATE_DIRECTORY: Mode = Mode(0o700);
    /// 0755: a folder that everybody may enter and only the owner may change.
    pub const SHARED_DIRECTORY: Mode = Mode(0o755);

    /// The mode with these bits; those above 0777 (set-uid, set-gid, sticky) are dropped, no file of ours needs them.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Mode {
        Mode(bits & 0o777)
    }

    /// The nine permission bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// These permissions with an owner other than the process's own; changing the owner usually takes root.
    #[must_use]
    pub const fn owned_by(self, owner: Owner) -> Options {
        Options { mode: self, owner: Some(owner) }
    }
}

/// Prints the bits the way `chmod` takes them: `0640`.
impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Mode({self})")
    }
}

/// User and group of a file, by number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How a new file or folder is made. A plain [`Mode`] converts into it; [`Mode::owned_by`] adds an owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    mode: Mode,
    owner: Option<Owner>,
}

impl From<Mode> for Options {
    fn from(mode: Mode) -> Options {
        Options { mode, owner: None }
    }
}

impl Options {
    /// Applies owner and mode to what `file` has open; `path` is for the error. The owner comes first: until
    /// then the mode is narrower than asked for, so nobody gets in too early.
    pub(crate) fn apply(self, file: &File, path: &Path) -> Result<(), Error> {
        if let Some(Owner { uid, gid }) = self.owner {
            fchown(file, Some(uid), Some(gid)).map_err(Error::at(Action::SetOwner, path))?;
        }
        file.set_permissions(Permissions::from_mode(self.mode.bits())).map_err(Error::at(Action::SetMode, path))
    }
}
