//! A service's config: its files merged as the public packages do it, and every error and warning with file, line and
//! key.
//!
//! [`load`] reads the main file and its drop-ins into any serde type. A key that the type does not know is a
//! [`Finding`], not an error, since old files must go on working. [`Watch`] tells when the files have changed, and [`Live`] reads them again.
//!
//! Internally tagged and flattened types work, but serde buffers them: an error in one is placed at the table around
//! it, and an unknown key gets no suggestion. A raw struct of all keys with `#[serde(try_from)]` keeps both. Nothing
//! here knows what any key means.

mod deserializer;
mod document;
mod error;
mod failure;
mod finding;
mod live;
mod load;
mod merge;
mod path;
mod secret;
mod sources;
mod suggestion;
mod tree;
mod unread;
mod watch;

pub use error::{Error, Problem};
pub use finding::{Finding, Oddity};
pub use live::Live;
pub use load::{Loaded, load, load_file, load_str, problem_at};
pub use sources::Sources;
pub use watch::{Change, Watch, WatchError};
