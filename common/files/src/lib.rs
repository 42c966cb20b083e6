//! Whole files on disk: after a power cut a file is there as it was before or as it is now, never a part of it.
//!
//! Every file that a service writes goes through here: a temporary in the same folder, which nobody else may open,
//! takes the bytes; owner and mode are set before the first byte; file and folder are synced around the rename that
//! gives it its name. Keys and PINs are thus never readable by others, not even briefly.
//!
//! Where a folder allows no file beside the old one, [`overwrite_in_place`] does what can be done without that promise.
//!
//! All functions block (on `fsync`, for seconds on a bad day): call them from a blocking task. There is no locking
//! between writers of one path, the last rename wins; and no appending, that is not a thing our services do.

mod directory;
mod error;
mod options;
mod overwrite;
mod read;
mod temporary;
mod write;

pub use directory::{create_directory, remove, remove_leftovers, remove_old_leftovers, rename};
pub use error::{Action, Error};
pub use options::{Mode, Options, Owner};
pub use overwrite::overwrite_in_place;
pub use read::{ModeWarning, mode_warning, read_limited};
pub use write::{Created, write, write_new};
